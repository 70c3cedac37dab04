"""Beyond-accuracy metrics of single lists and of catalogue coverage.

`lists` [t, k] are item numbers, best first, padded with 0. scipy is imported where needed.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.evaluation.bootstrap import draws, interval
from models.evaluation.metrics import Float64
from models.histories import Float32, Histories, Int32, Int64
from models.topk import event_chunks, row_chunks

# Letters in shapes: t targets, r rows of a chunk, n items, c categories, f features, u users, d recommended items,
# b resamples.

SMOOTHING = 0.01
"""Share of the history's distribution mixed into the list's, so that KL is finite (Steck's alpha)."""
_HEAD = 0.1
_NEVER = np.iinfo(np.int32).max
_DENSE_CELLS = 2**25
"""Users x recommended items up to which their counts are multiplied as a dense matrix (128 MiB of float32)."""
_DENSE_FROM = 0.02
"""Density from which a dense product is faster than a sparse one."""
_COUNT_CELLS = 2**23
"""Counts of items held at once while resampling (32 MiB of float32)."""


@dataclass(frozen=True)
class Catalogue:
    """Item attributes that the metrics read."""

    num_items: int
    counts: Int64
    """[n + 1], training events of each item."""
    categories: Any = None
    """scipy csr_array [n + 1, c] of 0 and 1, row 0 empty, or None."""
    content: Float32 | None = None
    """[n + 1, f], a vector of each item, zeros where it has none, or None."""

    @cached_property
    def information(self) -> Float64:
        """[n + 1], -log2 of each item's share of the training events; items without any count one."""
        counts = np.maximum(self.counts, 1)
        return -np.log2(counts / max(1, int(self.counts[1:].sum())))

    @cached_property
    def by_popularity(self) -> Int64:
        """[n], items by descending number of training events, the lower item first among equals."""
        return np.argsort(-self.counts[1:], kind="stable") + 1

    def popular(self, num_most: int) -> NDArray[np.bool_]:
        """[n + 1], mask of the `num_most` items with the most training events."""
        chosen = np.zeros(self.num_items + 1, bool)
        chosen[self.by_popularity[:num_most]] = True
        return chosen

    @cached_property
    def vectors(self) -> tuple[Any, ...]:
        """Item vectors, the preferred first: content [n + 1, f], categories [n + 1, c]; empty without both."""
        categories = None if self.categories is None else self.categories.astype(np.float32)
        return tuple(vectors for vectors in (self.content, categories) if vectors is not None)

    @cached_property
    def shares(self) -> Any:
        """csr_array [n + 1, c], p(c | i): 1 / number of the item's categories for each of them."""
        from scipy.sparse import csr_array, dia_array

        of_item = np.asarray(self.categories.sum(axis=1), np.float64).ravel()
        scale = np.divide(1.0, of_item, out=np.zeros_like(of_item), where=of_item > 0)
        scale[0] = 0
        return csr_array(dia_array((scale[None], [0]), shape=(len(scale), len(scale))) @ self.categories)

    @cached_property
    def inverse_norms(self) -> Float32:
        """[n + 1], 1 / length of each item's vector (`content`, or categories where there is none), 0 without one."""
        vectors = self.vectors[0]  # categories are 0 and 1: their own squares
        squares = np.einsum("if,if->i", vectors, vectors) if self.content is not None else vectors.sum(axis=1)
        norms = np.sqrt(np.asarray(squares, np.float64).ravel())
        inverse = np.divide(1.0, norms, out=np.zeros_like(norms), where=norms > 0)
        inverse[0] = 0
        return np.asarray(inverse, np.float32)


def list_metrics(
    lists: Int32,
    histories: Histories,
    target: Int32,
    catalogue: Catalogue,
    k: int,
    request: Int64 | None = None,
) -> dict[str, Float64]:
    """Every metric of the first k places of each list [q]: `{"novelty@10": [q], …}`, NaN where it is undefined.

    `histories`: history behind each list; `target` [t], relevant items; `request` [t], ascending, list of each target (by
    default its own number). `diversity` needs content or categories,
    `calibration` categories; they are left out without. Raises ValueError for k beyond the lists.
    """
    if not 1 <= k <= lists.shape[1]:
        raise ValueError(
            f"list_metrics: received k={k}, expected 1..{lists.shape[1]}, the length of the lists"
        )
    request = np.arange(len(target)) if request is None else request
    width = max(catalogue.num_items, k, *(vectors.shape[1] for vectors in catalogue.vectors))
    chunks = _chunks(histories, width)
    most_rows = max((rows.stop - rows.start for rows in chunks), default=0)
    places = np.full((most_rows, catalogue.num_items + 1), _NEVER, np.int32)
    values: dict[str, Float64] = {}
    for rows in chunks or [slice(0, 0)]:
        own = slice(*np.searchsorted(request, (rows.start, rows.stop)))
        relevant = target[own], request[own] - rows.start
        part = _of_rows(lists[rows, :k], histories.select(rows), relevant, catalogue, places)
        for name, value in part.items():
            values.setdefault(name, np.empty(len(lists)))[rows] = value
    return {f"{name}@{k}": value for name, value in values.items()}


def _of_rows(
    lists: Int32,
    histories: Histories,
    relevant: tuple[Int32, Int64],
    catalogue: Catalogue,
    places: Int32,
) -> dict[str, Float64]:
    values = {
        "novelty": novelty(lists, catalogue),
        "popularity_share": popularity_share(lists, catalogue),
        "serendipity": serendipity(lists, *relevant, catalogue),
        "full_lists": full_lists(lists),
        "repeats": _repeats(lists, histories, places),
    }
    if catalogue.vectors:
        values["diversity"] = diversity(lists, catalogue)
    if catalogue.categories is not None:
        values["calibration"] = calibration(lists, histories, catalogue)
    return values


def novelty(lists: Int32, catalogue: Catalogue) -> Float64:
    """[t], mean over the list's items of -log2 p(i), in bits; p(i) is the item's share of the training events.

    Mean self-information: Zhou et al. 2010; Vargas & Castells 2011. An item without training events counts as one
    with one. NaN for an empty list.
    """
    return _mean_over(catalogue.information[lists], lists)


def popularity_share(lists: Int32, catalogue: Catalogue) -> Float64:
    """[t], share of the list's items that are among the most popular tenth of the catalogue.

    These are the ceil(n / 10) items with the most training events, the lower item first among equals: the head, as
    Abdollahpouri, Burke & Mobasher 2019 call it. NaN for an empty list.
    """
    head = catalogue.popular(math.ceil(_HEAD * catalogue.num_items))
    return _mean_over(head[lists], lists)


def serendipity(lists: Int32, target: Int32, request: Int64, catalogue: Catalogue) -> Float64:
    """[q], 1 where a target of the request is in the list of k and not among the k most popular items, else 0.

    Relevant and unexpected: Ge, Delgado-Battenfeld & Jannach 2010, with popularity for the primitive recommender
    whose k items are expected (Kaminskas & Bridge 2016). This is a hit rate of the unexpected; what they divide by the length
    of the list is here not divided. `request` [t]: list of each target.
    """
    expected = catalogue.popular(lists.shape[1])
    listed = np.count_nonzero(lists[request] == target[:, None], axis=1) > 0
    is_unexpected = listed & (target > 0) & ~expected[target]
    return np.where(np.bincount(request[is_unexpected], minlength=len(lists)) > 0, 1.0, 0.0)


def full_lists(lists: Int32) -> Float64:
    """[t], 1 where all k places are filled, else 0: its mean is the share of targets (users) with full lists."""
    return np.where(np.count_nonzero(lists, axis=1) == lists.shape[1], 1.0, 0.0)


def repeats(lists: Int32, histories: Histories, num_items: int) -> Float64:
    """[t], share of the list's items that are in the row's history. NaN for an empty list."""
    return _repeats(lists, histories, np.full((len(lists), num_items + 1), _NEVER, np.int32))


def _repeats(lists: Int32, histories: Histories, places: Int32) -> Float64:
    """`repeats` with a table [at least r, n + 1] of `_NEVER` for scratch, left as it was.

    It temporarily holds each item's first place in the longest row with the same start.
    """
    starts, own = np.unique(histories.starts, return_inverse=True)
    ends = np.zeros(len(starts), np.int64)
    np.maximum.at(ends, own, histories.ends)
    whole = Histories(histories.item_index, histories.time, histories.event_type, starts, ends)
    slot, positions = whole.gather()
    cell = slot * places.shape[1] + histories.item_index[positions]
    flat = places.reshape(-1)
    np.minimum.at(flat, cell, (positions - starts[slot]).astype(np.int32))
    known = places[own[:, None], lists] < histories.lengths[:, None]
    flat[cell] = _NEVER
    return _mean_over(known, lists)


def diversity(lists: Int32, catalogue: Catalogue) -> Float64:
    """[t], mean over the pairs of items in the list of 1 - cosine of their vectors, 0..2 (0..1 by categories).

    Intra-list diversity: Smyth & McClave 2001; Ziegler et al. 2005. By `content` where the catalogue has it, else by
    categories. Over m unit vectors u the sum of cosines of pairs is (|sum u|² - m) / 2, so no pair is looked at.
    Items without a vector are in no pair; NaN where fewer than two items have one.
    """
    scale, vectors = catalogue.inverse_norms[lists], catalogue.vectors[0]
    sums = _indicator(lists, scale, catalogue.num_items + 1) @ vectors
    squared = sums.power(2) if hasattr(sums, "power") else sums**2  # sparse or dense
    num = np.count_nonzero(scale, axis=1).astype(np.float64)
    of_pairs = np.asarray(squared.sum(axis=1), np.float64).ravel() - num
    cosine = np.divide(of_pairs, num * (num - 1), out=np.full(len(lists), np.nan), where=num > 1)
    return np.asarray(1.0 - np.clip(cosine, -1.0, 1.0))


def calibration(
    lists: Int32, histories: Histories, catalogue: Catalogue, smoothing: float = SMOOTHING
) -> Float64:
    """[t], KL(p || q~) = sum over categories of p log(p / q~), in nats: 0 where the list is as varied as the history.

    p(c) is the mean of p(c | i) over the history's items (each interaction counts), q(c) over the list's,
    q~ = (1 - smoothing) q + smoothing p, p(c | i) = 1 / number of the item's categories. Steck 2018, equations 1 to 6,
    with weights of 1. Less is better. Items without categories count for nothing; NaN where none of the history or
    none of the list has any.
    """
    shares = catalogue.shares
    listed = (_indicator(lists, (lists > 0).astype(np.float64), shares.shape[0]) @ shares).toarray()
    p, q = _normalised(_past_shares(histories, shares)), _normalised(listed)
    mixed = (1 - smoothing) * q + smoothing * p
    terms = p * np.log(np.divide(p, mixed, out=np.ones_like(p), where=p > 0))
    return np.asarray(terms.sum(axis=1))


def _past_shares(histories: Histories, shares: Any) -> Float64:
    """[r, c], p(c | i) summed over the interactions of each row.

    Rows with the same start are prefixes of one another (successive targets of a user), so only each row's additional
    events are looked up, and then summed cumulatively.
    """
    from scipy.sparse import csr_array

    order = np.lexsort((histories.ends, histories.starts))
    rows = histories.select(order)
    begins = np.diff(rows.starts, prepend=-1) != 0
    before = np.where(begins, rows.starts, np.concatenate((rows.ends[:1], rows.ends[:-1])))
    pieces = Histories(rows.item_index, rows.time, rows.event_type, before, rows.ends)
    _, positions = pieces.gather()
    items = rows.item_index[positions]
    indptr = np.concatenate(([0], np.cumsum(pieces.lengths))).astype(items.dtype)
    counted = csr_array((np.ones(len(items)), items, indptr), shape=(len(rows), shares.shape[0]))
    added = (counted @ shares).toarray()
    total = np.cumsum(added, axis=0)
    group = np.cumsum(begins) - 1
    total -= (total - added)[begins][group]
    past = np.empty_like(total)
    past[order] = total
    return past


def _normalised(weight: Float64) -> Float64:
    """Rows [r, c] divided by their sum; NaN where it is 0."""
    total = weight.sum(axis=1, keepdims=True)
    return np.asarray(np.divide(weight, total, out=np.full_like(weight, np.nan), where=total > 1e-9))


def catalogue_metrics(
    lists: Int32,
    user_row: NDArray[np.integer],
    num_users: int,
    num_items: int,
    k: int,
    resamples: int,
    seed: int,
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """`coverage@k` and `gini@k` of all lists, and their 95 % intervals: (metric -> value, metric -> [low, high]).

    coverage = distinct items in any list / n (catalogue coverage: Ge, Delgado-Battenfeld & Jannach 2010).
    gini = sum over items in ascending order of x of (2 i - n - 1) x_i / (n sum x), where x_i is in how many lists item
    i is: 0 where all are recommended as often, (n - 1) / n where one item is in all places (Gini 1912; of
    recommendations: Fleder & Hosanagar 2009). Items never recommended count as zeros. NaN without any list.

    Users (rows `user_row` [t] in 0..num_users-1) are resampled by the draws of `significance.bootstrap`, so systems
    are paired here too. A resample has only 63 % of the users, so its coverage is too low and its Gini too high: the
    percentiles are moved by the difference between the value and the mean of the resamples, the bootstrap's own
    estimate of that bias (Efron & Tibshirani 1993, section 10.2), and cut to 0..1.
    """
    shown = lists[:, :k]
    columns = np.bincount(shown.ravel(), minlength=num_items + 1)
    columns[0] = 0
    recommended = columns > 0
    value = _coverage_and_gini(columns[recommended][None].astype(np.float32), num_items)[0]
    by_user = _lists_by_user(shown, user_row, num_users, recommended)
    resampled = np.empty((resamples, 2))
    step = max(1, _COUNT_CELLS // max(1, by_user.shape[1]))
    for chunk, times in draws(num_users, resamples, seed):
        for start in range(0, len(times), step):
            counts = times[start : start + step].astype(np.float32) @ by_user
            at = chunk.start + start
            resampled[at : at + len(counts)] = _coverage_and_gini(counts, num_items)
    low, high = np.clip(np.array(interval(resampled)) + (value - resampled.mean(axis=0)), 0.0, 1.0)
    names = (f"coverage@{k}", f"gini@{k}")
    return (
        {name: float(value[place]) for place, name in enumerate(names)},
        {name: [float(low[place]), float(high[place])] for place, name in enumerate(names)},
    )


def _lists_by_user(
    shown: Int32, user_row: NDArray[np.integer], num_users: int, recommended: NDArray[np.bool_]
) -> Any:
    """[u, d] float32, number of a user's lists with each recommended item; dense where faster and small enough."""
    from scipy.sparse import coo_array

    column = np.cumsum(recommended) - 1
    filled = shown > 0
    users = np.broadcast_to(user_row[:, None], shown.shape)[filled]
    shape = (num_users, int(np.count_nonzero(recommended)))
    counted = coo_array(
        (np.ones(len(users), np.float32), (users, column[shown[filled]])), shape=shape
    ).tocsr()
    cells = num_users * shape[1]
    return counted.toarray() if cells <= _DENSE_CELLS and counted.nnz > _DENSE_FROM * cells else counted


def _coverage_and_gini(counts: Float32, num_items: int) -> Float64:
    """[b, 2] of counts [b, d] of the items recommended at all; the other n - d are zeros."""
    ordered = np.sort(counts, axis=1).astype(np.float64)
    place = np.arange(num_items - counts.shape[1] + 1, num_items + 1)
    total = ordered.sum(axis=1)
    weighted = ordered @ (2.0 * place - num_items - 1)
    gini = np.divide(weighted, num_items * total, out=np.full(len(counts), np.nan), where=total > 0)
    return np.stack([np.count_nonzero(counts, axis=1) / num_items, gini], axis=1)


def _mean_over(own: NDArray[Any], lists: Int32) -> Float64:
    """[t], mean of `own` [t, k] over the places that are filled; NaN for an empty list."""
    filled = lists > 0
    num = filled.sum(axis=1)
    total = (own * filled).sum(axis=1, dtype=np.float64)
    return np.asarray(np.divide(total, num, out=np.full(len(num), np.nan), where=num > 0))


def _indicator(lists: Int32, weights: NDArray[np.floating], num_columns: int) -> Any:
    """csr_array [r, num_columns] with `weights` [r, k] at the items of each list."""
    from scipy.sparse import csr_array

    indptr = np.arange(len(lists) + 1, dtype=np.int32) * lists.shape[1]  # int32 as the items: no conversion
    return csr_array((weights.ravel(), lists.ravel(), indptr), shape=(len(lists), num_columns))


def _chunks(histories: Histories, width: int) -> list[slice]:
    """Slices of rows with a bounded number of cells `width` each and of interactions."""
    return [
        slice(rows.start + part.start, rows.start + part.stop)
        for rows in row_chunks(len(histories), width)
        for part in event_chunks(histories.lengths[rows])
    ]
