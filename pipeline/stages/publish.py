"""Stage publish: refit on all events, the bundle, its registration."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from features import content
from features.content import ContentEncoder
from features.histories.jagged import JaggedHistories
from features.histories.splits import Split
from models import checkpoint
from models.encoder.encoder import Encoder
from models.histories import Int32
from pipeline.config import MODEL
from pipeline.dataset import dataset as rows
from pipeline.dataset.item_features import content_settings
from pipeline.evaluation.report import EvaluationReport
from pipeline.modelling import second_stage
from pipeline.modelling.item_index import encoder_index, user_vectors
from pipeline.orchestration.context import Context
from pipeline.serving import bundle_ranker, new_item_catalogue, popularity_fallback
from pipeline.serving.bundle import seal


def build(ctx: Context) -> None:
    """Write bundle/ : deployed weights (refit on everything unless train.refit is false) beside the evaluated ones."""
    features, train = ctx.inputs["features"], ctx.inputs["train"]
    whole, split = JaggedHistories.load(features), Split.load(features / "split")
    histories = without_held_back(whole, split)
    evaluated = np.load(train / "items.npy")
    bundle = ctx.folder / "bundle"
    shutil.rmtree(bundle, ignore_errors=True)
    for name in ("evaluated", "deployed", "index", "histories"):
        (bundle / name).mkdir(parents=True)
    encoder, mapping, refit_steps = _deployed(ctx, whole, split, evaluated)
    for name in (checkpoint.WEIGHTS, checkpoint.CONFIG):
        shutil.copyfile(train / name, bundle / "evaluated" / name)
    checkpoint.save_model(encoder, bundle / "deployed")
    queries = user_vectors(ctx.config.index, ctx.inputs["features"], encoder, mapping)
    encoder_index(ctx.config.index, encoder, queries).save(bundle / "index")
    _write_items(features, histories, mapping, evaluated, bundle)
    _write_content(ctx, bundle, refit=refit_steps is not None)
    report = EvaluationReport.load(ctx.inputs["evaluate"])
    if report.ranker.used:
        _write_ranker(ctx, histories, split, evaluated, mapping, bundle)
    newest = int(histories.time.max(initial=0))
    content_map = _write_new_items(ctx, encoder, bundle)
    column = popularity_fallback.segment_column(ctx.config, ctx.inputs["ingest"] / "users.parquet")
    days = _popularity_days(report)
    segment = _write_users(ctx, histories, mapping, trained_until(whole, split), bundle)
    popularity_fallback.write(bundle, histories, mapping, segment, days)
    facts = {"content_map": content_map, "popularity": {"days": days, "segment": column}}
    digest = seal(bundle, _description(ctx, features, split, report, refit_steps, newest) | facts)
    shutil.rmtree(ctx.folder / "checkpoints", ignore_errors=True)
    _report(ctx, bundle, digest, report, encoder, refit_steps)


def without_held_back(histories: JaggedHistories, split: Split) -> JaggedHistories:
    """The histories without what is in no part of the split: the log as it was then."""
    ends = np.asarray(split.test_end)
    if (ends == histories.offsets[1:]).all():
        return histories
    kept = rows.rows(histories, histories.offsets[:-1], ends)
    _, positions = kept.gather()
    offsets = np.concatenate(([0], np.cumsum(kept.lengths, dtype=np.int64)))
    return JaggedHistories(
        offsets,
        histories.item_index[positions],
        histories.time[positions],
        histories.event_type[positions],
        histories.value[positions],
    )


def _deployed(
    ctx: Context, whole: JaggedHistories, split: Split, evaluated: Int32
) -> tuple[Encoder, Int32, int | None]:
    """The encoder that recommends, its numbering, and the steps of its refit (None: the evaluated one is deployed).

    `whole`: with what is in no part of the split, which is not learned from.
    """
    train = ctx.inputs["train"]
    if not ctx.config.train.refit:
        return checkpoint.load_model(train), evaluated, None
    facts = json.loads((train / "training.json").read_text(encoding="utf-8"))
    histories = without_held_back(whole, split)
    everything = rows.rows(histories, histories.offsets[:-1], histories.offsets[1:])
    counts = np.bincount(histories.item_index, minlength=len(evaluated))
    kept = np.where(counts >= ctx.config.history.min_item_events, np.arange(len(counts)), 0).astype(np.int32)
    everything = everything.translate(kept)
    trainer = ctx.trainer()
    mapping = trainer.numbering(everything, whole, split)
    result = trainer.refit("refit", everything, mapping, facts)
    return result.model, mapping, result.best_step


def _write_items(
    features: Path, histories: JaggedHistories, mapping: Int32, evaluated: Int32, bundle: Path
) -> None:
    """The deployed vocabulary: its numbering keeps the order of ids, so positions are indices.

    All that the evaluated weights know is in it: what was there to train on before is there in all of the events.
    """
    assert not evaluated[mapping == 0].any(), "the deployed vocabulary lacks items of the evaluated one"
    table = pl.read_parquet(features / "items.parquet")
    table = table.with_columns(
        pl.Series("num_events", histories.item_counts(len(table))[1:], dtype=pl.Int64),
        pl.Series("item_index", mapping[1:], dtype=pl.Int32),
        pl.Series("evaluated_index", evaluated[1:], dtype=pl.Int32),
    )
    columns = ("item_index", "item_id", "title", "num_events", "evaluated_index")
    table.filter(pl.col("item_index") > 0).sort("item_index").select(columns).write_parquet(
        bundle / "items.parquet"
    )


def _write_content(ctx: Context, bundle: Path, *, refit: bool) -> None:
    """The deployed items' content and what turns other items into the same: learned from all of them where it is refit.

    What the deployed weights read (`model.item_content`) stays as it was when they learned to.
    """
    ids = pl.read_parquet(bundle / "items.parquet", columns=["item_id"])["item_id"]
    table = content.aligned(ids, ctx.inputs["ingest"] / "items.parquet")
    if refit and not ctx.config.model.item_content:
        content.build(bundle, table, np.ones(len(table), bool), content_settings(ctx.config))
    else:
        content.write(bundle, ContentEncoder.load(ctx.inputs["features"] / "content" / "encoder"), table)


def _write_new_items(ctx: Context, encoder: Encoder, bundle: Path) -> dict[str, float] | None:
    """What gives items that the deployed weights do not know a vector, and how good these are."""
    known = pl.read_parquet(bundle / "items.parquet", columns=["item_id"])["item_id"]
    log_ids = pl.read_parquet(ctx.inputs["features"] / "items.parquet", columns=["item_id"])["item_id"]
    table = new_item_catalogue.unknown_to(known, log_ids, ctx.inputs["ingest"] / "items.parquet")
    own = encoder.items.all().detach().float().cpu().numpy()[1:]
    worth = new_item_catalogue.write(bundle, own, table, reads_content=encoder.settings.item_content)
    if worth is None:
        return None
    for name, value in worth.as_dict().items():
        ctx.track.metric(f"content_map/{name}", value)
    return worth.as_dict()


def _popularity_days(report: EvaluationReport) -> float:
    """Days of the popularity fallback: those chosen for the baseline of recent popularity, where it was evaluated."""
    chosen = report.tuning.get("recent_popularity")
    return (
        popularity_fallback.DAYS
        if chosen is None
        else float(chosen.settings.get("days", popularity_fallback.DAYS))
    )


def _write_users(
    ctx: Context, histories: JaggedHistories, mapping: Int32, until: pl.Series, bundle: Path
) -> pl.Series | None:
    """The users, their segments (which are returned) and their histories."""
    known = rows.rows(histories, histories.offsets[:-1], histories.offsets[1:]).translate(mapping)
    kept = mapping[histories.item_index] > 0
    offsets = np.concatenate((known.starts[:1], known.ends)).astype(np.int64)
    JaggedHistories(offsets, known.item_index, known.time, known.event_type, histories.value[kept]).save(
        bundle / "histories"
    )
    users = pl.read_parquet(ctx.inputs["features"] / "users.parquet").with_columns(until)
    table = ctx.inputs["ingest"] / "users.parquet"
    column = popularity_fallback.segment_column(ctx.config, table)
    segment = None if column is None else popularity_fallback.segment_of(table, column, users["user_id"])
    users = users if segment is None else users.with_columns(segment)
    users.write_parquet(bundle / "users.parquet")
    return segment


def _write_ranker(
    ctx: Context, histories: JaggedHistories, split: Split, evaluated: Int32, mapping: Int32, bundle: Path
) -> None:
    """The second stage, and what it knows of the items behind the deployed encoder and behind the evaluated one."""
    config, features, rank = ctx.config, ctx.inputs["features"], ctx.inputs["rank"]
    everything = rows.rows(histories, histories.offsets[:-1], histories.offsets[1:]).translate(mapping)
    training = rows.training_rows(histories, split, with_validation=config.train.refit_validation)
    timely = bundle_ranker.HORIZON_DAYS if split.protocol == "temporal" else None
    bundle_ranker.write(bundle / bundle_ranker.FOLDER, rank)
    for name, learned, numbers, days in (
        ("deployed", everything, mapping, bundle_ranker.HORIZON_DAYS),
        ("evaluated", training.translate(evaluated), evaluated, timely),
    ):
        found = second_stage.statistics(config, features, learned, numbers, days)
        bundle_ranker.write_knowledge(bundle / name, found, second_stage.own_numbers(rank, numbers))


def trained_until(histories: JaggedHistories, split: Split) -> pl.Series:
    """[num_users] the time of each user's last event before the test, null where there is none.

    Validation counts even where the weights did not learn from it, because it chose them.
    """
    last = np.asarray(split.validation_end) - 1
    time = pl.Series("trained_until", np.asarray(histories.time)[np.maximum(last, 0)])
    moment = pl.col("trained_until").cast(pl.Datetime("us", "UTC"))
    is_there = pl.Series(last >= histories.offsets[:-1])
    return time.to_frame().select(pl.when(is_there).then(moment)).to_series()


def _description(
    ctx: Context,
    features: Path,
    split: Split,
    report: EvaluationReport,
    refit_steps: int | None,
    newest: int,
) -> dict[str, Any]:
    config = ctx.config
    return {
        "name": config.name,
        "event_types": rows.event_types(features),
        "max_length": config.history.max_length,
        "deployed": "evaluated" if refit_steps is None else "refit",
        "refit_steps": refit_steps,
        "protocol": split.protocol,
        "trained_until": split.test_from,
        "newest": newest,
        "features": features.name,
        "train": ctx.inputs["train"].name,
        "metrics": report.metrics[MODEL],
        "settings": {
            key: config.get(key) for key in ("events.types", "history", "split", "model", "train", "seed")
        },
    }


def _report(
    ctx: Context,
    bundle: Path,
    digest: str,
    report: EvaluationReport,
    encoder: Encoder,
    refit_steps: int | None,
) -> None:
    num_bytes = sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file())
    ctx.manifest.update(
        rows_in=report.targets,
        rows_out=encoder.num_items,
        bundle_digest=digest,
        refit_steps=refit_steps,
        bundle_bytes=num_bytes,
    )
    ctx.track.metric("bundle_bytes", num_bytes)
    ctx.track.tag("lookback.bundle_digest", digest)
    deployed = "evaluated weights" if refit_steps is None else f"refit on all events ({refit_steps} steps)"
    ctx.summary(f"bundle {digest}: {encoder.num_items:,} items, {deployed}")
