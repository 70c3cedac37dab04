"""Stage train: histories -> the encoder's weights, chosen on validation; resumable at any moment."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl

from features.histories.numbering import ItemNumbering
from models import checkpoint
from models.baselines.base import FittedOn
from models.device import fall_back
from models.encoder.encoder import Encoder
from models.training import distributed
from pipeline.errors import LookbackError
from pipeline.modelling.trainer import SELECTION, Trained, weight_of
from pipeline.modelling.training_facts import TRAINING, TrainingFacts
from pipeline.orchestration.context import Context
from pipeline.release import published_baseline
from pipeline.serving.start_version import StartVersion
from pipeline.tracking.registry import ModelSource

_RESOLVED = ("device", "precision", "compile", "item_optimizer", "processes", "threads", "parameters")
"""Keys of `FitResult.resolved` in the manifest."""


def build(ctx: Context) -> None:
    """Write model.safetensors, config.json, items.npy (the model's own numbering), history.parquet, training.json.

    With `train.refit_validation`, selection/ holds the first three of the encoder before its refit.
    """
    if (message := fall_back()) and not distributed.rank():
        print(f"train: {message}", file=sys.stderr, flush=True)
    if (caution := _unread_dislikes(ctx)) and not distributed.rank():
        print(f"train: {caution}", file=sys.stderr, flush=True)
    if ctx.start is not None:
        _update(ctx, ctx.start)
        return
    trained = ctx.trainer().fit_split()
    if distributed.rank():
        return
    _save(ctx.folder, trained.result.model, trained.numbering)
    if ctx.config.train.refit_validation:
        (ctx.folder / SELECTION).mkdir(exist_ok=True)
        _save(ctx.folder / SELECTION, trained.selection.model, trained.selection_numbering)
    _report(ctx, trained)


def _unread_dislikes(ctx: Context) -> str:
    """Caution where the settings make less of the log's dislikes than could be; empty without any."""
    if ctx.dataset.histories.dislikes is None:
        return ""
    if not ctx.config.model.event_type:
        return (
            "the log has dislikes, but model.event_type is false: the model reads them like any other event"
        )
    unlearned = {
        "train.targets": ctx.config.train.targets != "all",
        "model.readout": ctx.config.model.readout == "target",
    }
    if keys := " and ".join(key for key, is_so in unlearned.items() if is_so):
        return f"the log has dislikes: with this {keys} they are read, but are no extra negatives"
    return ""


def _update(ctx: Context, source: ModelSource) -> None:
    """Train the weights of a registered version on the events since; write the files of `build` without selection/.

    Raises LookbackError where no event is newer than the version.
    """
    config, dataset = ctx.config, ctx.dataset
    start = StartVersion.open(config, source, dataset, ctx.inputs["ingest"])
    if not start.num_new:
        raise LookbackError(
            f"train.start: {start.nothing_new}; bring newer events (events.path) and run again"
        )
    numbering = start.numbering(published_baseline.often_enough(config, dataset))
    trainer = ctx.trainer()
    weights = trainer.event_weights(dataset, start.known.ends)
    known = replace(start.known, user=None, weight=weight_of(weights))
    initial = start.initial(numbering)
    result = trainer.update(known, numbering, initial, start.content(numbering), start.bundle.newest)
    if distributed.rank():
        return
    _save(ctx.folder, result.model, numbering)
    pl.DataFrame([record.row() for record in result.history]).write_parquet(ctx.folder / "history.parquet")
    facts = replace(TrainingFacts.of(result), fitted_on=FittedOn.of(start.known))
    facts.save(ctx.folder)
    ctx.manifest.update(
        rows_in=start.num_new,
        rows_out=facts.resolved["targets_per_epoch"],
        start=source.uri,
        best_step=facts.best_step,
        fresh_items=int((initial.item[1:] == 0).sum()),
        resolved={key: facts.resolved[key] for key in _RESOLVED},
    )
    ctx.track.params(config.model_dump(mode="json") | {"resolved": ctx.manifest["resolved"]})
    ctx.track.model = f"{config.model.block}-{config.model.num_blocks}x{config.model.dim}"
    ctx.track.artifact("history.parquet")
    ctx.track.artifact(TRAINING)
    ctx.summary(
        f"{source.uri} trained on {start.num_new:,} events since {start.boundary} in {facts.best_step} steps"
    )


def _save(folder: Path, encoder: Encoder, numbering: ItemNumbering) -> None:
    checkpoint.save_model(encoder, folder)
    numbering.save(folder / "items.npy")


def _report(ctx: Context, trained: Trained) -> None:
    """Write history.parquet and training.json; counts in the manifest, settings and metrics to track, one line."""
    config, features, split = ctx.config, ctx.dataset.folder, ctx.dataset.split
    pl.DataFrame([record.row() for record in trained.selection.history]).write_parquet(
        ctx.folder / "history.parquet"
    )
    facts = replace(
        TrainingFacts.of(trained.selection),
        refit_validation_steps=trained.result.best_step if config.train.refit_validation else None,
        fitted_on=FittedOn.of(trained.histories),
    )
    facts.save(ctx.folder)
    best = facts.best["validation_ndcg@10"]
    num_events = {
        "training": int(trained.histories.lengths.sum()),
        "validation": int((np.asarray(split.validation_end) - np.asarray(split.train_end)).sum()),
    }
    ctx.manifest.update(
        rows_in=num_events["training"],
        rows_out=facts.resolved["targets_per_epoch"],
        best_epoch=facts.best_epoch,
        best_step=facts.best_step,
        resolved={key: facts.resolved[key] for key in _RESOLVED},
        **{"validation_ndcg@10": best},
    )
    weighted = ""
    if trained.event_weights is not None:
        ctx.manifest["exposure_weighting"] = trained.event_weights.facts()
        weighted = f"; {trained.event_weights.sentence()}"
    ctx.track.params(config.model_dump(mode="json") | {"resolved": ctx.manifest["resolved"]})
    ctx.track.metric("best_epoch", facts.best_epoch)
    ctx.track.metric("best_validation_ndcg@10", best)
    for part, number in num_events.items():
        ctx.track.dataset(config.name, features.name, part, str(features), number)
    ctx.track.model = f"{config.model.block}-{config.model.num_blocks}x{config.model.dim}"
    ctx.track.artifact("history.parquet")
    ctx.track.artifact(TRAINING)
    steps = facts.refit_validation_steps
    refit = f", then {steps} steps with validation" if steps is not None else ""
    ctx.summary(
        f"validation NDCG@10 {best:.4f} at epoch {facts.best_epoch} of {facts.epochs}{refit}{weighted}"
    )
