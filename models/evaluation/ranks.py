"""Ranks of held-out targets in the whole catalogue, and the recommended lists.

Letters: t targets, n items, k length of a list.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.evaluation import metrics
from models.evaluation.metrics import Float64
from models.histories import Float32, Histories, Int32
from models.recommender import Recommender
from models.topk import mask_seen, recommend_in_chunks, row_chunks, top_k


@dataclass(frozen=True)
class SystemRanks:
    """Ranks and lists of one system for t targets."""

    rank: Float64
    """[t], 1 + number of greater + half the number of equal scores; infinity, a miss, for an unknown item"""
    pessimistic: Float64
    """[t], 1 + number of greater + number of equal scores: the worst rank under ties"""
    lists: Int32
    """[t, k], recommended items, best first, padded with 0"""

    def select(self, chosen: NDArray[np.bool_]) -> "SystemRanks":
        """Keep the chosen targets."""
        return SystemRanks(self.rank[chosen], self.pessimistic[chosen], self.lists[chosen])


def rank_targets(
    system: Recommender, histories: Histories, target: Int32, list_length: int, *, exclude_seen: bool
) -> SystemRanks:
    """Rank every target by `system` from the history before it, never holding targets x items.

    histories: t rows; target: [t], 1..num_items, 0 for an unknown item. `exclude_seen` masks the items of each history
    (a masked target is behind every other item).
    """
    rank, pessimistic = (np.full(len(target), np.inf) for _ in range(2))
    lists = np.zeros((len(target), list_length), np.int32)
    for rows in row_chunks(len(target), system.num_items):
        part, targets = histories.select(rows), target[rows]
        scores = system.score_items(part)
        if exclude_seen:
            mask_seen(scores, part)
        known = targets > 0
        if known.all():
            rank[rows], pessimistic[rows] = metrics.ranks(scores, targets)
        else:
            rank[rows][known], pessimistic[rows][known] = metrics.ranks(scores[known], targets[known])
        lists[rows], _ = top_k(scores, list_length)
    return SystemRanks(rank, pessimistic, lists)


class ColdStart:
    """Recommender with a fallback for rows without interactions."""

    def __init__(self, warm: Recommender, cold: Recommender) -> None:
        assert warm.num_items == cold.num_items
        self._warm, self._cold = warm, cold
        self.num_items = warm.num_items

    def score_items(self, histories: Histories) -> Float32:
        """[rows, num_items + 1], `cold`'s scores for empty rows, `warm`'s for the others."""
        scores = self._warm.score_items(histories)
        is_cold = histories.lengths == 0
        if is_cold.any():
            scores[is_cold] = self._cold.score_items(histories.select(is_cold))
        return scores

    def recommend(self, histories: Histories, k: int, exclude_seen: bool = True) -> tuple[Int32, Float32]:
        """Top-k items of each row and their scores, as in `Recommender`."""
        return recommend_in_chunks(self.score_items, self.num_items, histories, k, exclude_seen)
