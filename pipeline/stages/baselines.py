"""Stage baselines: recommenders tuned on validation, fitted on the model's training events, ranking its test targets.

They depend on the log and the split alone, so that all models of a split are compared with the same baselines.
"""

import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from features.histories.leaks import check_fitted
from features.histories.numbering import ItemNumbering
from models.baselines.base import Baseline, FittedOn
from models.baselines.ease import EASE
from models.baselines.popularity import Popularity
from models.encoder.encoder import AttentionRecommender
from models.evaluation import metrics
from models.evaluation.ranks import ColdStart, SystemRanks, rank_targets
from models.histories import Float32, Histories, Int32
from models.recommender import Recommender
from models.settings.encoder import EncoderSettings
from models.settings.training import TrainSettings
from models.topk import recommend_in_chunks
from models.training import distributed
from pipeline.artifacts.files import read_json, write_json
from pipeline.config import Config
from pipeline.dataset.item_features import known_by_content
from pipeline.dataset.targets import RankedTargets, targets_of
from pipeline.errors import LookbackError
from pipeline.evaluation.ranking import Part, rank_all
from pipeline.modelling.recommenders import BUILT_IN, kind_of
from pipeline.modelling.trainer import Trained
from pipeline.orchestration.context import Context

VALIDATION_K = 10
GRU = "gru"
GRU_LEARNING_RATE = 0.002
"""AdamW learning rate of the baseline `gru`, from its results on MovieLens-1M."""
Settings = Mapping[str, float | int]


@dataclass(frozen=True)
class Tuned:
    """Settings that validation chose for a baseline."""

    settings: Settings
    """Settings of the best grid point."""
    grid: list[dict[str, Any]]
    """Grid points: settings and `ndcg@10` on the validation targets."""


def build(ctx: Context) -> None:
    """Write items.npy (the common numbering), systems/NAME.parquet (ranks of the test targets), baselines.json."""
    if distributed.rank():
        if GRU in names(ctx.config) and not _facts_file(ctx.folder, GRU).exists():
            _trained_gru(ctx)
        return
    (ctx.folder / "systems").mkdir(exist_ok=True)
    selection, _ = _part(ctx, "validation", with_validation=False)
    with_validation = ctx.config.train.refit_validation
    test, numbering = _part(ctx, "test", with_validation=with_validation)
    numbering.save(ctx.folder / "items.npy")
    systems: dict[str, Any] = {}
    seconds: dict[str, float] = {}
    reasons = {name: _not_applicable(ctx, name, test.num_items) for name in names(ctx.config)}
    not_applicable = {name: reason for name, reason in reasons.items() if reason is not None}
    for name in (name for name in reasons if name not in not_applicable):
        path = _facts_file(ctx.folder, name)
        facts = read_json(path) if path.exists() else None
        if facts is None:
            started = time.monotonic()
            if name == GRU:
                system, fitted_on, tuned = _gru(_trained_gru(ctx), numbering)
            else:
                system, fitted_on, tuned = _fitted(ctx, name, selection, test)
            events, split = ctx.dataset.histories, ctx.dataset.split
            num_events, latest = fitted_on.num_events, fitted_on.latest
            check_fitted(name, num_events, latest, events, split, with_validation=with_validation)
            ranked = rank_all(system, test, ctx.config, exclude_seen=ctx.protocol.exclude_seen)
            facts = asdict(tuned) | {"fitted_on": asdict(fitted_on)}
            seconds[name] = round(time.monotonic() - started, 3)
            _write(ctx.folder, name, ranked, facts)
        systems[name] = facts
    write_json(ctx.folder / "baselines.json", {"systems": systems, "not_applicable": not_applicable})
    _report(ctx, systems, not_applicable, len(test.targets), seconds)


def names(config: Config) -> tuple[str, ...]:
    """Configured baselines, in the order of `BASELINES`, then classes of one's own."""
    return config.evaluate.baseline_names


def _part(ctx: Context, name: str, *, with_validation: bool) -> tuple[Part, ItemNumbering]:
    """Training rows and targets of a part, and the numbering of both."""
    config, dataset = ctx.config, ctx.dataset
    training = dataset.training_rows(with_validation=with_validation)
    trained, described = dataset.occurring(training), known_by_content(config, dataset)
    numbering = ItemNumbering.of_known(trained if described is None else trained | described)
    targets = targets_of(config, dataset, name, numbering, trained=trained)
    if name == "validation":
        targets = _sample(targets.select(targets.warm), config)
    return Part(training.translate(numbering.new), targets, numbering.num_items), numbering


def _sample(targets: RankedTargets, config: Config) -> RankedTargets:
    """Sample of at most `train.validation_targets` targets, fixed by the seed."""
    most = config.train.validation_targets
    if len(targets) <= most:
        return targets
    chosen = np.zeros(len(targets), bool)
    chosen[np.random.default_rng(config.seed).choice(len(targets), most, replace=False)] = True
    return targets.select(chosen)


def _not_applicable(ctx: Context, name: str, num_items: int) -> str | None:
    """Reason why a baseline does not apply to this log, or None.

    Raises LookbackError where EASE is configured by name for too large a catalogue.
    """
    reason, config = None, ctx.config
    if name != GRU and kind_of(name).needs_seen and ctx.protocol.exclude_seen:
        reason = "items already seen are not recommended"
    if name == "recent_popularity" and config.events.timestamp_unit == "position":
        reason = "the log has no times, only each user's order"
    if name == "ease":
        reason = EASE.refusal(num_items)
    if reason is not None and name == "ease" and name in config.evaluate.baselines:
        raise LookbackError(f"evaluate.baselines: {reason}")
    return reason


def _fitted(ctx: Context, name: str, selection: Part, test: Part) -> tuple[Recommender, FittedOn, Tuned]:
    """Tuned baseline, fitted on the evaluated model's training events."""
    fit, grid = _candidates(ctx.config, name)
    tuned = _tune(fit, grid, selection, exclude_seen=ctx.protocol.exclude_seen)
    system = fit(test.training, test.num_items, tuned.settings)
    return system, system.fitted_on, tuned


Fit = Callable[[Histories, int, Settings], Baseline]


def _candidates(config: Config, name: str) -> tuple[Fit, tuple[Settings, ...]]:
    """Fitting function of a baseline, and its grid of settings."""
    kind = kind_of(name)
    grid, fixed = kind.grid, {}
    if name == "recent_popularity":
        days = config.evaluate.recent_days
        grid = tuple({"days": number} for number in (days if isinstance(days, list) else [days]))
    if name == "als":
        fixed = {"seed": config.seed}
    if name in BUILT_IN and kind.needs_seen and config.events.timestamp_unit != "position":
        fixed = {"session": round(config.history.session_minutes * 60_000_000)}
    return lambda histories, num_items, point: kind.fit(histories, num_items, {**point, **fixed}), grid


def _tune(fit: Fit, grid: tuple[Settings, ...], selection: Part, *, exclude_seen: bool) -> Tuned:
    """Grid point with the highest NDCG@10 on the validation targets, the first of ties."""
    if len(grid) == 1 or not len(selection.targets):
        return Tuned(dict(grid[0]), [dict(grid[0])])
    points = []
    for point in grid:
        system = fit(selection.training, selection.num_items, point)
        ranked = rank_targets(
            system, selection.targets.histories, selection.targets.item, 1, exclude_seen=exclude_seen
        )
        points.append(dict(point) | {"ndcg@10": float(metrics.ndcg(ranked.rank, VALIDATION_K).mean())})
    best = max(range(len(grid)), key=lambda index: points[index]["ndcg@10"])
    return Tuned(dict(grid[best]), points)


class Renumbered:
    """Recommender in a numbering of more items than it knows; unknown items score -inf.

    numbers: [num_items + 1], item -> the recommender's, 0 where unknown.
    """

    def __init__(self, system: Recommender, numbers: Int32) -> None:
        self._system, self._numbers = system, numbers
        self.num_items = len(numbers) - 1

    def score_items(self, histories: Histories) -> Float32:
        """Scores from the known part of each history: [rows, num_items + 1]."""
        own = histories.compact().translate(self._numbers)
        scores = self._system.score_items(own)[:, self._numbers]
        scores[:, self._numbers == 0] = -np.inf
        return scores

    def recommend(self, histories: Histories, k: int, exclude_seen: bool = True) -> tuple[Int32, Float32]:
        """Top k items of each row and their scores (see `Recommender`)."""
        return recommend_in_chunks(self.score_items, self.num_items, histories, k, exclude_seen)


def _trained_gru(ctx: Context) -> Trained:
    """Train GRU4Rec with the full softmax: one GRU layer, epoch chosen on validation."""
    settings = ctx.config.evaluate
    encoder = EncoderSettings(block="gru", dim=settings.gru_dim, num_blocks=1)
    train = replace(
        TrainSettings(),
        learning_rate=GRU_LEARNING_RATE,
        epochs=settings.gru_epochs,
        patience=settings.gru_patience,
        batch_histories=ctx.config.train.batch_histories,
        validation_targets=ctx.config.train.validation_targets,
        refit_validation=ctx.config.train.refit_validation,
    )
    return ctx.trainer(encoder=encoder, train=train).fit_split(GRU)


def _gru(trained: Trained, numbering: ItemNumbering) -> tuple[Recommender, FittedOn, Tuned]:
    """Trained GRU in the common `numbering`, without items known by content alone, as it reads no content."""
    grid = [
        {"epoch": record.epoch, "ndcg@10": record.validation["validation_ndcg@10"]}
        for record in trained.selection.history
    ]
    chosen = {
        "dim": trained.result.model.settings.dim,
        "epoch": trained.selection.best_epoch,
        "steps": trained.result.best_step,
    }
    model, own = trained.result.model, trained.histories.translate(trained.numbering.new)
    system = ColdStart(AttentionRecommender(model), Popularity.fit(own, model.num_items))
    renumbered = Renumbered(system, numbering.inverse().compose(trained.numbering).new)
    return renumbered, FittedOn.of(trained.histories), Tuned(chosen, grid)


def _facts_file(folder: Path, name: str) -> Path:
    """File with the facts of a finished baseline, from which an interrupted run resumes."""
    return folder / "systems" / f"{name}.json"


def _write(folder: Path, name: str, ranked: SystemRanks, facts: dict[str, Any]) -> None:
    """Write NAME.parquet, then NAME.json, whose existence marks the first as complete."""
    table = pl.DataFrame(
        {
            "rank": ranked.rank,
            "pessimistic_rank": ranked.pessimistic,
            "recommended": pl.Series(ranked.lists, dtype=pl.Array(pl.Int32, ranked.lists.shape[1])),
        }
    )
    path = folder / "systems" / f"{name}.parquet"
    aside = path.with_suffix(".part")
    table.write_parquet(aside)
    aside.replace(path)
    write_json(path.with_suffix(".json"), facts)


def _report(
    ctx: Context, systems: dict[str, Any], absent: dict[str, str], num_targets: int, seconds: dict[str, float]
) -> None:
    """Counts in the manifest, settings and validation metrics to track, one line."""
    ctx.manifest.update(rows_in=num_targets, rows_out=num_targets * len(systems))
    ctx.manifest["seconds_of_systems"] = seconds
    for name, value in seconds.items():
        ctx.track.metric(f"{name}/seconds", value)
    for name, facts in systems.items():
        ctx.track.param(f"baseline.{name}", json.dumps(facts["settings"]))
        for step, point in enumerate(facts["grid"] if name != GRU else []):
            if "ndcg@10" in point:
                ctx.track.metric(f"{name}/validation_ndcg@10", point["ndcg@10"], step)
    ctx.track.artifact("baselines.json")
    shutil.rmtree(ctx.folder / "checkpoints", ignore_errors=True)
    reasons = "".join(f"; no {name}: {reason}" for name, reason in absent.items())
    ctx.summary(f"{', '.join(systems) or 'none'} on {num_targets:,} targets{reasons}")
