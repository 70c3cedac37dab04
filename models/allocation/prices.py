"""Prices of budgets: by HiGHS on a sample of users, refined by passes over more of them; and the bound that they certify.

With prices the problem falls apart into a list per user, and its optimum bounds that of all lists from above (duality).
Letters in shapes: u users, k places, n items, b budgets, g groups.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.allocation.lists import priced_lists
from models.allocation.night import NO_CAP, UNIT, Night
from models.allocation.program import Program
from models.histories import Int32, Int64

SAMPLE_VARIABLES = 100_000
"""Variables of the program of a sample, and of the largest that is solved exactly."""
_REFINED_USERS, _STEPS = 20_000, 40


@dataclass(frozen=True)
class Prices:
    """Prices of a place, in fixed point."""

    budget: Int64
    """[b], positive of a cap, negative of a floor"""
    bonus: Int64
    """[g] of a place in each group of fairness"""

    def of_items(self, night: Night) -> Int64:
        """[n + 1] price of each item: the sum of its budgets' prices, less its group's bonus."""
        price = night.budgets.per_item(self.budget)
        if night.fairness is None:
            return price
        return np.asarray(price - np.append(0, self.bonus)[night.fairness.group])

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
    """Prices of all users' budgets by the linear program of a sample, refined by subgradient steps on a larger sample."""
    random = np.random.default_rng(seed)
    order = random.permutation(len(night))
    per_user = max(1, Program.num_variables(night) // max(1, len(night)))
    few = np.sort(order[: max(1, SAMPLE_VARIABLES // per_user)])
    relaxed = Program(night.select(few), len(few) / len(night)).relaxed()
    more = np.sort(order[:_REFINED_USERS])
    return _refined(night.select(more), len(more) / len(night), Prices(relaxed.price, relaxed.bonus))


def _refined(night: Night, share: float, start: Prices) -> Prices:
    """Prices of the least bound on a sample: steps against the excess of each budget over its limits (Shor 1985)."""
    budgets = night.budgets
    low, high = budgets.low * share, np.where(budgets.high < NO_CAP, budgets.high * share, np.inf)
    best, current, least = start, start, np.inf
    typical = 0.0
    for step in range(_STEPS):
        bound, column = current.bound(night, share)
        if bound < least:
            best, least = current, bound
        units = night.units(column)
        used = budgets.usage(units)
        if not typical:
            typical = night.worth(column) / max(1, int(units.sum()))
        excess = _relative_excess(used, low, high, current.budget)
        rate = typical / (1 + step) ** 0.75
        budget = current.budget + np.rint(rate * excess).astype(np.int64)
        budget = np.where(np.isinf(high), np.minimum(budget, 0), budget)
        budget = np.where(low <= 0, np.maximum(budget, 0), budget)
        bonus = current.bonus
        if night.fairness is not None:
            exposure = (
                night.fairness.base[1:] + (night.fairness.exposure(units) - night.fairness.base[1:]) / share
            )
            wanted = night.fairness.factor / (UNIT + exposure)
            bonus = np.rint(bonus + (wanted - bonus) / (2 + step)).astype(np.int64)
        current = Prices(budget, bonus)
    return best


def _relative_excess(
    used: Int64, low: NDArray[np.floating], high: NDArray[np.floating], price: Int64
) -> NDArray[np.float64]:
    """[b] excess over the limit that a price belongs to, as a share of it, from -1 to 1; 0 where none is broken at price 0."""
    with np.errstate(invalid="ignore"):
        over = (used - high) / np.maximum(high, 1)
    under = (used - low) / np.maximum(low, 1)
    excess = np.where(
        price > 0, over, np.where(price < 0, under, np.where(used > high, over, np.minimum(under, 0)))
    )
    return np.clip(np.where(np.isfinite(excess), excess, 0), -1, 1)
