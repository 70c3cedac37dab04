"""The logged model in a virtual environment with what it lists and nothing else; torch and MLflow are installed anew."""

import json
import os
import subprocess
import venv
from pathlib import Path

import pytest

from pipeline.tracking.client import fluent
from tests.workdir import Workdir

PREDICT = """
import json, sys, mlflow
model = mlflow.pyfunc.load_model(sys.argv[1])
answer = model.predict(model.input_example, params={"k": 3})
print(json.dumps([list(items) for items in answer["item_id"]], default=int))
"""


@pytest.mark.slow
def test_it_loads_with_only_what_it_lists(finished: Workdir, tmp_path: Path) -> None:
    with fluent(f"sqlite:///{finished.folder}/mlruns/mlflow.db"):
        import mlflow

        uri = "models:/lookback-tiny@champion"
        model = Path(mlflow.artifacts.download_artifacts(uri, dst_path=str(tmp_path)))
        loaded = mlflow.pyfunc.load_model(str(model))
    venv.create(tmp_path / "venv", with_pip=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "-r", str(model / "requirements.txt")],
        check=True,
        env=environment,
        cwd=tmp_path,
    )
    done = subprocess.run(
        [python, "-c", PREDICT, str(model)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    here = loaded.predict(loaded.input_example, params={"k": 3})
    assert json.loads(done.stdout.splitlines()[-1]) == [
        [int(item) for item in items] for items in here["item_id"]
    ]
    assert len(here) == 2
