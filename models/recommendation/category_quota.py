"""The largest list that room for categories allows, where filling one place after the other falls short: an integer program.

Letters in shapes: f candidates, c categories of an item at most, p items chosen.
"""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from models.histories import Float32, Int32, Int64

if TYPE_CHECKING:
    from scipy.sparse import csr_array

_SCALE = 2.0**10
"""Of the objective: HiGHS stops within 1e-6 of the best, that is 1e-9 of the range of worth."""
_MOST_NODES = 200
"""Branches that HiGHS looks at, so that no row takes for ever; catalogues of shops and films are solved at the first."""


def is_fullest(categories: Int32, chosen: Int64, most: int) -> bool:
    """Whether a bound shows that no choice is larger than `chosen` [p], to which no candidate can be added; False tells nothing.

    Every candidate [f, c] beside `chosen` is of a full category. So any choice has at most `most` items of each of the full ones,
    and what else it has is in `chosen`: none is larger if (full categories) * most items of `chosen` are of full ones.
    """
    own = categories[chosen]
    is_full = np.bincount(own.ravel(), minlength=1) >= most
    is_full[0] = False
    return int(is_full[own].any(axis=1).sum()) >= most * int(is_full.sum())


def fullest(categories: Int32, kind: Int64, worth: Float32, k: int, most: int) -> Int64:
    """The largest choice of at most k of f candidates, `most` of each category, and of these the one of greatest total worth.

    maximise sum_i x_i (1 + w_i / (k + 1)) subject to sum_i x_i <= k, sum_{i of category} x_i <= most, x_i in {0, 1}, where w is
    `worth` [f] brought to [0, 1]: what k items are worth together adds less than one item more. Solved by HiGHS (Huangfu & Hall
    2018), the same way each time, over candidates that can matter; the problem is NP-hard, and what is not solved after
    `_MOST_NODES` branches is the best choice found by then, none if there is none. `categories` [f, c] as in `Traits`, `kind` [f]
    the same number for those of the same categories. Returns ascending places [p] of candidates.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    places = _that_matter(categories, kind, worth, k, most)
    value = worth[places].astype(np.float64)
    low, high = value.min(), value.max()
    gain = 1 + (value - low) / ((high - low or 1) * (k + 1))
    members, limits = _limits(categories[places], k, most)
    found = milp(
        -_SCALE * (k + 1) * gain,
        integrality=np.ones(len(places)),
        bounds=Bounds(0, 1),
        constraints=LinearConstraint(members, ub=limits),
        options={"mip_rel_gap": 0, "node_limit": _MOST_NODES},
    )
    if found.x is None:
        return np.zeros(0, np.int64)
    is_chosen: NDArray[np.bool_] = found.x > 0.5
    return places[is_chosen]


def _that_matter(categories: Int32, kind: Int64, worth: Float32, k: int, most: int) -> Int64:
    """Ascending places of the best min(k, `most`) candidates of each kind, k of those without a category: as many as fit."""
    order = np.lexsort((-worth, kind))
    before = np.arange(len(order)) - np.searchsorted(kind[order], kind[order])
    fit = np.where(categories.any(axis=1), min(k, most), k)
    return np.sort(order[before < fit[order]])


def _limits(categories: Int32, k: int, most: int) -> tuple["csr_array", NDArray[np.float64]]:
    """Who counts in which limit, a row of 0 and 1 for each category and one for the list, and the limits."""
    from scipy.sparse import csr_array

    number, column = np.nonzero(categories)
    names, row = np.unique(categories[number, column], return_inverse=True)
    everyone = np.arange(len(categories))
    rows = np.concatenate([row, np.full(len(everyone), len(names))])
    columns = np.concatenate([number, everyone])
    limits = np.full(len(names) + 1, float(most))
    limits[-1] = k
    return csr_array((np.ones(len(rows)), (rows, columns)), (len(limits), len(everyone))), limits
