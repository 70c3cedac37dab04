"""Which held-out events are targets, by pencil."""

import numpy as np
import pytest

from features import splits
from features.histories import JaggedHistories
from features.splits import Split
from pipeline.targets import ranked_targets

A, B, C, D, E = 1, 2, 3, 4, 5


def jagged(*rows: list[tuple[int, int]]) -> JaggedHistories:
    """(time, item) of each user's events."""
    flat = [event for row in rows for event in row]
    return JaggedHistories(
        np.cumsum([0, *(len(row) for row in rows)]).astype(np.int64),
        np.array([item for _, item in flat], np.int32),
        np.array([time for time, _ in flat], np.int64),
        np.zeros(len(flat), np.int16),
        np.zeros(len(flat), np.float32),
    )


HISTORIES = jagged(
    [(1, A), (2, B), (8, C), (9, A), (9, E)],  # C ranked; A already seen; E unknown
    [(3, B), (7, D), (7, C), (8, B)],  # D under the core; C ranked; B already seen
    [(6, C), (8, A)],  # C without any history; A ranked
    [(2, D), (9, B)],  # B without a history that the model knows
    [(1, A), (9, B)],  # the user is under the core
)
SPLIT = Split(
    "temporal",
    train_end=np.array([2, 6, 9, 12, 14]),
    validation_end=np.array([2, 6, 9, 12, 14]),
    train_user=np.ones(5, bool),
    kept_user=np.array([True, True, True, True, False]),
    kept_item=np.array([False, True, True, True, False, True]),
    validation_from=6,
    test_from=6,
)
MAPPING = np.array([0, 1, 2, 3, 0, 0], np.int32)


def test_every_test_event_is_a_target_or_counted():
    targets = ranked_targets(HISTORIES, SPLIT, "test", MAPPING, ties="order", exclude_seen=True)
    assert HISTORIES.item_index[targets.position].tolist() == [C, C, A]
    assert targets.user.tolist() == [0, 1, 2]
    assert targets.left_out == {"under_core": 2, "unknown_item": 1, "no_history": 2, "already_seen": 2}
    assert len(targets) + sum(targets.left_out.values()) == SPLIT.num_events(HISTORIES)["test"]


def test_repeats_are_targets_where_seen_items_are_not_masked():
    targets = ranked_targets(HISTORIES, SPLIT, "test", MAPPING, ties="order", exclude_seen=False)
    assert HISTORIES.item_index[targets.position].tolist() == [C, A, C, B, A]
    assert targets.left_out["already_seen"] == 0


def test_a_history_is_all_that_the_model_knows_before_the_target():
    targets = ranked_targets(HISTORIES, SPLIT, "test", MAPPING, ties="order", exclude_seen=False)
    looked_at = targets.histories
    rows = [
        looked_at.item_index[start:end].tolist()
        for start, end in zip(looked_at.starts, looked_at.ends, strict=True)
    ]
    assert rows == [[A, B], [A, B, C], [B], [B, C], [C]]  # D is never in one


def test_strict_ties_leave_out_what_has_the_targets_own_time():
    histories = jagged([(1, A), (2, B), (3, A), (3, B), (3, C)])
    split = splits.leave_one_out(histories, 3)
    by_order = ranked_targets(
        histories, split, "test", np.arange(4, dtype=np.int32), ties="order", exclude_seen=True
    )
    by_time = ranked_targets(
        histories, split, "test", np.arange(4, dtype=np.int32), ties="strict", exclude_seen=True
    )
    assert (by_order.histories.lengths.tolist(), by_time.histories.lengths.tolist()) == ([4], [2])


@pytest.mark.parametrize("part", ["validation", "test"])
def test_nothing_after_the_target_is_in_its_history(part: str):
    random = np.random.default_rng(0)
    rows = [
        [
            (int(time), int(random.integers(1, 9)))
            for time in np.sort(random.integers(0, 50, random.integers(3, 20)))
        ]
        for _ in range(17)
    ]
    histories = jagged(*rows)
    split = splits.temporal(histories, 8)
    targets = ranked_targets(
        histories, split, part, np.arange(9, dtype=np.int32), ties="strict", exclude_seen=False
    )
    assert len(targets)
    for row, position in enumerate(targets.position):
        looked_at = targets.histories.select(slice(row, row + 1))
        times = looked_at.time[looked_at.starts[0] : looked_at.ends[0]]
        assert (times < histories.time[position]).all()
