"""Batches cut from jagged histories by a budget of tokens, with index arithmetic only.

Letters: b rows, l positions of the longest row, n targets.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.recommender import Float32, Histories, Int64
from models.shapes import Float, Int

LENGTH_STEP = 8
"""Batches are padded to a multiple of this many positions."""
POOL_BATCHES = 4
"""Batches' worth of histories that are sorted by length together: more pads less, fewer mixes better."""


@dataclass(frozen=True)
class Batch:
    """Inputs padded on the right with 0, and the next item after each position that bears loss."""

    item_index: Int[Tensor, "b l"]
    event_type: Int[Tensor, "b l"]
    position: Int[Tensor, " n"]
    """Row * l + column of the state that each target is predicted from."""
    target: Int[Tensor, " n"]
    weight: Float[Tensor, " n"]

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device."""
        moved = (part.to(device, non_blocking=True) for part in vars(self).values())
        return Batch(*moved)


def rounded_up(number: int) -> int:
    """The next number with at most five significant binary digits: at most 1/16 more.

    Kernels for bf16 products on the CPU are compiled for each new shape and kept: batches must come in few shapes.
    """
    step = 1 << max(0, number.bit_length() - 5)
    return -(-number // step) * step


def pad(
    histories: Histories, shape: tuple[int, int] | None = None
) -> tuple[Int[Tensor, "b l"], Int[Tensor, "b l"]]:
    """(item_index, event_type) of the rows, each starting in column 0 and padded with 0 on the right.

    `shape` b, l; by default as many rows as there are and as many columns as the longest has (at least 1).
    """
    rows, flat = histories.gather()
    shape = shape or (len(histories), max(1, int(histories.lengths.max(initial=0))))
    cells = rows, flat - histories.starts[rows]
    item_index, event_type = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    item_index[cells] = histories.item_index[flat]
    event_type[cells] = histories.event_type[flat]
    return torch.from_numpy(item_index), torch.from_numpy(event_type)


def cut_by_tokens(lengths: Int64, batch_tokens: int) -> list[NDArray[np.int64]]:
    """Rows in batches of similar length, shortest first, whose padded size stays within `batch_tokens`.

    A row longer than that is a batch of its own; rows of length 0 are in none.
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


class BatchPlan:
    """Which histories each optimiser step of each epoch sees: every history that bears a target, once per epoch.

    A history is its `max_length + 1` most recent events: inputs are all but the last, targets all but the first, each
    weighted by `type_weights` of its event type (default 1). A target of weight 0 or of item 0 bears no loss; a history
    without any target is left out. The budget of a step is `batch_histories` times the mean number of inputs.
    Each epoch's order follows from (seed, epoch) alone.
    """

    def __init__(
        self,
        histories: Histories,
        max_length: int,
        batch_histories: int,
        type_weights: Float32 | None,
        seed: int,
    ) -> None:
        events = np.ones(len(histories.item_index), np.float32)
        if type_weights is not None:
            events = type_weights[histories.event_type].astype(np.float32, copy=False)
        self.event_weight = np.where(histories.item_index > 0, events, np.float32(0))
        windows = histories.last(max_length + 1)
        bearing = np.concatenate(([0], np.cumsum(self.event_weight > 0)))
        targets = bearing[windows.ends] - bearing[np.minimum(windows.starts + 1, windows.ends)]
        self.windows = windows.select(targets > 0)
        self.num_targets = int(targets.sum())
        self.max_length = max_length
        self.seed = seed
        self.num_inputs = np.maximum(self.windows.lengths - 1, 0)
        self.steps_per_epoch = max(1, round(len(self.windows) / batch_histories))

    def epoch(self, epoch: int) -> list[NDArray[np.int64]]:
        """The rows of each step, in the order of the steps.

        Shuffled histories are sorted by length within pools, longest first in every other pool so that neighbours stay
        similar where pools meet, cut at equal numbers of tokens, and the cuts are shuffled.
        """
        if not self.num_targets:
            return []
        random = np.random.default_rng((self.seed, epoch))
        order = random.permutation(len(self.windows))
        pool = np.arange(len(order)) * self.steps_per_epoch // (len(order) * POOL_BATCHES)
        lengths = self.num_inputs[order]
        order = order[np.lexsort((np.where(pool % 2, -lengths, lengths), pool))]
        lengths = self.num_inputs[order]
        middle = np.cumsum(lengths) - lengths / 2
        step = (middle * (self.steps_per_epoch / lengths.sum())).astype(np.int64)
        cuts = np.split(order, np.flatnonzero(np.diff(step)) + 1)
        return [cuts[place] for place in random.permutation(len(cuts))]

    def batch(self, rows: NDArray[np.int64]) -> Batch:
        """Inputs and targets of the given rows."""
        windows = self.windows.select(rows)
        inputs = Histories(
            windows.item_index, windows.time, windows.event_type, windows.starts, windows.ends - 1
        )
        longest = -(-int(inputs.lengths.max()) // LENGTH_STEP) * LENGTH_STEP
        item_index, event_type = pad(inputs, (rounded_up(len(rows)), min(longest, self.max_length)))
        row, flat = inputs.gather()
        weight = self.event_weight[flat + 1]
        bears = weight > 0
        position = row * item_index.shape[1] + flat - inputs.starts[row]
        target = windows.item_index[flat[bears] + 1].astype(np.int64)
        return Batch(
            item_index,
            event_type,
            torch.from_numpy(position[bears]),
            torch.from_numpy(target),
            torch.from_numpy(weight[bears]),
        )

    def batches(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from step `first` on."""
        for rows in self.epoch(epoch)[first:]:
            yield self.batch(rows)
