"""Lists under budgets: by pencil, as HiGHS's integer program written down anew, within caps whatever the instance."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import LinearConstraint, milp

from models.allocation.allocate import Allocation, allocate, with_fairness
from models.allocation.night import NO_CAP, UNIT, Budgets, Fairness, Night, Quota
from models.allocation.program import Program


def night(
    item: list[list[int]],
    value: list[list[float]],
    k: int,
    budgets: list[tuple[list[int], int, int | None]],
    **other: object,
) -> Night:
    """Night of candidates by user; budgets: items, least and most places."""
    items = np.array(item, np.int32)
    groups = [np.array(own, np.int64) for own, _, _ in budgets]
    high = [NO_CAP if most is None else most * UNIT for _, _, most in budgets]
    own = Budgets(
        np.concatenate([np.zeros(0, np.int64), *groups]),
        np.repeat(np.arange(len(groups)), [len(group) for group in groups]),
        np.array([low * UNIT for _, low, _ in budgets], np.int64),
        np.array(high, np.int64),
        int(items.max()),
    )
    places, weight = np.full(len(items), k), np.full(k, UNIT)
    return replace(Night(items, np.array(value, np.float32), places, weight, own), **other)  # type: ignore[arg-type]


def drawn(seed: int, *, has_quota: bool = False, by_rank: bool = False) -> Night:
    """Up to eleven users with overlapping groups, some with caps, some with floors."""
    random = np.random.default_rng(seed)
    num_items, k = int(random.integers(4, 12)), int(random.integers(1, 5))
    users, width = int(random.integers(2, 12)), min(num_items, int(random.integers(k, k + 6)))
    item = [(random.permutation(num_items)[:width] + 1).tolist() for _ in range(users)]
    item[0][0] = num_items if num_items not in item[0] else item[0][0]
    value = -np.sort(-random.random((users, width)), axis=1)
    budgets: list[tuple[list[int], int, int | None]] = []
    for _ in range(random.integers(1, 6)):
        group = (random.permutation(num_items)[: random.integers(1, max(2, num_items // 2))] + 1).tolist()
        most = int(random.integers(0, users * k // 2 + 1)) if random.random() < 0.6 else None
        budgets.append((group, 0 if most is not None else int(random.integers(0, max(1, users // 2))), most))
    own = night(item, value.tolist(), k, [([num_items], 0, None), *budgets])
    own = replace(own, budgets=replace(own.budgets, num_items=num_items))
    if by_rank:
        own = replace(own, weight=np.rint(UNIT / np.log2(np.arange(2, k + 2))).astype(np.int64))
    if has_quota:
        categories = np.concatenate([[[0]], random.integers(0, 4, (num_items, 1))]).astype(np.int32)
        own = replace(own, quota=Quota(categories, 1))
    return own


def by_integers(own: Night) -> float | None:
    """Greatest value by an integer program of its own: a dense matrix, a variable per user, candidate and rank."""
    users, width = own.item.shape
    index = np.arange(users * width * own.k).reshape(users, width, own.k)
    weight = np.broadcast_to(own.weight / UNIT, index.shape)
    value = own.value.astype(np.float64)[:, :, None] * weight
    rows, least, most = [], [], []

    def limit(chosen: NDArray[np.floating], low: float, high: float) -> None:
        rows.append(chosen.ravel())
        least.append(low)
        most.append(high)

    for user in range(users):
        for place in range(own.k):
            limit(1.0 * np.isin(index, index[user, :, place]), 0, 1)
        for candidate in range(width):
            limit(1.0 * np.isin(index, index[user, candidate]), 0, float(own.item[user, candidate] > 0))
        if own.quota is not None:
            for category in range(1, 4):
                held = own.quota.categories[own.item[user], 0] == category
                limit(1.0 * np.isin(index, index[user, held]), 0, own.quota.most)
    for number in range(len(own.budgets)):
        group = own.budgets.item[own.budgets.budget == number]
        high = own.budgets.high[number]
        is_in = np.isin(own.item, group)[:, :, None]
        limit(weight * is_in, own.budgets.low[number] / UNIT, np.inf if high == NO_CAP else high / UNIT)
    solution = milp(
        -value.ravel(),
        integrality=np.ones(value.size),
        bounds=(0, 1),
        constraints=LinearConstraint(np.array(rows), least, most),
        options={"mip_rel_gap": 0},
    )
    return None if solution.x is None else -float(solution.fun)


def keeps(own: Night, found: Allocation) -> bool:
    """Whether lists have distinct candidates, no more than places, caps, and quotas, read list by list."""
    used = np.zeros(len(own.budgets))
    for user, columns in enumerate(found.column.tolist()):
        held = [own.item[user, column] for column in columns if column >= 0]
        assert len(set(held)) == len(held) <= own.places[user]
        assert 0 not in held
        for rank, column in enumerate(columns):
            if column >= 0:
                used[own.budgets.budget[own.budgets.item == own.item[user, column]]] += own.weight[rank]
        if own.quota is not None:
            kinds = own.quota.categories[held, 0]
            assert np.bincount(kinds[kinds > 0], minlength=1).max() <= own.quota.most
    assert (used == found.usage).all()
    assert (np.maximum(own.budgets.low - used, 0) == found.missing).all()
    return bool((used <= own.budgets.high).all())


def test_a_cap_goes_to_whom_it_is_worth_most() -> None:
    """Both want item 1, of one place: the second loses .1 by taking 2, the first would lose .3."""
    found = allocate(night([[1, 2], [1, 2]], [[0.9, 0.6], [0.8, 0.7]], 1, [([1], 0, 1)]), 0)
    assert found.column.tolist() == [[0], [1]]
    assert found.value == pytest.approx(1.6)
    assert found.unlimited == pytest.approx(1.7)
    assert found.gap == pytest.approx(0, abs=1e-7)
    assert 0.1 - 1e-6 <= found.price[0] <= 0.3 + 1e-6


def test_a_floor_costs_the_least_exchange() -> None:
    """Item 3 needs one place: in the second list it costs .7 - .5, in the first .9 - .4."""
    own = night([[1, 2, 3], [1, 2, 3]], [[0.9, 0.6, 0.4], [0.8, 0.7, 0.5]], 2, [([3], 1, None)])
    for found in (allocate(own, 0), allocate(own, 0, exact_variables=0)):
        assert found.column.tolist() == [[0, 1], [0, 2]]
        assert found.missing.tolist() == [0]
        assert found.price[0] <= 0
    assert allocate(own, 0).value == pytest.approx(2.8)


def test_floors_that_cannot_be_met_are_met_as_far_as_can_be() -> None:
    own = night([[1, 2], [2, 3]], [[0.9, 0.6], [0.8, 0.7]], 1, [([1], 2, None), ([2], 0, 0)])
    for variables in (1000, 0):
        found = allocate(own, 0, exact_variables=variables)
        assert found.column.tolist() == [[0], [1]]
        assert (found.missing / UNIT).tolist() == [1, 0]


def test_places_count_by_rank() -> None:
    """Of item 1 one and a half places: at the first rank of one list, and not even at the third of another."""
    own = night([[1, 2, 3]] * 2, [[0.9, 0.5, 0.1]] * 2, 3, [([1], 0, 1)])
    weight = np.rint(UNIT / np.log2([2, 3, 4])).astype(np.int64)
    own = replace(own, weight=weight, budgets=replace(own.budgets, high=np.array([UNIT * 3 // 2])))
    found = allocate(own, 0)
    ranks = [columns.index(0) for columns in found.column.tolist()]
    assert sorted(ranks) == [0, 2], "1 + 1/2 places"
    assert keeps(own, found)


def test_fairness_moves_places_to_the_group_that_has_few() -> None:
    """Four lists of one place; item 1 is worth a little more to everyone."""
    own = night([[1, 2]] * 4, [[0.6, 0.5]] * 4, 1, [])
    fair = replace(own, fairness=Fairness(np.array([0, 1, 2]), np.zeros(3, np.int64), 0.0))
    for strength, expected in ((0.0, [4, 0]), (1.0, [2, 2])):
        found = allocate(with_fairness(fair, strength), 0)
        assert found.exposure is not None
        assert (found.exposure / UNIT).tolist() == expected
        assert found.gap < 1e-3


@pytest.mark.parametrize("has_quota", [False, True])
@pytest.mark.parametrize("by_rank", [False, True])
def test_small_nights_are_optimal(has_quota: bool, by_rank: bool) -> None:
    """200 instances in all: no gap to an integer program written down anew."""
    num_feasible = 0
    for seed in range(50):
        own = drawn(seed, has_quota=has_quota, by_rank=by_rank)
        found, greatest = allocate(own, 0), by_integers(own)
        assert keeps(own, found)
        assert (greatest is None) == bool(found.missing.any())
        if greatest is not None:
            num_feasible += 1
            assert found.value == pytest.approx(greatest, abs=1e-5)
            assert found.gap < 1e-6
    assert num_feasible > 25


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000), st.booleans(), st.booleans())
def test_caps_hold_by_prices_and_repair(seed: int, has_quota: bool, by_rank: bool) -> None:
    own = drawn(seed, has_quota=has_quota, by_rank=by_rank)
    found = allocate(own, seed, exact_variables=0)
    assert keeps(own, found)
    best = allocate(own, seed)
    if not found.missing.any():
        assert found.value <= best.bound * (1 + 1e-6) + 1e-6
        assert best.value <= found.bound * (1 + 1e-6) + 1e-6, (
            "the prices bound every list that keeps the budgets"
        )


def test_prices_of_a_sample_come_close() -> None:
    """2,000 users, a sample of whom is solved: caps hold, floors are met, the certified gap is small."""
    random = np.random.default_rng(0)
    num_items, users, width = 200, 2000, 30
    item = np.stack([random.permutation(num_items)[:width] + 1 for _ in range(users)]).astype(np.int32)
    value = -np.sort(-random.gamma(1.0, size=(users, width)).astype(np.float32), axis=1)
    groups: list[tuple[list[int], int, int | None]] = [([number], 0, 60) for number in range(1, 31)]
    groups += [([number], 120, None) for number in range(31, 41)]
    groups += [(list(range(41, 121)), 0, 3000), (list(range(121, 201)), 4200, None)]
    own = night(item.tolist(), value.tolist(), 5, groups)
    assert Program.num_variables(own) == 60_000
    found = allocate(own, 0, exact_variables=10_000)
    assert keeps(own, found)
    assert not found.missing.any()
    assert found.gap < 0.01
    again = allocate(own, 0, exact_variables=10_000)
    assert (again.column == found.column).all()
    binding = found.price != 0
    assert (found.price[:30][binding[:30]] > 0).all()
    assert (found.price[30:40] <= 0).all()
