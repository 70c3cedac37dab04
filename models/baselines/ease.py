"""EASE, the linear autoencoder in closed form (Steck 2019, "Embarrassingly Shallow Autoencoders for Sparse Data")."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from models.baselines.base import (
    Baseline,
    FittedOn,
    Settings,
    interactions,
    item_counts,
    popularity_prior,
)
from models.baselines.neighbours import pair_counts
from models.histories import Float32, Histories, Int64
from models.topk import row_chunks

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from scipy.sparse import csr_array

# Letters in shapes: r rows (histories), n items; X [r, n + 1] is 0/1, see `interactions`.

EASE_MAX_ITEMS = 30_000
"""Maximum catalogue: memory grows with n squared, time with n cubed."""
LARGE_CATALOGUE = 10_000
"""Items beyond which a fit is most of a machine: .8 GB of pairs, seconds to minutes of every core."""
_BYTES_PER_PAIR = 8 + 4
"""Bytes of a float64 under inversion and a float32 weight."""
_BLOCK_CELLS = 2**20
"""Pairs mirrored at once."""


class EASE(Baseline):
    """score(j) = sum over the distinct items i of the history of B[i, j], plus `popularity_prior`.

    B = I - P diag(P)^-1 with P = (X'X + l2 I)^-1, the minimum of |X - X B|^2 + l2 |B|^2 with a zero diagonal: every item is
    predicted from the others. P is float64 (X'X of a long log has eigenvalues 10^5 times l2, which leaves float32 two digits)
    and B float32: at n = 30,000 that is 10.8 GB at the end of fitting, then 3.6.
    """

    GRID = ({"l2": 250.0}, {"l2": 50.0}, {"l2": 1000.0}, {"l2": 5000.0})
    ARRAYS = ("weights", "counts")

    def __init__(self, weights: Float32, counts: Int64, fitted_on: FittedOn) -> None:
        super().__init__(len(counts) - 1, fitted_on)
        self.weights = weights
        """B of items 1..n: [n, n], zero on its diagonal."""
        self.counts, self.prior = counts, popularity_prior(counts)

    @classmethod
    def fit(cls, histories: Histories, num_items: int, l2: float = 250.0) -> Self:
        """Count pairs and invert. Raises ValueError for l2 <= 0, and for more than `EASE_MAX_ITEMS` items up front."""
        return next(cls.fits(histories, num_items, [{"l2": l2}]))

    @classmethod
    def fits(cls, histories: Histories, num_items: int, points: Sequence[Settings]) -> Iterator[Self]:
        """`fit` with each of several settings; in small catalogues pairs are counted once."""
        if (refusal := cls.refusal(num_items)) is not None:
            raise ValueError(refusal)
        held, counts = interactions(histories, num_items), item_counts(histories, num_items)
        fitted_on, keeps = FittedOn.of(histories), len(points) > 1 and num_items <= LARGE_CATALOGUE
        pairs = _pairs(held) if keeps else None
        for l2 in (point["l2"] for point in points):
            if not l2 > 0:
                raise ValueError(f"EASE: received l2={l2}, expected more than 0")
            gram = _pairs(held) if pairs is None else pairs.copy()
            gram[np.diag_indices(num_items)] += l2
            yield cls(_weights(gram), counts, fitted_on)

    @staticmethod
    def refusal(num_items: int) -> str | None:
        """Reason why a catalogue is too large; None if it is not."""
        if num_items <= EASE_MAX_ITEMS:
            return None
        return (
            f"EASE: received a catalogue of {num_items:,} items, expected at most {EASE_MAX_ITEMS:,}: it would need "
            f"{num_items**2 * _BYTES_PER_PAIR / 1e9:.0f} GB of memory; raise history.min_item_events, or leave ease out "
            "of the baselines"
        )

    def score_items(self, histories: Histories) -> Float32:
        """[r, n + 1], X B."""
        held = interactions(histories, self.num_items)[:, 1:]
        scores = np.full((len(histories), self.num_items + 1), -np.inf, np.float32)
        scores[:, 1:] = held @ self.weights + self.prior[1:]
        return scores


def _pairs(held: csr_array) -> NDArray[np.float64]:
    """[n, n], X'X of items 1..n."""
    size = held.shape[1] - 1
    gram = np.empty((size, size))
    for block, pairs in pair_counts(held[:, 1:]):
        gram[block] = pairs.toarray()
    return gram


def _weights(gram: NDArray[np.float64]) -> Float32:
    """[n, n], B from a symmetric positive definite matrix, overwritten by its inverse (Cholesky)."""
    from scipy.linalg import lapack

    if not len(gram):
        return np.zeros((0, 0), np.float32)
    # the transpose of a symmetric matrix equals it, in the memory order that LAPACK overwrites
    factor, failed = lapack.dpotrf(gram.T, lower=1, overwrite_a=1)
    assert not failed
    inverse, failed = lapack.dpotri(factor, lower=1, overwrite_c=1)
    assert not failed
    upper = inverse.T  # LAPACK fills one triangle only
    diagonal = np.diagonal(upper).copy()
    weights = np.empty(gram.shape, np.float32)
    for rows in row_chunks(len(weights), len(weights), _BLOCK_CELLS):
        square = upper[rows, rows]
        upper[rows, rows] = np.triu(square) + np.triu(square, 1).T
        block = -upper[rows, rows.start :]
        weights[rows, rows.start :] = block / diagonal[rows.start :]
        weights[rows.start :, rows] = (block / diagonal[rows, None]).T
    np.fill_diagonal(weights, 0)
    return weights
