"""Best lists at given prices: each user's part of the allocation problem, once the budgets are priced.

Letters in shapes: r rows, w candidates, k places, n items.
"""

import numpy as np

from models.allocation.night import Night
from models.histories import Int32, Int64
from models.recommendation.rules import CategoryQuota

CLOSED = -(2**40)
"""Reduced value of a candidate that a list may not have."""


def priced_lists(night: Night, price: Int64) -> Int32:
    """[u, k] columns of the candidates of greatest value minus `price` [n + 1], never below 0; -1: empty."""
    column = np.full((len(night), night.k), -1, np.int32)
    for rows in night.chunks():
        part = night.select(rows)
        column[rows] = best_columns(part, reduced_values(part, price))
    return column


def reduced_values(part: Night, price: Int64) -> Int64:
    """[r, w] value minus price, in fixed point; `CLOSED` where there is no candidate."""
    return np.where(part.item > 0, part.values(slice(None)) - price[part.item], CLOSED)


def best_columns(part: Night, reduced: Int64) -> Int32:
    """[r, k] columns of the greatest `reduced` [r, w] that are not negative, best first; equal ones: the lower column.

    With a quota the choice is greedy: optimal where no item has two categories.
    """
    num_rows, width = reduced.shape
    column = np.full((num_rows, part.k), -1, np.int32)
    if not width or not num_rows:
        return column
    if part.quota is not None:
        best = _within_quota(part, reduced)
    else:
        key = (reduced + 1) * width - 1 - np.arange(width)  # distinct, so that no order of ties is left open
        number = min(part.k, width)
        best = np.argpartition(-key, number - 1, axis=1)[:, :number]
        own = np.take_along_axis(key, best, 1)
        best = np.take_along_axis(best, np.argsort(-own, axis=1), 1)
        best = np.where(np.take_along_axis(reduced, best, 1) >= 0, best, -1)
    column[:, : best.shape[1]] = best
    column[np.arange(part.k) >= part.places[:, None]] = -1
    return column


def _within_quota(part: Night, reduced: Int64) -> Int64:
    """[r, k] greedy choice: each place takes the best candidate whose categories are all below the quota."""
    assert part.quota is not None
    quota = CategoryQuota(part.quota.categories[part.item], part.quota.most)
    value, row = reduced.copy(), np.arange(len(reduced))
    best = np.full((len(reduced), part.k), -1, np.int64)
    for place in range(part.k):
        open_value = np.where(quota.is_left, value, CLOSED)
        chosen = open_value.argmax(axis=1)
        is_filled = open_value[row, chosen] >= 0
        best[is_filled, place] = chosen[is_filled]
        value[row, chosen] = CLOSED
        quota.take(chosen, is_filled)
    return best
