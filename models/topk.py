"""Exact top-k of every row with a fixed order of ties, and masking of seen items.

Letters: r rows (histories), n items; a score matrix is [r, n + 1] and its column j is item j.
"""

import itertools
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from models.histories import Float32, Histories, Int32, Int64, Shortlists

_CHUNK_CELLS = 2**24
"""Scores per chunk when a catalogue is ranked for many rows (64 MiB of float32)."""
_HEAP_COLUMNS = 64
"""Columns per k from which torch's top-k, a heap, is faster than a partition of the row."""
_CHUNK_EVENTS = 2**21
"""Approximate number of interactions per chunk."""


def mask_seen(scores: Float32, histories: Histories) -> Float32:
    """Set `scores[r, item] = -inf` for every item of row r's history, in place, and return `scores` [r, n + 1]."""
    for part in event_chunks(histories.lengths):
        rows, positions = histories.select(part).gather()
        scores[rows + part.start, histories.item_index[positions]] = -np.inf
    return scores


def mask_others(scores: Float32, shortlist: Shortlists | None) -> Float32:
    """Set the scores of every item outside a limited row's shortlist to -inf, in place, and return `scores` [r, n + 1]."""
    if shortlist is None or not shortlist.is_limited.any():
        return scores
    limited = np.flatnonzero(shortlist.is_limited)
    row, item = shortlist.select(limited).pairs()
    kept = scores[limited[row], item]
    scores[limited] = -np.inf
    scores[limited[row], item] = kept
    return scores


def contains(histories: Histories, item: Int32) -> NDArray[np.bool_]:
    """[r] whether `item[r]` is in row r; memory for `_CHUNK_EVENTS` interactions and a row."""
    is_contained = np.zeros(len(histories), bool)
    for part in event_chunks(histories.lengths):
        rows, positions = histories.select(part).gather()
        is_contained[part.start + rows[histories.item_index[positions] == item[part][rows]]] = True
    return is_contained


def top_k(scores: Float32, k: int) -> tuple[Int32, Float32]:
    """The k highest scores of each row of [r, n + 1], best first: (item_index [r, k], score [r, k]).

    Equal scores: the lower item first, at the k-th place too. Scores of -inf and missing columns become item 0 with score -inf.
    Raises ValueError for k < 1.
    """
    if k < 1:
        raise ValueError(f"top_k: received k={k}, expected at least 1")
    num_columns = min(k, scores.shape[1])
    columns = _top_columns(scores, num_columns)
    best = np.take_along_axis(scores, columns, axis=1)
    order = np.argsort(-best, axis=1, kind="stable")
    items = np.zeros((len(scores), k), dtype=np.int32)
    values = np.full((len(scores), k), -np.inf, dtype=np.float32)
    items[:, :num_columns] = np.take_along_axis(columns, order, axis=1)
    values[:, :num_columns] = np.take_along_axis(best, order, axis=1)
    items[np.isneginf(values)] = 0
    return items, values


def _top_columns(scores: Float32, k: int) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    """Columns of the k highest scores of each row, ascending; lower columns first among ties with the k-th score."""
    num_columns = scores.shape[1]
    if k == num_columns:
        return np.broadcast_to(np.arange(k), scores.shape)
    if k * _HEAP_COLUMNS <= num_columns:
        values, columns = torch.topk(torch.from_numpy(scores), k + 1, dim=1)
        chosen = np.sort(columns[:, :k].numpy(), axis=1)
        last, next_one = values[:, k - 1 : k].numpy(), values[:, k:].numpy()
        tied = (last == next_one)[:, 0]
    else:
        last = np.partition(scores, num_columns - k, axis=1)[:, num_columns - k, None]
        reached = scores >= last
        tied = reached.sum(axis=1, dtype=np.uint32) > k
        chosen = np.empty((len(scores), k), np.int64)
        chosen[~tied] = np.nonzero(reached if not tied.any() else reached[~tied])[1].reshape(-1, k)
    if tied.any():
        chosen[tied] = _lower_columns_first(scores[tied], last[tied], k)
    return chosen


def _lower_columns_first(
    scores: Float32, last: Float32, k: int
) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    """Columns above each row's k-th score `last` [r, 1], and the first columns equal to it, k in all."""
    greater, equal = scores > last, scores == last
    num_equal = k - np.count_nonzero(greater, axis=1, keepdims=True)
    chosen = greater | (equal & (np.cumsum(equal, axis=1, dtype=np.int32) <= num_equal))
    return np.nonzero(chosen)[1].reshape(len(scores), k)


def recommend_from_scores(
    scores: Float32, histories: Histories, k: int, exclude_seen: bool = True
) -> tuple[Int32, Float32]:
    """`top_k` of `scores` [r, n + 1] (overwritten), without each row's own items if `exclude_seen`."""
    return top_k(mask_seen(scores, histories) if exclude_seen else scores, k)


def recommend_in_chunks(
    score_items: Callable[[Histories], Float32],
    num_items: int,
    histories: Histories,
    k: int,
    exclude_seen: bool = True,
) -> tuple[Int32, Float32]:
    """`recommend_from_scores(score_items(histories), …)` in chunks of rows, to save memory."""
    items, scores = np.zeros((len(histories), k), np.int32), np.zeros((len(histories), k), np.float32)
    for rows in row_chunks(len(histories), num_items):
        part = histories.select(rows)
        items[rows], scores[rows] = recommend_from_scores(score_items(part), part, k, exclude_seen)
    return items, scores


def row_chunks(num_rows: int, num_items: int, cells: int = _CHUNK_CELLS) -> list[slice]:
    """Slices of `num_rows` with at most `cells` scores over the catalogue each (and at least one row)."""
    step = max(1, cells // (num_items + 1))
    return [slice(start, min(start + step, num_rows)) for start in range(0, num_rows, step)]


def event_chunks(lengths: Int64) -> list[slice]:
    """Slices of rows of the given lengths, with about `_CHUNK_EVENTS` interactions each."""
    chunk_of_row = (np.cumsum(lengths) - lengths) // _CHUNK_EVENTS
    starts = np.flatnonzero(np.diff(chunk_of_row, prepend=-1)).tolist()
    return [slice(start, end) for start, end in itertools.pairwise([*starts, len(lengths)])]
