"""The behaviour log: reading, typing, validation, quarantine, duplicates.

Every row of a source ends in exactly one place: in the events, in quarantine with a reason of REFUSED, or left out on
purpose and counted under a reason of LEFT_OUT.
"""

import contextlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from features import schema
from features.events import ids, timestamps
from features.events.parquet_parts import PartWriter
from features.parallel import in_order
from features.printable import LONGEST, printable
from features.readers import sources
from features.schema import EVENT_TYPE, ITEM_ID, SOURCE_FILE, SOURCE_ROW, TIMESTAMP, USER_ID, VALUE, IdType
from features.settings import EventSettings, iso_microseconds
from features.tables import Chunk, Reading

REFUSED = (
    "unparseable",  # wrong number of fields, an open quote, not a JSON object, undecodable bytes
    "missing_user",
    "missing_item",
    "missing_time",
    "impossible_time",  # not a timestamp, before the earliest or after the latest
    "bad_value",  # not a finite number
    "bad_user",  # longer than ids.LONGEST_BYTES, or with id_types = "int64" not a canonical int64
    "bad_item",
    "bad_type",  # longer than ids.LONGEST_BYTES
)
LEFT_OUT = ("excluded_user", "type_not_listed", "value_below_minimum", "duplicate")
_ORDER = ("unparseable", "excluded_user", *REFUSED[1:], *LEFT_OUT[1:3])
"""A row with several reasons gets the first of these."""

NUM_EXAMPLES = 3
NUM_TYPES = 20
"""Event types that a message names."""
_KIND = pl.Categorical()
EARLY_ROWS = 1_000_000
HOPELESS_FRACTION = 0.95
"""Share of refused rows after EARLY_ROWS above which a file is taken to contradict the settings."""


@dataclass(frozen=True)
class EventFormat:
    """Settings of the log, and the newest time that is possible."""

    settings: EventSettings
    latest: int
    """Microseconds since the epoch; events after it have an impossible time."""

    def describe(self) -> str:
        """The settings in force, for a message."""
        settings = self.settings
        times = f"timestamp_unit {settings.timestamp_unit!r}, timezone {settings.timezone}"
        return f"{settings.table.describe()}, {times}, id_types {settings.id_types}"


@dataclass
class Counts:
    """Outcome of the rows of one or more sources."""

    rows_in: int = 0
    rows_out: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    examples: list[dict[str, Any]] = field(default_factory=list)
    """The first refused rows: source_path, source_row, raw, reason."""
    first_ahead: int | None = None
    """Earliest time refused as later than the format's latest, in microseconds since the epoch."""
    unlisted: Counter[str] = field(default_factory=Counter)
    """Rows left out by event type not in `types`, for NUM_TYPES of the types; rows without a type under the empty text."""

    def check(self) -> None:
        """Assert that every row is counted exactly once."""
        assert self.rows_in == self.rows_out + self.refused.total() + self.left_out.total(), self

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            self.rows_in + other.rows_in,
            self.rows_out + other.rows_out,
            self.refused + other.refused,
            self.left_out + other.left_out,
            (self.examples + other.examples)[:NUM_EXAMPLES],
            _earliest(self.first_ahead, other.first_ahead),
            _most_common(self.unlisted + other.unlisted),
        )

    def to_json(self) -> dict[str, Any]:
        """As plain numbers and lists; `Counts.from_json` reads it."""
        return vars(self) | {name: dict(getattr(self, name)) for name in ("refused", "left_out", "unlisted")}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Counts":
        """Load counts saved by `to_json`."""
        counters: dict[str, Counter[str]] = {
            name: Counter(content.get(name)) for name in ("refused", "left_out", "unlisted")
        }
        return cls(**{**content, **counters})

    def reasons(self) -> dict[str, int]:
        """Reason to number of rows that are not events."""
        return dict(sorted((self.refused + self.left_out).items()))


class TextIds(Exception):
    """An accepted id of `column` is not a canonical int64, so `auto` means string; names the first such row."""

    def __init__(self, column: str, source_row: int, text: str) -> None:
        super().__init__(column, source_row, text)
        self.column = column
        self.source_row = source_row
        self.text = text


class Excluded:
    """Users whose rows are left out, as sets of ids of one type."""

    def __init__(self, users: pl.Series, kind: IdType) -> None:
        self._typed = ids.typed(users, kind).drop_nulls().unique().implode()
        self._text = users.cast(pl.String).implode()

    def holds(self, plain: pl.Series, typed: pl.Series) -> pl.Series:
        """[n] whether each id (as `ids.plain` and in its final type) is an excluded user.

        An id that is not of the final type is compared as text, so that no refused row of an excluded user is kept.
        """
        flags = typed.is_in(self._typed).fill_null(value=False)
        other = typed.is_null() & plain.is_not_null()
        if not other.any():
            return flags
        text = plain.filter(other).cast(pl.String).is_in(self._text).fill_null(value=False)
        return flags.scatter(other.arg_true(), text)


def scan(folder: Path) -> pl.LazyFrame:
    """All events of a folder of parts, unordered, with the checked columns of `schema.EVENTS`."""
    return schema.scan(sorted(folder.glob("*.parquet")), schema.EVENTS)


def read_excluded(path: Path) -> pl.Series:
    """The users of `exclude_users`, a Parquet file with a column user_id. Raises ValueError for any other file."""
    try:
        frame = pl.read_parquet(path)
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"events.exclude_users: {path}: cannot be read as Parquet: {error}") from None
    if USER_ID not in frame.columns:
        raise ValueError(
            f"events.exclude_users: {path}: has columns {', '.join(frame.columns)}, expected user_id"
        )
    try:
        return ids.plain(frame[USER_ID]).drop_nulls().unique()
    except ValueError as error:
        raise ValueError(f"events.exclude_users: {path}: user_id: {error}") from None


def ingest_file(
    path: Path,
    source_file: str,
    form: EventFormat,
    id_types: Mapping[str, IdType],
    folder: Path,
    *,
    excluded: pl.Series | None = None,
    source_path: str | None = None,
    max_refused_fraction: float = 1.0,
) -> Counts:
    """Stream one source file into `folder/events.parquet` and `folder/quarantine.parquet`.

    source_file: name of the file in its rows, 16 digits of its content digest. id_types: final type of user_id and item_id.
    excluded: users to leave out (of `read_excluded`). source_path: path of the file in refused rows; default: `path`.
    max_refused_fraction: reading stops after EARLY_ROWS rows if more than this and HOPELESS_FRACTION of them are refused.
    Several threads parse and validate chunks, which are written in order.

    Raises ValueError for a file of another format or with too many refused rows, and TextIds where `auto` assumed int64 and
    an accepted id is not one.
    """
    counts = Counts()
    users = Excluded(excluded, id_types[USER_ID]) if excluded is not None else None
    kinds = {name: schema.ID_TYPES[kind] for name, kind in id_types.items()}
    places = {name: types[0] for name, types in schema.EVENTS.items()} | kinds

    def validated(reading: Reading) -> _Validated:
        chunk = reading()
        try:
            return _validate_chunk(chunk, form, id_types, users)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    with (
        PartWriter(folder / "events.parquet", pl.Schema(places)) as accepted,
        PartWriter(
            folder / "quarantine.parquet",
            pl.Schema({name: types[0] for name, types in schema.QUARANTINE.items()}),
        ) as refused,
        contextlib.closing(
            in_order(validated, sources.readings(path, form.settings.table, source_path))
        ) as results,
    ):
        for result in results:
            if result.text_ids is not None:
                column, row, text = result.text_ids
                raise TextIds(column, counts.rows_in + row, text)
            here = pl.col(SOURCE_ROW) + counts.rows_in
            of_file = pl.lit(source_file).alias(SOURCE_FILE)
            accepted.write(result.events.with_columns(here, of_file))
            rows = result.refused.with_columns(
                here, of_file, pl.lit(source_path or str(path)).alias(schema.SOURCE_PATH)
            )
            refused.write(rows)
            _count(counts, result, rows)
            if _is_hopeless(counts, max_refused_fraction):
                check_refused(counts, form, max_refused_fraction, read_to_end=False)
    counts.check()
    return counts


@dataclass(frozen=True)
class _Validated:
    """Outcome of a chunk's rows; source_row counts from 1 within the chunk."""

    num_rows: int
    events: pl.DataFrame
    refused: pl.DataFrame
    """source_row, raw, reason"""
    reasons: Counter[str]
    """Reason to number of rows that are not events."""
    first_ahead: int | None
    unlisted: Counter[str]
    """Event types not in `types`, see `Counts`."""
    text_ids: tuple[str, int, str] | None
    """Column, row and text of an accepted id that must be int64 and is not; all other fields are then empty."""


def _validate_chunk(
    chunk: Chunk, form: EventFormat, id_types: Mapping[str, IdType], excluded: Excluded | None
) -> _Validated:
    try:
        frame, verdict = validate(chunk, form, id_types, excluded)
    except TextIds as error:
        nothing = pl.DataFrame()
        return _Validated(
            0, nothing, nothing, Counter(), None, Counter(), (error.column, error.source_row, error.text)
        )
    frame = frame.with_columns(pl.int_range(1, pl.len() + 1, dtype=pl.Int64).alias(SOURCE_ROW))
    numbers = verdict.drop_nulls().value_counts().rows()
    return _Validated(
        len(frame),
        frame if not numbers else frame.filter(verdict.is_null()),
        _quarantine(chunk, verdict),
        Counter({_ORDER[code]: number for code, number in numbers}),
        _first_ahead(frame[TIMESTAMP], verdict, form.latest) if numbers else None,
        _unlisted(frame[EVENT_TYPE], verdict) if numbers else Counter(),
        None,
    )


def _is_hopeless(counts: Counts, max_refused_fraction: float) -> bool:
    return (
        counts.rows_in >= EARLY_ROWS
        and counts.refused.total() > max(HOPELESS_FRACTION, max_refused_fraction) * counts.rows_in
    )


def _first_ahead(times: pl.Series, verdict: pl.Series, latest: int) -> int | None:
    refused = times.filter(verdict == _ORDER.index("impossible_time")).dt.epoch("us")
    first = refused.filter(refused > latest).min()
    return None if first is None else int(first)  # type: ignore[arg-type]


def _unlisted(event_type: pl.Series, verdict: pl.Series) -> Counter[str]:
    types = event_type.filter(verdict == _ORDER.index("type_not_listed")).cast(pl.String).fill_null("")
    return _most_common(Counter(dict(types.value_counts().rows())))


def _most_common(types: Counter[str]) -> Counter[str]:
    return Counter(dict(types.most_common(NUM_TYPES)))


def _earliest(*times: int | None) -> int | None:
    return min((time for time in times if time is not None), default=None)


def _count(counts: Counts, result: _Validated, refused: pl.DataFrame) -> None:
    counts.rows_in += result.num_rows
    counts.rows_out += len(result.events)
    for reason, number in result.reasons.items():
        (counts.left_out if reason in LEFT_OUT else counts.refused)[reason] += number
    counts.first_ahead = _earliest(counts.first_ahead, result.first_ahead)
    counts.unlisted = _most_common(counts.unlisted + result.unlisted)
    num_missing = NUM_EXAMPLES - len(counts.examples)
    counts.examples += refused.head(num_missing).drop(SOURCE_FILE).rows(named=True)


def _quarantine(chunk: Chunk, verdict: pl.Series) -> pl.DataFrame:
    """The refused rows of a chunk: source_row, raw, reason."""
    codes = [code for code, reason in enumerate(_ORDER) if reason in REFUSED]
    rows = verdict.is_in(codes).fill_null(value=False).arg_true().to_numpy().astype(np.int64)
    return pl.DataFrame(
        {
            schema.SOURCE_ROW: rows + 1,
            schema.RAW: chunk.raw(rows),
            schema.REASON: [_ORDER[code] for code in verdict.gather(rows)],
        },
        schema={name: schema.QUARANTINE[name][0] for name in (SOURCE_ROW, schema.RAW, schema.REASON)},
    )


# --- validation ---


def validate(
    chunk: Chunk,
    form: EventFormat,
    id_types: Mapping[str, IdType],
    excluded: Excluded | None = None,
) -> tuple[pl.DataFrame, pl.Series]:
    """The events of a chunk, typed (user_id, item_id, timestamp, event_type, value), and a verdict on each row.

    verdict: null where the row is an event, else the position in `_ORDER` of the first reason against it.
    Raises TextIds as `ingest_file`, with the row's number within the chunk.
    """
    source, settings = chunk.frame, form.settings
    plain = {name: _plain_ids(source, name) for name in (USER_ID, ITEM_ID)}
    typed = {name: ids.typed(column, id_types[name]) for name, column in plain.items()}
    moment = timestamps.microseconds(source[TIMESTAMP], settings.timestamp_unit, settings.timezone)
    value, is_bad_value = (
        _numbers(source[VALUE]) if VALUE in source else (_nothing(len(source), pl.Float32()), None)
    )
    event_type, is_bad_type = (
        _kinds(source[EVENT_TYPE]) if EVENT_TYPE in source else (_nothing(len(source), _KIND), None)
    )
    missing = {name: _missing(plain[name], typed[name]) for name in typed}
    not_int64 = {name: _not_int64(typed[name], missing[name]) for name in typed}
    bad = {name: _bad_ids(plain[name], not_int64[name], settings.id_types) for name in typed}
    reasons = {
        "unparseable": pl.Series(chunk.broken),
        "excluded_user": None if excluded is None else excluded.holds(plain[USER_ID], typed[USER_ID]),
        "missing_user": missing[USER_ID],
        "missing_item": missing[ITEM_ID],
        "missing_time": _blank_among(source[TIMESTAMP], moment.is_null()) if moment.null_count() else None,
        "impossible_time": _impossible(moment, form),
        "bad_value": is_bad_value,
        "bad_user": bad[USER_ID],
        "bad_item": bad[ITEM_ID],
        "bad_type": is_bad_type,
        "type_not_listed": None
        if settings.types is None
        else ~event_type.is_in(pl.Series(list(settings.types), dtype=_KIND).implode()).fill_null(value=False),
        "value_below_minimum": None
        if settings.min_value is None
        else (value < settings.min_value).fill_null(value=False),
    }
    verdict = _first_reason(reasons, len(source))
    if settings.id_types == "auto":
        for name, flags in not_int64.items():
            if flags is not None and len(rows := (flags & verdict.is_null()).arg_true()):
                raise TextIds(name, rows[0] + 1, str(plain[name][rows[0]]))
    events = {**typed, TIMESTAMP: moment.cast(schema.TIME), EVENT_TYPE: event_type}
    return pl.DataFrame({**events, VALUE: value}), verdict


def _first_reason(reasons: Mapping[str, pl.Series | None], num_rows: int) -> pl.Series:
    """[rows] Int8: the position in `_ORDER` of the first reason that applies, null where none does."""
    holding = [(code, reasons[reason]) for code, reason in enumerate(_ORDER)]
    code_of = np.full(num_rows, -1, dtype=np.int8)
    for code, flags in reversed(holding):
        if flags is not None and flags.any():
            code_of[flags.to_numpy()] = code
    verdict = pl.Series("verdict", code_of)
    return verdict.set(verdict < 0, None)


def _plain_ids(source: pl.DataFrame, name: str) -> pl.Series:
    try:
        return ids.plain(source[name])
    except ValueError as error:
        raise ValueError(f"events.columns.{name}: {error}") from None


# Reasons: [rows] whether one applies to each row; None where it applies to no row, which is cheap to check.


def _missing(plain: pl.Series, typed: pl.Series) -> pl.Series | None:
    if typed.dtype != pl.Int64:
        return ids.is_missing(plain)
    return _blank_among(plain, typed.is_null()) if typed.null_count() else None


def _blank_among(column: pl.Series, rows: pl.Series) -> pl.Series:
    """[n] whether a value is blank, computed only for `rows` [n]."""
    return rows.scatter(rows.arg_true(), _is_blank(column.filter(rows)))


def _not_int64(typed: pl.Series, missing: pl.Series | None) -> pl.Series | None:
    return typed.is_null() & ~missing if typed.null_count() and missing is not None else None


def _bad_ids(plain: pl.Series, not_int64: pl.Series | None, id_types: str) -> pl.Series | None:
    too_long = ids.is_too_long(plain) if plain.dtype == pl.String else None
    if id_types != "int64" or not_int64 is None:
        return too_long
    return not_int64 if too_long is None else not_int64 | too_long


def _impossible(moment: pl.Series, form: EventFormat) -> pl.Series | None:
    if form.settings.timestamp_unit == "position":
        return moment.is_null() if moment.null_count() else None
    is_within = moment.is_between(iso_microseconds(form.settings.earliest), form.latest).fill_null(
        value=False
    )
    return None if is_within.all() else ~is_within


def _is_blank(column: pl.Series) -> pl.Series:
    if column.dtype.is_float():
        return (column.is_null() | column.is_nan()).fill_null(value=True)
    return ids.is_missing(column)


def _kinds(column: pl.Series) -> tuple[pl.Series, pl.Series | None]:
    """Event types as categories, blanks as null, and the rows whose type is too long."""
    if column.dtype.is_nested():
        raise ValueError(f"events.columns.event_type: the column is {column.dtype}, expected text")
    text = column.cast(pl.String, strict=False)
    too_long = ids.is_too_long(text)
    kinds = (text.set(too_long, None) if too_long.any() else text).cast(_KIND)
    names = kinds.unique().drop_nulls().cast(pl.String)
    blank = names.filter(ids.is_missing(names))
    kinds = kinds.set(kinds.is_in(blank.cast(_KIND).implode()), None) if len(blank) else kinds
    return kinds, too_long


def _numbers(column: pl.Series) -> tuple[pl.Series, pl.Series | None]:
    """A column as float32, and the rows whose value is not a finite number."""
    if column.dtype.is_nested() or column.dtype.is_temporal():
        raise ValueError(f"events.columns.value: the column is {column.dtype}, expected numbers")
    text = column.str.strip_chars() if column.dtype == pl.String else column
    number = text.cast(pl.Float32, strict=False)
    is_finite = number.is_finite().fill_null(value=False)
    if is_finite.all():
        return number, None
    absent = ids.is_missing(column.filter(~is_finite))
    return number.set(~is_finite, None), (~is_finite).scatter((~is_finite).arg_true(), ~absent)


def _nothing(num_rows: int, kind: pl.DataType) -> pl.Series:
    return pl.Series([None], dtype=kind).new_from_index(0, num_rows)


def describe_types(counts: Counts, listed: Iterable[str] | None) -> str:
    """The event types left out, most frequent first, beside those listed; a missing type is empty text."""
    rows = ", ".join(f"{kind!r} ({number:,})" for kind, number in counts.unlisted.most_common())
    return f"events.types lists {', '.join(map(repr, listed or ()))}; rows left out: {rows}"


def check_refused(
    counts: Counts, form: EventFormat, max_refused_fraction: float, *, read_to_end: bool = True
) -> None:
    """Raise ValueError, with counts, examples and settings, for no rows, no events, or too many refused rows."""
    if counts.rows_in == 0:
        raise ValueError(
            f"events.path: the log is empty: no row in any file. Settings in force: {form.describe()}"
        )
    refused = counts.refused.total()
    if refused <= max_refused_fraction * counts.rows_in and counts.rows_out:
        return
    by_reason = ", ".join(
        f"{reason} {number:,}" for reason, number in (counts.refused + counts.left_out).most_common()
    )
    rows = "".join(
        f"\n  {printable(row['source_path'])} row {row['source_row']} ({row['reason']}): {printable(row['raw'], LONGEST)}"
        for row in counts.examples
    )
    total = f"{counts.rows_in:,}" if read_to_end else f"the first {counts.rows_in:,}"
    problem = (
        f"{refused:,} of {total} rows were refused, expected at most {max_refused_fraction:.1%} "
        "(events.max_refused_fraction)"
        if refused > max_refused_fraction * counts.rows_in
        else f"none of {counts.rows_in:,} rows is an event that counts"
    )
    types = f"\n{describe_types(counts, form.settings.types)}" if counts.unlisted else ""
    raise ValueError(
        f"events: {problem}: {by_reason}.{rows}{types}\nSettings in force: {form.describe()}. "
        "Correct the settings that these rows do not fit, or raise events.max_refused_fraction"
    )
