"""Stage runner: lock, build in a workspace, commit, track."""

import contextlib
import importlib
import platform
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from features.printable import printable
from pipeline.artifacts import source_files, store
from pipeline.artifacts.files import fingerprint, now, read_record
from pipeline.config import Config
from pipeline.errors import DamagedArtifact, LookbackError, optional
from pipeline.monitoring import alerts, ledger, prequential
from pipeline.orchestration import process_group, provenance
from pipeline.orchestration.context import Context
from pipeline.orchestration.graph import CANDIDATES, PREDECESSOR, Node, Pipeline, order, resolve
from pipeline.orchestration.heartbeat import heartbeat
from pipeline.orchestration.parent_run import ParentRun, parent_run, stage_run_name
from pipeline.release import live_lists, promotion
from pipeline.tracking import registry
from pipeline.tracking.record import TARGETS_DIGEST, RunRecord
from pipeline.tracking.server import Version
from pipeline.tracking.tracker import RunIdentity, Tracker

_VERSIONS_OF = ("lookback", "torch", "polars", "pyarrow", "numpy", "faiss-cpu", "mlflow", "scikit-learn")


_SPARED = ("monitor", "report")
"""Stages that lists do not wait for: beside other stages a failure costs a line on stderr."""


class Summary(TypedDict):
    """Summary of a stage, as `--json` prints it."""

    stage: str
    fingerprint: str
    rows_in: int
    rows_out: int
    rows_left_out: dict[str, int]
    peak_bytes: int
    folder: str
    up_to_date: bool
    seconds: float
    summary: str
    is_live: NotRequired[bool]
    """score: whether the lists are those of `score/live`"""
    live: NotRequired[str]
    """score: that in one line, with the reason"""
    alerts: NotRequired[list[str]]
    """monitor: present alerts, a line each"""


@contextlib.contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM raise SystemExit, so that active runs end as KILLED."""
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def read_databases(config: Config, names: Sequence[str], *, force: bool) -> None:
    """Read what is new in the databases of the log, if the named stages need it; a line on stderr about each.

    Until the next call all stages see the same rows. force: read everything anew, if ingest is named.
    """
    if "ingest" in order(config, names):
        for line in source_files.read_databases(config, force=force and "ingest" in names):
            print(printable(line), file=sys.stderr, flush=True)


def bring_up_to_date(
    config: Config, names: Sequence[str], *, force: bool, show_progress: bool, say: Callable[[str], None]
) -> list[Summary]:
    """Run the named stages and the stages they need unless up to date; returns a summary each.

    `force` rebuilds the named stages. Raises LookbackError where the data or the run fails; a report that fails beside other
    stages costs a line on stderr.
    """
    pipeline = resolve(config, names)
    _name_left_out(config, pipeline)
    tracker = Tracker.from_config(config)
    summaries = []
    with parent_run(pipeline, tracker) as parent:
        for task in _tasks(pipeline, tracker, parent, names if force else ()):
            is_needed = task.name not in _SPARED or set(names) == {task.name}
            with contextlib.nullcontext() if is_needed else optional(task.name):
                with task.node.artifact.lock(task.node.inputs):
                    built = not task.is_up_to_date()
                    if built:
                        stage = importlib.import_module(f"pipeline.stages.{task.node.stage.name}")
                        with task.building(show_progress) as context:
                            process_group.announce(task.node.stage.name, context)
                            stage.build(context)
                    parent.stage_done(task.name, task.node, built=built)
                    with optional("tracking"):
                        task.ensure_logged()
                summary = _ended(pipeline, task, built, say)
                if task.pipeline is pipeline:
                    summaries.append(summary)
    return summaries


def _name_left_out(config: Config, pipeline: Pipeline) -> None:
    """Print the baselines that a run for lists does not wait for, before it evaluates."""
    left_out = [
        name for name in config.evaluate.baseline_names if name not in pipeline.config.evaluate.baseline_names
    ]
    if left_out and not pipeline.nodes["evaluate"].artifact.is_complete():
        print(
            f"baselines: lists do not wait for {', '.join(left_out)} (publish.baselines); to evaluate them too: "
            f"{config.command('run', 'evaluate')}",
            file=sys.stderr,
            flush=True,
        )


@dataclass(frozen=True)
class _Task:
    """A stage to bring up to date within a parent run."""

    pipeline: Pipeline
    node: Node
    tracker: Tracker
    parent: ParentRun
    name: str
    """Name in the parent run: the stage's, after the cut's for an earlier cut."""
    label: str | None
    """Beginning of the printed line; None prints none."""
    force: bool = False

    def is_up_to_date(self) -> bool:
        """Whether the artifact is complete and not forced; points `latest` to it."""
        try:
            if self.node.artifact.is_complete() and not self.force:
                self.node.artifact.point_latest()
                return True
        except DamagedArtifact:
            if not self.force:
                raise
        return False

    @contextlib.contextmanager
    def building(self, show_progress: bool) -> Iterator[Context]:
        """Yield the context to build the stage in, then commit the workspace as its artifact."""
        pipeline, node, artifact = self.pipeline, self.node, self.node.artifact
        inputs = {name: pipeline.nodes[name].artifact for name in node.inputs if name in pipeline.nodes}
        inputs |= {
            name: cut.nodes["evaluate"].artifact
            for name, cut in pipeline.earlier_cuts.items()
            if name in node.inputs
        }
        for input_ in inputs.values():
            input_.verify()
        artifact.prepare(resume=node.stage.resumable and not self.force)
        self.parent.begin()
        with self.tracker.start(**_identity(pipeline, node), parent_link_file=self.parent.own_link) as live:
            context = Context(
                config=pipeline.config,
                folder=artifact.workspace,
                inputs={name: input_.folder for name, input_ in inputs.items()},
                sources=pipeline.sources,
                model=pipeline.model,
                shadows=pipeline.shadows,
                arms=pipeline.arms,
                candidates=_candidates(pipeline.config, node),
                start=pipeline.start,
                previous=_previous(node, force=self.force),
                track=RunRecord(),
                live=live,
                stage_folder=artifact.stage_folder,
                show_progress=show_progress,
                force=self.force,
            )
            started = time.monotonic()
            store.give_back_memory()
            memory = store.PeakMemory()
            with _watched(context), heartbeat(node.stage.name, context):
                yield context
            _commit(node, context, time.monotonic() - started, memory.bytes())

    def ensure_logged(self) -> None:
        """Log this artifact's run unless the server has it (checked in milliseconds)."""
        pipeline, node = self.pipeline, self.node
        if not self.tracker.is_logged(node.artifact.run_link):
            identity = _identity(pipeline, node)
            targets = store.read_manifest(node.artifact.folder)["files"].get("targets.parquet")
            if targets is not None:
                identity["tags"][TARGETS_DIGEST] = targets[1]
            self.tracker.replay(
                folder=node.artifact.folder,
                parent_link_file=self.parent.link_of(node),
                model_link_file=pipeline.nodes["train"].artifact.run_link
                if node.stage.name == "evaluate"
                else None,
                **identity,
            )
        if node.stage.name == "publish":
            promotion.ensure_registered(pipeline.config, self.tracker, node.artifact)


def _tasks(pipeline: Pipeline, tracker: Tracker, parent: ParentRun, forced: Sequence[str]) -> Iterator[_Task]:
    """Stages in order; before a rolling evaluation the stages of its earlier cuts."""
    for name, node in pipeline.nodes.items():
        if name == "evaluate" and pipeline.earlier_cuts:
            for cut_name, cut in pipeline.earlier_cuts.items():
                for stage, cut_node in cut.nodes.items():
                    name_of_cut = f"{cut_name.removeprefix('evaluate ')}: {stage}"
                    label = f"{cut_name}:" if stage == "evaluate" else None
                    yield _Task(cut, cut_node, tracker, parent, name_of_cut, label)
            for own in pipeline.nodes.values():
                if own.artifact.is_complete():
                    own.artifact.point_latest()  # not to an artifact of an earlier cut
        yield _Task(pipeline, node, tracker, parent, name, f"{name:<9}", name in forced)


def _commit(node: Node, context: Context, seconds: float, peak_bytes: int) -> None:
    """Write the manifest and the run record, then commit the workspace as the artifact."""
    manifest: dict[str, Any] = {"rows_in": 0, "rows_out": 0, "rows_left_out": {}} | context.manifest
    manifest |= {
        "stage": node.stage.name,
        "fingerprint": node.artifact.name,
        "inputs": node.inputs,
        "settings": node.settings,
        "seconds": round(seconds, 3),
        "peak_bytes": peak_bytes,
        "created_utc": now().isoformat(),
        "versions": _versions(),
        "summary": context.summary_line,
    }
    if "torch" in sys.modules:
        from models.device import pick_device

        context.track.tag("lookback.device", str(pick_device()))
    context.track.tags |= provenance.tags()  # of this build, not of the code that sends it later
    context.track.params(node.settings)
    context.track.metric("seconds", manifest["seconds"])
    context.track.metric("peak_bytes", manifest["peak_bytes"])
    context.track.save(context.folder)
    node.artifact.commit(manifest, context.digests)


def _candidates(config: Config, node: Node) -> Path | None:
    """File of candidates that the stage evaluates among; None without one."""
    path = config.score.candidates
    return Path(path) if path is not None and CANDIDATES in node.inputs else None


def _watched(context: Context) -> contextlib.AbstractContextManager[None]:
    """Sampling of system metrics while a stage runs, if tracking is enabled."""
    tracking = context.config.tracking
    if not tracking.enabled:
        return contextlib.nullcontext()
    from pipeline.tracking.system_metrics import sampled

    return sampled(context.track, context.live, tracking.system_seconds)


def _identity(pipeline: Pipeline, node: Node) -> RunIdentity:
    config = pipeline.config
    ingest = pipeline.nodes.get("ingest")
    tags = {f"lookback.input.{name}": value[:200] for name, value in node.inputs.items()}
    tags["lookback.protocol"] = config.split.protocol
    if ingest is not None:
        tags["lookback.data"] = fingerprint(ingest.inputs)
    return {
        "stage": node.stage.name,
        "fingerprint": node.artifact.name,
        "run_name": stage_run_name(config, node.stage.name),
        "tags": tags | provenance.tags(),
        "link_file": node.artifact.run_link,
    }


def _ended(pipeline: Pipeline, task: _Task, built: bool, say: Callable[[str], object]) -> Summary:
    """What follows an up-to-date stage: the live lists, copies of remote files that go, a line; returns its summary."""
    config, summary = pipeline.config, _summary(task.node, built)
    if task.name == "score":
        liveness = live_lists.point(config, task.node.artifact, _scored_version(pipeline))
        summary |= {"is_live": liveness.is_live, "live": liveness.sentence}
        with optional("ledger of deliveries"):
            _deliver(config, task.node.artifact)
    if task.name == "monitor":
        with optional("test of the update"):
            if (decision := prequential.decide(config, task.node.artifact)) is not None:
                print(printable(decision), file=sys.stderr, flush=True)
        summary["alerts"] = _alerts(config, task.node)
    if task.name == "ingest":
        source_files.release(config, pipeline.sources)
    if task.label is not None:
        say(f"{task.label} {summary['summary']}")
    return summary


def _deliver(config: Config, lists: store.Artifact) -> None:
    """Enter finished lists in the ledger of deliveries, once."""
    if ledger.is_entered(lists):
        return
    from pipeline.monitoring import promise

    promised = {}
    with optional("promise of the evaluation"):
        promised = promise.of_lists(config, lists)
    ledger.enter(config, lists, promised)


def _alerts(config: Config, node: Node) -> list[str]:
    """Print the present alerts on stderr, a line each; returns the lines. A log that stands still alerts by the clock."""
    if not config.monitor.alerts:
        return []
    present = {alert.rule: alert for alert in alerts.load(node.artifact.folder)}
    facts = read_record(config.folder / "features" / node.inputs["features"] / "log_facts.json")
    if isinstance(newest := facts.get("now"), int):
        entered = [delivery for delivery in ledger.deliveries(config.folder / "score") if delivery.timed]
        present |= {alert.rule: alert for alert in alerts.of_growth(entered, newest, now(), config.monitor)}
    for alert in present.values():
        print(alert.line, file=sys.stderr, flush=True)
    return [alert.line for alert in present.values()]


def _previous(node: Node, *, force: bool) -> Path | None:
    """Artifact that a stage continues: its predecessor, one with fewer parts, or with force its own; None without one with all
    its files.

    The stage checks the digests of what it reads.
    """
    names = [node.artifact.name] if force else []
    names += [node.inputs[PREDECESSOR]] if PREDECESSOR in node.inputs else []
    names += [node.with_fewer.name] if node.with_fewer is not None else []
    for name in names:
        artifact = store.Artifact(node.artifact.stage_folder, name)
        with optional(f"predecessor {artifact}"):
            if artifact.is_complete():
                return artifact.folder
    return None


def _scored_version(pipeline: Pipeline) -> Version | None:
    """Registered version of the bundle that is scored with; None where it is not registered, or the server is away."""
    config = pipeline.config
    if not config.tracking.enabled:
        return None
    if pipeline.model is None:
        return registry.linked_version(config, pipeline.nodes["publish"].artifact)
    with contextlib.suppress(LookbackError):
        return registry.Registry.from_config(config).resolve(pipeline.model.uri)
    return None


def _summary(node: Node, built: bool) -> Summary:
    manifest = store.read_manifest(node.artifact.folder)
    return {
        "stage": manifest["stage"],
        "fingerprint": manifest["fingerprint"],
        "rows_in": manifest["rows_in"],
        "rows_out": manifest["rows_out"],
        "rows_left_out": manifest["rows_left_out"],
        "peak_bytes": manifest["peak_bytes"],
        "folder": str(node.artifact.folder),
        "up_to_date": not built,
        "seconds": manifest["seconds"] if built else 0.0,
        "summary": f"{manifest['summary']} ({manifest['seconds']:.1f} s)"
        if built
        else f"is up to date ({node.artifact.folder})",
    }


def _versions() -> dict[str, str]:
    import importlib.metadata

    versions = {"python": platform.python_version(), "platform": platform.platform()}
    for name in _VERSIONS_OF:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions
