"""From a ranker's scores to probabilities: isotonic regression, and how well it holds for users that it was not fitted on."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.evaluation.metrics import Float64
from models.histories import Float32, Int64

BINS = 10
LEAST = 1e-6
"""Probabilities are kept this far from 0 and 1 where logarithms are taken."""


@dataclass(frozen=True)
class Calibration:
    """A non-decreasing piecewise linear function from score to the probability that the candidate comes next."""

    score: Float64
    """[points], ascending"""
    probability: Float64
    """[points], ascending, in [0, 1]"""

    @classmethod
    def fit(cls, scores: Float32, wanted: NDArray[np.bool_]) -> "Calibration":
        """Isotonic regression of whether it came next on the score, over candidates [m] (Zadrozny & Elkan 2002)."""
        from sklearn.isotonic import IsotonicRegression

        fitted = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(
            scores.astype(np.float64), wanted
        )
        return cls(np.asarray(fitted.X_thresholds_), np.asarray(fitted.y_thresholds_))

    def __call__(self, scores: Float32) -> Float32:
        """The probability at each score, of any shape; beyond the points that of the nearest."""
        found: Float32 = np.interp(scores, self.score, self.probability).astype(np.float32)
        return found


def cross_fitted(scores: Float32, wanted: NDArray[np.bool_], user: Int64, seed: int) -> Float32:
    """[m] probabilities, each half of the users calibrated on the other half."""
    users = np.unique(user)
    half = np.isin(user, np.random.default_rng(seed).permutation(users)[: len(users) // 2])
    found = np.zeros(len(scores), np.float32)
    for part in (half, ~half):
        if part.any() and (~part).any():
            found[part] = Calibration.fit(scores[~part], wanted[~part])(scores[part])
    return found


@dataclass(frozen=True)
class Bin:
    """Mean predicted probability and observed share of hits of several candidates."""

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
    """Mean distance of `reliability`'s probabilities and shares, weighted by candidates (Naeini et al. 2015)."""
    reliability: tuple[Bin, ...]
    """Up to `BINS` bins of as many candidates each, in the order of their probabilities."""


def quality(probability: Float32, wanted: NDArray[np.bool_]) -> CalibrationQuality:
    """Measure probabilities [m] of labels [m]."""
    from sklearn.metrics import log_loss, roc_auc_score

    kept = np.clip(probability.astype(np.float64), LEAST, 1 - LEAST)
    order = np.argsort(probability, kind="stable")
    bins = tuple(
        Bin(float(probability[rows].mean()), float(wanted[rows].mean()), len(rows))
        for rows in np.array_split(order, BINS)
        if len(rows)
    )
    error = sum(abs(row.probability - row.observed) * row.candidates for row in bins) / len(wanted)
    both = wanted.any() and not wanted.all()
    return CalibrationQuality(
        float(log_loss(wanted, kept, labels=[False, True])),
        float(roc_auc_score(wanted, probability)) if both else None,
        error,
        bins,
    )
