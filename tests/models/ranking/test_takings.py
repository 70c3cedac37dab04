"""A user's own items, counted by pencil."""

from dataclasses import replace

import numpy as np
import pytest

from models.histories import Float32, Histories, Int32, histories_from_lists
from models.ranking.features import ItemStatistics
from models.ranking.takings import DAY, OWN_FEATURES, SECOND, OwnItems

MICRO = DAY * SECOND
MINUTE = 60 * SECOND
ROWS = histories_from_lists(
    [[5, 2, 5, 5, 2, 7], [7, 5], []],
    [[0, 20 * MINUTE, 3 * MICRO, 3 * MICRO, 9 * MICRO, 9 * MICRO], [1 * MICRO, 2 * MICRO], []],
)
"""Row 0: visits {5, 2}, {5, 5}, {2, 7} on days 0, 3 and 9."""
CANDIDATES = np.array([[2, 5, 7, 9], [5, 2, 7, 0], [5, 2, 7, 9]], np.int32)


def features(rows: Histories, items: Int32, day: float, *, timed: bool = True) -> dict[str, Float32]:
    rows = replace(rows, request_time=np.full(len(rows), round(day * MICRO)))
    statistics = ItemStatistics.of(ROWS, 9, timed=timed)
    values = statistics.features(rows, items, np.zeros(items.shape, np.float32), OWN_FEATURES)
    return {name: values[..., place] for place, name in enumerate(OWN_FEATURES)}


def test_favourites_are_those_of_most_visits_the_later_one_first() -> None:
    own = OwnItems.of(ROWS)
    assert own.favourites(4).tolist() == [[2, 5, 7, 0], [5, 7, 0, 0], [0, 0, 0, 0]]
    assert own.favourites(1).tolist() == [[2], [5], [0]]
    assert own.visits.tolist() == [3, 2, 0]
    assert own.times_seen(own.pairs(CANDIDATES)).tolist() == [[2, 3, 1, 0], [1, 0, 1, 0], [0, 0, 0, 0]]


def test_without_times_every_event_is_a_visit() -> None:
    own = OwnItems.of(ROWS, timed=False)
    assert own.favourites(3).tolist()[0] == [5, 2, 7], "three events beat two"
    assert own.visits.tolist() == [6, 2, 0]


def test_shares_ranks_and_gaps_by_pencil() -> None:
    found = features(ROWS, CANDIDATES, 12)
    assert found["visit_share"][0] == pytest.approx(np.log(np.array([2.1, 2.1, 1.1, 0.1]) / 4))
    assert found["own_rank"][0] == pytest.approx(np.log([2, 3, 4, 5]))
    assert found["own_rank"][2] == pytest.approx(np.log([2, 2, 2, 2]))
    assert found["last_taken"][0] == pytest.approx(np.log([4, 10, 4, 1]), rel=1e-5)
    gap_of_2 = 9 - 20 / 1440
    assert found["mean_gap"][0] == pytest.approx(np.log([1 + gap_of_2, 4, 1, 1]), rel=1e-5)
    assert found["relative_gap"][0] == pytest.approx(
        [np.log(4 / (1 + gap_of_2)), np.log(10 / 4), 0, 0], rel=1e-5
    )
    weights = [
        np.exp(-(12 - 20 / 1440) / 7) + np.exp(-3 / 7),
        np.exp(-12 / 7) + np.exp(-9 / 7),
        np.exp(-3 / 7),
        0,
    ]
    assert found["taken_7d"][0] == pytest.approx(np.log1p(weights), rel=1e-5)
    assert found["num_visits"][:, 0] == pytest.approx(np.log([4, 3, 1]))
    assert found["visit_gap"][:, 0] == pytest.approx(np.log([1 + 9 / 2, 2, 1]), rel=1e-5)
    assert found["items_per_visit"][:, 0] == pytest.approx(np.log([3, 2, 1]))


def test_without_times_there_are_counts_alone() -> None:
    found = features(ROWS, CANDIDATES, 12, timed=False)
    assert found["visit_share"][0] == pytest.approx(np.log(np.array([2.1, 3.1, 1.1, 0.1]) / 7))
    for name in ("taken_7d", "taken_30d", "last_taken", "mean_gap", "relative_gap", "visit_gap"):
        assert not found[name].any(), name


def test_a_row_is_counted_alike_alone_and_in_company() -> None:
    random = np.random.default_rng(0)
    rows = histories_from_lists(
        [random.integers(1, 10, length).tolist() for length in (7, 0, 40, 3)],
        [np.sort(random.integers(0, 30 * MICRO, length)).tolist() for length in (7, 0, 40, 3)],
    )
    items = np.tile(np.arange(10, dtype=np.int32), (4, 1))
    together = features(rows, items, 31)
    for row in range(4):
        alone = features(rows.select(slice(row, row + 1)), items[row : row + 1], 31)
        for name in OWN_FEATURES:
            assert np.array_equal(alone[name][0, 1:], together[name][row, 1:]), name
