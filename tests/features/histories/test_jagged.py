"""Jagged histories: saved and loaded, ranges of users."""

from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from features.histories.jagged import JaggedHistories, user_ranges

HISTORIES = JaggedHistories(
    np.array([0, 2, 2, 3], np.int64),
    np.array([1, 3, 3], np.int32),
    np.array([5, 6, 4], np.int64),
    np.array([0, 1, 2], np.int16),
    np.array([1.0, np.nan, 2.0], np.float32),
)


def test_saved_and_memory_mapped(tmp_path: Path) -> None:
    HISTORIES.save(tmp_path)
    again = JaggedHistories.load(tmp_path)
    assert isinstance(again.item_index, np.memmap)
    assert (again.item_index == HISTORIES.item_index).all()
    assert (again.offsets == HISTORIES.offsets).all()


def test_users_and_counts_by_pencil() -> None:
    assert HISTORIES.users().tolist() == [0, 0, 2]
    assert HISTORIES.item_counts(4).tolist() == [0, 1, 0, 2, 0]
    assert HISTORIES.item_counts(4, np.array([1, 2, 3])).tolist() == [0, 1, 0, 1, 0]


@given(st.lists(st.integers(0, 5), max_size=20), st.integers(1, 8))
def test_ranges_hold_every_user_once_and_no_more_events_than_asked(
    lengths: list[int], max_events: int
) -> None:
    offsets = np.cumsum([0, *lengths])
    ranges = list(user_ranges(offsets, max_events))
    assert [user for first, last in ranges for user in range(first, last)] == list(range(len(lengths)))
    for first, last in ranges:
        assert last == first + 1 or offsets[last] - offsets[first] <= max_events
