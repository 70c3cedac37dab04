"""Category quota: the largest list under a limit per category, as an integer program where greedy filling falls short.

Letters in shapes: f candidates, c maximum categories per item, p chosen items.
"""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from models.histories import Float32, Int32, Int64

if TYPE_CHECKING:
    from scipy.sparse import csr_array

_SCALE = 2.0**10
"""Factor of the objective: HiGHS stops within 1e-6 of the optimum, 1e-9 of the range of worth."""
_MAX_NODES = 200
"""Maximum branch-and-bound nodes of HiGHS, to bound the time per row; shop and film catalogues need one."""


def is_fullest(categories: Int32, chosen: Int64, most: int) -> bool:
    """Whether a bound proves that no choice is larger than the maximal `chosen` [p]; False proves nothing.

    Every candidate [f, c] outside `chosen` has a full category. So any choice has at most `most` items of each full category,
    and its others are in `chosen`: none is larger if `chosen` has (full categories) * most items of full categories.
    """
    own = categories[chosen]
    is_full = np.bincount(own.ravel(), minlength=1) >= most
    is_full[0] = False
    return int(is_full[own].any(axis=1).sum()) >= most * int(is_full.sum())


def fullest(categories: Int32, kind: Int64, worth: Float32, k: int, most: int) -> Int64:
    """Largest choice of at most k of f candidates and `most` per category; among equals that of greatest total worth.

    maximise sum_i x_i (1 + w_i / (k + 1)) subject to sum_i x_i <= k, sum_{i of category} x_i <= most, x_i in {0, 1}, where w is
    `worth` [f] scaled to [0, 1]: the worth of k items adds less than one more item. Solved by HiGHS (Huangfu & Hall 2018),
    deterministically, over candidates that can matter; the problem is NP-hard, and after `_MAX_NODES` branches the best choice
    so far stands, or none. `categories` [f, c] as in `Traits`; `kind` [f] numbers the sets of categories. Returns ascending
    places [p] of candidates.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    places = _relevant(categories, kind, worth, k, most)
    value = worth[places].astype(np.float64)
    low, high = value.min(), value.max()
    gain = 1 + (value - low) / ((high - low or 1) * (k + 1))
    members, limits = _limits(categories[places], k, most)
    solution = milp(
        -_SCALE * (k + 1) * gain,
        integrality=np.ones(len(places)),
        bounds=Bounds(0, 1),
        constraints=LinearConstraint(members, ub=limits),
        options={"mip_rel_gap": 0, "node_limit": _MAX_NODES},
    )
    return places[:0] if solution.x is None else places[solution.x > 0.5]


def _relevant(categories: Int32, kind: Int64, worth: Float32, k: int, most: int) -> Int64:
    """Ascending places of the best min(k, `most`) candidates of each kind, k without a category."""
    order = np.lexsort((-worth, kind))
    before = np.arange(len(order)) - np.searchsorted(kind[order], kind[order])
    fit = np.where(categories.any(axis=1), min(k, most), k)
    return np.sort(order[before < fit[order]])


def _limits(categories: Int32, k: int, most: int) -> tuple["csr_array", NDArray[np.float64]]:
    """Constraint matrix of 0 and 1, a row per category and one for the list, and the limits."""
    from scipy.sparse import csr_array

    number, column = np.nonzero(categories)
    names, row = np.unique(categories[number, column], return_inverse=True)
    candidates = np.arange(len(categories))
    rows = np.concatenate([row, np.full(len(candidates), len(names))])
    columns = np.concatenate([number, candidates])
    limits = np.append(np.full(len(names), float(most)), k)
    return csr_array((np.ones(len(rows)), (rows, columns)), (len(limits), len(candidates))), limits
