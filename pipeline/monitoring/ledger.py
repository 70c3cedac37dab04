"""Ledger of deliveries: a record per finished scoring, kept when its lists are pruned.

`<data_dir>/<name>/score/.deliveries/<fingerprint>.json` is the record of one scoring, so that a damaged file costs one
delivery; `score/deliveries.parquet` is the table of all of them, written anew from the records.
"""

import contextlib
import datetime
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline.artifacts.files import fingerprint, fsync, read_json, temporary_beside, write_json
from pipeline.artifacts.store import Artifact, read_manifest
from pipeline.config import Config
from pipeline.errors import ConfigError, DamagedArtifact, optional
from pipeline.experiment_section import ExperimentConfig

RECORDS, TABLE = ".deliveries", "deliveries.parquet"
DAY = 86_400_000_000
"""Microseconds."""


@dataclass(frozen=True)
class ShadowSource:
    """System of lists that were made beside the delivered ones."""

    model_version: int | None
    """None for a baseline"""
    bundle_digest: str
    """Empty for a baseline"""
    start: str = ""
    """Bundle digest of the version that an update started from; empty for others"""
    model_time: int | None = None
    """Time of the newest event that the model knew, microseconds since the epoch"""


@dataclass(frozen=True)
class ArmSource:
    """System of an experiment's arm, and its users."""

    name: str
    share: float
    """Share of the users asked for"""
    model_version: int | None
    """None for a baseline"""
    bundle_digest: str
    """Empty for a baseline"""
    users: int
    """Users scored"""


@dataclass(frozen=True)
class DeliveredExperiment:
    """Experiment whose arms the lists were made by."""

    name: str
    salt: str
    arms: tuple[ArmSource, ...]
    """In the order of the configuration, on which the assignment depends"""

    @property
    def shares(self) -> dict[str, float]:
        """Arm to share of the users asked for."""
        return {arm.name: arm.share for arm in self.arms}


@dataclass(frozen=True)
class Promise:
    """Realised metric of each night of the test of the delivered system's evaluation, in a window after the night."""

    metric: str
    nights: tuple[float, ...]


@dataclass(frozen=True)
class Delivery:
    """Finished scoring: time, system, and counts of its lists."""

    folder: str
    """Fingerprint of the score artifact, which may be pruned"""
    delivered_utc: str
    """ISO 8601"""
    log_time: int
    """Time of the request, microseconds since the epoch; of a log without times its newest position"""
    before: int
    """Events from this time on came after the lists, microseconds since the epoch"""
    timed: bool
    """Whether the log has times"""
    features: str
    """Fingerprint of the features that the lists were made from"""
    model_version: int | None
    bundle_digest: str
    settings_digest: str
    k: int
    exclude_seen: bool
    users: int
    cold_users: int
    short_lists: int
    overlap: float | None
    """Mean overlap of the users' lists with those of the delivery before, in [0, 1]"""
    experiment: DeliveredExperiment | None = None
    model_time: int | None = None
    """Time of the newest event that the model knew, microseconds since the epoch"""
    events: int | None = None
    """Events that the lists were made from; None in records of lists that were not counted so"""
    shadows: Mapping[str, ShadowSource] = field(default_factory=dict)
    promise: Mapping[str, Promise] = field(default_factory=dict)
    """Window in days, as text, to the promise of the evaluation"""

    @property
    def promised_arm(self) -> str | None:
        """Arm of the system that `promise` is about; None without an experiment, or where no arm has it."""
        arms = () if self.experiment is None else self.experiment.arms
        return next((arm.name for arm in arms if arm.bundle_digest == self.bundle_digest), None)

    @property
    def night(self) -> str:
        """Time of the log, ISO 8601, UTC."""
        moment = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
        return (moment + datetime.timedelta(microseconds=self.log_time)).isoformat(timespec="seconds")

    @property
    def model_age_days(self) -> float | None:
        """Time from the newest event that the model knew to the lists, in days; None where unknown."""
        return None if self.model_time is None else max(self.log_time - self.model_time, 0) / DAY

    def end(self, days: float) -> int:
        """End of the window of so many days after the lists, microseconds since the epoch."""
        return self.before + round(days * DAY)


def enter(config: Config, lists: Artifact, promise: Mapping[str, Promise] | None = None) -> None:
    """Enter a finished score artifact, unless it is; `promise`: of the evaluation of its system."""
    stage_folder = lists.stage_folder
    if _read(_record(stage_folder, lists.name)) is not None and (stage_folder / TABLE).exists():
        return
    delivery = of_manifest(config, lists.name, read_manifest(lists.folder))
    delivery = replace(delivery, promise=promise or {})
    import filelock

    (stage_folder / RECORDS).mkdir(exist_ok=True)
    with filelock.FileLock(stage_folder / ".deliveries.lock"):
        write_json(_record(stage_folder, lists.name), asdict(delivery))
        write_table(stage_folder, deliveries(stage_folder))


def is_entered(lists: Artifact) -> bool:
    """Whether the ledger has a score artifact."""
    return _read(_record(lists.stage_folder, lists.name)) is not None


def of_manifest(config: Config, name: str, manifest: Mapping[str, Any]) -> Delivery:
    """Delivery of a finished score artifact, from its manifest."""
    time = manifest["request_time"]
    timed = config.events.timestamp_unit != "position"
    return Delivery(
        folder=name,
        delivered_utc=manifest["created_utc"],
        log_time=time,
        before=time if timed and manifest["settings"].get("score.at") is not None else time + 1,
        timed=timed,
        features=manifest["inputs"]["features"],
        model_version=manifest["model_version"],
        bundle_digest=manifest["bundle_digest"],
        settings_digest=fingerprint(manifest["settings"]),
        k=manifest["settings"]["score.k"],
        exclude_seen=manifest["exclude_seen"],
        users=manifest["users"],
        cold_users=manifest["cold_users"],
        short_lists=manifest["short_lists"],
        overlap=(manifest.get("drift") or {}).get("overlap"),
        experiment=_experiment(manifest.get("experiment")),
        model_time=manifest.get("model_time"),
        events=manifest.get("events_before_request"),
        shadows={name: ShadowSource(**source) for name, source in manifest.get("shadows", {}).items()},
    )


def _experiment(record: Mapping[str, Any] | None) -> DeliveredExperiment | None:
    if record is None:
        return None
    return DeliveredExperiment(
        record["name"], record["salt"], tuple(ArmSource(**arm) for arm in record["arms"])
    )


def check_unchanged(settings: ExperimentConfig, entered: Sequence[Delivery]) -> None:
    """Check that an experiment that has delivered lists has the salt and the arms of the newest ones.

    Raises ConfigError otherwise: users would change their arms.
    """
    run = [
        delivery for delivery in entered if delivery.experiment and delivery.experiment.name == settings.name
    ]
    if not run or (before := run[-1].experiment) is None:
        return
    for key, now, earlier in (
        ("salt", settings.salt, before.salt),
        ("arms", list(settings.arms.items()), list(before.shares.items())),
    ):
        if now != earlier:
            raise ConfigError(
                f"experiment.{key}: received {_shown(now)}, but {settings.name!r} has run with {_shown(earlier)} since "
                f"{run[0].night}: users would change their arms in the middle; set it back, or begin another experiment "
                "with another experiment.name"
            )


def _shown(value: str | list[tuple[str, float]]) -> str:
    if isinstance(value, str):
        return repr(value)
    return "{ " + ", ".join(f"{name} = {share:g}" for name, share in value) + " }"


def deliveries(stage_folder: Path, *, say: bool = False) -> list[Delivery]:
    """Deliveries of a score folder, oldest first; damaged records are left out and, with `say`, named on stderr."""
    entered = []
    for path in sorted((stage_folder / RECORDS).glob("[!.]*.json")):
        delivery = _read(path)
        if delivery is not None:
            entered.append(delivery)
        elif say:
            remedy = (
                "it is entered again by: lookback run score --force --config …"
                if (stage_folder / path.stem).exists()
                else "its lists are gone too: remove the file"
            )
            text = f"{path}: is damaged, and its delivery left out; {remedy}"
            print(text, file=sys.stderr, flush=True)
    return sorted(entered, key=lambda delivery: (delivery.delivered_utc, delivery.folder))


def preceding(stage_folder: Path, features: str, *, say: bool = False) -> list[Delivery]:
    """Deliveries that a log may judge: all but those made from the same features at its end; say: as for `deliveries`."""
    return [
        delivery
        for delivery in deliveries(stage_folder, say=say)
        if delivery.features != features or delivery.before == delivery.log_time
    ]


def digest(entered: Sequence[Delivery]) -> str:
    """Digest of deliveries."""
    return fingerprint([asdict(delivery) for delivery in entered])


def open_lists(stage_folder: Path, days: float) -> Iterator[str]:
    """Score artifacts that `prune` keeps: the last lists of each night whose window reaches beyond the newest night."""
    entered = [delivery for delivery in deliveries(stage_folder) if delivery.timed]
    newest = max((delivery.log_time for delivery in entered), default=0)
    of_night = {delivery.log_time: delivery for delivery in entered}
    for delivery in of_night.values():
        if delivery.end(days) > newest:
            yield delivery.folder


def write_table(stage_folder: Path, entered: Sequence[Delivery]) -> None:
    """Write deliveries.parquet, a row per delivery (per arm where there is an experiment) and shadow, oldest first."""
    import polars as pl

    rows = []
    for delivery in entered:
        row: dict[str, object] = {
            "delivered_utc": datetime.datetime.fromisoformat(delivery.delivered_utc),
            "log_time": delivery.log_time if delivery.timed else None,
            "model_version": delivery.model_version,
            "bundle_digest": delivery.bundle_digest,
            "settings_digest": delivery.settings_digest,
            "folder": delivery.folder,
            "arm": None,
            "shadow": None,
        }
        by_arm = (
            {"arm": arm.name, "model_version": arm.model_version, "bundle_digest": arm.bundle_digest}
            for arm in (() if delivery.experiment is None else delivery.experiment.arms)
        )
        rows += [row | own for own in by_arm] or [row]
        rows += [
            row
            | {"shadow": name, "model_version": source.model_version, "bundle_digest": source.bundle_digest}
            for name, source in delivery.shadows.items()
        ]
    time = pl.Datetime("us", "UTC")
    integer, text = pl.Int64(), pl.String()
    kinds: dict[str, pl.DataType] = {"delivered_utc": time, "log_time": integer, "model_version": integer}
    kinds |= dict.fromkeys(("bundle_digest", "settings_digest", "folder", "arm", "shadow"), text)
    table = pl.DataFrame(rows, schema=kinds).with_columns(pl.col("log_time").cast(time))
    temporary = temporary_beside(stage_folder / TABLE)
    table.write_parquet(temporary)
    fsync(temporary)
    temporary.replace(stage_folder / TABLE)


def repair_table(stage_folder: Path) -> None:
    """Write deliveries.parquet anew from the records where it is missing or damaged, with a line on stderr."""
    import polars as pl

    if not (stage_folder / RECORDS).exists():
        return
    with contextlib.suppress(OSError, pl.exceptions.PolarsError):
        pl.read_parquet(stage_folder / TABLE)
        return
    print(f"{stage_folder / TABLE}: is missing or damaged: written anew", file=sys.stderr, flush=True)
    with optional("table of deliveries"):
        write_table(stage_folder, deliveries(stage_folder))


def _record(stage_folder: Path, name: str) -> Path:
    return stage_folder / RECORDS / f"{name}.json"


def _read(path: Path) -> Delivery | None:
    """Record of a delivery; None where it is missing or damaged."""
    try:
        content = read_json(path)
        shadows = {name: ShadowSource(**source) for name, source in content["shadows"].items()}
        promise = {
            days: Promise(own["metric"], tuple(map(float, own["nights"])))
            for days, own in content["promise"].items()
        }
        content |= {"experiment": _experiment(content.get("experiment"))}
        content.pop("arm", None)  # always null in the first records
        return Delivery(**{**content, "shadows": shadows, "promise": promise})
    except (OSError, DamagedArtifact, TypeError, KeyError, AttributeError, ValueError):
        return None
