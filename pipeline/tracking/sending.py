"""Send a RunRecord to a run: settings, metrics, data sets, files, and the link from metrics to model."""

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
"""Tag of a training: its logged model, to which validation and test metrics belong."""
MEASURED_ON = {"validation_": "validation", "test/": "test"}
"""Prefix of metric names to the context of their data set."""
_BATCH_METRICS, _BATCH_PARAMS = 1000, 100


def log_record(
    client: "MlflowClient", run_id: str, record: RunRecord, tags: dict[str, str], folder: Path
) -> None:
    """Send the parts of a record that the run lacks."""
    from mlflow.entities import Param, RunTag

    known = client.get_run(run_id).data
    log_points(client, run_id, record.points)
    client.log_batch(
        run_id, tags=[RunTag(name, value) for name, value in tags.items() if known.tags.get(name) != value]
    )
    params = [Param(name, value) for name, value in record.param_values.items() if name not in known.params]
    for start in range(0, len(params), _BATCH_PARAMS):
        client.log_batch(run_id, params=params[start : start + _BATCH_PARAMS])
    _log_datasets(client, run_id, record.datasets)
    _log_artifacts(client, run_id, folder, record.artifacts)


def log_points(client: "MlflowClient", run_id: str, points: list[Point]) -> None:
    """Send the points whose step the run lacks."""
    known: dict[str, set[int]] = defaultdict(set)
    for name in {point.name for point in points} & set(client.get_run(run_id).data.metrics):
        known[name] = {metric.step for metric in client.get_metric_history(run_id, name)}
    send_points(client, run_id, [point for point in points if point.step not in known[point.name]])


def send_points(client: "MlflowClient", run_id: str, points: list[Point]) -> None:
    """Send all points."""
    from mlflow.entities import Metric

    _send(client, run_id, [Metric(point.name, point.value, point.timestamp, point.step) for point in points])


def _send(client: "MlflowClient", run_id: str, metrics: "list[Metric]") -> None:
    for start in range(0, len(metrics), _BATCH_METRICS):
        client.log_batch(run_id, metrics=metrics[start : start + _BATCH_METRICS])


def model_of(client: "MlflowClient", run_id: str, name: str) -> str:
    """Id of a training run's logged model, created if missing."""
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
    """Link the run's validation and test metrics to their model and data set (MEASURED_ON)."""
    from mlflow.entities import Metric

    by_context = {data.context: data for data in datasets}
    known = {(metric.key, metric.step) for metric in client.get_logged_model(model_id).metrics or []}
    linked: list[Metric] = []
    for name in client.get_run(run_id).data.metrics:
        context = next((value for prefix, value in MEASURED_ON.items() if name.startswith(prefix)), None)
        if context is None or context not in by_context:
            continue
        data = by_context[context]
        linked += [
            Metric(
                name,
                metric.value,
                metric.timestamp,
                metric.step,
                model_id=model_id,
                dataset_name=_dataset_name(data),
                dataset_digest=data.digest[:36],
            )
            for metric in client.get_metric_history(run_id, name)
            if (name, metric.step) not in known
        ]
    _send(client, run_id, linked)


def _dataset_name(data: DatasetInput) -> str:
    """Name with the context, because MLflow keeps one context per name and digest."""
    return f"{data.name} {data.context}"


def _log_datasets(client: "MlflowClient", run_id: str, datasets: Iterable[DatasetInput]) -> None:
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
    """Send the files that the run lacks or has in another size."""
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
                known = client.list_artifacts(run_id, target or None)
                sizes[target] = {Path(file.path).name: file.file_size for file in known}
            if sizes[target].get(path.name) != path.stat().st_size:
                client.log_artifact(run_id, str(path), target or None)


def logged(run: "Run") -> LoggedRun:
    """Convert MLflow's Run."""
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
    """Tags of a stage's run, with source and user for MLflow's UI."""
    return {
        "lookback.stage": stage,
        "lookback.fingerprint": fingerprint,
        "mlflow.source.name": f"lookback {stage}",
        "mlflow.source.type": "LOCAL",
        "mlflow.user": _user(),
    } | tags


def _user() -> str:
    """Name of the user; a container may have none."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"
