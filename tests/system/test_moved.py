"""A project moved to another folder, and one restored without the files of its tracking server."""

import shutil
from pathlib import Path

import pytest

from tests.workdir import Workdir

NIGHTLY = ("ingest", "features", "score", "--set", "score.model=champion")


@pytest.mark.slow
def test_a_moved_and_half_restored_project_goes_on(copied: Workdir, tmp_path: Path) -> None:
    moved = Workdir(Path(shutil.move(copied.folder, tmp_path / "moved here")))
    shutil.rmtree(moved.folder / "data" / "tiny" / ".bundles", ignore_errors=True)
    assert moved("run", *NIGHTLY, "--set", "score.k=6").code == 0
    assert not copied.folder.exists()

    files = moved.folder / "mlruns" / "artifacts"
    shutil.rmtree(files)
    shutil.rmtree(moved.folder / "data" / "tiny" / ".bundles")
    restored = moved("run", *NIGHTLY, "--set", "score.k=7")
    assert restored.code == 0
    assert "models:/lookback-tiny/1: its files are missing or damaged, restored from" in restored.err
    assert len(list(files.glob("models/*/artifacts/MLmodel"))) == 1

    shutil.rmtree(files)
    moved.run("all")
    assert len(list(files.glob("models/*/artifacts/MLmodel"))) == 1
    assert len(list(files.rglob("report.html"))) == 2  # of the stage, and of the whole run
