"""Facts of a training that later stages read: training.json of a train artifact."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from models.baselines.base import FittedOn
from models.training.result import FitResult
from pipeline.artifacts.files import read_json

TRAINING = "training.json"


@dataclass(frozen=True)
class TrainingFacts:
    """Facts of the training whose epoch validation chose."""

    best_epoch: int
    best_step: int
    """Optimiser steps up to the end of the best epoch."""
    epochs: int
    best: dict[str, float]
    """The best epoch's row of the training history."""
    resolved: dict[str, Any]
    """Values chosen for `auto`, and sizes that follow from the data (`FitResult.resolved`)."""
    refit_validation_steps: int | None = None
    """Steps of the refit on training and validation; None without one."""
    fitted_on: FittedOn | None = None
    """Events that the evaluated weights learned from."""

    @classmethod
    def of(cls, result: FitResult) -> "TrainingFacts":
        """Facts of a training result."""
        best = max(result.history, key=lambda record: record.epoch == result.best_epoch)
        return cls(result.best_epoch, result.best_step, len(result.history), best.row(), result.resolved)

    def save(self, folder: Path) -> None:
        """Write training.json: one flat table of the resolved values and the other facts, absent ones left out."""
        facts = {key: value for key, value in asdict(self).items() if value is not None}
        resolved = facts.pop("resolved")
        (folder / TRAINING).write_text(json.dumps(facts | resolved, indent=2), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "TrainingFacts":
        """Read training.json of a train artifact."""
        resolved = read_json(folder / TRAINING)
        names = {field.name for field in fields(cls)} & resolved.keys()
        facts = {name: resolved.pop(name) for name in names}
        if "fitted_on" in facts:
            facts["fitted_on"] = FittedOn(**facts["fitted_on"])
        return cls(resolved=resolved, **facts)
