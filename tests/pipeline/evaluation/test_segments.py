"""Which targets belong to which segment, by pencil."""

from datetime import date
from pathlib import Path
from unittest import mock

import numpy as np
import polars as pl
import pytest

from features.histories.jagged import JaggedHistories
from models.histories import Histories
from pipeline.dataset.dataset import Dataset
from pipeline.dataset.targets import RankedTargets
from pipeline.evaluation import segments

SECOND = 1_000_000
HOUR, DAY = 3_600 * SECOND, 86_400 * SECOND


def log() -> JaggedHistories:
    """Three users: four events with growing pauses, two, and one; types 0, 1, 2 in turn."""
    time = np.array([0, HOUR // 2, HOUR // 2 + DAY, 40 * DAY, 0, 8 * DAY, 5], np.int64)
    item = np.array([1, 2, 3, 4, 5, 1, 2], np.int32)
    types = (np.arange(7) % 3).astype(np.int16)
    return JaggedHistories(np.array([0, 4, 6, 7]), item, time, types, np.zeros(7, np.float32))


def targets(positions: list[int] | None = None) -> RankedTargets:
    """Every event from what its user had before (or those at the positions)."""
    histories = log()
    position = np.arange(7) if positions is None else np.array(positions)
    user = np.searchsorted(histories.offsets, position, side="right") - 1
    before = Histories(
        histories.item_index,
        histories.time,
        histories.event_type,
        histories.offsets[user],
        position.astype(np.int64),
        request_time=histories.time[position],
    )
    cold = (before.lengths == 0).astype(np.int8)
    return RankedTargets.one_each(before, histories.item_index[position], user, position, cold, {})


def tables(
    folder: Path, categories: list[list[str] | None] | None = None, users: pl.DataFrame | None = None
) -> None:
    """What a features and an ingest folder hold; users in another order and with one that has no events."""
    items = pl.DataFrame({"item_index": range(1, 6), "item_id": range(11, 16)})
    if categories is not None:
        items = items.with_columns(pl.Series("categories", categories, dtype=pl.List(pl.String)))
    items.write_parquet(folder / "items.parquet")
    (folder / "ingest").mkdir()
    (folder / "event_types.json").write_text('["like", "view"]')
    pl.DataFrame({"user_index": range(3), "user_id": ["a", "b", "c"]}).write_parquet(folder / "users.parquet")
    if users is not None:
        users.write_parquet(folder / "ingest" / "users.parquet")


def found(
    folder: Path, which: RankedTargets | None = None, counts: list[int] | None = None, *, timed: bool = True
) -> dict[str, dict[str, list[int]]]:
    """Segment -> value -> the targets in it."""
    table: dict[str, dict[str, list[int]]] = {}
    fitted = np.array([0, *(counts or [9, 1, 5, 7, 3])])
    each = segments.segments_of(
        targets() if which is None else which,
        Dataset(folder, log(), mock.sentinel.split),
        fitted,
        folder / "ingest",
        timed=timed,
    )
    for segment, value, mask in each:
        assert mask.dtype == bool
        assert mask.any()
        assert value not in table.get(segment, {})
        table.setdefault(segment, {})[value] = np.flatnonzero(mask).tolist()
    return table


def test_by_history_length(tmp_path: Path):
    tables(tmp_path)
    assert found(tmp_path)["history_length"] == {"0": [0, 4, 6], "1-4": [1, 2, 3, 5]}
    assert segments.length_names() == ["0", "1-4", "5-19", "20-49", "50-199", "200+"]


@pytest.mark.parametrize(
    ("length", "name"),
    [
        (0, "0"),
        (1, "1-4"),
        (4, "1-4"),
        (5, "5-19"),
        (19, "5-19"),
        (49, "20-49"),
        (199, "50-199"),
        (200, "200+"),
        (10**6, "200+"),
    ],
)
def test_edges_of_classes(length: int, name: str):
    ((value, _),) = segments.between(np.array([length]), segments.HISTORY_LENGTHS, segments.length_names())
    assert value == name


def test_by_item_popularity(tmp_path: Path):
    tables(tmp_path)
    # from rare to frequent: items 2, 5, 3, 4, 1; thirds of five: 2 + 2 + 1
    assert found(tmp_path)["item_popularity"] == {"tail": [1, 4, 6], "middle": [2, 3], "head": [0, 5]}


def test_an_unknown_item_has_no_third(tmp_path: Path):
    tables(tmp_path)
    some = targets()
    some.item[2] = 0
    popularity = found(tmp_path, some)["item_popularity"]
    assert popularity["(unknown)"] == [2]
    assert popularity["middle"] == [3]


def test_an_item_known_by_content_alone_has_no_third(tmp_path: Path):
    tables(tmp_path)
    # items 2 and 5 were in no event: thirds of 3, 4, 1
    expected = {"tail": [2], "middle": [3], "head": [0, 5], "(unknown)": [1, 4, 6]}
    assert found(tmp_path, counts=[9, 0, 5, 7, 0])["item_popularity"] == expected


def test_by_recency(tmp_path: Path):
    tables(tmp_path)
    # an empty history has no last event; at the edge itself the next class begins
    expected = {"under an hour": [1], "under a week": [2], "under a month": [5], "a month or more": [3]}
    assert found(tmp_path)["recency"] == expected
    assert "recency" not in found(tmp_path, timed=False)


def test_by_event_type(tmp_path: Path):
    tables(tmp_path)
    assert found(tmp_path)["event_type"] == {"without a type": [0, 3, 6], "like": [1, 4], "view": [2, 5]}
    assert not list(segments._by_event_type(targets(), log(), []))


def test_an_item_belongs_to_each_of_its_categories(tmp_path: Path):
    tables(tmp_path, [["Drama", "War"], ["War", "War"], None, ["Comedy"], []])
    assert found(tmp_path)["item_category"] == {
        "War": [0, 1, 5, 6],
        "Drama": [0, 5],
        "Comedy": [3],
        "(unknown)": [2, 4],
    }


def test_rare_categories_go_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(segments, "MAX_CATEGORIES", 1)
    tables(tmp_path, [["Drama", "War"], ["War"], ["Noir"], ["Comedy", "Drama"], ["War"]])
    assert found(tmp_path)["item_category"] == {"War": [0, 1, 4, 5, 6], "(other)": [0, 2, 3, 5]}


def test_a_log_without_content_or_attributes(tmp_path: Path):
    tables(tmp_path, [None] * 5)
    assert set(found(tmp_path)) == {"history_length", "item_popularity", "recency", "event_type"}


def test_by_user_attribute(tmp_path: Path):
    users = pl.DataFrame({"user_id": ["c", "z", "a"], "plan": ["free", "gold", "paid"], "age": [30, 1, 4]})
    tables(tmp_path, users=users)
    table = found(tmp_path)
    assert table["user:plan"] == {"free": [6], "paid": [0, 1, 2, 3], "(unknown)": [4, 5]}
    assert table["user:age"] == {"4": [0, 1, 2, 3], "30": [6], "(unknown)": [4, 5]}


EVERYONE = np.arange(20)


def values(column: pl.Series, evaluated: np.ndarray = EVERYONE) -> dict[str, list[int]]:
    return {value: np.flatnonzero(mask).tolist() for value, mask in segments._values_of(column, evaluated)}


def test_numbers_of_many_values_by_quartiles():
    ages = pl.Series("age", [None, *range(20, 39)])
    assert values(ages) == {
        "20 to 24": [1, 2, 3, 4, 5],
        "25 to 29": [6, 7, 8, 9, 10],
        "30 to 33": [11, 12, 13, 14],
        "34 to 38": [15, 16, 17, 18, 19],
        "(unknown)": [0],
    }
    assert values(ages.cast(pl.String)) == values(ages), "numbers as text"


def test_quartiles_are_those_of_the_evaluated_users():
    evaluated = np.arange(14, 20)
    assert segments.MAX_VALUES == 12
    column = pl.Series("height", np.arange(20) / 4)
    assert list(values(column, evaluated)) == ["3.5", "3.75", "4", "4.25", "4.5", "4.75", "(other)"]
    assert next(iter(values(column, np.arange(5, 20)))) == "1.25 to 2"


def test_text_of_many_values_by_the_most_frequent():
    towns = pl.Series("town", [f"town {'abcdefghijklm'[number // 2]}" for number in range(26)])
    groups = values(towns, np.arange(26))
    assert len(groups) == 12
    assert groups["town a"] == [0, 1]
    assert groups["(other)"] == [22, 23, 24, 25]


def test_text_that_is_different_for_everyone_makes_no_groups():
    assert values(pl.Series("name", [f"user {number}" for number in range(20)])) == {}


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pl.Series("paid", [True, False, None]), {"false": [1], "true": [0], "(unknown)": [2]}),
        (pl.Series("size", ["10", "9", "10"]), {"9": [1], "10": [0, 2]}),
        (pl.Series("score", [0.5, 2.0, None]), {"0.5": [0], "2": [1], "(unknown)": [2]}),
        (pl.Series("likes", [["b", "a"], [], None]), {"": [1], "b, a": [0], "(unknown)": [2]}),
        (
            pl.Series("since", [date(2026, 1, 2), date(2025, 1, 2), None]),
            {"2025-01-02": [1], "2026-01-02": [0], "(unknown)": [2]},
        ),
        (pl.Series("group", ["y", "x", "y"], dtype=pl.Categorical), {"x": [1], "y": [0, 2]}),
        (pl.Series("nothing", [None, None, None]), {"(unknown)": [0, 1, 2]}),
        (pl.Series("odd", [float("inf"), 1.0, 1.0]), {"1": [1, 2], "inf": [0]}),
        (
            pl.Series("home", [{"city": "x"}, None, {"city": "x"}]),
            {"{'city': 'x'}": [0, 2], "(unknown)": [1]},
        ),
    ],
    ids=lambda each: each.name if isinstance(each, pl.Series) else "",
)
def test_attributes_of_every_type(column: pl.Series, expected: dict[str, list[int]]):
    found = values(column, np.arange(3))
    assert {value.lower(): rows for value, rows in found.items()} == expected
    if "nothing" not in column.name:
        assert [value.lower() for value in found] == list(expected)
