"""Weights of what was shown: looks at places, and the inverse of how often an item was looked at."""

import numpy as np
import pytest

from models.training import exposure_weights
from models.training.exposure_weights import (
    PlaceLooks,
    effective_share,
    inverse_looks,
    looks_at_items,
    without_chance,
)

LOOKS = np.array([1, 0.5, 0.2])


def exposures(number: int, seed: int = 0) -> tuple[np.ndarray, ...]:
    """user, item, place, taken: better items stand further up, and users of even numbers take twice as much."""
    random = np.random.default_rng(seed)
    user, item = random.integers(0, 400, number), random.integers(1, 6, number)
    place = np.where(random.random(number) < item / 6, 0, random.integers(1, 3, number))
    rate = item / 10 * (1 + (user % 2 == 0)) / 2
    return user, item, place, random.random(number) < LOOKS[place] * rate


def test_looks_are_found_though_better_items_stand_above() -> None:
    user, item, place, taken = exposures(400_000)
    naive = np.bincount(place, taken) / np.bincount(place)
    assert naive[1] / naive[0] < 0.4  # the share of what is taken alone takes better items for more looks
    found = PlaceLooks.fit(user, item, place, taken)
    assert found.method == "swaps"
    assert found.by_place == pytest.approx(LOOKS, abs=0.02)
    alone = PlaceLooks.fit(np.arange(len(user)), item, place, taken)  # nobody sees an item twice
    assert alone.method == "items"
    assert alone.by_place == pytest.approx(LOOKS, abs=0.02)


def test_places_by_pencil(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exposure_weights, "MIN_SWAP_REACTIONS", 1)
    monkeypatch.setattr(exposure_weights, "MIN_REACTIONS", 1)
    # one pair, four times at each of two places: 4 and 1 reactions; nothing is taken at the third
    place = np.repeat([0, 1, 2], 4)
    taken = np.array([1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0], bool)
    found = PlaceLooks.fit(np.zeros(12, np.int64), np.ones(12, np.int64), place, taken)
    assert found.by_place == pytest.approx([1, 0.25, 0.25])


def test_of_few_reactions_and_of_places_far_down() -> None:
    for count in (0, exposure_weights.MIN_REACTIONS - 1):
        found = PlaceLooks.fit(*(np.arange(count),) * 3, np.ones(count, bool))
        assert (found.by_place.tolist(), found.method) == ([1], "none")
    many = np.arange(500) * 10_000_000
    assert len(PlaceLooks.fit(many, np.ones(500, np.int64), many, np.ones(500, bool)).by_place) == 100


def test_weights_are_inverse_looks_with_a_mean_of_1_and_a_bound() -> None:
    weight = inverse_looks(np.array([1, 1, 2]), np.array([0.0, 1.0, 4.0]))
    assert weight == pytest.approx([4 / 3, 4 / 3, 1 / 3])
    assert effective_share(weight) == pytest.approx(9 / (3 * (16 + 16 + 1) / 9))
    # 10 of 10,000 in sum, and equal weights for the others
    seldom = inverse_looks(np.repeat([1, 2], [1, 9_999]), np.array([0.0, 1.0, 1e6]))
    assert seldom[[0, 1]] == pytest.approx([10, 9_990 / 9_999], rel=1e-5)
    assert seldom.mean() == pytest.approx(1, rel=1e-6)
    assert len(inverse_looks(np.zeros(0, np.int64), np.ones(1))) == 0


def test_differences_by_chance_are_none() -> None:
    random = np.random.default_rng(3)
    item = random.integers(1, 501, 300_000)
    alike = without_chance(looks_at_items(item, np.ones(len(item)), 500))
    assert alike[0] == 0
    assert alike[1:].std() < 0.5 * np.bincount(item)[1:].std()
    # by pencil: looks of 2, 6 and 10, each the sum of ones: variance 32 / 3, of which 6 is chance
    items = np.repeat([1, 2, 4], [2, 6, 10])
    found = without_chance(looks_at_items(items, np.ones(18), 4))
    kept = 1 - 6 / (32 / 3)
    assert found == pytest.approx([0, 6 - 4 * kept, 6, 0, 6 + 4 * kept])
    assert without_chance(np.zeros((2, 3))).tolist() == [0, 0, 0]
    assert without_chance(looks_at_items(np.array([1]), np.ones(1), 1)).tolist() == [0, 1]
