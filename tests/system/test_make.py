"""The Makefile hands CONFIG and SET to the command line as they were typed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.workdir import ROOT


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """Installed environment whose `lookback` prints its arguments as JSON."""
    program = tmp_path / "bin" / "lookback"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n")
    program.chmod(0o755)
    (tmp_path / "installed").touch()
    return tmp_path


@pytest.mark.parametrize(
    "settings",
    [
        "",
        "evaluate.k=[10, 50]",
        "train.epochs=3 evaluate.k=[10, 50]",
        """evaluate.baselines=["ease", 'als'] events.timestamp_unit=%d/%m/%Y %H:%M""",
        "name=l'eau; echo `echo` && exit 1",
        'events.columns={ user_id = "the user", item_id = "item #" }',
    ],
)
def test_settings_reach_the_command_as_they_were_typed(environment: Path, settings: str) -> None:
    command = ["make", "nightly", f"VENV={environment}", "CONFIG=my configs/shop's.toml", f"SET={settings}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    arguments = json.loads(done.stdout)
    given = ["--set", settings] if settings else []
    fixed = ["run", "ingest", "features", "monitor", "score", "--config", "my configs/shop's.toml"]
    assert arguments == [*fixed, *given, "--set", "score.model=champion"]
