"""Visits: events of one user at one time, or within a session, as a table of the distinct items of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from models.topk import event_chunks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from models.histories import Histories, Int32, Int64

# Letters in shapes: r rows (histories), t takings: each item of a visit once.


@dataclass(frozen=True)
class Visits:
    """Items taken per visit, in the order of rows and, within a row, of visits; unknown items (0) are no events."""

    row: Int64
    """[t], row of the histories."""
    visit: Int64
    """[t], number of the visit within its row, 0 the oldest."""
    item: Int32
    """[t], 1..num_items."""
    time: Int64
    """[t], latest time at which the visit took the item, microseconds."""
    num_visits: Int64
    """[r], visits of each row."""

    @classmethod
    def of(cls, histories: Histories, session: int = 0) -> Visits:
        """Divide rows into visits: neighbouring events at most `session` microseconds apart; 0: of the same time."""
        row, position = histories.gather()
        known = histories.item_index[position] > 0
        row, position = row[known], position[known]
        item, time = histories.item_index[position], histories.time[position]
        is_other_row = np.diff(row, prepend=-1) > 0
        begins = is_other_row | (np.diff(time, prepend=time[:1]) > session)
        visit = np.cumsum(begins) - 1  # over all rows
        num_visits = np.bincount(row[begins], minlength=len(histories)).astype(np.int64)
        order = np.lexsort((time, item, visit))
        is_last = np.ones(len(order), bool)
        is_last[:-1] = (np.diff(visit[order]) > 0) | (np.diff(item[order]) > 0)
        chosen = order[is_last]
        first = np.cumsum(num_visits) - num_visits
        return cls(row[chosen], visit[chosen] - first[row[chosen]], item[chosen], time[chosen], num_visits)


def visits_in_chunks(histories: Histories, session: int) -> Iterator[tuple[slice, Visits]]:
    """Slices of rows and their visits, in chunks of events; rows are numbered from each slice's start."""
    for rows in event_chunks(histories.lengths):
        yield rows, Visits.of(histories.select(rows), session)
