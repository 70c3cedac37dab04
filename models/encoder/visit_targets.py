"""Visits within histories, and the set of items that follows each of them within a horizon.

A visit is a run of a row's events whose neighbours lie at most `session` microseconds apart. Positions are those of flat arrays.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from models.evaluation.metrics import Float64
from models.histories import Float32, Histories, Int64

TARGETS_PER_STATE = 32
"""Maximum targets of a state within a horizon: of more, a sample that differs from epoch to epoch."""
CHUNK_PAIRS = 2**20
"""Pairs of a state and a later event looked at together."""


@dataclass(frozen=True)
class Visits:
    """Positions at which visits begin, at the latest with a row; two rows share all of their events or none."""

    begins: Int64 | None
    """[visits + 1], ascending, the last one past the events; None: every event is a visit."""

    @classmethod
    def of(cls, histories: Histories, session: int | None) -> "Visits":
        """Visits of all rows; `session`: longest pause within a visit, microseconds, None: every event is a visit."""
        if session is None:
            return cls(None)
        is_first = np.ones(len(histories.time) + 1, bool)
        is_first[1:-1] = np.diff(histories.time) > session
        is_first[histories.starts] = is_first[histories.ends] = True
        return cls(np.flatnonzero(is_first))

    def first(self, position: Int64) -> Int64:
        """First event of the visit of each event."""
        if self.begins is None:
            return position
        return np.asarray(self.begins[np.searchsorted(self.begins, position, side="right") - 1])

    def following(self, position: Int64) -> Int64:
        """First position of the visit after that of each event."""
        if self.begins is None:
            return position + 1
        place = np.searchsorted(self.begins, position, side="right")
        return np.asarray(self.begins[np.minimum(place, len(self.begins) - 1)])

    def weights_of_items(self, histories: Histories, weight: Float32, *, as_sets: bool) -> Float32:
        """Weights [events] with each item of a visit once, at its first event in the visit; 0 elsewhere.

        The sum of the item's weights in the visit; `as_sets`: the largest, divided by the number of weighted items of the visit.
        """
        if self.begins is None:
            return weight
        visit = np.repeat(np.arange(len(self.begins) - 1), np.diff(self.begins))
        order = np.lexsort((histories.item_index, visit))
        is_new = np.ones(len(order), bool)
        is_new[1:] = (np.diff(histories.item_index[order]) != 0) | (np.diff(visit[order]) != 0)
        combined, group = np.zeros_like(weight), np.flatnonzero(is_new)
        if len(group):
            combine = np.maximum if as_sets else np.add
            combined[order[group]] = combine.reduceat(weight[order], group)
        if as_sets:
            number = np.bincount(visit[combined > 0], minlength=len(self.begins))
            combined = (combined / np.maximum(number[visit], 1)).astype(np.float32)
        return combined


class HorizonTargets:
    """Targets of each visit's last state: distinct items of the row's events within `horizon` microseconds of a night.

    Each item once, at its first weighted event, with the largest of its weights divided by the number of the state's targets. A
    state with more than TARGETS_PER_STATE keeps a sample of them, one of each of as many equal stretches of time order, by
    (seed, epoch) and its position alone.
    """

    def __init__(
        self, histories: Histories, visits: Visits, weight: Float32, horizon: int, seed: int
    ) -> None:
        """weight: [events], of an event as a target, 0 for none; horizon: microseconds."""
        self.visits, self.weight, self.horizon, self.seed = visits, weight, horizon, seed
        self.time = histories.time
        self.earlier, self.later = _occurrences(histories, weight > 0)
        self.is_weighted = len(np.unique(weight[weight > 0])) > 1

    def states(self, windows: Histories, input_ends: Int64) -> tuple[Int64, Int64, Int64]:
        """Row, position, and end of its night's horizon (a position) of each state, by row and position."""
        row, state = replace(windows, ends=input_ends).gather()
        is_last = self.visits.first(state + 1) == state + 1
        row, state = row[is_last], state[is_last]
        low, high = state + 1, windows.ends[row]
        until = self.nights(state) + self.horizon
        while (is_open := low < high).any():
            middle = (low + high) // 2
            is_within = is_open.copy()
            is_within[is_open] = self.time[middle[is_open]] < until[is_open]
            low, high = np.where(is_within, middle + 1, low), np.where(is_open & ~is_within, middle, high)
        return row, state, low

    def nights(self, state: Int64) -> Int64:
        """Night of each state, microseconds since the epoch: after its event, and the next one within its horizon.

        Of nights `horizon` apart at most one is such; here uniform over their phases, by the seed and the position alone. Where
        the next event has the same time, that time.
        """
        following = self.time[state + 1]
        possible = np.clip(following - self.time[state], 1, self.horizon)
        drawn = _random(state.astype(np.uint64), self.seed, 0) % possible.astype(np.uint64)
        return np.asarray(following - drawn.astype(np.int64))

    def pairs(self, windows: Histories, input_ends: Int64, epoch: int) -> tuple[Int64, Int64, Int64, Float32]:
        """Row, state, event and weight of each target of an epoch, by row, state and event."""
        row, state, end = self.states(windows, input_ends)
        parts = []
        for here, of_distinct, distinct in self._distinct(state, end):
            found = np.bincount(of_distinct, minlength=len(state[here]))
            chosen = self._sample(state[here], found, epoch)
            number, event = of_distinct[chosen], distinct[chosen]
            share = np.minimum(found, TARGETS_PER_STATE)[number].astype(np.float32)
            weight = self._largest(event, end[here][number]) / share
            parts.append((row[here][number], state[here][number], event, weight))
        if not parts:
            return (np.zeros(0, np.int64),) * 3 + (np.zeros(0, np.float32),)
        rows, states, events, weights = (np.concatenate(part) for part in zip(*parts, strict=True))
        return rows, states, events, weights

    def item_counts(self, windows: Histories, input_ends: Int64, num_items: int) -> Float64:
        """[num_items + 1] expected number of times that each item is a target in an epoch."""
        _, state, end = self.states(windows, input_ends)
        counts = np.zeros(num_items + 1)
        for here, number, event in self._distinct(state, end):
            found = np.bincount(number, minlength=len(state[here]))
            share = np.minimum(1, TARGETS_PER_STATE / np.maximum(found, 1))[number]
            counts += np.bincount(windows.item_index[event], weights=share, minlength=num_items + 1)
        return counts

    def _distinct(self, state: Int64, end: Int64) -> Iterator[tuple[slice, Int64, Int64]]:
        """States in few chunks: the chunk, and the state's number in it and the event of each distinct item."""
        lengths = end - state - 1
        before = np.concatenate(([0], np.cumsum(lengths)))
        first = 0
        while first < len(state):
            last = int(np.searchsorted(before, before[first] + CHUNK_PAIRS, side="right")) - 1
            here = slice(first, max(last, first + 1))
            first = here.stop
            number = np.repeat(np.arange(len(lengths[here])), lengths[here])
            event = np.arange(len(number)) + np.repeat(
                state[here] + 1 - before[here] + before[here.start], lengths[here]
            )
            is_first = (self.earlier[event] <= state[here][number]) & (self.weight[event] > 0)
            yield here, number[is_first], event[is_first]

    def _sample(self, state: Int64, found: Int64, epoch: int) -> NDArray[np.bool_]:
        """Whether each target, of the `found` of each state, is one of the epoch's."""
        is_over = found > TARGETS_PER_STATE
        chosen = np.repeat(~is_over, found)
        if is_over.any():
            edges = np.arange(TARGETS_PER_STATE + 1) * found[is_over, None] // TARGETS_PER_STATE
            place = np.arange(TARGETS_PER_STATE, dtype=np.uint64)
            seeds = state[is_over, None].astype(np.uint64) * np.uint64(TARGETS_PER_STATE) + place
            drawn = _random(seeds, self.seed, epoch) % np.diff(edges).astype(np.uint64)
            first = (np.cumsum(found) - found)[is_over, None]
            chosen[(first + edges[:, :-1] + drawn.astype(np.int64)).ravel()] = True
        return chosen

    def _largest(self, event: Int64, end: Int64) -> Float32:
        """Largest weight of each event's item from the event up to `end`."""
        weight = self.weight[event]
        if not self.is_weighted:
            return weight
        place, at = np.arange(len(event)), self.later[event]
        while len(place):
            is_within = at < end[place]
            place, at = place[is_within], at[is_within]
            weight[place] = np.maximum(weight[place], self.weight[at])
            at = self.later[at]
        return weight


def _occurrences(histories: Histories, chosen: NDArray[np.bool_]) -> tuple[Int64, Int64]:
    """[events] each: previous and next chosen event of the row on the same item; -1 and the number of events without one."""
    events = np.flatnonzero(chosen)
    is_start = np.zeros(len(chosen) + 1, np.int64)
    is_start[histories.starts] = 1
    row, item = np.cumsum(is_start)[events], histories.item_index[events]
    order = np.lexsort((item, row))
    events, row, item = events[order], row[order], item[order]
    is_same = (np.diff(row) == 0) & (np.diff(item) == 0)
    earlier, later = np.full(len(chosen), -1, np.int64), np.full(len(chosen), len(chosen), np.int64)
    earlier[events[1:][is_same]] = events[:-1][is_same]
    later[events[:-1][is_same]] = events[1:][is_same]
    return earlier, later


def _random(number: NDArray[np.uint64], seed: int, epoch: int) -> NDArray[np.uint64]:
    """Random 64 bits that depend on each number, the seed and the epoch. Source: Steele et al. 2014 (SplitMix64)."""
    salt = np.random.default_rng((seed, epoch, 2)).integers(2**64, dtype=np.uint64)
    mixed = (number + salt) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(mixed ^ (mixed >> np.uint64(31)))
