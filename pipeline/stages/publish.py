"""Stage publish: the system that goes live, fitted on all events, in a bundle."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from features import content
from features.content import ContentEncoder
from features.histories.jagged import JaggedHistories
from features.histories.numbering import ItemNumbering
from models import checkpoint
from models.encoder.encoder import Encoder
from models.training import distributed
from pipeline.dataset.content_settings import content_settings
from pipeline.dataset.dataset import Dataset
from pipeline.evaluation.report import EvaluationReport
from pipeline.modelling import context_counts, ranker_columns, second_stage
from pipeline.modelling.item_index import encoder_index, user_vectors
from pipeline.modelling.trainer import weight_of
from pipeline.modelling.training_facts import TrainingFacts
from pipeline.orchestration.context import Context
from pipeline.release import live_system, published_baseline
from pipeline.sections import MODEL
from pipeline.serving import bundle_baseline, bundle_ranker, new_item_catalogue, popularity_fallback
from pipeline.serving.bundle import seal
from pipeline.serving.request import Request
from pipeline.serving.start_version import FULL_TRAINING, START, StartVersion, full_training
from pipeline.tracking.registry import ModelSource

_SETTINGS = ("events.types", "history", "split", "model", "train", "seed")
"""Configuration keys recorded in bundle.json."""


def build(ctx: Context) -> None:
    """Write bundle/: the deployed system (fitted on all events unless train.refit is false) beside the evaluated one."""
    if ctx.start is not None:
        _update(ctx, ctx.start)
        return
    dataset = ctx.dataset.without_held_back()
    report = EvaluationReport.load(ctx.inputs["evaluate"]).with_baselines(ctx.config.publishes_after)
    evaluated = ItemNumbering.load(ctx.inputs["train"] / "items.npy")
    system = live_system.choose(report, ctx.config.publish.system, ctx.config.evaluate.gate_metric)
    deployed = _deployed(ctx, dataset, evaluated) if system.name == MODEL else None
    if distributed.rank():
        return
    bundle = _empty_bundle(ctx, "evaluated", "deployed", "histories")
    facts: dict[str, Any] = {bundle_baseline.SYSTEM: system.name, "system_reason": system.sentence}
    if deployed is None:
        training = ctx.dataset.training_rows(with_validation=ctx.config.train.refit_validation)
        tuned = report.tuning[system.name].settings
        numbering, settings = published_baseline.write(
            ctx.config, dataset, training, evaluated, system.name, tuned, bundle
        )
        facts[bundle_baseline.SETTINGS] = settings
    else:
        numbering = deployed.numbering
    _write_items(dataset, numbering, evaluated, bundle)
    features = ctx.inputs["features"] / content.FOLDER / "encoder"
    _write_content(ctx, bundle, features, refit=ctx.config.train.refit)
    if deployed is not None:
        facts["content_map"] = _write_model(ctx, dataset, evaluated, deployed, report, bundle)
    tuning = report.tuning.get("recent_popularity")
    days = popularity_fallback.days_of({} if tuning is None else tuning.settings)
    facts["popularity"] = _write_users(ctx, dataset, numbering, days, bundle)
    refit_steps = None if deployed is None else deployed.refit_steps
    facts |= {"metrics": report.metrics[system.name], "refit_steps": refit_steps}
    digest = _seal(ctx, dataset, facts)
    shutil.rmtree(ctx.folder / "checkpoints", ignore_errors=True)
    refit = "fitted on all events" if ctx.config.train.refit else "as evaluated"
    if refit_steps is not None:
        refit = f"refit on all events ({refit_steps} steps)"
    ctx.manifest.update(rows_in=report.targets, refit_steps=refit_steps)
    _report(ctx, bundle, digest, numbering.num_items, refit, system)


def _update(ctx: Context, source: ModelSource) -> None:
    """Write bundle/ of an update: the trained weights, the second stage of the version it started from, and full/."""
    if distributed.rank():
        return
    config, dataset, train = ctx.config, ctx.dataset, ctx.inputs["train"]
    start = StartVersion.open(config, source, dataset, ctx.inputs["ingest"])
    encoder, numbering = checkpoint.load_model(train), ItemNumbering.load(train / "items.npy")
    bundle = _empty_bundle(ctx, "deployed", "histories")
    _write_items(dataset, numbering, ItemNumbering(np.zeros_like(numbering.new)), bundle)
    _write_content(ctx, bundle, start.bundle.folder / content.FOLDER / "encoder", refit=True)
    _write_encoder(ctx, encoder, numbering, bundle)
    if start.bundle.second_stage is not None:
        _write_former_ranker(ctx, start, numbering, bundle)
    start.write_full(bundle)
    before = start.bundle.description
    steps = TrainingFacts.load(train).best_step
    system = live_system.LiveSystem(MODEL, f"an update of {source.uri}, whose second stage it keeps")
    days = popularity_fallback.days_of(before.get("popularity", {}))
    kept = ("protocol", "trained_until", "horizon_days", "features", "metrics")
    facts = {key: before[key] for key in kept} | {
        bundle_baseline.SYSTEM: MODEL,
        "system_reason": system.sentence,
        "deployed": "updated",
        "refit_steps": steps,
        START: source.bundle_digest,
        FULL_TRAINING: full_training(before),
        "content_map": _write_new_items(ctx, encoder, bundle),
        "popularity": _write_users(ctx, dataset, numbering, days, bundle),
    }
    digest = _seal(ctx, dataset, facts)
    ctx.manifest.update(rows_in=start.num_new, refit_steps=steps)
    trained = f"{source.uri} updated ({steps} steps on {start.num_new:,} new events)"
    _report(ctx, bundle, digest, numbering.num_items, trained, system)


def _empty_bundle(ctx: Context, *folders: str) -> Path:
    """Folder of the bundle with empty folders, anything half written removed."""
    bundle = ctx.folder / "bundle"
    shutil.rmtree(bundle, ignore_errors=True)
    for name in folders:
        (bundle / name).mkdir(parents=True)
    return bundle


class _Deployed(NamedTuple):
    """Deployed encoder."""

    encoder: Encoder
    numbering: ItemNumbering
    refit_steps: int | None
    """None: the evaluated encoder is deployed."""


def _deployed(ctx: Context, dataset: Dataset, evaluated: ItemNumbering) -> _Deployed:
    """Train the deployed encoder, or take the evaluated one."""
    train = ctx.inputs["train"]
    if not ctx.config.train.refit:
        return _Deployed(checkpoint.load_model(train), evaluated, None)
    trainer = ctx.trainer()
    weights = trainer.event_weights(dataset, np.asarray(dataset.histories.offsets[1:]))
    everything = dataset.all_rows(weight_of(weights)).translate(
        published_baseline.often_enough(ctx.config, dataset)
    )
    numbering = trainer.numbering(everything)
    result = trainer.refit("refit", everything, numbering, TrainingFacts.load(train))
    return _Deployed(result.model, numbering, result.best_step)


def _write_model(
    ctx: Context,
    dataset: Dataset,
    evaluated: ItemNumbering,
    deployed: _Deployed,
    report: EvaluationReport,
    bundle: Path,
) -> dict[str, float] | None:
    """Write both encoders, the index, the ranker in use, and the content map; returns the map's quality."""
    for name in (checkpoint.WEIGHTS, checkpoint.CONFIG):
        shutil.copyfile(ctx.inputs["train"] / name, bundle / "evaluated" / name)
    encoder, numbering, _ = deployed
    _write_encoder(ctx, encoder, numbering, bundle)
    if report.ranker.used:
        _write_ranker(ctx, dataset, evaluated, numbering, bundle)
    return _write_new_items(ctx, encoder, bundle)


def _write_encoder(ctx: Context, encoder: Encoder, numbering: ItemNumbering, bundle: Path) -> None:
    """Write the deployed encoder and its index."""
    checkpoint.save_model(encoder, bundle / "deployed")
    (bundle / "index").mkdir()
    queries = user_vectors(ctx.config.index, ctx.dataset, encoder, numbering)
    encoder_index(ctx.config.index, encoder, queries).save(bundle / "index")


def _write_items(dataset: Dataset, numbering: ItemNumbering, evaluated: ItemNumbering, bundle: Path) -> None:
    """Write items.parquet, the deployed vocabulary: numbered in the order of ids, so positions are indices.

    It contains the evaluated vocabulary, since the evaluated weights learned from a part of the same events.
    """
    assert not evaluated.known[~numbering.known].any(), (
        "the deployed vocabulary lacks items of the evaluated one"
    )
    table = dataset.items.with_columns(
        pl.Series("num_events", dataset.histories.item_counts(dataset.num_items)[1:], dtype=pl.Int64),
        pl.Series("item_index", numbering.new[1:], dtype=pl.Int32),
        pl.Series("evaluated_index", evaluated.new[1:], dtype=pl.Int32),
    )
    columns = ("item_index", "item_id", "title", "num_events", "evaluated_index")
    table.filter(pl.col("item_index") > 0).sort("item_index").select(columns).write_parquet(
        bundle / "items.parquet"
    )


def _write_content(ctx: Context, bundle: Path, learned_from: Path, *, refit: bool) -> None:
    """Write the deployed items' content and its encoder, fitted on all of them with `refit`.

    learned_from: folder of the encoder whose features the deployed weights learned from, which stays with `model.item_content`.
    """
    ids = pl.read_parquet(bundle / "items.parquet", columns=["item_id"])["item_id"]
    table = content.aligned(ids, ctx.inputs["ingest"] / "items.parquet")
    if refit and not ctx.config.model.item_content:
        content.build(bundle, table, np.ones(len(table), bool), content_settings(ctx.config))
    else:
        content.write(bundle, ContentEncoder.load(learned_from), table)


def _write_new_items(ctx: Context, encoder: Encoder, bundle: Path) -> dict[str, float] | None:
    """Write the content map, which gives items unknown to the deployed weights a vector; returns its quality."""
    known = pl.read_parquet(bundle / "items.parquet", columns=["item_id"])["item_id"]
    table = new_item_catalogue.unknown_to(
        known, ctx.dataset.items["item_id"], ctx.inputs["ingest"] / "items.parquet"
    )
    vectors = encoder.items.all().detach().float().cpu().numpy()[1:]
    quality = new_item_catalogue.write(bundle, vectors, table, reads_content=encoder.settings.item_content)
    if quality is None:
        return None
    for name, value in quality.as_dict().items():
        ctx.track.metric(f"content_map/{name}", value)
    return quality.as_dict()


def _write_users(
    ctx: Context, dataset: Dataset, numbering: ItemNumbering, days: float, bundle: Path
) -> dict[str, float | str | None]:
    """Write users with their segments, histories, and the popularity of the last days; returns the facts of the latter."""
    column = popularity_fallback.segment_column(ctx.config, ctx.inputs["ingest"] / "users.parquet")
    histories, known = dataset.histories, dataset.all_rows().translate(numbering.new)
    kept = numbering.known[histories.item_index]
    offsets = np.concatenate((known.starts[:1], known.ends)).astype(np.int64)
    value = histories.value[kept]
    codes = None if histories.event_columns is None else histories.event_columns[kept]
    flat = known.item_index, known.time, known.event_type, value
    JaggedHistories(offsets, *flat, histories.dislikes, codes).save(bundle / "histories")
    users = dataset.users.with_columns(trained_until(ctx.dataset))
    segment = None
    if column is not None:
        table = ctx.inputs["ingest"] / "users.parquet"
        segment = popularity_fallback.segment_of(table, column, users["user_id"])
        users = users.with_columns(segment)
    users.write_parquet(bundle / "users.parquet")
    request = Request.of(None, dataset.facts.now, timed=True)
    recent = popularity_fallback.recent_events(dataset.histories, numbering.new, segment, request, days)
    recent.write_parquet(bundle / popularity_fallback.FILE)
    return {"days": days, "segment": column}


def _write_ranker(
    ctx: Context, dataset: Dataset, evaluated: ItemNumbering, numbering: ItemNumbering, bundle: Path
) -> None:
    """Write the ranker, and its item statistics behind the deployed and the evaluated encoder.

    Those of the deployed one count all events, but for those after the newest regular one, which would move their windows;
    followers are learned as the weights are.
    """
    config, rank = ctx.config, ctx.inputs["rank"]
    request = Request.of(None, dataset.facts.now, timed=True)
    everything = request.known(dataset.histories).translate(numbering.new)
    training = ctx.dataset.training_rows(with_validation=config.train.refit_validation)
    timely = bundle_ranker.HORIZON_DAYS if dataset.split.protocol == "temporal" else None
    bundle_ranker.write(bundle / bundle_ranker.FOLDER, rank)
    learned = everything if config.train.refit else training.translate(numbering.new)
    deployed = second_stage.statistics(config, dataset, learned, numbering, bundle_ranker.HORIZON_DAYS)
    ends = context_counts.training_ends(ctx.dataset, with_validation=config.train.refit_validation)
    own_ends = request.ends(dataset.histories) if config.train.refit else ends
    for name, statistics, numbers, until in (
        ("deployed", deployed.recounted(everything, bundle_ranker.HORIZON_DAYS), numbering, own_ends),
        (
            "evaluated",
            second_stage.statistics(config, dataset, training.translate(evaluated.new), evaluated, timely),
            evaluated,
            ends,
        ),
    ):
        own = second_stage.ranker_numbering(rank, numbers).new
        columns = ranker_columns.tables_of(rank, ctx.inputs["ingest"], dataset, numbers, until)
        bundle_ranker.write_statistics(bundle / name, statistics, own, columns)


def _write_former_ranker(ctx: Context, start: StartVersion, numbering: ItemNumbering, bundle: Path) -> None:
    """Write the ranker of the version that an update started from, and its item statistics of the present log."""
    shutil.copytree(start.bundle.folder / bundle_ranker.FOLDER, bundle / bundle_ranker.FOLDER)
    known, days = start.known.translate(numbering.new), bundle_ranker.HORIZON_DAYS
    statistics = second_stage.statistics(ctx.config, ctx.dataset, known, numbering, days)
    ranker = bundle / bundle_ranker.FOLDER
    columns = ranker_columns.tables_of(ranker, ctx.inputs["ingest"], ctx.dataset, numbering, start.known.ends)
    bundle_ranker.write_statistics(bundle / "deployed", statistics, start.ranker_items(numbering), columns)


def trained_until(dataset: Dataset) -> pl.Series:
    """Time of each user's last event before the test, null without one: [num_users].

    Validation events count even where the weights did not learn from them, because they chose the weights.
    """
    histories, last = dataset.histories, np.asarray(dataset.split.validation_end) - 1
    time = pl.Series("trained_until", np.asarray(histories.time)[np.maximum(last, 0)])
    moment = pl.col("trained_until").cast(pl.Datetime("us", "UTC"))
    is_there = pl.Series(last >= histories.offsets[:-1])
    return time.to_frame().select(pl.when(is_there).then(moment)).to_series()


def _seal(ctx: Context, dataset: Dataset, facts: Mapping[str, Any]) -> str:
    """Write bundle.json with further `facts`, or other ones; returns the digest of the bundle.

    horizon_days: time after the request that the ranker's probability is about; 0: it is about the next event.
    """
    config, protocol = ctx.config, ctx.protocol
    description = {
        "name": config.name,
        "event_types": dataset.event_types,
        "max_length": config.history.max_length,
        "deployed": "refit" if config.train.refit else "evaluated",
        "protocol": dataset.split.protocol,
        "trained_until": dataset.split.test_from,
        "newest": dataset.facts.now,
        "exclude_seen": protocol.exclude_seen,
        "horizon_days": protocol.horizon_days if protocol.headline == "nightly" else 0.0,
        "features": dataset.folder.name,
        "train": ctx.inputs["train"].name,
        "settings": {key: config.get(key) for key in _SETTINGS},
    }
    return seal(ctx.folder / "bundle", description | dict(facts))


def _report(
    ctx: Context, bundle: Path, digest: str, num_items: int, trained: str, system: live_system.LiveSystem
) -> None:
    """Manifest, metrics and tags to track, one line. trained: how the deployed weights were, in words."""
    num_bytes = sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file())
    ctx.manifest.update(
        rows_out=num_items,
        bundle_digest=digest,
        bundle_bytes=num_bytes,
        system=system.name,
        system_reason=system.sentence,
    )
    ctx.track.metric("bundle_bytes", num_bytes)
    ctx.track.tag("lookback.bundle_digest", digest)
    ctx.track.tag("lookback.system", system.name)
    ctx.summary(f"bundle {digest}: {num_items:,} items, {trained}; {system.sentence}")
