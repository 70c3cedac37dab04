"""Repair of priced lists: no cap is exceeded, empty places are filled, floors are met by the cheapest exchanges.

Letters in shapes: u users, w candidates, k places, n items, b budgets, r rows, p pairs.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.allocation.lists import CLOSED, best_columns, reduced_values
from models.allocation.night import Night
from models.histories import Int32, Int64
from models.recommendation.rules import CategoryQuota

_DISPLACING_ROUNDS = 30
"""Rounds in which a list may take a place from another; then full budgets are closed."""
_OPEN = 2**36
"""Added to reduced values to fill places with any candidate, also below its price."""
_IMPROVING_ROUNDS = 3
_OFFERS = 4
"""Candidates of a list for missing floors in one round."""


@dataclass
class Repair:
    """Lists of a night under repair; by the order of users and candidates alone where worths are equal."""

    night: Night
    price: Int64
    """[n + 1] of a place of each item, in fixed point"""
    bonus: Int64
    """[n + 1] worth of a place of each item besides its value (fairness), in fixed point"""
    column: Int32
    """[u, k] candidates of the lists, -1: empty"""

    def __post_init__(self) -> None:
        self._refused: NDArray[np.bool_] = np.zeros(self.night.item.shape, bool)
        self._is_exhausted = np.zeros(len(self.night), bool)
        self._usage = self.night.budgets.usage(self.night.units(self.column))
        self._next_best = np.zeros(len(self.night), np.int64)
        """[u] reduced value of the best candidate outside each list, 0 at least"""
        for rows in self.night.chunks():
            reduced = self._outside(np.arange(rows.start, rows.stop))
            self._next_best[rows] = np.maximum(reduced.max(axis=1, initial=0), 0)

    def repaired(self) -> Int32:
        """[u, k] lists that keep every cap, and every floor that exchanges reach; filled from the first rank."""
        rounds = 0
        self._trim()
        while len(rows := self._vacant()):
            self._fill(rows, is_closing=rounds >= _DISPLACING_ROUNDS)
            self._trim()
            rounds += 1
        self._move_up()
        while (self._usage < self.night.budgets.low).any() and self._exchange():
            pass
        self._improve()
        return self.column

    def _items(self, rows: slice | Int64) -> Int32:
        """[r, k] items of lists, 0: empty."""
        own = self.column[rows]
        return np.where(
            own >= 0, np.take_along_axis(self.night.item[rows], np.maximum(own, 0), 1), np.int32(0)
        )

    def _outside(self, rows: Int64) -> Int64:
        """[r, w] reduced values of the candidates that are in no list of theirs and not refused; others `CLOSED`."""
        reduced = reduced_values(self.night.select(rows), self.price)
        row, place = np.nonzero(self.column[rows] >= 0)
        reduced[row, self.column[rows][row, place]] = CLOSED
        reduced[self._refused[rows]] = CLOSED
        return reduced

    def _vacant(self) -> Int64:
        """Rows with an empty place that some candidate may fill."""
        is_vacant = ((self.column < 0) & (np.arange(self.night.k) < self.night.places[:, None])).any(axis=1)
        return np.flatnonzero(is_vacant & ~self._is_exhausted)

    def _fill(self, rows: Int64, *, is_closing: bool) -> None:
        """Put the best open candidate on the first empty place of each row; with `is_closing` none of a full budget."""
        slack = self.night.budgets.slack(self._usage)
        step = max(1, 2**22 // max(1, self.night.item.shape[1]))
        for start in range(0, len(rows), step):
            own = rows[start : start + step]
            part, reduced = self.night.select(own), self._outside(own)
            place = (self.column[own] < 0).argmax(axis=1)
            weight = self.night.weight[place]
            if is_closing:
                reduced = np.where(slack[part.item] < weight[:, None], CLOSED, reduced)
            if part.quota is not None:
                reduced = np.where(self._quota(own).is_left, reduced, CLOSED)
            best = best_columns(part.without_quota(), np.where(reduced > CLOSED, reduced + _OPEN, CLOSED))[
                :, 0
            ]
            is_filled = best >= 0
            self._is_exhausted[own[~is_filled]] = True
            self.column[own[is_filled], place[is_filled]] = best[is_filled]
            reduced[is_filled, best[is_filled]] = CLOSED
            self._next_best[own] = np.maximum(reduced.max(axis=1, initial=0), 0)
        self._usage = self.night.budgets.usage(self.night.units(self.column))

    def _quota(self, rows: Int64) -> CategoryQuota:
        """Quota that the lists of rows leave to their candidates."""
        quota = self.night.quota
        assert quota is not None
        left = CategoryQuota(quota.categories[self.night.item[rows]], quota.most)
        for place in range(self.night.k):
            own = self.column[rows, place]
            left.take(np.maximum(own, 0).astype(np.int64), own >= 0)
        return left

    def _trim(self) -> None:
        """Refuse the places of each exceeded cap beyond it, those first whose lists lose least by their next best candidate."""
        budgets = self.night.budgets
        is_over = np.append(self._usage > budgets.high, False)
        if not is_over.any():
            return
        table = np.where(is_over[budgets.of_item], budgets.of_item, len(budgets))
        is_of_over: NDArray[np.bool_] = np.asarray((table < len(budgets)).any(axis=1))
        row, place = np.nonzero(is_of_over[self._items(slice(None))])
        column = self.column[row, place]
        item = self.night.item[row, column]
        value = np.rint(self.night.value[row, column].astype(np.float64) * self.night.scale).astype(np.int64)
        margin = value - self.price[item] - self._next_best[row]
        pair, width = np.nonzero(table[item] < len(budgets))
        budget = table[item][pair, width]
        order = np.lexsort((pair, -margin[pair], budget))
        pair, budget = pair[order], budget[order]
        weight = self.night.weight[place[pair]]
        total = np.cumsum(weight)
        first = np.searchsorted(budget, budget)
        within = total - total[first] + weight[first]
        refused = np.unique(pair[within > budgets.high[budget]])
        row, place, column = row[refused], place[refused], column[refused]
        self._refused[row, column] = True
        self.column[row, place] = -1
        self._usage = budgets.usage(self.night.units(self.column))

    def _move_up(self) -> None:
        """Close gaps within lists; where ranks count differently that may exceed a cap, whose last places then stay empty."""
        while True:
            order = np.argsort(self.column < 0, axis=1, kind="stable")
            self.column = np.take_along_axis(self.column, order, 1)
            self._usage = self.night.budgets.usage(self.night.units(self.column))
            if not (self._usage > self.night.budgets.high).any():
                return
            self._trim()

    def _exchange(self) -> bool:
        """Meet floors by exchanges of one place, cheapest first; whether any was made."""
        budgets = self.night.budgets
        is_missing = np.append(self._usage < budgets.low, False)
        is_wanted: NDArray[np.bool_] = np.asarray(is_missing[budgets.of_item].any(axis=1))
        row, column, loss = self._offers(is_wanted, is_kept=is_wanted)
        order = np.lexsort((column, row, loss))
        groups = [set(own[own < len(budgets)].tolist()) for own in budgets.of_item]
        missing = set(np.flatnonzero(self._usage < budgets.low).tolist())
        is_any = False
        for user, candidate in zip(row[order].tolist(), column[order].tolist(), strict=True):
            wanted = groups[int(self.night.item[user, candidate])]
            if wanted.isdisjoint(missing) or not self._try(user, candidate, groups, missing):
                continue
            is_any = True
            missing -= {budget for budget in wanted if self._usage[budget] >= budgets.low[budget]}
            if not missing:
                break
        return is_any

    def _improve(self) -> None:
        """Exchange places of single lists for a greater value where the budgets leave room, the greatest gains first."""
        budgets, self.price = self.night.budgets, -self.bonus
        groups = [set(own[own < len(budgets)].tolist()) for own in budgets.of_item]
        for _ in range(_IMPROVING_ROUNDS):
            row, column, loss = self._offers(
                budgets.slack(self._usage) > 0, is_kept=np.zeros(budgets.num_items + 1, bool)
            )
            order = np.lexsort((column, row, loss))
            pairs = zip(row[order].tolist(), column[order].tolist(), (loss[order] < 0).tolist(), strict=True)
            made = [self._try(user, candidate, groups, None) for user, candidate, is_gain in pairs if is_gain]
            if not any(made):
                return

    def _offers(self, is_wanted: NDArray[np.bool_], is_kept: NDArray[np.bool_]) -> tuple[Int64, Int64, Int64]:
        """Row, column and loss of candidates of wanted items [n + 1] outside the lists, three [p]; a few of each row.

        is_kept: [n + 1] items that they do not replace.
        """
        parts = []
        for rows in self.night.chunks():
            part = self.night.select(rows)
            reduced = reduced_values(part, self.price)
            own = self.column[rows]
            held = np.where(own >= 0, np.take_along_axis(reduced, np.maximum(own, 0), 1), 0)
            held = np.where(is_kept[self._items(rows)], -CLOSED, held)
            row, place = np.nonzero(own >= 0)
            gain = np.where(is_wanted[part.item], reduced, CLOSED)
            gain[row, own[row, place]] = CLOSED
            number = min(_OFFERS, gain.shape[1])
            best = np.argpartition(-(gain * gain.shape[1] - np.arange(gain.shape[1])), number - 1, axis=1)[
                :, :number
            ]
            row, place = np.nonzero(np.take_along_axis(gain, best, 1) > CLOSED)
            column = best[row, place]
            parts.append((row + rows.start, column, held.min(axis=1)[row] - gain[row, column]))
        row, column, loss = (np.concatenate(own) for own in zip(*parts, strict=True))
        return row, column, loss

    def _try(self, user: int, candidate: int, groups: list[set[int]], missing: set[int] | None) -> bool:
        """Give a candidate the cheapest place of its list that keeps caps, floors and quota; whether there is one.

        missing: budgets of which one must gain, whatever is lost; None: the list must gain.
        """
        if (self.column[user] == candidate).any():
            return False
        night, budgets = self.night, self.night.budgets
        items = self._items(np.array([user]))[0]
        new = groups[int(night.item[user, candidate])]
        own = self.column[user]
        reduced = reduced_values(night.select(np.array([user])), self.price)[0]
        held = np.where(own >= 0, reduced[np.maximum(own, 0)], 0)
        worth = (held - reduced[candidate]) * night.weight
        number = min(int(night.places[user]), int((own >= 0).sum()) + 1)
        for place in np.argsort(worth[:number], kind="stable").tolist():
            if missing is None and worth[place] >= 0:
                return False
            weight, old = int(night.weight[place]), groups[int(items[place])] if own[place] >= 0 else set()
            if (
                all(self._usage[budget] + weight <= budgets.high[budget] for budget in new - old)
                and all(self._usage[budget] - weight >= budgets.low[budget] for budget in old - new)
                and (missing is None or not missing.isdisjoint(new - old))
                and self._fits(user, candidate, place)
            ):
                for budget in new - old:
                    self._usage[budget] += weight
                for budget in old - new:
                    self._usage[budget] -= weight
                self.column[user, place] = candidate
                return True
        return False

    def _fits(self, user: int, candidate: int, place: int) -> bool:
        """Whether a list keeps its quota with a candidate on a place."""
        quota = self.night.quota
        if quota is None:
            return True
        others = np.delete(self.column[user], place)
        held = quota.categories[self.night.item[user, others[others >= 0]]]
        new = quota.categories[self.night.item[user, candidate]]
        return all(int((held == category).sum()) < quota.most for category in new[new > 0].tolist())
