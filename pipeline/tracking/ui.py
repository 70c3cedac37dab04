"""MLflow's server on 127.0.0.1 over the tracking database and its artifacts, and saved views of runs."""

import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import LookbackError
from pipeline.tracking.client import client_at, connection_uri, reported
from pipeline.tracking.record import now_ms
from pipeline.tracking.server import artifact_root, chosen_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

AS_TRAINING = "?workflowType=machine_learning"
"""Query part of an address that makes MLflow's UI show training runs; a new browser shows traces by default."""

LOG = "ui.log"
"""Output of the server, beside the artifacts' folder."""
_SAVED_VIEW = "mlflow.sharedViewState."
"""Prefix of the experiment tags in which MLflow's UI keeps saved views, before the view's key."""
_FIRST_COLUMNS = {"attributes.`Run Name`": 240, "runDateAndNestInfo": 145, "duration": 80}
_METRIC_WIDTH, _TAG_WIDTHS, _TAG_WIDTH = 90, (200, 300, 140), 430
"""Widths in pixels: in a window of 1,400 the metric, its interval, the changed settings and the best baseline are seen."""


@dataclass(frozen=True)
class View:
    """List of runs in MLflow's UI, sorted by the first metric or by time, with the first tag in the column beside it."""

    key: str
    name: str
    run_filter: str
    metrics: Sequence[str]
    tags: Sequence[str]
    newest_first: bool = False

    def state(self) -> str:
        """JSON text of the saved view."""
        metrics = [(f"metrics.`{name}`", _METRIC_WIDTH) for name in self.metrics]
        tag_widths = itertools.chain(_TAG_WIDTHS, itertools.repeat(_TAG_WIDTH))
        tags = [(f"tags.`{name}`", width) for name, width in zip(self.tags, tag_widths, strict=False)]
        widths = dict([*metrics[:1], *tags[:1], *metrics[1:], *tags[1:]])
        state = {
            "searchFilter": self.run_filter,
            "orderByKey": "attributes.start_time" if self.newest_first else metrics[0][0],
            "orderByAsc": False,
            "selectedColumns": list(widths),
            "columnOrder": [*_FIRST_COLUMNS, *widths],
            "columnWidths": _FIRST_COLUMNS | widths,
        }
        moment = now_ms()
        envelope = {"name": self.name, "createdAt": moment, "updatedAt": moment, "state": json.dumps(state)}
        return json.dumps(envelope)


def offer(client: "MlflowClient", experiment_id: str, view: View) -> None:
    """Save a view in an experiment, unless one with its key exists, edited or not."""
    tag = f"{_SAVED_VIEW}{view.key}"
    if tag not in client.get_experiment(experiment_id).tags:
        client.set_experiment_tag(experiment_id, tag, view.state())


def newest_key(tags: Mapping[str, str]) -> str | None:
    """Key of the view saved last in an experiment, by its tags; None without a readable one."""
    created: dict[str, int] = {}
    for tag, value in tags.items():
        if tag.startswith(_SAVED_VIEW):
            with contextlib.suppress(ValueError, KeyError, TypeError):
                created[tag.removeprefix(_SAVED_VIEW)] = int(json.loads(value)["createdAt"])
    return max(created, key=created.__getitem__, default=None)


def ui(
    port: int = 5000, uri: str | None = None, experiment: str = "", views: Mapping[str, View] | None = None
) -> None:
    """Serve MLflow on 127.0.0.1 until it is interrupted; prints the address once the server listens.

    The address opens the first of `views` (title to view), or else the view that was saved last in the experiment; the addresses
    of the others follow with their titles.

    Raises LookbackError for a port in use, or a tracking server with its own UI.
    """
    uri = chosen_uri(uri)
    root = artifact_root(uri)
    if root is None:
        raise LookbackError(f"ui: runs are logged to {uri}, which has its own UI; open it in a browser")
    with reported(uri):
        entity = client_at(uri).get_experiment_by_name(experiment) if experiment else None
        if entity is not None:
            for view in (views or {}).values():
                offer(client_at(uri), entity.experiment_id, view)
    with contextlib.closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise LookbackError(
                f"ui: port {port} on 127.0.0.1 cannot be used ({error.strerror}); choose another with --port or tracking.port"
            ) from None
    pages = {"": ""}
    if entity is not None:
        keys: dict[str, str | None] = {title: view.key for title, view in (views or {}).items()}
        keys = keys or {"": newest_key(entity.tags)}
        page = f"/#/experiments/{entity.experiment_id}/runs{AS_TRAINING}"
        pages = {title: f"{page}&viewStateShareKey={key}" if key else page for title, key in keys.items()}
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += [
        "--workers",
        "2",
        "--backend-store-uri",
        connection_uri(uri),
        "--default-artifact-root",
        root,
    ]
    from urllib.request import url2pathname  # with http, a tenth of the start of every command

    log = Path(url2pathname(urllib.parse.urlparse(root).path)).parent / LOG
    (_, first), *others = pages.items()
    lines = [f"MLflow: http://127.0.0.1:{port}{first} ({uri}); accesses are logged to {log}"]
    lines += [f"{title}: http://127.0.0.1:{port}{page}" for title, page in others]
    serve(command, port, log, "\n".join(lines))


def serve(command: Sequence[str], port: int, log: Path, announcement: str) -> None:
    """Run the server until it is interrupted; print the announcement once it listens, and its own output to a file."""
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with log.open("ab") as output:
        server = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        while server.poll() is None and not _listens(port):
            time.sleep(0.1)
        if server.poll() is None:
            print(announcement, flush=True)
        code = server.wait()
    except KeyboardInterrupt:
        return
    finally:
        server.terminate()
        server.wait()
        signal.signal(signal.SIGTERM, before)
    raise LookbackError(f"ui: the server ended with code {code}; its last words are in {log}")


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False
