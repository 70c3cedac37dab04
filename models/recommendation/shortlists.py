"""Candidates of rows that are limited to a shortlist: all its items are scored, and the best taken."""

from collections.abc import Callable

import numpy as np

from models.histories import Float32, Int32, Int64, Shortlists

_PAIRS = 2**16
"""Pairs of a row and an item scored at once."""
Score = Callable[[Int64, Int32], Float32]
"""Function from pairs of a row and an item, two [p], to scores [p]."""


def fill_limited(candidates: tuple[Int32, Float32], shortlist: Shortlists, score: Score) -> None:
    """Overwrite the candidates of limited rows, two [rows, f], with the best f of their shortlists, best first.

    Padded with 0 and -inf. Items of score -inf are left out. Equal scores: the lower item first. Memory is that of the pairs.
    """
    items, scores = candidates
    limited = shortlist.is_limited
    items[limited], scores[limited] = 0, -np.inf
    row, item = shortlist.pairs()
    if not len(row):
        return
    parts = range(0, len(row), _PAIRS)
    value = np.concatenate(
        [score(row[part : part + _PAIRS], item[part : part + _PAIRS]) for part in parts], dtype=np.float32
    )
    order = np.lexsort((item, -value, row))
    order = order[value[order] > -np.inf]
    row, item, value = row[order], item[order], value[order]
    place = np.arange(len(row)) - np.searchsorted(row, row)
    kept = place < items.shape[1]
    items[row[kept], place[kept]], scores[row[kept], place[kept]] = item[kept], value[kept]
