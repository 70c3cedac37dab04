"""Co-visitation: items that followed the latest ones of a history."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Self

import numpy as np

from models.baselines.base import Baseline, FittedOn, item_counts, popularity_prior
from models.baselines.neighbours import largest_per_row
from models.histories import Float32, Histories, Int32, Int64
from models.topk import event_chunks

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from scipy.sparse import csr_array

# Letters in shapes: r rows (histories), n items, e events.


class CoVisitation(Baseline):
    """Items that often came shortly after the last ones of the history.

    follows[i, j] = sum over events of i of decay**(d - 1) for every j that comes d = 1..window events later in the same
    history, divided by the number of events of i. score(j) = sum over the last `window` interactions, at age
    a = 0, 1, …, of decay**a * follows[item, j], plus `popularity_prior`. Each row of `follows` keeps its `max_neighbours`
    largest. window = 1 is a first-order Markov chain: the share of i's events followed directly by j.
    """

    GRID = (
        {"window": 10, "decay": 0.8},
        {"window": 1, "decay": 1.0},
        {"window": 3, "decay": 0.8},
        {"window": 10, "decay": 0.6},
        {"window": 20, "decay": 0.9},
    )
    ARRAYS, NUMBERS = ("follows", "counts"), ("window", "decay")
    moves = True

    def __init__(
        self, follows: csr_array, counts: Int64, window: int, decay: float, fitted_on: FittedOn
    ) -> None:
        super().__init__(len(counts) - 1, fitted_on)
        self.follows = follows
        self.counts, self.prior = counts, popularity_prior(counts)
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
        """Count pairs in `histories`; memory grows with the distinct pairs, not with num_items squared."""
        counter = PairCounter(num_items, window, decay)
        counter.count(histories)
        follows, counts = counter.follows(max_neighbours), item_counts(histories, num_items)
        return cls(follows, counts, window, decay, FittedOn.of(histories))

    def score_items(self, histories: Histories) -> Float32:
        """[r, n + 1], decayed sum of the last interactions' rows of `follows`."""
        from scipy.sparse import csr_array

        last = histories.last(self.window)
        row, position = last.gather()
        weight = np.power(self.decay, last.ends[row] - 1 - position, dtype=np.float32)
        shape = (len(histories), self.num_items + 1)
        recent = csr_array((weight, (row, histories.item_index[position])), shape=shape)
        scores: Float32 = (recent @ self.follows).toarray() + self.prior
        scores[:, 0] = -np.inf
        return scores


class PairCounter:
    """Pairs of a growing log: each `count` adds those whose later event is new, so that a log is read once in all."""

    def __init__(self, num_items: int, window: int = 10, decay: float = 0.8) -> None:
        assert window >= 1
        assert 0 < decay <= 1
        from scipy.sparse import csr_array

        self.window, self.decay = window, decay
        self._pairs = csr_array((num_items + 1, num_items + 1), dtype=np.float32)
        self._events = np.zeros(num_items + 1, np.float32)
        self._lengths: Int64 | None = None

    def count(self, histories: Histories) -> None:
        """Add the pairs of events that came since the last call; its rows are beginnings of the present ones."""
        before = np.zeros(len(histories), np.int64) if self._lengths is None else self._lengths
        size, new_from = len(self._events), histories.starts + before
        recent = replace(histories, starts=np.maximum(histories.starts, new_from - self.window))
        for rows in event_chunks(recent.lengths):
            row, position = recent.select(rows).gather()
            item, is_new = histories.item_index[position], position >= new_from[rows][row]
            self._pairs = self._pairs + _pairs(row, item, is_new, size, self.window, self.decay)
            self._events += np.bincount(item[is_new], minlength=size)
        self._lengths = histories.lengths

    def follows(self, max_neighbours: int) -> csr_array:
        """[n + 1, n + 1], pairs per event of the earlier item, the largest of each row."""
        follows = self._pairs.copy()
        _scale_rows(follows, np.maximum(self._events, 1))
        return largest_per_row(follows, max_neighbours)


class MovingCoVisitation:
    """`CoVisitation.fit` on a growing log, night after night."""

    def __init__(self, window: int = 10, decay: float = 0.8, max_neighbours: int = 500) -> None:
        self._window, self._decay, self._max_neighbours = window, decay, max_neighbours
        self._counter: PairCounter | None = None

    def fit(self, histories: Histories, num_items: int) -> CoVisitation:
        """Count what is new in `histories`, whose rows begin with those of the last call."""
        self._counter = self._counter or PairCounter(num_items, self._window, self._decay)
        self._counter.count(histories)
        counts = item_counts(histories, num_items)
        follows = self._counter.follows(self._max_neighbours)
        return CoVisitation(follows, counts, self._window, self._decay, FittedOn.of(histories))


def _pairs(
    row: Int64, item: Int32, is_new: NDArray[np.bool_], size: int, window: int, decay: float
) -> csr_array:
    """[size, size] (earlier x later), decay**(d - 1) summed over a row's pairs d = 1..window apart, the later one new."""
    from scipy.sparse import csr_array

    pairs = csr_array((size, size), dtype=np.float32)
    for distance in range(1, window + 1):
        first, second = item[:-distance], item[distance:]
        counted = is_new[distance:] & (row[:-distance] == row[distance:])
        counted &= (first > 0) & (second > 0) & (first != second)
        weight = np.full(np.count_nonzero(counted), decay ** (distance - 1), np.float32)
        pairs = pairs + csr_array((weight, (first[counted], second[counted])), shape=(size, size))
    return pairs


def _scale_rows(matrix: csr_array, divisors: Float32) -> None:
    """Divide row i by divisors[i], in place."""
    matrix.data /= np.repeat(divisors, np.diff(matrix.indptr))
