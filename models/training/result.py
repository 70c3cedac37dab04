"""Training results: epoch records, the trained encoder, and initial weights for another training."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from models.encoder.encoder import Encoder
from models.histories import Int16, Int32, Int64


class NotFinite(ValueError):
    """Loss, gradient or weights that are not finite; `rows` are the training histories of the last step."""

    def __init__(self, message: str, rows: Int64) -> None:
        super().__init__(message)
        self.rows = rows


@dataclass(frozen=True)
class EpochRecord:
    """Measurements of one epoch, or of its part within `max_steps`."""

    epoch: int
    """Epoch number, from 1."""
    steps: int
    """Optimiser steps so far, over all epochs."""
    loss: float
    """Weighted mean loss of the epoch's targets, in nats."""
    seconds: float
    """Wall time of the optimiser steps, without validation and compilation."""
    targets: int
    targets_per_second: float
    grad_norm: float
    """Mean over steps of the gradient's Euclidean norm before clipping."""
    learning_rate: float
    """Learning rate of the epoch's last step."""
    peak_bytes: int
    """Peak memory so far, as in `models.device.peak_bytes`."""
    validation: dict[str, float]
    """`validation_ndcg@10`, `validation_hit_rate@10`, `validation_seconds`; empty without validation."""

    def row(self) -> dict[str, float]:
        """Record as one flat row."""
        return {**{key: value for key, value in vars(self).items() if key != "validation"}, **self.validation}


@dataclass(frozen=True)
class FitResult:
    """Trained encoder, its best epoch and the history of its training."""

    model: Encoder
    """In evaluation mode, with the weights of `best_epoch`."""
    best_epoch: int
    """Epoch of the highest validation NDCG@10; the last epoch without validation."""
    best_step: int
    """Optimiser steps up to the end of the best epoch."""
    history: list[EpochRecord]
    resolved: dict[str, Any]
    """Values of `auto` settings, and sizes of data and model."""


@dataclass(frozen=True)
class Initial:
    """Starting weights: a trained encoder, possibly with other numberings of items and event types."""

    encoder: Encoder
    item: Int32
    """[num_items + 1] index in `encoder` of each item; 0: unknown there, its vector starts fresh."""
    event_type: Int16 | None = None
    """[num_event_types + 1] index in `encoder` of each event type; 0 as for items; None: the same types."""

    @torch.no_grad()
    def copy_into(self, model: Encoder) -> None:
        """Copy the weights into a fresh encoder of equal settings, vectors of items and event types by their numbers."""
        trained = dict(self.encoder.named_parameters())
        numbers: dict[str, Int32 | Int16] = {"items.ids.weight": self.item}
        if self.event_type is not None:
            numbers["events.types.weight"] = self.event_type
        for name, weight in model.named_parameters():
            if name not in numbers:
                weight.copy_(trained[name])
            elif name in trained:
                known = torch.from_numpy(np.flatnonzero(numbers[name]))
                former = torch.from_numpy(numbers[name]).long()[known]
                weight[known] = trained[name].cpu()[former]
