"""An update in the stages train and publish: a small log, published, then with later days, in other numberings."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from features import content
from features.histories import splits
from features.histories.jagged import JaggedHistories
from features.histories.log_facts import LogFacts
from features.settings import ContentSettings, EventSettings, HistorySettings, ItemSettings
from models import checkpoint
from models.encoder.encoder import Encoder
from models.retrieval import content_map
from models.settings.encoder import EncoderSettings
from models.settings.training import TrainSettings
from pipeline.artifacts import source_files
from pipeline.artifacts.files import read_json
from pipeline.config import Config
from pipeline.errors import LookbackError
from pipeline.evaluation.evaluated_model import EvaluatedModel
from pipeline.modelling.training_facts import TrainingFacts
from pipeline.orchestration.context import Context
from pipeline.serving import bundle_cache
from pipeline.serving.bundle import Bundle
from pipeline.serving.start_version import StartVersion, lists_any
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


def vectors(bundle: Bundle) -> dict[str, list[float]]:
    """Item vectors by id."""
    rows = bundle.recommender.encoder.items.all().tolist()  # type: ignore[union-attr]
    return dict(zip(bundle.items.ids, rows[1:], strict=False))


def test_weights_are_carried_over_by_id(published: Callable[..., Versions]) -> None:
    versions = published()
    start = versions.start()
    assert start.num_new == 6 + 2, "a new user's first event is no target"
    numbering = start.numbering(np.arange(start.dataset.num_items + 1, dtype=np.int32))
    ids = start.dataset.items["item_id"].gather(np.flatnonzero(numbering.known) - 1).to_list()
    assert ids == ["i0", "i1", "i2", "i4", "i5", "i6", "i7", "i8", "x9"]
    initial = start.initial(numbering)
    before = vectors(Bundle.open(versions.bundles[0]))
    own = dict(zip(ids, initial.item[1:].tolist(), strict=True))
    assert own.pop("x9") == 0, "fresh"
    rows = {item: start.encoder.items.all()[number].tolist() for item, number in own.items()}
    from_content = rows.pop("i0")
    assert rows == {item: before[item] for item in rows}
    even = np.mean([before[item] for item in ("i2", "i4", "i6", "i8")], axis=0)
    odd = np.mean([before[item] for item in ("i1", "i3", "i5", "i7")], axis=0)
    assert np.abs(from_content - even).max() < np.abs(from_content - odd).max()
    assert initial.event_type is not None
    assert initial.event_type.tolist() == [0, 0, 1], "add is new, view was the first"
    fresh = Encoder(MODEL, numbering.num_items, 2, 10)
    initial.copy_into(fresh)
    types, former = (encoder.get_parameter("events.types.weight") for encoder in (fresh, start.encoder))
    assert torch.equal(types[2], former[1])
    assert not torch.equal(types[1], former[1])


def test_an_update_of_an_update(published: Callable[..., Versions]) -> None:
    versions = published()
    first = Bundle.open(versions.bundles[0])
    bundle = versions.update("later")
    assert bundle.items.ids.to_list() == ["i0", "i1", "i2", "i4", "i5", "i6", "i7", "i8", "x9"]
    assert (bundle.description["start"], bundle.description["deployed"]) == ("digest", "updated")
    assert bundle.description["event_types"] == ["add", "view"]
    assert (first.newest, bundle.newest) == (7 * HOUR, 23 * HOUR)
    assert bundle.description["full_training"] == first.newest
    old, new = vectors(first), vectors(bundle)
    moved = {item: np.abs(np.subtract(new[item], old[item])).max() for item in set(old) & set(new)}
    assert 0 < max(moved.values()) < 0.05, "a few steps at a rate of .001"
    (lists,) = bundle.recommend_users(["a-new-user"], 3)
    assert len(lists[0]) == 3

    stayed = [event for event in later_days() if event.user != "u9"]
    write_log(versions.folder / "last", [*stayed, Event("u7", "i5", 40)])
    again = versions.update("last")
    assert again.description["full_training"] == first.newest
    assert "u9" not in again.users.ids
    assert lists_any(versions.bundles[2], pl.Series(["u9"])), "the training from scratch has learned from it"
    assert not lists_any(versions.bundles[2], pl.Series(["nobody"]))
    evaluated = [EvaluatedModel.open(folder) for folder in versions.bundles]
    for model in evaluated[1:]:
        assert (model.features, model.trained_until) == (evaluated[0].features, evaluated[0].trained_until)
        assert model.items.ids.equals(evaluated[0].items.ids)
        own, other = (each.recommender.encoder.state_dict() for each in (model, evaluated[0]))  # type: ignore[union-attr]
        assert all(torch.equal(own[name], other[name]) for name in other)
    assert read_json(versions.bundles[2] / "full" / "bundle.json")["digest"] == first.digest


def test_the_same_update_twice_is_the_same_bundle(published: Callable[..., Versions]) -> None:
    versions = published()
    digest = versions.update("later").digest
    versions.bundles.pop()
    assert versions.update("later").digest == digest


def test_a_model_that_reads_content_keeps_the_features_it_knows(published: Callable[..., Versions]) -> None:
    reads = {"model": replace(MODEL, item_content=True)}
    versions = published(**reads)
    bundle = versions.update("later", **reads)
    encoder = bundle.recommender.encoder  # type: ignore[union-attr]
    before = Bundle.open(versions.bundles[0])
    i0, i2 = (int(bundle.items.encode(pl.Series([item]))[0]) for item in ("i0", "i2"))
    former = int(before.items.encode(pl.Series(["i2"]))[0])
    known = before.recommender.encoder.items.category_index[former]  # type: ignore[union-attr]
    assert torch.equal(encoder.items.category_index[i0], known), "both are even"
    assert torch.equal(encoder.items.category_index[i2], known)
    assert encoder.items.trained is not None
    assert i0 in encoder.items.trained.tolist()


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"model": replace(MODEL, dim=8), "history": HistorySettings(max_length=20)},
            r"settings: model.dim = 4 there, 8 here; history.max_length = 10 there, 20 here; train from scratch: lookback run",
        ),
        ({"name": "other"}, "was trained on the log 'tiny', expected a version of 'other'; name one"),
    ],
)
def test_a_version_of_other_settings_or_another_log(
    published: Callable[..., Versions], sections: dict[str, Any], message: str
) -> None:
    versions = published()
    ctx = versions.context(
        "later", "train", versions.newest, **{k: v for k, v in sections.items() if k != "name"}
    )
    config = ctx.config.model_copy(update={"name": sections.get("name", "tiny")})
    with pytest.raises(LookbackError, match=message):
        StartVersion.open(config, versions.newest, ctx.dataset, ctx.inputs["ingest"])


def test_versions_that_no_update_starts_from(
    published: Callable[..., Versions], monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = published()
    with pytest.raises(LookbackError, match="nothing is trained: no history goes on after 1970-01-01T07:00"):
        versions.update("first")
    write_log(versions.folder / "cut", [event for event in first_days() if event.hour < 5])
    with pytest.raises(LookbackError, match=r"trained up to 1970-01-01T07.*the log ends at 1970-01-01T04"):
        versions.start("cut")
    ids = versions.folder / "later" / "features" / "users.parquet"
    users = pl.read_parquet(ids)
    users.with_columns(user_id=pl.int_range(len(users))).write_parquet(ids)
    with pytest.raises(
        LookbackError, match="has user_id of type String, and the log Int64, expected the same"
    ):
        versions.start()
    users.write_parquet(ids)
    monkeypatch.setattr(source_files, "excluded_users", lambda _: pl.Series(["u3"]))
    with pytest.raises(
        LookbackError, match=r"has learned from users of events\.exclude_users; train from scratch"
    ):
        versions.start()
    monkeypatch.setattr(source_files, "excluded_users", lambda _: pl.Series(["nobody"]))
    assert versions.start().num_new == 8
    path = versions.bundles[0] / "bundle.json"
    path.write_text(re.sub(r'"format_version": ?\d', '"format_version": 3', path.read_text()))
    with pytest.raises(LookbackError, match="has bundle format 3, expected 4; train from scratch"):
        versions.start()
