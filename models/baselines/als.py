"""Alternating least squares for implicit feedback (Hu, Koren & Volinsky 2008), by the library implicit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import numpy as np
import torch

from models.baselines.base import Baseline, FittedOn, interactions, item_counts, popularity_prior
from models.histories import Float32, Histories, Int64

if TYPE_CHECKING:
    from implicit.cpu.als import AlternatingLeastSquares

# Letters in shapes: r rows (histories), n items, f factors; X [r, n + 1] is 0/1, see `interactions`.


class ALS(Baseline):
    """score(j) = x . y_j, plus `popularity_prior`, with x solved from the history alone, so any history can be scored.

    Minimises sum over users and items of c (p - x . y)^2 + regularization (|x|^2 + |y|^2) with p = 1 and c = alpha where
    the user holds the item, p = 0 and c = 1 elsewhere. (The paper's confidence is 1 + alpha r; implicit's is alpha r.)
    For a history of items S: x = (Y'Y + (alpha - 1) Y_S' Y_S + regularization I)^-1 alpha Y_S' 1; 0 for an empty one.
    """

    GRID = (
        {"factors": 128, "regularization": 10.0, "alpha": 5.0},
        {"factors": 64, "regularization": 10.0, "alpha": 5.0},
        {"factors": 128, "regularization": 10.0, "alpha": 2.0},
        {"factors": 128, "regularization": 1.0, "alpha": 20.0},
    )
    ARRAYS, NUMBERS = ("item_factors", "counts"), ("regularization", "alpha")

    def __init__(
        self,
        item_factors: Float32,
        counts: Int64,
        regularization: float,
        alpha: float,
        fitted_on: FittedOn,
    ) -> None:
        super().__init__(len(counts) - 1, fitted_on)
        self.item_factors = item_factors
        """[n, f], of items 1..n."""
        self.counts, self.prior = counts, popularity_prior(counts)
        self.regularization, self.alpha = regularization, alpha
        self.model = _model(item_factors.shape[1], regularization, alpha)
        self.model.item_factors = item_factors  # every history is folded in: no factors of users

    @classmethod
    def fit(
        cls,
        histories: Histories,
        num_items: int,
        factors: int = 128,
        regularization: float = 10.0,
        alpha: float = 5.0,
        iterations: int = 15,
        seed: int = 0,
    ) -> Self:
        """Alternate `iterations` times from factors drawn by `seed`; deterministic for a seed.

        Raises ValueError for factors or iterations < 1, regularization < 0, alpha <= 0.
        """
        if factors < 1 or iterations < 1 or regularization < 0 or not alpha > 0:
            raise ValueError(
                f"ALS: received factors={factors}, regularization={regularization}, alpha={alpha}, iterations={iterations}; "
                "expected at least 1 factor and iteration, regularization >= 0, alpha > 0"
            )
        from scipy.sparse import csr_matrix
        from threadpoolctl import threadpool_limits

        with threadpool_limits(1, "blas"):  # implicit runs its own threads, as many as torch
            model = _model(factors, regularization, alpha, iterations, seed)
            model.fit(csr_matrix(interactions(histories, num_items)[:, 1:]), show_progress=False)
        counts, fitted_on = item_counts(histories, num_items), FittedOn.of(histories)
        return cls(model.item_factors, counts, regularization, alpha, fitted_on)

    def score_items(self, histories: Histories) -> Float32:
        """[r, n + 1], inner products of folded-in rows with all items."""
        scores = np.full((len(histories), self.num_items + 1), -np.inf, np.float32)
        scores[:, 1:] = self.factors_of(histories) @ self.item_factors.T + self.prior[1:]
        return scores

    def factors_of(self, histories: Histories) -> Float32:
        """[r, f], vector x of every row, solved exactly."""
        from scipy.sparse import csr_matrix
        from threadpoolctl import threadpool_limits

        held = csr_matrix(interactions(histories, self.num_items)[:, 1:])
        with threadpool_limits(1, "blas"):
            return np.asarray(self.model.recalculate_user(np.arange(len(histories)), held))


def _model(
    factors: int, regularization: float, alpha: float, iterations: int = 15, seed: int = 0
) -> AlternatingLeastSquares:
    """Implicit's model, not yet fitted."""
    from implicit.cpu.als import AlternatingLeastSquares
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, "blas"):  # it warns of other threads when constructed
        return AlternatingLeastSquares(
            factors=factors,
            regularization=regularization,
            alpha=alpha,
            iterations=iterations,
            num_threads=torch.get_num_threads(),
            random_state=seed,
        )
