"""Stage ingest: source files -> typed events, one part per file; quarantine; items and users.

Finished parts stay in `.parts/` beside the artifacts, addressed by content and settings and hard-linked into each artifact:
a later run reads only new files. A file delivered twice counts once.
"""

import contextlib
import datetime
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import polars as pl

from features import schema
from features.events import cautions, row_counts, side_tables, verdicts
from features.events import validation as event_log
from features.events.event_format import EventFormat
from features.events.first_rows import Table
from features.events.item_content import ItemFormat
from features.events.parquet_parts import describe
from features.events.row_counts import Counts
from features.events.row_filters import Excluded, RowFilters, read_listed
from features.events.table_fit import Fit
from features.parallel import in_order
from features.printable import LONGEST, printable
from features.readers import sources as readers
from features.schema import IdType
from features.settings import EventSettings, iso_microseconds
from pipeline.artifacts import event_parts, log_parts, source_changes, source_files
from pipeline.artifacts.files import Digests, changed_meanwhile, files_below, fingerprint, now
from pipeline.artifacts.log_parts import Part, SourceSummary
from pipeline.artifacts.source_changes import Changes, PreviousIngest, Source
from pipeline.errors import LookbackError
from pipeline.orchestration.context import Context

PART_VERSION = 4
"""Version of a part for the same source and settings."""
FILES_AT_A_TIME = 2
"""Files read at once, each by all cores: the second keeps them busy while the first begins or ends."""
_ID_KEYS = ("columns", "format", "separator", "header", "encoding")
"""Keys of [events] that decide the text of an id."""
_PART_KEYS = (
    *("timestamp_unit", "timezone", "min_value", "id_types", "max_days_ahead"),
    *("where", "missing_user"),
)
"""Further keys of [events] in the fingerprint of a part."""

_EXCLUDED = {"exclude_users": schema.USER_ID, "exclude_items": schema.ITEM_ID}
"""Keys of [events] with ids to leave out, and their columns."""

ExcludedIds = dict[str, pl.Series | None]
"""Key of _EXCLUDED to ids as text."""


class _TextIds(Exception):
    """An accepted id of a source is no int64."""

    def __init__(self, source: Source, column: str, source_row: int, text: str) -> None:
        super().__init__(source, column, source_row, text)
        self.source, self.column, self.source_row, self.text = source, column, source_row, text


def build(ctx: Context) -> None:
    """Write events/, quarantine/, and items.parquet, users.parquet and exposures/ where the configuration has them.

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
    excluded = {key: _excluded(ctx, key) for key in _EXCLUDED}
    ctx.manifest["warnings"] = []
    log, id_types = _read_log(ctx, form, previous, excluded)
    counts = sum((part.counts for part in log), Counts())
    row_counts.check_refused(counts, form, config.max_refused_fraction)
    _say_absent(ctx, log)
    _say_absent_types(ctx, log, counts)
    _say_twins(ctx, log)
    for caution in cautions.describe(counts.ids, counts.rows_out):
        _warn(ctx, caution)
    repeated = log_parts.repeats(log, counts.rows_out, drop=config.duplicates == "drop")
    ctx.digests |= log_parts.place(ctx.folder, log, repeated)
    if len(repeated):
        counts.rows_out -= len(repeated)
        counts.left_out["duplicate"] = len(repeated)
    counts.check()
    _check_sizes(log, counts)
    tables = _write_tables(ctx, id_types, excluded["exclude_users"])
    shown = _write_exposures(ctx, id_types, excluded)
    ctx.manifest["id_types"] = id_types
    _report(ctx, log, counts, changes, [*(fit.describe() for fit in tables), *shown])


def _warn(ctx: Context, warning: str) -> None:
    """Print a line, and keep it in the manifest."""
    ctx.manifest["warnings"].append(warning)
    print(f"ingest: {warning}", file=sys.stderr, flush=True)


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


def _excluded(ctx: Context, key: str) -> pl.Series | None:
    """Ids to leave out by a key of _EXCLUDED, listed there or in its file; None without any."""
    listed = ctx.config.events.exclude_items if key == "exclude_items" else None
    found = [pl.Series(listed, dtype=pl.String)] if isinstance(listed, list) else []
    for path in sorted(ctx.sources.get(key, {})):
        with _opened(ctx, key, path) as place:
            found.append(read_listed(f"events.{key}", place, _EXCLUDED[key]).cast(pl.String))
    return pl.concat(found).unique() if found else None


# --- parts ---


def _read_log(
    ctx: Context, form: EventFormat, previous: PreviousIngest, excluded: ExcludedIds
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


def _parts(ctx: Context, form: EventFormat, id_types: dict[str, IdType], excluded: ExcludedIds) -> list[Part]:
    """Parts of all sources of the form's log in order, kept ones reused and missing ones made."""
    log = source_changes.distinct(ctx.sources[form.settings.section], form.settings.table)
    shaping = {
        "version": PART_VERSION,
        "table": vars(form.settings.table),
        "earliest": form.earliest,
        "types": None if form.settings.types is None else sorted(form.settings.types),
        "resolved_id_types": dict(id_types),
        "excluded": sorted(set(ctx.sources.get("exclude_users", {}).values())),
        "excluded_items": [] if (items := excluded["exclude_items"]) is None else items.sort().to_list(),
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
    excluded: ExcludedIds,
    folder: Path,
    settings: dict[str, Any],
) -> event_parts.Record:
    """Read a source into a part; its record has counts and statistics, or the first text id."""
    role = form.settings.section
    facts: dict[str, Any] = {"source": source.digest, "path": source.path, "settings": settings}
    with event_parts.workspace(folder) as place:
        try:
            with _opened(ctx, role, source.path) as path:
                counts = event_log.ingest_file(
                    path,
                    source.source_file,
                    form,
                    id_types,
                    place,
                    filters=RowFilters.of(form.settings.where, id_types, *excluded.values()),
                    source_path=source.path,
                    max_refused_fraction=ctx.config.events.max_refused_fraction,
                )
            facts["counts"] = counts.to_json()
            facts["description"] = asdict(describe(place / f"{role}.parquet"))
        except verdicts.TextIds as error:
            for file in files_below(place):
                file.unlink()
            facts["text_ids"] = vars(error)
        return event_parts.write(place, folder, facts)


# --- sizes, tables, report ---


def _say_absent(ctx: Context, log: Sequence[Part]) -> None:
    """Warn of optional columns that some files lack, and of values that are none.

    Raises ValueError where all files lack one.
    """
    counts = [part.counts for part in log]
    for name in sorted({name for each in counts for name in each.absent_columns}):
        lacking = [number for number, each in enumerate(counts) if name in each.absent_columns]
        if len(lacking) == len(log):
            raise ValueError(counts[0].absent_columns[name])
        _warn(ctx, _lacking(name, [log[number].source.path for number in lacking], len(log)))
    total = sum(counts, Counts())
    for reason, number in sorted(total.values_left_out.items()):
        if number > ctx.config.events.max_refused_fraction * total.rows_out:
            example = printable(total.value_examples[reason], LONGEST)
            _warn(
                ctx, f"{number:,} of {total.rows_out:,} events lose a value ({reason}), such as {example!r}"
            )


def _lacking(column: str, paths: Sequence[str], num_files: int) -> str:
    """Warning of a column that some files lack."""
    shown = ", ".join(map(printable, paths[:3])) + ", …" * (len(paths) > 3)
    return f"{len(paths)} of {num_files} files have no column for {column}, which is missing in their rows: {shown}"


def _say_absent_types(ctx: Context, log: Sequence[Part], counts: Counts) -> None:
    """Warn where the log has no event of a type in `events.types`, with the types that are left out."""
    present = {name for part in log for name in part.description.events_by_type}
    listed = ctx.config.events.types
    absent = [name for name in listed or () if name not in present]
    if absent and counts.unlisted:
        types = row_counts.describe_types(counts, listed)
        _warn(ctx, f"no event has the type {', '.join(map(repr, absent))}: {types}")


def _say_twins(ctx: Context, log: Sequence[Part], role: str = "events") -> None:
    """Warn of each two files of a log with the same rows of which one is compressed."""
    parts = {path: part for part in log for path in part.source.paths}
    for one, other in source_changes.twins(parts):
        if parts[one].counts.rows_in == parts[other].counts.rows_in and (
            parts[one].description == parts[other].description
        ):
            _warn(
                ctx,
                f"{printable(one)} and {printable(other)} have the same {parts[one].counts.rows_in:,} rows, and every "
                f"{'event' if role == 'events' else 'exposure'} counts twice: name one of them in {role}.path",
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
                + (f". Rows left out: {row_counts.describe_reasons(counts)}" if counts.reasons() else "")
            )


def _write_tables(ctx: Context, id_types: dict[str, IdType], excluded: pl.Series | None) -> list[Fit]:
    """Write items.parquet and users.parquet where configured, their refused rows, and their counts into the manifest."""
    config, fits = ctx.config, []
    if config.items is not None:
        form = ItemFormat(config.items.table, config.items.category_separator)
        with _opened_all(ctx, "items") as paths:
            items = side_tables.read_items(list(paths.values()), form, id_types[schema.ITEM_ID])
        fits.append(_write_table(ctx, "items", items, paths))
    if config.users is not None:
        with _opened_all(ctx, "users") as paths:
            users = side_tables.read_users(list(paths.values()), config.users.table, id_types[schema.USER_ID])
        users = _without(users, excluded, id_types[schema.USER_ID])
        fits.append(_write_table(ctx, "users", users, paths))
    return fits


@contextlib.contextmanager
def _opened_all(ctx: Context, role: str) -> Iterator[dict[str, Path]]:
    """Yield configured paths, in their order, to the paths to read from."""
    with contextlib.ExitStack() as stack:
        yield {path: stack.enter_context(_opened(ctx, role, path)) for path in sorted(ctx.sources[role])}


def _without(users: Table, excluded: pl.Series | None, kind: IdType) -> Table:
    """Users table without excluded users."""
    if excluded is None:
        return users
    ids = users.frame[schema.USER_ID]
    frame = users.frame.filter(~Excluded(excluded, kind).holds(ids, ids))
    number = len(users.frame) - len(frame)
    left_out = users.left_out | ({"excluded_user": number} if number else {})
    return replace(users, frame=frame, left_out=left_out)


def _write_table(ctx: Context, name: str, table: Table, paths: dict[str, Path]) -> Fit:
    """Write a table and its refused rows; paths: configured paths to the paths that were read."""
    table.check_refused(ctx.config.events.max_refused_fraction)
    named = {str(place): path for path, place in paths.items()}
    for column, files in table.absent_columns.items():
        _warn(ctx, _lacking(column, [named[file] for file in files], len(paths)))
    table.frame.write_parquet(ctx.folder / f"{name}.parquet")
    if len(table.refused):
        path = pl.col(schema.SOURCE_PATH).replace_strict(named)
        digest = path.replace_strict(ctx.sources[name]).str.head(16).alias(schema.SOURCE_FILE)
        refused = table.refused.with_columns(path, digest).select(*schema.QUARANTINE)
        refused.write_parquet(ctx.folder / "quarantine" / f"{name}.parquet")
    fit = Fit.of(table.frame, f"{name.removesuffix('s')}_id", event_log.scan(ctx.folder / "events"))
    for warning in (*fit.warnings(), *cautions.describe_controls(table.frame, name, table.form.encoding)):
        _warn(ctx, warning)
    ctx.manifest[f"{name}_table"] = {
        "rows_in": table.rows_in,
        "rows_out": len(table.frame),
        "rows_left_out": table.left_out,
        "rows_in_log": fit.rows_in_log,
        "ids_without_row": fit.ids_without_row,
        **table.notes,
    }
    return fit


def _write_exposures(ctx: Context, id_types: dict[str, IdType], excluded: ExcludedIds) -> list[str]:
    """Write exposures/ and their refused rows where configured, and their counts into the manifest; a line about them.

    Ids have the types of the events'; others are refused. Raises as `build` for events.
    """
    config = ctx.config
    if config.exposures is None:
        return []
    form = event_format(config.exposures.log(config.events), now())
    log = _parts(ctx, form, id_types, excluded)
    counts = sum((part.counts for part in log), Counts())
    row_counts.check_refused(counts, form, config.events.max_refused_fraction)
    _say_absent(ctx, log)
    _say_twins(ctx, log, "exposures")
    ctx.digests |= log_parts.place(ctx.folder, log, role="exposures")
    counts.check()
    sources = [asdict(SourceSummary.of(part)) for part in log]
    ctx.manifest["exposures"] = {
        "rows_in": counts.rows_in,
        "rows_out": counts.rows_out,
        "rows_left_out": counts.reasons(),
        "rows_refused": counts.refused.total(),
        "sources": [
            {key: value for key, value in each.items() if key != "events_by_type"} for each in sources
        ],
    }
    refused, left_out = counts.refused.total(), counts.left_out.total()
    rows = f"{counts.rows_in:,} rows of {len(log)} file(s)"
    return [f"exposures: {rows}: {counts.rows_out:,} shown, {refused:,} refused, {left_out:,} left out"]


def _report(
    ctx: Context, log: Sequence[Part], counts: Counts, changes: Changes, further: Sequence[str]
) -> None:
    """Write the counts into the manifest and the summary. further: lines about other tables."""
    ctx.manifest |= {
        "rows_in": counts.rows_in,
        "rows_out": counts.rows_out,
        "rows_left_out": counts.reasons(),
        "rows_refused": counts.refused.total(),
        "values_left_out": dict(sorted(counts.values_left_out.items())),
        "new_sources": changes.new,
        "changed_sources": changes.changed,
        "removed_sources": changes.removed,
        "sources": [asdict(SourceSummary.of(part)) for part in log],
    }
    for name in ("rows_in", "rows_out", "rows_refused", "new_sources"):
        ctx.track.metric(name, ctx.manifest[name])
    for reason, number in (counts.reasons() | ctx.manifest["values_left_out"]).items():
        ctx.track.metric(f"left_out.{reason}", number)
    for part in log:
        path = part.source.path
        ctx.track.dataset(Path(path).name, part.source.source_file, "training", path, part.counts.rows_in)
    values = f", {total:,} values left out" if (total := counts.values_left_out.total()) else ""
    ctx.summary(
        f"{counts.rows_in:,} rows of {len(log)} file(s), {changes.new} new, {len(changes.changed)} changed: "
        f"{counts.rows_out:,} events, {counts.refused.total():,} refused, {counts.left_out.total():,} left out{values}"
        + "".join(f"; {line}" for line in further)
    )
