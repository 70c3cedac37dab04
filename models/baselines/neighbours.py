"""Neighbourhood baselines: what follows an item (co-visitation, first-order Markov), and what is like it (item-item cosine)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import numpy as np

from models.baselines.popularity import Baseline, FittedOn, interactions, item_counts, popularity_prior
from models.recommender import Float32, Histories, Int32, Int64
from models.topk import event_chunks, row_chunks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scipy.sparse import csr_array

# Letters in shapes: r rows (histories), n items, e events; X [r, n + 1] is 0/1, see `interactions`.

_BLOCK_CELLS = 2**22
"""Pairs of items held at once while they are counted, about (48 MiB with their indices)."""


class CoVisitation(Baseline):
    """What follows what: items seen shortly after the ones at the end of the history.

    follows[i, j] = sum over events of i of decay**(d - 1) for every j that comes d = 1..window events later in the same
    history, divided by the number of events of i. score(j) = sum over the last `window` interactions, at age
    a = 0, 1, …, of decay**a * follows[item, j], plus `popularity_prior`. Each row of `follows` keeps its `max_neighbours`
    largest. window = 1 is a first-order Markov chain: the share of i's events that j came next to.
    """

    GRID = (
        {"window": 10, "decay": 0.8},
        {"window": 1, "decay": 1.0},
        {"window": 3, "decay": 0.8},
        {"window": 10, "decay": 0.6},
        {"window": 20, "decay": 0.9},
    )

    def __init__(
        self, follows: csr_array, counts: Int64, window: int, decay: float, fitted_on: FittedOn
    ) -> None:
        super().__init__(len(counts) - 1, fitted_on)
        self.follows = follows
        self.prior = popularity_prior(counts)
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
        follows = csr_array((size, size), dtype=np.float32)
        for rows in event_chunks(histories.lengths):
            row, position = histories.select(rows).gather()
            follows = follows + _pairs(row, histories.item_index[position], size, window, decay)
        counts = item_counts(histories, num_items)
        _scale_rows(follows, counts.astype(np.float32))
        return cls(_largest_per_row(follows, max_neighbours), counts, window, decay, FittedOn.of(histories))

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


class ItemKNN(Baseline):
    """Items held by the same users as the history's: cosine of the columns of the 0/1 matrix, shrunk.

    similarity[i, j] = c_ij / (sqrt(c_i c_j) + shrinkage) with c_ij rows that hold both, c_i rows that hold i; each row keeps
    its `max_neighbours` largest beside itself. score(j) = sum over the distinct items i of the history of similarity[i, j],
    plus `popularity_prior`. Sarwar et al. 2001, Deshpande & Karypis 2004; the shrinkage as in Dacrema et al. 2019.
    """

    GRID = (
        {"shrinkage": 10.0, "max_neighbours": 100},
        {"shrinkage": 0.0, "max_neighbours": 10},
        {"shrinkage": 10.0, "max_neighbours": 20},
        {"shrinkage": 100.0, "max_neighbours": 100},
        {"shrinkage": 100.0, "max_neighbours": 500},
    )

    def __init__(self, similarity: csr_array, counts: Int64, fitted_on: FittedOn) -> None:
        super().__init__(len(counts) - 1, fitted_on)
        self.similarity = similarity
        """[n + 1, n + 1], zero on its diagonal and at item 0."""
        self.prior = popularity_prior(counts)

    @classmethod
    def fit(
        cls, histories: Histories, num_items: int, shrinkage: float = 10.0, max_neighbours: int = 100
    ) -> Self:
        """Count pairs block by block: memory grows with n * max_neighbours, never with n squared.

        Raises ValueError for a negative shrinkage or fewer than one neighbour.
        """
        if shrinkage < 0 or max_neighbours < 1:
            raise ValueError(
                f"ItemKNN: received shrinkage={shrinkage}, max_neighbours={max_neighbours}; expected at least 0 and 1"
            )
        from scipy.sparse import csr_array, vstack

        held = interactions(histories, num_items)
        norms = np.sqrt(held.sum(axis=0, dtype=np.float64))
        parts = [csr_array((0, num_items + 1), dtype=np.float32)]
        for block, pairs in pair_counts(held):
            row = np.repeat(np.arange(block.start, block.stop), np.diff(pairs.indptr))
            pairs.data /= norms[row] * norms[pairs.indices] + shrinkage
            pairs.data[row == pairs.indices] = 0
            pairs.eliminate_zeros()
            parts.append(_largest_per_row(pairs, max_neighbours))
        similarity = vstack(parts, format="csr")
        return cls(similarity, item_counts(histories, num_items), FittedOn.of(histories))

    def score_items(self, histories: Histories) -> Float32:
        """Sum of the similarities of each row's distinct items: [r, n + 1]."""
        held = interactions(histories, self.num_items)
        scores: Float32 = (held @ self.similarity).toarray() + self.prior
        scores[:, 0] = -np.inf
        return scores


def pair_counts(held: csr_array) -> Iterator[tuple[slice, csr_array]]:
    """Blocks of the rows of X'X, with the items that they are: rows of `held` [r, n + 1] that hold both items of a pair."""
    by_item = held.T.tocsr()
    for block in row_chunks(held.shape[1], held.shape[1], _BLOCK_CELLS):
        yield block, by_item[block] @ held


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
    is_long = np.repeat(lengths > keep, lengths)
    row = np.repeat(np.arange(len(lengths)), lengths)
    among = np.flatnonzero(is_long)
    order = among[np.lexsort((-matrix.data[among], row[among]))]
    place = np.arange(len(order)) - np.repeat(_starts(lengths[lengths > keep]), lengths[lengths > keep])
    kept = ~is_long
    kept[order[place < keep]] = True
    starts = np.concatenate(([0], np.cumsum(np.minimum(lengths, keep))))
    return csr_array((matrix.data[kept], matrix.indices[kept], starts), shape=matrix.shape)


def _starts(lengths: Int64) -> Int64:
    """Where each of consecutive stretches of the given lengths begins."""
    return np.cumsum(lengths) - lengths
