"""Recommenders to beat: popularity, recent popularity, item-to-item co-visitation.

Each is fitted from flat arrays of events and answers `Recommender`; a new one needs `num_items` and `score_items`.
"""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, Self

import numpy as np

from models.recommender import Float32, Histories, Int32, Int64
from models.topk import event_chunks, recommend_in_chunks

if TYPE_CHECKING:
    from scipy.sparse import csr_array

# Letters in shapes: r rows (histories), n items, e events.

_MICROSECONDS_PER_DAY = 86_400_000_000


class Baseline(abc.ABC):
    """What baselines share: `recommend` is the top of `score_items`."""

    def __init__(self, num_items: int) -> None:
        self.num_items = num_items

    @abc.abstractmethod
    def score_items(self, histories: Histories) -> Float32:
        """[r, n + 1], higher is better; column 0 is -inf."""

    def recommend(self, histories: Histories, k: int, exclude_seen: bool = True) -> tuple[Int32, Float32]:
        """The k best items of each row and their scores, as every `Recommender` answers."""
        return recommend_in_chunks(self.score_items, self.num_items, histories, k, exclude_seen)


class Popularity(Baseline):
    """score(item) = number of its events, the same for every history."""

    def __init__(self, counts: Float32) -> None:
        super().__init__(len(counts) - 1)
        self.scores = counts.astype(np.float32)
        self.scores[0] = -np.inf

    @classmethod
    def fit(cls, item_index: Int32, num_items: int) -> Self:
        """Count the events `item_index` [e] (0: unknown, not counted) of a catalogue of `num_items`."""
        return cls(np.bincount(item_index, minlength=num_items + 1).astype(np.float32))

    def score_items(self, histories: Histories) -> Float32:
        """The counts, once per row: [r, n + 1]."""
        return np.tile(self.scores, (len(histories), 1))


class RecentPopularity(Popularity):
    """score(item) = number of its events in the last `days` days before the end of the events it is fitted on."""

    @classmethod
    def fit_recent(cls, item_index: Int32, time: Int64, num_items: int, days: float) -> Self:
        """Count `item_index` [e] where `time` [e] (microseconds) > latest - `days`. Raises ValueError for no events."""
        if not len(time):
            raise ValueError(
                "RecentPopularity: received no events, expected at least one to date the last days by"
            )
        recent = time > int(time.max()) - round(days * _MICROSECONDS_PER_DAY)
        return cls.fit(item_index[recent], num_items)


class CoVisitation(Baseline):
    """What follows what: items seen shortly after the ones at the end of the history.

    follows[i, j] = sum over events of i of decay**(d - 1) for every j that comes d = 1..window events later in the same
    history, divided by the number of events of i. score(j) = sum over the last `window` interactions, at age
    a = 0, 1, …, of decay**a * follows[item, j], plus a ten-thousandth of j's share of all events, which orders
    the items that never followed and answers empty histories. Each row of `follows` keeps its `max_neighbours` largest.
    """

    def __init__(self, follows: csr_array, popularity: Float32, window: int, decay: float) -> None:
        super().__init__(len(popularity) - 1)
        self.follows = follows
        self.prior = (popularity / max(float(popularity.sum()), 1.0) * 1e-4).astype(np.float32)
        self.decay, self.window = decay, window

    @classmethod
    def fit(
        cls,
        histories: Histories,
        num_items: int,
        window: int = 10,
        decay: float = 0.8,
        max_neighbours: int = 500,
    ) -> Self:
        """Count the pairs of `histories`; memory grows with the distinct pairs, never with num_items squared."""
        assert window >= 1
        assert 0 < decay <= 1
        from scipy.sparse import csr_array

        size = num_items + 1
        follows, counts = csr_array((size, size), dtype=np.float32), np.zeros(size, np.float32)
        for rows in event_chunks(histories.lengths):
            row, position = histories.select(rows).gather()
            item = histories.item_index[position]
            counts += np.bincount(item, minlength=size).astype(np.float32)
            follows = follows + _pairs(row, item, size, window, decay)
        counts[0] = 0
        _scale_rows(follows, counts)
        return cls(_largest_per_row(follows, max_neighbours), counts, window, decay)

    def score_items(self, histories: Histories) -> Float32:
        """Decayed sum of the last interactions' rows of `follows`: [r, n + 1]."""
        from scipy.sparse import csr_array

        last = histories.last(self.window)
        row, position = last.gather()
        weight = np.power(self.decay, last.ends[row] - 1 - position, dtype=np.float32)
        shape = (len(histories), self.num_items + 1)
        recent = csr_array((weight, (row, histories.item_index[position])), shape=shape)
        scores: Float32 = (recent @ self.follows).toarray() + self.prior
        scores[:, 0] = -np.inf
        return scores


def _pairs(row: Int64, item: Int32, size: int, window: int, decay: float) -> csr_array:
    """decay**(d - 1) summed over pairs of one row's items d = 1..window apart: earlier x later, [size, size]."""
    from scipy.sparse import csr_array

    pairs = csr_array((size, size), dtype=np.float32)
    for distance in range(1, window + 1):
        first, second = item[:-distance], item[distance:]
        counted = (row[:-distance] == row[distance:]) & (first > 0) & (second > 0) & (first != second)
        weight = np.full(np.count_nonzero(counted), decay ** (distance - 1), np.float32)
        pairs = pairs + csr_array((weight, (first[counted], second[counted])), shape=(size, size))
    return pairs


def _scale_rows(matrix: csr_array, divisors: Float32) -> None:
    """Divide row i by divisors[i], in place."""
    matrix.data /= np.repeat(divisors, np.diff(matrix.indptr))


def _largest_per_row(matrix: csr_array, keep: int) -> csr_array:
    """`matrix` with only the `keep` largest entries of each row; the lower column of equal ones."""
    from scipy.sparse import csr_array

    matrix.sort_indices()
    lengths = np.diff(matrix.indptr)
    row = np.repeat(np.arange(len(lengths)), lengths)
    order = np.lexsort((-matrix.data, row))
    place = np.arange(len(row)) - np.repeat(matrix.indptr[:-1], lengths)
    kept = np.sort(order[place < keep])
    return csr_array((matrix.data[kept], (row[kept], matrix.indices[kept])), shape=matrix.shape)
