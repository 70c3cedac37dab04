"""Probabilities of items at their places: by pencil, against enumerated lists, and against 10,000 seeded draws."""

from itertools import permutations

import numpy as np
import pytest

from models.evaluation.place_marginals import place_marginals


def conditional_of(share: np.ndarray, lists: np.ndarray) -> np.ndarray:
    """[n, k], probability of each item given those above, by Plackett and Luce."""
    shown = share[lists]
    return np.asarray(shown / (share.sum() - np.cumsum(shown, axis=1) + shown))


def every(conditional: np.ndarray) -> np.ndarray:
    """[n, k] marginals of all places."""
    row, place = np.indices(conditional.shape)
    return place_marginals(conditional, row.ravel(), place.ravel()).reshape(conditional.shape)


def test_uniform_draws_show_an_item_as_often_at_every_place() -> None:
    conditional = np.array([[1 / 20, 1 / 19, 1 / 18, 1 / 17]])
    assert every(conditional) == pytest.approx(1 / 20, rel=1e-4)


def test_fixed_and_empty_places() -> None:
    """One fixed place, then two of four candidates drawn; a list of one item less."""
    conditional = np.array([[1, 1 / 4, 1 / 3, 1 / 2], [1, 1 / 4, 1 / 3, 0]])
    row, place = np.array([0, 0, 0, 1, 1]), np.array([0, 1, 3, 0, 2])
    found = place_marginals(conditional, row, place)
    assert found == pytest.approx([1, 1 / 4, 1 / 4, 1, 1 / 4], rel=1e-4)
    assert place_marginals(np.ones((2, 3)), np.array([1]), np.array([2])).tolist() == [1]
    assert len(place_marginals(conditional, row[:0], place[:0])) == 0


def test_a_place_that_follows_from_those_above() -> None:
    found = every(np.array([[0.5, 1.0, 1.0], [0.2, 1.0, 0.5]]))
    assert found[0] == pytest.approx([0.5, 0.5, 1], abs=1e-3)
    assert np.isfinite(found).all()
    assert ((found > 0) & (found <= 1.001)).all()


def test_lists_of_all_candidates_are_exact() -> None:
    """Of three items with shares .6, .3, .1 the second is at place 2 behind the first or the third: .6 .3/.4 + .1 .3/.9."""
    share = np.array([0.6, 0.3, 0.1])
    lists = np.array(list(permutations(range(3))))
    conditional = conditional_of(share, lists)
    expected = np.zeros((3, 3))
    for shown, chance in zip(lists, conditional.prod(axis=1), strict=True):
        expected[shown, range(3)] += chance
    assert expected[1, 1] == pytest.approx(0.6 * 0.3 / 0.4 + 0.1 * 0.3 / 0.9)
    assert every(conditional) == pytest.approx(expected[lists, range(3)], rel=1e-4)


def test_a_rare_item_behind_certain_ones() -> None:
    """The first of two candidates has a share of .999999: the other one is last but once in a million."""
    conditional = conditional_of(np.array([1 - 1e-4, 1e-4]), np.array([[0, 1], [1, 0]]))
    assert every(conditional) == pytest.approx(np.array([[1 - 1e-4] * 2, [1e-4] * 2]), rel=1e-3)


def test_seeded_draws_of_unequal_candidates() -> None:
    """Weights 1 / marginal of 50 items by Zipf's law, five shown, sum to the number of lists, within 3 %."""
    rng, share, number = np.random.default_rng(0), 1 / np.arange(1, 51), 10_000
    lists = np.argsort(-(np.log(share) + rng.gumbel(size=(number, 50))), axis=1)[:, :5]
    conditional = conditional_of(share, lists)
    for place in (1, 4):
        for item in (0, 2):
            row = np.flatnonzero(lists[:, place] == item)
            marginal = place_marginals(conditional, row, np.full(len(row), place))
            spread = np.sqrt((1 / marginal**2).sum()) / number
            assert (1 / marginal).sum() / number == pytest.approx(1, abs=0.03 + 3 * spread)
            given_above = (1 / conditional[row, place]).sum() / number
            assert abs(given_above - 1) > abs((1 / marginal).sum() / number - 1)
