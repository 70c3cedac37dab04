"""Candidates by pencil; a row's candidates depend on nothing but the row, its request and the rules."""

from dataclasses import replace

import numpy as np

from models.histories import Histories, histories_from_lists
from models.ranking.candidates import AddedCandidates, is_none_of, joined, learned_part
from models.ranking.features import ItemStatistics
from models.ranking.takings import DAY, SECOND
from models.settings.ranker import RankerSettings

MICRO = DAY * SECOND
ITEMS = 8
LOG = histories_from_lists(
    [[1, 1, 1, 1, 2, 2, 3], [4, 4, 5, 6]],
    [
        [0, 0, 0, 0, 50 * MICRO, 51 * MICRO, 55 * MICRO],
        [round(day * MICRO) for day in (59.5, 59.6, 59.7, 70)],
    ],
)
"""At day 60: 4 and 5 are of the last day (2, 1), then 3 of the last week, 2 of the last month, and 1 of all time."""


def at(day: float, *items: list[int]) -> Histories:
    rows = histories_from_lists(list(items), [[0] * len(row) for row in items])
    return replace(rows, request_time=np.full(len(rows), round(day * MICRO)))


def added(favourites: int, popular: int, log: Histories = LOG) -> AddedCandidates:
    settings = RankerSettings(favourites=favourites, popular=popular)
    return AddedCandidates(settings, ItemStatistics.of(log, ITEMS))


def test_popular_items_are_in_turn_those_of_each_window() -> None:
    found = added(0, 6).of(at(60, [7]), exclude_seen=False)
    # first places: 4 (a day), 4 (a week), 2 (a month, before 4 by events in all? 2 each, the lower item), 1 (all time)
    assert found.tolist() == [[4, 2, 1, 5, 3, 0]]


def test_items_of_the_last_hour_come_first() -> None:
    """7 and 8 are of the hour that has begun, 8 twice; 6 is of the moment of the request."""
    hour = MICRO // 24
    start = 60 * MICRO
    times = [start, start + hour // 3, start + hour // 3, start + hour // 2]
    log = histories_from_lists(
        [[1, 1, 1, 1, 2, 2, 3], [4, 4, 5], [7, 8, 8, 6]],
        [
            [0, 0, 0, 0, 50 * MICRO, 51 * MICRO, 55 * MICRO],
            [round(day * MICRO) for day in (59.5, 59.6, 59.7)],
            times,
        ],
    )
    found = added(0, 5, log).of(at(60 + 0.5 / 24, [7]), exclude_seen=False)
    assert found.tolist() == [[8, 4, 2, 1, 7]]
    allowed = np.arange(ITEMS + 1) != 8
    found = added(0, 5, log).of(at(60 + 0.5 / 24, [7]), exclude_seen=False, allowed=allowed)
    assert found.tolist() == [[7, 4, 2, 1, 5]]


def test_nothing_at_or_after_the_request_counts() -> None:
    later = histories_from_lists(
        [[1, 1, 1, 1, 2, 2, 3], [4, 4, 5]],
        [[0, 0, 0, 0, 50 * MICRO, 51 * MICRO, 55 * MICRO], [round(d * MICRO) for d in (59.5, 59.6, 59.7)]],
    )
    rows = at(60, [7])
    assert (
        added(2, 6, later).of(rows, exclude_seen=False).tolist()
        == added(2, 6).of(rows, exclude_seen=False).tolist()
    )
    assert added(0, 3).of(at(0, [7]), exclude_seen=False).tolist() == [[0, 0, 0]]


def test_rules_hold_for_what_is_added() -> None:
    rows = at(60, [4, 7, 7, 8])
    assert added(2, 2).of(rows, exclude_seen=False).tolist() == [[8, 7, 4, 2]], "one visit, the last first"
    assert added(2, 2).of(rows, exclude_seen=True).tolist() == [[0, 2]], "no favourites, and nothing seen"
    allowed = ~np.isin(np.arange(ITEMS + 1), [2, 8])
    found = added(2, 3).of(rows, exclude_seen=False, allowed=allowed)
    assert found.tolist() == [[0, 7, 4, 1, 5]], "the most popular of the items that are allowed"


def test_a_row_has_the_same_candidates_alone_and_in_company() -> None:
    rows = at(60, [4, 7, 7, 8], [], [1, 1, 5])
    rows = replace(rows, request_time=np.array([60, 52, 1]) * MICRO)
    together = added(2, 3).of(rows, exclude_seen=False)
    for row in range(3):
        alone = added(2, 3).of(rows.select(slice(row, row + 1)), exclude_seen=False)
        assert alone[0].tolist() == together[row].tolist()


def test_candidates_are_joined_best_first_each_once() -> None:
    lowest = -np.inf
    items, scores = joined(
        np.array([[3, 5, 0], [2, 1, 4]], np.int32),
        np.array([[0.9, 0.5, lowest], [3, 2, 1]], np.float32),
        np.array([[5, 7, 6, 6], [8, 0, 3, 0]], np.int32),
        np.array([[0.5, 0.7, 0.5, 0.5], [lowest, lowest, 1, lowest]], np.float32),
        num_learned=8,
    )
    assert items.tolist() == [[3, 7, 5, 6, 0, 0, 0], [2, 1, 3, 4, 0, 0, 0]]
    assert scores[0, :4].tolist() == np.array([0.9, 0.7, 0.5, 0.5], np.float32).tolist()
    assert np.isneginf(scores[items == 0]).all()


def test_items_unknown_to_the_retriever_join_at_the_lowest_score_of_the_row() -> None:
    lowest = -np.inf
    items, scores = joined(
        np.array([[3, 2, 0], [0, 0, 0]], np.int32),
        np.array([[0.9, 0.5, lowest], [lowest, lowest, lowest]], np.float32),
        np.array([[7, 4, 6], [6, 0, 5]], np.int32),
        np.array([[lowest, 0.7, lowest], [lowest, lowest, lowest]], np.float32),
        num_learned=5,
    )
    assert items.tolist() == [[3, 4, 2, 6, 7, 0], [6, 0, 0, 0, 0, 0]]
    assert scores[0, :5].tolist() == np.array([0.9, 0.7, 0.5, 0.5, 0.5], np.float32).tolist()
    assert scores[1, 0] == 0


def test_the_retriever_reads_histories_without_items_that_it_does_not_know() -> None:
    log = at(60, [4, 7, 2], [7], [])
    read = learned_part(log, 5)
    assert [
        read.item_index[start:end].tolist() for start, end in zip(read.starts, read.ends, strict=True)
    ] == [[4, 2], [], []]
    assert read.request_time is log.request_time
    assert learned_part(log, 7) is log


def test_items_are_looked_for_in_their_own_row() -> None:
    items, others = np.array([[1, 2], [3, 4]], np.int32), np.array([[2], [1]], np.int32)
    assert is_none_of(items, others).tolist() == [[True, False], [True, True]]
