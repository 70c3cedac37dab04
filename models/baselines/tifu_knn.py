"""TIFU-kNN, personalised item frequencies with nearest neighbours (Hu, He, Gao & Zhang 2020, SIGIR)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import numpy as np

from models.baselines.base import PRIOR_WEIGHT, Baseline, FittedOn
from models.baselines.popularity import recent_counts
from models.baselines.visits import Visits, visits_in_chunks
from models.histories import Float32, Histories, Int64
from models.topk import row_chunks, top_k

if TYPE_CHECKING:
    from scipy.sparse import csr_array

# Letters in shapes: r rows (histories), n items, v vectors of training histories, m `num_groups`, k `neighbours`.

MAX_VECTORS = 100_000
"""Training histories among which neighbours are searched: those with the newest events."""
RECENT_DAYS = 30.0
"""Window of the recent popularity of items without a score, in days."""
_BLOCK_CELLS = 2**22
"""Distances held at once."""


class TIFUKNN(Baseline):
    """score(j) = alpha u(j) + (1 - alpha) mean of the k nearest training histories' u(j), plus a prior of recent popularity.

    u is the vector of a history [n]. Its visits (the paper's baskets) are divided by their order into min(m, visits) groups
    of about equal size, the newer ones larger by one where they are not equal. A group's vector is the mean of its visits'
    0/1 vectors, each times basket_decay**(visits after it in the group); u is the mean of the groups' vectors, each times
    group_decay**(groups after it). Neighbours have the smallest Euclidean distance; a history fitted on is its own neighbour.
    A history without known items gets the prior alone. (r_b, r_g in the paper: `basket_decay`, `group_decay`.)
    """

    GRID = (
        {"neighbours": 300, "num_groups": 7, "basket_decay": 0.9, "group_decay": 0.7, "alpha": 0.7},
        {"neighbours": 900, "num_groups": 3, "basket_decay": 0.9, "group_decay": 0.7, "alpha": 0.9},
        {"neighbours": 300, "num_groups": 7, "basket_decay": 1.0, "group_decay": 0.9, "alpha": 0.7},
        {"neighbours": 300, "num_groups": 3, "basket_decay": 0.9, "group_decay": 0.9, "alpha": 0.5},
        {"neighbours": 100, "num_groups": 7, "basket_decay": 0.9, "group_decay": 0.7, "alpha": 0.2},
    )
    ARRAYS = ("vectors", "counts")
    NUMBERS = ("neighbours", "num_groups", "basket_decay", "group_decay", "alpha", "session")
    needs_seen = True

    def __init__(
        self,
        vectors: csr_array,
        counts: Int64,
        neighbours: int,
        num_groups: int,
        basket_decay: float,
        group_decay: float,
        alpha: float,
        session: int,
        fitted_on: FittedOn,
    ) -> None:
        super().__init__(len(counts) - 1, fitted_on)
        self.vectors = vectors
        """[v, n + 1], vectors of the training histories; column 0 is empty."""
        self.counts = counts
        """[n + 1], events of the last days."""
        self.neighbours, self.num_groups, self.alpha, self.session = neighbours, num_groups, alpha, session
        self.basket_decay, self.group_decay = basket_decay, group_decay

    @classmethod
    def fit(
        cls,
        histories: Histories,
        num_items: int,
        neighbours: int = 300,
        num_groups: int = 7,
        basket_decay: float = 0.9,
        group_decay: float = 0.7,
        alpha: float = 0.7,
        session: int = 0,
    ) -> Self:
        """Keep the vectors of the `MAX_VECTORS` newest histories with a known item; `session` in microseconds, see `Visits`.

        Raises ValueError for neighbours or num_groups < 1, decays outside (0, 1], alpha outside [0, 1], session < 0.
        """
        if (
            min(neighbours, num_groups) < 1
            or not 0 < min(basket_decay, group_decay) <= max(basket_decay, group_decay) <= 1
            or not 0 <= alpha <= 1
            or session < 0
        ):
            raise ValueError(
                f"TIFUKNN: received neighbours={neighbours}, num_groups={num_groups}, basket_decay={basket_decay}, "
                f"group_decay={group_decay}, alpha={alpha}, session={session}; expected at least 1 neighbour and group, "
                "decays in (0, 1], alpha in [0, 1], session at least 0"
            )
        fitted_on = FittedOn.of(histories)
        counts = recent_counts(histories, num_items, fitted_on.latest, RECENT_DAYS)
        chosen = histories.select(_newest(histories, MAX_VECTORS))
        vectors = _vectors(chosen, num_items, num_groups, basket_decay, group_decay, session)
        vectors = vectors[np.diff(vectors.indptr) > 0]
        return cls(
            vectors,
            counts,
            neighbours,
            num_groups,
            basket_decay,
            group_decay,
            alpha,
            session,
            fitted_on,
        )

    def score_items(self, histories: Histories) -> Float32:
        """[r, n + 1]; distances in blocks of rows."""
        own = _vectors(
            histories, self.num_items, self.num_groups, self.basket_decay, self.group_decay, self.session
        )
        prior = self.counts / max(int(self.counts.sum()), 1) * PRIOR_WEIGHT
        scores = np.tile(prior.astype(np.float32), (len(histories), 1))
        with_items = np.flatnonzero(np.diff(own.indptr) > 0)
        norms = self.vectors.multiply(self.vectors).sum(axis=1, dtype=np.float64).astype(np.float32)
        for block in row_chunks(len(with_items), self.vectors.shape[0], _BLOCK_CELLS):
            rows = with_items[block]
            scores[rows] += self._mixed(own[rows], norms)
        scores[:, 0] = -np.inf
        return scores

    def _mixed(self, own: csr_array, norms: Float32) -> Float32:
        """[r, n + 1], own vectors mixed with the mean of their neighbours'; `norms` [v], squared lengths of the vectors."""
        from scipy.sparse import csr_array

        num_vectors = self.vectors.shape[0]
        num_neighbours = min(self.neighbours, num_vectors)
        mixed: Float32 = self.alpha * own.toarray()
        if not num_neighbours:
            return mixed
        # |a - b|^2 = |a|^2 + |b|^2 - 2 ab, of which |a|^2 does not change a row's order
        closeness = (own @ self.vectors.T).toarray() * np.float32(2)
        closeness -= norms
        nearest, _ = top_k(closeness, num_neighbours)
        starts = np.arange(len(nearest) + 1) * num_neighbours
        share = np.full(nearest.size, (1 - self.alpha) / num_neighbours, np.float32)
        chosen = csr_array((share, nearest.ravel(), starts), shape=(len(nearest), num_vectors))
        mixed += (chosen @ self.vectors).toarray()
        return mixed


def _newest(histories: Histories, most: int) -> Int64:
    """Filled rows with the newest last events, at most `most`, in their own order; of equal times the first."""
    filled = np.flatnonzero(histories.lengths > 0)
    last = histories.time[histories.ends[filled] - 1]
    return np.sort(filled[np.argsort(-last, kind="stable")[:most]])


def _vectors(
    histories: Histories,
    num_items: int,
    num_groups: int,
    basket_decay: float,
    group_decay: float,
    session: int,
) -> csr_array:
    """[r, n + 1], float32: weighted item frequencies of each row."""
    from scipy.sparse import csr_array, vstack

    parts = [csr_array((0, num_items + 1), dtype=np.float32)]
    for rows, visits in visits_in_chunks(histories, session):
        weight = _visit_weights(visits, num_groups, basket_decay, group_decay)
        shape = (rows.stop - rows.start, num_items + 1)
        part = csr_array((weight, (visits.row, visits.item)), shape=shape)
        part.sort_indices()
        parts.append(part)
    return vstack(parts, format="csr")


def _visit_weights(visits: Visits, num_groups: int, basket_decay: float, group_decay: float) -> Float32:
    """[t], weight of each taking's visit in its row's vector."""
    total = visits.num_visits[visits.row]
    groups = np.minimum(total, num_groups)
    size, extra = total // groups, total % groups  # the newest `extra` groups have a visit more
    after = total - 1 - visits.visit
    in_larger = after < extra * (size + 1)
    beyond = after - extra * (size + 1)
    groups_after = np.where(in_larger, after // (size + 1), extra + beyond // size)
    visits_after = np.where(in_larger, after % (size + 1), beyond % size)
    weight = group_decay**groups_after * basket_decay**visits_after
    weight /= np.where(in_larger, size + 1, size) * groups
    return weight.astype(np.float32)
