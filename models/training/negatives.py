"""Negative sampling for an optimiser step, shared by all its targets.

Letters: n targets of a step, m negatives, c candidates. Item 0 is padding and never drawn.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.device import moved
from models.evaluation.metrics import Float64
from models.histories import Int64
from models.settings.training import TrainSettings
from models.shapes import Float, Int


@dataclass(frozen=True)
class Negatives:
    """Items drawn for a step, repeated where drawn repeatedly."""

    item_index: Int[Tensor, " m"]
    log_expected: Float[Tensor, " m"]
    """Logarithm of each item's expected number of draws in a step."""

    def to(self, device: torch.device) -> "Negatives":
        """The same items on a device."""
        return Negatives(moved(self.item_index, device), moved(self.log_expected, device))


class NegativeSampler:
    """Sampler of `settings.negatives` = m items a step, with replacement, by `settings.negative_sampling`.

    uniform: P(item) = 1 / c, in O(m).
    popularity: P(item) ~ item_counts + 1, in O(m log c) by inversion of the cumulative counts. Without the 1 an item that is no
    target in training would never be pushed below the targets, and its correction would be infinite.
    in_batch: m of the step's own targets (without replacement; all where there are fewer), so P(item) ~ item_counts.

    Draws depend on (seed, epoch, step) alone, in_batch on the targets too, so resumed and distributed trainings draw alike.
    """

    def __init__(
        self, settings: TrainSettings, item_counts: Float64 | Int64, candidates: Int64, seed: int
    ) -> None:
        """item_counts: [num_items + 1] expected targets per epoch; candidates: [c >= 1], ignored by in_batch; seed >= 0."""
        assert len(candidates), "there is no item to draw"
        self.settings, self.item_counts, self.candidates, self.seed = settings, item_counts, candidates, seed
        popularity = settings.negative_sampling == "popularity"
        self.cumulative = np.cumsum(item_counts[candidates] + 1) if popularity else None
        self.num_targets = item_counts.sum()

    def draw(self, epoch: int, step: int, target: Int[Tensor, " n"]) -> Negatives:
        """Negatives of a step, counted from 0 in its epoch; its targets and the result are on the CPU."""
        random = np.random.default_rng((self.seed, epoch, step, 1))  # (seed, epoch) alone orders the batches
        number = self.settings.negatives
        if self.settings.negative_sampling == "in_batch":
            number = min(number, len(target))
            chosen = random.choice(len(target), number, replace=False)
            item_index = target.numpy()[chosen]
            share = self.item_counts[item_index] / self.num_targets
            assert share.all(), "item_counts lacks a target"
        elif self.cumulative is not None:
            total = self.cumulative[-1]
            chosen = np.searchsorted(self.cumulative, total * random.random(number), side="right")
            item_index = self.candidates[chosen]
            share = (self.item_counts[item_index] + 1) / total
        else:
            item_index = self.candidates[random.integers(len(self.candidates), size=number)]
            share = np.full(number, 1 / len(self.candidates))
        return Negatives(
            torch.from_numpy(item_index), torch.from_numpy(np.log(number * share).astype(np.float32))
        )
