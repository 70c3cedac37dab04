"""All that is logged comes back through MLflow's own interface as it was."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pytest

from pipeline.orchestration.graph import ALL
from pipeline.tracking.client import client_at, fluent
from pipeline.tracking.record import RunRecord
from tests.workdir import Workdir

if TYPE_CHECKING:  # MLflow is imported by client_at, which makes it quiet first
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.pyfunc import PyFuncModel


@pytest.fixture(scope="module")
def client(finished: Workdir) -> "MlflowClient":
    return client_at(f"sqlite:///{finished.folder}/mlruns/mlflow.db")


@pytest.fixture(scope="module")
def champion(finished: Workdir) -> "PyFuncModel":
    with fluent(f"sqlite:///{finished.folder}/mlruns/mlflow.db"):
        import mlflow

        model: PyFuncModel = mlflow.pyfunc.load_model("models:/lookback-tiny@champion")
        return model


def the_run(client: "MlflowClient", stage: str) -> "Run":
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id], f"tags.`lookback.stage` = '{stage}'")
    return run


def folder_of(finished: Workdir, stage: str) -> Path:
    if stage == "run":
        return next((finished.folder / "data" / "tiny" / ".runs").glob("*/"))
    return (finished.folder / "data" / "tiny" / stage / "latest").resolve()


@pytest.mark.parametrize("stage", ["run", *ALL])
def test_a_plan_comes_back(finished: Workdir, client: "MlflowClient", stage: str, tmp_path: Path) -> None:
    folder, run = folder_of(finished, stage), the_run(client, stage)
    plan = RunRecord.load(folder)
    assert run.data.params == plan.param_values
    assert plan.tags.items() <= run.data.tags.items()
    for name in {point.name for point in plan.points}:
        wanted = {point.step: point.value for point in plan.points if point.name == name}
        found = client.get_metric_history(run.info.run_id, name)
        assert {point.step: point.value for point in found} == pytest.approx(wanted, nan_ok=True)
    inputs = [] if run.inputs is None else run.inputs.dataset_inputs
    assert {(each.dataset.digest, each.tags[0].value) for each in inputs} == {
        (data.digest[:36], data.context) for data in plan.datasets
    }
    for relative, to in plan.artifacts:
        path = (folder / relative).resolve()
        there = f"{to}/{path.name}" if to else path.name
        got = Path(client.download_artifacts(run.info.run_id, there, str(tmp_path)))
        assert got.read_bytes() == path.read_bytes()


def test_everything_has_its_marks(client: "MlflowClient") -> None:
    for stage in ("run", *ALL):
        run = the_run(client, stage)
        marks = {"lookback.host", "lookback.cores", "lookback.protocol", "lookback.data", "mlflow.user"}
        assert marks <= set(run.data.tags), stage
        assert run.info.status == "FINISHED"
        if stage in ("train", "evaluate", "publish", "score", "run"):
            assert run.data.tags["lookback.device"] in ("cpu", "cuda", "mps")
    inputs = the_run(client, "run").inputs
    contexts = {each.tags[0].value for each in inputs.dataset_inputs} if inputs is not None else set()
    assert contexts == {"training", "validation", "test"}


def test_tables_are_tables(finished: Workdir, client: "MlflowClient") -> None:
    run = the_run(client, "evaluate")
    report = json.loads((finished.artifact("evaluate") / "metrics.json").read_text())
    with fluent(f"sqlite:///{finished.folder}/mlruns/mlflow.db"):
        systems, segments = (
            client.load_table(run.info.experiment_id, f"evaluate/{name}.json", run_ids=[run.info.run_id])
            for name in ("systems", "segments")
        )
    assert set(systems["system"]) == set(report["metrics"])
    assert {"history_length", "item_popularity"} <= set(segments["segment"])


def test_the_model_has_an_example_that_its_signature_takes(
    client: "MlflowClient", champion: "PyFuncModel"
) -> None:
    version = client.get_model_version_by_alias("lookback-tiny", "champion")
    for said in (
        "**Data.** 4,0",
        "**Protocol.** Temporal split",
        "the best baseline",
        "**Served worst.**",
        "**Limits.**",
    ):
        assert said in (version.description or "")
    assert len(champion.predict(champion.input_example)) == 2
    assert [each.name for each in champion.metadata.signature.inputs] == ["user_id", "history"]


def events_of_users(finished: Workdir) -> dict[Any, list[dict[str, Any]]]:
    """Events of every user, oldest first, in the form of a request; every time as a JSON request writes it."""
    events = pl.read_parquet(finished.artifact("ingest") / "events" / "*.parquet")
    events = events.sort("timestamp", "source_file", "source_row").with_columns(
        pl.col("timestamp").dt.to_string("iso:strict"), pl.col("event_type").cast(pl.String)
    )
    columns = ["item_id", "timestamp", "event_type"]
    return {
        user: table.select(columns).to_dicts()
        for (user,), table in events.group_by("user_id", maintain_order=True)
    }


def test_a_history_of_events_gives_the_user_s_list_of_the_batch(
    finished: Workdir, champion: "PyFuncModel"
) -> None:
    scored = pl.read_parquet(finished.artifact("score") / "recommendations" / "*.parquet")
    events = events_of_users(finished)
    assert len(events) > 100
    histories = {"history": list(events.values())}
    for frame in (histories, {"user_id": list(events)}):
        answer: Any = champion.predict(pl.DataFrame(frame, strict=False).to_pandas())
        for user, items, scores in zip(events, answer["item_id"], answer["score"], strict=True):
            own = scored.filter(pl.col("user_id") == user).sort("rank")
            assert items == own["item_id"].to_list(), user
            np.testing.assert_allclose(scores, own["score"].to_list(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("k", [0, -1, 10**9, "x", None])
def test_the_served_model_refuses_other_lengths(champion: "PyFuncModel", k: object) -> None:
    from mlflow.exceptions import MlflowException

    with pytest.raises(MlflowException, match="k") as caught:
        champion.predict(champion.input_example, params={"k": k})
    assert caught.value.get_http_status_code() == 400
