"""Base class and shared counts of the reference recommenders.

Each is fitted by `X.fit(histories, num_items, **settings)` and implements `Recommender`. Its `GRID` lists the settings tried on
validation, the default first.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from models.histories import Float32, Histories, Int32, Int64
from models.topk import event_chunks, recommend_in_chunks

if TYPE_CHECKING:
    from scipy.sparse import csr_array

# Letters in shapes: r rows (histories), n items, e events.

Settings = dict[str, float | int]
"""Keyword arguments of `fit`."""

PRIOR_WEIGHT = 1e-4
"""Prior score of an item with all events, far below a baseline's own scores."""


@dataclass(frozen=True)
class FittedOn:
    """Number and latest time of a system's training events."""

    num_events: int
    """Interactions with a known item (> 0)."""
    latest: int | None
    """Latest time, in microseconds since the epoch; None without events or times."""

    @classmethod
    def of(cls, histories: Histories) -> FittedOn:
        """Count the interactions of all rows and find the latest; overlapping rows count separately."""
        num_events, latest = 0, None
        for rows in event_chunks(histories.lengths):
            _, positions = histories.select(rows).gather()
            times = histories.time[positions][histories.item_index[positions] > 0]
            num_events += len(times)
            if len(times):
                newest = int(times.max())
                latest = newest if latest is None else max(latest, newest)
        return cls(num_events, latest)


class Baseline(abc.ABC):
    """Base class of baselines: `recommend` takes the top of `score_items`."""

    GRID: ClassVar[tuple[Settings, ...]] = ({},)
    """Settings of `fit` tried on validation, the default first; at most six."""
    needs_seen: ClassVar[bool] = False
    """Whether it recommends items of the history itself, and so applies only where those may be recommended."""
    moves: ClassVar[bool] = False
    """Whether its parameters are counts of events, counted anew at each night; others keep those of the boundary."""

    def __init__(self, num_items: int, fitted_on: FittedOn) -> None:
        self.num_items = num_items
        self.fitted_on = fitted_on

    @abc.abstractmethod
    def score_items(self, histories: Histories) -> Float32:
        """[r, n + 1] scores, higher is better; column 0 is -inf."""

    def recommend(self, histories: Histories, k: int, exclude_seen: bool = True) -> tuple[Int32, Float32]:
        """Top-k items of each row and their scores, as in `Recommender`."""
        return recommend_in_chunks(self.score_items, self.num_items, histories, k, exclude_seen)


def item_counts(histories: Histories, num_items: int, since: int | None = None) -> Int64:
    """[n + 1], events of each item over all rows, only those later than `since` (microseconds) if given; 0 at item 0."""
    counts = np.zeros(num_items + 1, np.int64)
    for rows in event_chunks(histories.lengths):
        _, positions = histories.select(rows).gather()
        if since is not None:
            positions = positions[histories.time[positions] > since]
        counts += np.bincount(histories.item_index[positions], minlength=num_items + 1)
    counts[0] = 0
    return counts


def popularity_prior(counts: Int64) -> Float32:
    """[n + 1], `PRIOR_WEIGHT` times each item's share of all events: ranks unscored items, and all for empty histories."""
    return np.asarray(counts / max(int(counts.sum()), 1) * PRIOR_WEIGHT, np.float32)


def interactions(histories: Histories, num_items: int) -> csr_array:
    """Binary interaction matrix X [r, n + 1], float32: X[i, j] = 1 if row i holds item j; column 0 is empty."""
    from scipy.sparse import csr_array, vstack

    parts = [csr_array((0, num_items + 1), dtype=np.float32)]
    for chunk in event_chunks(histories.lengths):
        row, position = histories.select(chunk).gather()
        item = histories.item_index[position]
        known = item > 0
        starts = np.searchsorted(row[known], np.arange(chunk.stop - chunk.start + 1)).astype(np.int32)
        ones = np.ones(int(starts[-1]), np.float32)
        part = csr_array((ones, item[known], starts), shape=(len(starts) - 1, num_items + 1))
        part.sum_duplicates()
        part.data[:] = 1
        parts.append(part)
    return vstack(parts, format="csr")
