"""MLflow's client for one tracking server; every failure becomes ServerAway."""

import atexit
import contextlib
import functools
import gc
import logging
import os
import sqlite3
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from pipeline.errors import LookbackError, one_line
from pipeline.tracking.relocation import relocate
from pipeline.tracking.server import (
    Server,
    ServerAway,
    Version,
    artifact_root,
    chosen_uri,
    in_time,
    open_server,
    sqlite_path,
    version_with,
    with_credentials,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

    from pipeline.config import Config

BUSY_SECONDS = 60
"""Wait of a writer for another writer to the same SQLite file."""
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
REQUEST_SECONDS, FILES_SECONDS = 30.0, 600.0
"""Wait of a call of the client for all of its answers, however steadily they come; with files."""
_WITH_FILES = ("log_artifact", "log_artifacts", "download_artifacts")
_WITHOUT_POOL = {"MLFLOW_SQLALCHEMYSTORE_POOLCLASS": "NullPool"}
"""For SQLite: no connection stays open between two requests."""
_Result = TypeVar("_Result")


def tracking_uri(config: "Config") -> str:
    """Tracking URI: tracking.uri, else MLFLOW_TRACKING_URI, else mlruns/mlflow.db, with an absolute path."""
    return chosen_uri(config.tracking.uri)


def server_at(uri: str) -> Server:
    """Server at a URI, queried without importing MLflow where possible."""
    return open_server(uri) or ClientServer(uri)


class ClientServer:
    """Server reached only through MLflow's client, such as PostgreSQL."""

    def __init__(self, uri: str) -> None:
        self._uri = uri

    def run_status(self, run_id: str) -> str | None:
        """See Server."""
        info = self._query(lambda client: client.get_run(run_id).info) if run_id else None
        return info.status if info is not None and info.lifecycle_stage == "active" else None

    def alias(self, name: str, alias: str) -> int | None:
        """See Server."""
        version = self._query(lambda client: client.get_model_version_by_alias(name, alias))
        return int(version.version) if version is not None else None

    def version(self, name: str, version: int) -> Version | None:
        """See Server."""
        known = self._query(lambda client: client.get_model_version(name, str(version)))
        return version_of(known) if known is not None else None

    def has_files(self, version: Version) -> bool:
        """See Server."""
        return bool(version.source)

    def _query(self, query: Callable[["MlflowClient"], _Result]) -> _Result | None:
        from mlflow.exceptions import MlflowException

        with reported(self._uri):
            try:
                return query(client_at(self._uri))
            except MlflowException as error:
                if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                    return None
                raise


def version_of(entity: "ModelVersion") -> Version:
    """Convert MLflow's ModelVersion."""
    number, run_id, source = int(entity.version), entity.run_id or "", entity.source or ""
    return version_with(entity.name, number, entity.tags, run_id, source)


def connection_uri(uri: str) -> str:
    """URI for MLflow to connect to: with its credentials, or with the busy timeout (BUSY_SECONDS) of SQLite."""
    if sqlite_path(uri) is None:
        return with_credentials(uri)
    return uri if "?" in uri else f"{uri}?timeout={BUSY_SECONDS}"


@functools.cache
def client_at(uri: str) -> "MlflowClient":
    """MLflow's client; creates an SQLite database first, complete and in write-ahead mode, or relocates a moved one."""
    for name, value in (_QUIET | (_WITHOUT_POOL if sqlite_path(uri) is not None else {})).items():
        os.environ.setdefault(name, value)
    with warnings.catch_warnings(), _database_prepared(uri), _without_garbage_collection():
        warnings.simplefilter("ignore")  # MLflow uses deprecated parts of SQLAlchemy
        from mlflow import MlflowClient

        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # reported once, as ServerAway
        client = MlflowClient(connection_uri(uri), connection_uri(uri))
        if sqlite_path(uri) is not None:
            client.search_experiments(max_results=1)
    return cast("MlflowClient", _InTime(client)) if uri.startswith(("http://", "https://")) else client


class _InTime:
    """MLflow's client, each call of which ends in time; after one that did not, all others fail at once."""

    def __init__(self, client: "MlflowClient") -> None:
        self._client = client
        self._is_late = False

    def __getattr__(self, name: str) -> Any:
        """A method of the client that raises TimeoutError without a whole answer in time."""
        method: Callable[..., Any] = getattr(self._client, name)
        seconds = FILES_SECONDS if name in _WITH_FILES else REQUEST_SECONDS

        def call(*args: Any, **settings: Any) -> Any:
            if self._is_late:
                raise TimeoutError("an earlier answer did not come in time; it is asked no more")
            try:
                return in_time(lambda: method(*args, **settings), seconds)
            except TimeoutError:
                self._is_late = True
                raise

        return call


@contextlib.contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Pause garbage collection, which takes a sixth of MLflow's import time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextlib.contextmanager
def _database_prepared(uri: str) -> Iterator[None]:
    """Let one process at a time create the database and correct locations of files; write-ahead mode while this process runs.

    A database on a read-only mount is only read.
    """
    path, root = sqlite_path(uri), artifact_root(uri)
    if path is None or root is None or (path.exists() and not os.access(path.parent, os.W_OK)):
        yield
        return
    import filelock

    path.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(path.with_name(f"{path.name}.lock")):
        yield
        with contextlib.closing(sqlite3.connect(path, timeout=BUSY_SECONDS)) as database:
            database.execute("PRAGMA journal_mode = WAL")
            relocate(database, root)
    atexit.register(leave_one_file, path)


def leave_one_file(path: Path) -> None:
    """Leave write-ahead mode: such a database cannot be read from a read-only mount, and a copy of its one file lacks the rest.

    Another process that has it open does so at its own end.
    """
    with (
        contextlib.suppress(sqlite3.Error),
        contextlib.closing(
            sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=0)
        ) as database,
    ):
        database.execute("PRAGMA journal_mode = DELETE")


@contextlib.contextmanager
def reported(uri: str) -> Iterator[None]:
    """Raise every failure of the server or its client as ServerAway."""
    try:
        yield
    except LookbackError:
        raise
    except (
        Exception
    ) as error:  # a driver that is missing, an answer of another kind: no kind is worth the work
        text = str(error).strip().partition("\n")[0] or type(error).__name__
        is_known = type(error).__module__.partition(".")[0] in ("mlflow", "sqlalchemy", "sqlite3")
        known = is_known or isinstance(error, OSError | ImportError)
        raise ServerAway(f"{uri}: {text if known else one_line(error)}") from error


@contextlib.contextmanager
def fluent(uri: str) -> Iterator[None]:
    """Set MLflow's global tracking URI, needed by its fluent functions; restore the global state afterwards."""
    client_at(uri)
    import mlflow

    previous_uri, search_path = os.environ.get("MLFLOW_TRACKING_URI"), list(sys.path)
    mlflow.set_tracking_uri(connection_uri(uri))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # MLflow warns about its own type hints
            yield
    finally:
        sys.path[:] = search_path
        mlflow.set_tracking_uri("")
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        if previous_uri is not None:
            os.environ["MLFLOW_TRACKING_URI"] = previous_uri
