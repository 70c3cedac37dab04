"""Projects on a read-only mount: models load, recommend and score elsewhere; damaged files are named before they are used."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.artifacts import files
from tests.interpreter import python
from tests.workdir import Workdir


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Mount a folder read-only over itself; skips the test where that is not allowed."""
    if os.geteuid() or subprocess.run(["mount", "--bind", folder, folder], check=False).returncode:
        pytest.skip("mounting needs root")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", folder], check=True)
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.slow
def test_read_only_project(copied: Workdir, tmp_path: Path) -> None:
    copied("promote", "1")
    code = """
import mlflow, pandas as pd, os
os.mkdir("here")
model = mlflow.pyfunc.load_model("models:/lookback-tiny@champion", dst_path="here")
print(len(model.predict(pd.DataFrame({"history": [[]]}), params={"k": 3})["item_id"][0]))
"""
    runs, elsewhere = copied.folder / "mlruns", tmp_path / "elsewhere"
    with contextlib.ExitStack() as mounted:
        for folder in (copied.folder / "data", runs):
            mounted.enter_context(read_only(folder))
        environment = copied.environment() | {"MLFLOW_TRACKING_URI": f"sqlite:///{runs}/mlflow.db"}
        loaded = python(code, tmp_path, environment)
        assert loaded.stdout == "3\n", loaded.stderr
        recommended = copied("recommend", "--user", "u0001", "--json")
        assert recommended.code == 0, recommended.err
        words = ("--set", f"data_dir={elsewhere}", "--set", "score.model=champion")
        scored = copied("run", "score", *words)
        assert scored.code == 0, scored.err
        (line,) = [line for line in scored.err.splitlines() if line.startswith("tracking:")]
        assert "the work goes on" in line
    assert list(elsewhere.rglob("_SUCCESS"))


def test_recommend_names_a_damaged_file_and_its_stage(copied: Workdir) -> None:
    folder = copied.artifact("features")
    path = max(files.files_below(folder), key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    result = copied("recommend", "--user", "1")
    assert result.code == 1
    assert f"{path.name}: is damaged" in result.err
    assert "lookback run features --force" in result.err
