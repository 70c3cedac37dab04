"""Address of the tracking server, and millisecond queries that avoid importing MLflow."""

import base64
import contextlib
import json
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from pipeline import credentials
from pipeline.errors import LookbackError
from pipeline.tracking.relocation import local_path

if TYPE_CHECKING:
    from urllib.error import HTTPError

BUNDLE_DIGEST = "lookback.bundle_digest"
GATE = "lookback.gate"
"""Tag of a version: its decision; prefix of the tags with figures and reason."""
REASON = f"{GATE}.reason"
INTENTION = f"{GATE}.intention"
"""Tag of a version: a decision that is being carried out."""
DEFAULT_URI = "sqlite:///mlruns/mlflow.db"
TIMEOUT_SECONDS = 2.0
"""Wait for a connection and for each part of an answer."""
ANSWER_SECONDS = 2 * TIMEOUT_SECONDS
"""Wait for a whole answer."""
_with_credentials: dict[str, str] = {}
"""Address without credentials to the address as configured, for this process alone."""
_Answer = TypeVar("_Answer")


class ServerAway(LookbackError):
    """The tracking server does not answer, or does not speak MLflow's protocol."""


@dataclass(frozen=True)
class Version:
    """Registered model version."""

    name: str
    version: int
    bundle_digest: str
    """Digest of the bundle's content; empty where the version is no bundle."""
    run_id: str
    """Run that published the version."""
    source: str
    """URI of the files."""
    gate: str = ""
    """Decision: passed, first, off, refused, by hand; empty before it."""
    reason: str = ""
    """Reason of the decision; empty before it."""
    intention: str = ""
    """JSON of a decision that is being carried out (`decisions.Intention`); empty before and after."""

    @property
    def uri(self) -> str:
        """models:/NAME/VERSION."""
        return f"models:/{self.name}/{self.version}"


def version_with(name: str, version: int, tags: Mapping[str, str], run_id: str, source: str) -> Version:
    """Version with the fields that its tags hold."""
    digest, gate, reason, intention = (tags.get(tag, "") for tag in (BUNDLE_DIGEST, GATE, REASON, INTENTION))
    return Version(name, version, digest, run_id, source, gate, reason, intention)


@dataclass(frozen=True)
class LoggedRun:
    """Run on the server; metric names in MLflow's spelling (`ndcg_at_10`)."""

    run_id: str
    name: str
    experiment_id: str
    status: str
    params: dict[str, str]
    metrics: dict[str, float]
    tags: dict[str, str]

    @property
    def parent_run_id(self) -> str | None:
        """Id of the parent run, or None."""
        return self.tags.get("mlflow.parentRunId")


class Server(Protocol):
    """Queries of a tracking server; None for an unknown run, alias or version, ServerAway without an answer."""

    def run_status(self, run_id: str) -> str | None:
        """Status (RUNNING, FINISHED, FAILED, …) of a run that is not deleted."""

    def alias(self, name: str, alias: str) -> int | None:
        """Version number behind an alias of a registered model."""

    def version(self, name: str, version: int) -> Version | None:
        """Version of a registered model."""

    def has_files(self, version: Version) -> bool:
        """Whether the files of a version are there; only local ones are looked for."""


def absolute_uri(uri: str) -> str:
    """URI that names a server everywhere: an SQLite path absolute, credentials taken out (`with_credentials` has them)."""
    path = sqlite_path(uri)
    if path is not None:
        return f"sqlite:///{path.absolute()}"
    address = credentials.split(uri).address
    if address != uri:
        _with_credentials[address] = uri
    return address


def with_credentials(uri: str) -> str:
    """URI of a server with the credentials that were taken out of it, to connect and for nothing else."""
    return _with_credentials.get(uri, uri)


def sqlite_path(uri: str) -> Path | None:
    """File of an SQLite URI; None for other URIs."""
    prefix = "sqlite:///"
    return Path(uri.removeprefix(prefix).partition("?")[0]) if uri.startswith(prefix) else None


def chosen_uri(chosen: str | None = None) -> str:
    """Tracking URI: the chosen one, else MLFLOW_TRACKING_URI, else mlruns/mlflow.db, with an absolute path."""
    stated = (chosen or "").strip() or os.environ.get("MLFLOW_TRACKING_URI", "").strip()
    return absolute_uri(stated or DEFAULT_URI)


def artifact_root(uri: str) -> str | None:
    """Artifact location: beside an SQLite file; None where the server decides."""
    path = sqlite_path(uri)
    return (path.absolute().parent / "artifacts").as_uri() if path is not None else None


def open_server(uri: str) -> Server | None:
    """Server at a URI; None for a kind that only MLflow's client reaches."""
    path = sqlite_path(uri)
    if path is not None:
        return SqliteServer(path)
    return RestServer(uri) if uri.startswith(("http://", "https://")) else None


class SqliteServer:
    """MLflow's SQLite database, read without MLflow.

    Three queries on a private schema, because importing MLflow's client takes 2.2 to 2.9 s of processor time (3.17). An
    answer cached in the link file is no substitute: runs deleted in the UI must be noticed, and every logged run changes
    the file that it would be checked against. test_tracker.py compares the answers with the client's.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def run_status(self, run_id: str) -> str | None:
        """See Server."""
        rows = self._select(
            "SELECT status FROM runs WHERE run_uuid = ? AND lifecycle_stage = 'active'", run_id
        )
        return str(rows[0][0]) if rows else None

    def alias(self, name: str, alias: str) -> int | None:
        """See Server."""
        rows = self._select(
            "SELECT version FROM registered_model_aliases WHERE name = ? AND alias = ?", name, alias
        )
        return int(rows[0][0]) if rows else None

    def version(self, name: str, version: int) -> Version | None:
        """See Server."""
        rows = self._select(
            "SELECT run_id, source FROM model_versions"
            " WHERE name = ? AND version = ? AND current_stage <> 'Deleted_Internal'",
            name,
            version,
        )
        tags = dict(
            self._select(
                "SELECT key, value FROM model_version_tags WHERE name = ? AND version = ?", name, version
            )
        )
        if not rows:
            return None
        run_id, source = rows[0]
        return version_with(name, version, tags, run_id or "", source)

    def has_files(self, version: Version) -> bool:
        """See Server."""
        rows = self._select(
            "SELECT storage_location FROM model_versions WHERE name = ? AND version = ?",
            version.name,
            version.version,
        )
        location = str(rows[0][0]) if rows else ""
        return not location.startswith("file:") or (local_path(location) / "MLmodel").exists()

    def _select(self, query: str, *values: str | int) -> list[tuple[Any, ...]]:
        if not self._path.exists():
            return []
        try:
            address = f"{self._path.absolute().as_uri()}?mode=rw"  # never creates the file
            with contextlib.closing(sqlite3.connect(address, uri=True, timeout=TIMEOUT_SECONDS)) as database:
                return database.execute(query, values).fetchall()
        except sqlite3.OperationalError as error:
            if "no such table" in str(error):  # the database is being created
                return []
            raise ServerAway(f"{self._path}: cannot be read ({error})") from None
        except sqlite3.DatabaseError as error:
            raise ServerAway(f"{self._path}: is not an MLflow database ({error})") from None


class RestServer:
    """Server queried over HTTP."""

    def __init__(self, uri: str) -> None:
        self._uri = absolute_uri(uri)
        self._root = self._uri.rstrip("/") + "/api/2.0/mlflow"

    def run_status(self, run_id: str) -> str | None:
        """See Server."""
        with _as_away(self._root):
            answer = self._get("runs/get", run_id=run_id)
            if answer is None:
                return None
            info = answer["run"]["info"]
            return str(info["status"]) if info.get("lifecycle_stage") == "active" else None

    def alias(self, name: str, alias: str) -> int | None:
        """See Server."""
        with _as_away(self._root):
            answer = self._get("registered-models/alias", name=name, alias=alias)
            return int(answer["model_version"]["version"]) if answer is not None else None

    def version(self, name: str, version: int) -> Version | None:
        """See Server."""
        with _as_away(self._root):
            answer = self._get("model-versions/get", name=name, version=str(version))
            if answer is None:
                return None
            entity = answer["model_version"]
            tags = {tag["key"]: tag["value"] for tag in entity.get("tags", [])}
            run_id, source = entity.get("run_id", ""), entity["source"]
            return version_with(name, version, tags, run_id, source)

    def has_files(self, version: Version) -> bool:
        """See Server."""
        return bool(version.source)

    def _get(self, method: str, **values: str) -> dict[str, Any] | None:
        """Answer of a method; None for an unknown run, alias or version."""
        import urllib.error
        import urllib.parse
        import urllib.request

        address = f"{self._root}/{method}?{urllib.parse.urlencode(values)}"
        request = urllib.request.Request(address, headers=_authorization(self._uri))  # noqa: S310  (http or https: see open_server)

        def ask() -> Any:
            try:
                with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:  # noqa: S310
                    return json.load(answer)
            except urllib.error.HTTPError as error:
                with error:
                    if _is_missing(error):
                        return None
                raise

        content: dict[str, Any] | None = in_time(ask, ANSWER_SECONDS)
        return content


def in_time(ask: Callable[[], _Answer], seconds: float) -> _Answer:
    """Result of a request. Raises TimeoutError for an answer that is not whole in time, however steadily it comes."""
    answers: list[_Answer] = []
    failures: list[Exception] = []

    def work() -> None:
        try:
            answers.append(ask())
        except Exception as error:  # noqa: BLE001  (raised again by the caller's thread)
            failures.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    for failure in failures:
        raise failure
    if not answers:
        raise TimeoutError(f"no whole answer within {seconds:g} s")
    return answers[0]


def _is_missing(error: "HTTPError") -> bool:
    """Whether MLflow reports an unknown run, version or alias (for an alias as INVALID_PARAMETER_VALUE)."""
    if error.code not in (400, 404):
        return False
    return json.load(error).get("error_code") in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")


@contextlib.contextmanager
def _as_away(address: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        from http.client import HTTPException

        if isinstance(error, (OSError, ValueError, OverflowError, HTTPException)):
            # not JSON, no port, not HTTP, half an answer
            raise ServerAway(f"{address}: does not answer ({error or type(error).__name__})") from None
        if isinstance(error, (KeyError, TypeError, AttributeError)):
            raise ServerAway(
                f"{address}: its answer is not MLflow's, as of a login page or a proxy"
            ) from None
        raise


def _authorization(uri: str) -> dict[str, str]:
    """Authorization header: the URI's credentials, else MLFLOW_TRACKING_TOKEN, else MLFLOW_TRACKING_USERNAME and _PASSWORD."""
    from urllib.parse import unquote

    _, *own = credentials.split(with_credentials(uri))
    user, password = map(unquote, own)
    if not user:
        token = os.environ.get("MLFLOW_TRACKING_TOKEN")
        if token:
            return {"Authorization": f"Bearer {token.strip()}"}
        user = os.environ.get("MLFLOW_TRACKING_USERNAME", "")
        password = os.environ.get("MLFLOW_TRACKING_PASSWORD", "")
    pair = base64.b64encode(f"{user}:{password}".encode()).decode()
    return {"Authorization": f"Basic {pair}"} if user else {}
