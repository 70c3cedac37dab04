"""A user's own items: how often, how lately and how regularly each was taken.

Letters: r rows (histories), n candidates per row, g pairs of a row and an item of its history, t takings.
"""

from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from models.evaluation.metrics import Float64
from models.histories import Histories, Int32, Int64

Number = TypeVar("Number", bound=np.number[Any])
SECOND, DAY = 1_000_000, 86_400
"""Microseconds per second; seconds per day."""
VISIT_SECONDS = 1_800
"""Events of a row that follow each other within this time are of one visit."""
DECAY_DAYS = (7, 30)
"""Days in which a taking loses 1 - 1/e of its weight."""
OWN_FEATURES = (
    "visit_share",
    "own_rank",
    *(f"taken_{days}d" for days in DECAY_DAYS),
    "last_taken",
    "mean_gap",
    "relative_gap",
    "num_visits",
    "visit_gap",
    "items_per_visit",
)


@dataclass(frozen=True)
class OwnItems:
    """Distinct items of each row's history, each with its takings: the visits that contain it."""

    key: Int64
    """[g], `row * width + item`, ascending"""
    width: int
    """One more than the highest item"""
    events: Int64
    """[g], events on the item"""
    takings: Int64
    """[g], visits with the item"""
    last: Int64
    """[g], position of the latest event on the item"""
    rank: Int64
    """[g], 0 for the row's item of most takings; the one taken later first among equals"""
    pair: Int64
    """[t], pair of each taking, ascending"""
    position: Int64
    """[t], position of each taking's first event"""
    visits: Int64
    """[r], visits of each row"""

    @classmethod
    def of(cls, histories: Histories, *, timed: bool = True) -> "OwnItems":
        """Count each row's items. Without times every event is a visit of its own."""
        row, position = histories.gather()
        item = histories.item_index[position].astype(np.int64)
        is_start = np.ones(len(row), bool)
        if timed:
            time = histories.time[position]
            is_start[1:] = (row[1:] != row[:-1]) | (time[1:] - time[:-1] > VISIT_SECONDS * SECOND)
        visit = np.cumsum(is_start)
        width = int(item.max(initial=0)) + 1
        keys = row * width + item
        order = np.argsort(keys, kind="stable")
        keys, visit, position = keys[order], visit[order], position[order]
        is_new = np.ones(len(keys), bool)
        is_new[1:] = keys[1:] != keys[:-1]
        is_taking = is_new.copy()
        is_taking[1:] |= visit[1:] != visit[:-1]
        pair = np.cumsum(is_new) - 1
        number = int(pair[-1]) + 1 if len(pair) else 0
        takings = np.bincount(pair[is_taking], minlength=number)
        last = np.zeros(number, np.int64)
        last[pair] = position
        key = keys[is_new]
        return cls(
            key,
            width,
            np.bincount(pair, minlength=number),
            takings,
            last,
            _rank_within(key // width, np.lexsort((-last, -takings, key // width))),
            pair[is_taking],
            position[is_taking],
            np.bincount(row[is_start], minlength=len(histories)),
        )

    def pairs(self, items: Int32) -> Int64:
        """[r, n], pair of each candidate [r, n], -1 for items that are not in the row's history."""
        row = np.arange(len(items), dtype=np.int64)[:, None]
        keys = row * self.width + items
        if not len(self.key):
            return np.full(items.shape, -1, np.int64)
        place = np.minimum(np.searchsorted(self.key, keys), len(self.key) - 1)
        return np.where((self.key[place] == keys) & (items < self.width) & (items > 0), place, -1)

    def favourites(self, number: int) -> Int32:
        """[r, number], each row's items of most takings, the one taken later first among equals, padded with 0."""
        row, item = np.divmod(self.key, self.width)
        chosen = (self.rank < number) & (item > 0)
        favourites = np.zeros((len(self.visits), number), np.int32)
        favourites[row[chosen], self.rank[chosen]] = item[chosen]
        return favourites

    def times_seen(self, pairs: Int64) -> Int64:
        """[r, n], events on each candidate in its row's history, from `pairs`."""
        return _of(self.events, pairs)


def own_features(
    histories: Histories, own: OwnItems, pairs: Int64, request: Int64 | None
) -> dict[str, Float64]:
    """`OWN_FEATURES` [r, n] of candidates by their `pairs` [r, n], each from the row's history alone.

    `request` [r]: time of the request, microseconds since the epoch; None: times are positions, and all features of time are 0.
    Shares and counts are logarithms, times and gaps ln(1 + days); 0 where there is nothing to measure: no taking, or for a gap no
    second one. `own_rank` is ln(2 + rank), for other items ln(2 + number of own items). `relative_gap` is the logarithm of the
    time since the last taking over the mean gap, a day added to both.
    """
    visits = own.visits[:, None]
    takings = _of(own.takings, pairs)
    num_items = np.bincount(own.key // own.width, minlength=len(own.visits))[:, None]
    columns = {
        "visit_share": np.log((takings + 0.1) / (visits + 1)),
        "own_rank": np.log(2 + np.where(pairs >= 0, _of(own.rank, pairs), num_items)),
        "num_visits": np.log1p(visits),
        "items_per_visit": np.log1p(histories.lengths[:, None] / np.maximum(visits, 1)),
    }
    times = _times(histories, own, pairs, request) if request is not None else {}
    return {
        name: np.asarray(
            np.broadcast_to(columns.get(name, times.get(name, np.zeros(1))), pairs.shape), np.float64
        )
        for name in OWN_FEATURES
    }


def _times(histories: Histories, own: OwnItems, pairs: Int64, request: Int64) -> dict[str, Float64]:
    """Features of time among `OWN_FEATURES`."""
    columns = {}
    row = own.key // own.width
    taken = _days(request[row[own.pair]] - histories.time[own.position])
    for days in DECAY_DAYS:
        weight = np.bincount(own.pair, np.exp(-taken / days), minlength=len(own.key))
        columns[f"taken_{days}d"] = np.log1p(_of(weight, pairs))
    newest = _days(request[row] - histories.time[own.last])
    oldest = np.zeros(len(own.key))
    oldest[own.pair[::-1]] = taken[::-1]
    gap = (oldest - newest) / np.maximum(own.takings - 1, 1)
    is_repeated = _of(own.takings, pairs) > 1
    since, mean_gap = _of(newest, pairs), np.where(is_repeated, _of(gap, pairs), 0.0)
    columns["last_taken"] = np.log1p(since)
    columns["mean_gap"] = np.log1p(mean_gap)
    columns["relative_gap"] = np.where(is_repeated, np.log((since + 1) / (mean_gap + 1)), 0.0)
    whole, filled = np.zeros(len(histories)), np.flatnonzero(histories.lengths)
    first, last = histories.starts[filled], histories.ends[filled] - 1
    whole[filled] = _days(histories.time[last] - histories.time[first])
    columns["visit_gap"] = np.log1p(whole / np.maximum(own.visits - 1, 1))[:, None]
    return columns


def _rank_within(row: Int64, order: Int64) -> Int64:
    """[g], place within its row of each pair, the pairs sorted by `order` row after row."""
    sorted_row = row[order]
    starts = np.searchsorted(sorted_row, sorted_row)
    rank = np.empty(len(row), np.int64)
    rank[order] = np.arange(len(row)) - starts
    return rank


def _of(values: NDArray[Number], pairs: Int64) -> NDArray[Number]:
    """[r, n], value of each pair, 0 for pair -1."""
    return np.append(values, np.zeros(1, values.dtype))[pairs]


def _days(microseconds: Int64) -> Float64:
    return np.asarray(np.maximum(microseconds, 0) / (DAY * SECOND))
