"""Ranks of held-out targets in the whole catalogue, and the recommended lists.

Letters: t targets, q requests, n items, k length of a list.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.evaluation import metrics
from models.evaluation.metrics import Float64
from models.histories import Float32, Histories, Int32, Int64, Shortlists
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
    """[q, k], recommended items of each request, best first, padded with 0"""

    def select(self, targets: NDArray[np.bool_], requests: NDArray[np.bool_]) -> "SystemRanks":
        """Keep the chosen targets [t], and lists of the chosen requests [q]."""
        return SystemRanks(self.rank[targets], self.pessimistic[targets], self.lists[requests])


def rank_targets(
    system: Recommender,
    histories: Histories,
    target: Int32,
    list_length: int,
    *,
    exclude_seen: bool,
    request: Int64 | None = None,
) -> SystemRanks:
    """Rank every target by `system` from its request's history, never holding requests x items.

    histories: q rows; target: [t], 1..num_items, 0 for an unknown item; request: [t], ascending, row of each target (by default
    its own number). `exclude_seen` masks the items of each history (a masked target is behind every other item). Items that the
    system cannot recommend (-inf) are misses only if unknown: else behind every other item. list_length 0: no lists. Where
    rows have shortlists, all are limited, and targets are ranked among the items of theirs, of which they are; lists are not.
    """
    request = np.arange(len(target)) if request is None else request
    rank, pessimistic = (np.full(len(target), np.inf) for _ in range(2))
    lists = np.zeros((len(histories), list_length), np.int32)
    for rows in row_chunks(len(histories), system.num_items):
        part = histories.select(rows)
        scores = system.score_items(part)
        if exclude_seen:
            mask_seen(scores, part)
        own = slice(*np.searchsorted(request, (rows.start, rows.stop)))
        known = np.flatnonzero(target[own] > 0)
        row, item = request[own][known] - rows.start, target[own][known]
        if part.shortlist is not None:
            among = _ranks_among(scores, item, row, part.shortlist)
        else:
            is_plain = len(known) == len(part) and np.array_equal(row, np.arange(len(part)))
            among = metrics.ranks(scores, item, None if is_plain else row)
        rank[own][known], pessimistic[own][known] = among
        if list_length:
            lists[rows], _ = top_k(scores, list_length)
    return SystemRanks(rank, pessimistic, lists)


def _ranks_among(scores: Float32, item: Int32, row: Int64, shortlist: Shortlists) -> tuple[Float64, Float64]:
    """`metrics.ranks` of targets [t] among the items of their rows' shortlists."""
    target, other = shortlist.select(row).pairs()
    own, value = scores[row, item], scores[row[target], other]
    greater = np.bincount(target[value > own[target]], minlength=len(item))
    others = np.bincount(target[value == own[target]], minlength=len(item)) - 1
    return 1 + greater + others / 2, np.asarray(1 + greater + others, np.float64)


class ColdStart:
    """Recommender with a fallback for rows without interactions."""

    def __init__(self, warm: Recommender, cold: Recommender) -> None:
        assert warm.num_items == cold.num_items
        self._warm, self._cold = warm, cold
        self.num_items = warm.num_items

    def score_items(self, histories: Histories) -> Float32:
        """[rows, num_items + 1], `cold`'s scores for empty rows, `warm`'s for the others."""
        is_cold = histories.lengths == 0
        if not is_cold.any():
            return self._warm.score_items(histories)
        scores = np.empty((len(histories), self.num_items + 1), np.float32)
        scores[is_cold] = self._cold.score_items(histories.select(is_cold))
        if not is_cold.all():
            scores[~is_cold] = self._warm.score_items(histories.select(~is_cold))
        return scores

    def recommend(self, histories: Histories, k: int, exclude_seen: bool = True) -> tuple[Int32, Float32]:
        """Top-k items of each row and their scores, as in `Recommender`."""
        return recommend_in_chunks(self.score_items, self.num_items, histories, k, exclude_seen)


class WithoutDislikes:
    """Recommender that reads each history without its dislikes: a count of events knows no others."""

    def __init__(self, system: Recommender) -> None:
        self._system = system
        self.num_items = system.num_items

    def score_items(self, histories: Histories) -> Float32:
        """[rows, num_items + 1], scores of the rows without dislikes."""
        return self._system.score_items(histories.without_dislikes())

    def recommend(self, histories: Histories, k: int, exclude_seen: bool = True) -> tuple[Int32, Float32]:
        """Top-k items of each row and their scores, as in `Recommender`; dislikes count as seen."""
        return recommend_in_chunks(self.score_items, self.num_items, histories, k, exclude_seen)


class Renumbered:
    """Recommender in a numbering of more items than it knows; unknown items score -inf.

    numbers: [num_items + 1], item -> the recommender's, 0 where unknown.
    """

    def __init__(self, system: Recommender, numbers: Int32) -> None:
        self._system, self._numbers = system, numbers
        self.num_items = len(numbers) - 1

    def score_items(self, histories: Histories) -> Float32:
        """Scores from the known part of each history: [rows, num_items + 1]."""
        own = histories.compact().translate(self._numbers)
        scores = self._system.score_items(own)[:, self._numbers]
        scores[:, self._numbers == 0] = -np.inf
        return scores

    def recommend(self, histories: Histories, k: int, exclude_seen: bool = True) -> tuple[Int32, Float32]:
        """Top k items of each row and their scores (see `Recommender`)."""
        return recommend_in_chunks(self.score_items, self.num_items, histories, k, exclude_seen)
