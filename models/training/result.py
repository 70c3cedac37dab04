"""Training results: epoch records, the trained encoder, and initial weights for another training."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from models.encoder.encoder import Encoder
from models.histories import Int32, Int64


class NotFinite(ValueError):
    """A training's numbers that are not finite, and `rows` of the histories given to it that its last step learned from."""

    def __init__(self, message: str, rows: Int64) -> None:
        super().__init__(message)
        self.rows = rows


@dataclass(frozen=True)
class EpochRecord:
    """One pass over the training histories, or the part of it that `max_steps` left."""

    epoch: int
    """From 1."""
    steps: int
    """Optimiser steps so far, over all epochs."""
    loss: float
    """Weighted mean over the epoch's targets, in nats."""
    seconds: float
    """Wall time of the optimiser steps, without validation and compilation."""
    targets: int
    """Targets that bear loss."""
    targets_per_second: float
    grad_norm: float
    """Mean over steps of the gradient's Euclidean norm before it is clipped."""
    learning_rate: float
    """That of the epoch's last step."""
    peak_bytes: int
    """The largest memory so far: of the allocator on CUDA, elsewhere resident in this process."""
    validation: dict[str, float]
    """`validation_ndcg@10`, `validation_hit_rate@10`, `validation_seconds`; empty without validation."""

    def row(self) -> dict[str, float]:
        """The record as one flat row."""
        flat = asdict(self)
        return {**{key: value for key, value in flat.items() if key != "validation"}, **self.validation}


@dataclass(frozen=True)
class FitResult:
    """Trained encoder, its best epoch and the history of its training."""

    model: Encoder
    """In evaluation mode, with the weights of `best_epoch`."""
    best_epoch: int
    """The epoch whose validation NDCG@10 was highest; the last one without validation."""
    best_step: int
    """Optimiser steps up to the end of that epoch."""
    history: list[EpochRecord]
    resolved: dict[str, Any]
    """Values chosen for `auto`, and sizes that follow from the data."""


@dataclass(frozen=True)
class Initial:
    """A trained encoder to go on from; it may number items otherwise."""

    encoder: Encoder
    item: Int32
    """[num_items + 1], the number in `encoder` of each item, 0 where it knows none: that one starts fresh."""

    @torch.no_grad()
    def copy_into(self, model: Encoder) -> None:
        """Copy the weights into a fresh encoder of the same settings, item vectors by `item`."""
        trained = dict(self.encoder.named_parameters())
        table = model.items.ids.weight if model.items.ids is not None else None
        known = torch.from_numpy(np.flatnonzero(self.item))
        former = torch.from_numpy(self.item).long()[known]
        for name, weight in model.named_parameters():
            if weight is table:
                weight[known] = trained[name].cpu()[former]
            else:
                weight.copy_(trained[name])
