"""Stage train: histories -> the encoder's weights, chosen on validation; resumable at any moment."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from features.histories.numbering import ItemNumbering
from models import checkpoint
from models.baselines.base import FittedOn
from models.encoder.encoder import Encoder
from models.histories import Histories
from models.training import distributed
from pipeline.modelling.trainer import SELECTION, _facts
from pipeline.orchestration.context import Context

_RESOLVED = ("device", "precision", "compile", "item_optimizer", "processes", "threads", "parameters")
"""What of `FitResult.resolved` the manifest shows."""


def build(ctx: Context) -> None:
    """Write model.safetensors, config.json, items.npy (the model's own numbering), history.parquet, training.json.

    Where validation is learned from in the end, selection/ has the first three as they were before.
    """
    split = ctx.dataset.split
    trained = ctx.trainer().fit_split()
    if distributed.rank():
        return
    facts = _facts(trained.selection)
    if ctx.config.train.refit_validation:
        facts["refit_validation_steps"] = trained.result.best_step
    _save(ctx.folder, trained.result.model, trained.numbering)
    if ctx.config.train.refit_validation:
        (ctx.folder / SELECTION).mkdir(exist_ok=True)
        _save(ctx.folder / SELECTION, trained.selection.model, trained.selection_numbering)
    facts["fitted_on"] = asdict(FittedOn.of(trained.histories))
    num_validation_events = int((np.asarray(split.validation_end) - np.asarray(split.train_end)).sum())
    _report(ctx, ctx.dataset.folder, trained.histories, num_validation_events, facts)


def _save(folder: Path, encoder: Encoder, numbering: ItemNumbering) -> None:
    checkpoint.save_model(encoder, folder)
    numbering.save(folder / "items.npy")


def _report(
    ctx: Context, features: Path, training: Histories, num_validation_events: int, facts: dict[str, Any]
) -> None:
    history = facts.pop("history")
    pl.DataFrame(history).write_parquet(ctx.folder / "history.parquet")
    (ctx.folder / "training.json").write_text(json.dumps(facts, indent=2), encoding="utf-8")
    best = facts["best"]["validation_ndcg@10"]
    ctx.manifest.update(
        rows_in=int(training.lengths.sum()),
        rows_out=facts["targets_per_epoch"],
        best_epoch=facts["best_epoch"],
        best_step=facts["best_step"],
        resolved={key: facts[key] for key in _RESOLVED},
        **{"validation_ndcg@10": best},
    )
    ctx.track.params(ctx.config.model_dump(mode="json") | {"resolved": ctx.manifest["resolved"]})
    ctx.track.metric("best_epoch", facts["best_epoch"])
    ctx.track.metric("best_validation_ndcg@10", best)
    for part, events in (("training", int(training.lengths.sum())), ("validation", num_validation_events)):
        ctx.track.dataset(ctx.config.name, features.name, part, str(features), events)
    ctx.track.model = f"{ctx.config.model.block}-{ctx.config.model.num_blocks}x{ctx.config.model.dim}"
    ctx.track.artifact("history.parquet")
    ctx.track.artifact("training.json")
    refit = (
        f", then {facts['refit_validation_steps']} steps with validation"
        if "refit_validation_steps" in facts
        else ""
    )
    ctx.summary(f"validation NDCG@10 {best:.4f} at epoch {facts['best_epoch']} of {facts['epochs']}{refit}")
