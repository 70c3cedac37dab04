"""Tables whose rows are records: JSON lines and Parquet."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from features import tables
from features.schema import ITEM_ID, TIMESTAMP, USER_ID
from features.tables import Chunk, Rows, TableFormat

BATCH_ROWS = 250_000
"""Rows of a chunk from Parquet."""


class _Invalid(ValueError):
    """A line that is not a JSON object."""


def _refuse_constant(name: str) -> Any:
    raise _Invalid(name)


def parse_object(line: bytes, encoding: str) -> dict[str, Any] | None:
    """A line as a JSON object, None where it is none; numbers stay the text that they are, so that ids are exact."""
    try:
        value = json.loads(
            line.decode(encoding), parse_int=str, parse_float=str, parse_constant=_refuse_constant
        )
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def at_path(tree: dict[str, Any], path: str) -> Any:
    """What lies in a JSON object at a dotted path (a key with dots in it is found as well); None where nothing does."""
    if path in tree:
        return tree[path]
    node: Any = tree
    for part in path.split("."):
        if not isinstance(node, dict):
            return None
        node = node.get(part)
    return node


def json_lines(stream: BinaryIO, form: TableFormat, where: str) -> Iterator[list[bytes]]:
    """The lines of a jsonl file that are not blank, some at a time."""
    start = tables.without_mark(stream.read(4), where, form.section)
    for block, _ in tables.whole_lines(stream, start, where):
        yield [line for line in block.split(b"\n") if line.strip()]


def read_jsonl(stream: BinaryIO, form: TableFormat, where: str) -> Iterator[Chunk]:
    """The rows of a file with a JSON object per line; names of columns are dotted paths."""
    paths = {ours: _name(form, ours, where) for ours in form.columns}
    seen: set[str] = set()
    keys: set[str] = set()
    for lines in json_lines(stream, form, where):
        objects = [parse_object(line, form.encoding) for line in lines]
        values = {
            ours: [None if each is None else at_path(each, path) for each in objects]
            for ours, path in paths.items()
        }
        seen |= {ours for ours, column in values.items() if any(each is not None for each in column)}
        keys |= {key for each in objects[:100] if each is not None for key in each}
        broken = np.array([each is None for each in objects], dtype=bool)
        frame = pl.DataFrame({ours: _scalars(column, broken) for ours, column in values.items()})
        yield Chunk(frame, broken, _raw_lines(lines, form.encoding))
    absent = [ours for ours in (USER_ID, ITEM_ID, TIMESTAMP) if ours in paths and ours not in seen]
    if keys and absent:
        raise tables.missing_column(form, absent[0], sorted(keys), where)


def _scalars(values: list[Any], broken: NDArray[np.bool_]) -> pl.Series:
    """Values of one key as text; a row with an object, a list or half a surrogate pair there is marked broken."""
    texts: list[str | None] = []
    for row, value in enumerate(values):
        text = {True: "true", False: "false"}[value] if isinstance(value, bool) else value
        if text is not None and not (isinstance(text, str) and _is_encodable(text)):
            broken[row] = True
            text = None
        texts.append(text)
    return pl.Series(texts, dtype=pl.String)


def _is_encodable(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _raw_lines(lines: Sequence[bytes], encoding: str) -> Callable[[Rows], list[str]]:
    return lambda rows: [tables.as_text(lines[row], encoding) for row in rows]


def _name(form: TableFormat, ours: str, where: str) -> str:
    theirs = form.columns[ours]
    if isinstance(theirs, int):
        raise ValueError(
            f"{form.section}.columns.{ours}: received position {theirs} for {where}, expected a name: JSON has no positions"
        )
    return theirs


def read_parquet(path: Path, form: TableFormat) -> Iterator[Chunk]:
    """The rows of a Parquet file, columns with the types that they have there."""
    try:
        with pq.ParquetFile(path) as file:
            found = list(file.schema_arrow.names)
            names = {ours: tables.column_at(form, ours, found, str(path)) for ours in form.columns}
            for batch in file.iter_batches(BATCH_ROWS, columns=sorted(set(names.values()))):
                table, broken = _decoded(batch)
                frame = table.select(pl.col(theirs).alias(ours) for ours, theirs in names.items())
                yield Chunk(frame, broken, _raw_records(table))
    except (pa.ArrowException, pl.exceptions.PolarsError, UnicodeError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ValueError(f"{path}: cannot be read as Parquet: {error}") from None


def parquet_names(path: Path) -> list[str]:
    """The columns of a Parquet file."""
    try:
        return list(pq.read_schema(path).names)
    except pa.ArrowException as error:
        raise ValueError(f"{path}: cannot be read as Parquet: {error}") from None


def _decoded(batch: pa.RecordBatch) -> tuple[pl.DataFrame, NDArray[np.bool_]]:
    """A batch as a frame, and the rows with bytes that are no text (nothing on the way here looks at them)."""
    broken = np.zeros(len(batch), dtype=bool)
    columns = []
    for column in batch.columns:
        try:
            column.validate(full=True)
        except pa.ArrowInvalid:
            if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
                raise
            columns.append(_as_valid_text(column, broken))
        else:
            columns.append(column)
    frame = pl.from_arrow(pa.record_batch(columns, names=batch.schema.names))
    assert isinstance(frame, pl.DataFrame)
    return frame, broken


def _as_valid_text(column: pa.Array, broken: NDArray[np.bool_]) -> pa.Array:
    texts: list[str | None] = []
    for row, value in enumerate(column.cast(pa.large_binary()).to_pylist()):
        text = None if value is None else value.decode(errors="backslashreplace")
        broken[row] |= text is not None and text.encode() != value
        texts.append(text)
    return pa.array(texts, pa.large_string())


def _raw_records(frame: pl.DataFrame) -> Callable[[Rows], list[str]]:
    return lambda rows: [
        json.dumps(row, default=str, ensure_ascii=False) for row in frame[rows].rows(named=True)
    ]
