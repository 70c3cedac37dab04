"""Co-visitation: items that followed the latest ones of a history."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import numpy as np

from models.baselines.base import Baseline, FittedOn, item_counts, popularity_prior
from models.baselines.neighbours import largest_per_row
from models.histories import Float32, Histories, Int32, Int64
from models.topk import event_chunks

if TYPE_CHECKING:
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
        assert window >= 1
        assert 0 < decay <= 1
        from scipy.sparse import csr_array

        size = num_items + 1
        follows = csr_array((size, size), dtype=np.float32)
        for rows in event_chunks(histories.lengths):
            row, position = histories.select(rows).gather()
            follows = follows + _pairs(row, histories.item_index[position], size, window, decay)
        counts = item_counts(histories, num_items)
        _scale_rows(follows, counts.astype(np.float32))
        return cls(largest_per_row(follows, max_neighbours), counts, window, decay, FittedOn.of(histories))

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


def _pairs(row: Int64, item: Int32, size: int, window: int, decay: float) -> csr_array:
    """[size, size] (earlier x later), decay**(d - 1) summed over pairs of a row's items d = 1..window apart."""
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
