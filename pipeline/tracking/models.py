"""Logged models and files of runs on the tracking server: log, download, delete."""

import contextlib
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.tracking.client import client_at, fluent, reported
from pipeline.tracking.record import Point, allowed, now_ms
from pipeline.tracking.sending import logged, send_points
from pipeline.tracking.served_model import signature
from pipeline.tracking.server import LoggedRun


def log_pyfunc(
    uri: str,
    run_id: str,
    folder: Path,
    item_type: str,
    example: Mapping[str, list[Any]] | None,
    requirements: list[str],
    *,
    exclude_seen: bool,
) -> tuple[str, str]:
    """Log a bundle's folder as a pyfunc model of a run, as code and data without pickle; returns its URI and id.

    item_type: "long" or "string" for item_id. example: columns of an input frame. exclude_seen: default
    of the parameter.
    """
    with reported(uri), fluent(uri):
        import mlflow.pyfunc
        import pandas as pd  # type: ignore[import-untyped]

        import features
        import models
        import pipeline

        with mlflow.start_run(run_id=run_id), _quietly("mlflow.models.model"):
            info = mlflow.pyfunc.log_model(
                name="model",
                loader_module="pipeline.serving",
                data_path=str(folder),
                code_paths=[
                    str(Path(str(package.__file__)).parent) for package in (features, models, pipeline)
                ],
                signature=signature(item_type, exclude_seen=exclude_seen),
                input_example=pd.DataFrame(dict(example)) if example is not None else None,
                pip_requirements=requirements,
            )
        return info.model_uri, info.model_id


@contextlib.contextmanager
def _quietly(logger_name: str) -> Iterator[None]:
    """Silence a logger's warnings: MLflow warns where the example fails on the model, which is harmless."""
    logger = logging.getLogger(logger_name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def download_model(uri: str, model_uri: str, to: Path) -> Path:
    """Download a logged model's files into a folder."""
    with reported(uri), fluent(uri):
        import mlflow.artifacts

        to.mkdir(parents=True, exist_ok=True)
        return Path(mlflow.artifacts.download_artifacts(artifact_uri=model_uri, dst_path=str(to)))


def log_to_run(uri: str, run_id: str, metrics: Mapping[str, float], tags: Mapping[str, str]) -> None:
    """Add metrics and tags to a run, finished or not."""
    from mlflow.entities import RunTag

    moment = now_ms()
    points = [Point(allowed(name), value, 0, moment) for name, value in metrics.items()]
    with reported(uri):
        client = client_at(uri)
        send_points(client, run_id, points)
        client.log_batch(run_id, tags=[RunTag(name, value) for name, value in tags.items()])


def delete_model(uri: str, model_id: str) -> None:
    """Delete a logged model and its files."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    with reported(uri):
        client = client_at(uri)
        files = get_artifact_repository(client.get_logged_model(model_id).artifact_location, uri)
        files.delete_artifacts()  # type: ignore[no-untyped-call]
        client.delete_logged_model(model_id)


def runs_with_files(uri: str, experiment: str) -> list[LoggedRun]:
    """Runs of an experiment with logged files, deleted runs included."""
    from mlflow.entities import ViewType

    with reported(uri):
        client = client_at(uri)
        entity = client.get_experiment_by_name(experiment)
        runs: list[LoggedRun] = []
        token: str | None = None
        while entity is not None:
            page = client.search_runs([entity.experiment_id], run_view_type=ViewType.ALL, page_token=token)
            runs += [logged(run) for run in page if client.list_artifacts(run.info.run_id)]
            token = page.token
            if not token:
                break
    return runs


def delete_run_files(uri: str, run_id: str) -> None:
    """Delete all files of a run; params, metrics and tags stay."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    with reported(uri):
        files = get_artifact_repository(client_at(uri).get_run(run_id).info.artifact_uri, uri)
        files.delete_artifacts()  # type: ignore[no-untyped-call]
