"""Parent run of one `lookback run` on the tracking server, above the runs of the stages it built.

<data_dir>/<name>/.runs/<key>/ holds its RunRecord and its list of stages, built or up to date, from which it can be sent to
any server later. A run that built nothing leaves no record.
"""

import contextlib
import datetime
import os
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

from features.printable import markdown
from pipeline.artifacts.files import fingerprint, read_json, write_json
from pipeline.artifacts.store import Artifact, read_manifest
from pipeline.config import Config
from pipeline.credentials import masked
from pipeline.errors import DamagedArtifact, LookbackError, optional
from pipeline.orchestration import provenance
from pipeline.orchestration.graph import Node, Pipeline, order
from pipeline.tracking import queries, registry
from pipeline.tracking.record import TRACKING, DatasetInput, Point, RunRecord
from pipeline.tracking.server import GATE, ServerAway
from pipeline.tracking.tracker import NOTE, RunIdentity, Tracker

RUNS = ".runs"
SEARCHES = "tune"
"""Folder of the searches of `lookback tune`, beside the stages' folders."""
ABANDONED = "**KILLED**: its process ended without reporting."
LONGEST_SUMMARY = 1000
"""Maximum characters of a summary or reason in a description."""
STAGE_RUN = "lookback.run."
"""Prefix of a parent's tags with the run of each stage, built by it or before."""
SHOWN_FILES = {
    "report": ("report.html", "figures.html"),
    "evaluate": ("systems.json", "figures.html"),
    "monitor": ("nights.html",),
}
"""Stages' files shown in the parent run; the later stage's file replaces one of the same name."""
_SHARED_TAGS = (
    "lookback.device",
    "lookback.bundle_digest",
    "lookback.model_version",
    "lookback.targets",
    "lookback.cautions",
    "lookback.alerts",
)


class StageEntry(TypedDict):
    """A stage of a parent run."""

    stage: str
    fingerprint: str
    built: bool
    summary: str


@dataclass
class Record:
    """Record of a parent run in its folder."""

    folder: Path
    name: str
    status: str = "RUNNING"
    description: str = ""
    """Description without links to other runs."""
    stages: dict[str, StageEntry] = field(default_factory=dict)
    """Name to stage; for an earlier cut the name begins with the cut."""

    @property
    def link(self) -> Path:
        """Link file of the run."""
        return self.folder / "links.json"

    def save(self) -> None:
        """Write record.json."""
        content = {"name": self.name, "status": self.status, "said": self.description}
        write_json(self.folder / "record.json", content | {"stages": self.stages})

    @classmethod
    def load(cls, folder: Path) -> "Record":
        """Read record.json."""
        content = read_json(folder / "record.json")
        return cls(folder, content["name"], content["status"], content["said"], content["stages"])

    def built(self) -> set[str]:
        """Built artifacts, as stage/fingerprint."""
        return {
            f"{entry['stage']}/{entry['fingerprint']}" for entry in self.stages.values() if entry["built"]
        }


def records(config: Config) -> list[Record]:
    """Records of a configuration's runs, oldest first, without damaged ones."""
    readable = []
    for folder in sorted((config.folder / RUNS).glob("*/")):
        with contextlib.suppress(DamagedArtifact, OSError, KeyError, TypeError, AttributeError):
            record = Record.load(folder)
            record.built()  # fails on entries of another type
            readable.append(record)
    return readable


def evaluated(known: Sequence[Record]) -> list[Record]:
    """Finished runs that built an evaluation, newest first."""
    return [
        record
        for record in reversed(known)
        if record.status == "FINISHED" and record.stages.get("evaluate", {"built": False})["built"]
    ]


def without_artifacts(config: Config) -> list[Path]:
    """Folders of ended runs whose artifacts are all gone."""
    return [
        record.folder
        for record in records(config)
        if record.status != "RUNNING"
        and not any((config.folder / artifact).exists() for artifact in record.built())
    ]


def end_abandoned(config: Config) -> None:
    """End runs and searches of `lookback tune` whose process is gone as KILLED."""
    tracker = Tracker.from_config(config)
    for record in [record for record in records(config) if record.status == "RUNNING"]:
        with _try_lock(_lock(record.folder)) as is_abandoned:
            if is_abandoned:
                record.status, record.description = "KILLED", ABANDONED
                tracker.end_abandoned(record.link, ABANDONED)
                if not (record.folder / TRACKING).exists():
                    RunRecord().save(record.folder)
                record.save()
    for search in searches(config):
        if tracker.is_running(search.run_link):
            with _try_lock(search.lock_file) as is_abandoned:
                if is_abandoned:
                    tracker.end_abandoned(search.run_link, ABANDONED)


def searches(config: Config) -> list[Artifact]:
    """Searches of `lookback tune` for a configuration of this name."""
    folders = sorted((config.folder / SEARCHES).glob("[!.]*/"))
    return [Artifact(folder.parent, folder.name) for folder in folders]


@contextlib.contextmanager
def _try_lock(lock_file: Path) -> Iterator[bool]:
    """Yield True holding the lock, or False if another process holds it."""
    import filelock

    lock = filelock.FileLock(lock_file)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


@contextlib.contextmanager
def parent_run(pipeline: Pipeline, tracker: Tracker) -> Iterator["ParentRun"]:
    """Parent run of the stages built within the context; ends as FINISHED, FAILED or KILLED."""
    with optional("tracking"):
        end_abandoned(pipeline.config)
    parent = ParentRun(pipeline, tracker)
    with optional("tracking"):
        parent.restore()
    try:
        yield parent
    except BaseException as error:
        killed = isinstance(error, KeyboardInterrupt | SystemExit)
        why = masked(str(error)).partition("\n")[0]  # further lines may hold rows of the log
        with optional("tracking"), contextlib.suppress(OSError):  # the disk may be full
            parent.end("KILLED" if killed else "FAILED", why or type(error).__name__)
        raise
    with optional("tracking"):
        parent.end("FINISHED")


class ParentRun:
    """The present run, and the earlier runs that built its up-to-date stages."""

    def __init__(self, pipeline: Pipeline, tracker: Tracker) -> None:
        self._pipeline = pipeline
        self._tracker = tracker
        self._record: Record | None = None
        self._run = RunRecord()
        self._held = contextlib.ExitStack()
        self._stages: dict[str, StageEntry] = {}
        self._earlier = records(pipeline.config)
        self._restored: list[Record] = []

    def restore(self) -> None:
        """Send earlier parent runs of the needed artifacts that the server lacks, as parents of the stages' runs."""
        needed = {f"{name}/{node.artifact.name}" for name, node in self._pipeline.nodes.items()}
        for record in self._earlier:
            if record.status == "RUNNING" or not record.built() & needed:
                continue
            if not self._tracker.is_logged(record.link, record.status):
                self._send(record)
                self._restored.append(record)

    def begin(self) -> None:
        """Start the run, once, before the first stage is built."""
        if self._record is not None:
            return
        import filelock

        config = self._pipeline.config
        began = datetime.datetime.now(datetime.UTC)
        folder = config.folder / RUNS / f"{began:%Y%m%dT%H%M%S%f}-{secrets.token_hex(4)}"
        folder.mkdir(parents=True)
        self._held.enter_context(filelock.FileLock(_lock(folder)))
        self._record = Record(folder, run_name(config, list(self._pipeline.nodes)))
        self._record.save()
        self._tracker.start(**self._identity(self._record))

    @property
    def own_link(self) -> Path | None:
        """Link file of this run; None if it has built nothing."""
        return self._record.link if self._record is not None else None

    def link_of(self, node: Node) -> Path | None:
        """Link file of the run that built a stage; None without a record of it."""
        key = f"{node.stage.name}/{node.artifact.name}"
        known = [*self._earlier, *([self._record] if self._record is not None else [])]
        return next((record.link for record in reversed(known) if key in record.built()), None)

    def stage_done(self, name: str, node: Node, *, built: bool) -> None:
        """Record an up-to-date stage under a name, which begins with the cut for an earlier cut."""
        self._stages[name] = {
            "stage": node.stage.name,
            "fingerprint": node.artifact.name,
            "built": built,
            "summary": read_manifest(node.artifact.folder)["summary"],
        }
        if self._record is not None:
            self._record.stages = dict(self._stages)
            self._record.save()

    def end(self, status: str, why: str = "") -> None:
        """Record and log the end of the run, and update the links of restored runs."""
        with self._held:
            if self._record is not None:
                self._record.status = status
                self._record.stages = dict(self._stages)
                self._record.description = f"**{status}**: {markdown(why, LONGEST_SUMMARY)}" if why else ""
                if not why:
                    with optional("description of the run"):
                        self._record.description = self._describe()
                with optional("record of the run"):
                    self._fill(self._run, self._record.folder)
                self._run.save(self._record.folder)
                self._record.save()
                self._send(self._record)
            for record in self._restored:
                with optional("record of an earlier run"):
                    self._send(record)

    def _send(self, record: Record) -> None:
        if (record.folder / TRACKING).exists():
            self._tracker.replay(folder=record.folder, status=record.status, **self._identity(record))

    def _identity(self, record: Record) -> RunIdentity:
        runs = {
            name: self._tracker.linked_run(self._artifact(entry).run_link)
            for name, entry in record.stages.items()
        }
        tags = {f"{STAGE_RUN}{name}": run_id for name, run_id in runs.items() if run_id is not None}
        stages = [stage_line(name, entry, self._address(runs[name])) for name, entry in record.stages.items()]
        table = "\n".join(["### Stages", "", "| stage | | summary |", "| --- | --- | --- |", *stages])
        note = "\n\n".join(part for part in (record.description, table if stages else "") if part)
        protocol = self._pipeline.config.split.protocol
        return {
            "stage": "run",
            "fingerprint": record.folder.name,
            "run_name": record.name,
            "tags": provenance.tags() | tags | {"lookback.protocol": protocol, NOTE: note or "running"},
            "link_file": record.link,
        }

    def _address(self, run_id: str | None) -> str | None:
        """Address of a run in MLflow's UI; None without a run or a server."""
        if run_id is None:
            return None
        return self._tracker.attempt(lambda _: queries.address(self._tracker.uri, run_id))

    def _artifact(self, entry: StageEntry) -> Artifact:
        return Artifact(self._pipeline.config.folder / entry["stage"], entry["fingerprint"])

    # --- description ---

    def _fill(self, run: RunRecord, folder: Path) -> None:
        """Add the resolved settings, and the stages' headline metrics, data sets, shared tags and shown files."""
        run.params(self._pipeline.config.model_dump(mode="json"))
        run.tags |= provenance.tags()
        points: dict[tuple[str, int], Point] = {}
        datasets: list[DatasetInput] = []
        for name, entry in self._stages.items():
            artifact = self._artifact(entry).folder
            for key, value in read_manifest(artifact).get("resolved", {}).items():
                run.param(f"resolved.{key}", value)
            stage = RunRecord.load(artifact)
            points |= {(point.name, point.step): point for point in stage.parent_points}
            if name in self._pipeline.nodes:
                datasets += [data for data in stage.datasets if data not in datasets]
            run.tags |= {key: value for key, value in stage.tags.items() if key in _SHARED_TAGS}
        shown = {file: name for name in self._stages for file in SHOWN_FILES.get(name, ())}
        for file, name in shown.items():
            path = self._artifact(self._stages[name]).folder / file
            if path.is_file():  # a first night has no figures
                run.artifact(os.path.relpath(path, folder), name)
        run.parent_points, run.points = [], [*run.points, *points.values()]
        run.datasets = datasets
        if "ingest" in self._pipeline.nodes:
            run.tag("lookback.data", fingerprint(self._pipeline.nodes["ingest"].inputs))
        if "features" in self._stages:
            run.tag("lookback.input.features", self._stages["features"]["fingerprint"])

    def _describe(self) -> str:
        """Quality against baselines and earlier runs, and the registry's decision; sets the columns of the run list too."""
        if "evaluate" not in self._stages:
            return self._describe_night() if "score" in self._stages else ""
        from pipeline.evaluation import comparison
        from pipeline.evaluation.report import EvaluationReport
        from pipeline.reporting import run_description

        evaluate, built = self._artifact(self._stages["evaluate"]).folder, self._stages["evaluate"]["built"]
        report = EvaluationReport.load(evaluate)
        metric = run_description.metric_of(report, self._pipeline.config.evaluate.gate_metric)
        headline, _, table = run_description.of_evaluation(report, metric).partition("\n\n")
        earlier = self._evaluations(evaluate) if built else {}
        against = comparison.against_earlier(evaluate, earlier, metric, self._pipeline.config.seed)
        numbers, verdict = run_description.row_of(report, metric)
        for name, value in numbers.items():
            self._run.metric(name, value)
        for name, text in run_description.texts_of(report, metric).items():
            self._run.tag(name, text)
        self._run.tag(run_description.AGAINST_BASELINES, verdict)
        if not built:
            against_earlier = "the evaluation of an earlier run, as it was"
        elif against is None:
            against_earlier = "no earlier run has the same targets"
        else:
            against_earlier = against.against_best
        self._run.tag(run_description.AGAINST_EARLIER, against_earlier)
        if built:
            targets = comparison.target_set(evaluate)
            self._run.tag(run_description.TARGET_SET, targets)
            self._run.tag(run_description.CHANGED, self._changed_settings())
            self._tracker.offer(run_description.view_of(metric, targets))
        parts = [headline, table]
        if against is not None:
            parts = [f"{headline} {against.sentence}", table, against.table]
        return "\n\n".join([*parts, *self._decision()])

    def _describe_night(self) -> str:
        """Outcomes of the lists before, and alerts; sets the columns of the list of nights too."""
        from pipeline.monitoring import night_run

        config = self._pipeline.config
        folders = {name: self._artifact(entry).folder for name, entry in self._stages.items()}
        texts = night_run.texts_of(config, folders)
        self._run.tags |= texts
        self._tracker.offer(night_run.view_of(config))
        stage = RunRecord.load(folders["monitor"]) if "monitor" in folders else RunRecord()
        return night_run.description(texts, stage.tags.get(night_run.ALERTS, "not looked for"))

    def _changed_settings(self) -> str:
        """Settings that differ from the newest earlier run with an evaluation: `model.dim 16 → 8`."""
        own = RunRecord()
        own.params(self._pipeline.config.model_dump(mode="json"))
        for record in evaluated(self._earlier):
            with contextlib.suppress(OSError, DamagedArtifact, KeyError):
                before = RunRecord.load(record.folder).param_values
                changed = [
                    f"{key} {before.get(key, 'null')} → {value}"
                    for key, value in own.param_values.items()
                    if before.get(key, "null") != value
                ]
                return ", ".join(changed) or "none"
        return "the first run"

    def _evaluations(self, evaluate: Path) -> dict[str, Path]:
        """Newest other evaluations on the same targets, by their runs' names in the UI."""
        from pipeline.evaluation import comparison
        from pipeline.reporting import run_description

        names: dict[Path, str] = {}
        targets = comparison.target_set(evaluate)
        for record in evaluated(self._earlier):
            folder = self._artifact(record.stages["evaluate"]).folder
            with contextlib.suppress(OSError, DamagedArtifact, KeyError):
                if folder != evaluate and folder not in names and comparison.target_set(folder) == targets:
                    address = self._address(self._tracker.linked_run(record.link))
                    names[folder] = _link(f"{record.name} of {_began(record)}", address)
            if len(names) == run_description.MAX_EARLIER:
                break
        return {name: folder for folder, name in names.items()}

    def _decision(self) -> Iterator[str]:
        """Registered version and the gate's decision."""
        config = self._pipeline.config
        if "publish" not in self._stages or not config.tracking.enabled:
            return
        with contextlib.suppress(ServerAway, LookbackError):
            number = registry.version_of_bundle(config, self._artifact(self._stages["publish"]))
            models, name = registry.Registry.from_config(config), registry.model_name(config)
            if number is not None and (version := models.version(name, number)) is not None:
                reason = markdown(models.tags(version).get(f"{GATE}.reason", ""), LONGEST_SUMMARY)
                yield f"### Registry\n\n[{name} version {number}](#/models/{name}/versions/{number}): {version.gate}: {reason}"


def stage_line(name: str, entry: StageEntry, address: str | None) -> str:
    """Line of the table of stages, in Markdown; address: of the stage's run in MLflow's UI."""
    state = _link("built" if entry["built"] else "up to date", address)
    return f"| {markdown(name)} | {state} | {markdown(entry['summary'], LONGEST_SUMMARY)} |"


def _link(text: str, address: str | None) -> str:
    """Text in Markdown, as a link where there is an address."""
    return markdown(text) if address is None else f"[{markdown(text)}]({address})"


def run_name(config: Config, stages: list[str]) -> str:
    """Name of a parent run: `hstu-4x64 ml-1m temporal`; without training `ingest score ml-1m temporal`."""
    subject = _model(config) if "train" in stages else " ".join(stages)
    return f"{subject} {config.name} {config.split.protocol}"


def stage_run_name(config: Config, stage: str) -> str:
    """Name of a stage's run: the stage, its model if it depends on one, the data, the protocol."""
    model = f" {_model(config)}" if "train" in order(config, [stage]) else ""
    protocol = "" if stage == "ingest" else f" {config.split.protocol}"
    return f"{stage}{model} {config.name}{protocol}"


def _model(config: Config) -> str:
    return f"{config.model.block}-{config.model.num_blocks}x{config.model.dim}"


def _began(record: Record) -> str:
    """Start of a run, UTC, to the minute."""
    return f"{datetime.datetime.strptime(record.folder.name[:15], '%Y%m%dT%H%M%S'):%Y-%m-%d %H:%M}"  # noqa: DTZ007


def _lock(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.lock")
