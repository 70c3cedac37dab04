"""Logged models and files of runs on the tracking server: log, download, delete."""

import contextlib
import logging
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.tracking import model_code
from pipeline.tracking.client import client_at, fluent, reported
from pipeline.tracking.record import Point, allowed, now_ms
from pipeline.tracking.sending import logged, send_points
from pipeline.tracking.served_model import signature
from pipeline.tracking.server import LoggedRun, sqlite_path

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel
    from mlflow.entities.model_registry import ModelVersion

STAGE = "lookback.stage"
"""Tag of a run: its stage."""


def log_pyfunc(
    uri: str,
    run_id: str,
    folder: Path,
    item_type: str,
    example: Mapping[str, list[Any]] | None,
    requirements: list[str],
    *,
    defaults: Mapping[str, Any],
    as_installed: bool = False,
    model_id: str | None = None,
) -> tuple[str, str]:
    """Log a bundle's folder as a pyfunc model of a run, as code and data without pickle; returns its URI and id.

    item_type: "long" or "string" for item_id. example: columns of an input frame. defaults: of parameters of a request.
    as_installed: the code keeps the names `features`, `models`, `pipeline`, as a class of one's own imports
    them; else see `model_code.renamed`. model_id: logged model whose files are written again, instead of a new one.
    """
    with reported(uri), fluent(uri), _code(as_installed=as_installed) as (code_paths, loader):
        import mlflow.pyfunc
        import pandas as pd  # type: ignore[import-untyped]

        parts: dict[str, Any] = {
            "loader_module": loader,
            "data_path": str(folder),
            "code_paths": [str(path) for path in code_paths],
            "signature": signature(item_type, defaults),
            "input_example": pd.DataFrame(dict(example)) if example is not None else None,
            "pip_requirements": requirements,
        }
        with _quietly("mlflow.models.model"):
            if model_id is not None:
                _write_again(uri, model_id, parts)
                return f"models:/{model_id}", model_id
            with mlflow.start_run(run_id=run_id):
                info = mlflow.pyfunc.log_model(name="model", **parts)
        return info.model_uri, info.model_id


@contextlib.contextmanager
def _code(*, as_installed: bool) -> Iterator[tuple[list[Path], str]]:
    """Folders of the code that goes with a model, and the name of its loader module."""
    if as_installed:
        yield [model_code.ROOT / package for package in model_code.PACKAGES], model_code.LOADER
        return
    with model_code.renamed() as (package, loader):
        yield [package], loader


def _write_again(uri: str, model_id: str, parts: Mapping[str, Any]) -> None:
    """Write the files of a logged model again; `log_model` refuses a model that its run has logged already."""
    import mlflow.pyfunc
    from mlflow.models import Model
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    known = client_at(uri).get_logged_model(model_id)
    model = Model(
        artifact_path=known.artifact_location,
        model_uuid=model_id,
        run_id=known.source_run_id,
        model_id=model_id,
    )
    with tempfile.TemporaryDirectory() as folder:
        mlflow.pyfunc.save_model(path=f"{folder}/model", mlflow_model=model, **parts)
        files = get_artifact_repository(known.artifact_location, uri)
        files.log_artifacts(f"{folder}/model")  # type: ignore[no-untyped-call]


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


def unversioned_models(uri: str, experiment: str) -> list[str]:
    """Ids of an experiment's logged models with files that a `publish` left and no version has, half copies included."""
    with reported(uri):
        client = client_at(uri)
        entity = client.get_experiment_by_name(experiment)
        if entity is None:
            return []
        versioned = {(version.source or "").removeprefix("models:/") for version in _all_versions(client)}
        return [
            str(model.model_id)
            for model in _logged_models(client, [entity.experiment_id])
            if model.model_id not in versioned
            and model.source_run_id
            and client.get_run(model.source_run_id).data.tags.get(STAGE) == "publish"
        ]


def unowned_models(uri: str) -> list[Path]:
    """Folders of models beside an SQLite database that it no longer lists, such as those deleted in MLflow's UI."""
    from mlflow.entities import ViewType

    path = sqlite_path(uri)
    if path is None:
        return []
    with reported(uri):
        client = client_at(uri)
        experiments = client.search_experiments(view_type=ViewType.ALL)
        owned = {
            model.model_id for model in _logged_models(client, [one.experiment_id for one in experiments])
        }
    folders = (path.absolute().parent / "artifacts" / "models").glob("*/")
    return sorted(folder for folder in folders if folder.name not in owned)


def _logged_models(client: "MlflowClient", experiment_ids: list[str]) -> Iterator["LoggedModel"]:
    token: str | None = None
    while experiment_ids:
        page = client.search_logged_models(experiment_ids, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _all_versions(client: "MlflowClient") -> Iterator["ModelVersion"]:
    token: str | None = None
    while True:
        page = client.search_model_versions(page_token=token)
        yield from page
        token = page.token
        if not token:
            return


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
