"""Sending a RunRecord to a run: settings, points, data sets, files, and the model of its metrics."""

import getpass
import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from pipeline.tracking.record import DatasetInput, Point, RunRecord
from pipeline.tracking.server import LoggedRun

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

MODEL_ID = "lookback.model_id"
"""Tag of a training: the logged model that it made, to which metrics of validation and test belong."""
MEASURED_ON = {"validation_": "validation", "test/": "test"}
"""How names of metrics begin, and the context of the data set that they are measured on."""
_BATCH_METRICS, _BATCH_PARAMS = 1000, 100


def log_plan(
    client: "MlflowClient", run_id: str, plan: RunRecord, tags: dict[str, str], folder: Path
) -> None:
    """Send what the run does not have yet."""
    from mlflow.entities import Param, RunTag

    known = client.get_run(run_id).data
    log_points(client, run_id, plan.points)
    client.log_batch(
        run_id, tags=[RunTag(name, value) for name, value in tags.items() if known.tags.get(name) != value]
    )
    params = [Param(name, value) for name, value in plan.param_values.items() if name not in known.params]
    for start in range(0, len(params), _BATCH_PARAMS):
        client.log_batch(run_id, params=params[start : start + _BATCH_PARAMS])
    _log_datasets(client, run_id, plan.datasets)
    _log_artifacts(client, run_id, folder, plan.artifacts)


def log_points(client: "MlflowClient", run_id: str, points: list[Point]) -> None:
    """Send the points whose step the run does not have yet."""
    have: dict[str, set[int]] = defaultdict(set)
    for name in {point.name for point in points} & set(client.get_run(run_id).data.metrics):
        have[name] = {metric.step for metric in client.get_metric_history(run_id, name)}
    send_points(client, run_id, [point for point in points if point.step not in have[point.name]])


def send_points(client: "MlflowClient", run_id: str, points: list[Point]) -> None:
    """Send all points."""
    from mlflow.entities import Metric

    _send(client, run_id, [Metric(each.name, each.value, each.timestamp, each.step) for each in points])


def _send(client: "MlflowClient", run_id: str, metrics: "list[Metric]") -> None:
    for start in range(0, len(metrics), _BATCH_METRICS):
        client.log_batch(run_id, metrics=metrics[start : start + _BATCH_METRICS])


def model_of(client: "MlflowClient", run_id: str, name: str) -> str:
    """The logged model that a training made, created where there is none yet; its id."""
    run = client.get_run(run_id)
    if MODEL_ID in run.data.tags:
        return str(run.data.tags[MODEL_ID])
    model = client.create_logged_model(
        run.info.experiment_id,
        name=name,
        source_run_id=run_id,
        params=dict(run.data.params),
        model_type="recommender",
    )
    client.finalize_logged_model(model.model_id, "READY")
    client.set_tag(run_id, MODEL_ID, model.model_id)
    return str(model.model_id)


def attach(client: "MlflowClient", run_id: str, model_id: str, datasets: Iterable[DatasetInput]) -> None:
    """Say of the run's metrics of validation and test which model and which data set they are of: see MEASURED_ON."""
    from mlflow.entities import Metric

    by_context = {data.context: data for data in datasets}
    have = {(each.key, each.step) for each in client.get_logged_model(model_id).metrics or []}
    found = []
    for name in client.get_run(run_id).data.metrics:
        context = next((each for begin, each in MEASURED_ON.items() if name.startswith(begin)), None)
        if context is None or context not in by_context:
            continue
        data = by_context[context]
        found += [
            Metric(
                name,
                each.value,
                each.timestamp,
                each.step,
                model_id=model_id,
                dataset_name=_dataset_name(data),
                dataset_digest=data.digest[:36],
            )
            for each in client.get_metric_history(run_id, name)
            if (name, each.step) not in have
        ]
    _send(client, run_id, found)


def _dataset_name(data: DatasetInput) -> str:
    """MLflow keeps one context per name and digest, so the context is in the name."""
    return f"{data.name} {data.context}"


def _log_datasets(client: "MlflowClient", run_id: str, datasets: Iterable[DatasetInput]) -> None:
    """Dataset inputs with their contexts."""
    from mlflow.entities import Dataset, InputTag
    from mlflow.entities import DatasetInput as Input

    inputs = [
        Input(
            Dataset(
                name=_dataset_name(data),
                digest=data.digest[:36],
                source_type="local",
                source=json.dumps({"uri": data.source}),
                profile=json.dumps({"num_rows": data.rows}),
            ),
            [InputTag("mlflow.data.context", data.context)],
        )
        for data in datasets
    ]
    if inputs:
        client.log_inputs(run_id, inputs)


def _log_artifacts(
    client: "MlflowClient", run_id: str, folder: Path, artifacts: Iterable[tuple[str, str]]
) -> None:
    """Send the files that the run does not have in the same size."""
    sizes: dict[str, dict[str, int | None]] = {}
    for relative, to in artifacts:
        chosen = folder / relative
        for path in sorted(chosen.rglob("*")) if chosen.is_dir() else [chosen]:
            if not path.is_file():
                continue
            target = (
                PurePosixPath(to, path.parent.relative_to(chosen.parent).as_posix())
                .as_posix()
                .removeprefix(".")
            )
            if target not in sizes:
                there = client.list_artifacts(run_id, target or None)
                sizes[target] = {Path(each.path).name: each.file_size for each in there}
            if sizes[target].get(path.name) != path.stat().st_size:
                client.log_artifact(run_id, str(path), target or None)


def logged(run: "Run") -> LoggedRun:
    """A run as MLflow has it, in our form."""
    info, data = run.info, run.data
    return LoggedRun(
        info.run_id,
        info.run_name,
        info.experiment_id,
        info.status,
        dict(data.params),
        dict(data.metrics),
        dict(data.tags),
    )


def labels(stage: str, fingerprint: str, tags: dict[str, str]) -> dict[str, str]:
    """The tags of a stage's run: its own, and what MLflow's UI shows as source and user."""
    own = {
        "lookback.stage": stage,
        "lookback.fingerprint": fingerprint,
        "mlflow.source.name": f"lookback {stage}",
        "mlflow.source.type": "LOCAL",
        "mlflow.user": _user(),
    }
    return own | tags


def _user() -> str:
    """Who runs this; a container may have no name for the user."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"
