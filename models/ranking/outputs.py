"""Raw outputs of a ranker with heads of outcomes.

Letters: r rows (requests), n candidates per row, t outcomes.
"""

from typing import NamedTuple

import numpy as np
import torch

from models.device import to_numpy
from models.histories import Float32, Histories, Int32
from models.ranking.outcomes import OutcomeLabels
from models.ranking.ranker import SecondStage


class Outputs(NamedTuple):
    """Ranker scores and outcomes of candidates."""

    score: Float32
    """[r, n], -inf for item 0"""
    logit: Float32
    """[r, n, t], of each outcome's probability, before calibration"""
    value: Float32
    """[r, n, t], expected value of an outcome's events; NaN for outcomes without a head for theirs"""


@torch.inference_mode()
def outputs(stage: SecondStage, histories: Histories, items: Int32, scores: Float32) -> Outputs:
    """Outputs for candidates [r, n], best first by the retriever's `scores` [r, n]."""
    ranker, heads = stage.ranker, stage.ranker.heads
    assert heads is not None
    shape = (*items.shape, len(heads.types))
    found = Outputs(
        np.full(items.shape, -np.inf, np.float32), np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    )
    for rows, lists in stage.batches(histories, items, scores):
        score, logit, value = ranker.with_outcomes(lists)
        parts = score.float(), logit.float(), heads.amounts(value).float()
        for whole, part in zip(found, parts, strict=True):
            whole[rows] = to_numpy(part)
    return found


def log_loss_gain(logit: Float32, labels: OutcomeLabels, items: Int32) -> float:
    """Share of the log loss of the outcomes' base rates, all outcomes together, that logits [r, n, t] save.

    Source: normalised entropy, He et al. 2014 ("Practical lessons from predicting clicks on ads"), here 1 minus it.
    """
    losses = base = 0.0
    for place in range(logit.shape[-1]):
        known = (items > 0) & np.isfinite(labels.done[..., place])
        own, done = logit[known, place].astype(np.float64), labels.done[known, place]
        rate = done.mean(dtype=np.float64) if len(done) else 0.0
        if 0 < rate < 1:
            losses += np.logaddexp(0, own).mean() - (own * done).mean()
            base -= rate * np.log(rate) + (1 - rate) * np.log1p(-rate)
    return float(1 - losses / base) if base else 0.0
