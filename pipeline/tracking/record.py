"""Record of a stage's run, kept in the stage's folder so that it can be sent to any tracking server later."""

import datetime
import json
import re
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from features.printable import printable
from pipeline.artifacts.files import known_digest, read_json, write_json
from pipeline.artifacts.store import MANIFEST, RECORD, read_manifest
from pipeline.credentials import masked
from pipeline.errors import DamagedArtifact

TRACKING = RECORD
TARGETS_DIGEST = "lookback.targets_digest"
"""Tag of an evaluation: sha256 of its targets.parquet."""
TABLES_TAG = "mlflow.loggedArtifacts"
"""Tag that lists the tables for MLflow's UI and `load_table`."""


def allowed(name: str) -> str:
    """Replace the characters that MLflow refuses in a name: `ndcg@10` becomes `ndcg_at_10`, others `_`."""
    return re.sub(r"[^\w\-. :/]", "_", name.replace("@", "_at_"))[:250]


def now_ms() -> int:
    """Current time, in milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


class Point(NamedTuple):
    """Value of a metric at a step."""

    name: str
    value: float
    step: int
    timestamp: int
    """milliseconds since the epoch"""


class DatasetInput(NamedTuple):
    """Input data of a stage."""

    name: str
    digest: str
    context: str
    """training, validation or test"""
    source: str
    rows: int


@dataclass
class RunRecord:
    """Settings, metrics, tags, data sets and files that a stage logs; credentials in them are masked."""

    param_values: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    points: list[Point] = field(default_factory=list)
    parent_points: list[Point] = field(default_factory=list)
    datasets: list[DatasetInput] = field(default_factory=list)
    artifacts: list[tuple[str, str]] = field(default_factory=list)
    model: str = ""
    """Name of the model trained by this stage; empty where it trained none."""
    started: int = field(default_factory=now_ms)
    ended: int = 0

    def param(self, name: str, value: Any) -> None:
        """Add a setting; a mapping becomes one per entry, `name.entry`."""
        if isinstance(value, Mapping) and value:
            for key, entry in value.items():
                self.param(f"{name}.{key}", entry)
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
            self.param_values[allowed(name)] = masked(text)[:6000]

    def params(self, values: Mapping[str, Any]) -> None:
        """Add several settings."""
        for name, value in values.items():
            self.param(name, value)

    def metric(self, name: str, value: float, step: int = 0) -> None:
        """Add a metric of this stage at a step (an epoch)."""
        self.points.append(Point(allowed(name), float(value), step, now_ms()))

    def parent_metric(self, name: str, value: float, step: int = 0) -> None:
        """Add a metric to this stage's run and to the parent run."""
        self.metric(name, value, step)
        self.parent_points.append(self.points[-1])

    def tag(self, name: str, value: str) -> None:
        """Add a tag."""
        self.tags[name] = masked(value)[:5000]

    def artifact(self, path: str, to: str = "") -> None:
        """Add a file or folder, by its path in the stage's folder, to the run's folder `to`."""
        self.artifacts.append((path, to))

    def table(self, path: str, to: str = "") -> None:
        """Add a file {"columns": [...], "data": [[...], ...]} that the UI shows as a table."""
        self.artifact(path, to)
        known = json.loads(self.tags.get(TABLES_TAG, "[]"))
        shown = f"{to}/{path}" if to else path
        self.tag(TABLES_TAG, json.dumps([*known, {"path": shown, "type": "table"}]))

    def dataset(self, name: str, digest: str, context: str, source: str, rows: int) -> None:
        """Add a data set; context is training, validation or test."""
        self.datasets.append(DatasetInput(name, digest, context, masked(source), rows))

    def save(self, folder: Path) -> None:
        """Write tracking.json; sets the end time."""
        self.ended = now_ms()
        write_json(folder / TRACKING, asdict(self))

    @classmethod
    def load(cls, folder: Path) -> "RunRecord":
        """Read tracking.json; made anew from the manifest beside it, with a line on stderr, where it is missing or damaged.

        Raises DamagedArtifact where there is no manifest either.
        """
        manifest = read_manifest(folder) if (folder / MANIFEST).exists() else None
        try:
            _check_digest(folder, manifest or {})
            content = read_json(folder / TRACKING)
            for name, kind in (("points", Point), ("parent_points", Point), ("datasets", DatasetInput)):
                content[name] = [kind(*row) for row in content[name]]
            content["artifacts"] = [(path, to) for path, to in content["artifacts"]]
            return cls(**content)
        except (DamagedArtifact, OSError, TypeError, ValueError, KeyError) as error:
            if manifest is None:
                raise DamagedArtifact(f"{folder / TRACKING}: is damaged ({error})") from None
            text = f"tracking: {folder / TRACKING}: is damaged; its run gets the settings and counts of {MANIFEST} alone"
            print(printable(text), file=sys.stderr, flush=True)
            return cls._of_manifest(manifest)

    @classmethod
    def _of_manifest(cls, manifest: Mapping[str, Any]) -> "RunRecord":
        """Settings, numbers and time of a manifest."""
        ended = datetime.datetime.fromisoformat(manifest["created_utc"])
        began = ended - datetime.timedelta(seconds=manifest["seconds"])
        made = cls(started=int(began.timestamp() * 1000), ended=int(ended.timestamp() * 1000))
        made.params(manifest["settings"])
        made.points = [
            Point(allowed(name), float(value), 0, made.ended)
            for name, value in manifest.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        ]
        return made


def _check_digest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Raise DamagedArtifact where tracking.json is not as the manifest has it."""
    known = manifest.get("files", {}).get(TRACKING)
    if known is not None and known_digest(folder / TRACKING) != known[1]:
        raise DamagedArtifact("its digest differs from the manifest's")
