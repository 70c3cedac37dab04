"""The behaviour log: reading, typing, validation, quarantine, duplicates.

Every row of a source ends in exactly one place: in the events, in quarantine with a reason of REFUSED, or left out on
purpose and counted under a reason of LEFT_OUT.
"""

import contextlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import polars as pl

from features import schema
from features.events import exposure_fields, fields, ids, plain_rows, timestamps, verdicts
from features.events.cautions import IdSample
from features.events.event_format import EventFormat
from features.events.parquet_parts import PartWriter
from features.events.row_counts import (
    NUM_EXAMPLES,
    ORDER,
    REFUSED,
    Counts,
    check_refused,
    earliest,
    most_common,
)
from features.events.row_filters import RowFilters
from features.exposure_settings import ExposureLog
from features.parallel import in_order
from features.printable import LONGEST
from features.readers import sources
from features.schema import EVENT_TYPE, ITEM_ID, SOURCE_FILE, SOURCE_ROW, TIMESTAMP, USER_ID, VALUE, IdType
from features.settings import TableFormat
from features.tables import Chunk, MissingColumn, Reading

OPTIONAL = (VALUE, EVENT_TYPE, schema.ORDER, schema.RANK, schema.PROPENSITY, schema.LIST_ID)
"""Mapped columns that a file of several may lack, as it may all further ones."""
_COLUMN_OF = {"bad_value": VALUE, "bad_type": EVENT_TYPE, "bad_order": schema.ORDER}
EARLY_ROWS = 1_000_000
HOPELESS_FRACTION = 0.95
"""Share of refused rows after EARLY_ROWS above which a file is taken to contradict the settings."""


def scan(folder: Path) -> pl.LazyFrame:
    """All events of a folder of parts, unordered, with the checked columns of `schema.EVENTS`."""
    return schema.scan(sorted(folder.glob("*.parquet")), schema.EVENTS)


def ingest_file(
    path: Path,
    source_file: str,
    form: EventFormat,
    id_types: Mapping[str, IdType],
    folder: Path,
    *,
    filters: RowFilters | None = None,
    source_path: str | None = None,
    max_refused_fraction: float = 1.0,
) -> Counts:
    """Stream one source file into `folder/events.parquet` (or `exposures.parquet`) and `folder/quarantine.parquet`.

    source_file: name of the file in its rows, 16 digits of its content digest. id_types: final type of user_id and item_id.
    filters: rows to leave out; default: those of `where`. source_path: path of the file in refused rows; default: `path`.
    max_refused_fraction: reading stops after EARLY_ROWS rows if more than this and HOPELESS_FRACTION of them are refused.
    A column of OPTIONAL, or a further one, that the file lacks is null. Several threads parse and validate chunks, which are
    written in order.

    Raises ValueError for a file of another format or with too many refused rows, and TextIds where `auto` assumed int64 and
    an accepted id is not one.
    """
    filters = filters or RowFilters.of(form.settings.where, id_types)
    source = _Source(path, source_file, source_path or str(path))
    table, absent = form.settings.table, dict[str, str]()
    while True:
        try:
            counts = _ingest(source, table, form, id_types, folder, filters, max_refused_fraction)
        except MissingColumn as error:
            if error.column not in (*OPTIONAL, *form.settings.further):
                raise
            absent[error.column] = str(error)
            columns = {ours: theirs for ours, theirs in table.columns.items() if ours != error.column}
            table = replace(table, columns=columns)
        else:
            counts.absent_columns = absent
            return counts


@dataclass(frozen=True)
class _Source:
    """A file, its name in events, and its path in refused rows."""

    file: Path
    name: str
    path: str


def _ingest(
    source: _Source,
    table: TableFormat,
    form: EventFormat,
    id_types: Mapping[str, IdType],
    folder: Path,
    filters: RowFilters,
    max_refused_fraction: float,
) -> Counts:
    """`ingest_file` with the columns of `table`. Raises MissingColumn where the file lacks one."""
    counts = Counts()
    samples = {name: IdSample() for name in id_types}
    kinds = {name: schema.ID_TYPES[kind] for name, kind in id_types.items()}
    places = {name: types[0] for name, types in columns_of(form).items()} | kinds
    types = plain_rows.parsed_columns(form, filters)
    types = {ours: kind for ours, kind in types.items() if ours in table.columns}
    readings = sources.readings(source.file, table, source.path, types)
    types_seen: set[str] = set()

    def validated(reading: Reading) -> _Validated:
        chunk = reading()
        try:
            num_details = NUM_EXAMPLES - len(
                counts.examples
            )  # of earlier chunks: those found since cost a few for nothing
            return _validate_chunk(chunk, form, id_types, filters, num_details)
        except ValueError as error:
            raise ValueError(f"{source.file}: {error}") from None

    with (
        PartWriter(folder / f"{form.settings.section}.parquet", pl.Schema(places)) as accepted,
        PartWriter(
            folder / "quarantine.parquet",
            pl.Schema({name: types[0] for name, types in schema.QUARANTINE.items()}),
        ) as refused,
        contextlib.closing(in_order(validated, readings)) as results,
    ):
        for result in results:
            if result.text_ids is not None:
                column, row, text = result.text_ids
                raise verdicts.TextIds(column, counts.rows_in + row, text)
            here = pl.col(SOURCE_ROW) + counts.rows_in
            of_file = pl.lit(source.name).alias(SOURCE_FILE)
            place = [here.cast(schema.TIME).alias(TIMESTAMP)] if form.is_by_place else []
            accepted.write(result.events.with_columns(here, of_file, *place))
            for name, sample in samples.items():
                sample.add(result.events[name])
            if EVENT_TYPE in result.events:
                types_seen.update(result.events[EVENT_TYPE].unique().drop_nulls())
                fields.check_types(types_seen, f"{source.file}: ")
            rows = result.refused.with_columns(here, of_file, pl.lit(source.path).alias(schema.SOURCE_PATH))
            refused.write(rows)
            _count(counts, result, rows, form)
            if _is_hopeless(counts, max_refused_fraction):
                check_refused(counts, form, max_refused_fraction, read_to_end=False)
    counts.ids = {name: sample.facts() for name, sample in samples.items()}
    counts.check()
    return counts


def columns_of(form: EventFormat) -> schema.Columns:
    """Columns of the rows that count."""
    if isinstance(form.settings, ExposureLog):
        return schema.EXPOSURES
    order = schema.EVENT_ORDER if schema.ORDER in form.settings.columns else {}
    return {**schema.EVENTS, **order, **dict.fromkeys(form.settings.further, (pl.String(),))}


@dataclass(frozen=True)
class _Validated:
    """Outcome of a chunk's rows; source_row counts from 1 within the chunk."""

    num_rows: int = 0
    events: pl.DataFrame = field(default_factory=pl.DataFrame)
    refused: pl.DataFrame = field(default_factory=pl.DataFrame)
    """source_row, raw, reason"""
    details: Sequence[str] = ()
    """What is wrong with the first refused rows."""
    reasons: Counter[str] = field(default_factory=Counter)
    """Reason to number of rows that are not events."""
    first_ahead: int | None = None
    unlisted: Counter[str] = field(default_factory=Counter)
    """Event types not in `types`, see `Counts`."""
    values_left_out: Counter[str] = field(default_factory=Counter)
    value_examples: dict[str, str] = field(default_factory=dict)
    text_ids: tuple[str, int, str] | None = None
    """Column, row and text of an accepted id that must be int64 and is not; all other fields are then empty."""


def _validate_chunk(
    chunk: Chunk, form: EventFormat, id_types: Mapping[str, IdType], filters: RowFilters, num_details: int
) -> _Validated:
    try:
        judged = plain_rows.judge(chunk, form, id_types, filters)
    except verdicts.TextIds as error:
        return _Validated(text_ids=(error.column, error.source_row, error.text))
    frame, verdict = judged.events, judged.verdict
    frame = frame.with_columns(pl.int_range(1, pl.len() + 1, dtype=pl.Int64).alias(SOURCE_ROW))
    numbers = verdict.drop_nulls().value_counts().rows()
    refused = _quarantine(chunk, verdict, form)
    lost = {reason: flags & verdict.is_null() for reason, flags in judged.lost.items()}
    return _Validated(
        len(frame),
        frame if not numbers else frame.filter(verdict.is_null()),
        refused,
        _details(chunk, frame, refused.head(num_details), form),
        Counter({ORDER[code]: number for code, number in numbers}),
        _first_ahead(frame[TIMESTAMP], verdict, form.latest) if numbers else None,
        _unlisted(frame[EVENT_TYPE], verdict) if numbers and EVENT_TYPE in frame else Counter(),
        Counter({reason: int(flags.sum()) for reason, flags in lost.items() if flags.any()}),
        {
            reason: str(chunk.fields(flags.arg_true()[:1].to_numpy())[_column_of(reason)][0])[:LONGEST]
            for reason, flags in lost.items()
            if flags.any()
        },
    )


def _column_of(reason: str) -> str:
    """Column whose value is lost for a reason."""
    return _COLUMN_OF.get(reason, reason.removeprefix(fields.TOO_LONG))


def _details(chunk: Chunk, frame: pl.DataFrame, refused: pl.DataFrame, form: EventFormat) -> list[str]:
    """What is wrong with refused rows, in words; empty where the reason says all."""
    if not len(refused):
        return []
    details = []
    rows = refused.select(SOURCE_ROW, schema.REASON).rows()
    fields = chunk.fields(refused[SOURCE_ROW].to_numpy() - 1).rows(named=True)
    for (row, reason), fields_of in zip(rows, fields, strict=True):
        if reason == "impossible_time":
            moment = frame[TIMESTAMP].dt.epoch("us")[row - 1]
            unit, span = form.settings.timestamp_unit, (form.earliest, form.latest)
            details.append(timestamps.describe_impossible(fields_of[TIMESTAMP], moment, unit, span))
        elif reason in ("bad_user", "bad_item"):
            details.append(ids.describe_bad(fields_of[USER_ID if reason == "bad_user" else ITEM_ID]))
        elif reason in exposure_fields.EXPECTED:
            value = str(fields_of[exposure_fields.COLUMN_OF[reason]])[:LONGEST]
            details.append(f"{value!r} is {exposure_fields.EXPECTED[reason]}")
        elif reason == "unparseable":
            details.append(chunk.why(chunk.raw(np.array([row - 1]))[0]))
        else:
            details.append("")
    return details


def _is_hopeless(counts: Counts, max_refused_fraction: float) -> bool:
    return (
        counts.rows_in >= EARLY_ROWS
        and counts.refused.total() > max(HOPELESS_FRACTION, max_refused_fraction) * counts.rows_in
    )


def _first_ahead(times: pl.Series, verdict: pl.Series, latest: int) -> int | None:
    refused = times.filter(verdict == ORDER.index("impossible_time")).dt.epoch("us")
    first = refused.filter(refused > latest).min()
    return None if first is None else int(first)  # type: ignore[arg-type]


def _unlisted(event_type: pl.Series, verdict: pl.Series) -> Counter[str]:
    types = event_type.filter(verdict == ORDER.index("type_not_listed")).cast(pl.String).fill_null("")
    return most_common(Counter(dict(types.value_counts().rows())))


def _count(counts: Counts, result: _Validated, refused: pl.DataFrame, form: EventFormat) -> None:
    counts.rows_in += result.num_rows
    counts.rows_out += len(result.events)
    kept_out = _refused(form)
    for reason, number in result.reasons.items():
        (counts.refused if reason in kept_out else counts.left_out)[reason] += number
    counts.first_ahead = earliest(counts.first_ahead, result.first_ahead)
    counts.unlisted = most_common(counts.unlisted + result.unlisted)
    counts.values_left_out += result.values_left_out
    counts.value_examples = result.value_examples | counts.value_examples
    rows = refused.head(NUM_EXAMPLES - len(counts.examples)).drop(SOURCE_FILE).rows(named=True)
    counts.examples += [row | {"detail": detail} for row, detail in zip(rows, result.details, strict=False)]


def _refused(form: EventFormat) -> tuple[str, ...]:
    """Reasons for which rows go to quarantine."""
    leaves_out = form.settings.missing_user == "leave_out"
    return tuple(reason for reason in REFUSED if not (leaves_out and reason == "missing_user"))


def _quarantine(chunk: Chunk, verdict: pl.Series, form: EventFormat) -> pl.DataFrame:
    """The refused rows of a chunk: source_row, raw, reason."""
    codes = [ORDER.index(reason) for reason in _refused(form)]
    rows = verdict.is_in(codes).fill_null(value=False).arg_true().to_numpy().astype(np.int64)
    return pl.DataFrame(
        {
            schema.SOURCE_ROW: rows + 1,
            schema.RAW: chunk.raw(rows),
            schema.REASON: [ORDER[code] for code in verdict.gather(rows)],
        },
        schema={name: schema.QUARANTINE[name][0] for name in (SOURCE_ROW, schema.RAW, schema.REASON)},
    )
