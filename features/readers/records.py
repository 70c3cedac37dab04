"""From a source's records to rows: columns made of several, values given once for the rows below, lists of items.

`flat` gives the form that the reader of a format gets, each column of the source by itself; `rows` makes of its chunks the
mapped columns. Partition folders (`day=2026-01-31/`) are columns too.
"""

import functools
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import polars as pl

from features import tables
from features.schema import ITEM_ID, RANK
from features.settings import Column, TableFormat, columns_of
from features.tables import Chunk, Reading, Rows

MAX_ROWS = 250_000
"""Maximum rows of a chunk, where records have several."""
JOINED_BY = "|"
"""Between the parts of an id that is joined from several columns."""
_LIST = (pl.List, pl.Array)


def flat(form: TableFormat, given: Mapping[str, str]) -> TableFormat:
    """The form with a column of its own for each of the source that is mapped, without those that folders give."""
    columns: dict[str, Column] = {}
    for ours, theirs in form.columns.items():
        parts = columns_of(theirs)
        columns |= {
            _name(ours, theirs, number): part for number, part in enumerate(parts) if part not in given
        }
    return replace(form, columns=columns, fill_down=form.filled_by_pattern) if form.columns else form


def _name(ours: str, theirs: Column, number: int) -> str:
    return ours if isinstance(theirs, str | int) else f"{ours} ({number + 1})"


def rows(
    readings: Iterator[Reading], form: TableFormat, given: Mapping[str, str], *, lists: bool
) -> Iterator[Reading]:
    """Chunks of the mapped columns, from chunks of the columns of `flat`.

    given: columns that the folders of the source's path give. lists: whether columns may hold lists, each element of which is an
    event of its own.
    """
    if given or _has_several(form):
        readings = (_then(reading, given, form) for reading in readings)
    if form.fill_down and isinstance(form.fill_down, list):
        readings = _filled(readings, form)
    if form.items_separator:
        readings = (_then_split(reading, form) for reading in readings)
    elif not lists:
        yield from readings
        return
    for reading in readings:
        yield from (functools.partial(tables.given, chunk) for chunk in _exploded(reading(), form))


def is_flat(form: TableFormat, given: Mapping[str, str]) -> bool:
    """Whether `rows` leaves the columns of delimited text as they are."""
    return not (given or form.fill_down or form.items_separator or _has_several(form))


def _has_several(form: TableFormat) -> bool:
    return any(not isinstance(theirs, str | int) for theirs in form.columns.values())


# --- columns from several ---


def _then(reading: Reading, given: Mapping[str, str], form: TableFormat) -> Reading:
    def made() -> Chunk:
        chunk = reading()
        columns = [
            _column(chunk.frame, ours, theirs, given, form).alias(ours)
            for ours, theirs in form.columns.items()
        ]
        added = [*form.filled_by_pattern, *([RANK] if tables.has_places(form) else [])]
        between = [ours for ours in added if ours in chunk.frame]
        return replace(chunk, frame=pl.DataFrame([*columns, *chunk.frame.select(between)]))

    return made


def _column(
    frame: pl.DataFrame, ours: str, theirs: Column, given: Mapping[str, str], form: TableFormat
) -> pl.Series:
    """A mapped column from those of the source, and those that folders give."""
    parts = [
        pl.Series([given[str(part)]]).new_from_index(0, len(frame))
        if part in given
        else frame[_name(ours, theirs, number)]
        for number, part in enumerate(columns_of(theirs))
    ]
    if isinstance(theirs, str | int):
        return parts[0]
    parts = [_without_missing(part, form.missing) for part in parts]
    if len({str(part.dtype) for part in parts}) > 1 or not isinstance(theirs, dict) or "join" in theirs:
        parts = [part.cast(pl.String) for part in parts]
    if isinstance(theirs, dict) and "first_of" in theirs:
        return pl.select(pl.coalesce(parts)).to_series()
    if isinstance(theirs, dict):
        return pl.select(pl.concat_str(parts, separator=JOINED_BY)).to_series()
    return pl.select(pl.concat_str(parts, separator=" ", ignore_nulls=True)).to_series()


def _without_missing(column: pl.Series, missing: Sequence[str]) -> pl.Series:
    """The column with null for blanks and the words that mean that there is no value."""
    if column.dtype != pl.String:
        return column
    stripped = column.str.strip_chars()
    return column.set(stripped.is_in([*missing, ""]).fill_null(value=True), None)


# --- values given once ---


def _filled(readings: Iterator[Reading], form: TableFormat) -> Iterator[Reading]:
    """The chunks with the last value above in place of missing ones, in the columns of `fill_down`."""
    last: dict[str, pl.Series] = {}
    for reading in readings:
        chunk = reading()
        columns = []
        for ours in form.fill_down:
            column = _without_missing(chunk.frame[ours], form.missing)
            before = last.get(ours, column.clear().extend_constant(None, 1))
            column = pl.concat([before, column], how="vertical").fill_null(strategy="forward")[1:]
            last[ours] = pl.concat([before, column])[-1:]
            columns.append(column.alias(ours))
        yield functools.partial(tables.given, replace(chunk, frame=chunk.frame.with_columns(columns)))


# --- lists of items ---


def _then_split(reading: Reading, form: TableFormat) -> Reading:
    """A chunk with lists of items for texts; of items with a suffix only those that have it, without it.

    Of exposures all items stay; a suffix with other digits (`-0` beside `-1`) is cut off too.
    """
    separator, suffix = form.items_separator, form.clicked_suffix

    def made() -> Chunk:
        chunk = reading()
        items = chunk.frame[ITEM_ID].cast(pl.String).str.strip_chars(separator).str.split(separator)
        if suffix and form.section == "exposures":
            ending = re.sub(r"\d", r"\\d", re.escape(suffix)) + "$"
            items = items.list.eval(pl.element().str.replace(ending, ""))
        elif suffix:
            taken = pl.element().filter(pl.element().str.ends_with(suffix))
            items = items.list.eval(taken.str.strip_suffix(suffix))
        return replace(chunk, frame=chunk.frame.with_columns(items.alias(ITEM_ID)))

    return made


def _exploded(chunk: Chunk, form: TableFormat) -> Iterator[Chunk]:
    """Chunks with a row for each element of the lists in a row, which belong together; exposures with their places.

    A row whose lists differ in length is broken; an empty list is one row without a value.
    """
    frame = chunk.frame
    names = [name for name, kind in frame.schema.items() if isinstance(kind, _LIST)]
    if not names:
        yield chunk
        return
    lists = {name: _as_list(frame[name]) for name in names}
    lengths = [column.list.len().to_numpy() for column in lists.values()]
    is_uneven = np.any([length != lengths[0] for length in lengths], axis=0)
    broken = chunk.broken | is_uneven
    if is_uneven.any():
        nothing = {name: column.clear().extend_constant([None], 1) for name, column in lists.items()}
        lists = {
            name: column.zip_with(pl.Series(~is_uneven), nothing[name].new_from_index(0, len(column)))
            for name, column in lists.items()
        }
    frame = frame.with_columns(column.alias(name) for name, column in lists.items())
    numbers = np.where(is_uneven, 1, lengths[0]).astype(np.int64)
    for start, end in itertools.pairwise(_cuts(numbers)):
        of_record = np.repeat(np.arange(start, end), numbers[start:end])
        part = frame[start:end].explode(names)
        if tables.has_places(form):
            part = part.with_columns(tables.places(of_record))
        raw = functools.partial(_raw, chunk.raw, of_record)
        yield Chunk(
            part, broken[of_record], raw, lambda text: chunk.why(text) or "lists of different lengths"
        )


def _as_list(column: pl.Series) -> pl.Series:
    """Lists without inner lists, of at least one element."""
    if isinstance(column.dtype, pl.Array):
        column = column.arr.to_list()
    while isinstance(column.dtype, pl.List) and isinstance(column.dtype.inner, _LIST):
        column = column.cast(pl.List(pl.List(column.dtype.inner.inner))).list.eval(pl.element().explode())
    is_empty = (column.list.len() == 0).fill_null(value=True)
    nothing = column.clear().extend_constant([None], 1).new_from_index(0, len(column))
    return column.zip_with(~is_empty, nothing)


def _cuts(numbers: Rows) -> list[int]:
    """Positions at which records are cut into chunks of about MAX_ROWS rows."""
    pieces = np.cumsum(numbers) // MAX_ROWS
    return [0, *(np.flatnonzero(np.diff(pieces)) + 1).tolist(), len(numbers)]


def _raw(raw: Callable[[Rows], list[str]], of_record: Rows, rows: Rows) -> list[str]:
    return raw(of_record[rows])
