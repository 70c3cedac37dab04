"""Prices of budgets: by HiGHS on a sample of users, refined by passes over more of them; and the bound that they certify.

With prices the problem falls apart into a list per user, and its optimum bounds that of all lists from above (duality).
Letters in shapes: u users, k places, n items, b budgets, g groups.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.allocation.lists import CLOSED, priced_lists, reduced_values
from models.allocation.night import NO_CAP, UNIT, Night
from models.allocation.program import Program
from models.histories import Int32, Int64

SAMPLE_VARIABLES = 100_000
"""Variables of the program of a sample, and of the largest that is solved exactly."""
_REFINED_USERS, _STEPS = 50_000, 12


@dataclass(frozen=True)
class Prices:
    """Prices of a place, in fixed point."""

    budget: Int64
    """[b], positive of a cap, negative of a floor"""
    bonus: Int64
    """[g] of a place in each group of fairness"""

    def of_items(self, night: Night) -> Int64:
        """[n + 1] price of each item: the sum of its budgets' prices, less its group's bonus."""
        return night.budgets.per_item(self.budget) - self.bonus_of_items(night)

    def bonus_of_items(self, night: Night) -> Int64:
        """[n + 1] bonus of each item's group; zeros without fairness."""
        if night.fairness is None:
            return np.zeros(night.budgets.num_items + 1, np.int64)
        return np.asarray(np.append(0, self.bonus)[night.fairness.group])

    def bound(self, night: Night, share: float = 1.0) -> tuple[float, Int32]:
        """Upper bound of the objective, in fixed point times `UNIT`, and the lists [u, k] at these prices.

        share: of all users in `night`. D = sum_u max_lists sum w (v - price) + sum_b price_b limit_b
        + sum_g max_E (C log(1 + E) - bonus_g (E - base_g)).
        """
        price, total = self.of_items(night), 0
        free = night if night.quota is None or night.quota.is_exact else night.without_quota()
        column = priced_lists(free, price)
        for rows in night.chunks():
            own = column[rows]
            place = np.maximum(own, 0)
            item = np.take_along_axis(night.item[rows], place, 1)
            value = np.take_along_axis(night.values(rows), place, 1) - price[item]
            total += int((np.where(own >= 0, value, 0) * night.weight).sum())
        limit = np.where(self.budget > 0, night.budgets.high, night.budgets.low)
        of_budgets = int(
            np.where(self.budget == 0, 0, self.budget * np.where(self.budget == 0, 0, limit)).sum()
        )
        bound = total + share * (of_budgets + self._of_groups(night))
        return bound, column if free is night else priced_lists(night, price)

    def _of_groups(self, night: Night) -> float:
        """Conjugate of the groups' logarithms at the bonus, in fixed point times `UNIT`."""
        if night.fairness is None:
            return 0.0
        factor, base = night.fairness.factor, night.fairness.base[1:] / UNIT
        bonus = np.maximum(self.bonus.astype(np.float64), 1) * UNIT
        exposure = np.maximum(factor / bonus - 1, 0)
        return float((factor * np.log1p(exposure) - bonus * (exposure - base)).sum())


def prices(night: Night, seed: int) -> Prices:
    """Prices of all users' budgets by the linear program of a sample, refined on a larger sample."""
    random = np.random.default_rng(seed)
    order = random.permutation(len(night))
    per_user = max(1, Program.num_variables(night) // max(1, len(night)))
    few = np.sort(order[: max(1, SAMPLE_VARIABLES // per_user)])
    relaxed = Program(night.select(few), len(few) / len(night)).relaxed()
    more = np.sort(order[:_REFINED_USERS])
    return _refined(night.select(more), len(more) / len(night), Prices(relaxed.price, relaxed.bonus))


def _refined(night: Night, share: float, start: Prices) -> Prices:
    """Prices of the least bound on a sample: each step goes half the way to those at which each budget alone would balance."""
    best, current, least = start, start, np.inf
    for _ in range(_STEPS):
        bound, column = current.bound(night, share)
        if bound < least:
            best, least = current, bound
        budget = (current.budget + _balancing(night, share, current, column)) // 2
        bonus = current.bonus
        if night.fairness is not None:
            own = night.fairness.exposure(night.units(column)) - night.fairness.base[1:]
            wanted = night.fairness.factor / (UNIT + night.fairness.base[1:] + own / share)
            bonus = np.rint((bonus + wanted) / 2).astype(np.int64)
        current = Prices(budget, bonus)
    return best


def _balancing(night: Night, share: float, current: Prices, column: Int32) -> Int64:
    """[b] price at which as many lists would want a place of each budget as it has, all other prices staying.

    A list wants a candidate as long as its price is below its value minus that of the candidate which it would replace.
    """
    budgets = night.budgets
    budget, worth = _wanted(night, current, column)
    order = np.lexsort((-worth, budget))
    budget, worth = budget[order], worth[order]
    first, end = (
        np.searchsorted(budget, np.arange(len(budgets))),
        np.searchsorted(budget, np.arange(len(budgets)), "right"),
    )
    unit = max(1.0, float(night.weight.mean()))
    has_cap, has_floor = budgets.high < NO_CAP, budgets.low > 0
    beyond = first + np.floor(np.where(has_cap, budgets.high, 0) * share / unit).astype(np.int64)
    last = first + np.ceil(budgets.low * share / unit).astype(np.int64) - 1
    worth = np.append(worth, 0)
    cap = np.where(has_cap & (beyond < end), worth[np.minimum(beyond, len(worth) - 1)], 0)
    floor = np.where(has_floor & (first < end), worth[np.clip(last, 0, np.maximum(end - 1, 0))], 0)
    return np.where(cap > 0, cap, np.minimum(floor, 0))


def _wanted(night: Night, current: Prices, column: Int32) -> tuple[Int64, Int64]:
    """Budget, and highest price at which a list wants the candidate, of all candidates of all budgets: two [p]."""
    price, of_item = current.of_items(night), night.budgets.of_item
    is_priced: NDArray[np.bool_] = np.asarray((of_item < len(night.budgets)).any(axis=1))
    parts = [(np.zeros(0, np.int64), np.zeros(0, np.int64))]
    for rows in night.chunks():
        part, own = night.select(rows), column[rows]
        reduced = reduced_values(part, price)
        is_held = np.zeros(reduced.shape, bool)
        row, place = np.nonzero(own >= 0)
        is_held[row, own[row, place]] = True
        held = np.where(is_held, reduced, np.iinfo(np.int64).max).min(axis=1)
        worst = np.where(is_held.sum(axis=1) < part.places, 0, held)
        others = np.maximum(np.where(is_held, CLOSED, reduced).max(axis=1), 0)
        row, place = np.nonzero(is_priced[part.item])
        margin = reduced[row, place] - np.where(is_held[row, place], others[row], worst[row])
        budget = of_item[part.item[row, place]]
        pair, width = np.nonzero(budget < len(night.budgets))
        budget = budget[pair, width]
        parts.append((budget, margin[pair] + current.budget[budget]))
    budget, worth = (np.concatenate(own) for own in zip(*parts, strict=True))
    return budget, worth
