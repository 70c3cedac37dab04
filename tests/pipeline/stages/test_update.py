"""An update in the stages train and publish: a small log, published, then with later days, in other numberings."""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from features.settings import HistorySettings
from models.encoder.encoder import Encoder
from pipeline.artifacts import source_files
from pipeline.artifacts.files import read_json
from pipeline.errors import LookbackError
from pipeline.evaluation.evaluated_model import EvaluatedModel
from pipeline.serving.bundle import Bundle
from pipeline.serving.start_version import StartVersion, lists_any
from tests.published_versions import HOUR, MODEL, Event, Versions, first_days, later_days, write_log


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
    for name in ("user", "item"):
        path = versions.folder / "later" / "features" / f"{name}s.parquet"
        table = pl.read_parquet(path)
        table.with_columns(pl.int_range(len(table)).alias(f"{name}_id")).write_parquet(path)
        with pytest.raises(
            LookbackError, match=f"has {name}_id of type String, and the log Int64, expected the same"
        ):
            versions.start()
        table.write_parquet(path)
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
