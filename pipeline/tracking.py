"""MLflow, and nowhere else: runs (Tracker), the logged model, the UI.

A stage's Plan lies in its folder as `tracking.json`; a Tracker makes sure that the present server has a run with
all of it, and remembers the run in a link file ({tracking URI: run id}). A server that is away costs one line on
stderr: the next run replays.
"""

import contextlib
import functools
import json
import math
import os
import re
import socket
import sqlite3
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline.errors import DamagedArtifact, LookbackError
from pipeline.plan import DatasetInput, Live, Plan, Point, allowed, now_ms
from pipeline.store import fingerprint as digest_of
from pipeline.store import read_json, write_json
from pipeline.tracking_server import (
    BUNDLE_DIGEST,
    DEFAULT_URI,
    GATE,
    LoggedRun,
    Server,
    ServerAway,
    Version,
    absolute_uri,
    artifact_root,
    chosen_uri,
    open_server,
    sqlite_path,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run
    from mlflow.entities.model_registry import ModelVersion

    from pipeline.config import Config

BUILD = "lookback.build"
AWAY_SECONDS = 60.0
"""How long a server that did not answer is not asked again."""
_BATCH_METRICS, _BATCH_PARAMS = 1000, 100
_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_DISABLE_AGENT_HINT": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_UV_AUTO_DETECT": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "GIT_PYTHON_REFRESH": "quiet",
}
_Answer = TypeVar("_Answer")

__all__ = ["DEFAULT_URI", "Live", "LoggedRun", "Plan", "Tracker", "ui"]


class Tracker:
    """One experiment on one tracking server. A server that is away costs one warning, never the work."""

    def __init__(
        self, uri: str, experiment: str, artifact_location: str | None = None, *, enabled: bool = True
    ) -> None:
        self.uri = absolute_uri(uri)
        self.experiment = experiment
        self.artifact_location = artifact_location
        self._enabled = enabled
        self._server = server_at(self.uri)
        self._away_until = -math.inf
        self._warned = False

    @classmethod
    def from_config(cls, config: "Config") -> "Tracker":
        """The tracker that a configuration names: tracking.uri, MLFLOW_TRACKING_URI or mlruns/mlflow.db."""
        uri = tracking_uri(config)
        return cls(uri, config.name, artifact_root(uri), enabled=config.tracking.enabled)

    def is_logged(self, link_file: Path) -> bool:
        """Whether nothing is left to do for a run: the server has it, finished (or is away, which is said once)."""
        if not self._enabled or time.monotonic() < self._away_until:
            return True
        try:
            return self._status(self._linked(link_file)) == "FINISHED"
        except ServerAway as error:
            self._say_away(error)
            return True

    def start(
        self,
        *,
        stage: str,
        fingerprint: str,
        run_name: str,
        tags: dict[str, str],
        link_file: Path,
        parent_link_file: Path | None = None,
        reopen: bool = False,
    ) -> "Live":
        """A running run, so that metrics are seen before the stage ends; the one of an interrupted attempt goes on.

        `reopen`: a finished one goes on too.
        """

        def begin(client: "MlflowClient") -> str:
            known = self._linked(link_file)
            if self._status(known) not in ((None,) if reopen else (None, "FINISHED")):
                client.update_run(known, status="RUNNING")
                return known
            return self._create(
                client, _tags(stage, fingerprint, tags), run_name, link_file, parent_link_file, now_ms()
            )

        run_id = self.attempt(begin)
        if run_id is None:
            return Live(None, lambda _: None, lambda _: None)
        return Live(
            run_id,
            lambda points: self.attempt(lambda client: _send_points(client, run_id, points)),
            lambda status: self.attempt(lambda client: client.set_terminated(run_id, status)),
        )

    def replay(
        self,
        *,
        folder: Path,
        stage: str,
        fingerprint: str,
        run_name: str,
        tags: dict[str, str],
        link_file: Path,
        parent_link_file: Path | None = None,
    ) -> None:
        """See to it that the server has a finished run with all of folder/tracking.json; nothing is sent twice."""
        plan = Plan.load(folder)
        labels = (
            _tags(stage, fingerprint, tags)
            | plan.tags
            | {BUILD: digest_of([stage, fingerprint, plan.started, plan.ended])}
        )

        def complete(client: "MlflowClient") -> None:
            run_id = self._linked(link_file)
            if self._status(run_id) is None:
                run_id = self._find_build(client, labels[BUILD])
            if run_id:
                self._link(link_file, run_id)
            else:
                run_id = self._create(client, labels, run_name, link_file, parent_link_file, plan.started)
            _log_plan(client, run_id, plan, labels, folder)
            parent = self._linked(parent_link_file)
            if plan.parent_points and self._status(parent) is not None:
                _log_points(client, parent, plan.parent_points)
            client.set_terminated(run_id, "FINISHED", max(plan.ended, client.get_run(run_id).info.start_time))

        self.attempt(complete)

    def linked_run(self, link_file: Path) -> str | None:
        """The run that a link file names on this server; None where there is none, or the server is away."""
        try:
            run_id = self._linked(link_file)
            return run_id if self._enabled and self._status(run_id) is not None else None
        except ServerAway as error:
            self._say_away(error)
            return None

    def find_run(self, id_or_name: str, experiment: str | None = None) -> LoggedRun:
        """A run by its id, or by its name in one experiment (all of them by default).

        Raises LookbackError where there is none or several, ServerAway where the server does not answer.
        """
        with reported(self.uri):
            client = client_at(self.uri)
            if re.fullmatch("[0-9a-f]{32}", id_or_name) and self._status(id_or_name) is not None:
                return _logged(client.get_run(id_or_name))
            experiments = (
                [client.get_experiment_by_name(experiment)] if experiment else client.search_experiments()
            )
            ids = [each.experiment_id for each in experiments if each is not None]
            name = id_or_name.replace("'", "")
            found = list(client.search_runs(ids, f"attributes.run_name = '{name}'")) if ids else []
        if len(found) == 1:
            return _logged(found[0])
        where = f"on {self.uri}" + (f", experiment {experiment}" if experiment else "")
        if not found:
            raise LookbackError(
                f"run {id_or_name!r}: no such run {where}; expected an id or name that the UI shows"
            )
        ids = [f"{run.info.run_id} ({run.info.status})" for run in found]
        raise LookbackError(
            f"run {id_or_name!r}: {len(found)} runs have this name {where}; expected an id: {', '.join(ids)}"
        )

    def children(self, run_id: str) -> list[LoggedRun]:
        """The runs nested under one, oldest first."""
        with reported(self.uri):
            client = client_at(self.uri)
            experiment = client.get_run(run_id).info.experiment_id
            runs = client.search_runs(
                [experiment],
                f"tags.`mlflow.parentRunId` = '{run_id}'",
                order_by=["attributes.start_time ASC"],
            )
            return [_logged(run) for run in runs]

    def run_artifact(self, run_id: str, path: str, to: Path) -> Path:
        """Download a file or folder of a run into a folder; returns where it is."""
        with reported(self.uri):
            to.mkdir(parents=True, exist_ok=True)
            return Path(client_at(self.uri).download_artifacts(run_id, path, str(to)))

    def attempt(self, action: Callable[["MlflowClient"], _Answer]) -> _Answer | None:
        """What the action returns; None, and one warning, where the server is away or refuses."""
        if not self._enabled or time.monotonic() < self._away_until:
            return None
        try:
            with reported(self.uri):
                self._status("")  # a server that is away is found out in TIMEOUT_SECONDS
                return action(client_at(self.uri))
        except ServerAway as error:
            self._say_away(error)
            return None

    @contextlib.contextmanager
    def tolerated(self) -> Iterator[None]:
        """What is asked of the server within ends with one warning where the server is away."""
        try:
            yield
        except ServerAway as error:
            self._say_away(error)

    def log_beside(self, other: LoggedRun, run_name: str, plan: Plan, folder: Path) -> str | None:
        """A finished run of its own with all of a plan, whose files lie in a folder, in the experiment of another run; its id.

        None, and one warning, where the server is away.
        """

        def send(client: "MlflowClient") -> str:
            labels = _tags(plan.tags.get("lookback.stage", ""), "", plan.tags)
            run_id: str = client.create_run(other.experiment_id, plan.started, labels, run_name).info.run_id
            _log_plan(client, run_id, plan, labels, folder)
            client.set_terminated(run_id, "FINISHED", plan.ended)
            return run_id

        return self.attempt(send)

    def _say_away(self, error: ServerAway) -> None:
        self._away_until = time.monotonic() + AWAY_SECONDS
        if not self._warned:
            text = f"tracking: {error}; the work goes on, and the next run logs what is missing"
            print(text, file=sys.stderr, flush=True)
        self._warned = True

    def _status(self, run_id: str) -> str | None:
        return self._server.run_status(run_id)

    def _linked(self, link_file: Path | None) -> str:
        """The run id that a link file holds for this server, empty where it holds none."""
        if link_file is None or not link_file.exists():
            return ""
        with contextlib.suppress(DamagedArtifact):
            return str(read_json(link_file).get(self.uri, ""))
        return ""

    def _link(self, link_file: Path, run_id: str) -> None:
        links: dict[str, str] = {}
        with contextlib.suppress(DamagedArtifact, FileNotFoundError):
            links = read_json(link_file)
        write_json(link_file, links | {self.uri: run_id})

    def _create(
        self,
        client: "MlflowClient",
        tags: dict[str, str],
        run_name: str,
        link_file: Path,
        parent_link_file: Path | None,
        started: int,
    ) -> str:
        parent = self._linked(parent_link_file)
        if self._status(parent) is not None:
            tags = tags | {"mlflow.parentRunId": parent}
        run_id: str = client.create_run(self._experiment_id(client), started, tags, run_name).info.run_id
        self._link(link_file, run_id)
        return run_id

    def _find_build(self, client: "MlflowClient", build: str) -> str:
        """The run of this very build, whose link was lost; empty where there is none."""
        found = client.search_runs(
            [self._experiment_id(client)], f"tags.`{BUILD}` = '{build}'", max_results=1
        )
        return str(found[0].info.run_id) if found else ""

    def _experiment_id(self, client: "MlflowClient") -> str:
        from mlflow.exceptions import MlflowException

        found = client.get_experiment_by_name(self.experiment)
        if found is None:
            try:
                return client.create_experiment(self.experiment, self.artifact_location)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            found = client.get_experiment_by_name(self.experiment)  # another process was faster
            assert found is not None
        if found.lifecycle_stage == "deleted":
            client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)


def tracking_uri(config: "Config") -> str:
    """Where runs are logged: tracking.uri, MLFLOW_TRACKING_URI or mlruns/mlflow.db; a path in it is absolute."""
    return chosen_uri(config.tracking.uri)


def server_at(uri: str) -> Server:
    """How to ask the server at a URI, without importing MLflow where that is possible."""
    return open_server(uri) or ClientServer(uri)


class ClientServer:
    """A server that only MLflow's own client can ask, such as PostgreSQL."""

    def __init__(self, uri: str) -> None:
        self._uri = uri

    def run_status(self, run_id: str) -> str | None:
        """See Server."""
        info = self._ask(lambda client: client.get_run(run_id).info) if run_id else None
        return info.status if info is not None and info.lifecycle_stage == "active" else None

    def alias(self, name: str, alias: str) -> int | None:
        """See Server."""
        found = self._ask(lambda client: client.get_model_version_by_alias(name, alias))
        return int(found.version) if found is not None else None

    def version(self, name: str, version: int) -> Version | None:
        """See Server."""
        found = self._ask(lambda client: client.get_model_version(name, str(version)))
        return version_of(found) if found is not None else None

    def _ask(self, question: Callable[["MlflowClient"], _Answer]) -> _Answer | None:
        from mlflow.exceptions import MlflowException

        with reported(self._uri):
            try:
                return question(client_at(self._uri))
            except MlflowException as error:
                if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                    return None
                raise


def version_of(found: "ModelVersion") -> Version:
    """A model version as MLflow has it, in our form."""
    return Version(
        found.name,
        int(found.version),
        found.tags.get(BUNDLE_DIGEST, ""),
        found.run_id or "",
        found.source or "",
        found.tags.get(GATE, ""),
    )


@functools.cache
def client_at(uri: str) -> "MlflowClient":
    """MLflow's client; an SQLite database is there, complete and in write-ahead mode, before anybody uses it."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    with warnings.catch_warnings(), _creating(sqlite_path(uri)):
        warnings.simplefilter("ignore")  # MLflow's use of SQLAlchemy's old ways is not ours to mend
        from mlflow import MlflowClient

        client = MlflowClient(uri, uri)
        if sqlite_path(uri) is not None:
            client.search_experiments(max_results=1)
    return client


@contextlib.contextmanager
def _creating(path: Path | None) -> Iterator[None]:
    """One process at a time, where there may be no database yet."""
    if path is None:
        yield
        return
    import filelock

    path.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(path.with_name(f"{path.name}.lock")):
        yield
        with contextlib.closing(sqlite3.connect(path, timeout=20)) as database:
            database.execute("PRAGMA journal_mode = WAL")


@contextlib.contextmanager
def reported(uri: str) -> Iterator[None]:
    """Turn every way in which a server or its client fails into ServerAway."""
    try:
        yield
    except _failures() as error:
        text = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ServerAway(f"{uri}: {text}") from error


def _failures() -> tuple[type[Exception], ...]:
    if "mlflow" not in sys.modules:
        return (OSError, sqlite3.Error)
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return (OSError, sqlite3.Error, MlflowException, SQLAlchemyError)


def _log_plan(client: "MlflowClient", run_id: str, plan: Plan, tags: dict[str, str], folder: Path) -> None:
    from mlflow.entities import Param, RunTag

    known = client.get_run(run_id).data
    _log_points(client, run_id, plan.points)
    client.log_batch(
        run_id, tags=[RunTag(name, value) for name, value in tags.items() if known.tags.get(name) != value]
    )
    params = [Param(name, value) for name, value in plan.param_values.items() if name not in known.params]
    for start in range(0, len(params), _BATCH_PARAMS):
        client.log_batch(run_id, params=params[start : start + _BATCH_PARAMS])
    _log_datasets(client, run_id, plan.datasets)
    _log_artifacts(client, run_id, folder, plan.artifacts)


def _log_points(client: "MlflowClient", run_id: str, points: list[Point]) -> None:
    """Send the points whose step the run does not have yet."""
    have: dict[str, set[int]] = defaultdict(set)
    for name in {point.name for point in points} & set(client.get_run(run_id).data.metrics):
        have[name] = {metric.step for metric in client.get_metric_history(run_id, name)}
    _send_points(client, run_id, [point for point in points if point.step not in have[point.name]])


def _send_points(client: "MlflowClient", run_id: str, points: list[Point]) -> None:
    metrics = [_metric(point) for point in points]
    for start in range(0, len(metrics), _BATCH_METRICS):
        client.log_batch(run_id, metrics=metrics[start : start + _BATCH_METRICS])


def _metric(point: Point) -> "Metric":
    from mlflow.entities import Metric

    return Metric(point.name, point.value, point.timestamp, point.step)


def _log_datasets(client: "MlflowClient", run_id: str, datasets: Iterable[DatasetInput]) -> None:
    """Dataset inputs with their contexts; MLflow keeps one context per name and digest, so the context is in the name."""
    from mlflow.entities import Dataset, InputTag
    from mlflow.entities import DatasetInput as Input

    inputs = [
        Input(
            Dataset(
                name=f"{data.name} {data.context}",
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


def _logged(run: "Run") -> LoggedRun:
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


def _tags(stage: str, fingerprint: str, tags: dict[str, str]) -> dict[str, str]:
    own = {
        "lookback.stage": stage,
        "lookback.fingerprint": fingerprint,
        "mlflow.source.name": f"lookback {stage}",
        "mlflow.source.type": "LOCAL",
        "mlflow.user": os.environ.get("USER", "unknown"),
    }
    return own | tags


@contextlib.contextmanager
def fluent(uri: str) -> Iterator[None]:
    """MLflow's global tracking URI for the functions that take it from there; all that they change is put back."""
    client_at(uri)
    import mlflow

    before, search_path = os.environ.get("MLFLOW_TRACKING_URI"), list(sys.path)
    mlflow.set_tracking_uri(uri)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of MLflow, about type hints of its own
            yield
    finally:
        sys.path[:] = search_path
        mlflow.set_tracking_uri("")
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        if before is not None:
            os.environ["MLFLOW_TRACKING_URI"] = before


def log_pyfunc(
    uri: str,
    run_id: str,
    folder: Path,
    id_types: tuple[str, str],
    example: Mapping[str, list[Any]] | None,
    requirements: list[str],
) -> tuple[str, str]:
    """Log a bundle's folder as a pyfunc model of a run, from code and data, without pickle; returns its URI and id.

    `id_types` are "long" or "string" for user_id and item_id; `example` is columns of an input frame.
    """
    with reported(uri), fluent(uri):
        import mlflow.pyfunc
        import pandas as pd  # type: ignore[import-untyped]
        from mlflow.models import ModelSignature
        from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
        from mlflow.types.schema import Array

        import features
        import models
        import pipeline

        user, item = (DataType[each] for each in id_types)
        signature = ModelSignature(
            inputs=Schema(
                [ColSpec(user, "user_id", required=False), ColSpec(Array(item), "history", required=False)]
            ),
            outputs=Schema([ColSpec(Array(item), "item_id"), ColSpec(Array(DataType.double), "score")]),
            params=ParamSchema(
                [ParamSpec("k", DataType.long, 10), ParamSpec("exclude_seen", DataType.boolean, True)]
            ),
        )
        with mlflow.start_run(run_id=run_id):
            info = mlflow.pyfunc.log_model(
                name="model",
                loader_module="pipeline.serving",
                data_path=str(folder),
                code_paths=[
                    str(Path(str(package.__file__)).parent) for package in (features, models, pipeline)
                ],
                signature=signature,
                input_example=pd.DataFrame(dict(example)) if example is not None else None,
                pip_requirements=requirements,
            )
        return info.model_uri, info.model_id


def download_model(uri: str, model_uri: str, to: Path) -> Path:
    """Download a logged model's files into a folder."""
    with reported(uri), fluent(uri):
        import mlflow.artifacts

        to.mkdir(parents=True, exist_ok=True)
        return Path(mlflow.artifacts.download_artifacts(artifact_uri=model_uri, dst_path=str(to)))


def log_to_run(uri: str, run_id: str, metrics: Mapping[str, float], tags: Mapping[str, str]) -> None:
    """Add numbers and labels to a run, finished or not."""
    from mlflow.entities import RunTag

    moment = now_ms()
    points = [Point(allowed(name), value, 0, moment) for name, value in metrics.items()]
    with reported(uri):
        client = client_at(uri)
        _send_points(client, run_id, points)
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
    """The runs of an experiment, deleted ones too, that files were logged to."""
    from mlflow.entities import ViewType

    with reported(uri):
        client = client_at(uri)
        found = client.get_experiment_by_name(experiment)
        runs: list[LoggedRun] = []
        token: str | None = None
        while found is not None:
            page = client.search_runs([found.experiment_id], run_view_type=ViewType.ALL, page_token=token)
            runs += [_logged(run) for run in page if client.list_artifacts(run.info.run_id)]
            token = page.token
            if not token:
                break
    return runs


def delete_run_files(uri: str, run_id: str) -> None:
    """Delete all files of a run; its numbers stay."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    with reported(uri):
        files = get_artifact_repository(client_at(uri).get_run(run_id).info.artifact_uri, uri)
        files.delete_artifacts()  # type: ignore[no-untyped-call]


def ui(port: int = 5000, uri: str | None = None) -> None:
    """Become MLflow's server on 127.0.0.1, with the database and the artifacts that runs are logged to.

    Raises LookbackError where the port is in use, or runs are logged to a server that has its own UI.
    """
    uri = chosen_uri(uri)
    root = artifact_root(uri)
    if root is None:
        raise LookbackError(f"ui: runs are logged to {uri}, which has its own UI; open it in a browser")
    with reported(uri):
        client_at(uri)
    with contextlib.closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise LookbackError(
                f"ui: port {port} on 127.0.0.1 cannot be used ({error.strerror}); choose another with --port or tracking.port"
            ) from None
    print(f"MLflow: http://127.0.0.1:{port} ({uri})", flush=True)
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--workers",
        "2",
    ]
    command += ["--backend-store-uri", uri, "--default-artifact-root", root]
    os.execve(  # noqa: S606  (there is no shell to go through, on purpose)
        sys.executable, command, os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    )
