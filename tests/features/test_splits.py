"""Splits by pencil, the core filter, and leaks that must be found."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from features import splits
from features.histories import JaggedHistories, user_ranges
from features.splits import LeakError

Rows = list[list[tuple[int, int]]]


def jagged(rows: Rows) -> JaggedHistories:
    """Histories from (time, item) pairs per user."""
    flat = [pair for row in rows for pair in row]
    count = len(flat)
    return JaggedHistories(
        np.cumsum([0, *(len(row) for row in rows)]).astype(np.int64),
        np.array([item for _, item in flat], np.int32),
        np.array([time for time, _ in flat], np.int64),
        np.zeros(count, np.int16),
        np.full(count, np.nan, np.float32),
    )


# ten events at times 1..10; user 0 has 1 2 5 9, user 1 has 3 4 7 8 10, user 2 has 6
LOG = jagged([[(1, 1), (2, 2), (5, 3), (9, 1)], [(3, 1), (4, 2), (7, 3), (8, 1), (10, 2)], [(6, 3)]])


def test_temporal_by_pencil() -> None:
    split = splits.temporal(LOG, 3, test_fraction=0.2, validation_fraction=0.2)
    assert (split.validation_from, split.test_from) == (7, 9)
    assert split.train_end.tolist() == [3, 6, 10]  # 1 2 5 | 3 4 | 6
    assert split.validation_end.tolist() == [3, 8, 10]  # - | 7 8 | -
    assert split.num_events(LOG) == {"train": 6, "validation": 2, "test": 2}
    splits.check_leaks(LOG, split)


def test_temporal_from_a_date() -> None:
    split = splits.temporal(LOG, 3, test_from=8, validation_fraction=0.2)
    assert (split.validation_from, split.test_from) == (6, 8)


def test_ties_at_a_boundary_belong_to_the_later_part() -> None:
    log = jagged([[(1, 1), (2, 2), (3, 1)], [(1, 2), (3, 1), (3, 2)], [(2, 1), (3, 2)]])
    split = splits.temporal(log, 2, test_fraction=0.2, validation_fraction=0.2)
    assert split.test_from == 3
    assert split.num_events(log) == {"train": 2, "validation": 2, "test": 4}


def test_leave_one_out_by_pencil() -> None:
    split = splits.leave_one_out(LOG, 3)
    assert split.train_end.tolist() == [2, 7, 10]
    assert split.validation_end.tolist() == [3, 8, 10]  # user 2 has one event: it only trains
    assert split.kept_user.tolist() == [True, True, False]
    assert split.num_events(LOG) == {"train": 6, "validation": 2, "test": 2}
    splits.check_leaks(LOG, split)


def test_leave_one_out_takes_the_last_event_over_the_core() -> None:
    log = jagged([[(1, 1), (2, 2), (3, 1), (4, 3)], [(1, 1), (2, 2), (3, 1), (4, 2)]])
    split = splits.leave_one_out(log, 3, min_item_events=2)
    assert split.kept_item.tolist() == [False, True, True, False]
    assert split.validation_end.tolist() == [2, 7]  # user 0's last event, on item 3, is under the core
    assert split.train_end.tolist() == [1, 6]
    assert splits.num_under_core(log, split) == {
        "train": 0,
        "validation": 0,
        "test": 1,
    }  # that event of user 0


def test_the_core_filter_is_repeated_until_stable() -> None:
    log = jagged([[(1, 1), (2, 2)], [(1, 1), (2, 2)], [(1, 2), (2, 3)], [(1, 3)]])
    users, items = splits.core(log, log.offsets[1:], 3, min_user=2, min_item=2)
    # user 3 goes (one event), then item 3 (one left), then user 2, and items 1 and 2 stay with users 0 and 1
    assert users.tolist() == [True, True, False, False]
    assert items.tolist() == [False, True, True, False]


@pytest.mark.parametrize(
    "settings", [{"test_from": 100}, {"test_from": 0}, {"min_user_events": 50}, {"min_item_events": 50}]
)
def test_an_empty_part_is_refused(settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"split: the|history\.min_user_events"):
        splits.temporal(LOG, 3, **settings)


def test_leave_one_out_without_long_enough_histories_is_refused() -> None:
    with pytest.raises(ValueError, match="the validation part is empty"):
        splits.leave_one_out(jagged([[(1, 1), (2, 2)], [(1, 1)]]), 2)


def test_planted_leaks_are_found() -> None:
    split = splits.temporal(LOG, 3, test_fraction=0.2, validation_fraction=0.2)
    late = split.train_end.copy()
    late[1] += 1  # an event of the validation period trains
    with pytest.raises(LeakError, match="1 training events at or after"):
        splits.check_leaks(LOG, replace(split, train_end=late))
    late = split.validation_end.copy()
    late[0] += 1  # an event of the test period validates
    with pytest.raises(LeakError, match="1 validation events at or after"):
        splits.check_leaks(LOG, replace(split, validation_end=late))
    swapped = split.validation_end.copy()
    swapped[1] = split.train_end[1] - 1
    with pytest.raises(LeakError, match="overlap"):
        splits.check_leaks(LOG, replace(split, validation_end=swapped))
    shuffled = LOG.time.copy()
    shuffled[:2] = shuffled[:2][::-1]
    with pytest.raises(LeakError, match="order of time"):
        splits.check_leaks(replace(LOG, time=shuffled), split)


@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 20), st.integers(1, 5)), max_size=12).map(sorted),
        min_size=2,
        max_size=8,
    ),
    st.sampled_from(["temporal", "leave_one_out"]),
)
def test_every_split_covers_every_event_once_and_leaks_nothing(rows: Rows, protocol: str) -> None:
    log = jagged(rows)
    try:
        split = getattr(splits, protocol)(log, 5) if len(log.time) else None
    except ValueError:
        return  # refused: a part would be empty
    if split is None:
        return
    splits.check_leaks(log, split)
    assert sum(split.num_events(log).values()) == len(log.time)


@given(
    st.lists(st.lists(st.tuples(st.integers(-5, 2**55), st.integers(1, 5)), max_size=9), max_size=9).map(
        lambda rows: [sorted(row) for row in rows if row]
    ),
    st.data(),
    st.integers(1, 12),
)
def test_block_by_block_is_as_all_at_once(rows: Rows, data: st.DataObject, block_events: int) -> None:
    log = jagged(rows)
    times = np.sort(log.time)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JaggedHistories, "blocks", lambda self: user_ranges(self.offsets, block_events))
        patch.setattr(splits, "BLOCK_EVENTS", 2)
        if len(times):
            place = data.draw(st.integers(0, len(times) - 1))
            assert splits.nth_time(log, place) == times[place]
        assert (log.item_counts(5) == np.bincount(log.item_index, minlength=6)).all()
        minimum = data.draw(st.integers(1, 3))
        users, items = splits.core(log, log.offsets[1:], 5, minimum, 2)
    expected_users, expected_items = core_at_once(log, minimum, 2)
    assert (users == expected_users).all()
    assert (items == expected_items).all()


def core_at_once(log: JaggedHistories, min_user: int, min_item: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """The core filter, event by event, until nothing changes."""
    events = list(zip(log.users().tolist(), log.item_index.tolist(), strict=True))
    while True:
        users, items = Counter(user for user, _ in events), Counter(item for _, item in events)
        left = [(user, item) for user, item in events if users[user] >= min_user and items[item] >= min_item]
        if len(left) == len(events):
            break
        events = left
    return (
        np.array([users[user] >= min_user for user in range(log.num_users)], bool),
        np.array([item > 0 and items[item] >= min_item for item in range(6)], bool),
    )


def test_saved_and_loaded(tmp_path: Path) -> None:
    split = splits.temporal(LOG, 3, test_fraction=0.2, validation_fraction=0.2)
    split.save(tmp_path)
    again = splits.Split.load(tmp_path)
    assert (again.train_end == split.train_end).all()
    assert (again.protocol, again.test_from) == (split.protocol, split.test_from)
