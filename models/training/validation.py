"""Validation: held-out next items, each ranked among the whole catalogue, choose the epoch to keep."""

from dataclasses import dataclass

import numpy as np

from models.encoder.encoder import AttentionRecommender, Encoder
from models.evaluation.metrics import hit_rate, ndcg, ranks
from models.histories import Histories, Int32
from models.topk import mask_seen, row_chunks

VALIDATION_K = 10


@dataclass(frozen=True)
class Validation:
    """Held-out next items, each ranked among the whole catalogue after every epoch."""

    histories: Histories
    target: Int32
    """[rows], the item that came next."""
    exclude_seen: bool = True
    """Leave items of the history out of the ranking (the target itself never)."""

    def sample(self, targets: int, seed: int) -> "Validation":
        """At most so many of the targets, always the same for a seed."""
        if len(self.target) <= targets:
            return self
        rows = np.sort(np.random.default_rng(seed).choice(len(self.target), targets, replace=False))
        return Validation(self.histories.select(rows), self.target[rows], self.exclude_seen)


def validate(encoder: Encoder, validation: Validation) -> dict[str, float]:
    """Mean NDCG@10 and hit rate@10 of the targets, each ranked among the whole catalogue; ties count half."""
    recommender = AttentionRecommender(encoder)
    parts = []
    for rows in row_chunks(len(validation.target), encoder.num_items):
        part, target = validation.histories.select(rows), validation.target[rows]
        scores = recommender.score_items(part)
        if validation.exclude_seen:
            at_target = np.arange(len(target)), target
            own = scores[at_target]
            mask_seen(scores, part)
            scores[at_target] = own
        parts.append(ranks(scores, target)[0])
    rank = np.concatenate(parts)
    return {
        f"validation_ndcg@{VALIDATION_K}": float(ndcg(rank, VALIDATION_K).mean()),
        f"validation_hit_rate@{VALIDATION_K}": float(hit_rate(rank, VALIDATION_K).mean()),
    }
