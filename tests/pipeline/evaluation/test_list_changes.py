"""Changes of lists by pencil."""

import datetime
from pathlib import Path

import polars as pl
import pytest

from pipeline.errors import LookbackError
from pipeline.evaluation.list_changes import (
    PlaceChange,
    Recommended,
    compare_lists,
    where_lists_differ,
)

ITEMS = pl.DataFrame(
    {
        "item_id": [1, 2, 3, 4],
        "title": ["one", "two", None, "four"],
        "categories": [["a"], ["a", "b"], ["b"], None],
        "num_events": [9, 5, 1, 0],
        "provider": ["P", "P", None, "Q"],
    }
)
NIGHTS = [datetime.datetime(2020, 1, day, tzinfo=datetime.UTC) for day in (1, 8)]


def lists(of_users: dict[int, list[int]]) -> pl.LazyFrame:
    rows = [
        {"user_id": user, "item_id": item, "rank": rank, "because": [{"item_id": 3, "weight": 1.0}]}
        for user, own in of_users.items()
        for rank, item in enumerate(own, 1)
    ]
    return pl.LazyFrame(rows, schema_overrides={"rank": pl.Int32})


def test_by_pencil():
    """User 10 keeps the list, 20 gets the other order, 30 gets 4 for 1; 40 and 50 have a list in one alone."""
    before = lists({10: [1, 2], 20: [1, 2], 30: [1, 2], 40: [1, 2]})
    after = lists({50: [1, 2], 30: [4, 2], 20: [2, 1], 10: [1, 2]})
    segment = pl.DataFrame({"user_id": [10, 20], "segment": ["x", "x"]})
    found = compare_lists(before, after, ITEMS, segment)
    assert (found.users, found.only_before, found.only_after) == (3, 1, 1)
    assert (found.changed, found.other_items) == (2, 1)
    # .1 / .9 (X_1 / 1 * .9 + X_2 / 2 * .81) + X_2 / 2 * .81: order [0, 2]: .9; one item at place 2 of both [0, 1]: .45
    assert found.overlap == pytest.approx((1 + 0.9 + 0.45) / 3)
    assert found.overlap_quantiles["p50"] == pytest.approx(0.9)
    assert found.places["item"].gained == [PlaceChange("four", 0, 1)]
    assert found.places["item"].lost == [PlaceChange("one", 3, 2)]
    assert found.places["category"].lost == [PlaceChange("a", 6, 5)]
    assert found.places["category"].gained == [PlaceChange("(unknown)", 0, 1)]
    assert found.places["provider"].lost == [PlaceChange("P", 6, 5)]
    assert found.places["provider"].gained == [PlaceChange("Q", 0, 1)]
    assert found.places["popularity"].lost == [PlaceChange("head", 3, 2)]
    assert [(own.value, own.users, own.changed) for own in found.segments] == [
        ("(unknown)", 1, 1),
        ("x", 2, 1),
    ]
    assert [own.overlap for own in found.segments] == pytest.approx([0.45, 0.95])
    assert [user.user_id for user in found.side_by_side] == [30, 20], (
        "least overlap first, unchanged lists left out"
    )
    assert found.side_by_side[0].before == [Recommended("one", ["item 3"]), Recommended("two", ["item 3"])]
    assert [own.title for own in found.side_by_side[0].after] == ["four", "two"]


def test_at_most_ten_users_from_the_least_to_the_greatest_overlap():
    before = lists({user: [1, 2, 3] for user in range(30)})
    after = lists({user: [4, 2, 3] if user % 2 else [1, 2, 4] for user in range(30)})
    shown = compare_lists(before, after, ITEMS).side_by_side
    overlap = [user.overlap for user in shown]
    assert len(shown) == 10
    assert overlap == sorted(overlap)
    assert overlap[0] < overlap[-1]


def test_other_ids_and_other_users_are_refused():
    with pytest.raises(LookbackError, match="ids of different types"):
        compare_lists(lists({1: [1]}), lists({1: [1]}).with_columns(pl.col("item_id").cast(pl.String)), ITEMS)
    with pytest.raises(LookbackError, match="no user has a list in both"):
        compare_lists(lists({1: [1]}), lists({2: [1]}), ITEMS)


def evaluated(folder: Path, ranks: list[float], recommended: list[list[int]]) -> tuple[Path, str]:
    """Evaluation of the first len(ranks) of: a takes 1 and 2 on the first night, b takes 1, a takes 3 on the second night."""
    folder.mkdir()
    nights = [NIGHTS[0], NIGHTS[0], NIGHTS[0], NIGHTS[1]]
    table = {
        "system": ["ease"] * 4,
        "user_id": ["a", "a", "b", "a"],
        "item_id": [1, 2, 1, 3],
        "timestamp": pl.Series(nights).dt.offset_by("1d"),
        "night": nights,
    }
    own = pl.DataFrame(table).head(len(ranks))
    own = own.with_columns(pl.Series("rank", ranks), pl.Series("recommended", recommended))
    pl.concat([own, own.with_columns(pl.lit("lookback").alias("system"), rank=1.0)]).write_parquet(
        folder / "targets.parquet"
    )
    return folder, "ease"


def test_the_metric_where_lists_differ_by_pencil(tmp_path: Path):
    """Of three common requests b's list is the same in both; a's hit rates at 1 are 1 and 0 before, 0 and 0 after."""
    before = evaluated(tmp_path / "before", [1.0, 2.0, 1.0, 4.0], [[1, 2], [], [1], [9]])
    after = evaluated(tmp_path / "after", [3.0, 2.0, 1.0, 4.0], [[4, 2], [], [1], [8]])
    found = where_lists_differ(before, after, "hit_rate@1", 100, 0)
    assert found is not None
    assert (found.requests, found.differing, found.users) == (3, 2, 1)
    assert (found.before, found.after, found.difference.difference) == (0.5, 0.0, -0.5)
    assert found.difference.verdict == "no significant difference", "one user gives no interval"
    fewer = evaluated(tmp_path / "fewer", [3.0, 2.0, 1.0], [[4, 2], [], [1]])
    common = where_lists_differ(before, fewer, "hit_rate@1", 100, 0)
    assert common is not None
    assert (common.requests, common.differing) == (2, 1)


def test_no_metric_without_other_lists_or_common_targets(tmp_path: Path):
    one = evaluated(tmp_path / "one", [1.0], [[1]])
    assert where_lists_differ(one, one, "ndcg@10", 100, 0) is None
    plain = tmp_path / "plain"
    plain.mkdir()
    pl.read_parquet(one[0] / "targets.parquet").drop("night").write_parquet(plain / "targets.parquet")
    assert where_lists_differ(one, (plain, "ease"), "ndcg@10", 100, 0) is None
