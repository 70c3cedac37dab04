"""MLflow holds what the stages keep: delete it, run again, and the UI is full without any computation."""

import json
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipeline.orchestration.graph import ALL
from tests.workdir import Workdir

PARENT = "transformer-2x16 tiny temporal"
COMPARED = ("lookback.git", "lookback.git_dirty", "lookback.data", "lookback.protocol", "lookback.device")
"""Tags that any server is given alike; others name runs."""


def model_metrics(client: Any, model_id: str | None) -> list[tuple[object, ...]]:
    """The metrics that hang on a training's model, with their data sets."""
    model = client.get_logged_model(model_id) if model_id is not None else None
    found = [] if model is None else model.metrics
    return sorted((each.key, each.step, each.value, each.dataset_name) for each in found)


def logged(workdir: Workdir) -> dict[str, dict[str, Any]]:
    """What the tracking database holds, by run name; read from a copy, since MLflow keeps a database open after it is deleted."""
    from mlflow import MlflowClient

    seen = Path(tempfile.mkdtemp(dir=workdir.folder)) / "mlflow.db"
    for file in (workdir.folder / "mlruns").glob("mlflow.db*"):  # with what is still in the write-ahead log
        shutil.copy(file, seen.with_name(file.name))
    client = MlflowClient(f"sqlite:///{seen}")
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    runs = {}
    for run in client.search_runs([experiment.experiment_id]):
        name = run.info.run_name
        history = {key: len(client.get_metric_history(run.info.run_id, key)) for key in run.data.metrics}
        inputs = run.inputs.dataset_inputs if run.inputs is not None else []
        runs[name] = {
            "status": run.info.status,
            "params": dict(run.data.params),
            "metrics": dict(run.data.metrics),
            "history": history,
            "artifacts": sorted(each.path for each in client.list_artifacts(run.info.run_id)),
            "datasets": sorted(each.dataset.digest for each in inputs),
            "nested": "mlflow.parentRunId" in run.data.tags,
            "tags": {name: value for name, value in run.data.tags.items() if name in COMPARED},
            "model_metrics": model_metrics(client, run.data.tags.get("lookback.model_id")),
        }
    return runs


@pytest.mark.slow
def test_a_deleted_mlruns_is_filled_again_without_computing(copied: Workdir) -> None:
    before = logged(copied)
    whole = before[PARENT]
    train = before[f"train {PARENT}"]
    assert train["history"]["loss"] == 3  # an entry per epoch
    assert any(key.startswith("test/ndcg") for key in whole["metrics"])
    for run in (whole, train):
        assert {"train.epochs", "model.dim", "split.protocol", "score.k"} <= set(run["params"])
    assert {name.split()[0] for name, run in before.items() if run["nested"]} == set(ALL)
    assert {name for name, run in before.items() if not run["nested"]} == {PARENT}
    assert all(
        run["metrics"]["system/cpu_utilization_percentage"] >= 0
        for name, run in before.items()
        if name != PARENT
    )
    assert [name for name, *_ in train["model_metrics"]].count("validation_ndcg_at_10") == 3
    assert {data for *_, data in train["model_metrics"]} == {"tiny validation", "tiny test"}
    created = {stage: copied.manifest(stage)["created_utc"] for stage in ("train", "evaluate", "publish")}
    shutil.rmtree(copied.folder / "mlruns")
    summary = copied.run("all")
    assert all(stage["up_to_date"] for stage in summary["stages"])
    assert {stage: copied.manifest(stage)["created_utc"] for stage in created} == created
    assert logged(copied) == before
    assert {name: run["status"] for name, run in before.items()} == dict.fromkeys(before, "FINISHED")


def test_the_first_version_is_champion_and_answers_as_score_does(copied: Workdir) -> None:
    import mlflow
    import pandas as pd  # type: ignore[import-untyped]

    mlflow.set_tracking_uri(f"sqlite:///{copied.folder}/mlruns/mlflow.db")
    model = mlflow.pyfunc.load_model("models:/lookback-tiny@champion")
    scored = pl.read_parquet(copied.artifact("score") / "recommendations" / "*.parquet")
    users = scored["user_id"].unique(maintain_order=True)[:5].to_list()
    answer = model.predict(pd.DataFrame({"user_id": [*users, "nobody"]}))
    assert len(answer) == 6
    for user, items in zip(users, answer["item_id"], strict=False):
        assert list(items) == scored.filter(pl.col("user_id") == user)["item_id"].to_list()
    assert len(answer["item_id"].iloc[-1]) == 10  # a stranger gets what is popular
    history = scored["item_id"][:3].to_list()
    answer = model.predict(pd.DataFrame({"history": [history]}), params={"k": 4})
    assert len(answer["item_id"][0]) == 4
    assert not set(answer["item_id"][0]) & set(history)


@pytest.mark.slow
def test_what_is_sent_later_names_the_code_that_computed_it(
    workdir: Workdir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    identity = "-c", "user.name=a", "-c", "user.email=a@b.example"
    other.mkdir()
    for words in (("init", "-q", "."), (*identity, "commit", "-q", "--allow-empty", "-m", "then")):
        subprocess.run(["git", *words], cwd=other, check=True)
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))  # another checkout, as far as git says
    of_then = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    workdir.run("features")
    monkeypatch.delenv("GIT_DIR")
    workdir.run("features")  # finds all up to date
    shutil.rmtree(workdir.folder / "mlruns")
    workdir.run("features")
    runs = logged(workdir)
    assert len(runs) == 3
    assert {run["tags"]["lookback.git"] for run in runs.values()} == {of_then.stdout[:12]}


@pytest.mark.slow
def test_without_tracking_nothing_is_written(copied: Workdir) -> None:
    shutil.rmtree(copied.folder / "mlruns")
    copied.run("all", "--set", "tracking.enabled=false", "--set", "model.dim=8", "--set", "train.epochs=1")
    assert not (copied.folder / "mlruns").exists()


def test_the_bundle_is_self_contained(finished: Workdir) -> None:
    from pipeline.serving.bundle import Bundle

    folder = finished.artifact("publish") / "bundle"
    description = json.loads((folder / "bundle.json").read_text())
    assert {"evaluated/model.safetensors", "deployed/model.safetensors", "items.parquet"} <= set(
        description["files"]
    )
    assert not [path for path in folder.rglob("*") if path.suffix in (".pkl", ".pickle", ".pt")]
    bundle = Bundle.open(folder)
    items, scores = bundle.recommend_item_lists([bundle.items.ids[:2].to_list()], 5)[0]
    assert len(items) == len(scores) == 5
