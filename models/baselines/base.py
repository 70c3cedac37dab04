"""Base class of the reference recommenders, and the counts that they share.

Each is fitted by `X.fit(histories, num_items, **settings)` and answers `Recommender`; the settings in its `GRID` are tried on
validation, the first of them where nothing is tuned.
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
"""Keyword arguments of one `fit`, as a `GRID` lists them."""

PRIOR_WEIGHT = 1e-4
"""Score of an item with all of the events in `popularity_prior`, far below a baseline's own scores."""


@dataclass(frozen=True)
class FittedOn:
    """Number and latest time of the events that a system was fitted on."""

    num_events: int
    """Interactions with a known item (> 0)."""
    latest: int | None
    """Their latest time, microseconds since the epoch; None where there are none, or times were not given."""

    @classmethod
    def of(cls, histories: Histories) -> FittedOn:
        """Count the interactions of all rows and find the latest; rows that overlap count theirs once each."""
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
    """Base class of baselines: `recommend` is the top of `score_items`."""

    GRID: ClassVar[tuple[Settings, ...]] = ({},)
    """Settings of `fit` that are tried on validation, the default first; at most six."""

    def __init__(self, num_items: int, fitted_on: FittedOn) -> None:
        self.num_items = num_items
        self.fitted_on = fitted_on

    @abc.abstractmethod
    def score_items(self, histories: Histories) -> Float32:
        """[r, n + 1], higher is better; column 0 is -inf."""

    def recommend(self, histories: Histories, k: int, exclude_seen: bool = True) -> tuple[Int32, Float32]:
        """The k best items of each row and their scores, as every `Recommender` answers."""
        return recommend_in_chunks(self.score_items, self.num_items, histories, k, exclude_seen)


def item_counts(histories: Histories, num_items: int, since: int | None = None) -> Int64:
    """[n + 1] events of each item over all rows, those later than `since` (microseconds) only if given; 0 at item 0."""
    counts = np.zeros(num_items + 1, np.int64)
    for rows in event_chunks(histories.lengths):
        _, positions = histories.select(rows).gather()
        if since is not None:
            positions = positions[histories.time[positions] > since]
        counts += np.bincount(histories.item_index[positions], minlength=num_items + 1)
    counts[0] = 0
    return counts


def popularity_prior(counts: Int64) -> Float32:
    """[n + 1]: `PRIOR_WEIGHT` times each item's share of all events.

    Added to scores, it orders the items that a baseline gives no score, and ranks items for empty histories.
    """
    prior: Float32 = (counts / max(int(counts.sum()), 1) * PRIOR_WEIGHT).astype(np.float32)
    return prior


def interactions(histories: Histories, num_items: int) -> csr_array:
    """X [r, n + 1], float32: X[i, j] = 1 where row i holds item j however often, else 0; column 0 is empty."""
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
