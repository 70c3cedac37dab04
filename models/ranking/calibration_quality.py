"""Quality of predicted probabilities: log loss, ranking, calibration error, reliability."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.evaluation.metrics import Float64
from models.histories import Float32

BINS = 10
MIN_PROBABILITY = 1e-6
"""Minimum distance of probabilities from 0 and 1 under logarithms."""


@dataclass(frozen=True)
class Bin:
    """Mean predicted probability and observed share of items taken among some candidates."""

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
    mean_probability: float
    expected_per_hit: float | None
    """Sum of the probabilities over the number of items taken; None where none is."""


def log_loss(probability: Float32, labels: NDArray[np.bool_]) -> float:
    """Log loss of probabilities [m] of labels [m], in nats."""
    from sklearn import metrics

    return float(metrics.log_loss(labels, _clipped(probability), labels=[False, True]))


def _clipped(probability: Float32) -> Float64:
    return np.clip(probability.astype(np.float64), MIN_PROBABILITY, 1 - MIN_PROBABILITY)


def quality(probability: Float32, labels: NDArray[np.bool_]) -> CalibrationQuality:
    """Measure probabilities [m] against labels [m]."""
    from sklearn.metrics import roc_auc_score

    order = np.argsort(probability, kind="stable")
    bins = tuple(
        Bin(float(probability[rows].mean()), float(labels[rows].mean()), len(rows))
        for rows in np.array_split(order, BINS)
        if len(rows)
    )
    error = sum(abs(row.probability - row.observed) * row.candidates for row in bins) / len(labels)
    auc = float(roc_auc_score(labels, probability)) if labels.any() and not labels.all() else None
    expected = float(_clipped(probability).sum()) / int(labels.sum()) if labels.any() else None
    return CalibrationQuality(
        log_loss(probability, labels), auc, error, bins, float(probability.mean()), expected
    )
