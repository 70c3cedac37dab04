"""Item-kNN by shrunk cosine of co-occurrence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import numpy as np

from models.baselines.base import (
    Baseline,
    FittedOn,
    Settings,
    interactions,
    item_counts,
    popularity_prior,
)
from models.baselines.neighbours import largest_per_row, pair_counts
from models.histories import Float32, Histories, Int64

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from scipy.sparse import csr_array

# Letters in shapes: r rows (histories), n items; X [r, n + 1] is 0/1, see `interactions`.


class ItemKNN(Baseline):
    """Items most similar to the history's, by shrunk cosine of the columns of the 0/1 matrix.

    similarity[i, j] = c_ij / (sqrt(c_i c_j) + shrinkage) with c_ij rows that hold both, c_i rows that hold i; each row keeps
    the `max_neighbours` largest others. score(j) = sum over the distinct items i of the history of similarity[i, j],
    plus `popularity_prior`. Sarwar et al. 2001, Deshpande & Karypis 2004; the shrinkage as in Dacrema et al. 2019.
    """

    GRID = (
        {"shrinkage": 10.0, "max_neighbours": 100},
        {"shrinkage": 0.0, "max_neighbours": 10},
        {"shrinkage": 10.0, "max_neighbours": 20},
        {"shrinkage": 100.0, "max_neighbours": 100},
        {"shrinkage": 100.0, "max_neighbours": 500},
    )
    ARRAYS = ("similarity", "counts")

    def __init__(self, similarity: csr_array, counts: Int64, fitted_on: FittedOn) -> None:
        super().__init__(len(counts) - 1, fitted_on)
        self.similarity = similarity
        """[n + 1, n + 1], zero on its diagonal and at item 0."""
        self.counts, self.prior = counts, popularity_prior(counts)

    @classmethod
    def fit(
        cls, histories: Histories, num_items: int, shrinkage: float = 10.0, max_neighbours: int = 100
    ) -> Self:
        """Count pairs block by block; memory grows with n * max_neighbours, not with n squared.

        Raises ValueError for a negative shrinkage or fewer than one neighbour.
        """
        return next(
            cls.fits(histories, num_items, [{"shrinkage": shrinkage, "max_neighbours": max_neighbours}])
        )

    @classmethod
    def fits(cls, histories: Histories, num_items: int, points: Sequence[Settings]) -> Iterator[Self]:
        """`fit` with each of several settings; pairs are counted once, memory grows with all the neighbours kept."""
        for point in points:
            if point["shrinkage"] < 0 or point["max_neighbours"] < 1:
                raise ValueError(
                    f"ItemKNN: received shrinkage={point['shrinkage']}, max_neighbours={point['max_neighbours']}; expected at "
                    "least 0 and 1"
                )
        from scipy.sparse import csr_array, vstack

        held = interactions(histories, num_items)
        norms = np.sqrt(held.sum(axis=0, dtype=np.float64))
        parts = [[csr_array((0, num_items + 1), dtype=np.float32)] for _ in points]
        for block, pairs in pair_counts(held):
            row = np.repeat(np.arange(block.start, block.stop), np.diff(pairs.indptr))
            scale, is_own = norms[row] * norms[pairs.indices], row == pairs.indices
            for point, kept in zip(points, parts, strict=True):
                similar = pairs.copy()
                similar.data /= scale + point["shrinkage"]
                similar.data[is_own] = 0
                similar.eliminate_zeros()
                kept.append(largest_per_row(similar, int(point["max_neighbours"])))
        counts, fitted_on = item_counts(histories, num_items), FittedOn.of(histories)
        for kept in parts:
            yield cls(vstack(kept, format="csr"), counts, fitted_on)

    def score_items(self, histories: Histories) -> Float32:
        """[r, n + 1], sum of the similarities of each row's distinct items."""
        held = interactions(histories, self.num_items)
        scores: Float32 = (held @ self.similarity).toarray() + self.prior
        scores[:, 0] = -np.inf
        return scores
