"""Calibration of ranker scores to probabilities that delivered items are taken, and its quality on held-out users.

Letters: m delivered items, f list features.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

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
PRIOR_POINTS, PRIOR_ITEMS = 21, 20.0
"""Points of a logistic function that join the items of a calibration, and the items that each counts as."""
MOST_ODDS = 4.0
"""Factor by which the activity before a request moves the odds at most."""
MIN_SLOPE = 1e-3
"""Minimum slope of the log-odds in the score, in standard deviations, for list features to be weighed against it."""


@dataclass(frozen=True)
class Calibration:
    """Non-decreasing piecewise linear function from score to the probability that the user takes a delivered item.

    How much users take changes from week to week, so the odds follow the events per user in the days before the request.
    """

    score: Float64
    """[points], ascending"""
    probability: Float64
    """[points], ascending, in [0, 1]"""
    activity: float = 0.0
    """Events per user in the `days` before the calibrating requests, the mean over their items; 0: odds follow nothing."""
    days: float = 0.0
    """Horizon."""

    @classmethod
    def fit(cls, scores: Float32, labels: NDArray[np.bool_]) -> "Calibration":
        """Fit isotonic regression of labels [m] (True: taken) on scores [m] (Zadrozny & Elkan 2002)."""
        return cls._isotonic(scores.astype(np.float64), labels.astype(np.float64), np.ones(len(scores)))

    @classmethod
    def smoothed(cls, scores: Float32, labels: NDArray[np.bool_]) -> "Calibration":
        """`fit` with `PRIOR_POINTS` of a logistic function of the score (Platt 1999), at its quantiles, among the items.

        Isotonic regression alone gives few items of the highest or lowest scores probabilities of 1 and 0.
        """
        from sklearn.linear_model import LogisticRegression

        if labels.all() or not labels.any():
            return cls.fit(scores, labels)
        score = scores.astype(np.float64)
        prior = np.quantile(score, np.linspace(0, 1, PRIOR_POINTS))
        logistic = LogisticRegression(max_iter=1_000).fit(score[:, None], labels)
        return cls._isotonic(
            np.concatenate([score, prior]),
            np.concatenate([labels, logistic.predict_proba(prior[:, None])[:, 1]]),
            np.concatenate([np.ones(len(score)), np.full(PRIOR_POINTS, PRIOR_ITEMS)]),
        )

    @classmethod
    def _isotonic(cls, scores: Float64, labels: Float64, weights: Float64) -> "Calibration":
        from sklearn.isotonic import IsotonicRegression

        regression = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip")
        regression.fit(scores, labels, weights)
        return cls(np.asarray(regression.X_thresholds_), np.asarray(regression.y_thresholds_))

    def __call__(self, scores: Float32, activity: Float64 | float = 0.0) -> Float32:
        """Probability at each score, of any shape; constant beyond the outermost points.

        activity: events per user before each request, of the same shape or a number; the odds are multiplied by its ratio to
        `activity`, `MOST_ODDS` at most; 0: unknown, by 1.
        """
        found = np.interp(scores, self.score, self.probability)
        if not self.activity:
            return np.asarray(found, np.float32)
        ratio = np.where(np.asarray(activity) > 0, activity, self.activity) / self.activity
        ratio = np.clip(ratio, 1 / MOST_ODDS, MOST_ODDS)
        return np.asarray(found * ratio / (1 - found + found * ratio), np.float32)

    def as_dict(self) -> dict[str, float | list[float]]:
        """Fields as JSON types."""
        points = {"score": self.score.tolist(), "probability": self.probability.tolist()}
        return points | {"activity": self.activity, "days": self.days}

    @classmethod
    def of_dict(cls, facts: Mapping[str, Any]) -> "Calibration":
        """Inverse of `as_dict`; those of version 0.7 or before follow no activity."""
        points = np.array(facts["score"]), np.array(facts["probability"])
        return cls(*points, facts.get("activity", 0.0), facts.get("days", 0.0))


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
    activity: Float64
    """[m], events per user in the horizon before the item's night; 0: not of a night"""

    @classmethod
    def of(
        cls,
        stage: SecondStage,
        retrieved: Retrieved,
        k: int = K,
        days: float = 0.0,
        scores: Float32 | None = None,
    ) -> "Delivered":
        """The k best candidates of each list by the ranker, with all lists, of users who took nothing too.

        days: horizon of nights; scores: [r, n], the ranker's, where they are known.
        """
        if scores is None:
            scores = stage.score(retrieved.histories, retrieved.items, retrieved.scores)
        column = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        is_there = np.take_along_axis(retrieved.items, column, 1) > 0
        row = np.broadcast_to(np.arange(len(retrieved))[:, None], column.shape)[is_there]
        column = column[is_there]
        level = stage.list_features(retrieved.histories, _list_features(stage.ranker))
        night = retrieved.night
        activity = np.zeros(len(retrieved)) if night is None else stage.statistics.activity(night, days)
        taken = retrieved.relevant[row, column]
        return cls(scores[row, column], taken, retrieved.user[row], level[row], activity[row])

    def select(self, rows: NDArray[np.bool_]) -> "Delivered":
        """Keep the given items."""
        return Delivered(**{name: part[rows] for name, part in vars(self).items()})

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


def calibrated(delivered: Delivered, weights: Float64, days: float = 0.0) -> Calibration:
    """Calibration of the scores with `weights` [f] per list, at the mean activity; days: horizon."""
    fitted = Calibration.smoothed(delivered.scores(weights), delivered.taken)
    return replace(fitted, activity=float(delivered.activity.mean()), days=days)


def calibrate(
    stage: SecondStage,
    retrieved: Retrieved,
    seed: int,
    k: int = K,
    days: float = 0.0,
    scores: Float32 | None = None,
) -> tuple[Calibration, "CalibrationQuality"]:
    """Calibrate a ranker on held-out lists, and measure the probabilities of delivered items by cross-fitting.

    `level_weights` are added to the ranker's linear part, in place, if cross-fitted log loss is lower with them; the order within
    lists stays.
    `retrieved` should have the lists of all users with a history, so that the probability is that of any list delivered.
    days: horizon of nights; scores: [r, n], the ranker's, where they are known.
    """
    delivered = Delivered.of(stage, retrieved, k, days, scores)
    choices = delivered, replace(delivered, level=delivered.level[:, :0])
    measured = [quality(cross_fitted(each, seed), each.taken) for each in choices]
    best = 0 if measured[0].log_loss < measured[1].log_loss else 1
    weights = level_weights(choices[best])
    columns = [stage.ranker.features.index(name) for name in _list_features(stage.ranker)[: len(weights)]]
    with torch.no_grad():
        stage.ranker.linear[columns] += torch.from_numpy(weights).to(stage.ranker.linear)
    return calibrated(choices[best], weights, days), measured[best]


def cross_fitted(delivered: Delivered, seed: int) -> Float32:
    """[m] probabilities, each half of the users calibrated on the other half."""
    users = np.unique(delivered.user)
    half = np.isin(delivered.user, np.random.default_rng(seed).permutation(users)[: len(users) // 2])
    probability = np.zeros(len(half), np.float32)
    for part in (half, ~half):
        if part.any() and (~part).any():
            others = delivered.select(~part)
            weights = level_weights(others)
            own = delivered.select(part)
            probability[part] = calibrated(others, weights)(own.scores(weights), own.activity)
    return probability


def _list_features(ranker: Ranker) -> tuple[str, ...]:
    """`LIST_FEATURES` that the ranker reads."""
    return tuple(name for name in LIST_FEATURES if name in ranker.features)
