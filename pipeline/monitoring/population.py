"""Drift of the population: the events of each of the last days against those of the two weeks that ended a day before.

The day between lets a sudden change count as one on its second day too.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from features.histories.jagged import JaggedHistories
from features.profiling.drift import NUM_BINS, index_of, popularity_bins
from models.histories import Int64
from pipeline.monitoring.ledger import DAY

GAP, REFERENCE = 1, 14
"""Days between a day and the days that it is compared with, and their number."""
SHOWN = 16
"""Days compared: those of two nights, and 14 that show what is usual."""
_ROWS = 1 + SHOWN + GAP + REFERENCE
"""Rows of counts: events after the last day, then of each day, the newest first."""

# Letters in shapes: d rows of counts, k keys (items or users).


@dataclass(frozen=True)
class DayShift:
    """Difference of a day's events from those of the two weeks that ended a day before."""

    items: float
    """Population stability index of items, grouped by their events in those weeks"""
    unknown_items: float
    """Share of events on items without an event up to the end of those weeks"""
    unknown_users: float
    """Share of the day's users without an event up to the end of those weeks"""


def of_days(histories: JaggedHistories, num_events: Int64, now: int) -> list[DayShift | None]:
    """Shift of each of the last SHOWN days, of 24 hours up to `now` (microseconds since the epoch), the newest first.

    num_events: [num_items + 1] events of each item in the whole log. None: no events on that day or in one of its two weeks.
    """
    of_items, of_users = _counts(histories, len(num_events), now)
    shifts: list[DayShift | None] = []
    for day in range(1, SHOWN + 1):
        before = slice(day + GAP + 1, day + GAP + 1 + REFERENCE)
        if not all(of_items[rows].any() for rows in (day, *_halves(before))):
            shifts.append(None)
            continue
        items = _index(of_items[before].sum(axis=0), of_items[day])
        since = slice(day + GAP + 1)
        is_new_item = num_events <= of_items[since].sum(axis=0)
        is_new_user = np.diff(histories.offsets) <= of_users[since].sum(axis=0)
        unknown_items = of_items[day][is_new_item].sum() / of_items[day].sum()
        unknown_users = is_new_user[of_users[day] > 0].mean()
        shifts.append(DayShift(items, float(unknown_items), float(unknown_users)))
    return shifts


def _halves(rows: slice) -> tuple[slice, slice]:
    """The newer and the older week."""
    middle = (rows.start + rows.stop) // 2
    return slice(rows.start, middle), slice(middle, rows.stop)


def _counts(
    histories: JaggedHistories, num_keys: int, now: int
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Events of the last days, [d, k] by item and [d, k] by user."""
    of_items = np.zeros((_ROWS, num_keys), np.int32)
    of_users = np.zeros((_ROWS, histories.num_users), np.int32)
    for first, last in histories.blocks():
        offsets = np.asarray(histories.offsets[first : last + 1])
        time = np.asarray(histories.time[offsets[0] : offsets[-1]])
        recent = np.flatnonzero(time > now - (_ROWS - 1) * DAY)
        row = np.maximum((now - time[recent]) // DAY + 1, 0)
        position = recent + offsets[0]
        user = np.searchsorted(offsets, position, side="right") - 1
        of_items += _by_row(row, np.asarray(histories.item_index)[position], num_keys)
        of_users[:, first:last] = _by_row(row, user, last - first)
    return of_items, of_users


def _by_row(row: Int64, key: NDArray[np.integer], num_keys: int) -> NDArray[np.int32]:
    """[d, k] number of events of each row and key."""
    counts = np.bincount(row * num_keys + key, minlength=_ROWS * num_keys)
    return counts.reshape(_ROWS, num_keys).astype(np.int32)


def _index(before: Int64, new: NDArray[np.int32]) -> float:
    """Population stability index of events per key [k], in groups of equal shares of the earlier events."""
    is_seen = before > 0
    bins = popularity_bins(before[is_seen])
    earlier, later = (np.bincount(bins, counts[is_seen], NUM_BINS + 1) for counts in (before, new))
    later[NUM_BINS] = new[~is_seen].sum()
    return index_of(earlier / earlier.sum(), later / later.sum())
