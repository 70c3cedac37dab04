"""Splits by pencil and against plain loops, rolling cuts, the core filter."""

from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from features.histories import splits
from features.histories.jagged import JaggedHistories, user_ranges
from features.histories.leaks import check_leaks
from tests.factories import Rows, jagged


def refused(error: ValueError) -> None:
    """Let through only that a random log leaves a part, or the core, empty."""
    if "part is empty" not in str(error) and "no user or no item is left" not in str(error):
        raise error


# ten events at times 1..10; user 0 has 1 2 5 9, user 1 has 3 4 7 8 10, user 2 has 6
LOG = jagged([[(1, 1), (2, 2), (5, 3), (9, 1)], [(3, 1), (4, 2), (7, 3), (8, 1), (10, 2)], [(6, 3)]])


def test_temporal_by_pencil() -> None:
    split = splits.temporal(LOG, 3, test_fraction=0.2, validation_fraction=0.2)
    assert (split.validation_from, split.test_from) == (7, 9)
    assert split.train_end.tolist() == [3, 6, 10]  # 1 2 5 | 3 4 | 6
    assert split.validation_end.tolist() == [3, 8, 10]  # - | 7 8 | -
    assert split.num_events(LOG) == {"train": 6, "validation": 2, "test": 2}
    check_leaks(LOG, split)


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
    check_leaks(LOG, split)


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


def test_a_log_of_one_time_is_refused_for_that() -> None:
    with pytest.raises(ValueError, match=r"train 0, validation 0, test 3 .* over 3 events, all of one time"):
        splits.temporal(jagged([[(5, 1), (5, 2)], [(5, 1)]]), 2)


def test_leave_one_out_without_long_enough_histories_is_refused() -> None:
    with pytest.raises(ValueError, match="the validation part is empty"):
        splits.leave_one_out(jagged([[(1, 1), (2, 2)], [(1, 1)]]), 2)


def test_held_back_by_pencil() -> None:
    split = splits.temporal(LOG, 3, test_fraction=0.2, validation_fraction=0.2, held_back=0.2)
    assert (split.validation_from, split.test_from, split.test_until) == (5, 7, 9)
    assert split.train_end.tolist() == [2, 6, 9]  # 1 2 | 3 4 | -
    assert split.validation_end.tolist() == [3, 6, 10]  # 5 | - | 6
    assert split.test_end.tolist() == [3, 8, 10]  # - | 7 8 | -; 9 and 10 are held back
    assert split.num_events(LOG) == {"train": 4, "validation": 2, "test": 2, "held_back": 2}
    check_leaks(LOG, split)


def test_who_is_evaluated_does_not_depend_on_what_is_held_back() -> None:
    settings: dict[str, Any] = {"test_fraction": 0.2, "validation_fraction": 0.2, "min_user_events": 4}
    assert splits.temporal(LOG, 3, **settings).kept_user.tolist() == [True, True, False]
    held_back = splits.temporal(LOG, 3, held_back=0.2, **settings)
    assert held_back.kept_user.tolist() == [False, True, False]  # user 0's fourth event is held back


def test_cuts_by_pencil() -> None:
    assert splits.cuts(3, 0.1, 0.1) == [0.2, 0.1, 0.0]
    assert splits.cuts(1, 0.3, 0.3) == [0.0]
    assert splits.cuts(8, 0.1, 0.1)[0] == 0.7
    for num_cuts in (0, 9, 20):
        with pytest.raises(ValueError, match=rf"split\.cuts: received {num_cuts} .*expected at least 1"):
            splits.cuts(num_cuts, 0.1, 0.1)


@given(st.lists(st.integers(0, 300), min_size=40, max_size=90), st.integers(2, 4))
def test_cuts_nest_and_their_tests_follow_one_another(times: list[int], num_cuts: int) -> None:
    log = jagged([[(time, 1) for time in sorted(times[user::3])] for user in range(3)])
    try:
        found = [
            splits.temporal(log, 1, held_back=held_back) for held_back in splits.cuts(num_cuts, 0.1, 0.1)
        ]
    except ValueError as error:
        refused(error)
        return
    for split in found:
        check_leaks(log, split)
    for earlier, later in pairwise(found):
        assert earlier.test_until == later.test_from
        assert (earlier.test_end == later.validation_end).all()
        assert (earlier.train_end <= later.train_end).all()
    assert found[-1].test_until is None
    assert (found[-1].test_end == log.offsets[1:]).all()


@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 20), st.integers(1, 5)), max_size=12).map(sorted),
        min_size=2,
        max_size=8,
    ),
    st.sampled_from([0.0, 0.1, 0.25, None]),
)
def test_every_split_covers_every_event_once_and_leaks_nothing(rows: Rows, held_back: float | None) -> None:
    log = jagged(rows)
    if not len(log.time):
        return
    try:
        split = (
            splits.leave_one_out(log, 5)
            if held_back is None
            else splits.temporal(log, 5, held_back=held_back)
        )
    except ValueError as error:
        refused(error)
        return
    check_leaks(log, split)
    assert sum(split.num_events(log).values()) == len(log.time)


@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 40), st.integers(1, 4)), max_size=12).map(sorted),
        min_size=2,
        max_size=6,
    ),
    st.sampled_from([0.0, 0.1, 0.3]),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 12),
)
def test_temporal_is_as_a_plain_loop_says(
    rows: Rows, held_back: float, min_user: int, min_item: int, block_events: int
) -> None:
    log = jagged(rows)
    total, times = len(log.time), np.sort(log.time).tolist()
    if not total:
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JaggedHistories, "blocks", lambda self: user_ranges(self.offsets, block_events))
        try:
            split = splits.temporal(
                log,
                4,
                test_fraction=0.2,
                validation_fraction=0.2,
                held_back=held_back,
                min_user_events=min_user,
                min_item_events=min_item,
            )
        except ValueError as error:
            refused(error)
            return
        check_leaks(log, split)
        counts = splits.num_under_core(log, split)
    until = times[min(total - 1, int(np.ceil(total * (1 - held_back))))] if held_back else np.inf
    test_from = times[min(total - 1, int(np.ceil(total * (1 - round(held_back + 0.2, 12)))))]
    before = sum(time < test_from for time in times)
    validation_from = times[max(0, before - max(1, round(0.2 * total)))]
    edges = (0, validation_from, test_from, until)
    expected = {"train": 0, "validation": 0, "test": 0}
    for user, row in enumerate(rows):
        positions = [
            int(log.offsets[user]) + sum(time < edge for time, _ in row)
            for edge in (validation_from, test_from, until)
        ]
        assert positions == [each[user] for each in (split.train_end, split.validation_end, split.test_end)]
        on_kept = sum(split.kept_item[item] for time, item in row if time < until)
        assert split.kept_user[user] == (on_kept >= min_user)
        for part, (start, end) in zip(expected, pairwise(edges), strict=True):
            users = split.train_user if part == "train" else split.kept_user
            expected[part] += sum(
                not (users[user] and split.kept_item[item]) for time, item in row if start <= time < end
            )
    assert counts == expected


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


@pytest.mark.parametrize("held_back", [0.0, 0.2])
def test_saved_and_loaded(tmp_path: Path, held_back: float) -> None:
    split = splits.temporal(LOG, 3, test_fraction=0.2, validation_fraction=0.2, held_back=held_back)
    split.save(tmp_path)
    again = splits.Split.load(tmp_path)
    for name, value in vars(split).items():
        assert np.array_equal(getattr(again, name), value), name
    assert again.test_until == (9 if held_back else None)
