"""Batches cut from jagged histories by a budget of tokens, with index arithmetic only.

Letters: b rows, l positions of the longest row, n targets, s states.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.device import moved
from models.encoder.visit_targets import HorizonTargets, Visits
from models.evaluation.metrics import Float64
from models.histories import Float32, Histories, Int64
from models.settings.training import Predict, TrainTargets
from models.shapes import Float, Int

WINDOWS = 8
"""Windows of a batch, of similar numbers of tokens: more of them pad less, fewer run faster."""
BLOCK_TOKENS, MIN_COLUMNS = 2**12, 8
"""Padded positions of a block of fixed shape, at most where it has several rows, and its fewest columns."""
POOL_BATCHES = 4
"""Batches of histories sorted by length together, where a batch is one window."""


@dataclass(frozen=True)
class Window:
    """Rows of past interactions, each starting in column 0 and padded with zeros on the right."""

    item_index: Int[Tensor, "b l"]
    event_type: Int[Tensor, "b l"]
    lengths: Int[Tensor, " b"]
    value: Float[Tensor, "b l"] | None = None
    """Values, NaN where an event has none; None where no event has one."""
    time: Int[Tensor, "b l"] | None = None
    """Microseconds since the epoch; None where the model reads no times."""
    request_time: Int[Tensor, "b l"] | None = None
    """Request time of each column's next item, microseconds: the next event's time, in the last column the request's; None:
    unknown."""
    position: Int[Tensor, "b l"] | None = None
    """Position of each column; None: 0, 1, 2 …"""

    def to(self, device: torch.device) -> "Window":
        """The same rows on a device."""
        parts = {name: part for name, part in vars(self).items() if part is not None}
        return Window(**{name: moved(part, device) for name, part in parts.items()})


@dataclass(frozen=True)
class Contrasts:
    """Dislikes after the first visit of their rows, each with the row's next target."""

    position: Int[Tensor, " c"]
    """Cell of the state before each dislike's visit, counted over all windows."""
    liked: Int[Tensor, " c"]
    """Item of the next target after the dislike."""
    disliked: Int[Tensor, " c"]
    """Item of the dislike."""
    weight: Float[Tensor, " c"]
    """Size of the dislike's negative weight."""

    def to(self, device: torch.device) -> "Contrasts":
        """The same dislikes on a device."""
        return Contrasts(**{name: moved(part, device) for name, part in vars(self).items()})


@dataclass(frozen=True)
class Batch:
    """Input windows and the targets of their positions."""

    windows: tuple[Window, ...]
    """Windows of rows of similar length, so that little is padding."""
    position: Int[Tensor, " s"]
    """Cell of each state that predicts, counted over all windows, row by row."""
    target: Int[Tensor, " n"]
    weight: Float[Tensor, " n"]
    state: Int[Tensor, " n"] | None = None
    """Place in `position` of each target's state, ascending; None: one target of each state."""
    contrasts: Contrasts | None = None
    """Dislikes among the events; None where there are none, or no loss is taken of them."""
    on_cpu: "Batch | None" = None
    """The same batch on the CPU, for sizes that depend on its values: reading them from a GPU would wait for it."""

    @property
    def readable(self) -> "Batch":
        """The batch whose values can be read without waiting for a device."""
        return self if self.on_cpu is None else self.on_cpu

    @property
    def target_position(self) -> Int[Tensor, " n"]:
        """Cell whose state predicts each target."""
        return self.position if self.state is None else self.position[self.state]

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device."""
        position, target, weight = (moved(part, device) for part in (self.position, self.target, self.weight))
        state = None if self.state is None else moved(self.state, device)
        windows = tuple(window.to(device) for window in self.windows)
        contrasts = None if self.contrasts is None else self.contrasts.to(device)
        return Batch(windows, position, target, weight, state, contrasts, self.readable)


def rounded_up(number: int, digits: int = 5) -> int:
    """`number` rounded up to `digits` significant binary digits: with five at most 1/16 more, with four 1/8.

    Kernels for bf16 products on the CPU are compiled for each new shape and kept, so batches must come in few shapes.
    """
    step = 1 << max(0, number.bit_length() - digits)
    return -(-number // step) * step


def pad(
    histories: Histories,
    shape: tuple[int, int] | None = None,
    *,
    with_time: bool = False,
    with_value: bool = False,
) -> Window:
    """Window of the rows, with times (and request times, where known) and values if chosen.

    `shape` b, l; by default the number of rows and the longest length (at least 1).
    """
    rows, flat = histories.gather()
    shape = shape or (len(histories), max(1, int(histories.lengths.max(initial=0))))
    cells = rows, flat - histories.starts[rows]
    lengths = np.zeros(shape[0], np.int64)
    lengths[: len(histories)] = histories.lengths

    def filled(values: NDArray[Any], dtype: Any) -> Tensor:
        cell = np.zeros(shape, dtype)
        cell[cells] = values
        return torch.from_numpy(cell)

    request_time = None
    if with_time and histories.request_time is not None:
        is_last = flat == histories.ends[rows] - 1
        following = histories.time[np.where(is_last, flat, flat + 1)]
        request_time = filled(np.where(is_last, histories.request_time[rows], following), np.int64)
    return Window(
        filled(histories.item_index[flat], np.int32),
        filled(histories.event_type[flat], np.int32),
        torch.from_numpy(lengths),
        filled(histories.value[flat], np.float32) if with_value and histories.value is not None else None,
        filled(histories.time[flat], np.int64) if with_time else None,
        request_time,
    )


def cut_by_tokens(lengths: Int64, batch_tokens: int) -> list[NDArray[np.int64]]:
    """Batches of rows of similar length, shortest first, whose padded size stays within `batch_tokens`.

    A longer row is a batch of its own; empty rows are left out.
    """
    order = np.argsort(lengths, kind="stable")
    order = order[np.searchsorted(lengths[order], 1) :]
    batches = []
    start = 0
    while start < len(order):
        padded = lengths[order[start:]] * np.arange(1, len(order) - start + 1)
        rows = max(1, int(np.searchsorted(padded, batch_tokens, side="right")))
        batches.append(order[start : start + rows])
        start += rows
    return batches


def _joined(parts: Sequence[Contrasts | None], before: Sequence[int]) -> Contrasts | None:
    """Dislikes of several windows, of which each has so many cells before it; None without any."""
    here = [(part, cells) for part, cells in zip(parts, before, strict=False) if part is not None]
    if not any(len(part.position) for part, _ in here):
        return None
    return Contrasts(
        torch.cat([part.position + cells for part, cells in here]),
        torch.cat([part.liked for part, _ in here]),
        torch.cat([part.disliked for part, _ in here]),
        torch.cat([part.weight for part, _ in here]),
    )


@dataclass(frozen=True)
class BlockShape:
    """Rows and columns of a window that depend on the length of its histories alone, not on how many there are.

    Linear algebra rounds a row by the shape of the whole product, so in blocks a row has the same bits whatever the others.
    """

    rows: int
    columns: int

    @classmethod
    def of(cls, length: int, max_length: int, most_rows: int) -> "BlockShape":
        """Block for histories of a length from 1 to `max_length`: about BLOCK_TOKENS cells, `most_rows` rows at most.

        Columns are 8, 10, 12, 14, 16, 20, 24 … and `max_length`, above 8 less than a quarter more than the length; rows a power
        of two.
        """
        columns = min(max_length, rounded_up(max(length, MIN_COLUMNS), 3))
        rows = max(1, min(BLOCK_TOKENS // columns, most_rows))
        return cls(1 << (rows.bit_length() - 1), columns)


def cut_into_blocks(lengths: Int64, max_length: int, most_rows: int) -> list[NDArray[np.int64]]:
    """Rows of the same block shape, as many as it has or the rest, longest first; lengths from 1 to `max_length`."""
    shapes = {length: BlockShape.of(length, max_length, most_rows) for length in np.unique(lengths).tolist()}
    columns = np.array([shapes[length].columns for length in lengths.tolist()], np.int64)
    rows_of = {shape.columns: shape.rows for shape in shapes.values()}
    blocks = []
    for width in sorted(rows_of, reverse=True):
        same = np.flatnonzero(columns == width)
        blocks += [same[start : start + rows_of[width]] for start in range(0, len(same), rows_of[width])]
    return blocks


class BatchPlan:
    """Assignment of histories to the optimiser steps of every epoch: each history with a target, once per epoch.

    Inputs are the `max_length` most recent events before the history's last visit, targets all of its visits but the first. A
    state predicts what follows its visit, so nothing of a target's own visit is in its history. `session`: see `Visits`; None:
    every event is a visit, so that the next event is predicted at each event.
    `predict` "next": every event of the next visit, weighted by `type_weights` of its event type (default 1); "visit": the set
    of the next visit's items, of the largest of each one's weights divided by their number; "window": the set of the items
    within `horizon` microseconds of a night, which is the state's request time (see `HorizonTargets`). An event of weight 0, a
    dislike or one of item 0 is no target; a history without any target is left out. `num_targets` counts each item of a visit
    once; with "window", states with a target.
    Each dislike after the first visit is contrasted with the row's next target, at the state before its visit, with `targets`
    "all" and `learns_dislikes`.
    `targets` "last": each history's last target alone, from the events before its visit; "random": one of each history, another
    every epoch. The budget of a step is `batch_histories` times the mean number of inputs.
    Each epoch's order follows from (seed, epoch) alone. `with_time`, `with_value`: as in `pad`.
    A batch's histories are drawn at random and packed by length into several windows. With `one_window`, for encoders whose time
    grows with columns rather than rows, a batch's histories are of similar length instead; so they are where a step has too few
    tokens for two windows of `window_tokens`, below which a window costs more than the padding it saves.
    """

    def __init__(
        self,
        histories: Histories,
        max_length: int,
        batch_histories: int,
        type_weights: Float32 | None,
        seed: int,
        *,
        targets: TrainTargets = "all",
        predict: Predict = "next",
        session: int | None = None,
        horizon: int = 0,
        with_time: bool = False,
        with_value: bool = False,
        one_window: bool = False,
        window_tokens: int = 0,
        learns_dislikes: bool = True,
    ) -> None:
        weight = np.float32(1) if type_weights is None else type_weights[histories.event_type]
        if histories.weight is not None:
            weight = weight * histories.weight
        bears = histories.item_index > 0
        if histories.dislikes is not None:
            bears &= histories.dislikes[histories.event_type] == 0
        self.event_weight = np.where(bears, weight, 0).astype(np.float32, copy=False)
        self.targets, self.max_length, self.seed = targets, max_length, seed
        self.dislikes = histories.dislikes if targets == "all" and learns_dislikes else None
        self.with_time, self.with_value, self.window_tokens = with_time, with_value, window_tokens
        self.visits, self.within_horizon = Visits.of(histories, session), None
        self.shares_states = targets == "all" and (session is not None or predict == "window")
        if predict == "window":
            self.within_horizon = HorizonTargets(histories, self.visits, self.event_weight, horizon, seed)
        elif targets == "all":
            as_sets = predict == "visit"
            self.event_weight = self.visits.weights_of_items(histories, self.event_weight, as_sets=as_sets)
        self._bearing = np.concatenate(([0], np.cumsum(self.event_weight > 0)))
        windows = replace(histories, request_time=None)
        windows = self._cut(windows) if targets == "all" else windows
        num_targets = self._num_targets(windows)
        self.rows = np.flatnonzero(num_targets > 0)  # of `histories`
        self.windows = windows.select(self.rows)
        self.num_targets = int(num_targets.sum()) if targets == "all" else len(self.windows)
        self.steps_per_epoch = max(1, round(len(self.windows) / batch_histories))
        tokens = int(self._inputs(self.windows).lengths.sum()) // self.steps_per_epoch
        self.one_window = one_window or tokens < 2 * window_tokens
        self.few_shapes = False
        """Shapes of windows rounded up further, for graphs compiled for each of them."""

    def epoch(self, epoch: int) -> list[NDArray[np.int64]]:
        """Rows of each step, in order: shuffled histories cut at equal numbers of tokens.

        For `one_window` they are first sorted by length within pools, longest first in every other pool so that neighbours stay
        similar between pools, and the cuts are shuffled.
        """
        if not self.num_targets:
            return []
        random = np.random.default_rng((self.seed, epoch))
        order = random.permutation(len(self.windows))
        lengths = self.inputs(epoch).lengths
        if self.one_window:
            pool = np.arange(len(order)) * self.steps_per_epoch // (len(order) * POOL_BATCHES)
            order = order[np.lexsort((np.where(pool % 2, -lengths[order], lengths[order]), pool))]
        middle = np.cumsum(lengths[order]) - lengths[order] / 2
        step = (middle * (self.steps_per_epoch / lengths.sum())).astype(np.int64)
        # a history longer than a step's budget leaves no step empty: steps grow by at most one per row, up to the last
        row = np.arange(len(order))
        step = np.minimum(row + np.minimum.accumulate(step - row), row)
        step = np.maximum(step, row + self.steps_per_epoch - len(order))
        cuts = np.split(order, np.flatnonzero(np.diff(step)) + 1)
        return [cuts[number] for number in random.permutation(len(cuts))]

    def in_epoch(self, epoch: int) -> Histories:
        """Rows of an epoch: inputs, then events up to the last target."""
        if self.targets == "all":
            return self.windows
        if epoch != self._drawn_for:
            self._drawn, self._drawn_for = self._up_to_one_target(epoch), epoch
        return self._drawn

    def inputs(self, epoch: int) -> Histories:
        """Rows of an epoch without the visit of the last target."""
        return self._inputs(self.in_epoch(epoch))

    def targets_of(
        self, rows: NDArray[np.int64], epoch: int
    ) -> tuple[Int[Tensor, " n"], Float[Tensor, " n"]]:
        """Item and weight of every target of the given rows, in order."""
        _, _, event, weight = self._pairs(self.in_epoch(epoch).select(rows), epoch)
        return self._items_at(event), torch.from_numpy(weight)

    def item_counts(self, num_items: int) -> Float64:
        """[num_items + 1] expected number of times that each item is a target in an epoch."""
        if self.within_horizon is not None:
            return self.within_horizon.item_counts(self.windows, self._input_ends(self.windows), num_items)
        row, event = replace(self.windows, starts=self._second(self.windows)).gather()
        bears = self.event_weight[event] > 0
        row, event = row[bears], event[bears]
        share = np.ones(len(row))
        if self.targets == "last":
            share[:-1] = row[:-1] < row[1:]
        elif self.targets == "random":
            share /= np.bincount(row)[row]
        counts = np.bincount(self.windows.item_index[event], weights=share, minlength=num_items + 1)
        return counts.astype(np.float64, copy=False)

    def batch(self, rows: NDArray[np.int64], epoch: int) -> Batch:
        """Inputs and targets of the given rows."""
        parts = [self._one_window(window_rows, epoch) for window_rows in self._packed(rows, epoch)]
        windows = tuple(part.windows[0] for part in parts)
        before = np.cumsum([0, *(window.item_index.numel() for window in windows)]).tolist()
        states = np.cumsum([0, *(len(part.position) for part in parts)]).tolist()
        state = [
            part.state + number for part, number in zip(parts, states, strict=False) if part.state is not None
        ]
        return Batch(
            windows,
            torch.cat([part.position + cells for part, cells in zip(parts, before, strict=False)]),
            torch.cat([part.target for part in parts]),
            torch.cat([part.weight for part in parts]),
            torch.cat(state) if state else None,
            _joined([part.contrasts for part in parts], before),
        )

    def _packed(self, rows: NDArray[np.int64], epoch: int) -> list[NDArray[np.int64]]:
        """Rows of each window, longest first, as many as the budget allows, in few different numbers."""
        if self.one_window:
            return [rows]
        lengths = self.inputs(epoch).lengths[rows]
        order = np.argsort(-lengths, kind="stable")
        budget, parts, start = max(self.window_tokens, lengths.sum() / WINDOWS), [], 0
        while start < len(order):
            columns = self._columns(int(lengths[order[start]]))
            end = start + rounded_up(max(1, round(budget / columns)))
            parts.append(rows[order[start:end]])
            start = end
        return parts

    def _one_window(self, rows: NDArray[np.int64], epoch: int) -> Batch:
        """Inputs and targets of rows that become one window."""
        histories = self.in_epoch(epoch).select(rows)
        inputs = self._inputs(histories)
        if self.with_time:
            inputs = replace(inputs, request_time=histories.time[inputs.ends])
        shape = rounded_up(len(rows), 3 if self.few_shapes else 5), self._columns(int(inputs.lengths.max()))
        window = pad(inputs, shape, with_time=self.with_time, with_value=self.with_value)
        row, last, event, weight = self._pairs(histories, epoch)
        position, state = row * shape[1] + last - inputs.starts[row], None
        if self.within_horizon is not None and window.request_time is not None:
            night = self.within_horizon.nights(last)
            window.request_time.view(-1)[torch.from_numpy(position)] = torch.from_numpy(night)
        if self.shares_states:
            is_new = np.ones(len(position), bool)
            is_new[1:] = np.diff(position) > 0
            position, state = position[is_new], torch.from_numpy(np.cumsum(is_new) - 1)
        targets = self._items_at(event), torch.from_numpy(weight)
        contrasts = self._contrasts(histories, inputs, shape[1])
        return Batch((window,), torch.from_numpy(position), *targets, state, contrasts)

    def _contrasts(self, histories: Histories, inputs: Histories, columns: int) -> Contrasts | None:
        """Dislikes of rows that become one window of `columns`."""
        if self.dislikes is None:
            return None
        row, event = replace(histories, starts=self._second(histories)).gather()
        following = np.searchsorted(self._bearing, self._bearing[event] + 1) - 1
        weight = self.dislikes[histories.event_type[event]] * (histories.item_index[event] > 0)
        chosen = (weight > 0) & (following < histories.ends[row])
        row, event, following = row[chosen], event[chosen], following[chosen]
        position = row * columns + self.visits.first(event) - 1 - inputs.starts[row]
        items = self._items_at(following), self._items_at(event)
        return Contrasts(torch.from_numpy(position), *items, torch.from_numpy(weight[chosen]))

    def _columns(self, longest: int) -> int:
        return min(rounded_up(longest, 2 if self.few_shapes else 4), self.max_length)

    def _pairs(self, histories: Histories, epoch: int) -> tuple[Int64, Int64, Int64, Float32]:
        """Targets of rows of an epoch: row, last event of the history, event and weight, by row and last event."""
        if self.within_horizon is not None:
            return self.within_horizon.pairs(histories, self._input_ends(histories), epoch)
        row, event = replace(histories, starts=self._second(histories)).gather()
        bears = self.event_weight[event] > 0 if self.targets == "all" else event == histories.ends[row] - 1
        row, event = row[bears], event[bears]
        return row, self.visits.first(event) - 1, event, self.event_weight[event]

    def _items_at(self, event: Int64) -> Tensor:
        return torch.from_numpy(self.windows.item_index[event].astype(np.int64))

    def _num_targets(self, windows: Histories) -> Int64:
        """[rows] events after the first visit that bear loss; within a horizon, states with such an event."""
        if self.within_horizon is not None:
            row, state, end = self.within_horizon.states(windows, self._input_ends(windows))
            has_target = self._bearing[end] > self._bearing[state + 1]
            return np.bincount(row[has_target], minlength=len(windows))
        counts: Int64 = self._bearing[windows.ends] - self._bearing[self._second(windows)]
        return counts

    def _up_to_one_target(self, epoch: int) -> Histories:
        """Rows cut after one of their targets: the last, or one drawn for the epoch."""
        counts, first = self._num_targets(self.windows), self._bearing[self._second(self.windows)]
        chosen = counts - 1
        if self.targets == "random":
            chosen = np.random.default_rng((self.seed, epoch, 1)).integers(0, counts)
        return self._cut(replace(self.windows, ends=np.searchsorted(self._bearing, first + chosen + 1)))

    def _cut(self, windows: Histories) -> Histories:
        """Rows without the events before their `max_length` inputs."""
        return replace(
            windows, starts=np.maximum(windows.starts, self._input_ends(windows) - self.max_length)
        )

    def _inputs(self, windows: Histories) -> Histories:
        return replace(windows, ends=self._input_ends(windows))

    def _input_ends(self, windows: Histories) -> Int64:
        """[rows] first event of the last event's visit."""
        return np.clip(self.visits.first(windows.ends - 1), windows.starts, windows.ends)

    def _second(self, windows: Histories) -> Int64:
        """[rows] first event of the second visit, which is the first target."""
        return np.minimum(self.visits.following(windows.starts), windows.ends)

    _drawn: Histories
    _drawn_for = -1
