"""Smallest effect that an experiment on users can show, from the variance of a metric over past nights."""

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from models.evaluation.metrics import Float64
from models.histories import Int64

# Letters in shapes: t user-nights. In formulas: n users, D nights, r nights with a value per user and night, m = r D.

LEVEL, POWER = 0.05, 0.8
"""Two-sided error of the first kind, and the chance to show an effect that is there."""


@dataclass(frozen=True)
class NightlyVariance:
    """Variance components of a metric over user-nights, and how often users have a value."""

    mean: float
    """Mean over user-nights"""
    between: float
    """Variance of the users' expected values"""
    within: float
    """Variance of one user's values around it"""
    rate: float
    """Share of the nights at which a user has a value, mean over users with any"""
    activity: float
    """1 + squared coefficient of variation of that share over users, at least 1"""
    users: int
    nights: int

    @classmethod
    def of(cls, value: Float64, user: Int64, nights: int) -> "NightlyVariance":
        """Estimate from `value` [t] of `user` [t], at most one per user and night.

        Components by analysis of variance with unequal groups (Searle, Casella & McCulloch 1992, section 3.6): within = MSW,
        between = (MSB - MSW) / n0, n0 = (t - sum n_i^2 / t) / (users - 1). Where no user has two values, all variance counts as
        between users, so that further nights promise nothing. A user's number of values at D nights of which each has one with
        the user's own chance is binomial, so E[m_i^2] / m^2 = 1 / m + activity (1 - 1 / D), from which activity follows.
        Raises ValueError for fewer than two users.
        """
        _, row, counts = np.unique(user, return_inverse=True, return_counts=True)
        total, groups = len(value), len(counts)
        if groups < 2:
            raise ValueError(f"power: received values of {groups} users, expected at least 2")
        means = np.bincount(row, value) / counts
        between_squares = float((counts * (means - value.mean()) ** 2).sum()) / (groups - 1)
        within = between = 0.0
        if total > groups:
            within = float(((value - means[row]) ** 2).sum()) / (total - groups)
            size = (total - float((counts**2).sum()) / total) / (groups - 1)
            between = max(0.0, (between_squares - within) / size)
        else:
            between = between_squares
        visits = total / groups
        spread = float((counts**2).mean()) / visits**2
        activity = max(1.0, (spread - 1 / visits) / (1 - 1 / nights)) if nights > 1 else 1.0
        return cls(float(value.mean()), between, within, visits / nights, activity, groups, nights)

    def of_mean(self, nights: float) -> float:
        """Variance of a mean over the user-nights of one user, v: that of n users is v / n.

        v = between E[m_i^2] / m^2 + within / m: a ratio of sums over users, linearised, whose first term is the design effect of
        clusters of unequal size (Eldridge, Ashby & Kerry 2006, equation 1). Raises ValueError for under one night.
        """
        if nights < 1:
            raise ValueError(f"power: received {nights:g} nights, expected at least 1")
        visits = self.rate * nights
        return self.between * (1 / visits + self.activity * (1 - 1 / nights)) + self.within / visits

    def smallest_effect(self, users: float, nights: float, share: float = 0.5) -> float:
        """Smallest difference of two arms' means that shows with `POWER` in a two-sided test at `LEVEL`.

        (z_{1 - level / 2} + z_power) sqrt(v / (share n) + v / ((1 - share) n)) (Lachin 1981, arms of one variance; for
        equal arms and 80 % the rule n = 16 v / effect^2 per arm of Kohavi, Tang & Xu 2020, chapter 17). share: of the users, in
        one of the two arms. The nights are the same for both arms, so what differs between nights does not count.
        """
        return _quantiles() * math.sqrt(self.of_mean(nights) * _per_user(share) / users)

    def users_needed(self, effect: float, nights: float, share: float = 0.5) -> int:
        """Users of both arms together with which an effect shows with `POWER`; raises ValueError for an effect of 0."""
        if not effect:
            raise ValueError("power: received an effect of 0, expected another")
        return math.ceil(self.of_mean(nights) * _per_user(share) * (_quantiles() / effect) ** 2)

    def nights_needed(
        self, effect: float, users: float, share: float = 0.5, comparisons: int = 1
    ) -> int | None:
        """Fewest nights with which users show an effect with `POWER`; None where no number of nights does.

        comparisons: tests among which the level is divided (Bonferroni; adjusting after Holm calls no fewer).
        v of `of_mean` at D nights is a + (v(1) - a) / D, with a = between activity.
        """
        target = users * (effect / _quantiles(comparisons)) ** 2 / _per_user(share)
        if self.of_mean(1) <= target:
            return 1
        floor = self.between * self.activity
        return math.ceil((self.of_mean(1) - floor) / (target - floor)) if target > floor else None


def _per_user(share: float) -> float:
    if not 0 < share < 1:
        raise ValueError(f"power: received a share of {share:g} in one arm, expected between 0 and 1")
    return 1 / share + 1 / (1 - share)


def _quantiles(comparisons: int = 1) -> float:
    normal = NormalDist()
    return normal.inv_cdf(1 - LEVEL / comparisons / 2) + normal.inv_cdf(POWER)
