"""Lists of all users under budgets, with a certificate: value, upper bound, gap, price of each budget.

Few candidates are solved exactly by HiGHS; of more, prices come from a sample of users, each user's list from the prices, and a
repair makes the budgets hold. Lagrangian bound as in Geoffrion (1974); prices of exposure as in Agarwal et al. (2014).
Letters in shapes: u users, k places, n items, b budgets.
"""

from dataclasses import dataclass, replace

import numpy as np

from models.allocation.lists import priced_lists
from models.allocation.night import UNIT, Night
from models.allocation.prices import SAMPLE_VARIABLES, Prices, prices
from models.allocation.program import Program
from models.allocation.repair import Repair
from models.histories import Int32, Int64


@dataclass(frozen=True)
class Allocation:
    """Lists of a night, and what is proven of them. Values are sums over places, weighted as those."""

    column: Int32
    """[u, k] candidates by rank, -1: empty"""
    value: float
    """Value of the lists"""
    unlimited: float
    """Value of the lists without budgets"""
    objective: float
    """Value, with the term of fairness where there is one"""
    bound: float
    """Upper bound of the objective of any lists that keep the budgets"""
    usage: Int64
    """[b] units of each budget"""
    price: "np.ndarray[tuple[int], np.dtype[np.float64]]"
    """[b] of a place: value gained by one more place of a cap (positive), or by one less of a floor (negative)"""
    missing: Int64
    """[b] units that floors lack"""
    exposure: Int64 | None = None
    """[groups] units of each group of fairness; None without one"""

    @property
    def gap(self) -> float:
        """Greatest share of the bound by which other lists may be better."""
        return max(0.0, self.bound - self.objective) / max(abs(self.bound), 1e-300)


def allocate(night: Night, seed: int, *, exact_variables: int = SAMPLE_VARIABLES) -> Allocation:
    """Lists of greatest value that keep the budgets; caps always hold, floors as far as they can be met.

    night: with fairness, of `with_fairness`. exact_variables: most variables of a night that is solved exactly. The result is a
    function of `night` and `seed`.
    """
    if not len(night) or not night.item.any():
        column, bound, price = np.full((len(night), night.k), -1, np.int32), 0.0, _no_prices(night)
    else:
        column, bound, price = _solved(night, seed, exact_variables)
    if not night.is_weighted:
        last = np.where(column < 0, night.item.shape[1], column)
        column = np.take_along_axis(column, np.argsort(last, axis=1, kind="stable"), 1)
    units = night.units(column)
    usage, worth = night.budgets.usage(units), night.worth(column)
    objective, unit = worth + night.welfare(units), night.scale * UNIT
    return Allocation(
        column,
        worth / unit,
        night.worth(unlimited(night)) / unit,
        objective / unit,
        max(bound, objective) / unit,
        usage,
        price.budget / night.scale,
        np.maximum(night.budgets.low - usage, 0),
        None if night.fairness is None else night.fairness.exposure(units),
    )


def unlimited(night: Night) -> Int32:
    """[u, k] columns of the lists of greatest value without budgets."""
    return priced_lists(night, np.zeros(night.budgets.num_items + 1, np.int64))


def with_fairness(night: Night, strength: float) -> Night:
    """The night with its term of fairness at a strength: 1 weighs a group's logarithm by the mean value per group."""
    assert night.fairness is not None
    factor = strength * night.worth(unlimited(night)) / max(1, night.fairness.num_groups)
    own = replace(night, fairness=replace(night.fairness, factor=factor))
    own.__dict__["scale"] = night.scale
    return own


def _no_prices(night: Night) -> Prices:
    groups = 0 if night.fairness is None else night.fairness.num_groups
    return Prices(np.zeros(len(night.budgets), np.int64), np.zeros(groups, np.int64))


def _solved(night: Night, seed: int, exact_variables: int) -> tuple[Int32, float, Prices]:
    """Lists, the bound, and prices."""
    free = unlimited(night)
    is_best = night.fairness is None and (night.quota is None or night.quota.is_exact)
    if is_best and night.budgets.are_kept(night.units(free)):
        return free, float(night.worth(free)), _no_prices(night)
    if Program.num_variables(night) <= exact_variables:
        program = Program(night)
        relaxed = program.relaxed()
        own = Prices(relaxed.price, relaxed.bonus)
        if (whole := program.whole()) is not None:
            return whole.column, whole.bound, own
    else:
        own = prices(night, seed)
    bound, column = own.bound(night)
    return Repair(night, own.of_items(night), own.bonus_of_items(night), column).repaired(), bound, own
