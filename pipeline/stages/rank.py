"""Stage rank: the second stage, trained on candidates and shown items for validation targets unseen by the retriever."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch.nn import functional

from features.histories.numbering import ItemNumbering
from models import checkpoint
from models.device import pick_device
from models.encoder.encoder import AttentionRecommender, Encoder
from models.histories import Int32
from models.ranking.calibration import calibrate
from models.ranking.column_choice import choose_columns, given_columns
from models.ranking.features import DISLIKE_FEATURES, FEATURES
from models.ranking.outcomes import MIN_POSITIVES, OutcomeLabels
from models.ranking.partial_dependence import by_times_shown
from models.ranking.predictions import calibrate_outcomes
from models.ranking.ranker import Ranker, SecondStage
from models.ranking.shown import SHOWN_FEATURES
from models.ranking.shown_lists import MAX_SHOWN
from models.ranking.training import RankerEpoch, RankerFit, Retrieved, fit_ranker, ndcg_of
from models.ranking.two_stage import Candidates, TwoStage
from pipeline.artifacts.files import write_json
from pipeline.dataset.dataset import rows
from pipeline.dataset.evaluation_targets import targets_of
from pipeline.dataset.exposed_requests import shown_after
from pipeline.dataset.outcome_events import outcome_events
from pipeline.dataset.targets import RankedTargets
from pipeline.errors import LookbackError
from pipeline.evaluation.new_items import with_described_items, with_unlearned_items
from pipeline.evaluation.segments import HISTORY_LENGTHS
from pipeline.modelling import context_counts, history_gain, ranker_columns, second_stage
from pipeline.modelling.history_gain import HistoryGain
from pipeline.modelling.ranker_columns import ColumnFigures, RankerColumns
from pipeline.modelling.trainer import selection_folder
from pipeline.orchestration.context import Context

MIN_LISTS = 100
"""Minimum number of lists with their target among the candidates; a ranker is trained on no fewer."""
MIN_USERS = 20
"""Minimum number of users: some are held out for early stopping, and their halves calibrate each other."""

MIN_SHOWN = 0.1
"""Minimum share of requests whose users were shown something before, for a ranker that reads it."""


@dataclass(frozen=True)
class _Prepared:
    stage: SecondStage
    """Not yet trained"""
    retrieved: Retrieved
    """Lists as scoring makes them, by which the ranker is calibrated and measured"""
    learned: Retrieved
    """Lists to train on: the same, or where users were shown something, of that"""
    num_shown: int
    """Lists of what users were shown"""
    numbering: ItemNumbering
    """Items of the dataset -> those of `stage`"""


def build(ctx: Context) -> None:
    """Write ranker.json; with a trained ranker also ranker.safetensors, ranker_config.json, items.npy, ranker_history.parquet,
    and columns.json where it reads columns.
    """
    settings = ctx.config.ranker
    if settings.use == "never":
        _without(ctx, "ranker.use is never: the order of retrieval stands")
        return
    folder = selection_folder(ctx.inputs["train"])
    encoder = checkpoint.load_model(folder, pick_device())
    numbering = ItemNumbering.load(folder / "items.npy")
    prepared = _prepared(ctx, encoder, numbering)
    retrieved = prepared.retrieved
    num_lists = int(retrieved.is_hit.sum())
    num_users = len(np.unique(retrieved.user[retrieved.is_active]))
    if num_lists < MIN_LISTS or num_users < MIN_USERS:
        num_active = int(retrieved.is_active.sum())
        reason = (
            f"{num_lists:,} of {num_active:,} validation targets, of {num_users:,} users, are among {settings.candidates} "
            f"candidates, expected {MIN_LISTS} at least to learn from, of {MIN_USERS} users"
        )
        if settings.use == "always":
            raise LookbackError(
                f"ranker.use: received 'always', but {reason}: raise ranker.candidates or use a longer log"
            )
        _without(ctx, f"{reason}: the order of retrieval stands")
        return
    prepared, left_out = _with_learnable(prepared)
    fitted, columns = _fitted(ctx, prepared)
    numbering.save(ctx.folder / "items.npy")
    history = pl.DataFrame([asdict(epoch) for epoch in fitted.history])
    if fitted.stage.ranker.heads is None:
        history = history.drop("outcome_gain")
    history.write_parquet(ctx.folder / "ranker_history.parquet")
    _report(ctx, fitted, prepared, num_lists, columns, left_out)
    checkpoint.save_ranker(fitted.stage.ranker, ctx.folder)


def _without(ctx: Context, reason: str) -> None:
    facts = {"trained": False, "setting": ctx.config.ranker.use, "reason": reason}
    write_json(ctx.folder / second_stage.DESCRIPTION, facts)
    ctx.summary(reason)


def _fitted(ctx: Context, prepared: _Prepared) -> tuple[RankerFit, ColumnFigures | None]:
    """Train the ranker, on the columns of `ranker.columns` too; returns the figures of their choice, None where none is set.

    Writes columns.json where columns are taken.
    """
    setting, seed = ctx.config.ranker.columns, ctx.config.seed
    stage, learned = prepared.stage, prepared.learned
    if not setting:
        return fit_ranker(stage, learned, seed, on_epoch=lambda epoch: _log_epoch(ctx, epoch)), None
    ingest, dataset = ctx.inputs["ingest"], ctx.dataset
    columns, left_out = RankerColumns.fit(ctx.config, dataset, ingest)
    ends = context_counts.training_ends(dataset, with_validation=False)

    def fit(labels: Sequence[str]) -> RankerFit:
        chosen, own = columns.select(labels), stage
        if labels:
            torch.manual_seed(seed)
            ranker = stage.ranker.reading(chosen.embeddings(len(stage.ranker.features)))
            tables = ranker_columns.tables(chosen, ingest, dataset, prepared.numbering, ends)
            own = SecondStage(ranker, stage.statistics, stage.own, tables)
        return fit_ranker(own, learned, seed, on_epoch=lambda epoch: ctx.epoch(_values(epoch), epoch.epoch))

    choose = choose_columns if setting == "auto" else given_columns
    choice = choose(fit, columns.places, learned, seed)
    for epoch in choice.fit.history[1:]:
        _log_epoch(ctx, epoch)
    if choice.taken:
        columns.select(choice.taken).save(ctx.folder)
    gain = None if choice.gain is None else asdict(choice.gain)
    figures = ColumnFigures(setting, left_out, [*choice.taken], choice.ndcg, choice.importance, gain)
    return choice.fit, figures


def _prepared(ctx: Context, encoder: Encoder, numbering: ItemNumbering) -> _Prepared:
    """Untrained ranker behind the encoder of the training part, with its lists of requests of the validation part.

    At nights new items are recommended as in scoring, and the item statistics reach up to the test, as each request reads the
    events before it alone; users who take nothing have lists too, so that probabilities are those of any list delivered.
    """
    config, dataset, protocol = ctx.config, ctx.dataset, ctx.protocol
    nightly = protocol.headline == "nightly"
    training = dataset.training_rows(with_validation=False)
    trained = dataset.occurring(training)
    recommender, learned = AttentionRecommender(encoder), numbering
    if nightly and config.score.new_items:
        recommender, numbering = with_described_items(recommender, dataset, numbering)
        numbering = with_unlearned_items(numbering, dataset)
    targets = targets_of(config, dataset, "validation", numbering, trained=trained, with_idle=nightly)
    if not nightly:
        targets = targets.select(targets.warm)
    targets = targets.of_requests(targets.histories.lengths > 0)
    active = len(np.unique(targets.request))
    most = config.ranker.max_lists / config.ranker.train_fraction * targets.num_requests / max(active, 1)
    targets = targets.sample(round(most), config.seed)
    torch.manual_seed(config.seed)
    features = FEATURES if dataset.histories.dislikes is None else (*FEATURES, *DISLIKE_FEATURES)
    shown = targets.histories.shown
    if shown is not None and (shown.lengths > 0).mean() >= MIN_SHOWN:
        features = (*features, *SHOWN_FEATURES)
    ranker = Ranker(config.ranker, _directions(encoder), encoder.num_event_types, features).to(encoder.device)
    statistics = second_stage.statistics(config, dataset, training.translate(numbering.new), numbering)
    stage = SecondStage(ranker, statistics, numbering.inverse().compose(learned).new)
    if nightly:
        histories = dataset.histories
        known = rows(histories, histories.offsets[:-1], dataset.split.validation_end)
        stage = stage.counting(known.translate(numbering.new))
    both = TwoStage(recommender, stage, exclude_seen=protocol.exclude_seen)

    def lists(further: Int32 | None = None) -> Retrieved:
        candidates = both.candidates(targets.histories, further)
        return _labelled(ctx, targets, candidates, numbering, trained)

    retrieved = lists()
    return _Prepared(stage, retrieved, *_learned(ctx, targets, retrieved, lists, numbering), numbering)


def _labelled(
    ctx: Context,
    targets: RankedTargets,
    candidates: Candidates,
    numbering: ItemNumbering,
    trained: NDArray[np.bool_],
) -> Retrieved:
    """Candidates of requests with what the user took, did and disliked afterwards."""
    config, dataset, protocol = ctx.config, ctx.dataset, ctx.protocol
    nightly = protocol.headline == "nightly"
    night = targets.moment if nightly else None
    retrieved = Retrieved.of(
        targets.histories, *candidates, targets.item, targets.request, targets.user, night
    )
    if config.outcomes is not None:
        events = outcome_events(dataset, targets, config.outcomes.types, numbering.new, _horizon(ctx))
        retrieved = replace(
            retrieved, outcomes=OutcomeLabels.of(config.outcomes.types, candidates[0], events)
        )
    if dataset.histories.dislikes is None:
        return retrieved
    dislikes = targets_of(config, dataset, "validation", numbering, trained=trained, dislikes=True)
    time = np.asarray(dataset.histories.time[dislikes.position])
    weight = dataset.histories.dislikes[dataset.histories.event_type[dislikes.position]]
    return retrieved.with_dislikes(dislikes.user_of_target, dislikes.item, time, weight)


def _learned(
    ctx: Context,
    targets: RankedTargets,
    retrieved: Retrieved,
    lists: Callable[[Int32], Retrieved],
    numbering: ItemNumbering,
) -> tuple[Retrieved, int]:
    """Lists to train on, and how many of them are of what users were shown.

    lists: candidates with further ones.
    """
    shown = shown_after(ctx.dataset, targets, numbering.new, _horizon(ctx))
    if shown is None:
        return retrieved, 0
    shown = shown.sample(MAX_SHOWN, ctx.config.seed)
    return shown.learned_from(lists(shown.candidates(targets.num_requests)))


def _horizon(ctx: Context) -> int:
    """Horizon of the validation's nights, microseconds; 0 where requests are events."""
    protocol = ctx.protocol
    return protocol.nights(ctx.dataset, "validation").horizon if protocol.headline == "nightly" else 0


def _with_learnable(prepared: _Prepared) -> tuple[_Prepared, dict[str, int]]:
    """Add heads for the outcomes with enough positives; the lists with those alone, and the others with their positives."""
    outcomes = prepared.retrieved.outcomes
    if outcomes is None:
        return prepared, {}
    positives, values = outcomes.num_positives, outcomes.num_values
    types = [name for name, number in positives.items() if number >= MIN_POSITIVES]
    left_out = {name: number for name, number in positives.items() if name not in types}
    if types:
        valued = [name for name in types if values[name] >= MIN_POSITIVES]
        prepared.stage.ranker.add_outcomes(types, valued)

    def some(lists: Retrieved) -> Retrieved:
        assert lists.outcomes is not None
        return replace(lists, outcomes=lists.outcomes.of_types(types) if types else None)

    return replace(prepared, retrieved=some(prepared.retrieved), learned=some(prepared.learned)), left_out


def _directions(encoder: Encoder) -> torch.Tensor:
    """Unit item vectors of the encoder; row 0 is zero."""
    vectors = functional.normalize(encoder.item_vectors().detach().float(), dim=-1).cpu()
    vectors[0] = 0
    return vectors


def _values(epoch: RankerEpoch) -> dict[str, float]:
    values = {"ranker/loss": epoch.loss, "ranker/held_out_ndcg@10": epoch.ndcg}
    return (
        values
        if epoch.outcome_gain is None
        else values | {"ranker/held_out_outcome_gain": epoch.outcome_gain}
    )


def _log_epoch(ctx: Context, epoch: RankerEpoch) -> None:
    values = _values(epoch)
    ctx.epoch(values, epoch.epoch)
    for name, value in values.items():
        ctx.track.metric(name, value, epoch.epoch)


def _report(
    ctx: Context,
    fitted: RankerFit,
    prepared: _Prepared,
    num_lists: int,
    columns: ColumnFigures | None,
    left_out: Mapping[str, int],
) -> None:
    """Calibrate on held-out users; write ranker.json, metrics to track, one line.

    columns: figures of their choice; left_out: outcomes and their positives.
    """
    retrieved = prepared.retrieved
    held_out = retrieved.select(np.isin(retrieved.user, prepared.learned.user[fitted.held_out]))
    days = ctx.protocol.horizon_days
    lists, scores = (held_out.histories, held_out.items, held_out.scores), None
    if held_out.outcomes is not None:
        scores = calibrate_outcomes(fitted.stage, *lists, held_out.outcomes)
    calibration, measured = calibrate(fitted.stage, held_out, ctx.config.seed, days=days, scores=scores)
    calibrated = asdict(measured)
    shown: dict[str, Any] = {"shown_lists": prepared.num_shown} if prepared.num_shown else {}
    if not set(SHOWN_FEATURES).isdisjoint(fitted.stage.ranker.features):
        shown[second_stage.BY_TIMES_SHOWN] = by_times_shown(fitted.stage, held_out, calibration).tolist()
    held_out = held_out.select(held_out.is_active)
    scores = fitted.stage.score(held_out.histories, held_out.items, held_out.scores)
    of_lists = ndcg_of(held_out.scores, held_out), ndcg_of(scores, held_out)
    retrieval, two_stage = (float(values.mean()) for values in of_lists)
    gain = HistoryGain.measure(held_out.histories.lengths, of_lists[1] - of_lists[0], HISTORY_LENGTHS)
    facts: dict[str, Any] = {
        "trained": True,
        "setting": ctx.config.ranker.use,
        "best_epoch": fitted.best_epoch,
        "epochs": len(fitted.history) - 1,
        "lists": num_lists,
        "targets": len(retrieved),
        "candidates": ctx.config.ranker.candidates,
        "held_out": {"targets": len(held_out), "retrieval_ndcg@10": retrieval, "two_stage_ndcg@10": two_stage}
        | calibrated,
        history_gain.ENTRY: gain.as_rows(),
        "calibration": calibration.as_dict(),
    } | shown
    if ctx.config.outcomes is not None:
        facts["outcomes"] = _outcome_facts(retrieved.outcomes, left_out)
    if columns is not None:
        facts["columns"] = asdict(columns)
    write_json(ctx.folder / second_stage.DESCRIPTION, facts)
    ctx.manifest.update(rows_in=len(retrieved), rows_out=num_lists)
    ctx.manifest["rows_left_out"] = {"target_not_retrieved": len(retrieved) - num_lists}
    for name, value in facts["held_out"].items():
        if isinstance(value, float):
            ctx.track.metric(f"ranker/held_out_{name}" if "ndcg" not in name else f"ranker/{name}", value)
    for name in (second_stage.DESCRIPTION, "ranker_history.parquet"):
        ctx.track.artifact(name)
    ctx.summary(
        f"epoch {fitted.best_epoch} of {facts['epochs']} on {num_lists:,} lists of {ctx.config.ranker.candidates}: held-out "
        f"users' NDCG@10 {two_stage:.4f}, of retrieval alone {retrieval:.4f}; log loss {calibrated['log_loss']:.4f}"
        + ("" if columns is None else f"; {columns.sentence}")
        + (f"; {prepared.num_shown:,} lists of what was shown" if prepared.num_shown else "")
        + _outcomes(facts)
    )


def _outcome_facts(
    learned: OutcomeLabels | None, left_out: Mapping[str, int]
) -> dict[str, Mapping[str, int]]:
    """Positives of outcomes learned and left out, and the values of those with some, but too few for a head of their value."""
    values = {} if learned is None else learned.num_values
    return {
        "learned": {} if learned is None else learned.num_positives,
        "left_out": left_out,
        "values_left_out": {name: number for name, number in values.items() if 0 < number < MIN_POSITIVES},
    }


def _outcomes(facts: Mapping[str, Any]) -> str:
    """Outcomes learned and left out, for the summary line."""
    if "outcomes" not in facts:
        return ""
    learned, left_out, values = (
        ", ".join(f"{name} ({number:,} {unit})" for name, number in facts["outcomes"][kind].items())
        for kind, unit in (("learned", "positives"), ("left_out", "positives"), ("values_left_out", "values"))
    )
    few = f"; left out, expected {MIN_POSITIVES} positives: {left_out}" if left_out else ""
    few += f"; values left out, expected {MIN_POSITIVES}: {values}" if values else ""
    return f"; outcomes: {learned or 'none'}{few}"
