"""The README's Python opens a finished run."""

import json
import re
import subprocess
import sys
from pathlib import Path

from tests.workdir import Workdir

README = Path(__file__).resolve().parents[2] / "README.md"
SHOWN = """
import json
print(json.dumps({
    "columns": sorted(run.recommendations.columns),
    "events": run.events.collect().height,
    "has_metrics": run.metrics.height > 0,
    "report": run.report.is_file(),
    "train": str(run.folder("train")),
}))
"""


def test_a_finished_run_is_opened_in_two_lines(finished: Workdir) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) == 2
    done = subprocess.run(
        [sys.executable, "-c", code.replace("pipeline/configs/demo.toml", finished.config) + SHOWN],
        cwd=finished.folder,
        env=finished.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout.splitlines()[-1])
    assert shown["columns"] == ["because", "item_id", "probability", "propensity", "rank", "score", "user_id"]
    assert shown["events"] == finished.manifest("ingest")["rows_out"]
    assert shown["has_metrics"]
    assert shown["report"]
    assert (finished.folder / shown["train"]).resolve().name == finished.manifest("train")["fingerprint"]
