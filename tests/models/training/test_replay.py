"""Training rows of an update, by pencil."""

import numpy as np
import pytest

from models.encoder.batching import BatchPlan
from models.histories import Histories, histories_from_lists
from models.training.replay import HALF_LIVES, new_targets, with_replay

SINCE = 10


def four() -> Histories:
    """Users with old and new events, old ones alone, one new event alone, and one old and then new events."""
    items = [[1, 2, 3, 4], [5, 6], [7], [1, 5, 6]]
    return histories_from_lists(items, [[1, 9, 11, 12], [2, 8], [13], [10, 11, 14]])


def learned(histories: Histories) -> list[list[int]]:
    """Items of each row whose events count as targets."""
    assert histories.weight is not None
    rows = zip(histories.starts, histories.ends, strict=True)
    return [histories.item_index[start:end][histories.weight[start:end] > 0].tolist() for start, end in rows]


def test_targets_follow_the_boundary_and_another_event() -> None:
    assert new_targets(four(), SINCE).tolist() == [2, 0, 0, 2]
    assert new_targets(four(), 14).tolist() == [0, 0, 0, 0]


def test_without_replay_new_events_alone_count_after_their_whole_history() -> None:
    rows, histories = with_replay(four(), SINCE, 0.0, 0)
    assert rows.tolist() == [0, 3]
    assert histories.lengths.tolist() == [4, 3]
    assert learned(histories) == [[3, 4], [5, 6]]
    plan = BatchPlan(histories, 10, 2, None, 0)
    assert plan.num_targets == 4
    (step,) = plan.epoch(0)
    target, weight = plan.targets_of(step, 0)
    assert sorted(target[weight > 0].tolist()) == [3, 4, 5, 6]


def test_older_events_are_replayed_as_often_as_new_ones_are_learned() -> None:
    """Two rows learn two events each; of three older events that follow another one two are drawn, with the one before each."""
    histories = histories_from_lists(
        [[1, 2, 3, 4], [5, 6, 7], [8], [1, 5, 6]], [[1, 9, 11, 12], [1, 2, 8], [13], [10, 11, 14]]
    )
    expected = {
        ((4, 2, 3), ((2, 3, 4), (6,), (5, 6))),
        ((4, 3, 3), ((2, 3, 4), (6, 7), (5, 6))),
        ((4, 3, 3), ((3, 4), (6, 7), (5, 6))),
    }
    outcomes = set()
    for seed in range(30):
        rows, chosen = with_replay(histories, SINCE, 0.5, seed)
        assert rows.tolist() == [0, 1, 3]
        outcomes.add((tuple(chosen.lengths.tolist()), tuple(map(tuple, learned(chosen)))))
    assert outcomes == expected


def test_weights_of_events_stay() -> None:
    weighted = histories_from_lists([[1, 2, 3]], [[1, 11, 12]])
    weight = np.array([2, 3, 5], np.float32)
    _, histories = with_replay(Histories(**{**vars(weighted), "weight": weight}), SINCE, 0.0, 0)
    assert histories.weight is not None
    assert histories.weight.tolist() == [0, 3, 5]


def test_replay_is_drawn_by_recency() -> None:
    """The chance of an event halves with every quarter of the oldest one's age; a row that learns nothing ends with it."""
    histories = histories_from_lists([[1, 2, 3], [4, 5], [6, 7]], [[0, 10, 20], [0, 2], [0, 6]])
    drawn = [with_replay(histories, SINCE, 0.5, seed)[0].tolist() for seed in range(2000)]
    chance = np.exp2(-HALF_LIVES * np.array([0, 8, 4]) / 8)
    expected = chance / chance.sum()
    for row, rows in enumerate(([0], [0, 1], [0, 2])):
        assert drawn.count(rows) / 2000 == pytest.approx(expected[row], abs=0.03)
