"""Logging to the tracking server: each stage's RunRecord becomes a run.

The record is `tracking.json` in the stage's folder; a Tracker ensures that the present server has a run with all of it, and
keeps the run's id in a link file ({tracking URI: run id}). An unreachable server costs one line on stderr: the next command
replays.
"""

import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, TypeVar

from features.printable import printable
from pipeline.artifacts.files import fingerprint as digest_of
from pipeline.artifacts.files import read_record, write_json
from pipeline.tracking import queries
from pipeline.tracking.client import client_at, reported, server_at, tracking_uri
from pipeline.tracking.live import LiveRun
from pipeline.tracking.record import RunRecord, now_ms
from pipeline.tracking.relocation import local_path
from pipeline.tracking.sending import (
    MODEL_ID,
    attach,
    labels,
    log_points,
    log_record,
    model_of,
    send_points,
)
from pipeline.tracking.server import LoggedRun, ServerAway, absolute_uri, artifact_root
from pipeline.tracking.ui import View, offer

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from pipeline.config import Config

BUILD = "lookback.build"
PARENT = "mlflow.parentRunId"
NOTE = "mlflow.note.content"
"""Tag that MLflow's UI shows as a run's description."""
KIND = {"mlflow.experimentKind": "custom_model_development"}
"""Tag of an experiment that MLflow's UI shows as machine learning, not as a language-model application."""
AWAY_SECONDS = 60.0
"""Pause before the next request to a server that did not answer."""
_AWAY = "away"
_Result = TypeVar("_Result")


class RunIdentity(TypedDict):
    """Name, tags and link file of a stage's run: arguments of `Tracker.start` and `Tracker.replay`."""

    stage: str
    fingerprint: str
    run_name: str
    tags: dict[str, str]
    link_file: Path


class Tracker:
    """One experiment on one tracking server; an unreachable server costs one warning, never the work."""

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
        """Tracker of a configuration: tracking.uri, MLFLOW_TRACKING_URI or mlruns/mlflow.db."""
        uri = tracking_uri(config)
        return cls(uri, config.name, artifact_root(uri), enabled=config.tracking.enabled)

    def is_logged(self, link_file: Path, status: str = "FINISHED") -> bool:
        """Whether a run is complete: the server has it with this final status and files, or is unreachable (one warning)."""
        known = self._linked_status(link_file)
        return known == _AWAY or (
            known == status and _has_folder(self.artifact_location, self._linked(link_file))
        )

    def is_running(self, link_file: Path) -> bool:
        """Whether the server shows a run as running; False where it is unreachable."""
        return self._linked_status(link_file) == "RUNNING"

    def linked_run(self, link_file: Path) -> str | None:
        """Id of a link file's run on this server; None without a run, or with an unreachable server."""
        return self._linked(link_file) if self._linked_status(link_file) not in (None, _AWAY) else None

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
    ) -> "LiveRun":
        """Start a run, so that metrics show before the stage ends; continue the run of an interrupted attempt.

        reopen: continue a finished run too.
        """

        def begin(client: "MlflowClient") -> str:
            known = self._linked(link_file)
            if self._status(known) not in ((None,) if reopen else (None, "FINISHED")):
                client.update_run(known, status="RUNNING")
                if NOTE in tags:
                    client.set_tag(known, NOTE, tags[NOTE])
                parent = self._linked(parent_link_file)
                if self._status(parent) is not None:
                    client.set_tag(known, PARENT, parent)
                return known
            return self._create(
                client, labels(stage, fingerprint, tags), run_name, link_file, parent_link_file, now_ms()
            )

        run_id = self.attempt(begin)
        if run_id is None:
            return LiveRun(None, lambda _: None, lambda _: None)
        return LiveRun(
            run_id,
            lambda points: self.attempt(lambda client: send_points(client, run_id, points)),
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
        model_link_file: Path | None = None,
        status: str = "FINISHED",
    ) -> None:
        """Ensure that the server has an ended run with all of folder/tracking.json; nothing is sent twice.

        model_link_file: link of the training that made the evaluated model, where it is another run.
        """
        record = RunRecord.load(folder)
        all_tags = (
            labels(stage, fingerprint, tags)
            | record.tags
            | {BUILD: digest_of([stage, fingerprint, record.started, record.ended])}
        )

        def complete(client: "MlflowClient") -> None:
            run_id = self._linked(link_file)
            if self._status(run_id) is None:
                run_id = self._find_build(client, all_tags[BUILD])
            if run_id:
                self._link(link_file, run_id)
            else:
                run_id = self._create(client, all_tags, run_name, link_file, parent_link_file, record.started)
            log_record(client, run_id, record, all_tags, folder)
            if (
                self.artifact_location is not None
            ):  # also for a run without files: a missing folder means lost files
                (local_path(self.artifact_location) / run_id).mkdir(parents=True, exist_ok=True)
            self._attach(client, run_id, record, model_link_file)
            parent = self._linked(parent_link_file)
            if record.parent_points and self._status(parent) is not None:
                log_points(client, parent, record.parent_points)
            client.set_terminated(run_id, status, max(record.ended, client.get_run(run_id).info.start_time))

        self.attempt(complete)

    def offer(self, view: View) -> None:
        """Offer a saved view of this experiment's runs in MLflow's UI."""
        self.attempt(lambda client: offer(client, self._experiment_id(client), view))

    def attempt(self, action: Callable[["MlflowClient"], _Result]) -> _Result | None:
        """Result of an action on the client; None, and one warning, where the server is unreachable or refuses."""
        if not self._enabled or time.monotonic() < self._away_until:
            return None
        try:
            with reported(self.uri):
                self._status("")  # detects an unreachable server within TIMEOUT_SECONDS
                return action(client_at(self.uri))
        except ServerAway as error:
            self._warn_away(error)
            return None

    @contextlib.contextmanager
    def tolerated(self) -> Iterator[None]:
        """Turn ServerAway inside the context into one warning."""
        try:
            yield
        except ServerAway as error:
            self._warn_away(error)

    def log_in_experiment_of(
        self, other: LoggedRun, run_name: str, record: RunRecord, folder: Path
    ) -> str | None:
        """Log a record, with files from a folder, as a finished run in another run's experiment; returns its id.

        None, and one warning, where the server is unreachable.
        """

        def send(client: "MlflowClient") -> str:
            all_tags = labels(record.tags.get("lookback.stage", ""), "", record.tags)
            run_id: str = client.create_run(
                other.experiment_id, record.started, all_tags, run_name
            ).info.run_id
            log_record(client, run_id, record, all_tags, folder)
            client.set_terminated(run_id, "FINISHED", record.ended)
            return run_id

        return self.attempt(send)

    def end_abandoned(self, link_file: Path, note: str) -> None:
        """End as KILLED a linked run whose process is gone, with its running child runs; `note`: its new description."""

        def end(client: "MlflowClient") -> None:
            run_id = self._linked(link_file)
            if self._status(run_id) is None:
                return
            running = [run.run_id for run in queries.children(self.uri, run_id) if run.status == "RUNNING"]
            for running_id in (*running, run_id):
                client.set_terminated(running_id, "KILLED")
            client.set_tag(run_id, NOTE, note)

        self.attempt(end)

    def _attach(
        self, client: "MlflowClient", run_id: str, record: RunRecord, model_link_file: Path | None
    ) -> None:
        """Link validation and test metrics to their model and data set."""
        if record.model:
            attach(client, run_id, model_of(client, run_id, record.model), record.datasets)
        elif self._status(training := self._linked(model_link_file)) is not None:
            model_id = client.get_run(training).data.tags.get(MODEL_ID)
            if model_id is not None:
                attach(client, run_id, model_id, record.datasets)

    def _warn_away(self, error: ServerAway) -> None:
        self._away_until = time.monotonic() + AWAY_SECONDS
        if not self._warned:
            text = f"tracking: {error}; the work goes on, and the next run logs what is missing"
            print(printable(text), file=sys.stderr, flush=True)
        self._warned = True

    def _linked_status(self, link_file: Path) -> str | None:
        """Status of a link file's run; None without a run, _AWAY with an unreachable server."""
        if not self._enabled or time.monotonic() < self._away_until:
            return _AWAY
        try:
            return self._status(self._linked(link_file))
        except ServerAway as error:
            self._warn_away(error)
            return _AWAY

    def _status(self, run_id: str) -> str | None:
        return self._server.run_status(run_id)

    def _linked(self, link_file: Path | None) -> str:
        """Run id of this server in a link file; empty without one."""
        return str(read_record(link_file).get(self.uri, "")) if link_file is not None else ""

    def _link(self, link_file: Path, run_id: str) -> None:
        write_json(link_file, read_record(link_file) | {self.uri: run_id})

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
            tags = tags | {PARENT: parent}
        run_id: str = client.create_run(self._experiment_id(client), started, tags, run_name).info.run_id
        self._link(link_file, run_id)
        return run_id

    def _find_build(self, client: "MlflowClient", build: str) -> str:
        """Run of a build whose link was lost; empty without one."""
        runs = client.search_runs([self._experiment_id(client)], f"tags.`{BUILD}` = '{build}'", max_results=1)
        return str(runs[0].info.run_id) if runs else ""

    def _experiment_id(self, client: "MlflowClient") -> str:
        from mlflow.exceptions import MlflowException

        experiment = client.get_experiment_by_name(self.experiment)
        if experiment is None:
            try:
                return client.create_experiment(self.experiment, self.artifact_location, tags=KIND)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            experiment = client.get_experiment_by_name(self.experiment)  # another process was faster
            assert experiment is not None
        if experiment.lifecycle_stage == "deleted":
            _restore(client, experiment.experiment_id, f"{self.experiment!r} was deleted on {self.uri}")
        return str(experiment.experiment_id)


def _restore(client: "MlflowClient", experiment_id: str, which: str) -> None:
    """Restore a deleted experiment with one line on stderr."""
    client.restore_experiment(experiment_id)
    text = (
        f"tracking: the experiment {which}; it is restored, as its runs are logged there; tracking.enabled = false logs none, "
        "another name begins another experiment"
    )
    print(printable(text), file=sys.stderr, flush=True)


def _has_folder(root: str | None, run_id: str) -> bool:
    """Whether the folder of a complete run is in an artifact root; True where the server keeps the files."""
    return root is None or (local_path(root) / run_id).exists()
