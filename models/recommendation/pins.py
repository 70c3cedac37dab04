"""Pinned items: put at fixed ranks of finished lists, where the rules allow them.

Letters in shapes: r rows, k places, p pins, b reasons of an item.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.histories import Histories, Int32, Int64
from models.recommendation.answer import Answer, Because, Outcomes
from models.recommendation.rules import Rules

REASONS = ("unknown_item", "not_allowed", "excluded", "seen", "not_candidate", "overridden")
"""Reasons why a pin is dropped, the first that applies."""


@dataclass(frozen=True)
class Pins:
    """Items wanted at ranks of rows' lists."""

    row: Int64
    """[p]"""
    item: Int32
    """[p], 0: unknown"""
    rank: Int64
    """[p], from 1"""
    is_own: NDArray[np.bool_]
    """[p], whether the pin is the row's own: it goes before one for all rows"""

    def __len__(self) -> int:
        return len(self.row)

    def select(self, chosen: NDArray[np.bool_]) -> "Pins":
        """Pins of a mask [p]."""
        return Pins(self.row[chosen], self.item[chosen], self.rank[chosen], self.is_own[chosen])

    def allowed(self, histories: Histories, rules: Rules) -> tuple["Pins", Mapping[str, int]]:
        """The pins that rows' lists may have, at most one per item and rank, and the number dropped for each of `REASONS`.

        No filter gives way to a pin. Among pins of one item the row's own goes first, then the lower rank; at one rank the own.
        """
        left_out, shortlist = histories.left_out, histories.shortlist
        refused = {"unknown_item": self.item == 0}
        if rules.allowed is not None:
            refused["not_allowed"] = ~rules.allowed[self.item]
        if left_out is not None:
            refused["excluded"] = _has(*left_out.pairs(), self)
        if rules.exclude_seen:
            row, position = histories.gather()
            refused["seen"] = _has(row, histories.item_index[position], self)
        if shortlist is not None:
            refused["not_candidate"] = shortlist.is_limited[self.row] & ~_has(*shortlist.pairs(), self)
        counts, is_open = dict.fromkeys(REASONS, 0), np.ones(len(self), bool)
        for reason, is_refused in refused.items():
            counts[reason] = int((is_open & is_refused).sum())
            is_open &= ~is_refused
        pins = self.select(is_open)
        for other in ("item", "rank"):
            pins = pins.select(_first_of(pins, getattr(pins, other)))
        return pins, counts | {"overridden": int(is_open.sum()) - len(pins)}


def pinned(answer: Answer, pins: Pins) -> tuple[Answer, int]:
    """The answer with `pins` (of `Pins.allowed`) at their ranks and its own items in their order between; number moved up.

    A pin that the list has already keeps score, reasons and outcomes; another has none, and a score of NaN. The propensity of
    either is 1. Beyond the end of a shorter list a pin follows the last item, which makes the list longer.
    """
    own = answer.item_index
    num_rows, k = own.shape
    width = max(k, int(pins.rank.max(initial=0)))
    nowhere = width + 1
    rank_of_own, is_held = _ranks_of(own, pins)
    is_taken = np.zeros((num_rows, width), bool)
    is_taken[pins.row, pins.rank - 1] = True
    is_other = (own > 0) & (rank_of_own == 0)
    number = np.cumsum(is_other, axis=1) - 1
    free = np.where(np.sort(is_taken, axis=1), nowhere, np.argsort(is_taken, axis=1, kind="stable"))
    of_others = np.take_along_axis(free, np.maximum(number, 0), 1)
    position = np.where(is_other, of_others, np.where(own > 0, rank_of_own - 1, nowhere))
    added, added_position = _added(pins.select(~is_held), num_rows, nowhere)
    items = np.concatenate([own, added], 1)
    position = np.concatenate([position, added_position], 1)
    is_pin = np.concatenate([rank_of_own > 0, added > 0], 1)
    order = np.argsort(position, axis=1, kind="stable")[:, :k]
    is_pin = np.take_along_axis(is_pin, order, 1)
    num_moved = int((is_pin & (np.take_along_axis(position, order, 1) > np.arange(k))).sum())
    return _ordered(answer, items, order, is_pin), num_moved


def _ordered(answer: Answer, items: Int32, order: Int64, is_pin: NDArray[np.bool_]) -> Answer:
    """The answer with the columns `order` [r, k] of `items` [r, k + …], whose further columns are pins without predictions."""
    num_added = items.shape[1] - answer.item_index.shape[1]

    def ordered(part: NDArray[Any], missing: float) -> NDArray[Any]:
        wide = np.pad(part, [(0, 0), (0, num_added)] + [(0, 0)] * (part.ndim - 2), constant_values=missing)
        return np.take_along_axis(wide, order.reshape(*order.shape, *[1] * (part.ndim - 2)), 1)

    because, outcomes = answer.because, answer.outcomes
    if because is not None:
        because = Because(ordered(because.item_index, 0), ordered(because.weight, 0))
    if outcomes is not None:
        utility = None if outcomes.utility is None else ordered(outcomes.utility, np.nan)
        outcomes = Outcomes(ordered(outcomes.score, np.nan), ordered(outcomes.probability, np.nan), utility)
    return replace(
        answer,
        item_index=np.take_along_axis(items, order, 1),
        score=ordered(answer.score, np.nan),
        propensity=np.where(is_pin, np.float32(1), ordered(answer.propensity, 1)),
        because=because,
        outcomes=outcomes,
    )


def _ranks_of(items: Int32, pins: Pins) -> tuple[Int64, NDArray[np.bool_]]:
    """[r, k] rank at which each item is pinned, 0 where it is not; [p] whether a pin's item is among its row's."""
    num_items = max(int(items.max(initial=0)), int(pins.item.max(initial=0))) + 1
    order = np.argsort(pins.row * num_items + pins.item)
    keys = (pins.row * num_items + pins.item)[order]
    own = np.arange(len(items))[:, None] * num_items + items
    place = np.minimum(np.searchsorted(keys, own), max(len(keys) - 1, 0))
    if not len(keys):
        return np.zeros(items.shape, np.int64), np.zeros(0, bool)
    is_pinned = (keys[place] == own) & (items > 0)
    is_held = np.zeros(len(keys), bool)
    is_held[order[place[is_pinned]]] = True
    return np.where(is_pinned, pins.rank[order[place]], 0), is_held


def _added(pins: Pins, num_rows: int, nowhere: int) -> tuple[Int32, Int64]:
    """Items of pins by row, padded with 0, and their positions, padded with `nowhere`: two [r, most pins of a row]."""
    order = np.lexsort((pins.rank, pins.row))
    row = pins.row[order]
    column = np.arange(len(row)) - np.searchsorted(row, row)
    shape = num_rows, int(column.max(initial=-1)) + 1
    items, position = np.zeros(shape, np.int32), np.full(shape, nowhere, np.int64)
    items[row, column], position[row, column] = pins.item[order], pins.rank[order] - 1
    return items, position


def _has(row: Int64, item: Int32, pins: Pins) -> NDArray[np.bool_]:
    """[p] whether a pin is among pairs of a row and an item, two [n]."""
    width = max(int(item.max(initial=0)), int(pins.item.max(initial=0))) + 1
    return np.isin(pins.row * width + pins.item, row * width + item)


def _first_of(pins: Pins, value: NDArray[np.integer]) -> NDArray[np.bool_]:
    """[p] whether a pin is the first of its row and `value` [p]: the row's own before others, then the lower rank."""
    order = np.lexsort((pins.rank, ~pins.is_own, value, pins.row))
    row, value = pins.row[order], value[order]
    is_first = np.ones(len(order), bool)
    is_first[1:] = (row[1:] != row[:-1]) | (value[1:] != value[:-1])
    chosen = np.zeros(len(order), bool)
    chosen[order[is_first]] = True
    return chosen
