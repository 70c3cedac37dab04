"""Stage ingest: source files -> typed events, one part per file; quarantine; items and users.

Finished parts stay in `.parts/` beside the artifacts, addressed by content and settings and hard-linked into each artifact:
a later run reads only new files. A file delivered twice counts once.
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

from features import schema
from features.events import side_tables as item_tables
from features.events import validation as event_log
from features.events.first_rows import Table
from features.events.parquet_parts import Description, describe, find_duplicates, write_without
from features.events.validation import Counts, EventFormat
from features.parallel import in_order
from features.printable import printable
from features.readers import sources as readers
from features.schema import IdType
from features.settings import EventSettings, iso_microseconds
from pipeline.artifacts import event_parts, source_changes, source_files
from pipeline.artifacts.files import Digests, changed_meanwhile, files_below, fingerprint, now
from pipeline.artifacts.source_changes import Changes, PreviousIngest, Source
from pipeline.errors import LookbackError
from pipeline.orchestration.context import Context

PART_VERSION = 2
"""Version of a part for the same source and settings."""
FILES_AT_A_TIME = 2
"""Files read at once, each by all cores: the second keeps them busy while the first begins or ends."""
_ID_KEYS = ("columns", "format", "separator", "header", "encoding")
"""Keys of [events] that decide the text of an id."""
_PART_KEYS = ("timestamp_unit", "timezone", "min_value", "id_types", "max_days_ahead")
"""Further keys of [events] in the fingerprint of a part."""

ExcludedUsers = pl.Series | None
"""Users of `events.exclude_users`, as text."""


@dataclass(frozen=True)
class Part:
    """Typed events and quarantine of one source."""

    source: Source
    folder: Path
    """Folder with events.parquet, quarantine.parquet, part.json."""
    record: event_parts.Record

    @property
    def file_name(self) -> str:
        """File name in the artifact."""
        return f"{self.folder.name}.parquet"

    @property
    def counts(self) -> Counts:
        """Row counts; examples carry the present path of the file."""
        counts = Counts.from_json(self.record.facts["counts"])
        counts.examples = [row | {schema.SOURCE_PATH: self.source.path} for row in counts.examples]
        return counts

    @property
    def description(self) -> Description:
        """Statistics of the events."""
        return Description(**self.record.facts["description"])


class _TextIds(Exception):
    """An accepted id of a source is no int64."""

    def __init__(self, source: Source, column: str, source_row: int, text: str) -> None:
        super().__init__(source, column, source_row, text)
        self.source, self.column, self.source_row, self.text = source, column, source_row, text


def build(ctx: Context) -> None:
    """Write events/, quarantine/, and items.parquet and users.parquet where the configuration has them.

    Raises LookbackError or ValueError for a log that is empty, in another format than configured, without events, or with
    fewer than two users or items; for a file that changes while it is read; for a new file whose ids are of another type.
    """
    config = ctx.config.events
    form = event_format(config, now())
    previous = PreviousIngest.of(ctx.stage_folder)
    identities = source_changes.identities(ctx.sources["events"], config.table)
    changes = previous.changes(identities)
    if announced := changes.describe():
        print(f"ingest: {printable(announced)}", file=sys.stderr, flush=True)
    excluded = _excluded(ctx)
    log, id_types = _read_log(ctx, form, previous, excluded)
    counts = sum((part.counts for part in log), Counts())
    event_log.check_refused(counts, form, config.max_refused_fraction)
    _say_absent_types(log, counts, config)
    _say_twins(log)
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
    """Event format of the configuration; `now` bounds the possible times."""
    ahead = round(min(settings.max_days_ahead * 86_400_000_000, 2**62))
    return EventFormat(settings, latest=iso_microseconds(now.isoformat()) + ahead)


# --- sources ---


@contextlib.contextmanager
def _opened(ctx: Context, role: str, path: str) -> Iterator[Path]:
    """Yield the path to read a source file from; error messages name the configured path.

    Raises LookbackError if the file changed since it was digested.
    """
    digest = ctx.sources[role][path]
    place = source_files.local_path(ctx.config, path, digest)
    is_copy = source_files.is_copy(ctx.config, path)
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
    """Raise LookbackError if the digest, cached by size, time and inode, is another one now."""
    digests = Digests(ctx.config.folder / ".digests.json")
    if not is_copy and digests(Path(path)) != digest:
        raise changed_meanwhile(path)


def _excluded(ctx: Context) -> ExcludedUsers:
    users = []
    for path in sorted(ctx.sources.get("exclude_users", {})):
        with _opened(ctx, "exclude_users", path) as place:
            users.append(event_log.read_excluded(place).cast(pl.String))
    return pl.concat(users).unique() if users else None


# --- parts ---


def _read_log(
    ctx: Context, form: EventFormat, previous: PreviousIngest, excluded: ExcludedUsers
) -> tuple[list[Part], dict[str, IdType]]:
    """Parts of all sources with common id types: int64, or string once an accepted id is no int64."""
    first: IdType = "string" if form.settings.id_types == "string" else "int64"
    id_types: dict[str, IdType] = {schema.USER_ID: first, schema.ITEM_ID: first}
    same = {f"events.{key}": ctx.config.get(f"events.{key}") for key in _ID_KEYS}
    settled = (
        set[str]()
        if ctx.force
        else previous.int64_columns(
            source_changes.identities(ctx.sources["events"], form.settings.table), same
        )
    )
    while True:
        try:
            return _parts(ctx, form, id_types, excluded), id_types
        except _TextIds as error:
            if error.column in settled:
                raise _other_ids(error) from None
            id_types[error.column] = "string"


def _other_ids(error: _TextIds) -> LookbackError:
    return LookbackError(
        f"events.id_types: {error.source.path} row {error.source_row}: {error.column} {error.text[:100]!r} is not an int64, "
        f'but with "auto" all of this log were until now. Set events.id_types = "string" (every file is read again as '
        'text) or "int64" (such rows are refused), or correct the file; --force decides anew'
    )


def _parts(
    ctx: Context, form: EventFormat, id_types: dict[str, IdType], excluded: ExcludedUsers
) -> list[Part]:
    """Parts of all sources in order, kept ones reused and missing ones made."""
    log = source_changes.distinct(ctx.sources["events"], form.settings.table)
    shaping = {
        "version": PART_VERSION,
        "table": vars(form.settings.table),
        "earliest": iso_microseconds(form.settings.earliest),
        "types": None if form.settings.types is None else sorted(form.settings.types),
        "resolved_id_types": dict(id_types),
        "excluded": sorted(set(ctx.sources.get("exclude_users", {}).values())),
        **{key: getattr(form.settings, key) for key in _PART_KEYS},
    }
    settings = {
        source: shaping | {"form": readers.form_of(Path(source.path), form.settings.table)} for source in log
    }
    folders = {
        source: ctx.stage_folder / event_parts.PARTS / f"{source.source_file}-{fingerprint(content)[:8]}"
        for source, content in settings.items()
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
    with ctx.counted(len(new), "files") as advance:
        for source, record in in_order(part_of, new, FILES_AT_A_TIME):
            _check_ids(source, record)
            records[source] = record
            advance(1)
    return [Part(source, folders[source], record) for source, record in records.items() if record is not None]


def _kept(ctx: Context, form: EventFormat, folder: Path) -> event_parts.Record | None:
    """Record of a whole part; None with --force, or once a row refused as future is no longer so."""
    record = None if ctx.force else event_parts.read(folder)
    ahead = record.facts["counts"]["first_ahead"] if record is not None and "counts" in record.facts else None
    return None if ahead is not None and ahead <= form.latest else record


def _check_ids(source: Source, record: event_parts.Record) -> None:
    if "text_ids" in record.facts:
        raise _TextIds(source, **record.facts["text_ids"])


def _make(
    ctx: Context,
    source: Source,
    form: EventFormat,
    id_types: dict[str, IdType],
    excluded: ExcludedUsers,
    folder: Path,
    settings: dict[str, Any],
) -> event_parts.Record:
    """Read a source into a part; its record has counts and statistics, or the first text id."""
    facts: dict[str, Any] = {"source": source.digest, "path": source.path, "settings": settings}
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
            facts["counts"] = counts.to_json()
            facts["description"] = asdict(describe(place / "events.parquet"))
        except event_log.TextIds as error:
            for file in files_below(place):
                file.unlink()
            facts["text_ids"] = vars(error)
        return event_parts.write(place, folder, facts)


def _repeats(log: Sequence[Part], num_rows: int, *, drop: bool) -> pl.DataFrame:
    """Duplicates to drop: source_file, source_row."""
    if not drop or not num_rows:
        return pl.DataFrame(schema={schema.SOURCE_FILE: pl.String, schema.SOURCE_ROW: pl.Int64})
    return find_duplicates([part.folder / "events.parquet" for part in log], num_rows)


def _place(ctx: Context, log: Sequence[Part], repeats: pl.DataFrame) -> None:
    """Link parts into the artifact; rewrite those with duplicates."""
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
        else:  # the file was renamed
            refused = schema.read(part.folder / "quarantine.parquet", schema.QUARANTINE)
            named = refused.with_columns(pl.lit(part.source.path).alias(schema.SOURCE_PATH))
            named.write_parquet(ctx.folder / "quarantine" / part.file_name)


def _link(ctx: Context, part: Part, name: str) -> None:
    target = f"{name}/{part.file_name}"
    if event_parts.link(part.folder / f"{name}.parquet", ctx.folder / target):
        ctx.digests[target] = part.record.digests[f"{name}.parquet"]


# --- sizes, tables, report ---


def _say_absent_types(log: Sequence[Part], counts: Counts, config: EventSettings) -> None:
    """Print one line where the log has no event of a type in `events.types`, with the types that are left out."""
    present = {name for part in log for name in part.description.events_by_type}
    absent = [name for name in config.types or () if name not in present]
    if absent and counts.unlisted:
        types = event_log.describe_types(counts, config.types)
        print(
            f"ingest: no event has the type {', '.join(map(repr, absent))}: {types}",
            file=sys.stderr,
            flush=True,
        )


def _say_twins(log: Sequence[Part]) -> None:
    """Print one line for each two files with the same rows of which one is compressed."""
    parts = {path: part for part in log for path in part.source.paths}
    for one, other in source_changes.twins(parts):
        if parts[one].counts.rows_in == parts[other].counts.rows_in and (
            parts[one].description == parts[other].description
        ):
            print(
                f"ingest: {printable(one)} and {printable(other)} have the same {parts[one].counts.rows_in:,} rows, and every "
                "event counts twice: name one of them in events.path",
                file=sys.stderr,
                flush=True,
            )


def _check_sizes(log: Sequence[Part], counts: Counts) -> None:
    """Raise LookbackError for fewer than two users or items, counted by each part's first and last id."""
    ends = {
        "user": {id_ for part in log for id_ in part.description.user_ids},
        "item": {id_ for part in log for id_ in part.description.item_ids},
    }
    for kind, ids in ends.items():
        if len(ids) < 2:
            raise LookbackError(
                f"events: {counts.rows_out:,} events of {len(ids)} {kind}, expected at least 2 {kind}s: there is "
                f"nothing to learn to recommend from; check events.path and events.columns.{kind}_id"
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


def _without(users: Table, excluded: ExcludedUsers, kind: IdType) -> Table:
    """Users table without excluded users."""
    if excluded is None:
        return users
    ids = users.frame[schema.USER_ID]
    frame = users.frame.filter(~event_log.Excluded(excluded, kind).holds(ids, ids))
    number = len(users.frame) - len(frame)
    left_out = users.left_out | ({"excluded_user": number} if number else {})
    return replace(users, frame=frame, left_out=left_out)


def _write_table(ctx: Context, name: str, table: Table) -> None:
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
        "new_sources": changes.new,
        "changed_sources": changes.changed,
        "removed_sources": changes.removed,
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
    """A source in the manifest; counts before duplicates across parts are dropped."""

    paths: list[str]
    digest: str
    folders: str
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
            part.source.folders,
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
