"""The lines of Python in the README do what they say on a finished run."""

import re
import subprocess
import sys
from pathlib import Path

from tests.workdir import Workdir

README = Path(__file__).resolve().parents[2] / "README.md"


def test_a_finished_run_is_read_in_ten_lines(finished: Workdir) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    (code,) = (block for block in blocks if "search_runs" in block)
    assert len([line for line in code.splitlines() if line.strip()]) <= 12, "ten and the imports"
    code = code.replace("pipeline/configs/demo.toml", finished.config)
    code += "\nprint(sorted(recommendations.columns), len(events), len(metrics))\n"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=finished.folder,
        env=finished.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    columns, events, runs = re.fullmatch(r"(\[.*\]) (\d+) (\d+)", done.stdout.splitlines()[-1]).groups()  # type: ignore[union-attr]
    assert columns == "['because', 'item_id', 'rank', 'score', 'user_id']"
    assert int(events) == finished.manifest("ingest")["rows_out"]
    assert int(runs) == 1
