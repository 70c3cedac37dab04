"""Calibration of ranker scores to probabilities that delivered items are taken, and its quality on held-out users.

Letters: m delivered items, f list features.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from models.evaluation.metrics import Float64
from models.histories import Float32, Int64
from models.ranking.calibration_quality import CalibrationQuality, quality
from models.ranking.ranker import Ranker, SecondStage
from models.ranking.training import K, Retrieved

LIST_FEATURES = ("user_last_seen", "history_length", "num_visits", "visit_gap", "items_per_visit")
"""Features that are the same for all candidates of a list."""
MIN_SLOPE = 1e-3
"""Minimum slope of the log-odds in the score, in standard deviations, for list features to be weighed against it."""


@dataclass(frozen=True)
class Calibration:
    """Non-decreasing piecewise linear function from score to the probability that the user takes a delivered item."""

    score: Float64
    """[points], ascending"""
    probability: Float64
    """[points], ascending, in [0, 1]"""

    @classmethod
    def fit(cls, scores: Float32, labels: NDArray[np.bool_]) -> "Calibration":
        """Fit isotonic regression of labels [m] (True: taken) on scores [m] (Zadrozny & Elkan 2002)."""
        from sklearn.isotonic import IsotonicRegression

        regression = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip")
        regression.fit(scores.astype(np.float64), labels)
        return cls(np.asarray(regression.X_thresholds_), np.asarray(regression.y_thresholds_))

    def __call__(self, scores: Float32) -> Float32:
        """Probability at each score, of any shape; constant beyond the outermost points."""
        return np.asarray(np.interp(scores, self.score, self.probability), np.float32)


@dataclass(frozen=True)
class Delivered:
    """Items delivered to held-out users: the first places of their lists."""

    score: Float32
    """[m], ranker scores"""
    taken: NDArray[np.bool_]
    """[m], whether the user took the item within the horizon"""
    user: Int64
    """[m]"""
    level: Float32
    """[m, f], `LIST_FEATURES` of the item's list, standardised as in the ranker"""

    @classmethod
    def of(cls, stage: SecondStage, retrieved: Retrieved, k: int = K) -> "Delivered":
        """The k best candidates of each list by the ranker, with all lists, of users who took nothing too."""
        scores = stage.score(retrieved.histories, retrieved.items, retrieved.scores)
        column = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        is_there = np.take_along_axis(retrieved.items, column, 1) > 0
        row = np.broadcast_to(np.arange(len(retrieved))[:, None], column.shape)[is_there]
        column = column[is_there]
        level = stage.list_features(retrieved.histories, _list_features(stage.ranker))
        return cls(scores[row, column], retrieved.relevant[row, column], retrieved.user[row], level[row])

    def select(self, rows: NDArray[np.bool_]) -> "Delivered":
        """Keep the given items."""
        return Delivered(self.score[rows], self.taken[rows], self.user[rows], self.level[rows])

    def scores(self, weights: Float64) -> Float32:
        """[m], scores with a constant added per list: `level @ weights`."""
        return np.asarray(self.score + self.level @ weights, np.float32)


def level_weights(delivered: Delivered) -> Float64:
    """[f], weights that bring the scores of all lists to one level.

    Within a list training fixes differences of scores alone. Logistic regression of `taken` on a * score + w . level gives w / a;
    zeros where a is not above 0 or all items have the same label.
    """
    from sklearn.linear_model import LogisticRegression

    none = np.zeros(delivered.level.shape[1])
    if delivered.taken.all() or not delivered.taken.any():
        return none
    scale = max(float(delivered.score.std()), 1e-6)
    inputs = np.concatenate([(delivered.score / scale)[:, None], delivered.level], 1)
    slopes = LogisticRegression(max_iter=1_000).fit(inputs, delivered.taken).coef_[0]
    return slopes[1:] / slopes[0] * scale if slopes[0] > MIN_SLOPE else none


def calibrate(
    stage: SecondStage, retrieved: Retrieved, seed: int, k: int = K
) -> tuple[Calibration, "CalibrationQuality"]:
    """Calibrate a ranker on held-out lists, and measure the probabilities of delivered items by cross-fitting.

    `level_weights` are added to the ranker's linear part, in place, if cross-fitted log loss is lower with them; the order within
    lists stays.
    `retrieved` should have the lists of all users with a history, so that the probability is that of any list delivered.
    """
    delivered = Delivered.of(stage, retrieved, k)
    choices = delivered, replace(delivered, level=delivered.level[:, :0])
    measured = [quality(cross_fitted(each, seed), each.taken) for each in choices]
    best = 0 if measured[0].log_loss < measured[1].log_loss else 1
    weights = level_weights(choices[best])
    columns = [stage.ranker.features.index(name) for name in _list_features(stage.ranker)[: len(weights)]]
    with torch.no_grad():
        stage.ranker.linear[columns] += torch.from_numpy(weights).to(stage.ranker.linear)
    return Calibration.fit(choices[best].scores(weights), delivered.taken), measured[best]


def cross_fitted(delivered: Delivered, seed: int) -> Float32:
    """[m] probabilities, each half of the users calibrated on the other half."""
    users = np.unique(delivered.user)
    half = np.isin(delivered.user, np.random.default_rng(seed).permutation(users)[: len(users) // 2])
    probability = np.zeros(len(half), np.float32)
    for part in (half, ~half):
        if part.any() and (~part).any():
            others = delivered.select(~part)
            weights = level_weights(others)
            calibration = Calibration.fit(others.scores(weights), others.taken)
            probability[part] = calibration(delivered.select(part).scores(weights))
    return probability


def _list_features(ranker: Ranker) -> tuple[str, ...]:
    """`LIST_FEATURES` that the ranker reads."""
    return tuple(name for name in LIST_FEATURES if name in ranker.features)
