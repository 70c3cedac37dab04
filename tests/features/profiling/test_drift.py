"""Drift by pencil, planted, and absent; and what is said where counts cannot tell."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from features.histories.jagged import JaggedHistories
from features.profiling import drift, profile
from features.profiling.drift import Drift
from features.profiling.profile import Profile

POPULARITY = np.array([400, 200, 100, 100, 50, 50, 40, 30, 20, 10])


def items(counts: list[int] | np.ndarray, first: int = 1) -> pl.DataFrame:
    return pl.DataFrame(
        {"item_id": range(first, first + len(counts)), "num_events": [int(n) for n in counts]}
    )


def log(num_events: int, **by_type: int) -> Profile:
    """The profile of any log, with these numbers."""
    nothing = np.zeros(1, np.float32)
    one = JaggedHistories(
        np.array([0, 1]), np.ones(1, np.int32), np.zeros(1, np.int64), np.zeros(1, np.int16), nothing
    )
    some = profile.profile(one, [], 1, timed=True)
    others = num_events - sum(by_type.values())
    return replace(some, num_events=num_events, events_by_type=by_type, num_events_of_other_types=others)


def compared(before: np.ndarray, new: np.ndarray, types: tuple[dict[str, int], dict[str, int]]) -> Drift:
    now = np.concatenate([before, np.zeros(len(new) - len(before), np.int64)]) + new
    return drift.compare(
        items(before), log(int(before.sum()), **types[0]), items(now), log(int(now.sum()), **types[1])
    )


def test_by_pencil():
    """Two items of 800 and 200 events; of 1000 new events they have 500 each. Two types likewise."""
    types = ({"view": 800, "like": 200}, {"view": 1300, "like": 700})
    found = compared(np.array([800, 200]), np.array([500, 500]), types)
    expected = 0.3 * math.log(0.8 / 0.5) + 0.3 * math.log(0.5 / 0.2)
    assert found.items is not None
    assert found.types is not None
    assert found.items.psi == pytest.approx(expected)
    assert found.types.psi == pytest.approx(expected)
    assert (found.types.groups, found.types.before, found.types.new) == (
        ["view", "like"],
        [0.8, 0.2],
        [0.5, 0.5],
    )
    assert (found.num_events_before, found.num_new_events, found.num_removed_events) == (1000, 1000, 0)
    assert found.items.level == found.types.level == "large"
    assert [each.split(":")[0] for each in found.warnings] == ["items", "event types"]
    assert found.last_before == "1970-01-01T00:00:00.000000"


def test_groups_hold_the_same_share_of_last_times_events():
    found = compared(np.full(100, 7), np.ones(100, np.int64), ({"": 700}, {"": 800}))
    assert found.items is not None
    assert found.items.before == pytest.approx([0.1] * 10 + [0])
    assert found.items.groups[0] == "0–10 %"
    assert found.items.groups[-1] == "not seen before"
    assert found.items.psi == pytest.approx(0)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("num_new", [100, 700, 5000])
def test_the_same_distribution_is_stable(seed: int, num_new: int):
    random = np.random.default_rng(seed)
    new = random.multinomial(num_new, POPULARITY / 1000)
    likes = int(random.binomial(num_new, 0.3))
    types = ({"view": 700, "like": 300}, {"view": 700 + num_new - likes, "like": 300 + likes})
    found = compared(POPULARITY, new, types)
    assert found.warnings == found.notes == []
    assert found.new_item_share == 0


def test_planted_drift_warns():
    new = np.random.default_rng(0).multinomial(500, POPULARITY[::-1] / 1000)
    found = compared(POPULARITY, new, ({"view": 1000}, {"view": 1500}))
    assert found.items is not None
    assert found.items.level == "large"
    assert found.types is not None
    assert found.types.psi == 0
    (warning,) = found.warnings
    assert "the 500 new events, 0.0 % of them on items without events last time, are spread" in warning


@pytest.mark.parametrize(("share", "level"), [(0.02, "stable"), (0.06, "moderate"), (0.2, "large")])
def test_items_not_seen_before(share: float, level: str):
    old = np.round(POPULARITY * 10 * (1 - share)).astype(int)
    found = compared(POPULARITY * 10, np.append(old, round(10_000 * share)), ({"": 10_000}, {"": 20_000}))
    assert found.new_item_share == pytest.approx(share, rel=0.01)
    assert found.items is not None
    assert found.items.level == level
    assert bool(found.warnings) == (level == "large")


@pytest.mark.parametrize("num_new", [0, 99])
def test_too_few_are_new(num_new: int):
    new = np.array([0] * 9 + [num_new])
    found = compared(POPULARITY, new, ({"": 1000}, {"": 1000 + num_new}))
    assert (found.items, found.types, found.new_item_share, found.warnings) == (None, None, None, [])
    assert found.notes == [f"{num_new} events are new since last time: too few to measure how they differ"]
    assert found.metrics() == {"num_new_events": num_new, "num_removed_events": 0, "num_new_users": 0}


def test_removed_events():
    few = compared(POPULARITY, POPULARITY - np.array([405] + [0] * 9), ({"": 1000}, {"": 1595}))
    assert few.num_removed_events == 5
    assert few.items is not None
    assert few.notes[0].startswith("5 events of last time or more are gone: what follows")
    many = compared(POPULARITY, POPULARITY // 5 - np.array([0] * 9 + [12]), ({"": 1000}, {"": 1188}))
    assert (many.items, many.warnings) == (None, [])
    assert "counts do not show how the new ones differ" in many.notes[0]


def test_an_item_that_is_gone_counts_as_removed_and_ids_may_change_type():
    before, now = items([100, 100]), items([300], first=2).with_columns(pl.col("item_id").cast(pl.String))
    found = drift.compare(before, log(200), now, log(300))
    assert (found.num_new_events, found.num_removed_events) == (200, 100)
    assert found.items is None


def test_types_beyond_those_that_were_counted_are_taken_together():
    before, now = log(100, view=90), log(200, view=150, like=30)
    found = drift.compare(items([100]), before, items([200]), now)
    assert found.types is not None
    assert found.types.groups == ["view", "other"]
    assert found.types.new == [0.6, 0.4]


def test_saved_is_loaded(tmp_path: Path):
    for new in (POPULARITY, 0 * POPULARITY):
        found = compared(POPULARITY, new, ({"": 1000}, {"": 1000 + int(new.sum())}))
        found.save(tmp_path / "drift.json")
        assert Drift.load(tmp_path / "drift.json") == found
    (tmp_path / "drift.json").write_text('{"items": 1}')
    with pytest.raises(ValueError, match=r"drift.json: is no drift"):
        Drift.load(tmp_path / "drift.json")
