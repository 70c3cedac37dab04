"""Planted leaks are found, and what leave-one-out leaks by construction is measured: by pencil and against plain loops."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.histories import leaks, splits
from features.histories.jagged import JaggedHistories, user_ranges
from features.histories.leaks import LeakError
from features.histories.splits import Split
from tests.factories import Rows, jagged
from tests.features.histories.test_splits import LOG, refused

SPLIT = splits.temporal(LOG, 3, test_fraction=0.2, validation_fraction=0.2)
HELD_BACK = splits.temporal(LOG, 3, test_fraction=0.2, validation_fraction=0.2, held_back=0.2)
LOGS = st.lists(
    st.lists(st.tuples(st.integers(0, 40), st.integers(1, 4)), max_size=10).map(sorted),
    min_size=2,
    max_size=6,
)


@pytest.mark.parametrize(
    ("split", "name", "user", "message"),
    [
        (
            SPLIT,
            "train_end",
            1,
            "1 training events at or after the next part's boundary 1970-01-01T00:00:00.0",
        ),
        (SPLIT, "validation_end", 0, "1 validation events at or after"),
        (HELD_BACK, "test_end", 1, "1 test events at or after"),
        (SPLIT, "test_end", 1, "user index 1: parts of the split overlap"),  # the next user's first event
    ],
)
def test_an_event_of_a_later_part_is_found(split: Split, name: str, user: int, message: str) -> None:
    ends = np.array(getattr(split, name))
    ends[user] += 1
    changed: dict[str, Any] = {name: ends}
    with pytest.raises(LeakError, match=message):
        leaks.check_leaks(LOG, replace(split, **changed))


def test_an_event_held_out_after_its_part_is_found() -> None:
    ends = SPLIT.train_end.copy()
    ends[0] -= 1
    with pytest.raises(LeakError, match="1 events before the training part's end are held out"):
        leaks.check_leaks(LOG, replace(SPLIT, train_end=ends))


def test_parts_that_overlap_are_found() -> None:
    swapped = SPLIT.validation_end.copy()
    swapped[1] = SPLIT.train_end[1] - 1
    with pytest.raises(LeakError, match="user index 1: parts of the split overlap"):
        leaks.check_leaks(LOG, replace(SPLIT, validation_end=swapped))


def test_a_later_event_moved_to_the_front_of_a_history_is_found() -> None:
    time = LOG.time.copy()
    time[:4] = time[[3, 0, 1, 2]]  # 9 1 2 5
    with pytest.raises(LeakError, match=r"not in the order of time; 1 events .*--force"):
        leaks.check_leaks(replace(LOG, time=time), SPLIT)


@given(
    st.lists(st.lists(st.tuples(st.integers(0, 9), st.just(1)), max_size=6), min_size=1, max_size=6),
    st.integers(1, 9),
)
def test_disordered_events_are_counted_as_a_plain_loop_does(rows: Rows, block_events: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JaggedHistories, "blocks", lambda self: user_ranges(self.offsets, block_events))
        found = leaks.num_disordered(jagged(rows))
    assert found == sum(now < before for row in rows for (before, _), (now, _) in pairwise(row))


def test_what_trained_by_pencil() -> None:
    assert leaks.training_extent(LOG, SPLIT, with_validation=False) == (6, 6)
    assert leaks.training_extent(LOG, SPLIT, with_validation=True) == (8, 8)
    core = replace(
        SPLIT, kept_item=np.array([False, True, False, True]), train_user=np.array([True, False, True])
    )
    assert leaks.training_extent(LOG, core, with_validation=False) == (3, 6)  # 1 5 | - | 6
    nobody = replace(SPLIT, train_user=np.zeros(3, bool))
    assert leaks.training_extent(LOG, nobody, with_validation=True) == (0, None)


def test_a_system_fitted_on_other_events_is_found() -> None:
    leaks.check_fitted("popularity", 6, 6, LOG, SPLIT, with_validation=False)
    leaks.check_fitted("popularity", 8, 8, LOG, SPLIT, with_validation=True)
    for num_events, latest in ((10, 10), (8, 8), (6, 9), (5, 6), (0, None)):
        with pytest.raises(
            LeakError, match=f"popularity was fitted on {num_events} events .*expected the 6 of"
        ):
            leaks.check_fitted("popularity", num_events, latest, LOG, SPLIT, with_validation=False)


def test_what_leave_one_out_leaks_by_pencil() -> None:
    log = jagged(
        [[(1, 1), (2, 1), (3, 1)], [(4, 1), (5, 1), (6, 1)], [(7, 1), (8, 1)], [(1, 1), (2, 1), (5, 1)]]
    )
    split = splits.leave_one_out(log, 1)
    # trained: 1 | 4 | 7 8 | 1; targets: 3 | 6 | - | 5
    assert leaks.leaks_by_construction(log, split) == {
        "training_after_first_target": 3 / 5,
        "training_after_median_target": 2 / 5,
        "targets_before_training_end": 1,
        "mean_training_after_target": pytest.approx((3 + 2 + 2) / 15),
    }
    # with validation 2 | 5 | - | 2 trains too
    again = leaks.leaks_by_construction(log, split, with_validation=True)
    assert again["training_after_first_target"] == 4 / 8
    assert again["mean_training_after_target"] == pytest.approx((4 + 2 + 2) / 24)


def test_where_no_target_is_left_nothing_leaks() -> None:
    found = leaks.leaks_by_construction(LOG, replace(SPLIT, kept_user=np.zeros(3, bool)))
    assert set(found.values()) == {0}


@given(LOGS, st.sampled_from([0.0, 0.2]), st.integers(1, 9), st.booleans())
def test_temporal_leaks_nothing_by_construction(
    rows: Rows, held_back: float, block_events: int, with_validation: bool
) -> None:
    log = jagged(rows)
    if len(log.time) < 5:
        return
    try:
        split = splits.temporal(log, 4, held_back=held_back)
    except ValueError as error:
        refused(error)
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JaggedHistories, "blocks", lambda self: user_ranges(self.offsets, block_events))
        found = leaks.leaks_by_construction(log, split, with_validation=with_validation)
    assert set(found.values()) == {0}


@given(LOGS, st.integers(1, 9), st.booleans(), st.integers(1, 2))
def test_what_leave_one_out_leaks_is_as_a_plain_loop_says(
    rows: Rows, block_events: int, with_validation: bool, min_item: int
) -> None:
    log = jagged(rows)
    try:
        split = splits.leave_one_out(log, 4, min_item_events=min_item)
    except ValueError as error:
        refused(error)
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JaggedHistories, "blocks", lambda self: user_ranges(self.offsets, block_events))
        found = leaks.leaks_by_construction(log, split, with_validation=with_validation)
        extent = leaks.training_extent(log, split, with_validation=with_validation)
    ends = split.validation_end if with_validation else split.train_end
    events = list(
        enumerate(zip(log.users().tolist(), log.time.tolist(), log.item_index.tolist(), strict=True))
    )
    trained = [t for p, (u, t, i) in events if p < ends[u] and split.train_user[u] and split.kept_item[i]]
    targets = sorted(
        t
        for p, (u, t, i) in events
        if p >= split.validation_end[u] and split.kept_user[u] and split.kept_item[i]
    )
    later = [sum(time > target for time in trained) for target in targets]
    assert extent == (len(trained), max(trained))
    assert found == pytest.approx(
        {
            "training_after_first_target": later[0] / len(trained),
            "training_after_median_target": later[(len(targets) - 1) // 2] / len(trained),
            "targets_before_training_end": sum(each > 0 for each in later) / len(targets),
            "mean_training_after_target": sum(later) / len(trained) / len(targets),
        }
    )
