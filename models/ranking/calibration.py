"""Calibration of ranker scores to probabilities by isotonic regression, and its quality on held-out users."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.evaluation.metrics import Float64
from models.histories import Float32, Int64

BINS = 10
MIN_PROBABILITY = 1e-6
"""Minimum distance of probabilities from 0 and 1 under logarithms."""


@dataclass(frozen=True)
class Calibration:
    """Non-decreasing piecewise linear function from score to the probability that the candidate is the target."""

    score: Float64
    """[points], ascending"""
    probability: Float64
    """[points], ascending, in [0, 1]"""

    @classmethod
    def fit(cls, scores: Float32, labels: NDArray[np.bool_]) -> "Calibration":
        """Fit isotonic regression of labels [m] (True: the target) on scores [m] (Zadrozny & Elkan 2002)."""
        from sklearn.isotonic import IsotonicRegression

        regression = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip")
        regression.fit(scores.astype(np.float64), labels)
        return cls(np.asarray(regression.X_thresholds_), np.asarray(regression.y_thresholds_))

    def __call__(self, scores: Float32) -> Float32:
        """Probability at each score, of any shape; constant beyond the outermost points."""
        return np.asarray(np.interp(scores, self.score, self.probability), np.float32)


def cross_fitted(scores: Float32, labels: NDArray[np.bool_], user: Int64, seed: int) -> Float32:
    """[m] probabilities, each half of the users calibrated on the other half."""
    users = np.unique(user)
    half = np.isin(user, np.random.default_rng(seed).permutation(users)[: len(users) // 2])
    probability = np.zeros(len(scores), np.float32)
    for part in (half, ~half):
        if part.any() and (~part).any():
            probability[part] = Calibration.fit(scores[~part], labels[~part])(scores[part])
    return probability


@dataclass(frozen=True)
class Bin:
    """Mean predicted probability and observed share of targets among some candidates."""

    probability: float
    observed: float
    candidates: int


@dataclass(frozen=True)
class CalibrationQuality:
    """Quality of predicted probabilities."""

    log_loss: float
    """nats"""
    auc: float | None
    """None where all candidates have the same label."""
    calibration_error: float
    """Expected calibration error: mean |probability - share| of `reliability`, by candidates (Naeini et al. 2015)."""
    reliability: tuple[Bin, ...]
    """Up to `BINS` bins of equal size, in order of probability."""


def quality(probability: Float32, labels: NDArray[np.bool_]) -> CalibrationQuality:
    """Measure probabilities [m] against labels [m]."""
    from sklearn.metrics import log_loss, roc_auc_score

    clipped = np.clip(probability.astype(np.float64), MIN_PROBABILITY, 1 - MIN_PROBABILITY)
    order = np.argsort(probability, kind="stable")
    bins = tuple(
        Bin(float(probability[rows].mean()), float(labels[rows].mean()), len(rows))
        for rows in np.array_split(order, BINS)
        if len(rows)
    )
    error = sum(abs(row.probability - row.observed) * row.candidates for row in bins) / len(labels)
    auc = float(roc_auc_score(labels, probability)) if labels.any() and not labels.all() else None
    return CalibrationQuality(float(log_loss(labels, clipped, labels=[False, True])), auc, error, bins)
