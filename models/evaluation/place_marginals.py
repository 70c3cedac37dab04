"""Probability of an item at its place, whatever stands above, from the probabilities given the places above.

A log with the probability of each item given the places above does not say how probable the item was at its place as a whole,
which the by-place estimates of `off_policy` divide by. Lists are taken as draws of Plackett (1975) and Luce (1959), as our own
are: the next place shows item i with probability share[i] / (shares that remain). That the list's own shares follow from its
probabilities is exact; the unseen candidates are taken as equally likely, each with the geometric mean of the shares shown, which
is exact for uniform draws and for a list of all candidates.
"""

import numpy as np
from numpy.typing import NDArray

from models.evaluation.metrics import Float64
from models.topk import row_chunks

_EARLIEST, _LATEST = 1e-6, 60.0
"""Range of the integral: in units of the mean time of a draw, and of the item's own mean time."""
_MOMENTS = 128
_NOTHING = 1e-6
"""Share of unseen candidates up to which there are none, and by which a probability of 1 below a draw is less: propensities are
rounded, or the item followed from those above it."""
_CHUNK_CELLS = 2**20
"""Cells of entries x moments x places at once (8 MiB)."""


def place_marginals(conditional: Float64, row: NDArray[np.integer], place: NDArray[np.integer]) -> Float64:
    """[e], probability of the item at the entries (row, place) [e] of lists.

    conditional: [n, k], probability of each item given the places above, in (0, 1]; 0 in empty places, which come last. Leading
    places of probability 1 are fixed, and theirs is 1. Of the others, with independent waiting times of rates `share`, item i is
    at the r-th drawn place if r - 1 items come before it:
    integral of share[i] exp(-share[i] t) P(r - 1 of the others have come by t) dt, by the trapezoidal rule in ln t
    (relative error below 1e-4, where 10,000 seeded draws have one of 10 % at a probability of .01).
    """
    found = np.ones(len(row))
    is_fixed = np.cumprod(conditional >= 1, axis=1).astype(bool)
    drawn = np.flatnonzero(~is_fixed[row, place])
    for part in row_chunks(len(drawn), _MOMENTS * conditional.shape[1], _CHUNK_CELLS):
        own = drawn[part]
        found[own] = _drawn(conditional[row[own]], is_fixed[row[own]], place[own])
    return found


def _drawn(conditional: Float64, is_fixed: NDArray[np.bool_], place: NDArray[np.integer]) -> Float64:
    """[e], the same of one place of each list [e, k] that is not fixed."""
    entry = np.arange(len(conditional))
    share, rest = _shares(conditional, is_fixed)
    own, order = share[entry, place], place - is_fixed.sum(axis=1)
    moments = np.geomspace(_EARLIEST, _LATEST / own, _MOMENTS, axis=1)
    come = _of_unseen(share, rest, moments, int(order.max()) + 1)
    share[entry, place] = 0
    for column in np.flatnonzero(share.any(axis=0)):
        has_come = -np.expm1(-share[:, column, None] * moments)[..., None]
        later = come * (1 - has_come)
        later[..., 1:] += come[..., :-1] * has_come
        come = later
    before = np.take_along_axis(come, order[:, None, None], 2)[..., 0]
    density = own[:, None] * moments * np.exp(-own[:, None] * moments) * before
    return np.asarray(density.sum(axis=1) * np.log(moments[:, 1] / moments[:, 0]))


def _shares(conditional: Float64, is_fixed: NDArray[np.bool_]) -> tuple[Float64, Float64]:
    """([e, k], [e]): share of all candidates of the draws, 0 in fixed and empty places, and that of those not shown."""
    share, rest = np.zeros_like(conditional), np.ones(len(conditional))
    for column in range(conditional.shape[1]):
        drawn = np.minimum(conditional[:, column], 1 - _NOTHING)
        share[:, column] = np.where(is_fixed[:, column], 0, drawn * rest)
        rest = np.maximum(rest - share[:, column], 0)
    return share, rest


def _of_unseen(share: Float64, rest: Float64, moments: Float64, most: int) -> Float64:
    """[e, t, most], probability that 0, 1, .. most - 1 of the unseen candidates have come by each moment [e, t]."""
    is_drawn = share > 0
    logarithm = np.log(share, out=np.zeros_like(share), where=is_drawn)
    size = np.exp(logarithm.sum(axis=1) / is_drawn.sum(axis=1))
    number = np.where(rest > _NOTHING, np.maximum(np.round(rest / size), 1), 0)
    waits = np.exp(-(rest / np.maximum(number, 1))[:, None] * moments)
    come, ways = np.empty((*moments.shape, most)), np.ones(len(number))
    for count in range(most):
        left = np.maximum(number - count, 0)
        come[..., count] = ways[:, None] * (1 - waits) ** count * waits ** left[:, None]
        ways = ways * left / (count + 1)
    return come
