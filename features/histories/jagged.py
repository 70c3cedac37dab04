"""Jagged per-user arrays: every user's whole history, stored once, flat and memory-mapped."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

BLOCK_EVENTS = 4_000_000
"""Events processed at a time, so that memory is bounded."""
DISLIKES = "dislikes.npy"
"""File of the event types that are dislikes, where there are any."""
EVENT_COLUMNS = "event_columns.npy"
"""File of the codes of further columns, where the log has any."""


def user_ranges(offsets: NDArray[np.int64], max_events: int) -> Iterator[tuple[int, int]]:
    """Ranges of users [first, last) with at most `max_events` events together; one user's events are never divided.

    offsets: [num_users + 1], where each user's events begin.
    """
    num_users, first = len(offsets) - 1, 0
    while first < num_users:
        fits = int(np.searchsorted(offsets, offsets[first] + max_events, side="right")) - 1
        last = max(fits, first + 1)
        yield first, last
        first = last


@dataclass(frozen=True)
class JaggedHistories:
    """Histories of users 0..num_users-1: user u's events are `flat[offsets[u]:offsets[u + 1]]`, oldest first.

    Order is (timestamp, source file, source row), so equal times keep the order of the log.
    """

    offsets: NDArray[np.int64]
    """[num_users + 1]"""
    item_index: NDArray[np.int32]
    """[events], 1..num_items"""
    time: NDArray[np.int64]
    """[events], microseconds since the epoch, UTC"""
    event_type: NDArray[np.int16]
    """[events], 0: none, 1.. in the order of the type names"""
    value: NDArray[np.float32]
    """[events], NaN where the log has none"""
    dislikes: NDArray[np.float32] | None = None
    """[num_event_types + 1], size of the negative weight of types that are dislikes, 0 for others; None: no type is one"""
    event_columns: NDArray[np.int32] | None = None
    """[events, columns], codes of the values of further columns, 0: no value; None: the log has none"""

    def is_dislike(self, events: slice | NDArray[np.int64]) -> NDArray[np.bool_]:
        """[events] whether the events at flat positions are dislikes."""
        kind = np.asarray(self.event_type[events])
        return np.zeros(len(kind), bool) if self.dislikes is None else self.dislikes[kind] > 0

    @property
    def num_users(self) -> int:
        """Number of users, including those without events."""
        return len(self.offsets) - 1

    def users(self) -> NDArray[np.int64]:
        """[events] the user of every event."""
        return np.repeat(np.arange(self.num_users), np.diff(self.offsets))

    def blocks(self, max_events: int = BLOCK_EVENTS) -> Iterator[tuple[int, int]]:
        """Ranges of users with at most `max_events` events together: see `user_ranges`."""
        return user_ranges(self.offsets, max_events)

    def first_at(self, moment: int) -> NDArray[np.int64]:
        """[num_users] flat position of each user's first event at or after a moment, by bisection of ascending times."""
        low, high = np.array(self.offsets[:-1]), np.array(self.offsets[1:])
        while (is_open := low < high).any():
            middle = (low + high) // 2
            is_earlier = is_open.copy()
            is_earlier[is_open] = self.time[middle[is_open]] < moment
            low, high = np.where(is_earlier, middle + 1, low), np.where(is_open & ~is_earlier, middle, high)
        return low

    def item_counts(self, num_items: int, ends: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
        """[num_items + 1] events of every item without dislikes; 0 is padding.

        ends: [num_users] flat positions up to which each user's events count; None: all of them.
        """
        counts = np.zeros(num_items + 1, np.int64)
        for first, last in self.blocks():
            begin, end = self.offsets[first], self.offsets[last]
            items = self.item_index[begin:end]
            counted = (
                np.ones(len(items), bool) if self.dislikes is None else ~self.is_dislike(slice(begin, end))
            )
            if ends is not None:
                lengths = np.diff(self.offsets[first : last + 1])
                counted &= np.arange(begin, end) < np.repeat(ends[first:last], lengths)
            items = items[counted]
            counts += np.bincount(items, minlength=num_items + 1)
        return counts

    def save(self, folder: Path) -> None:
        """One .npy file per array."""
        for field in fields(self):
            if (array := getattr(self, field.name)) is not None:
                np.save(folder / f"{field.name}.npy", array, allow_pickle=False)

    @classmethod
    def load(cls, folder: Path) -> "JaggedHistories":
        """The saved histories, memory-mapped: nothing is read until it is used."""
        arrays = [field.name for field in fields(cls) if field.name != "dislikes"]
        if not (folder / EVENT_COLUMNS).exists():
            arrays.remove("event_columns")
        return cls(
            **{name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in arrays},
            dislikes=saved_dislikes(folder),
        )


def saved_dislikes(folder: Path) -> NDArray[np.float32] | None:
    """`JaggedHistories.dislikes` of saved histories."""
    return np.load(folder / DISLIKES) if (folder / DISLIKES).exists() else None
