"""Popularity baselines: over all events and over the last days."""

from __future__ import annotations

from typing import Self

import numpy as np

from models.baselines.base import Baseline, FittedOn, item_counts
from models.histories import Float32, Histories, Int64

# Letters in shapes: r rows (histories), n items.

_MICROSECONDS_PER_DAY = 86_400_000_000


class Popularity(Baseline):
    """score(item) = number of its events, the same for every history."""

    ARRAYS = ("counts",)
    moves = True

    def __init__(self, counts: Float32, fitted_on: FittedOn | None = None) -> None:
        super().__init__(len(counts) - 1, fitted_on or FittedOn(int(counts[1:].sum(dtype=np.float64)), None))
        self.counts = counts
        self.scores = counts.astype(np.float32)
        self.scores[0] = -np.inf

    @classmethod
    def fit(cls, histories: Histories, num_items: int) -> Self:
        """Count the events of items 1..`num_items`; 0 is unknown."""
        return cls(item_counts(histories, num_items).astype(np.float32), FittedOn.of(histories))

    def score_items(self, histories: Histories) -> Float32:
        """[r, n + 1], the counts in every row."""
        return np.tile(self.scores, (len(histories), 1))


class RecentPopularity(Popularity):
    """score(item) = number of its events in the last `days` days of the training events."""

    GRID = ({"days": 7.0}, {"days": 1.0}, {"days": 3.0}, {"days": 30.0})

    @classmethod
    def fit(cls, histories: Histories, num_items: int, days: float = 7.0) -> Self:
        """Count the events whose time (microseconds) > latest - `days`. Raises ValueError for no events, or days <= 0."""
        if not days > 0:
            raise ValueError(f"RecentPopularity: received days={days}, expected more than 0")
        fitted_on = FittedOn.of(histories)
        if fitted_on.latest is None:
            raise ValueError("RecentPopularity: received no events, expected at least one with a time")
        counts = recent_counts(histories, num_items, fitted_on.latest, days)
        return cls(counts.astype(np.float32), fitted_on)


def recent_counts(histories: Histories, num_items: int, latest: int | None, days: float) -> Int64:
    """[n + 1], events of each item whose time > latest - `days` (latest in microseconds); 0 without a latest one."""
    since = None if latest is None else latest - round(days * _MICROSECONDS_PER_DAY)
    return item_counts(histories, num_items, since)
