"""The run of one `lookback run` on the tracking server, above the runs of the stages that it built.

Its record lies in <data_dir>/<name>/.runs/<key>/: a RunRecord, and which stages it built and which it found up to date; so any
server can be given it later. A run that built nothing leaves nothing.
"""

import contextlib
import datetime
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipeline.artifacts.files import fingerprint, read_json, write_json
from pipeline.artifacts.store import Artifact, read_manifest
from pipeline.config import Config
from pipeline.errors import DamagedArtifact, LookbackError
from pipeline.orchestration import provenance
from pipeline.orchestration.graph import Node, Pipeline, order
from pipeline.tracking import queries, registry
from pipeline.tracking.record import TRACKING, DatasetInput, Point, RunRecord
from pipeline.tracking.server import GATE, ServerAway
from pipeline.tracking.tracker import NOTE, RunIdentity, Tracker

RUNS = ".runs"
SEARCHES = "tune"
"""Where, beside the stages' folders, the searches of `lookback tune` lie."""
ABANDONED = "**KILLED**: its process ended without a word."
STAGE_RUN = "lookback.run."
"""How the tags of a parent begin that name the run of each stage, built by it or before."""
SHOWN_FILES = {"report": ("report.html", "figures.html"), "evaluate": ("systems.json", "figures.html")}
"""Files of stages that the whole run shows too; of those with the same name the later stage's, which has more in it."""


@dataclass
class Record:
    """What a run was, in its folder."""

    folder: Path
    name: str
    status: str = "RUNNING"
    said: str = ""
    """The description, without links to other runs."""
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Name to stage, fingerprint, whether this run built it, and its summary; of an earlier cut, the name begins with it."""

    @property
    def link(self) -> Path:
        """The link file of its run."""
        return self.folder / "links.json"

    def save(self) -> None:
        """Write record.json."""
        content = {key: value for key, value in asdict(self).items() if key != "folder"}
        write_json(self.folder / "record.json", content)

    @classmethod
    def load(cls, folder: Path) -> "Record":
        """What save wrote."""
        return cls(folder, **read_json(folder / "record.json"))

    def built(self) -> set[str]:
        """Stage/fingerprint of what this run built."""
        return {f"{each['stage']}/{each['fingerprint']}" for each in self.stages.values() if each["built"]}


def records(config: Config) -> list[Record]:
    """The runs of a configuration's folder, oldest first; damaged ones are left out."""
    found = []
    for folder in sorted((config.folder / RUNS).glob("*/")):
        with contextlib.suppress(DamagedArtifact, OSError, TypeError):
            found.append(Record.load(folder))
    return found


def without_artifacts(config: Config) -> list[Path]:
    """The folders of ended runs of which no artifact is left."""
    return [
        record.folder
        for record in records(config)
        if record.status != "RUNNING"
        and not any((config.folder / artifact).exists() for artifact in record.built())
    ]


def end_abandoned(config: Config) -> None:
    """End as KILLED the runs, and the searches of `lookback tune`, whose process is gone."""
    tracker = Tracker.from_config(config)
    for record in [each for each in records(config) if each.status == "RUNNING"]:
        with _left_alone(_lock(record.folder)) as left:
            if left:
                record.status, record.said = "KILLED", ABANDONED
                tracker.end_abandoned(record.link, record.said)
                if not (record.folder / TRACKING).exists():
                    RunRecord().save(record.folder)
                record.save()
    for search in searches(config):
        if tracker.is_running(search.run_link):
            with _left_alone(search.lock_file) as left:
                if left:
                    tracker.end_abandoned(search.run_link, ABANDONED)


def searches(config: Config) -> list[Artifact]:
    """What `lookback tune` has begun with a configuration of this name."""
    found = sorted((config.folder / SEARCHES).glob("[!.]*/"))
    return [Artifact(folder.parent, folder.name) for folder in found]


@contextlib.contextmanager
def _left_alone(lock_file: Path) -> Iterator[bool]:
    """Whether no process holds a lock; where none does, none can get it within."""
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
def over(pipeline: Pipeline, tracker: Tracker) -> Iterator["ParentRun"]:
    """The run over what is built within; it ends as FINISHED, FAILED or KILLED."""
    end_abandoned(pipeline.config)
    parent = ParentRun(pipeline, tracker)
    parent.restore()
    try:
        yield parent
    except BaseException as error:
        killed = isinstance(error, KeyboardInterrupt | SystemExit)
        why = str(error).partition("\n")[0]  # what follows may be rows of the log
        with contextlib.suppress(OSError):  # the disk may be full
            parent.end("KILLED" if killed else "FAILED", why or type(error).__name__)
        raise
    parent.end("FINISHED")


class ParentRun:
    """The present run, and the earlier ones that built what it finds up to date."""

    def __init__(self, pipeline: Pipeline, tracker: Tracker) -> None:
        self._pipeline = pipeline
        self._tracker = tracker
        self._record: Record | None = None
        self._plan = RunRecord()
        self._held = contextlib.ExitStack()
        self._seen: dict[str, dict[str, Any]] = {}
        self._earlier = records(pipeline.config)
        self._restored: list[Record] = []

    def restore(self) -> None:
        """See to it that the server has the earlier runs that built what this one needs, for the stages' runs to hang under."""
        wanted = {f"{name}/{node.artifact.name}" for name, node in self._pipeline.nodes.items()}
        for record in self._earlier:
            if record.status == "RUNNING" or not record.built() & wanted:
                continue
            if not self._tracker.is_logged(record.link, record.status):
                self._send(record)
                self._restored.append(record)

    def begin(self) -> None:
        """Called before something is built: from now on there is a run."""
        if self._record is not None:
            return
        import filelock

        config = self._pipeline.config
        began = datetime.datetime.now(datetime.UTC)
        folder = config.folder / RUNS / f"{began:%Y%m%dT%H%M%S%f}-{os.getpid()}"
        folder.mkdir(parents=True)
        self._held.enter_context(filelock.FileLock(_lock(folder)))
        self._record = Record(folder, run_name(config, list(self._pipeline.nodes)))
        self._record.save()
        self._tracker.start(**self._identity(self._record))

    @property
    def own_link(self) -> Path | None:
        """The link file of this run; None where it has built nothing."""
        return self._record.link if self._record is not None else None

    def link_of(self, node: Node) -> Path | None:
        """The link file of the run that built a stage: this one, or an earlier one; None where nobody remembers."""
        key = f"{node.stage.name}/{node.artifact.name}"
        known = [*self._earlier, *([self._record] if self._record is not None else [])]
        return next((each.link for each in reversed(known) if key in each.built()), None)

    def saw(self, name: str, node: Node, *, built: bool) -> None:
        """A stage is up to date; `name` is what it is called here (of an earlier cut, with the cut)."""
        summary = read_manifest(node.artifact.folder)["summary"]
        self._seen[name] = {
            "stage": node.stage.name,
            "fingerprint": node.artifact.name,
            "built": built,
            "summary": summary,
        }
        if self._record is not None:
            self._record.stages = dict(self._seen)
            self._record.save()

    def end(self, status: str, why: str = "") -> None:
        """Write down and log how it ended, and give the restored runs their links."""
        with self._held:
            if self._record is not None:
                self._record.status = status
                self._record.stages = dict(self._seen)
                self._record.said = f"**{status}**: {why}" if why else self._judge()
                self._fill(self._plan)
                self._plan.save(self._record.folder)
                self._record.save()
                self._send(self._record)
            for record in self._restored:
                self._send(record)

    def _send(self, record: Record) -> None:
        if (record.folder / TRACKING).exists():
            self._tracker.replay(
                folder=record.folder,
                status=record.status,
                **self._identity(record),
            )

    def _identity(self, record: Record) -> RunIdentity:
        runs = {
            name: self._tracker.linked_run(self._artifact(each).run_link)
            for name, each in record.stages.items()
        }
        tags = {f"{STAGE_RUN}{name}": run_id for name, run_id in runs.items() if run_id is not None}
        stages = [self._line(name, each, runs[name]) for name, each in record.stages.items()]
        table = "\n".join(["### Stages", "", "| stage | | what it said |", "| --- | --- | --- |", *stages])
        note = "\n\n".join(part for part in (record.said, table if stages else "") if part)
        protocol = self._pipeline.config.split.protocol
        return {
            "stage": "run",
            "fingerprint": record.folder.name,
            "run_name": record.name,
            "tags": provenance.tags() | tags | {"lookback.protocol": protocol, NOTE: note or "running"},
            "link_file": record.link,
        }

    def _line(self, name: str, each: dict[str, Any], run_id: str | None) -> str:
        what = "built" if each["built"] else "up to date"
        address = self._address(run_id)
        link = f"[{what}]({address})" if address is not None else what
        return f"| {name} | {link} | {each['summary']} |"

    def _address(self, run_id: str | None) -> str | None:
        """Address of a run in MLflow's UI; None where there is no run, or the server is away."""
        if run_id is None:
            return None
        return self._tracker.attempt(lambda _: queries.address(self._tracker.uri, run_id))

    def _artifact(self, each: dict[str, Any]) -> Artifact:
        return Artifact(self._pipeline.config.folder / each["stage"], each["fingerprint"])

    # --- what is said of it ---

    def _fill(self, plan: RunRecord) -> None:
        """All resolved settings, and of the stages: headline numbers, data sets, tags that hold for all, files to look at."""
        config = self._pipeline.config
        plan.params(config.model_dump(mode="json"))
        plan.tags |= provenance.tags()
        points: dict[str, Point] = {}
        datasets: list[DatasetInput] = []
        for name, each in self._seen.items():
            artifact = self._artifact(each)
            for key, value in read_manifest(artifact.folder).get("resolved", {}).items():
                plan.param(f"resolved.{key}", value)
            said = RunRecord.load(artifact.folder)
            points |= {point.name: point for point in said.parent_points}
            datasets += [
                data for data in said.datasets if data not in datasets and name in self._pipeline.nodes
            ]
            plan.tags |= {key: value for key, value in said.tags.items() if key in _SHARED_TAGS}
        shown = {file: name for name in self._seen for file in SHOWN_FILES.get(name, ())}
        for file, name in shown.items():
            folder = self._artifact(self._seen[name]).folder
            plan.artifact(os.path.relpath(folder / file, self._folder()), name)
        plan.parent_points, plan.points = [], [*plan.points, *points.values()]
        plan.datasets = datasets
        if "ingest" in self._pipeline.nodes:
            plan.tag("lookback.data", fingerprint(self._pipeline.nodes["ingest"].inputs))
        if "features" in self._seen:
            plan.tag("lookback.input.features", self._seen["features"]["fingerprint"])

    def _folder(self) -> Path:
        assert self._record is not None
        return self._record.folder

    def _judge(self) -> str:
        """How good it is beside baselines and earlier runs, and the registry's decision; in short for the list of runs too."""
        if "evaluate" not in self._seen:
            return ""
        from pipeline.evaluation import comparison
        from pipeline.evaluation.report import EvaluationReport
        from pipeline.reporting import run_description

        evaluate, built = self._artifact(self._seen["evaluate"]).folder, self._seen["evaluate"]["built"]
        report = EvaluationReport.load(evaluate)
        metric = run_description.metric_of(report, self._pipeline.config.evaluate.gate_metric)
        said, _, table = run_description.of_evaluation(report, metric).partition("\n\n")
        earlier = self._evaluations(evaluate) if built else {}
        found = comparison.against_earlier(evaluate, earlier, metric, self._pipeline.config.seed)
        numbers, verdict = run_description.row_of(report, metric)
        for name, value in numbers.items():
            self._plan.metric(name, value)
        self._plan.tag(run_description.AGAINST_BASELINES, verdict)
        if built:
            first = "no earlier run has the same targets"
            self._plan.tag(
                run_description.AGAINST_EARLIER, found.against_best if found is not None else first
            )
        else:
            self._plan.tag(run_description.AGAINST_EARLIER, "the evaluation of an earlier run, as it was")
        self._tracker.offer(run_description.view_of(metric))
        parts = [f"{said} {found.sentence}", table, found.table] if found is not None else [said, table]
        return "\n\n".join([*parts, *self._decision()])

    def _evaluations(self, evaluate: Path) -> dict[str, Path]:
        """The newest other evaluations on the same targets, by what the UI calls their runs."""
        from pipeline.evaluation import comparison
        from pipeline.reporting import run_description

        found: dict[Path, str] = {}
        for record in reversed(self._earlier):
            each = record.stages.get("evaluate")
            if record.status != "FINISHED" or each is None or not each["built"]:
                continue
            folder = self._artifact(each).folder
            with contextlib.suppress(OSError, DamagedArtifact, KeyError):
                if folder != evaluate and folder not in found and comparison.same_targets(evaluate, folder):
                    run_id = self._tracker.linked_run(record.link)
                    address = self._address(run_id)
                    called = f"{record.name} of {_began(record)}"
                    found[folder] = f"[{called}]({address})" if address is not None else called
            if len(found) == run_description.MAX_EARLIER:
                break
        return {name: folder for folder, name in found.items()}

    def _decision(self) -> Iterator[str]:
        """The version that was registered, and what was decided about it."""
        config = self._pipeline.config
        if "publish" not in self._seen or not config.tracking.enabled:
            return
        with contextlib.suppress(ServerAway, LookbackError):
            number = registry.version_of_bundle(config, self._artifact(self._seen["publish"]))
            models, name = registry.Registry.from_config(config), registry.model_name(config)
            if number is not None and (version := models.version(name, number)) is not None:
                reason = models.tags(version).get(f"{GATE}.reason", "")
                yield f"### Registry\n\n[{name} version {number}](#/models/{name}/versions/{number}): {version.gate}: {reason}"


_SHARED_TAGS = ("lookback.device", "lookback.bundle_digest", "lookback.model_version")


def run_name(config: Config, stages: list[str]) -> str:
    """What a whole run is called: `hstu-4x64 ml-1m temporal`; without training `ingest score ml-1m temporal`."""
    what = _model(config) if "train" in stages else " ".join(stages)
    return f"{what} {config.name} {config.split.protocol}"


def stage_run_name(config: Config, stage: str) -> str:
    """What a stage's run is called: its name, the model if it is of one, the data and the protocol."""
    of_model = "train" in order(config, [stage])
    words = [
        stage,
        *([_model(config)] if of_model else []),
        config.name,
        *([] if stage == "ingest" else [config.split.protocol]),
    ]
    return " ".join(words)


def _model(config: Config) -> str:
    return f"{config.model.block}-{config.model.num_blocks}x{config.model.dim}"


def _began(record: Record) -> str:
    """When a run began, UTC, to the minute."""
    return f"{datetime.datetime.strptime(record.folder.name[:15], '%Y%m%dT%H%M%S'):%Y-%m-%d %H:%M}"  # noqa: DTZ007


def _lock(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.lock")
