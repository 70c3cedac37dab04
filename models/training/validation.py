"""Validation by held-out items of requests, each ranked among the whole catalogue."""

from dataclasses import dataclass

import numpy as np

from models.encoder.encoder import AttentionRecommender, Encoder
from models.evaluation.metrics import metrics_of_ranks, ranks
from models.histories import Histories, Int32, Int64
from models.topk import mask_seen, row_chunks

VALIDATION_K = 10


@dataclass(frozen=True)
class Validation:
    """Held-out items of requests: the next item of each history, or all that follow within a time."""

    histories: Histories
    """[requests]"""
    target: Int32
    """[targets], 0 for an item unknown to the encoder, which is a miss"""
    exclude_seen: bool = True
    """Exclusion of history items from the ranking, the targets excepted."""
    request: Int64 | None = None
    """[targets], ascending, request of each target; None: one each"""

    def sample(self, requests: int, seed: int) -> "Validation":
        """Sample of at most `requests` requests with their targets, fixed by the seed."""
        if len(self.histories) <= requests:
            return self
        rows = np.sort(np.random.default_rng(seed).choice(len(self.histories), requests, replace=False))
        if self.request is None:
            return Validation(self.histories.select(rows), self.target[rows], self.exclude_seen)
        number = np.full(len(self.histories), -1)
        number[rows] = np.arange(len(rows))
        kept = number[self.request] >= 0
        return Validation(
            self.histories.select(rows), self.target[kept], self.exclude_seen, number[self.request[kept]]
        )


def validate(encoder: Encoder, validation: Validation) -> dict[str, float]:
    """Mean NDCG@10 and hit rate@10 of the requests, targets ranked among the whole catalogue; ties count half."""
    recommender = AttentionRecommender(encoder)
    request = np.arange(len(validation.target)) if validation.request is None else validation.request
    rank = np.full(len(request), np.inf)
    for rows in row_chunks(len(validation.histories), encoder.num_items):
        part = validation.histories.select(rows)
        own = slice(*np.searchsorted(request, (rows.start, rows.stop)))
        known = np.flatnonzero(validation.target[own] > 0)
        target, row = validation.target[own][known], request[own][known] - rows.start
        scores = recommender.score_items(part)
        if validation.exclude_seen:
            kept = scores[row, target]
            mask_seen(scores, part)
            scores[row, target] = kept
        rank[own][known] = ranks(scores, target, None if validation.request is None else row)[0]
    values = metrics_of_ranks(rank, (VALIDATION_K,), validation.request, len(validation.histories))
    return {
        f"validation_{metric}@{VALIDATION_K}": float(values[f"{metric}@{VALIDATION_K}"].mean())
        for metric in ("ndcg", "hit_rate")
    }
