"""Stage ingest: source files -> typed events, one part per file; quarantine; items and users.

Finished parts are kept in `.parts/` beside the artifacts, addressed by the source's content and the settings that shape
them, and hard-linked into each artifact: another night reads only the new file. A file delivered twice counts once.
"""

import datetime
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from tqdm import tqdm

from features import events as event_log
from features import items as item_tables
from features import schema
from features.events import Counts, EventFormat
from features.parts import find_duplicates, write_without
from features.schema import IdType
from features.tables import TableFormat
from pipeline import parts, store
from pipeline.config import EventsConfig, Table
from pipeline.errors import LookbackError
from pipeline.stages import Context

PART_VERSION = 1
"""Raised when the same source and settings would give another part."""
_NAME_DIGITS = 16


@dataclass(frozen=True)
class Source:
    """One content, under all the paths at which it was delivered."""

    digest: str
    paths: tuple[str, ...]

    @property
    def source_file(self) -> str:
        """What its events carry."""
        return self.digest[:_NAME_DIGITS]


@dataclass(frozen=True)
class Part:
    """What one source became."""

    source: Source
    folder: Path
    """With events.parquet, quarantine.parquet, part.json."""
    counts: Counts

    @property
    def file_name(self) -> str:
        """Its name in the artifact."""
        return f"{self.folder.name}.parquet"


def build(ctx: Context) -> None:
    """Write events/, quarantine/, and items.parquet and users.parquet where the configuration has them.

    Raises LookbackError (or ValueError) for a log that is empty, of another form than the settings say, without events, or
    with fewer than two users or items.
    """
    config = ctx.config.events
    sources = _distinct(ctx.sources["events"])
    form = event_format(config, store.now())
    log, id_types = _read_log(ctx, sources, form)
    counts = sum((part.counts for part in log), Counts())
    event_log.check_refused(counts, form, config.max_refused_fraction)
    repeats = _repeats(log, counts.rows_out, drop=config.duplicates == "drop")
    _place(ctx.folder, log, repeats)
    if len(repeats):
        counts.rows_out -= len(repeats)
        counts.left_out["duplicate"] = len(repeats)
    counts.check()
    sizes = _sizes(ctx.folder / "events")
    _check_sizes(sizes, counts)
    tables = _write_tables(ctx, id_types)
    _report(ctx, log, counts, id_types, sizes | tables)


def event_format(config: EventsConfig, now: datetime.datetime) -> EventFormat:
    """The form of the log that the configuration describes; `now` bounds the times that are possible."""
    earliest = datetime.datetime.fromisoformat(config.earliest)
    earliest = earliest if earliest.tzinfo is not None else earliest.replace(tzinfo=datetime.UTC)
    return EventFormat(
        table_format("events", config),
        latest=_microseconds(now) + round(min(config.max_days_ahead * 86_400_000_000, 2**62)),
        earliest=_microseconds(earliest),
        timestamp_unit=config.timestamp_unit,
        timezone=config.timezone,
        types=None if config.types is None else tuple(sorted(config.types)),
        min_value=config.min_value,
        id_types=config.id_types,
    )


def table_format(section: str, config: Table) -> TableFormat:
    """The form of a table that the configuration describes."""
    return TableFormat(
        section, config.columns, config.format, config.separator, config.header, config.encoding
    )


def _microseconds(moment: datetime.datetime) -> int:
    return (moment - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)) // datetime.timedelta(microseconds=1)


def _distinct(digests: dict[str, str]) -> list[Source]:
    """The contents among the source files, in order of their digests."""
    paths: dict[str, list[str]] = {}
    for path, digest in sorted(digests.items()):
        paths.setdefault(digest, []).append(path)
    return [Source(digest, tuple(paths[digest])) for digest in sorted(paths)]


# --- parts ---


def _read_log(
    ctx: Context, sources: Sequence[Source], form: EventFormat
) -> tuple[list[Part], dict[str, IdType]]:
    """A part of every source, all with the same types of ids: int64 until an accepted id is none, then string."""
    first: IdType = "string" if form.id_types == "string" else "int64"
    id_types: dict[str, IdType] = {schema.USER_ID: first, schema.ITEM_ID: first}
    while True:
        try:
            return [_part(ctx, source, form, id_types) for source in _shown(ctx, sources)], id_types
        except event_log.TextIds as found:
            id_types[found.column] = "string"


def _shown(ctx: Context, sources: Sequence[Source]) -> Iterator[Source]:
    yield from tqdm(sources, desc="ingest", unit="file", disable=not ctx.show_progress, leave=False)


def _part(ctx: Context, source: Source, form: EventFormat, id_types: dict[str, IdType]) -> Part:
    """The part of a source: the one that is kept, if it is whole, else a new one."""
    folder = (
        ctx.stage_folder
        / parts.PARTS
        / f"{source.source_file}-{store.fingerprint(_shaping(ctx, form, id_types))[:8]}"
    )
    with parts.locked(folder):
        said = parts.read(folder) or _make(ctx, source, form, id_types, folder)
    if "text_ids" in said:
        raise event_log.TextIds(said["text_ids"])
    return Part(source, folder, Counts.from_json(said["counts"]))


def _shaping(ctx: Context, form: EventFormat, id_types: dict[str, IdType]) -> dict[str, Any]:
    """Everything but the source that a part depends on (the present moment apart, which only bounds what is possible)."""
    settings = {name: value for name, value in vars(form).items() if name not in ("table", "latest")}
    excluded = sorted(ctx.sources.get("exclude_users", {}).values())
    return {
        "version": PART_VERSION,
        "table": {**vars(form.table), "columns": dict(form.table.columns)},
        "max_days_ahead": ctx.config.events.max_days_ahead,
        "resolved_id_types": id_types,
        "excluded": excluded,
        **settings,
    }


def _make(
    ctx: Context, source: Source, form: EventFormat, id_types: dict[str, IdType], folder: Path
) -> dict[str, Any]:
    """Read a source into a part; what it counted, or which of its ids are text."""
    with parts.workspace(folder) as place:
        try:
            path = Path(source.paths[0])
            counts = event_log.ingest_file(
                path, source.source_file, form, id_types, place, excluded=_excluded(ctx)
            )
            said: dict[str, Any] = {"counts": counts.to_json()}
        except event_log.TextIds as found:
            for path in store.files_below(place):
                path.unlink()
            said = {"text_ids": found.column}
        parts.write(place, folder, said)
    return said


def _excluded(ctx: Context) -> pl.Series | None:
    """The users that `events.exclude_users` names."""
    paths = ctx.sources.get("exclude_users", {})
    found = [event_log.read_excluded(Path(path)).cast(pl.String) for path in sorted(paths)]
    return pl.concat(found) if found else None


def _repeats(log: Sequence[Part], num_rows: int, *, drop: bool) -> pl.DataFrame:
    """(source_file, source_row) of the duplicates to drop."""
    if not drop or not num_rows:
        return pl.DataFrame(schema={schema.SOURCE_FILE: pl.String, schema.SOURCE_ROW: pl.Int64})
    return find_duplicates([part.folder / "events.parquet" for part in log], num_rows)


def _place(folder: Path, log: Sequence[Part], repeats: pl.DataFrame) -> None:
    """Link the parts into the artifact; one with duplicates is written again without them."""
    for name in ("events", "quarantine"):
        (folder / name).mkdir(parents=True)
    for part in log:
        rows = repeats.filter(pl.col(schema.SOURCE_FILE) == part.source.source_file)[schema.SOURCE_ROW]
        target = folder / "events" / part.file_name
        if len(rows):
            write_without(part.folder / "events.parquet", rows, target)
        else:
            parts.link(part.folder / "events.parquet", target)
        parts.link(part.folder / "quarantine.parquet", folder / "quarantine" / part.file_name)


# --- sizes, tables, report ---


def _sizes(events: Path) -> dict[str, int]:
    log = event_log.scan(events)
    sizes = log.select(
        num_users=pl.col(schema.USER_ID).n_unique(), num_items=pl.col(schema.ITEM_ID).n_unique()
    ).collect()
    return dict(sizes.row(0, named=True))


def _check_sizes(sizes: dict[str, int], counts: Counts) -> None:
    for name, number in sizes.items():
        if number < 2:
            what = name.removeprefix("num_")
            raise LookbackError(
                f"events: {counts.rows_out:,} events of {number} {what.removesuffix('s')}, expected at least 2 {what}: there is "
                f"nothing to learn to recommend from; check events.path and events.columns.{what.removesuffix('s')}_id"
            )


def _write_tables(ctx: Context, id_types: dict[str, IdType]) -> dict[str, Any]:
    """items.parquet and users.parquet, where configured; what to say of them."""
    config = ctx.config
    said: dict[str, Any] = {}
    if config.items is not None:
        form = item_tables.ItemFormat(table_format("items", config.items), config.items.category_separator)
        paths = _paths(ctx, "items")
        said |= _write_table(
            ctx, "items", item_tables.read_items(paths, form, id_types[schema.ITEM_ID]), schema.ITEM_ID
        )
    if config.users is not None:
        users = item_tables.read_users(
            _paths(ctx, "users"), table_format("users", config.users), id_types[schema.USER_ID]
        )
        said |= _write_table(ctx, "users", users, schema.USER_ID)
    return said


def _paths(ctx: Context, role: str) -> list[Path]:
    return [Path(path) for path in sorted(ctx.sources[role])]


def _write_table(ctx: Context, name: str, table: item_tables.Table, id_name: str) -> dict[str, Any]:
    table.frame.write_parquet(ctx.folder / f"{name}.parquet")
    seen = event_log.scan(ctx.folder / "events").select(pl.col(id_name).unique())
    unknown = (
        seen.join(table.frame.lazy().select(id_name), on=id_name, how="anti")
        .select(pl.len())
        .collect()
        .item()
    )
    counts = {
        "rows_in": table.rows_in,
        "rows_out": len(table.frame),
        "rows_left_out": table.left_out,
        **table.notes,
    }
    return {f"{name}_table": {**counts, "in_log_only": unknown}}


def _report(
    ctx: Context, log: Sequence[Part], counts: Counts, id_types: dict[str, IdType], facts: dict[str, Any]
) -> None:
    ctx.manifest |= {
        "rows_in": counts.rows_in,
        "rows_out": counts.rows_out,
        "rows_left_out": counts.reasons(),
        "rows_refused": counts.refused.total(),
        "id_types": id_types,
        **facts,
        "sources": [
            {
                "paths": list(part.source.paths),
                "digest": part.source.digest,
                "part": part.file_name,
                "rows_in": part.counts.rows_in,
                "rows_out": part.counts.rows_out,
                "rows_left_out": part.counts.reasons(),
            }
            for part in log
        ],
    }
    for name in ("rows_in", "rows_out", "rows_refused", "num_users", "num_items"):
        ctx.track.metric(name, ctx.manifest[name])
    for reason, number in counts.reasons().items():
        ctx.track.metric(f"left_out.{reason}", number)
    for part in log:
        path = part.source.paths[0]
        ctx.track.dataset(Path(path).name, part.source.source_file, "training", path, part.counts.rows_in)
    ctx.summary(
        f"{counts.rows_in:,} rows of {len(log)} file(s): {counts.rows_out:,} events of {facts['num_users']:,} users and "
        f"{facts['num_items']:,} items, {counts.refused.total():,} refused, {counts.left_out.total():,} left out"
    )
