"""Validation by held-out next items, each ranked among the whole catalogue."""

from dataclasses import dataclass

import numpy as np

from models.encoder.encoder import AttentionRecommender, Encoder
from models.evaluation.metrics import hit_rate, ndcg, ranks
from models.histories import Histories, Int32
from models.topk import mask_seen, row_chunks

VALIDATION_K = 10


@dataclass(frozen=True)
class Validation:
    """Held-out next items of histories."""

    histories: Histories
    target: Int32
    """[rows] next item."""
    exclude_seen: bool = True
    """Exclusion of history items from the ranking, the target excepted."""

    def sample(self, targets: int, seed: int) -> "Validation":
        """Sample of at most `targets` targets, fixed by the seed."""
        if len(self.target) <= targets:
            return self
        rows = np.sort(np.random.default_rng(seed).choice(len(self.target), targets, replace=False))
        return Validation(self.histories.select(rows), self.target[rows], self.exclude_seen)


def validate(encoder: Encoder, validation: Validation) -> dict[str, float]:
    """Mean NDCG@10 and hit rate@10 of the targets, each ranked among the whole catalogue; ties count half."""
    recommender = AttentionRecommender(encoder)
    ranks_of_chunks = []
    for rows in row_chunks(len(validation.target), encoder.num_items):
        part, target = validation.histories.select(rows), validation.target[rows]
        scores = recommender.score_items(part)
        if validation.exclude_seen:
            at_target = np.arange(len(target)), target
            own = scores[at_target]
            mask_seen(scores, part)
            scores[at_target] = own
        ranks_of_chunks.append(ranks(scores, target)[0])
    rank = np.concatenate(ranks_of_chunks)
    return {
        f"validation_ndcg@{VALIDATION_K}": float(ndcg(rank, VALIDATION_K).mean()),
        f"validation_hit_rate@{VALIDATION_K}": float(hit_rate(rank, VALIDATION_K).mean()),
    }
