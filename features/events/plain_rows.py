"""Rows whose verdict one expression over parsed columns gives; all others are judged by their text (`verdicts`).

A row is plain where its ids need no other spelling, its time is possible, its type stands without blanks, its value is finite and
no further column is too long.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import polars as pl

from features import schema
from features.events import fields, ids, timestamps
from features.events.event_format import EventFormat
from features.events.row_counts import ORDER
from features.events.row_filters import RowFilters
from features.events.verdicts import Judged, TextIds, validate
from features.exposure_settings import ExposureLog
from features.schema import EVENT_TYPE, TIMESTAMP, VALUE, IdType
from features.tables import Chunk

_TYPES: dict[str, pl.DataType] = {TIMESTAMP: pl.Int64(), VALUE: pl.Float32(), EVENT_TYPE: fields.KIND}
_VERDICT, _IS_PLAIN = "verdict", "is_plain"


def parsed_columns(form: EventFormat, filters: RowFilters) -> dict[str, pl.DataType]:
    """Columns of text to parse while they are read; none where settings ask for more than `judge` sees in them."""
    settings = form.settings
    is_plain = (
        not isinstance(settings, ExposureLog)  # it has further columns
        and settings.timestamp_unit in (*timestamps.DIGITS, "position")
        and settings.decimal == "."
        and not any(settings.missing)
        and schema.ORDER not in settings.columns
        and TIMESTAMP in settings.columns
        and not (filters.users or filters.items or filters.where)
    )
    return {name: kind for name, kind in _TYPES.items() if name in settings.columns} if is_plain else {}


def judge(chunk: Chunk, form: EventFormat, id_types: Mapping[str, IdType], filters: RowFilters) -> Judged:
    """`verdicts.validate`, which sees of a chunk with parsed columns only the rows that are not plain.

    Raises TextIds as `validate`.
    """
    if chunk.texts is None:
        return validate(chunk, form, id_types, filters)
    present = [chunk.frame[name].dtype for name in form.settings.further if name in chunk.frame]
    if any(kind != pl.String for kind in present):  # a parsed column of the source under another name
        whole = chunk.texts(np.arange(len(chunk.frame)))
        return validate(replace(chunk, frame=whole, texts=None), form, id_types, filters)
    typed = [name for name, kind in id_types.items() if kind == "int64"]
    frame = chunk.frame.with_columns(
        pl.col(name).cast(pl.Int64, strict=False).alias(f"{name} as number") for name in typed
    )
    found = frame.select(**_expressions(frame, form, id_types))
    events = found.drop(_VERDICT, _IS_PLAIN)
    judged = Judged(events, found[_VERDICT], {})
    rows = np.flatnonzero(~found[_IS_PLAIN].to_numpy() | chunk.broken)
    if not len(rows):
        return judged
    raw = chunk.raw
    texts = Chunk(chunk.texts(rows), chunk.broken[rows], lambda some: raw(rows[some]), chunk.why)
    try:
        return judged.corrected(rows, validate(texts, form, id_types, filters))
    except TextIds as error:
        raise TextIds(error.column, int(rows[error.source_row - 1]) + 1, error.text) from None


def _expressions(
    frame: pl.DataFrame, form: EventFormat, id_types: Mapping[str, IdType]
) -> dict[str, pl.Expr]:
    """Columns of the events, the verdict on plain rows, and whether a row is plain."""
    settings = form.settings
    typed = {name: _id(name, kind) for name, kind in id_types.items()}
    moment, is_possible = _moment(form)
    columns = {name: value for name, (value, _) in typed.items()}
    columns[TIMESTAMP] = moment.cast(schema.TIME)
    is_plain = [*(is_plain for _, is_plain in typed.values()), is_possible]
    verdict = pl.lit(None, pl.Int8)
    value, kind = pl.col(VALUE), pl.col(EVENT_TYPE)
    if VALUE in frame:
        is_plain.append(value.is_finite())
        if settings.min_value is not None:
            below = pl.lit(ORDER.index("value_below_minimum"), pl.Int8)
            verdict = pl.when(value < settings.min_value).then(below).otherwise(verdict)
    if EVENT_TYPE in frame:
        names = frame[EVENT_TYPE].unique().cast(pl.String).drop_nulls().to_list()
        fields.check_types(names)
        plain = [
            name for name in names if name and name.strip() == name and len(name) < ids.LONGEST_BYTES / 4
        ]
        is_plain.append(kind.is_in(plain) | kind.is_null())
    else:
        kind = pl.lit(None, fields.KIND)
    if settings.types is not None:
        unlisted = pl.lit(ORDER.index("type_not_listed"), pl.Int8)
        is_listed = kind.is_in(list(settings.types)).fill_null(value=False)
        verdict = pl.when(is_listed).then(verdict).otherwise(unlisted)
    columns[EVENT_TYPE] = kind
    columns[VALUE] = value if VALUE in frame else pl.lit(None, pl.Float32)
    for name in settings.further:
        text = pl.col(name).str.strip_chars() if name in frame else pl.lit(None, pl.String)
        columns[name] = pl.when(text != "").then(text)
        is_plain.append(text.is_null() | (text.str.len_bytes() <= fields.LONGEST_VALUE_BYTES))
    return columns | {_VERDICT: verdict, _IS_PLAIN: pl.all_horizontal(is_plain).fill_null(value=False)}


def _id(name: str, kind: IdType) -> tuple[pl.Expr, pl.Expr]:
    """An id in its final type, and whether it needs no other spelling."""
    text = pl.col(name)
    if kind == "int64":
        number = pl.col(f"{name} as number")
        return number, number.is_not_null() & ((text >= "1") | (text == "0"))
    return text, ~ids.may_be_odd(text) & (text.str.len_bytes() <= ids.LONGEST_BYTES)


def _moment(form: EventFormat) -> tuple[pl.Expr, pl.Expr]:
    """Microseconds since the epoch, and whether they are possible."""
    number = pl.col(TIMESTAMP)
    if form.settings.timestamp_unit == "position":
        return number, number.is_not_null()
    digits = timestamps.DIGITS[form.settings.timestamp_unit]
    unit = 10 ** abs(digits)
    if digits <= 0:
        moment = number // unit
        return moment, moment.is_between(form.earliest, form.latest)
    return number * unit, number.is_between(-(-form.earliest // unit), form.latest // unit)
