"""Parquet sources: every column type that can hold an id, a time or a number, without loss."""

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from features import tables
from features.readers import parquet_pages
from features.settings import TableFormat, single
from features.tables import Chunk, Rows

BATCH_ROWS = 250_000
"""Maximum rows of a chunk; fewer where they decode to more than a block's bytes."""
_BUFFER_BYTES = 1 << 20
"""Bytes of a column chunk read at a time."""

_FIRST_DAY, _LAST_DAY = -719_162, 2_932_896
"""0001-01-01 and 9999-12-31, in days since the epoch."""


@dataclass(frozen=True)
class _Place:
    """Location of a mapped column."""

    name: str
    """Column name; dotted for a field of a struct."""
    column: int
    """Position among the columns of the file."""
    steps: tuple[int, ...]
    """Positions of the fields within structs."""
    within: tuple[str, ...] = ()
    """Names of the fields within the structs of a list."""

    def of(self, batch: pa.RecordBatch, names: Sequence[str]) -> pa.Array:
        """The column in a batch with some of the file's columns; names: of all the file's columns."""
        name = names[self.column]
        same = [at for at, column_name in enumerate(batch.schema.names) if column_name == name]
        column = batch.column(same[list(names[: self.column]).count(name)])
        return pc.struct_field(column, self.steps) if self.steps else column

    def elements(self, column: pl.Series) -> pl.Series:
        """The column, a list of structs as the list of their fields."""
        for name in self.within:
            column = column.list.eval(pl.element().struct.field(name))
        return column

    def shown(self, names: Sequence[str]) -> str:
        """Name of the column in raw rows."""
        is_unique = list(names).count(self.name) <= 1
        return self.name if is_unique else f"{self.name} ({self.column + 1})"


def read(path: Path, form: TableFormat) -> Iterator[Chunk]:
    """Chunks of rows of a Parquet file in its own column types; names may be dotted paths into structs.

    Raises ValueError for a damaged file, one of another format, and a missing mapped column.
    """
    with _opened(path) as file:
        present = list(file.schema_arrow.names)
        places = {ours: _place(form, ours, file.schema_arrow, str(path)) for ours in form.columns}
        columns = sorted({place.name.partition("[]")[0] for place in places.values()})
        shown = [place.shown(present) for place in places.values()]
        num_rows = 0
        batches = (
            {ours: _dense(place.of(batch, present)) for ours, place in places.items()}
            for batch in _bounded_batches(path, file, columns)
        )
        for batch in _joined(pa.RecordBatch.from_pydict(arrays) for arrays in batches):
            num_rows += len(batch)
            broken = np.zeros(len(batch), dtype=bool)
            frame = pl.DataFrame(
                {ours: place.elements(_readable(batch[ours], broken)) for ours, place in places.items()}
            )
            yield Chunk(frame, broken, _raw(frame, shown))
        if num_rows != file.metadata.num_rows:
            raise pa.ArrowInvalid(f"{num_rows:,} rows were found of {file.metadata.num_rows:,}")


def _bounded_batches(path: Path, file: pq.ParquetFile, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Batches of rows that decode to about a block's bytes."""
    with path.open("rb") as stream:
        for group in range(file.num_row_groups):
            num_rows = parquet_pages.rows_at_a_time(file, stream, group, columns, tables.BLOCK_BYTES)
            yield from file.iter_batches(min(num_rows, BATCH_ROWS), row_groups=[group], columns=columns)


def _joined(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Consecutive batches as one, up to BATCH_ROWS rows and a block's bytes."""
    waiting: list[pa.RecordBatch] = []
    num_rows = num_bytes = 0
    for batch in batches:
        if waiting and (num_rows + len(batch) > BATCH_ROWS or num_bytes + batch.nbytes > tables.BLOCK_BYTES):
            yield pa.concat_batches(waiting)
            waiting, num_rows, num_bytes = [], 0, 0
        waiting.append(batch)
        num_rows += len(batch)
        num_bytes += batch.nbytes
    if waiting:
        yield pa.concat_batches(waiting)


def check(schema: pa.Schema, form: TableFormat, where: str) -> None:
    """Raise ValueError for a mapped column that a schema has not, or several times."""
    for ours in form.columns:
        _place(form, ours, schema, where)


def names(path: Path) -> list[str]:
    """Column names of a Parquet file. Raises ValueError for a damaged file or one of another format."""
    with _opened(path) as file:
        return list(file.schema_arrow.names)


def schema(path: Path) -> dict[str, pl.DataType]:
    """Columns of a Parquet file and their types. Raises ValueError as `names`."""
    with _opened(path) as file:
        frame = pl.from_arrow(file.schema_arrow.empty_table())
        assert isinstance(frame, pl.DataFrame)
        return dict(frame.schema)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[pq.ParquetFile]:
    try:
        with pq.ParquetFile(
            path, buffer_size=_BUFFER_BYTES, pre_buffer=False, coerce_int96_timestamp_unit="us"
        ) as file:
            yield file
    except (pa.ArrowException, pl.exceptions.PolarsError, UnicodeError, OSError) as error:
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno is not None):
            raise
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{path}: cannot be read as Parquet, the file is damaged or of another format: {reason}"
        ) from None


def _place(form: TableFormat, ours: str, schema: pa.Schema, where: str) -> _Place:
    """Location of a mapped column: a column of that name, or a field within a struct.

    Raises ValueError for no such column or several.
    """
    theirs = single(form.columns[ours])
    if isinstance(theirs, str) and theirs not in schema.names and (place := _within(schema, theirs)):
        return place
    if isinstance(theirs, str) and "[]" in theirs:
        array, _, rest = theirs.partition("[]")
        place = _within(schema, array)
        if place is not None:
            return replace(place, name=theirs, within=tuple(rest.strip(".").split(".")) if rest else ())
    name = tables.column_at(form, ours, schema.names, where)
    return _Place(name, theirs - 1 if isinstance(theirs, int) else schema.names.index(name), ())


def _within(schema: pa.Schema, path: str) -> _Place | None:
    """Location of a dotted path into a struct; None if absent."""
    first, *parts = path.split(".")
    if schema.names.count(first) != 1:
        return None
    column = schema.names.index(first)
    kind, steps = schema.field(column).type, []
    for part in parts:
        position = kind.get_field_index(part) if pa.types.is_struct(kind) else -1
        if position < 0:
            return None
        steps.append(position)
        kind = kind.field(position).type
    return _Place(path, column, tuple(steps))


def _dense(column: pa.Array) -> pa.Array:
    """A column without a dictionary."""
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def _readable(column: pa.Array, broken: NDArray[np.bool_]) -> pl.Series:
    """A column in a type that polars reads; marks rows with undecodable bytes as broken."""
    kind = column.type
    if isinstance(kind, pa.UuidType):
        column = pa.array([None if uuid is None else str(uuid) for uuid in column.to_pylist()], pa.string())
    elif isinstance(kind, pa.BaseExtensionType):
        column = column.storage
    kind = column.type
    if pa.types.is_timestamp(kind) and kind.tz is not None:
        column = column.cast(pa.timestamp(kind.unit, "UTC"))  # the same moments, whatever the zone's name
    elif pa.types.is_decimal256(kind):
        column = column.cast(pa.large_string())
    if _is_text(column.type):
        column = _as_text(column, broken)
    else:
        column.validate(full=True)
    return _within_calendar(pl.Series(pl.from_arrow(column)))


def _is_text(kind: pa.DataType) -> bool:
    types = pa.types
    return any(
        is_kind(kind)
        for is_kind in (
            types.is_string, types.is_large_string, types.is_string_view, types.is_binary, types.is_large_binary,
            types.is_binary_view, types.is_fixed_size_binary,
        )
    )  # fmt: skip


def _as_text(column: pa.Array, broken: NDArray[np.bool_]) -> pa.Array:
    """Text or bytes as text; marks undecodable rows as broken."""
    data = column if column.type == pa.large_binary() else column.cast(pa.large_binary())
    try:
        return data.cast(pa.large_string())
    except pa.ArrowInvalid:
        texts: list[str | None] = []
        for row, value in enumerate(data.to_pylist()):
            text = None if value is None else value.decode(errors="backslashreplace")
            broken[row] |= text is not None and text.encode() != value
            texts.append(text)
        return pa.array(texts, pa.large_string())


def _within_calendar(column: pl.Series) -> pl.Series:
    """Dates and times beyond the years 1 to 9999, which polars cannot show, as the first or last of them."""
    kind = column.dtype
    if kind == pl.Date:
        limits = (_FIRST_DAY, _LAST_DAY)
    elif isinstance(kind, pl.Datetime) and kind.time_unit != "ns":
        per_day = 86_400 * (1000 if kind.time_unit == "ms" else 1_000_000)
        limits = (_FIRST_DAY * per_day, (_LAST_DAY + 1) * per_day - 1)
    else:
        return column
    number = column.to_physical()
    return column if number.is_between(*limits).all() else number.clip(*limits).cast(kind)


def _raw(frame: pl.DataFrame, names: Sequence[str]) -> Callable[[Rows], list[str]]:
    return lambda rows: [
        json.dumps(dict(zip(names, row, strict=True)), default=str, ensure_ascii=False)
        for row in frame[rows].rows()
    ]
