"""Uncertainty of means: bootstrap over users, paired tests, correction for multiple tests, spread over seeds.

A log is a sample of users, and one user's targets are correlated, so whole users are resampled.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from models.evaluation.metrics import Float64

# Letters in shapes: t targets, u users, m metrics, d distinct weightings, b resamples, s systems.

Verdict = Literal["better", "worse", "no significant difference"]
NO_DIFFERENCE: Final = "no significant difference"

MIN_P = 1e-4
"""Minimum p of the bootstrap: no tail beyond the resolution of 10,000 resamples is claimed."""
FEWEST_COUNTED = 1000
"""Resamples from which p is a share of them."""
_CHUNK_RESAMPLES = 256
_CHUNK_DRAWS = 2**26
"""Counts of drawn users held at once (128 MiB of uint16)."""
_DRAW_CELLS = 2**18
"""Users drawn at once: their counts stay in the cache."""
_BLOCK_CELLS = 2**22
"""Counts multiplied at once (32 MiB of float64)."""
_EXACT_CELLS = 2**24
"""Means per user up to which they are kept as float64 (128 MiB a system), float32 beyond."""


@dataclass(frozen=True)
class UserMeans:
    """Mean and weight per user from per-target values: the sample of a bootstrap over users."""

    means: NDArray[np.floating]
    """[m, u], the weighted mean over the user's targets; NaN where the user has none for the metric."""
    weights: Float64
    """[d, u], sum of the weights of the user's targets; metrics mostly share one row: the number of targets."""
    weighting: tuple[int, ...]
    """[m], row of `weights` that belongs to each metric."""
    over_targets: Float64
    """[m], sum(w v) / sum(w) over all targets."""
    over_users: Float64
    """[m], mean over users of their means."""

    @classmethod
    def of(
        cls,
        values: Mapping[str, Float64],
        user: NDArray[np.integer],
        num_users: int,
        weights: Mapping[str, Float64] | None = None,
    ) -> "UserMeans":
        """Aggregate `values` (metric -> [t]) over the targets of each `user` [t] in 0..num_users-1.

        NaN is no target of its metric. `weights` (metric -> [t]) of some metrics; the others weigh targets equally.
        Values are read one metric at a time, once. Beyond 16 M means (users x metrics) they are float32.
        """
        kind = np.float64 if len(values) * num_users <= _EXACT_CELLS else np.float32
        means = np.empty((len(values), num_users), kind)
        distinct: list[Float64] = []
        weighting, over_targets, over_users = [], [], []
        for row, (name, value) in enumerate(values.items()):
            sums, totals = _sums(value, user, num_users, weights.get(name) if weights else None)
            own = _ratio(sums, totals)
            means[row] = own
            over_targets.append(_ratio(sums.sum(), totals.sum()))
            over_users.append(_ratio(np.nansum(own), np.count_nonzero(totals)))
            weighting.append(_weighting_row(totals, distinct))
        return cls(means, np.array(distinct), tuple(weighting), np.array(over_targets), np.array(over_users))

    @property
    def num_users(self) -> int:
        """Users that may be drawn."""
        return int(self.means.shape[1])


def _sums(
    value: Float64, user: NDArray[np.integer], num_users: int, weight: Float64 | None
) -> tuple[Float64, Float64]:
    """([u], [u]): each user's sum of weighted values and of weights, over the targets whose value is not NaN."""
    counted = ~np.isnan(value)
    if not counted.all():
        user, value, weight = user[counted], value[counted], weight[counted] if weight is not None else None
    totals = np.bincount(user, weights=weight, minlength=num_users)
    sums = np.bincount(user, weights=value if weight is None else value * weight, minlength=num_users)
    return sums.astype(np.float64), totals.astype(np.float64)


def _weighting_row(totals: Float64, distinct: list[Float64]) -> int:
    """Row of `distinct` equal to `totals`, appended if there is none."""
    for row, known in enumerate(distinct):
        if np.array_equal(known, totals):
            return row
    distinct.append(totals)
    return len(distinct) - 1


def draws(num_users: int, num_resamples: int, seed: int) -> Iterator[tuple[slice, NDArray[np.uint16]]]:
    """Multinomial counts of `num_users` users drawn with replacement, in chunks: (resamples, [len, u]).

    The same seed gives the same counts, however they are chunked.
    """
    random = np.random.default_rng(seed)
    step = max(1, min(_CHUNK_RESAMPLES, _CHUNK_DRAWS // max(num_users, 1)))
    inner = max(1, _DRAW_CELLS // max(num_users, 1))
    for start in range(0, num_resamples, step):
        chunk = slice(start, min(start + step, num_resamples))
        times = np.empty((chunk.stop - chunk.start, num_users), np.uint16)
        for row in range(0, len(times), inner):
            size = min(inner, len(times) - row)
            drawn = random.integers(0, num_users, size=(size, num_users), dtype=np.int32).astype(np.int64)
            drawn += np.arange(size)[:, None] * num_users
            counts = np.bincount(drawn.ravel(), minlength=size * num_users)
            times[row : row + size] = counts.reshape(size, num_users)
        yield chunk, times


def bootstrap(users: UserMeans, num_resamples: int = 1000, seed: int = 0) -> Float64:
    """Bootstrapped means, float64 [b, 2 m]: over targets, then over users.

    Row i draws u users with replacement; its mean over targets is the drawn users' sum of sums / sum of weights (a ratio,
    because users differ in their number of targets). All metrics, and all systems with the same users and seed, share the
    draws, so differences are paired. Efron & Tibshirani 1993, chapters 6 and 13. NaN without a drawn target of the metric.
    """
    num_metrics, num_weights = len(users.means), len(users.weights)
    weighting = np.array(users.weighting, np.int64)
    weighting = np.concatenate([weighting, weighting + num_weights])
    resampled = np.empty((num_resamples, 2 * num_metrics))
    blocks = _blocks(users.num_users)
    kept = [_columns(users, block) for block in blocks] if len(blocks) == 1 else []
    for chunk, times in draws(users.num_users, num_resamples, seed):
        totals = np.zeros((len(times), 2 * (num_metrics + num_weights)))
        for block in blocks:
            columns = kept[0] if kept else _columns(users, block)
            totals += times[:, block].astype(np.float64) @ columns.T
        values, weights = np.split(totals, [2 * num_metrics], axis=1)
        resampled[chunk] = _ratio(values, weights[:, weighting])
    return resampled


def _blocks(num_users: int) -> list[slice]:
    """Slices of users multiplied at once in a chunk of resamples."""
    step = _BLOCK_CELLS // _CHUNK_RESAMPLES
    return [slice(start, start + step) for start in range(0, num_users, step)]


def _columns(users: UserMeans, block: slice) -> Float64:
    """[2 m + 2 d, users of the block]: sums and means of every metric, then weights and whether there are any."""
    means = np.nan_to_num(users.means[:, block].astype(np.float64))
    weights = users.weights[:, block]
    return np.concatenate([means * weights[list(users.weighting)], means, weights, weights > 0])


def interval(resampled: Float64, level: float = 0.95) -> tuple[Float64, Float64]:
    """The (1 - level) / 2 and (1 + level) / 2 percentiles of `resampled` [b, m]: (low [m], high [m]).

    NaN (a resample without a target of the metric) is left out; a column of nothing else has NaN for ends.
    """
    ends = [(1 - level) / 2, (1 + level) / 2]
    missing = np.isnan(resampled)
    if not missing.any():
        low, high = np.quantile(resampled, ends, axis=0)
        return low, high
    low, high = np.full((2, resampled.shape[1]), np.nan)
    for column in np.flatnonzero(~missing.all(axis=0)):
        low[column], high[column] = np.quantile(resampled[~missing[:, column], column], ends)
    return low, high


@dataclass(frozen=True)
class Difference:
    """Difference of two systems in a metric on the same targets."""

    difference: float
    """Metric of the first minus metric of the second."""
    low: float
    high: float
    """Ends of the bootstrap interval of the difference."""
    share: float
    """Share of resamples in which the first is better, ties half."""
    verdict: Verdict
    """better or worse where the interval excludes 0."""


@dataclass(frozen=True)
class PairedDifference(Difference):
    """A difference with its p-values; adjusted for several comparisons by Holm (1979)."""

    p_value: float | None = None
    """Wilcoxon's signed-rank test of the users' means."""
    p_holm: float | None = None
    p_bootstrap: float | None = None
    """Paired bootstrap of the metric."""
    p_bootstrap_holm: float | None = None

    def reversed(self) -> "PairedDifference":
        """The same difference, second system minus first."""
        opposite: dict[Verdict, Verdict] = {"better": "worse", "worse": "better"}
        return replace(
            self,
            difference=-self.difference,
            low=-self.high,
            high=-self.low,
            share=1 - self.share,
            verdict=opposite.get(self.verdict, self.verdict),
        )


def paired_difference(
    difference: float,
    resampled: NDArray[np.float64],
    level: float = 0.95,
    *,
    lower_is_better: bool = False,
) -> Difference:
    """Interval and verdict of `difference` from resampled differences [b] over the same draws of users."""
    low, high = (float(end[0]) for end in interval(resampled[:, None], level))
    known = resampled[~np.isnan(resampled)]
    ahead = -known if lower_is_better else known
    share = float(np.mean((ahead > 0) + (ahead == 0) / 2)) if len(ahead) else math.nan
    leads, trails = (high < 0, low > 0) if lower_is_better else (low > 0, high < 0)
    verdict: Verdict = "better" if leads else "worse" if trails else NO_DIFFERENCE
    return Difference(difference, low, high, share, verdict)


def bootstrap_p(difference: float, resampled: NDArray[np.float64]) -> float:
    """Two-sided p of "no difference": (1 + number of |d* - d| >= |d|) / (b + 1), over resampled differences d* [b].

    The resamples shifted by the observed difference d simulate the null hypothesis (Davison & Hinkley 1997, section 4.4).
    If none is that extreme, p would depend on b alone: then it is the smaller tail of a normal distribution with the
    resamples' standard deviation, at least `MIN_P`; and so, whatever d, below `FEWEST_COUNTED` resamples, whose count has
    large steps. NaN for a d of NaN.
    """
    if math.isnan(difference):
        return math.nan
    known = resampled[~np.isnan(resampled)]
    as_far = int(np.count_nonzero(np.abs(known - difference) >= abs(difference)))
    p_value = (1 + as_far) / (len(known) + 1)
    spread = float(known.std(ddof=1)) if len(known) > 1 else 0.0
    if not spread:
        return p_value
    normal = max(math.erfc(abs(difference) / spread / math.sqrt(2)), MIN_P)
    if len(known) < FEWEST_COUNTED:
        return normal
    return p_value if as_far else min(p_value, normal)


def wilcoxon_p(first: NDArray[np.floating], second: NDArray[np.floating]) -> float:
    """Two-sided p of the signed-rank test on the users' means of two systems, [u] each (Wilcoxon 1945).

    Users without a mean (NaN) in either are left out, and so are those whose difference is 0 to six decimals; without
    any other p is 1. Equal differences share their mean rank. Exact up to 50 users where none are equal, else normal.
    """
    from scipy.stats import wilcoxon

    difference = np.round(first.astype(np.float64) - second.astype(np.float64), 6)
    difference = difference[~np.isnan(difference) & (difference != 0)]
    if not len(difference):
        return 1.0
    return float(wilcoxon(difference).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Each p adjusted for there being several tests (Holm 1979): in order of p, max so far of (tests left) * p, at most 1.

    Rejecting where the adjusted p is below .05 has at most a 5 % chance of any false rejection. NaN is no test.
    """
    adjusted = [math.nan] * len(p_values)
    order = sorted((place for place, p in enumerate(p_values) if not math.isnan(p)), key=p_values.__getitem__)
    largest = 0.0
    for done, place in enumerate(order):
        largest = max(largest, (len(order) - done) * p_values[place])
        adjusted[place] = min(1.0, largest)
    return adjusted


def over_seeds(values: Iterable[Mapping[str, float]]) -> dict[str, tuple[float, float]]:
    """Metric -> (mean, sample standard deviation, NaN for one run) over seeds, for metrics that all runs have."""
    runs = list(values)
    spreads = {}
    for name in runs[0] if runs else ():
        if all(name in run for run in runs):
            column = np.array([run[name] for run in runs])
            spread = float(column.std(ddof=1)) if len(column) > 1 else math.nan
            spreads[name] = (float(column.mean()), spread)
    return spreads


def _ratio(numerator: Any, denominator: Any) -> Any:
    """The quotient, NaN where the denominator is 0."""
    numerator, denominator = np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)
    return np.divide(numerator, denominator, out=np.full(numerator.shape, np.nan), where=denominator != 0)
