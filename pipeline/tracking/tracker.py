"""Runs on the tracking server. `import mlflow` stands here and in the other files tracking*.py, and nowhere else.

A stage's Plan lies in its folder as `tracking.json`; a Tracker makes sure that the present server has a run with
all of it, and remembers the run in a link file ({tracking URI: run id}). A server that is away costs one line on
stderr: the next run replays.
"""

import contextlib
import math
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, TypeVar

from pipeline.artifacts.files import fingerprint as digest_of
from pipeline.artifacts.files import read_json, write_json
from pipeline.errors import DamagedArtifact, LookbackError
from pipeline.tracking.client import (
    client_at,
    reported,
    server_at,
    tracking_uri,
)
from pipeline.tracking.live import Live
from pipeline.tracking.record import Plan, now_ms
from pipeline.tracking.sending import (
    MODEL_ID,
    attach,
    labels,
    log_plan,
    log_points,
    logged,
    model_of,
    send_points,
)
from pipeline.tracking.server import LoggedRun, ServerAway, absolute_uri, artifact_root
from pipeline.tracking.ui import AS_TRAINING, View, offer

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from pipeline.config import Config

BUILD = "lookback.build"
PARENT = "mlflow.parentRunId"
NOTE = "mlflow.note.content"
"""The tag that MLflow's UI shows as a run's description."""
KIND = {"mlflow.experimentKind": "custom_model_development"}
"""Tag of an experiment: MLflow's UI calls it machine learning, not an application of language models."""
AWAY_SECONDS = 60.0
"""How long a server that did not answer is not asked again."""
_Answer = TypeVar("_Answer")


class RunIdentity(TypedDict):
    """Name, tags and link file of a stage's run: arguments of `Tracker.start` and `Tracker.replay`."""

    stage: str
    fingerprint: str
    run_name: str
    tags: dict[str, str]
    link_file: Path


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

    def is_logged(self, link_file: Path, status: str = "FINISHED") -> bool:
        """Whether nothing is left to do for a run: the server has it, ended as it should (or is away, which is said once)."""
        if not self._enabled or time.monotonic() < self._away_until:
            return True
        try:
            return self._status(self._linked(link_file)) == status
        except ServerAway as error:
            self._say_away(error)
            return True

    def is_running(self, link_file: Path) -> bool:
        """Whether the server shows a run as under way; False where it is away."""
        if not self._enabled or time.monotonic() < self._away_until:
            return False
        try:
            return self._status(self._linked(link_file)) == "RUNNING"
        except ServerAway as error:
            self._say_away(error)
            return False

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
            return Live(None, lambda _: None, lambda _: None)
        return Live(
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
        """See to it that the server has an ended run with all of folder/tracking.json; nothing is sent twice.

        `model_link_file`: the link of the training whose model the metrics are of, where it is another run.
        """
        plan = Plan.load(folder)
        all_tags = (
            labels(stage, fingerprint, tags)
            | plan.tags
            | {BUILD: digest_of([stage, fingerprint, plan.started, plan.ended])}
        )

        def complete(client: "MlflowClient") -> None:
            run_id = self._linked(link_file)
            if self._status(run_id) is None:
                run_id = self._find_build(client, all_tags[BUILD])
            if run_id:
                self._link(link_file, run_id)
            else:
                run_id = self._create(client, all_tags, run_name, link_file, parent_link_file, plan.started)
            log_plan(client, run_id, plan, all_tags, folder)
            self._attach(client, run_id, plan, model_link_file)
            parent = self._linked(parent_link_file)
            if plan.parent_points and self._status(parent) is not None:
                log_points(client, parent, plan.parent_points)
            client.set_terminated(run_id, status, max(plan.ended, client.get_run(run_id).info.start_time))

        self.attempt(complete)

    def offer(self, view: View) -> None:
        """See to it that MLflow's UI has a view of this experiment's runs among the saved ones."""
        self.attempt(lambda client: offer(client, self._experiment_id(client), view))

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
                return logged(client.get_run(id_or_name))
            experiments = (
                [client.get_experiment_by_name(experiment)] if experiment else client.search_experiments()
            )
            ids = [each.experiment_id for each in experiments if each is not None]
            name = id_or_name.replace("'", "")
            found = list(client.search_runs(ids, f"attributes.run_name = '{name}'")) if ids else []
        if len(found) == 1:
            return logged(found[0])
        where = f"on {self.uri}" + (f", experiment {experiment}" if experiment else "")
        if not found:
            raise LookbackError(
                f"run {id_or_name!r}: no such run {where}; expected an id or name that the UI shows"
            )
        ids = [f"{run.info.run_id} ({run.info.status})" for run in found]
        raise LookbackError(
            f"run {id_or_name!r}: {len(found)} runs have this name {where}; expected an id: {', '.join(ids)}"
        )

    def address(self, run_id: str) -> str | None:
        """Where MLflow's UI shows a run, for a link on one of its pages; None where the server is away."""
        known = self.attempt(lambda client: client.get_run(run_id).info.experiment_id)
        return f"#/experiments/{known}/runs/{run_id}{AS_TRAINING}" if known is not None else None

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
            return [logged(run) for run in runs]

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
            all_tags = labels(plan.tags.get("lookback.stage", ""), "", plan.tags)
            run_id: str = client.create_run(other.experiment_id, plan.started, all_tags, run_name).info.run_id
            log_plan(client, run_id, plan, all_tags, folder)
            client.set_terminated(run_id, "FINISHED", plan.ended)
            return run_id

        return self.attempt(send)

    def find_tagged(self, experiment_id: str, tags: dict[str, str]) -> LoggedRun | None:
        """The newest finished run with all of the tags in an experiment; None where there is none."""
        wanted = [f"tags.`{name}` = '{value}'" for name, value in tags.items()]
        wanted.append("attributes.status = 'FINISHED'")
        with reported(self.uri):
            found = client_at(self.uri).search_runs(
                [experiment_id], " AND ".join(wanted), max_results=1, order_by=["attributes.start_time DESC"]
            )
            return logged(found[0]) if found else None

    def end_abandoned(self, link_file: Path, note: str) -> None:
        """End as KILLED what a process that is gone left RUNNING: the runs under a linked one, and that one, which says so."""

        def end(client: "MlflowClient") -> None:
            run_id = self._linked(link_file)
            if self._status(run_id) is None:
                return
            under = [each.run_id for each in self.children(run_id) if each.status == "RUNNING"]
            for each in (*under, run_id):
                client.set_terminated(each, "KILLED")
            client.set_tag(run_id, NOTE, note)

        self.attempt(end)

    def _attach(self, client: "MlflowClient", run_id: str, plan: Plan, model_link_file: Path | None) -> None:
        """Hang metrics of validation and test on the model that they are of, with their data set."""
        if plan.model:
            attach(client, run_id, model_of(client, run_id, plan.model), plan.datasets)
        elif self._status(training := self._linked(model_link_file)) is not None:
            model_id = client.get_run(training).data.tags.get(MODEL_ID)
            if model_id is not None:
                attach(client, run_id, model_id, plan.datasets)

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
            tags = tags | {PARENT: parent}
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
                return client.create_experiment(self.experiment, self.artifact_location, tags=KIND)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            found = client.get_experiment_by_name(self.experiment)  # another process was faster
            assert found is not None
        if found.lifecycle_stage == "deleted":
            client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)
