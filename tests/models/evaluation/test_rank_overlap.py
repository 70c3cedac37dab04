"""Rank-biased overlap by pencil, and its bounds."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.evaluation.rank_overlap import rank_biased_overlap


def lists(*rows: list[int], k: int = 3) -> np.ndarray:
    return np.array([row + [0] * (k - len(row)) for row in rows], np.int32).reshape(-1, k)


def test_by_pencil():
    """p = .5; agreement at depths 1 to 3 of [1, 2, 3] with [2, 1, 4]: 0, 2/2, 2/3.

    .5 / .5 (0 * .5 + 1 * .25 + 2/3 * .125) + 2/3 * .125 = .25 + 1/12 + 1/12.
    """
    assert rank_biased_overlap(lists([1, 2, 3]), lists([2, 1, 4]), 0.5) == pytest.approx(0.25 + 1 / 6)


def test_lists_of_different_lengths_by_pencil():
    """S = [1], L = [2, 1]: X_1 = 0, X_2 = 1; s = 1, l = 2; p = .5.

    (0 / 1 * .5 + 1 / 2 * .25) + 0 * (2 - 1) / 2 * .25, then ((1 - 0) / 2 + 0) * .25: .125 + .125.
    S = [1], L = [1, 2]: X_1 = X_2 = 1: .5 + .125 + 1 * 1 / 2 * .25, then (0 / 2 + 1) * .25: 1, as S may go on as L does.
    """
    assert rank_biased_overlap(lists([1]), lists([2, 1]), 0.5) == pytest.approx(0.25)
    assert rank_biased_overlap(lists([1, 2]), lists([1]), 0.5) == pytest.approx(1.0)


def test_equal_disjoint_and_empty_lists():
    first = lists([1, 2, 3], [1, 2, 3], [], [], [4, 5])
    second = lists([1, 2, 3], [4, 5, 6], [], [1, 2], [4, 5])
    assert rank_biased_overlap(first, second) == pytest.approx([1, 0, 1, 0, 1])
    assert rank_biased_overlap(lists(), lists()).shape == (0,)


def test_the_head_weighs_more():
    base = lists([1, 2, 3, 4, 5], k=5)
    head, tail = (rank_biased_overlap(base, lists(row, k=5))[0] for row in ([9, 2, 3, 4, 5], [1, 2, 3, 4, 9]))
    assert head < tail < 1


@given(
    st.lists(st.integers(1, 12), unique=True, max_size=6),
    st.lists(st.integers(1, 12), unique=True, max_size=6),
)
def test_symmetric_bounded_and_as_written_in_the_paper(one: list[int], other: list[int]):
    first, second = lists(one, k=6), lists(other, k=6)
    value = rank_biased_overlap(first, second)[0]
    assert value == pytest.approx(rank_biased_overlap(second, first)[0])
    assert value == pytest.approx(plain(one, other))
    assert 0 <= value <= 1


def plain(one: list[int], other: list[int], p: float = 0.9) -> float:
    """Equation 32, item by item."""
    shorter, longer = sorted((one, other), key=len)
    s, to = len(shorter), len(longer)
    if not s:
        return float(to == 0)
    x = [len(set(shorter[:d]) & set(longer[:d])) for d in range(to + 1)]
    total = sum(x[d] / d * p**d for d in range(1, to + 1))
    total += sum(x[s] * (d - s) / (s * d) * p**d for d in range(s + 1, to + 1))
    return (1 - p) / p * total + ((x[to] - x[s]) / to + x[s] / s) * p**to


def test_unequal_shapes_are_refused():
    with pytest.raises(ValueError, match="expected equal shapes"):
        rank_biased_overlap(lists([1]), lists([1], k=2))
