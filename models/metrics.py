"""Ranking metrics over the whole catalogue, and how sure of them one can be: bootstrap over users.

One target per row. Every metric is a function of the target's rank, which may end in .5: equal scores count half.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from models.recommender import Float32, Int32

# Letters in shapes: t targets, n items, u users, m measures (columns), b resamples.

Float64 = NDArray[np.float64]
Verdict = Literal["better", "worse", "can't tell"]

_CHUNK_CELLS = 2**22
"""Drawn users held at once while resampling (32 MiB of int64)."""


def ranks(scores: Float32, targets: Int32) -> Float64:
    """Rank of each row's target: 1 + number of greater + half the number of equal scores among the other items.

    `scores` [t, n + 1], column j is item j, column 0 is not an item and is ignored; `targets` [t] in 1..n. An item at
    -inf cannot be recommended: a target there is behind every finite score. Returns float64 [t] in [1, n].
    Raises ValueError for NaN among the scores, which would otherwise look like a good rank.
    Half ranks: the mean of the best and the worst place that ties allow, so a constant scorer gets (n + 1) / 2.
    """
    items = scores[:, 1:]
    own = np.take_along_axis(scores, targets[:, None].astype(np.int64), axis=1)
    greater = np.count_nonzero(items > own, axis=1)
    not_smaller = np.count_nonzero(items >= own, axis=1)
    if np.isnan(scores).any():
        raise ValueError(
            "ranks: received scores with NaN, expected numbers (-inf for items that cannot be recommended)"
        )
    rank: Float64 = 1.0 + greater + (not_smaller - greater - 1) / 2
    return rank


def hit_rate(rank: Float64, k: int) -> Float64:
    """1 where rank <= k, else 0; recall@k too, as a row has one target. A tie across place k goes by its mean rank."""
    return (rank <= k).astype(np.float64)


def ndcg(rank: Float64, k: int) -> Float64:
    """1 / log2(rank + 1) where rank <= k, else 0: DCG of one item, whose ideal is 1 (Järvelin & Kekäläinen 2002)."""
    return np.where(rank <= k, 1.0 / np.log2(rank + 1.0), 0.0)


def mrr(rank: Float64, k: int) -> Float64:
    """1 / rank where rank <= k, else 0: the reciprocal rank, cut at k (Voorhees 1999)."""
    return np.where(rank <= k, 1.0 / rank, 0.0)


def metrics_of_ranks(rank: Float64, ks: tuple[int, ...]) -> dict[str, Float64]:
    """Every metric of each target: `{"ndcg@10": [t], "hit_rate@10": [t], "mrr@10": [t], …}` for each k of `ks`."""
    return {f"{metric.__name__}@{k}": metric(rank, k) for k in ks for metric in (ndcg, hit_rate, mrr)}


def coverage(items: Int32, num_items: int) -> float:
    """Share of the catalogue in any of the lists `items` [rows, k] (0: no answer): distinct items / num_items."""
    return int(np.count_nonzero(np.unique(items))) / num_items


@dataclass(frozen=True)
class UserSums:
    """Per-target values added up per user: what a bootstrap over users draws from."""

    sums: Float64
    """[u, m], each measure summed over the user's targets."""
    counts: Float64
    """[u, m], targets behind each sum (0: the user has none for that measure)."""

    def over_targets(self) -> Float64:
        """[m], the mean over all targets: sum of sums / sum of counts (NaN where there is no target)."""
        return _ratio(self.sums.sum(axis=0), self.counts.sum(axis=0))

    def of_users(self) -> "UserSums":
        """Each user's own mean in place of the sum, counted once: its mean over targets is then the mean over users."""
        present = (self.counts > 0).astype(np.float64)
        return UserSums(np.nan_to_num(_ratio(self.sums, self.counts)), present)


def sum_by_user(user: NDArray[np.integer], num_users: int, values: Float64) -> UserSums:
    """Add up `values` [t, m] by `user` [t] in 0..num_users-1. A NaN value is not a target of its measure."""
    counted = ~np.isnan(values)
    sums, counts = np.zeros((num_users, values.shape[1])), np.zeros((num_users, values.shape[1]))
    for column in range(values.shape[1]):
        kept = counted[:, column]
        sums[:, column] = np.bincount(user[kept], weights=values[kept, column], minlength=num_users)
        counts[:, column] = np.bincount(user[kept], minlength=num_users)
    return UserSums(sums, counts)


def bootstrap(users: UserSums, num_resamples: int = 1000, seed: int = 0) -> Float64:
    """Means over targets when users are drawn with replacement: float64 [b, m].

    Row i draws u users; its mean of measure j is sum of the drawn users' sums / sum of their counts (a ratio, because
    users differ in their number of targets). All measures share the draw, so differences of columns are paired.
    Efron & Tibshirani 1993, chapters 6 and 13. NaN where no drawn user has a target of the measure.
    """
    num_users, width = users.sums.shape
    both = np.concatenate([users.sums, users.counts], axis=1)
    random = np.random.default_rng(seed)
    means = np.empty((num_resamples, width))
    step = max(1, _CHUNK_CELLS // max(num_users, 1))
    for start in range(0, num_resamples, step):
        size = min(step, num_resamples - start)
        drawn = random.integers(0, num_users, size=(size, num_users)) + np.arange(size)[:, None] * num_users
        times = np.bincount(drawn.ravel(), minlength=size * num_users).reshape(size, num_users)
        totals = times.astype(np.float64) @ both
        means[start : start + size] = _ratio(totals[:, :width], totals[:, width:])
    return means


def interval(resampled: Float64, level: float = 0.95) -> tuple[Float64, Float64]:
    """The (1 - level) / 2 and (1 + level) / 2 percentiles of `resampled` [b, m]: (low [m], high [m])."""
    low, high = np.nanquantile(resampled, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


@dataclass(frozen=True)
class Difference:
    """How much better one system is than another on the same targets."""

    difference: float
    """Metric of the first minus metric of the second."""
    low: float
    high: float
    """Ends of the bootstrap interval of the difference."""
    share: float
    """Share of resamples in which the first is ahead, equal ones half."""
    verdict: Verdict
    """better or worse where the interval leaves 0 out."""


def paired_difference(difference: float, resampled: NDArray[np.float64], level: float = 0.95) -> Difference:
    """The verdict on `difference`, from differences [b] of two systems over the same draws of users."""
    low, high = (float(end[0]) for end in interval(resampled[:, None], level))
    share = float(np.mean((resampled > 0) + (resampled == 0) / 2))
    verdict: Verdict = "better" if low > 0 else "worse" if high < 0 else "can't tell"
    return Difference(difference, low, high, share, verdict)


def _ratio(numerator: Float64, denominator: Float64) -> Float64:
    """The quotient, NaN where the denominator is 0."""
    return np.divide(numerator, denominator, out=np.full_like(numerator, np.nan), where=denominator != 0)
