"""Stage ingest: source files -> typed events, one part per file; quarantine; items and users.

Finished parts are kept in `.parts/` beside the artifacts, addressed by the source's content and the settings that shape
them, and hard-linked into each artifact: another night reads only the new file. A file delivered twice counts once.
"""

import contextlib
import datetime
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from tqdm import tqdm

from features import schema
from features.events import side_tables as item_tables
from features.events import validation as event_log
from features.events.parquet_parts import Description, describe, find_duplicates, write_without
from features.events.validation import Counts, EventFormat
from features.parallel import in_order
from features.readers import sources as readers
from features.schema import IdType
from features.settings import EventSettings, iso_microseconds
from pipeline.artifacts import event_parts, source_changes, source_files
from pipeline.artifacts.files import Digests, changed_meanwhile, files_below, fingerprint, now
from pipeline.artifacts.source_changes import Changes, PreviousIngest, Source
from pipeline.errors import LookbackError
from pipeline.orchestration.context import Context

PART_VERSION = 2
"""Raised when the same source and settings would give another part."""
FILES_AT_A_TIME = 2
"""So that the cores have work while a file begins or ends; each is read by all of them."""
_WHAT_AN_ID_IS = ("columns", "format", "separator", "header", "encoding")
"""Keys of [events] that decide what the text of an id is."""

ExcludedUsers = pl.Series | None
"""The users that `events.exclude_users` names, as text."""


@dataclass(frozen=True)
class Part:
    """What one source became."""

    source: Source
    folder: Path
    """With events.parquet, quarantine.parquet, part.json."""
    record: event_parts.Record

    @property
    def file_name(self) -> str:
        """Its name in the artifact."""
        return f"{self.folder.name}.parquet"

    @property
    def counts(self) -> Counts:
        """What became of its rows; the examples are named after the file as it is called now."""
        counts = Counts.from_json(self.record.facts["counts"])
        counts.examples = [each | {schema.SOURCE_PATH: self.source.path} for each in counts.examples]
        return counts

    @property
    def description(self) -> Description:
        """What its events are like."""
        return Description(**self.record.facts["description"])


class _TextIds(Exception):
    """A source has an accepted id that is no int64."""

    def __init__(self, source: Source, column: str, source_row: int, text: str) -> None:
        super().__init__(source, column, source_row, text)
        self.source, self.column, self.source_row, self.text = source, column, source_row, text


def build(ctx: Context) -> None:
    """Write events/, quarantine/, and items.parquet and users.parquet where the configuration has them.

    Raises LookbackError (or ValueError) for a log that is empty, of another form than the settings say, without events, or
    with fewer than two users or items; where a file changes while it is read; where a new file has other ids than all before.
    """
    config = ctx.config.events
    form = event_format(config, now())
    last = PreviousIngest.of(ctx.stage_folder)
    changes = last.changes(ctx.sources["events"])
    if announced := changes.describe():
        print(f"ingest: {announced}", file=sys.stderr, flush=True)
    excluded = _excluded(ctx)
    log, id_types = _read_log(ctx, form, last, excluded)
    counts = sum((part.counts for part in log), Counts())
    event_log.check_refused(counts, form, config.max_refused_fraction)
    repeats = _repeats(log, counts.rows_out, drop=config.duplicates == "drop")
    _place(ctx, log, repeats)
    if len(repeats):
        counts.rows_out -= len(repeats)
        counts.left_out["duplicate"] = len(repeats)
    counts.check()
    _check_sizes(log, counts)
    _write_tables(ctx, id_types, excluded)
    ctx.manifest["id_types"] = id_types
    _report(ctx, log, counts, changes)


def event_format(settings: EventSettings, now: datetime.datetime) -> EventFormat:
    """The form of the log that the configuration describes; `now` bounds the times that are possible."""
    ahead = round(min(settings.max_days_ahead * 86_400_000_000, 2**62))
    return EventFormat(settings, latest=iso_microseconds(now.isoformat()) + ahead)


# --- sources ---


@contextlib.contextmanager
def _opened(ctx: Context, role: str, path: str) -> Iterator[Path]:
    """Where a source file can be read; messages name the file that the configuration names.

    Raises LookbackError where it is another one by now than when it was digested.
    """
    digest = ctx.sources[role][path]
    place = source_files.local_path(ctx.config, path, digest)
    is_copy = str(place) != path
    try:
        yield place
    except Exception as error:
        _check_unchanged(ctx, path, digest, is_copy=is_copy)
        if is_copy and isinstance(error, ValueError):
            raise ValueError(str(error).replace(str(place), path)) from None
        raise
    else:
        _check_unchanged(ctx, path, digest, is_copy=is_copy)


def _check_unchanged(ctx: Context, path: str, digest: str, *, is_copy: bool) -> None:
    """Ask for the digest again: it comes from memory where size, time and inode are the same."""
    digests = Digests(ctx.config.folder / ".digests.json")
    if not is_copy and digests(Path(path)) != digest:
        raise changed_meanwhile(path)


def _excluded(ctx: Context) -> ExcludedUsers:
    found = []
    for path in sorted(ctx.sources.get("exclude_users", {})):
        with _opened(ctx, "exclude_users", path) as place:
            found.append(event_log.read_excluded(place).cast(pl.String))
    return pl.concat(found).unique() if found else None


# --- parts ---


def _read_log(
    ctx: Context, form: EventFormat, last: PreviousIngest, excluded: ExcludedUsers
) -> tuple[list[Part], dict[str, IdType]]:
    """A part of every source, all with the same types of ids: int64 until an accepted id is none, then string."""
    first: IdType = "string" if form.settings.id_types == "string" else "int64"
    id_types: dict[str, IdType] = {schema.USER_ID: first, schema.ITEM_ID: first}
    same = {f"events.{key}": ctx.config.get(f"events.{key}") for key in _WHAT_AN_ID_IS}
    settled = set[str]() if ctx.force else last.int64_columns(ctx.sources["events"], same)
    while True:
        try:
            return _parts(ctx, form, id_types, excluded), id_types
        except _TextIds as found:
            if found.column in settled:
                raise _other_ids(found) from None
            id_types[found.column] = "string"


def _other_ids(found: _TextIds) -> LookbackError:
    return LookbackError(
        f"events.id_types: {found.source.path} row {found.source_row}: {found.column} {found.text[:100]!r} is not an int64, "
        f'but with "auto" all of this log were until now. Set events.id_types = "string" (every file is read again as '
        'text) or "int64" (such rows are refused), or correct the file; --force decides anew'
    )


def _parts(
    ctx: Context, form: EventFormat, id_types: dict[str, IdType], excluded: ExcludedUsers
) -> list[Part]:
    """The part of every source, in order: those that are kept and whole, and new ones."""
    log = source_changes.distinct(ctx.sources["events"])
    shaping = _shaping(ctx, form, id_types)
    settings = {
        source: shaping | {"form": readers.form_of(Path(source.path), form.settings.table)} for source in log
    }
    folders = {
        source: ctx.stage_folder / event_parts.PARTS / f"{source.source_file}-{fingerprint(each)[:8]}"
        for source, each in settings.items()
    }
    records = {source: _kept(ctx, form, folder) for source, folder in folders.items()}
    for source, record in records.items():
        if record is not None:
            _check_ids(source, record)

    def part_of(source: Source) -> tuple[Source, event_parts.Record]:
        with event_parts.locked(folders[source]):
            return source, _kept(ctx, form, folders[source]) or _make(  # another process may have been faster
                ctx, source, form, id_types, excluded, folders[source], settings[source]
            )

    new = [source for source in log if records[source] is None]
    made = in_order(part_of, new, FILES_AT_A_TIME)
    for source, record in tqdm(
        made, total=len(new), desc="ingest", unit="file", disable=not ctx.show_progress, leave=False
    ):
        _check_ids(source, record)
        records[source] = record
    return [Part(source, folders[source], record) for source, record in records.items() if record is not None]


def _kept(ctx: Context, form: EventFormat, folder: Path) -> event_parts.Record | None:
    """The record of a whole part; None too where a row that was ahead of its time then is not any more, and with --force."""
    record = None if ctx.force else event_parts.read(folder)
    ahead = record.facts["counts"]["first_ahead"] if record is not None and "counts" in record.facts else None
    return None if ahead is not None and ahead <= form.latest else record


def _check_ids(source: Source, record: event_parts.Record) -> None:
    if "text_ids" in record.facts:
        raise _TextIds(source, **record.facts["text_ids"])


def _shaping(ctx: Context, form: EventFormat, id_types: dict[str, IdType]) -> dict[str, Any]:
    """Everything but the source that a part depends on (the present moment apart, see `_kept`)."""
    settings = form.settings
    same = ("timestamp_unit", "timezone", "min_value", "id_types", "max_days_ahead")
    return {
        "version": PART_VERSION,
        "table": vars(settings.table),
        "earliest": iso_microseconds(settings.earliest),
        "types": None if settings.types is None else sorted(settings.types),
        "resolved_id_types": dict(id_types),
        "excluded": sorted(set(ctx.sources.get("exclude_users", {}).values())),
        **{name: getattr(settings, name) for name in same},
    }


def _make(
    ctx: Context,
    source: Source,
    form: EventFormat,
    id_types: dict[str, IdType],
    excluded: ExcludedUsers,
    folder: Path,
    settings: dict[str, Any],
) -> event_parts.Record:
    """Read a source into a part; its record has what it counted and what it is like, or which of its ids is text."""
    said: dict[str, Any] = {"source": source.digest, "path": source.path, "settings": settings}
    with event_parts.workspace(folder) as place:
        try:
            with _opened(ctx, "events", source.path) as path:
                counts = event_log.ingest_file(
                    path,
                    source.source_file,
                    form,
                    id_types,
                    place,
                    excluded=excluded,
                    source_path=source.path,
                    max_refused_fraction=ctx.config.events.max_refused_fraction,
                )
            said["counts"] = counts.to_json()
            said["description"] = asdict(describe(place / "events.parquet"))
        except event_log.TextIds as found:
            for file in files_below(place):
                file.unlink()
            said["text_ids"] = vars(found)
        return event_parts.write(place, folder, said)


def _repeats(log: Sequence[Part], num_rows: int, *, drop: bool) -> pl.DataFrame:
    """(source_file, source_row) of the duplicates to drop."""
    if not drop or not num_rows:
        return pl.DataFrame(schema={schema.SOURCE_FILE: pl.String, schema.SOURCE_ROW: pl.Int64})
    return find_duplicates([part.folder / "events.parquet" for part in log], num_rows)


def _place(ctx: Context, log: Sequence[Part], repeats: pl.DataFrame) -> None:
    """Link the parts into the artifact; one with duplicates is written again without them."""
    for name in ("events", "quarantine"):
        (ctx.folder / name).mkdir(parents=True)
    rows = {source: frame[schema.SOURCE_ROW] for (source,), frame in repeats.group_by(schema.SOURCE_FILE)}
    for part in log:
        if part.source.source_file in rows:
            target = ctx.folder / "events" / part.file_name
            write_without(part.folder / "events.parquet", rows[part.source.source_file], target)
        else:
            _link(ctx, part, "events")
        if part.record.facts["path"] == part.source.path:
            _link(ctx, part, "quarantine")
        else:  # the file has another name by now
            refused = schema.read(part.folder / "quarantine.parquet", schema.QUARANTINE)
            named = refused.with_columns(pl.lit(part.source.path).alias(schema.SOURCE_PATH))
            named.write_parquet(ctx.folder / "quarantine" / part.file_name)


def _link(ctx: Context, part: Part, name: str) -> None:
    target = f"{name}/{part.file_name}"
    if event_parts.link(part.folder / f"{name}.parquet", ctx.folder / target):
        ctx.digests[target] = part.record.digests[f"{name}.parquet"]


# --- sizes, tables, report ---


def _check_sizes(log: Sequence[Part], counts: Counts) -> None:
    """Two users and two items at least, as far as the ends of every part's ids tell: and they do."""
    ends = {
        "user": {each for part in log for each in part.description.user_ids},
        "item": {each for part in log for each in part.description.item_ids},
    }
    for what, found in ends.items():
        if len(found) < 2:
            raise LookbackError(
                f"events: {counts.rows_out:,} events of {len(found)} {what}, expected at least 2 {what}s: there is "
                f"nothing to learn to recommend from; check events.path and events.columns.{what}_id"
            )


def _write_tables(ctx: Context, id_types: dict[str, IdType], excluded: ExcludedUsers) -> None:
    """Write items.parquet and users.parquet, where configured, and their counts into the manifest."""
    config = ctx.config
    if config.items is not None:
        form = item_tables.ItemFormat(config.items.table, config.items.category_separator)
        with _opened_all(ctx, "items") as paths:
            items = item_tables.read_items(paths, form, id_types[schema.ITEM_ID])
        _write_table(ctx, "items", items)
    if config.users is not None:
        with _opened_all(ctx, "users") as paths:
            users = item_tables.read_users(paths, config.users.table, id_types[schema.USER_ID])
        _write_table(ctx, "users", _without(users, excluded, id_types[schema.USER_ID]))


@contextlib.contextmanager
def _opened_all(ctx: Context, role: str) -> Iterator[list[Path]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(_opened(ctx, role, path)) for path in sorted(ctx.sources[role])]


def _without(users: item_tables.Table, excluded: ExcludedUsers, kind: IdType) -> item_tables.Table:
    """The users' table without the users who are excluded."""
    if excluded is None:
        return users
    ids = users.frame[schema.USER_ID]
    frame = users.frame.filter(~event_log.Excluded(excluded, kind).holds(ids, ids))
    number = len(users.frame) - len(frame)
    left_out = users.left_out | ({"excluded_user": number} if number else {})
    return replace(users, frame=frame, left_out=left_out)


def _write_table(ctx: Context, name: str, table: item_tables.Table) -> None:
    table.frame.write_parquet(ctx.folder / f"{name}.parquet")
    ctx.manifest[f"{name}_table"] = {
        "rows_in": table.rows_in,
        "rows_out": len(table.frame),
        "rows_left_out": table.left_out,
        **table.notes,
    }


def _report(ctx: Context, log: Sequence[Part], counts: Counts, changes: Changes) -> None:
    ctx.manifest |= {
        "rows_in": counts.rows_in,
        "rows_out": counts.rows_out,
        "rows_left_out": counts.reasons(),
        "rows_refused": counts.refused.total(),
        **changes.to_json(),
        "sources": [asdict(_SourceSummary.of(part)) for part in log],
    }
    for name in ("rows_in", "rows_out", "rows_refused", "new_sources"):
        ctx.track.metric(name, ctx.manifest[name])
    for reason, number in counts.reasons().items():
        ctx.track.metric(f"left_out.{reason}", number)
    for part in log:
        path = part.source.path
        ctx.track.dataset(Path(path).name, part.source.source_file, "training", path, part.counts.rows_in)
    ctx.summary(
        f"{counts.rows_in:,} rows of {len(log)} file(s), {changes.new} new, {len(changes.changed)} changed: "
        f"{counts.rows_out:,} events, {counts.refused.total():,} refused, {counts.left_out.total():,} left out"
    )


@dataclass(frozen=True)
class _SourceSummary:
    """A source in the manifest, with the counts of its part before duplicates of other parts are dropped."""

    paths: list[str]
    digest: str
    part: str
    rows_in: int
    rows_out: int
    rows_left_out: dict[str, int]
    earliest: str | None
    latest: str | None
    events_by_type: dict[str, int]

    @classmethod
    def of(cls, part: Part) -> "_SourceSummary":
        counts, events = part.counts, part.description
        return cls(
            list(part.source.paths),
            part.source.digest,
            part.file_name,
            counts.rows_in,
            counts.rows_out,
            counts.reasons(),
            _iso(events.earliest),
            _iso(events.latest),
            events.events_by_type,
        )


def _iso(microseconds: int | None) -> str | None:
    return None if microseconds is None else f"{np.datetime64(microseconds, 'us')}Z"
