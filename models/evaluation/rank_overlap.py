"""Similarity of two ranked lists: rank-biased overlap (Webber, Moffat & Zobel 2010)."""

import numpy as np

from models.evaluation.metrics import Float64
from models.histories import Int32

# Letters in shapes: u pairs of lists, k places; the paper's S is the shorter list of length s, its L the longer one of length l.

PERSISTENCE = 0.9
"""p of the overlap: the first 10 places carry 86 % of the weight (section 4.3, equation 21)."""
_CHUNK = 65_536
"""Pairs compared at once."""


def rank_biased_overlap(first: Int32, second: Int32, persistence: float = PERSISTENCE) -> Float64:
    """[u], extrapolated rank-biased overlap in [0, 1] of each pair of lists; 1 for equal ones, 0 without a common item.

    RBO_ext = (1 - p) / p (sum_{d=1..l} X_d / d p^d + sum_{d=s+1..l} X_s (d - s) / (s d) p^d) + ((X_l - X_s) / l + X_s / s) p^l
    (equation 32), X_d the number of items in both prefixes of length d, with S whole beyond s. `first` and `second` [u, k]: items
    from 1, distinct within a list, best first, padded with 0. Two empty lists are equal; an empty and another have overlap 0.
    Raises ValueError for lists of different shapes, or p outside (0, 1).
    """
    if first.shape != second.shape or not 0 < persistence < 1:
        raise ValueError(
            f"rank_biased_overlap: received lists {first.shape} and {second.shape}, p {persistence}; "
            "expected equal shapes, and p between 0 and 1"
        )
    parts = [
        _overlap(first[start : start + _CHUNK], second[start : start + _CHUNK], persistence)
        for start in range(0, len(first), _CHUNK)
    ]
    return np.concatenate([np.zeros(0), *parts])


def _overlap(first: Int32, second: Int32, p: float) -> Float64:
    lengths = np.stack([(first > 0).sum(axis=1), (second > 0).sum(axis=1)])
    shorter, longer = lengths.min(axis=0), lengths.max(axis=0)
    common = _common(first, second)
    depth = np.arange(1, first.shape[1] + 1)
    weight = np.where(depth <= longer[:, None], p**depth, 0.0)
    x_s, x_l = (
        np.take_along_axis(common, np.maximum(at - 1, 0)[:, None], axis=1)[:, 0] for at in (shorter, longer)
    )
    short = np.maximum(shorter, 1)
    within = x_s[:, None] * (depth - shorter[:, None]) / (short[:, None] * depth)
    beyond = np.where(depth > shorter[:, None], within, 0.0)
    agreement = ((common / depth + beyond) * weight).sum(axis=1)
    tail = ((x_l - x_s) / np.maximum(longer, 1) + x_s / short) * p**longer
    overlap = np.minimum((1 - p) / p * agreement + tail, 1.0)
    return np.where(longer == 0, 1.0, np.where(shorter == 0, 0.0, overlap))


def _common(first: Int32, second: Int32) -> Float64:
    """[u, k] X_d, number of items in both prefixes of length d, from d = 1."""
    common = np.zeros(first.shape)
    for place in range(first.shape[1]):
        item, other = first[:, place, None], second[:, place, None]
        above = slice(0, place)
        joins = (item[:, 0] > 0) & ((second[:, above] == item).any(axis=1) | (item == other)[:, 0])
        joins_other = (other[:, 0] > 0) & (first[:, above] == other).any(axis=1)
        common[:, place] = joins.astype(np.float64) + joins_other
    return common.cumsum(axis=1)
