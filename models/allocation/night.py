"""Allocation problem of a night: candidates of all users, budgets over groups of items, quotas, fairness.

    maximise   sum_{u,c,r} w_r v_uc x_ucr + C sum_g log(1 + E_g)
    subject to low_b <= sum_{u, c in b, r} w_r x_ucr <= high_b,   at most one candidate per place and one place per candidate,
               at most `most` items of a category per list,       x in {0, 1}

E_g is the exposure of group g in places. Sums are of 64-bit integers (fixed point), so no result depends on their order.
Letters in shapes: u users, w candidates, k places, n items, b budgets, c categories, p pairs of an item and a budget.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from models.histories import Float32, Int32, Int64

UNIT = 2**10
"""Weight of a whole place, in fixed point."""
NO_CAP = 2**62
"""`Budgets.high` without a cap."""
VALUE_BITS = 26
"""Bits of the greatest value: products of values and weights of 10**8 places stay below 2**63."""
_CHUNK_CELLS = 2**22


@dataclass(frozen=True)
class Budgets:
    """Limits of the places that groups of items have in all lists together, in units of 1 / `UNIT` place."""

    item: Int64
    """[p], items of the groups"""
    budget: Int64
    """[p], number of the budget, from 0"""
    low: Int64
    """[b]"""
    high: Int64
    """[b], `NO_CAP` without a cap"""
    num_items: int

    def __len__(self) -> int:
        return len(self.low)

    @cached_property
    def of_item(self) -> Int64:
        """[n + 1, most budgets of an item], padded with the number of budgets."""
        order = np.lexsort((self.budget, self.item))
        item, budget = self.item[order], self.budget[order]
        column = np.arange(len(item)) - np.searchsorted(item, item)
        table = np.full((self.num_items + 1, int(column.max(initial=-1)) + 1), len(self), np.int64)
        table[item, column] = budget
        return table

    def per_item(self, values: Int64) -> Int64:
        """[n + 1] sum over an item's budgets of `values` [b]."""
        total: Int64 = np.append(values, 0)[self.of_item].sum(axis=1, dtype=np.int64)
        return total

    def usage(self, units: Int64) -> Int64:
        """[b] units of each budget, by the `units` [n + 1] of each item."""
        used = np.zeros(len(self), np.int64)
        np.add.at(used, self.budget, units[self.item])
        return used

    def are_kept(self, units: Int64) -> bool:
        """Whether `units` [n + 1] of each item keep every budget."""
        usage = self.usage(units)
        return bool(((self.low <= usage) & (usage <= self.high)).all())

    def slack(self, usage: Int64) -> Int64:
        """[n + 1] units of each item that no cap forbids, at a usage [b]."""
        slack: Int64 = np.append(self.high - usage, NO_CAP)[self.of_item].min(axis=1, initial=NO_CAP)
        return slack


@dataclass(frozen=True)
class Fairness:
    """Nash welfare: `factor` times the sum over groups of log(1 + exposure in places)."""

    group: Int64
    """[n + 1], from 1; 0: no group"""
    base: Int64
    """[groups + 1], units that each group has besides (pins)"""
    factor: float
    """C, in fixed point times `UNIT`"""

    @property
    def num_groups(self) -> int:
        """Number of groups."""
        return len(self.base) - 1

    def exposure(self, units: Int64) -> Int64:
        """[groups] units of each group, by `units` [n + 1] of each item."""
        exposure = self.base.copy()
        np.add.at(exposure, self.group, units)
        return exposure[1:]


@dataclass(frozen=True)
class Quota:
    """Limit per category within a list."""

    categories: Int32
    """[n + 1, c], padded with 0"""
    most: int

    @property
    def is_exact(self) -> bool:
        """Whether greedy choice is optimal: no item has two categories (a laminar matroid)."""
        return self.categories.shape[1] < 2 or not (self.categories[:, 1:] > 0).any()


@dataclass(frozen=True)
class Night:
    """Candidates of all users, and what their lists must keep."""

    item: Int32
    """[u, w], distinct within a row, in the order of the lists without budgets; 0: none"""
    value: Float32
    """[u, w], at least 0"""
    places: Int64
    """[u], places of each list"""
    weight: Int64
    """[k], units of each rank, descending, `UNIT` at most"""
    budgets: Budgets
    quota: Quota | None = None
    fairness: Fairness | None = None

    def __len__(self) -> int:
        return len(self.item)

    @property
    def k(self) -> int:
        """Places of a full list."""
        return len(self.weight)

    @cached_property
    def is_weighted(self) -> bool:
        """Whether ranks count differently."""
        return bool((self.weight != self.weight[0]).any())

    @cached_property
    def scale(self) -> float:
        """Factor from a value to its fixed-point number, a power of two."""
        greatest = max((float(self.value[rows].max(initial=0)) for rows in self.chunks()), default=0.0)
        return float(2.0 ** (VALUE_BITS - np.frexp(greatest)[1])) if greatest > 0 else 1.0

    def values(self, rows: slice | Int64) -> Int64:
        """[rows, w] values in fixed point."""
        return np.rint(self.value[rows].astype(np.float64) * self.scale).astype(np.int64)

    def chunks(self) -> Iterator[slice]:
        """Consecutive rows, few enough for memory."""
        step = max(1, _CHUNK_CELLS // max(1, self.item.shape[1]))
        for start in range(0, len(self), step):
            yield slice(start, min(start + step, len(self)))

    def select(self, rows: slice | Int64) -> "Night":
        """Some users' part, with the same budgets and scale."""
        part = replace(self, item=self.item[rows], value=self.value[rows], places=self.places[rows])
        part.__dict__["scale"] = self.scale
        return part

    def without_quota(self) -> "Night":
        """The same night without a limit per category."""
        if self.quota is None:
            return self
        part = replace(self, quota=None)
        part.__dict__["scale"] = self.scale
        return part

    def units(self, column: Int32) -> Int64:
        """[n + 1] units of each item in lists of columns [u, k], -1: empty."""
        units = np.zeros(self.budgets.num_items + 1, np.int64)
        for rows in self.chunks():
            own = column[rows]
            item = np.where(own >= 0, np.take_along_axis(self.item[rows], np.maximum(own, 0), 1), 0)
            weight = np.broadcast_to(self.weight.astype(np.float64), own.shape)
            # exact: sums of a chunk are far below 2**53
            counted = np.bincount(item.ravel(), weights=weight.ravel(), minlength=len(units))
            units += counted.astype(np.int64)
        units[0] = 0
        return units

    def worth(self, column: Int32) -> int:
        """Sum of weighted values of lists of columns [u, k], in fixed point times `UNIT`."""
        total = 0
        for rows in self.chunks():
            own = column[rows]
            value = np.take_along_axis(self.values(rows), np.maximum(own, 0), 1)
            total += int((np.where(own >= 0, value, 0) * self.weight).sum())
        return total

    def welfare(self, units: Int64) -> float:
        """Term of fairness, in fixed point times `UNIT`, at `units` [n + 1] of each item; 0 without one."""
        if self.fairness is None:
            return 0.0
        return self.fairness.factor * float(np.log1p(self.fairness.exposure(units) / UNIT).sum())
