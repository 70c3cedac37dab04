"""Training results: epoch records, the trained encoder, and initial weights for another training."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from models.encoder.encoder import Encoder
from models.histories import Int32, Int64


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
    """Starting weights: a trained encoder, possibly with another item numbering."""

    encoder: Encoder
    item: Int32
    """[num_items + 1] index in `encoder` of each item; 0: unknown there, its vector starts fresh."""

    @torch.no_grad()
    def copy_into(self, model: Encoder) -> None:
        """Copy the weights into a fresh encoder of equal settings, item vectors by `item`."""
        trained = dict(self.encoder.named_parameters())
        table = model.items.ids.weight if model.items.ids is not None else None
        known = torch.from_numpy(np.flatnonzero(self.item))
        former = torch.from_numpy(self.item).long()[known]
        for name, weight in model.named_parameters():
            if weight is table:
                weight[known] = trained[name].cpu()[former]
            else:
                weight.copy_(trained[name])
