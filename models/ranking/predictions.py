"""Outcomes predicted by the second stage: calibrated probabilities, values, and the orders that follow from them.

Letters: r rows (requests), n candidates per row, t outcomes.
"""

from dataclasses import dataclass

import numpy as np

from models.histories import Float32, Histories, Int32, Int64
from models.ranking.calibration import Calibration
from models.ranking.outcomes import OutcomeLabels, Utility
from models.ranking.outputs import outputs
from models.ranking.ranker import SecondStage


@dataclass(frozen=True)
class Predictions:
    """Predicted outcomes of candidates; NaN for item 0."""

    score: Float32
    """[r, n], ranker score, -inf for item 0"""
    probability: Float32
    """[r, n, t]"""
    value: Float32
    """[r, n, t], expected value of an outcome's events; NaN for outcomes without a head for theirs"""

    def utility(self, utility: Utility) -> Float32:
        """[r, n], expected utility, -inf for item 0."""
        return np.where(np.isneginf(self.score), -np.inf, utility(self.probability, self.value))

    def order(self, items: Int32, utility: Utility | None) -> Int64:
        """[r, n], columns of the candidates [r, n] by expected utility, or by score without one.

        Equal utilities: by score; equal scores: by item.
        """
        first = () if utility is None else (-self.utility(utility),)
        return np.lexsort((items, -self.score, *first), axis=1)


def predict(stage: SecondStage, histories: Histories, items: Int32, scores: Float32) -> Predictions:
    """Predictions for candidates [r, n], best first by the retriever's `scores` [r, n]; the ranker has calibrated heads."""
    heads = stage.ranker.heads
    assert heads is not None
    found = outputs(stage, histories, items, scores)
    probability = np.stack(
        [calibration(found.logit[..., place]) for place, calibration in enumerate(heads.calibrations)], -1
    )
    probability[items == 0] = np.nan
    return Predictions(found.score, probability, found.value)


def calibrate_outcomes(
    stage: SecondStage, histories: Histories, items: Int32, scores: Float32, labels: OutcomeLabels
) -> Float32:
    """Calibrate each head on the candidates of held-out lists, in place, by isotonic regression (`Calibration.smoothed`).

    Returns the ranker's scores of the candidates [r, n].
    """
    heads = stage.ranker.heads
    assert heads is not None
    found = outputs(stage, histories, items, scores)
    calibrations = []
    for place in range(len(heads.types)):
        known = (items > 0) & np.isfinite(labels.done[..., place])
        calibrations.append(Calibration.smoothed(found.logit[known, place], labels.done[known, place] == 1))
    heads.calibrations = tuple(calibrations)
    return found.score
