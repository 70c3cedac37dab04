"""Stage features: typed events -> vocabularies, whole per-user histories, the split."""

import datetime
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from features import events as event_log
from features import histories as jagged
from features import schema, splits
from features.vocabulary import Vocabulary
from pipeline.stages import Context


def build(ctx: Context) -> None:
    """Write users.parquet, items.parquet, event_types.json, the flat arrays and split/."""
    config = ctx.config
    ingest = ctx.inputs["ingest"]
    log = event_log.scan(ingest / "events")
    users, items, event_types = _vocabularies(log, ingest)
    histories, left_out = jagged.build(
        log,
        users,
        items,
        event_types,
        drop_consecutive=config.history.repeats == "drop_consecutive",
    )
    split = _split(ctx, histories, len(items))
    splits.check_leaks(histories, split)
    histories.save(ctx.folder)
    split.save(ctx.folder / "split")
    (ctx.folder / "event_types.json").write_text(json.dumps(event_types), encoding="utf-8")
    users.frame("user_index", schema.USER_ID).write_parquet(ctx.folder / "users.parquet")
    _item_table(items, histories, ingest).write_parquet(ctx.folder / "items.parquet")
    _report(ctx, histories, split, left_out, len(items))


def _vocabularies(log: pl.LazyFrame, ingest: Path) -> tuple[Vocabulary, Vocabulary, list[str]]:
    """Users and items in sorted order (an item that only the items table knows keeps its place), and type names."""
    ids = [log.select(pl.col(name).unique()).collect()[name] for name in (schema.USER_ID, schema.ITEM_ID)]
    types = log.select(pl.col(schema.EVENT_TYPE).cast(pl.String).unique()).collect()[schema.EVENT_TYPE]
    items = ids[1]
    if (ingest / "items.parquet").exists():
        items = items.append(
            pl.read_parquet(ingest / "items.parquet", columns=[schema.ITEM_ID])[schema.ITEM_ID].cast(
                items.dtype
            )
        )
    return Vocabulary.of(ids[0], 0), Vocabulary.of(items, 1), types.drop_nulls().sort().to_list()


def _split(ctx: Context, histories: jagged.JaggedHistories, num_items: int) -> splits.Split:
    settings, history = ctx.config.split, ctx.config.history
    core = {"min_user_events": history.min_user_events, "min_item_events": history.min_item_events}
    if settings.protocol == "leave_one_out":
        return splits.leave_one_out(histories, num_items, **core)
    return splits.temporal(
        histories,
        num_items,
        test_fraction=settings.test_fraction,
        test_from=_microseconds(settings.test_from),
        validation_fraction=settings.validation_fraction,
        **core,
    )


def _microseconds(iso: str | None) -> int | None:
    if iso is None:
        return None
    moment = datetime.datetime.fromisoformat(iso)
    moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=datetime.UTC)
    return round(moment.timestamp() * 1e6)


def _item_table(items: Vocabulary, histories: jagged.JaggedHistories, ingest: Path) -> pl.DataFrame:
    """item_index, item_id, num_events, title, categories of every item of the catalogue."""
    counts = np.bincount(histories.item_index, minlength=len(items) + 1)[1:]
    table = items.frame("item_index", schema.ITEM_ID).with_columns(
        pl.Series("num_events", counts, dtype=pl.Int64)
    )
    known = pl.DataFrame(schema={schema.ITEM_ID: items.ids.dtype})
    if (ingest / "items.parquet").exists():
        known = pl.read_parquet(ingest / "items.parquet").with_columns(
            pl.col(schema.ITEM_ID).cast(items.ids.dtype)
        )
        known = known.select(pl.col(schema.ITEM_ID, "^title$", "^categories$")).unique(
            schema.ITEM_ID, keep="first"
        )
    table = table.join(known, on=schema.ITEM_ID, how="left", maintain_order="left")
    absent: dict[str, pl.DataType] = {"title": pl.String(), "categories": pl.List(pl.String)}
    return table.with_columns(
        pl.lit(None, dtype=kind).alias(name) for name, kind in absent.items() if name not in table.columns
    )


def _report(
    ctx: Context,
    histories: jagged.JaggedHistories,
    split: splits.Split,
    left_out: dict[str, int],
    num_items: int,
) -> None:
    num_events = len(histories.time)
    parts = split.num_events(histories)
    facts: dict[str, Any] = {
        "rows_in": num_events + sum(left_out.values()),
        "rows_out": num_events,
        "rows_left_out": left_out,
        "num_users": histories.num_users,
        "num_items": num_items,
        "num_items_with_events": len(np.unique(histories.item_index)),
        "split_events": parts,
        "users_evaluated": int(split.kept_user.sum()),
        "items_over_core": int(split.kept_item.sum()),
        "tied_time_share": round(splits.tie_share(histories), 4),
        "history_length_quantiles": np.quantile(
            np.diff(histories.offsets), [0, 0.25, 0.5, 0.75, 0.95, 1]
        ).tolist(),
    }
    ctx.manifest.update(facts)
    for name in ("num_users", "num_items", "rows_out", "tied_time_share"):
        ctx.track.metric(name, facts[name])
    for part, count in parts.items():
        ctx.track.metric(f"{part}_events", count)
    ctx.summary(
        f"{histories.num_users:,} users, {num_items:,} items, {num_events:,} events: {parts['train']:,} train, "
        f"{parts['validation']:,} validation, {parts['test']:,} test ({split.protocol})"
    )
