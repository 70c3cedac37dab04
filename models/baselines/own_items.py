"""Own favourites: the items that a user takes most often, or took last, filled up by recent popularity."""

from __future__ import annotations

import abc
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from models.baselines.base import Baseline, FittedOn, Settings
from models.baselines.popularity import recent_counts
from models.baselines.visits import Visits, visits_in_chunks
from models.histories import Float32, Histories, Int32, Int64

# Letters in shapes: r rows (histories), n items, p pairs of a row and an item it holds.

ALWAYS = 36_500.0
"""Days beyond any log: popularity over all time."""
FILL_WEIGHT = 0.5
"""Highest score of an item that the history does not hold, at most half of the lowest own one."""


class OwnItems(Baseline):
    """Base class: own items by `own_scores`, all at least 1, then the others by their share of recent events.

    score(other item) = `FILL_WEIGHT` times its events in the last `days` days of the training events / all of those.
    """

    GRID: ClassVar[tuple[Settings, ...]] = ({"days": 30.0}, {"days": 7.0}, {"days": 90.0})
    ARRAYS = ("counts",)
    NUMBERS: ClassVar[tuple[str, ...]] = ("session",)
    needs_seen = True
    moves = True

    def __init__(self, counts: Int64, session: int, fitted_on: FittedOn) -> None:
        super().__init__(len(counts) - 1, fitted_on)
        self.counts = counts
        """[n + 1], events of the last days."""
        self.session = session

    @classmethod
    def fit(cls, histories: Histories, num_items: int, days: float = 30.0, session: int = 0) -> Self:
        """Count recent popularity; `session` in microseconds, see `Visits`. Raises ValueError for days <= 0, session < 0."""
        if not days > 0 or session < 0:
            raise ValueError(
                f"{cls.__name__}: received days={days}, session={session}; expected days above 0, session at least 0"
            )
        fitted_on = FittedOn.of(histories)
        return cls(recent_counts(histories, num_items, fitted_on.latest, days), session, fitted_on)

    def score_items(self, histories: Histories) -> Float32:
        """[r, n + 1], from each row's own visits."""
        fill = self.counts / max(int(self.counts.sum()), 1) * FILL_WEIGHT
        scores = np.tile(fill.astype(np.float32), (len(histories), 1))
        scores[:, 0] = -np.inf
        for rows, visits in visits_in_chunks(histories, self.session):
            row, item, own = self._own(visits)
            scores[rows.start + row, item] = own
        return scores

    def _own(self, visits: Visits) -> tuple[Int64, Int32, Float32]:
        """([p] row, [p] item, [p] score) of the distinct items of each row."""
        order = np.lexsort((visits.visit, visits.item, visits.row))
        row, item = visits.row[order], visits.item[order]
        starts = _changes(row, item)
        ends = np.roll(starts, -1)  # the first starts, so that the last ends
        pair = np.cumsum(starts) - 1
        count = np.bincount(pair).astype(np.int64)
        row, item, time = row[ends], item[ends], visits.time[order][ends]
        return row, item, self.own_scores(row, count, time, self.counts[item])

    @abc.abstractmethod
    def own_scores(self, row: Int64, count: Int64, time: Int64, recent: Int64) -> Float32:
        """[p] scores of at least 1 from each pair's row, visits, last time (microseconds) and recent events of the item."""


class OwnFrequent(OwnItems):
    """Items that the user takes most often: the visits that took it; of as many, the latest, then the recently popular.

    score(own item) = its visits + l / (L + 1), l = 1..L its place among the row's distinct (visits, last time, recent events),
    the lowest first; with `popular_first` 1 (visits, recent events, last time).
    """

    GRID = (*OwnItems.GRID, {"days": ALWAYS}, {"days": ALWAYS, "popular_first": 1})
    NUMBERS = ("session", "popular_first")

    def __init__(self, counts: Int64, session: int, popular_first: int, fitted_on: FittedOn) -> None:
        super().__init__(counts, session, fitted_on)
        self.popular_first = popular_first

    @classmethod
    def fit(
        cls,
        histories: Histories,
        num_items: int,
        days: float = 30.0,
        session: int = 0,
        popular_first: int = 0,
    ) -> Self:
        """Count recent popularity, as `OwnItems.fit`; popular_first: 1 breaks ties by popularity before time."""
        plain = OwnRecent.fit(histories, num_items, days, session)
        return cls(plain.counts, session, popular_first, plain.fitted_on)

    def own_scores(self, row: Int64, count: Int64, time: Int64, recent: Int64) -> Float32:
        """[p], visits and a fraction."""
        ties = (recent, time) if self.popular_first else (time, recent)
        level, num_levels = _levels(row, count, *ties)
        return (count + level / (num_levels + 1)).astype(np.float32)


class OwnRecent(OwnItems):
    """Items that the user took last, the latest first; of one time, the more frequent, then the recently popular.

    score(own item) = 1..L, its place among the row's distinct (last time, visits, recent events), the lowest first.
    """

    def own_scores(self, row: Int64, count: Int64, time: Int64, recent: Int64) -> Float32:
        """[p], places."""
        return _levels(row, time, count, recent)[0].astype(np.float32)


def _levels(row: Int64, *keys: Int64) -> tuple[Int64, Int64]:
    """([p] place 1.. of each pair's keys among its row's distinct ones, ascending; [p] number of those)."""
    order = np.lexsort((*keys[::-1], row))
    sorted_row = row[order]
    level = np.cumsum(_changes(*(key[order] for key in (row, *keys))), dtype=np.int64)
    first = np.flatnonzero(_changes(sorted_row))
    sizes = np.diff(np.append(first, len(row)))
    level -= np.repeat(level[first] - 1, sizes)
    places = np.empty((2, len(row)), np.int64)
    places[0, order] = level
    places[1, order] = np.repeat(level[first + sizes - 1], sizes)
    return places[0], places[1]


def _changes(*keys: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Whether any key differs from its predecessor; True at the first place."""
    changed = np.zeros(len(keys[0]), bool)
    changed[:1] = True
    for key in keys:
        changed[1:] |= key[1:] != key[:-1]
    return changed
