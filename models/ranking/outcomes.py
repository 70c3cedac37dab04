"""Several outcomes of a recommendation: their labels, heads of the second stage, and utility.

Letters: r rows (requests), n candidates per row, t outcomes (event types), v outcomes with a value, w inputs of a head, e events.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from models.evaluation.metrics import Float64
from models.histories import Float32, Int32, Int64
from models.settings.outcomes import Utilities
from models.shapes import Float

MIN_POSITIVES = 200
"""Candidates with an outcome, or with its value, from which on a head learns it."""
NO_TYPE = -1
"""Kind of an event without a type."""


@runtime_checkable
class Calibrator(Protocol):
    """Function from logits to probabilities of the same shape."""

    def __call__(self, scores: Float32) -> Float32:
        """Probability at each logit."""
        ...

    def as_dict(self) -> dict[str, float | list[float]]:
        """Fields as JSON types."""
        ...


@dataclass(frozen=True)
class OutcomeEvents:
    """Events of users within the horizon of their requests."""

    request: Int64
    """[e]"""
    item: Int32
    """[e], in the candidates' numbering, 0: unknown"""
    kind: Int64
    """[e], place among the outcomes, or `NO_TYPE`"""
    value: Float32
    """[e], NaN: none"""


@dataclass(frozen=True)
class OutcomeLabels:
    """Outcomes of candidates."""

    types: tuple[str, ...]
    done: Float32
    """[r, n, t], 1: the user had such an event on the candidate within the horizon, 0: not; NaN: the log does not say"""
    value: Float32
    """[r, n, t], sum of the values of those events; NaN without any, or where one has none"""

    @classmethod
    def of(cls, types: Sequence[str], items: Int32, events: OutcomeEvents) -> "OutcomeLabels":
        """Labels of candidates [r, n], padded with 0. An event without a type leaves the candidate's other outcomes unknown."""
        width = max(int(items.max(initial=0)), int(events.item.max(initial=0))) + 1
        keys = (np.arange(len(items), dtype=np.int64)[:, None] * width + items).ravel()
        order = np.argsort(keys, kind="stable")
        wanted = events.request * width + events.item
        place = np.minimum(np.searchsorted(keys, wanted, sorter=order), max(len(keys) - 1, 0))
        known = np.flatnonzero((events.item > 0) & (keys[order[place]] == wanted)) if len(keys) else place[:0]
        cell, kind, value = order[place[known]], events.kind[known], events.value[known]
        is_typed = kind != NO_TYPE
        done, values = (np.zeros((len(keys), len(types)), np.float32) for _ in range(2))
        done[cell[~is_typed]] = np.nan
        done[cell[is_typed], kind[is_typed]] = 1
        np.add.at(values, (cell[is_typed], kind[is_typed]), value[is_typed])
        values[done != 1] = np.nan
        shape = (*items.shape, len(types))
        return cls(tuple(types), done.reshape(shape), values.reshape(shape))

    @property
    def num_positives(self) -> dict[str, int]:
        """Candidates with each outcome."""
        return dict(zip(self.types, (self.done == 1).sum((0, 1)).tolist(), strict=True))

    @property
    def num_values(self) -> dict[str, int]:
        """Candidates with a value of each outcome."""
        return dict(zip(self.types, np.isfinite(self.value).sum((0, 1)).tolist(), strict=True))

    def select(self, rows: NDArray[np.bool_] | Int64) -> "OutcomeLabels":
        """Keep the given rows."""
        return OutcomeLabels(self.types, self.done[rows], self.value[rows])

    def of_types(self, types: Sequence[str]) -> "OutcomeLabels":
        """Keep the given outcomes."""
        places = [self.types.index(name) for name in types]
        return OutcomeLabels(tuple(types), self.done[..., places], self.value[..., places])


class OutcomeHeads(nn.Module):
    """`P(outcome | candidate, history)` and `E[value | outcome]`, linear in a bottom shared with the ranking score.

    Probabilities are sigmoids of logits, calibrated afterwards; values are standardised, and kept within those seen in training.
    """

    value_mean: Tensor
    value_scale: Tensor
    value_bounds: Tensor

    def __init__(
        self,
        types: Sequence[str],
        valued: Sequence[str],
        width: int,
        calibrations: tuple[Calibrator, ...] = (),
    ) -> None:
        """valued: those of the types with a head for their value; calibrations: from logit to probability, of each type."""
        super().__init__()
        self.types, self.valued = tuple(types), tuple(valued)
        self.places = [self.types.index(name) for name in valued]
        self.calibrations = calibrations
        self.weight = nn.Parameter(torch.zeros(len(types) + len(valued), width))
        self.bias = nn.Parameter(torch.zeros(len(types) + len(valued)))
        self.log_variance = nn.Parameter(torch.zeros(1 + len(types) + len(valued)))
        """Of the ranking loss, the probabilities and the values"""
        self.register_buffer("value_mean", torch.zeros(len(valued)))
        self.register_buffer("value_scale", torch.ones(len(valued)))
        self.register_buffer("value_bounds", torch.zeros(2, len(valued)))

    def forward(
        self, inputs: Float[Tensor, "r n w"]
    ) -> tuple[Float[Tensor, "r n t"], Float[Tensor, "r n v"]]:
        """Logits and standardised values."""
        found = functional.linear(inputs, self.weight, self.bias)
        return found[..., : len(self.types)], found[..., len(self.types) :]

    @torch.no_grad()
    def start(self, labels: OutcomeLabels | None) -> None:
        """Begin with base rates and mean values, those of the given lists."""
        assert labels is not None
        known = torch.from_numpy(labels.done)
        rate = known.nan_to_num().sum((0, 1)) / known.isfinite().sum((0, 1)).clamp_min(1)
        self.bias[: len(self.types)] = rate.clamp(1e-6, 1 - 1e-6).logit().to(self.bias)
        for place, column in enumerate(self.places):
            values = torch.from_numpy(labels.value[..., column])
            values = values[values.isfinite()]
            if len(values):
                self.value_mean[place] = values.mean()
                self.value_scale[place] = values.std(correction=0).clamp_min(1e-6)
                self.value_bounds[:, place] = torch.stack([values.min(), values.max()])

    def amounts(self, values: Float[Tensor, "r n v"]) -> Float[Tensor, "r n t"]:
        """Values in the log's unit; NaN for outcomes without a head for theirs."""
        scaled = (values * self.value_scale + self.value_mean).clamp(*self.value_bounds)
        amounts = scaled.new_full((*values.shape[:2], len(self.types)), torch.nan)
        amounts[..., self.places] = scaled
        return amounts

    def loss(
        self,
        ranking: Float[Tensor, ""],
        logits: Float[Tensor, "r n t"],
        values: Float[Tensor, "r n v"],
        done: Float[Tensor, "r n t"],
        value: Float[Tensor, "r n t"],
        weight: Float[Tensor, "r n"],
    ) -> Float[Tensor, ""]:
        """Sum over tasks of `exp(-s) L + s / 2`, s the logarithm of the task's variance; half of L for squared errors.

        L of an outcome is the mean binary cross-entropy over the candidates of which the log says it; L of a value the mean
        squared error over its events. `weight` of candidates, 0 for padding. Source: Kendall, Gal & Cipolla 2018, 3.2.
        """
        known = done.isfinite() * weight.unsqueeze(-1)
        entropy = functional.binary_cross_entropy_with_logits(logits, done.nan_to_num(), reduction="none")
        wanted = (value[..., self.places] - self.value_mean) / self.value_scale
        error = (values - wanted.nan_to_num()).square()  # a NaN times a weight of 0 would be one
        weighed = wanted.isfinite() * weight.unsqueeze(-1)
        losses = torch.cat([ranking.view(1), _mean(entropy, known), _mean(error, weighed) / 2])
        return (losses * (-self.log_variance).exp() + self.log_variance / 2).sum()


def _mean(losses: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean over rows and candidates, 0 without any weight."""
    total: Tensor = (losses * weights).sum((0, 1)) / weights.sum((0, 1)).clamp_min(1e-6)
    return total


@dataclass(frozen=True)
class Utility:
    """Utility of a recommendation: the sum over outcomes of a worth, or of the value of the outcome's events."""

    worth: Float64
    """[t], NaN: the value"""
    orders: bool = False
    """Whether lists are ordered by it, instead of by the ranker's score"""

    @classmethod
    def of(cls, utilities: Utilities, types: Sequence[str], *, orders: bool = False) -> "Utility":
        """Utilities of some outcomes; 0 for those without one."""
        worth = [utilities.get(name, 0.0) for name in types]
        return cls(np.array([np.nan if own == "value" else own for own in worth], np.float64), orders)

    def __call__(self, probability: Float32, value: Float32) -> Float32:
        """[...], expected utility, of probabilities and values [..., t]; realised, of outcomes 0 or 1 and their values.

        A missing value or an unknown outcome counts 0.
        """
        worth = np.where(np.isnan(self.worth), value, self.worth)
        return np.asarray(np.nansum(probability * worth, -1), np.float32)
