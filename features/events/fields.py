"""Fields of a log's rows as values: numbers, event types, and what counts as missing."""

from collections.abc import Collection, Sequence

import polars as pl

from features.events import ids
from features.printable import printable

KIND = pl.Categorical()
MANY_TYPES, MANY_TYPE_BYTES = 10_000, 1 << 20
"""Maximum number of event types, and maximum bytes of their names: a column with more holds text."""
LONGEST_VALUE_BYTES = 1000
"""Longest text of a further column."""
TOO_LONG = "long_"
"""Beginning of the reason for which an event loses the value of a further column; its name follows."""
Parsed = tuple[pl.Series, pl.Series | None]
"""[rows] values, and which rows have something that is none; None where none has."""

_POINTS = (
    r"^(?P<sign>[+-]?)\p{Sc}?\s*(?P<inner>[+-]?)(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*\p{Sc}?$"
)
_COMMAS = (
    r"^(?P<sign>[+-]?)\p{Sc}?\s*(?P<inner>[+-]?)(?P<number>(?:\d{1,3}(?:[.\s]\d{3})+|\d+)(?:,\d*)?(?:[eE][+-]?\d+)?|,\d+)"
    r"\s*\p{Sc}?$"
)
"""Numbers between currency signs, with a decimal point, or a decimal comma and then points or blanks between thousands."""


def without_words(frame: pl.DataFrame, missing: Sequence[str]) -> pl.DataFrame:
    """Replace the words that mean that there is no value by null, in text and numbers, and in lists of them."""
    words = [word for word in missing if word]
    if not words:
        return frame
    return frame.with_columns(_without_words(column, words) for column in frame)


def _without_words(column: pl.Series, words: Sequence[str]) -> pl.Series:
    kind = column.dtype
    if kind == pl.String:
        return column.set(column.str.strip_chars().is_in(words).fill_null(value=False), None)
    if kind == pl.List(pl.String):
        return column.list.eval(pl.element().filter(~pl.element().str.strip_chars().is_in(words)))
    if isinstance(kind, pl.Categorical | pl.Enum):
        return _without_words(column.cast(pl.String), words)
    if kind.is_numeric():
        numbers = pl.Series(words).cast(pl.Float64, strict=False).drop_nulls()
        return column.set(column.cast(pl.Float64).is_in(numbers.implode()).fill_null(value=False), None)
    return column


def blank_among(column: pl.Series, rows: pl.Series) -> pl.Series:
    """[n] whether a value is blank, computed only for `rows` [n]."""
    return rows.scatter(rows.arg_true(), _is_blank(column.filter(rows)))


def _is_blank(column: pl.Series) -> pl.Series:
    if column.dtype.is_float():
        return (column.is_null() | column.is_nan()).fill_null(value=True)
    return ids.is_missing(column)


def event_types(column: pl.Series) -> Parsed:
    """Event types as categories, blanks as null, and the rows whose type is too long."""
    if column.dtype.is_nested():
        raise ValueError(f"events.columns.event_type: the column is {column.dtype}, expected text")
    text = column.cast(pl.String, strict=False)
    too_long = ids.is_too_long(text)
    kinds = (text.set(too_long, None) if too_long.any() else text).cast(KIND)
    names = kinds.unique().drop_nulls().cast(pl.String)
    check_types(names)
    odd = names.filter(names.str.strip_chars() != names)
    if len(odd):
        stripped = odd.str.strip_chars()
        kinds = kinds.cast(pl.String).replace(odd, stripped.set(stripped == "", None)).cast(KIND)
    if "" in names:
        kinds = kinds.set(kinds.is_in(pl.Series([""], dtype=KIND).implode()), None)
    return kinds, too_long if too_long.any() else None


def further(column: pl.Series, name: str) -> Parsed:
    """A further column as text without surrounding blanks, blanks as null, and the rows whose text is too long."""
    kind = column.dtype
    if kind.is_nested() or isinstance(kind, pl.Binary | pl.Object | pl.Duration):
        raise ValueError(
            f"events.columns.{name}: the column is {kind}, expected text, numbers, dates or truth values"
        )
    text = column.cast(pl.String).str.strip_chars()
    text = text.set((text == "").fill_null(value=False), None)
    too_long = (text.str.len_bytes() > LONGEST_VALUE_BYTES).fill_null(value=False)
    return (text.set(too_long, None), too_long) if too_long.any() else (text, None)


def check_types(names: Collection[str], where: str = "") -> None:
    """Raise ValueError for more or longer event types than a log has; `where` begins the message."""
    num_bytes = sum(min(len(name), ids.LONGEST_BYTES) for name in names)  # one far too long is a row's fault
    if len(names) > MANY_TYPES or num_bytes > MANY_TYPE_BYTES:
        found = (
            f"{len(names):,} different types"
            if len(names) > MANY_TYPES
            else f"types of {num_bytes:,} letters"
        )
        example = printable(next(iter(names)), 50)
        raise ValueError(
            f"{where}events.columns.event_type: {found} such as {example}, expected at most {MANY_TYPES:,} short names; if the "
            "column is text, leave it out of events.columns"
        )


def numbers(column: pl.Series, decimal: str, key: str = "events.columns.value") -> Parsed:
    """A column as float32, and the rows whose value is not a finite number. key: of the configuration, for messages."""
    if column.dtype.is_nested() or column.dtype.is_temporal():
        raise ValueError(f"{key}: the column is {column.dtype}, expected numbers")
    if column.dtype != pl.String:
        number = column.cast(pl.Float32, strict=False)
    elif decimal == ",":
        number = _from_text(column, _COMMAS)
    else:
        number = column.cast(pl.Float32, strict=False)
        rest = number.is_null() & column.is_not_null() & (column != "")
        if rest.any():
            number = number.scatter(rest.arg_true(), _from_text(column.filter(rest), _POINTS))
    is_finite = number.is_finite().fill_null(value=False)
    if is_finite.all():
        return number, None
    absent = ids.is_missing(column.filter(~is_finite))
    return number.set(~is_finite, None), (~is_finite).scatter((~is_finite).arg_true(), ~absent)


def places(column: pl.Series, key: str = "events.columns.order") -> Parsed:
    """A column as float64 (whole numbers up to 2**53 stay exact), and the rows whose place is no finite number.

    key: of the configuration, for messages.
    """
    if column.dtype.is_nested():
        raise ValueError(f"{key}: the column is {column.dtype}, expected numbers")
    text = column.str.strip_chars() if column.dtype == pl.String else column
    number = text.cast(pl.Float64, strict=False)
    number = number.set(~number.is_finite().fill_null(value=False), None)
    absent = blank_among(column, number.is_null())
    bad = number.is_null() & ~absent
    return number, bad if bad.any() else None


def _from_text(text: pl.Series, pattern: str) -> pl.Series:
    parts = text.str.strip_chars().str.extract_groups(pattern).struct.unnest()
    number = parts["number"]
    if pattern == _COMMAS:
        number = number.str.replace_all(r"[.\s]", "").str.replace(",", ".", literal=True)
    return (parts["sign"] + parts["inner"] + number).cast(pl.Float32, strict=False)


def nothing(num_rows: int, kind: pl.DataType) -> pl.Series:
    """A column of nulls."""
    return pl.Series([None], dtype=kind).new_from_index(0, num_rows)
