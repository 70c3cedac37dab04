"""Exact top-k of every row with a fixed order of ties, and the mask of seen items."""

import itertools
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from models.histories import Float32, Histories, Int32, Int64

# Letters in shapes: r rows (histories), n items; a score matrix is [r, n + 1] and its column j is item j.

_CHUNK_CELLS = 2**24
"""Scores held at once when a catalogue is ranked for many rows (64 MiB of float32)."""
_HEAP_COLUMNS = 64
"""Columns for each of the k from which torch's top-k, a heap, is faster than a partition of the row."""
_CHUNK_EVENTS = 2**21
"""Interactions gathered at once, about."""


def mask_seen(scores: Float32, histories: Histories) -> Float32:
    """Set `scores[r, item] = -inf` for every item of row r's history, in place, and return `scores` [r, n + 1]."""
    for part in event_chunks(histories.lengths):
        rows, positions = histories.select(part).gather()
        scores[rows + part.start, histories.item_index[positions]] = -np.inf
    return scores


def contains(histories: Histories, item: Int32) -> NDArray[np.bool_]:
    """[r]: whether `item[r]` is in row r; never holding more than `_CHUNK_EVENTS` interactions and a row."""
    found = np.zeros(len(histories), bool)
    for part in event_chunks(histories.lengths):
        rows, positions = histories.select(part).gather()
        found[part] = (
            np.bincount(rows, histories.item_index[positions] == item[part][rows], len(found[part])) > 0
        )
    return found


def top_k(scores: Float32, k: int) -> tuple[Int32, Float32]:
    """The k highest scores of each row of [r, n + 1], best first: (item_index [r, k], score [r, k]).

    Equal scores: the lower item first, at the k-th place too. A score of -inf is no answer, and neither is a column
    that does not exist: both are item 0 with score -inf.
    """
    if k < 1:
        raise ValueError(f"top_k: received k={k}, expected at least 1")
    found = min(k, scores.shape[1])
    columns = _top_columns(scores, found)
    best = np.take_along_axis(scores, columns, axis=1)
    order = np.argsort(-best, axis=1, kind="stable")
    items = np.zeros((len(scores), k), dtype=np.int32)
    values = np.full((len(scores), k), -np.inf, dtype=np.float32)
    items[:, :found] = np.take_along_axis(columns, order, axis=1)
    values[:, :found] = np.take_along_axis(best, order, axis=1)
    items[np.isneginf(values)] = 0
    return items, values


def _top_columns(scores: Float32, k: int) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    """Columns of the k highest scores of each row, ascending; the lower ones of those equal to the k-th score."""
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
    """All columns above each row's k-th score `last` [r, 1], and the first of those equal to it, k in all."""
    greater, equal = scores > last, scores == last
    wanted = k - np.count_nonzero(greater, axis=1, keepdims=True)
    chosen = greater | (equal & (np.cumsum(equal, axis=1, dtype=np.int32) <= wanted))
    return np.nonzero(chosen)[1].reshape(len(scores), k)


def recommend_from_scores(
    scores: Float32, histories: Histories, k: int, exclude_seen: bool = True
) -> tuple[Int32, Float32]:
    """`top_k` of `scores` [r, n + 1] (which are overwritten), without each row's own items if `exclude_seen`."""
    return top_k(mask_seen(scores, histories) if exclude_seen else scores, k)


def recommend_in_chunks(
    score_items: Callable[[Histories], Float32],
    num_items: int,
    histories: Histories,
    k: int,
    exclude_seen: bool = True,
) -> tuple[Int32, Float32]:
    """`recommend_from_scores(score_items(histories), …)` without ever holding rows x items: rows in chunks."""
    chunks = [
        recommend_from_scores(score_items(part), part, k, exclude_seen)
        for part in (histories.select(rows) for rows in row_chunks(len(histories), num_items))
    ]
    if not chunks:
        return np.zeros((0, k), np.int32), np.zeros((0, k), np.float32)
    return np.concatenate([items for items, _ in chunks]), np.concatenate([scores for _, scores in chunks])


def row_chunks(num_rows: int, num_items: int, cells: int = _CHUNK_CELLS) -> list[slice]:
    """Slices that cut `num_rows` so that each has at most `cells` scores over the catalogue (and at least one row)."""
    step = max(1, cells // (num_items + 1))
    return [slice(start, min(start + step, num_rows)) for start in range(0, num_rows, step)]


def event_chunks(lengths: Int64) -> list[slice]:
    """Slices of rows of the given lengths with about `_CHUNK_EVENTS` interactions each."""
    chunk_of_row = (np.cumsum(lengths) - lengths) // _CHUNK_EVENTS
    starts = np.flatnonzero(np.diff(chunk_of_row, prepend=-1)).tolist()
    return [slice(start, end) for start, end in itertools.pairwise([*starts, len(lengths)])]
