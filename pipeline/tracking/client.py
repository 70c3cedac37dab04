"""MLflow's client: made ready for one server, and every way in which it fails told as ServerAway."""

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
from typing import TYPE_CHECKING, TypeVar

from pipeline.tracking.server import (
    BUNDLE_DIGEST,
    GATE,
    Server,
    ServerAway,
    Version,
    chosen_uri,
    open_server,
    sqlite_path,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

    from pipeline.config import Config

BUSY_SECONDS = 60
"""How long a writer waits for another one to the same SQLite file."""
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


def patient(uri: str) -> str:
    """The URI as MLflow's own engine is given it: a writer waits BUSY_SECONDS for another one to the same SQLite file."""
    return uri if sqlite_path(uri) is None or "?" in uri else f"{uri}?timeout={BUSY_SECONDS}"


@functools.cache
def client_at(uri: str) -> "MlflowClient":
    """MLflow's client; an SQLite database is there, complete and in write-ahead mode, before anybody uses it."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    with warnings.catch_warnings(), _creating(sqlite_path(uri)), _without_collecting():
        warnings.simplefilter("ignore")  # MLflow's use of SQLAlchemy's old ways is not ours to mend
        from mlflow import MlflowClient

        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # told once, as ServerAway
        client = MlflowClient(patient(uri), patient(uri))
        if sqlite_path(uri) is not None:
            client.search_experiments(max_results=1)
    return client


@contextlib.contextmanager
def _without_collecting() -> Iterator[None]:
    """No garbage is looked for meanwhile: a sixth of the time that MLflow takes to be imported."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


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
        with contextlib.closing(sqlite3.connect(path, timeout=BUSY_SECONDS)) as database:
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


@contextlib.contextmanager
def fluent(uri: str) -> Iterator[None]:
    """MLflow's global tracking URI for the functions that take it from there; all that they change is put back."""
    client_at(uri)
    import mlflow

    before, search_path = os.environ.get("MLFLOW_TRACKING_URI"), list(sys.path)
    mlflow.set_tracking_uri(patient(uri))
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
