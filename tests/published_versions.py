"""Small log, published, and later days of it in other numberings: versions to start updates from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from features import content
from features.histories import splits
from features.histories.jagged import JaggedHistories
from features.histories.log_facts import LogFacts
from features.settings import ContentSettings, EventSettings, HistorySettings, ItemSettings
from models import checkpoint
from models.retrieval import content_map
from models.settings.encoder import EncoderSettings
from models.settings.training import TrainSettings
from pipeline.config import Config
from pipeline.modelling.training_facts import TrainingFacts
from pipeline.orchestration.context import Context
from pipeline.serving import bundle_cache
from pipeline.serving.bundle import Bundle
from pipeline.serving.start_version import StartVersion
from pipeline.stages import publish, train
from pipeline.tracking.live import LiveRun
from pipeline.tracking.record import RunRecord
from pipeline.tracking.registry import ModelSource
from tests.evaluation_reports import evaluation_report

HOUR = 3_600_000_000
COLUMNS: dict[str, str | int] = {"user_id": 1, "item_id": 2, "timestamp": 3, "event_type": 4}
MODEL = EncoderSettings(dim=4, num_heads=1, num_blocks=1)
USERS, ITEMS = [f"u{number}" for number in range(12)], [f"i{number}" for number in range(1, 9)]


@dataclass(frozen=True)
class Event:
    """An event of the log, by its ids."""

    user: str
    item: str
    hour: int
    kind: str = "view"


def first_days() -> list[Event]:
    """Each user goes round the items from one of their own, an event every hour."""
    return [
        Event(user, ITEMS[(number + hour) % len(ITEMS)], hour)
        for number, user in enumerate(USERS)
        for hour in range(8)
    ]


def later_days() -> list[Event]:
    """Without the item i3; old users go on, with new items (i0 of known content, x9 of none) and a new event type; a new user."""
    before = [event for event in first_days() if event.item != "i3"]
    after = [Event(user, "i0", 20 + number % 3, "add") for number, user in enumerate(USERS[:6])]
    return [
        *before,
        *after,
        *(Event("a-new-user", item, 21 + place) for place, item in enumerate(["x9", "i1", "i2"])),
    ]


def write_log(folder: Path, events: Sequence[Event]) -> None:
    """The folders of the stages ingest and features."""
    users, items, kinds = (
        sorted({getattr(event, name) for event in events}) for name in ("user", "item", "kind")
    )
    ordered = sorted(events, key=lambda event: (event.user, event.hour))
    counts = [sum(event.user == user for event in events) for user in users]
    histories = JaggedHistories(
        np.concatenate(([0], np.cumsum(counts))),
        np.array([items.index(event.item) + 1 for event in ordered], np.int32),
        np.array([event.hour * HOUR for event in ordered], np.int64),
        np.array([kinds.index(event.kind) + 1 for event in ordered], np.int16),
        np.full(len(events), np.nan, np.float32),
    )
    features, ingest = folder / "features", folder / "ingest"
    for each in (features, ingest):
        each.mkdir(parents=True)
    histories.save(features)
    split = splits.temporal(histories, len(items), test_fraction=0.2, validation_fraction=0.2)
    split.save(features / "split")
    replace(LogFacts.of(histories), now=int(histories.time.max())).save(features)
    ids = pl.Series("item_id", items)
    categories = [["odd" if item[-1] in "13579" else "even"] if item[0] == "i" else None for item in items]
    table = pl.DataFrame({"item_id": ids, "categories": categories})
    table.write_parquet(ingest / "items.parquet")
    content.build(features, table, np.ones(len(items), bool), ContentSettings())
    shown = table.with_columns(
        title=pl.lit(None, dtype=pl.String), item_index=pl.int_range(1, len(items) + 1)
    )
    shown.write_parquet(features / "items.parquet")
    pl.DataFrame({"user_index": range(len(users)), "user_id": users}).write_parquet(
        features / "users.parquet"
    )
    (features / "event_types.json").write_text(str(kinds).replace("'", '"'))


@dataclass
class Versions:
    """Published versions of a log in a folder, and the log as it is now."""

    folder: Path
    bundles: list[Path]

    def context(self, days: str, stage: str, start: ModelSource | None = None, **sections: Any) -> Context:
        """Context of a stage over the log of some days."""
        given: dict[str, Any] = {
            "model": MODEL,
            "train": TrainSettings(epochs=1, precision="fp32", compile="off", replay=0.25),
            "items": ItemSettings(path="items.csv"),
            "history": HistorySettings(max_length=10),
        }
        config = Config(
            name="tiny", events=EventSettings(path="log.csv", columns=COLUMNS), **given | sections
        )
        inputs = {name: self.folder / days / name for name in ("ingest", "features", "train", "evaluate")}
        live = LiveRun(None, lambda _: None, lambda _: None)
        (folder := self.folder / days / stage).mkdir(exist_ok=True)
        return Context(
            config,
            folder,
            inputs,
            {},
            None,
            RunRecord(),
            live,
            folder.parent,
            show_progress=False,
            start=start,
        )

    @property
    def newest(self) -> ModelSource:
        """The newest version."""
        return ModelSource(len(self.bundles), "digest", f"models:/lookback-tiny/{len(self.bundles)}")

    def update(self, days: str, **sections: Any) -> Bundle:
        """Update of the newest version by the log of some days."""
        for name, stage in (("train", train), ("publish", publish)):
            ctx = self.context(days, name, self.newest, **sections)
            stage.build(ctx)
        self.bundles.append(ctx.folder / "bundle")
        return Bundle.open(self.bundles[-1])

    def start(self, days: str = "later", **sections: Any) -> StartVersion:
        """The newest version as the start of an update."""
        ctx = self.context(days, "train", self.newest, **sections)
        return StartVersion.open(ctx.config, self.newest, ctx.dataset, ctx.inputs["ingest"])


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Versions]:
    """Make the first days' version."""

    def made(**sections: Any) -> Versions:
        write_log(tmp_path / "first", first_days())
        write_log(tmp_path / "later", later_days())
        versions = Versions(tmp_path, [])
        monkeypatch.setattr(content_map, "MIN_ITEMS", len(ITEMS))
        monkeypatch.setattr(
            bundle_cache, "bundle_folder", lambda _, source: versions.bundles[source.version - 1]
        )
        ctx = versions.context("first", "train", **sections)
        trained = ctx.trainer().fit_split()
        checkpoint.save_model(trained.result.model, ctx.folder)
        trained.numbering.save(ctx.folder / "items.npy")
        TrainingFacts.of(trained.selection).save(ctx.folder)
        ctx = versions.context("first", "publish", **sections)
        evaluation_report({"lookback": {}}, targets=0).save(ctx.inputs["evaluate"])
        publish.build(ctx)
        versions.bundles.append(ctx.folder / "bundle")
        return versions

    return made
