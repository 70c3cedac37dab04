"""Linear and integer programs of a night by HiGHS (Huangfu & Hall 2018): prices of budgets, and exact lists of few users.

Letters in shapes: u users, k places, b budgets, v variables, g groups, m constraints.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.allocation.night import NO_CAP, UNIT, VALUE_BITS, Night
from models.histories import Int32, Int64

if TYPE_CHECKING:
    from scipy.sparse import csr_array

Float64 = NDArray[np.float64]
_ONE = 2.0**VALUE_BITS
"""Greatest value in fixed point: values of a program are at most 1."""
_SCALE = 2.0**10
"""Factor of an integer program's objective: HiGHS stops within 1e-6 of the optimum, less than a fixed-point number."""
_PENALTY = 4.0
"""Worth of a place that a floor lacks, in greatest values, where it may lack any."""
_TANGENT_RATIO = 1.05
"""Ratio of exposures at which the logarithm has tangents, which exceed it by less than 0.03 %."""
_ROUNDING = 1e-6
"""Places that a floor may lack and count as met."""
_MAX_NODES = 1_000
"""Maximum branch-and-bound nodes: the time is bounded, and no clock decides."""


class Relaxed(NamedTuple):
    """Prices by the linear relaxation."""

    price: Int64
    """[b] of a place of each budget, in fixed point: positive of a cap, negative of a floor"""
    bonus: Int64
    """[g] of a place of each group of `fairness`, in fixed point"""


class Whole(NamedTuple):
    """Best lists found by an integer program."""

    column: Int32
    """[u, k], -1: empty"""
    bound: float
    """Upper bound of the objective, in fixed point times `UNIT`"""


@dataclass(frozen=True)
class Program:
    """Variables of a night: a user's candidate each, and where ranks count differently its rank too."""

    night: Night
    share: float = 1.0
    """Share of all users in it: budgets are scaled by it"""

    @staticmethod
    def num_variables(night: Night) -> int:
        """Variables of a night's program."""
        return int(np.count_nonzero(night.item)) * (night.k if night.is_weighted else 1)

    @cached_property
    def _variables(self) -> tuple[Int64, Int64, Int64]:
        """User, column and rank of each variable, three [v]; ranks are 0 where all count alike."""
        user, column = np.nonzero(self.night.item)
        if not self.night.is_weighted:
            return user, column, np.zeros_like(user)
        rank = np.tile(np.arange(self.night.k), len(user))
        return np.repeat(user, self.night.k), np.repeat(column, self.night.k), rank

    @cached_property
    def _item(self) -> Int32:
        user, column, _ = self._variables
        return self.night.item[user, column]

    @cached_property
    def _weight(self) -> Float64:
        """[v] places that a variable takes."""
        return np.asarray(self.night.weight[self._variables[2]] / UNIT)

    @cached_property
    def _worth(self) -> Float64:
        """[v] weighted value of each variable."""
        user, column, _ = self._variables
        return self._weight * self.night.values(slice(None))[user, column] / _ONE

    @property
    def _num_groups(self) -> int:
        return 0 if self.night.fairness is None else self.night.fairness.num_groups

    @cached_property
    def _factor(self) -> float:
        """C of the groups' logarithms, in greatest values, for the share of the users."""
        fairness = self.night.fairness
        return 0.0 if fairness is None else fairness.factor / (_ONE * UNIT) * self.share

    def relaxed(self) -> Relaxed:
        """Prices by the linear relaxation, in which floors may lack places at a penalty."""
        from scipy.optimize import linprog

        capped, floored = self._limited(self.night.budgets.low)
        matrix, limits, num_lists = self._inequalities(self.night.budgets.low, elastic=True)
        solution = linprog(
            self._objective(len(floored)),
            A_ub=matrix,
            b_ub=limits,
            **self._exposures(len(floored)),
            bounds=self._bounds(len(floored)),
            method="highs",
        )
        assert solution.x is not None, f"HiGHS: {solution.message}"
        dual = -solution.ineqlin.marginals[num_lists:]
        price = np.zeros(len(self.night.budgets))
        price[capped] += dual[: len(capped)]
        is_met = solution.x[len(solution.x) - len(floored) :] < _ROUNDING  # else its price is the penalty
        price[floored] -= np.where(is_met, dual[len(capped) : len(capped) + len(floored)], 0)
        bonus = np.zeros(self._num_groups)
        if self._num_groups:
            bonus = -solution.eqlin.marginals / self.share
        price, bonus = np.rint(price * _ONE), np.rint(bonus * _ONE)
        return Relaxed(price.astype(np.int64), bonus.astype(np.int64))

    def whole(self) -> Whole | None:
        """Best lists, whose floors lack as few places as can be; None where HiGHS finds none within its limit of branches."""
        low = self.night.budgets.low
        found = self._integers(low, elastic=False)
        if found is None and (low > 0).any():
            least = self._integers(low, elastic=True, only_missing=True)
            if least is None:
                return None
            low = low.copy()
            low[self._limited(low)[1]] -= np.rint(
                least[0][len(least[0]) - int((low > 0).sum()) :] * UNIT
            ).astype(np.int64)
            found = self._integers(np.maximum(low, 0), elastic=False)
        if found is None:
            return None
        return Whole(self._lists_of(found[0]), found[1])

    def _lists_of(self, part: Float64) -> Int32:
        """[u, k] columns of whole variables [v]; without ranks of their own in the candidates' order."""
        user, column, rank = (variable[part[: len(self._item)] > 0.5] for variable in self._variables)
        if not self.night.is_weighted:
            rank = np.arange(len(user)) - np.searchsorted(user, user)
        lists = np.full((len(self.night), self.night.k), -1, np.int32)
        lists[user, rank] = column
        return lists

    def _integers(
        self, low: Int64, *, elastic: bool, only_missing: bool = False
    ) -> tuple[Float64, float] | None:
        """Variables and bound of the integer program with floors `low` [b]; None where none were found."""
        from scipy.optimize import Bounds, LinearConstraint, milp

        num_floored = int((low > 0).sum()) if elastic else 0
        matrix, limits, _ = self._inequalities(low, elastic=elastic)
        constraints = [LinearConstraint(matrix, ub=limits)]
        if (equal := self._exposures(num_floored))["A_eq"] is not None:
            constraints.append(LinearConstraint(equal["A_eq"], equal["b_eq"], equal["b_eq"]))
        objective = self._objective(num_floored)
        if only_missing:
            objective[: len(objective) - num_floored] = 0
        bounds = self._bounds(num_floored)
        is_whole = np.arange(len(objective)) < len(self._item)
        solution = milp(
            objective * _SCALE,
            integrality=is_whole.astype(np.int64),
            bounds=Bounds(bounds[:, 0], bounds[:, 1]),
            constraints=constraints,
            options={"mip_rel_gap": 0, "node_limit": _MAX_NODES},
        )
        if solution.x is None:
            return None
        bound = solution.fun if solution.mip_dual_bound is None else solution.mip_dual_bound
        return solution.x, -float(bound) / _SCALE * _ONE * UNIT

    def _limited(self, low: Int64) -> tuple[Int64, Int64]:
        """Numbers of the budgets with a cap, and of those with a floor."""
        return np.flatnonzero(self.night.budgets.high < NO_CAP), np.flatnonzero(low > 0)

    def _objective(self, num_floored: int) -> Float64:
        """Costs of the variables: candidates, exposures, their logarithms, missing places."""
        groups = self._num_groups
        logarithms = np.full(groups, -self._factor)
        return np.concatenate([-self._worth, np.zeros(groups), logarithms, np.full(num_floored, _PENALTY)])

    def _bounds(self, num_floored: int) -> Float64:
        """[…, 2] least and greatest of each variable."""
        groups = self._num_groups
        high = np.concatenate([np.ones(len(self._item)), np.full(2 * groups + num_floored, np.inf)])
        if self.night.is_weighted:
            user, _, rank = self._variables
            high[: len(self._item)][rank >= self.night.places[user]] = 0
        return np.stack([np.zeros(len(high)), high], 1)

    def _inequalities(self, low: Int64, *, elastic: bool) -> tuple["csr_array", Float64, int]:
        """Matrix and upper limits: of lists, then caps, floors and tangents; and the number of those of lists."""
        from scipy.sparse import csr_array, eye_array, vstack

        capped, floored = self._limited(low)
        lists, of_lists = self._of_lists()
        used, budgets, groups, first = self._used(), self.night.budgets, self._num_groups, len(self._item)
        num_missing = len(floored) if elastic else 0
        width = first + 2 * groups + num_missing

        def at(start: int, matrix: "csr_array") -> "csr_array":
            shape = matrix.shape[0], width
            return csr_array((matrix.data, matrix.indices + start, matrix.indptr), shape)

        own = self.share / UNIT
        parts = [at(0, lists), at(0, used[capped]), at(0, -used[floored])]
        limits = [of_lists, budgets.high[capped] * own, -low[floored] * own]
        if num_missing:
            parts[2] = parts[2] - at(first + 2 * groups, eye_array(num_missing, format="csr"))
        if groups:
            slope, logarithm, limit = self._tangents()
            parts.append(at(first, slope) + at(first + groups, logarithm))
            limits.append(limit)
        return vstack(parts, format="csr"), np.concatenate(limits), lists.shape[0]

    def _of_lists(self) -> tuple["csr_array", Float64]:
        """Constraints of single lists: places, one candidate per rank and one rank per candidate, quotas."""
        night, (user, column, rank) = self.night, self._variables
        constraints = [(user, night.places.astype(np.float64))]
        if night.is_weighted:
            ones = np.ones(len(night) * max(night.k, night.item.shape[1]))
            constraints = [
                (user * night.k + rank, ones[: len(night) * night.k]),
                (user * night.item.shape[1] + column, ones[: len(night) * night.item.shape[1]]),
            ]
        parts = [_grouped(np.arange(len(user)), row, limit, len(user)) for row, limit in constraints]
        if night.quota is not None:
            variable, place = np.nonzero(night.quota.categories[self._item])
            category = night.quota.categories[self._item][variable, place].astype(np.int64)
            most = int(category.max(initial=0)) + 1
            _, row = np.unique(user[variable] * most + category, return_inverse=True)
            limit = np.full(int(row.max(initial=-1)) + 1, float(night.quota.most))
            parts.append(_grouped(variable, row, limit, len(user)))
        from scipy.sparse import vstack

        return vstack([matrix for matrix, _ in parts], format="csr"), np.concatenate(
            [limit for _, limit in parts]
        )

    def _used(self) -> "csr_array":
        """[b, v] places that each variable takes of each budget."""
        from scipy.sparse import csr_array

        budget = self.night.budgets.of_item[self._item]
        variable, column = np.nonzero(budget < len(self.night.budgets))
        return csr_array(
            (self._weight[variable], (budget[variable, column], variable)),
            (len(self.night.budgets), len(self._item)),
        )

    def _exposures(self, num_floored: int) -> dict[str, "csr_array | Float64 | None"]:
        """Equations of the groups' exposures over all users: E - sum of places / share = base."""
        from scipy.sparse import csr_array, eye_array, hstack

        fairness = self.night.fairness
        if fairness is None:
            return {"A_eq": None, "b_eq": None}
        group = fairness.group[self._item]
        own = np.flatnonzero(group)
        places = csr_array(
            (-self._weight[own] / self.share, (group[own] - 1, own)), (fairness.num_groups, len(self._item))
        )
        further = csr_array((fairness.num_groups, fairness.num_groups + num_floored))
        matrix = hstack([places, eye_array(fairness.num_groups), further], format="csr")
        return {"A_eq": matrix, "b_eq": fairness.base[1:] / UNIT}

    def _tangents(self) -> tuple["csr_array", "csr_array", Float64]:
        """Tangents t - E / (1 + e) <= log(1 + e) - e / (1 + e) at exposures e, from none to all places."""
        from scipy.sparse import csr_array

        assert self.night.fairness is not None
        most = self.night.places.sum() / self.share + self.night.fairness.base.sum() / UNIT + 1
        number = int(np.ceil(np.log(most + 1) / np.log(_TANGENT_RATIO))) + 1
        one_more = _TANGENT_RATIO ** np.arange(number)  # 1 + e
        groups = self._num_groups
        row, group = np.arange(groups * number), np.repeat(np.arange(groups), number)
        shape, slope = (len(row), groups), np.tile(1 / one_more, groups)
        limit = np.tile(np.log(one_more) - (one_more - 1) / one_more, groups)
        return (
            csr_array((-slope, (row, group)), shape),
            csr_array((np.ones(len(row)), (row, group)), shape),
            limit,
        )


def _grouped(variable: Int64, row: Int64, limit: Float64, num_variables: int) -> tuple["csr_array", Float64]:
    """Constraints "at most `limit` [m] of the variables in `row`", without those that cannot be exceeded."""
    from scipy.sparse import csr_array

    number = np.bincount(row, minlength=len(limit))
    needed = np.flatnonzero(number > limit)
    place = np.full(len(limit), -1, np.int64)
    place[needed] = np.arange(len(needed))
    kept = place[row] >= 0
    entries = (np.ones(int(kept.sum())), (place[row[kept]], variable[kept]))
    return csr_array(entries, (len(needed), num_variables)), limit[needed]
