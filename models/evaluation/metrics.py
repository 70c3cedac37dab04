"""Ranking metrics over the whole catalogue, as functions of the ranks of a request's relevant items, mostly of one.

A rank may end in .5: equal scores count half. `bootstrap` aggregates over users; `beyond_accuracy` measures whole lists.
"""

import numpy as np
from numpy.typing import NDArray

from models.histories import Float32, Int32, Int64

# Letters in shapes: t targets, q requests, n items.

Float64 = NDArray[np.float64]

LOWER_IS_BETTER = frozenset({"calibration", "popularity_share", "repeats", "dislike_rate"})
"""Metrics (named without `@k`) of which less is better; of all others more is better."""
_BLOCK_CELLS = 2**17
"""Scores compared at once while ranking (512 KiB of float32): they stay in the cache between the comparisons."""


def ranks(scores: Float32, targets: Int32, rows: Int64 | None = None) -> tuple[Float64, Float64]:
    """Rank of each target in its row by mean and by pessimistic tie-breaking: (rank [t], pessimistic [t]), float64 in [1, n].

    rank = 1 + number of greater + half the number of equal scores, so a constant scorer gets (n + 1) / 2; pessimistic =
    1 + number of greater + number of equal scores, so it gets n. `scores` [rows, n + 1], column j is item j, column 0 is
    ignored; `targets` [t] in 1..n; `rows` [t]: row of each target, by default its own number. Items at -inf
    cannot be recommended: a target there is behind every finite score.
    Raises ValueError for NaN among the scores, which would otherwise look like a good rank.
    """
    row = np.arange(len(targets)) if rows is None else rows
    own = scores[row, targets][:, None]
    greater, equal = np.empty(len(targets)), np.empty(len(targets))
    step = max(1, _BLOCK_CELLS // scores.shape[1])
    for start in range(0, len(targets), step):
        part = slice(start, start + step)
        items = scores[part if rows is None else rows[part], 1:]
        if np.isnan(items.max()):  # the maximum of anything with NaN is NaN
            raise ValueError(
                "ranks: received scores with NaN, expected numbers (-inf for items that cannot be recommended)"
            )
        greater[part] = (items > own[part]).sum(axis=1, dtype=np.uint32)
        equal[part] = (items == own[part]).sum(axis=1, dtype=np.uint32)
    others = equal - 1  # without the target itself
    return 1 + greater + others / 2, 1 + greater + others


def hit_rate(rank: Float64, k: int) -> Float64:
    """1 where rank <= k, else 0. A tie across place k goes by its mean rank.

    Recall of one relevant item at k, as Cremonesi, Koren & Turrin 2010 count it: hits / targets.
    """
    return (rank <= k).astype(np.float64)


def ndcg(rank: Float64, k: int) -> Float64:
    """1 / log2(rank + 1) where rank <= k, else 0: DCG of one item, whose ideal is 1 (Järvelin & Kekäläinen 2002)."""
    return np.where(rank <= k, 1.0 / np.log2(rank + 1.0), 0.0)


def recall(rank: Float64, k: int) -> Float64:
    """Relevant items among the first k / relevant items. As one item is relevant: `hit_rate` (Cremonesi et al. 2010)."""
    return hit_rate(rank, k)


def precision(rank: Float64, k: int) -> Float64:
    """Relevant items among the first k / k. As one item is relevant: hit_rate / k (Cremonesi et al. 2010)."""
    return hit_rate(rank, k) / k


def mrr(rank: Float64, k: int) -> Float64:
    """1 / rank where rank <= k, else 0: the reciprocal rank, cut at k (Voorhees 1999)."""
    return np.where(rank <= k, 1.0 / rank, 0.0)


def average_precision(rank: Float64, k: int) -> Float64:
    """Mean over relevant items of the precision at their rank, 0 beyond k (Buckley & Voorhees 2000).

    Of one relevant item, whose precision at its own rank is 1 / rank: `mrr`. Its mean over targets is MAP@k.
    """
    return mrr(rank, k)


_OF_RANKS = {
    "ndcg": ndcg,
    "hit_rate": hit_rate,
    "recall": recall,
    "precision": precision,
    "mrr": mrr,
    "map": average_precision,
}


def metrics_of_ranks(
    rank: Float64, ks: tuple[int, ...], request: Int64 | None = None, num_requests: int | None = None
) -> dict[str, Float64]:
    """Every metric of each request: `{"ndcg@10": [q], "hit_rate@10": [q], "recall@10": [q], …}` for each k of `ks`.

    `request` [t] in 0..q-1: request of each relevant item; by default each is a request of its own. With R relevant items, gains
    are binary: DCG over that of min(k, R) items at the top (Järvelin & Kekäläinen 2002), whether any is among the first k, their
    share of the R and of the k places, 1 / the first one's rank, and the mean precision at their ranks over min(k, R).
    A request without relevant items is NaN.
    """
    if request is None:
        return {f"{name}@{k}": metric(rank, k) for k in ks for name, metric in _OF_RANKS.items()}
    num = int(request.max(initial=-1)) + 1 if num_requests is None else num_requests
    order = np.lexsort((rank, request))
    rank, request = rank[order], request[order]
    relevant = np.bincount(request, minlength=num)
    place = np.asarray(
        1.0 + np.arange(len(rank)) - np.repeat(np.cumsum(relevant) - relevant, relevant), np.float64
    )
    values: dict[str, Float64] = {}
    for k in ks:
        values |= {
            f"{name}@{k}": value for name, value in _of_sets(rank, request, place, relevant, k).items()
        }
    return values


def _of_sets(rank: Float64, request: Int64, place: Float64, relevant: Int64, k: int) -> dict[str, Float64]:
    """Metrics at k of requests with `relevant` [q] items each; `place` [t]: 1 for a request's best ranked item, then 2."""
    hit = rank <= k
    least = np.minimum(relevant, k)
    ideal = np.concatenate(([np.nan], np.cumsum(1.0 / np.log2(np.arange(2, k + 2)))))[least]

    def total(value: Float64) -> Float64:
        return np.bincount(request, weights=np.where(hit, value, 0.0), minlength=len(relevant)).astype(
            np.float64
        )

    hits, at_most = total(np.ones(len(rank))), np.where(least > 0, least, np.nan)
    return {
        "ndcg": total(1.0 / np.log2(rank + 1.0)) / ideal,
        "hit_rate": np.where(relevant > 0, hits > 0, np.nan),
        "recall": hits / np.where(relevant > 0, relevant, np.nan),
        "precision": np.where(relevant > 0, hits / k, np.nan),
        "mrr": np.where(relevant > 0, total(np.where(place == 1, 1.0 / rank, 0.0)), np.nan),
        "map": total(place / rank) / at_most,
    }


def debias_weights(counts: Int64, target: Int32, power: float = 0.5) -> Float64:
    """[t], the inverse propensity of each target: max(1, training events of its item) ** -power.

    Popular items are observed more often than liked, so a mean over observed targets favours systems that recommend
    them. With propensity proportional to count ** power, the self-normalised mean sum(w v) / sum(w) estimates what
    the metric would be if every item were observed as often (Yang et al. 2018, SNIPS with power = (γ + 1) / 2;
    Schnabel et al. 2016). power 0 is the plain mean, 1 weighs items equally instead of events. `counts` [n + 1];
    target 0, an item unknown in training, weighs as much as one with a single event.
    """
    observed = np.where(target > 0, counts[target], 1)
    return np.asarray(np.maximum(observed, 1).astype(np.float64) ** -power)
