"""Stage features: typed events -> vocabularies, whole per-user histories, the split, item content."""

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import polars as pl

from features import content, schema
from features.events import validation as event_log
from features.events.ids import have_form_of
from features.histories import buckets, event_columns, exposures, leaks, splits
from features.histories.event_types import EventTypes
from features.histories.jagged import JaggedHistories
from features.histories.log_facts import LogFacts
from features.histories.vocabulary import Vocabulary
from features.profiling import drift, profile
from features.profiling.drift import Drift
from features.profiling.profile import Profile
from features.settings import iso_microseconds
from pipeline.artifacts import store
from pipeline.dataset.content_settings import content_settings
from pipeline.orchestration.context import Context


def build(ctx: Context) -> None:
    """Write users.parquet, items.parquet, event_types.json, the flat arrays, split/, content/, profile.json, drift.json, and
    exposures/ where the configuration has them, event_columns.parquet where the log has further columns.

    Events are sorted by ranges of users and read block by block, never all in memory.
    """
    ingest = ctx.inputs["ingest"]
    log = event_log.scan(ingest / "events")
    users, user_counts = Vocabulary.counted(log, schema.USER_ID, 0)
    items = _catalogue(log, ingest)
    types = _event_types(ctx, log)
    event_types = list(types.names)
    columns = event_columns.of_log(log, ctx.config.events.further)
    histories, left_out = buckets.build(
        _parts(ingest),
        ctx.folder,
        users,
        user_counts,
        items,
        types,
        columns,
        drop_consecutive=ctx.config.history.repeats == "drop_consecutive",
        by_place="timestamp" not in ctx.config.events.table.columns,
    )
    split = _split(ctx, histories, len(items))
    leaks.check_leaks(histories, split)
    timed = ctx.config.events.timestamp_unit != "position"
    LogFacts.of(histories, session_minutes=ctx.config.history.session_minutes, timed=timed).save(ctx.folder)
    split.save(ctx.folder / "split")
    (ctx.folder / "event_types.json").write_text(json.dumps(event_types), encoding="utf-8")
    event_columns.save(columns, ctx.folder)
    users.frame("user_index", schema.USER_ID).write_parquet(ctx.folder / "users.parquet")
    known = content.aligned(items.ids, ingest / "items.parquet")
    table = _item_table(items, histories, known)
    table.write_parquet(ctx.folder / "items.parquet")
    is_known = histories.item_counts(len(items), split.train_end)[1:] > 0
    ctx.manifest["content"] = content.build(ctx.folder, known, is_known, content_settings(ctx.config))
    _write_profile(ctx, histories, event_types, table, store.read_manifest(ingest))
    _write_exposures(ctx, users, items, histories)
    _report(ctx, histories, split, left_out, table)


def _parts(ingest: Path, role: str = "events") -> list[Path]:
    """Parts of the log of events or exposures in the order of their sources' paths."""
    manifest = store.read_manifest(ingest)
    sources = (manifest if role == "events" else manifest[role])["sources"]
    return [ingest / role / source["part"] for source in sources]


def _write_exposures(ctx: Context, users: Vocabulary, items: Vocabulary, histories: JaggedHistories) -> None:
    """Write exposures/ and their counts where configured; warn where none has a reaction."""
    settings = ctx.config.exposures
    if settings is None:
        return
    parts = _parts(ctx.inputs["ingest"], "exposures")
    counts = exposures.build(parts, ctx.folder / "exposures", users, items, histories, window=settings.window)
    ctx.manifest["exposures"] = asdict(counts)
    if not counts.with_reaction:
        print(
            f"features: none of {counts.rows_in:,} exposures is followed by an event of its user on its item within "
            f"{settings.window_hours:g} hours ({counts.unknown_users:,} are of users without events, {counts.unknown_items:,} of "
            f"other items that are unknown, {counts.after_event:,} come after the event): check exposures.columns, "
            "exposures.timestamp_unit and exposures.window_hours",
            file=sys.stderr,
            flush=True,
        )


def _catalogue(log: pl.LazyFrame, ingest: Path) -> Vocabulary:
    """Items of the log, and those of the items table whose ids look like them, sorted."""
    items, _ = Vocabulary.counted(log, schema.ITEM_ID, 1)
    if not (ingest / "items.parquet").exists():
        return items
    known = schema.read(ingest / "items.parquet", schema.ITEMS)[schema.ITEM_ID].cast(items.ids.dtype)
    return Vocabulary.of(items.ids.append(known.filter(have_form_of(known, items.ids))), 1)


def _event_types(ctx: Context, log: pl.LazyFrame) -> EventTypes:
    """Types of the log's events; warns where none or all of them are dislikes by their value."""
    settings = ctx.config.events
    types = EventTypes.of(log, settings.types, settings.dislike_below)
    if types.below is not None and types.num_below in (0, types.num_events):
        share = "none" if types.num_below == 0 else "each"
        effect = (
            "no event is a dislike by its value" if types.num_below == 0 else "there is nothing to recommend"
        )
        print(
            f"features: {share} of {types.num_events:,} events has a value below events.dislike_below = {types.below:g}, so that "
            f"{effect}: check the threshold, events.min_value and events.columns.value",
            file=sys.stderr,
            flush=True,
        )
    return types


def _split(ctx: Context, histories: JaggedHistories, num_items: int) -> splits.Split:
    settings, history = ctx.config.split, ctx.config.history
    core = {"min_user_events": history.min_user_events, "min_item_events": history.min_item_events}
    if settings.protocol == "leave_one_out":
        return splits.leave_one_out(histories, num_items, **core)
    return splits.temporal(
        histories,
        num_items,
        test_fraction=settings.test_fraction,
        test_from=None
        if settings.test_from is None
        else iso_microseconds(settings.test_from, ctx.config.events.timezone),
        validation_fraction=settings.validation_fraction,
        held_back=settings.held_back,
        **core,
    )


def _item_table(items: Vocabulary, histories: JaggedHistories, known: pl.DataFrame) -> pl.DataFrame:
    """Catalogue: item_index, item_id, num_events, title, categories. known: content in item order."""
    table = items.frame("item_index", schema.ITEM_ID).with_columns(
        pl.Series("num_events", histories.item_counts(len(items))[1:], dtype=pl.Int64)
    )
    shown = (schema.TITLE, schema.CATEGORIES)
    return table.with_columns(
        known[name] if name in known else pl.lit(None, dtype=schema.ITEM_CONTENT[name][0]).alias(name)
        for name in shown
    )


def _report(
    ctx: Context,
    histories: JaggedHistories,
    split: splits.Split,
    left_out: dict[str, int],
    items: pl.DataFrame,
) -> None:
    num_events = len(histories.time)
    parts = split.num_events(histories)
    facts: dict[str, Any] = {
        "rows_in": num_events + sum(left_out.values()),
        "rows_out": num_events,
        "rows_left_out": left_out,
        "num_users": histories.num_users,
        "num_items": len(items),
        "split_events": parts,
        "events_under_core": splits.num_under_core(histories, split),
        "users_evaluated": int(split.kept_user.sum()),
        "items_over_core": int(split.kept_item.sum()),
    }
    if histories.dislikes is not None:
        facts["dislikes"] = num_events - int(histories.item_counts(len(items)).sum())
    ctx.manifest.update(facts)
    for name in ("num_users", "num_items", "rows_out"):
        ctx.track.metric(name, facts[name])
    for part, count in parts.items():
        ctx.track.metric(f"{part}_events", count)
    held_back = f", {parts['held_back']:,} held back" if "held_back" in parts else ""
    disliked = f" ({facts['dislikes']:,} dislikes)" if "dislikes" in facts else ""
    ctx.summary(
        f"{histories.num_users:,} users, {len(items):,} items, {num_events:,} events{disliked}: {parts['train']:,} train, "
        f"{parts['validation']:,} validation, {parts['test']:,} test{held_back} ({split.protocol})"
    )


def _write_profile(
    ctx: Context,
    histories: JaggedHistories,
    event_types: list[str],
    items: pl.DataFrame,
    counts: Mapping[str, Any] | None = None,
) -> None:
    """Write and log profile.json and, with a previous artifact, drift.json; warn of large drifts.

    items: item_id and num_events of the catalogue. counts: rows_in and rows_left_out of the source files.
    No result depends on either file, so neither is fingerprinted.
    """
    timed = ctx.config.events.timestamp_unit != "position"
    present = profile.profile(histories, event_types, len(items), timed=timed)
    if counts is not None:
        rows_in, left_out = counts["rows_in"], counts["rows_left_out"]
        present = replace(present, rows_in=rows_in, rows_left_out=left_out)
    present.save(ctx.folder / profile.PROFILE)
    ctx.track.artifact(profile.PROFILE)
    metrics = present.metrics()
    if (change := _drift(ctx.stage_folder / "latest", items, present)) is not None:
        change.save(ctx.folder / profile.DRIFT)
        ctx.track.artifact(profile.DRIFT)
        metrics |= change.metrics()
        for warning in change.warnings:
            print(f"features: {warning}", file=sys.stderr, flush=True)
        if change.warnings:
            ctx.track.tag("drift", "; ".join(change.warnings))
    for name, value in metrics.items():
        ctx.track.metric(f"data/{name}", value)


def _drift(latest: Path, items: pl.DataFrame, present: Profile) -> Drift | None:
    """Drift of the log since the latest artifact; None without a readable one."""
    try:
        before = Profile.load(latest / profile.PROFILE)
        before_items = pl.read_parquet(latest / "items.parquet", columns=[schema.ITEM_ID, "num_events"])
    except (OSError, ValueError, pl.exceptions.PolarsError):
        return None
    return drift.compare(before_items, before, items, present)
