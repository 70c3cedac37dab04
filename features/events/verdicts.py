"""Rows of a chunk as events, and the first reason against each."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import polars as pl

from features import schema
from features.events import exposure_fields, fields, ids, timestamps
from features.events.event_format import EventFormat
from features.events.row_counts import ORDER
from features.events.row_filters import RowFilters
from features.exposure_settings import ExposureLog
from features.schema import EVENT_TYPE, ITEM_ID, TIMESTAMP, USER_ID, VALUE, IdType
from features.tables import Chunk, Rows

_TIME_REASONS = ("missing_time", "impossible_time")


class TextIds(Exception):
    """An accepted id of `column` is not a canonical int64, so `auto` means string; names the first such row."""

    def __init__(self, column: str, source_row: int, text: str) -> None:
        super().__init__(column, source_row, text)
        self.column = column
        self.source_row = source_row
        self.text = text


@dataclass(frozen=True)
class Judged:
    """The rows of a chunk as events, and what speaks against each."""

    events: pl.DataFrame
    """user_id, item_id, timestamp, event_type and value of every row, its order where the log has a column for it, and further
    columns as text."""
    verdict: pl.Series
    """[rows] null where the row is an event, else the position in `ORDER` of the first reason against it."""
    lost: dict[str, pl.Series]
    """Reason of VALUES_LEFT_OUT to [rows] whether the row loses its value for it; none where no row does."""

    def corrected(self, rows: Rows, better: "Judged") -> "Judged":
        """The judgement with that of some rows, ascending positions, replaced by a better one."""
        order = np.arange(len(self.verdict))
        order[rows] = len(self.verdict) + np.arange(len(rows))
        nothing = pl.Series([False]).new_from_index(0, len(self.verdict))
        return Judged(
            pl.concat([self.events, better.events], rechunk=True)[order],
            self.verdict.scatter(rows, better.verdict),
            {
                reason: self.lost.get(reason, nothing).scatter(rows, flags)
                for reason, flags in better.lost.items()
            },
        )


def validate(
    chunk: Chunk,
    form: EventFormat,
    id_types: Mapping[str, IdType],
    filters: RowFilters = RowFilters(),  # noqa: B008 - frozen, and leaves out nothing
) -> Judged:
    """Type and judge the rows of a chunk.

    Raises TextIds as `ingest_file`, with the row's number within the chunk.
    """
    settings = form.settings
    source = fields.without_words(chunk.frame, settings.missing)
    plain = {name: _plain_ids(source, name, settings.section) for name in (USER_ID, ITEM_ID)}
    typed = {name: ids.typed(column, id_types[name]) for name, column in plain.items()}
    moment, time_reasons = _times(source, form)
    more, against, lost = _further(source, form)
    missing = {name: _missing(plain[name], typed[name]) for name in typed}
    not_int64 = {name: _not_int64(typed[name], missing[name]) for name in typed}
    bad = {name: _bad_ids(plain[name], typed[name], not_int64[name], settings.id_types) for name in typed}
    reasons = {
        "unparseable": pl.Series(chunk.broken),
        **filters.reasons(source, plain, typed),
        "missing_user": missing[USER_ID],
        "missing_item": missing[ITEM_ID],
        **time_reasons,
        "bad_user": bad[USER_ID],
        "bad_item": bad[ITEM_ID],
        **against,
    }
    verdict = _first_reason(reasons, len(source))
    if settings.id_types == "auto":
        for name, flags in not_int64.items():
            if flags is not None and len(rows := (flags & verdict.is_null()).arg_true()):
                raise TextIds(name, rows[0] + 1, str(plain[name][rows[0]]))
    events = pl.DataFrame({**typed, TIMESTAMP: moment.cast(schema.TIME), **more})
    return Judged(events, verdict, {reason: flags for reason, flags in lost.items() if flags is not None})


_Reasons = dict[str, pl.Series | None]


def _further(source: pl.DataFrame, form: EventFormat) -> tuple[dict[str, pl.Series], _Reasons, _Reasons]:
    """What rows have beside ids and time, the reasons against rows, and those for which they lose a value."""
    settings = form.settings
    if isinstance(settings, ExposureLog):
        return *exposure_fields.read(source, settings.decimal), {}
    value, is_bad_value = _optional(
        source, VALUE, pl.Float32(), partial(fields.numbers, decimal=settings.decimal)
    )
    event_type, is_bad_type = _optional(source, EVENT_TYPE, fields.KIND, fields.event_types)
    listed = pl.Series(list(settings.types or ()), dtype=fields.KIND).implode()
    against = {
        "type_not_listed": None
        if settings.types is None
        else ~event_type.is_in(listed).fill_null(value=False),
        "value_below_minimum": None
        if settings.min_value is None
        else (value < settings.min_value).fill_null(value=False),
    }
    more, lost = {EVENT_TYPE: event_type, VALUE: value}, {"bad_value": is_bad_value, "bad_type": is_bad_type}
    if schema.ORDER in settings.columns:
        more[schema.ORDER], lost["bad_order"] = _optional(source, schema.ORDER, pl.Float64(), fields.places)
    for name in settings.further:
        parse = partial(fields.further, name=name)
        more[name], lost[f"{fields.TOO_LONG}{name}"] = _optional(source, name, pl.String(), parse)
    return more, against, lost


def _times(source: pl.DataFrame, form: EventFormat) -> tuple[pl.Series, dict[str, pl.Series | None]]:
    """[rows] microseconds since the epoch, and the reasons against them; without a column for times zeros, for now."""
    if form.is_by_place:
        return pl.Series([0], dtype=pl.Int64).new_from_index(0, len(source)), dict.fromkeys(_TIME_REASONS)
    column, settings = source[TIMESTAMP], form.settings
    moment = timestamps.microseconds(column, settings.timestamp_unit, settings.timezone, settings.section)
    missing = fields.blank_among(column, moment.is_null()) if moment.null_count() else None
    return moment, dict(zip(_TIME_REASONS, (missing, _impossible(moment, form)), strict=True))


def _optional(
    source: pl.DataFrame, name: str, kind: pl.DataType, parse: Callable[[pl.Series], fields.Parsed]
) -> fields.Parsed:
    """A column that a log may lack, parsed; nulls without it."""
    return parse(source[name]) if name in source else (fields.nothing(len(source), kind), None)


def _first_reason(reasons: Mapping[str, pl.Series | None], num_rows: int) -> pl.Series:
    """[rows] Int8: the position in `ORDER` of the first reason that applies, null where none does."""
    holding = [(code, reasons.get(reason)) for code, reason in enumerate(ORDER)]
    code_of = np.full(num_rows, -1, dtype=np.int8)
    for code, flags in reversed(holding):
        if flags is not None and flags.any():
            code_of[flags.to_numpy()] = code
    verdict = pl.Series("verdict", code_of)
    return verdict.set(verdict < 0, None)


def _plain_ids(source: pl.DataFrame, name: str, section: str) -> pl.Series:
    try:
        return ids.plain(source[name])
    except ValueError as error:
        raise ValueError(f"{section}.columns.{name}: {error}") from None


# Reasons: [rows] whether one applies to each row; None where it applies to no row, which is cheap to check.


def _missing(plain: pl.Series, typed: pl.Series) -> pl.Series | None:
    if typed.dtype != pl.Int64:
        return ids.is_missing(plain)
    return fields.blank_among(plain, typed.is_null()) if typed.null_count() else None


def _not_int64(typed: pl.Series, missing: pl.Series | None) -> pl.Series | None:
    return typed.is_null() & ~missing if typed.null_count() and missing is not None else None


def _bad_ids(
    plain: pl.Series, typed: pl.Series, not_int64: pl.Series | None, id_types: str
) -> pl.Series | None:
    if typed.dtype == pl.Int64 and (not_int64 is None or not not_int64.any()):
        return None
    if typed.dtype == pl.Int64 and id_types == "int64":
        return not_int64
    return ids.is_too_long(plain) if plain.dtype == pl.String else None


def _impossible(moment: pl.Series, form: EventFormat) -> pl.Series | None:
    if form.settings.timestamp_unit == "position":
        return moment.is_null() if moment.null_count() else None
    is_within = moment.is_between(form.earliest, form.latest).fill_null(value=False)
    return None if is_within.all() else ~is_within
