"""JSON: an object per line, and forms that `json_documents` brings into lines; lists in it make several rows of an object."""

import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
from numpy.typing import NDArray

from features import tables
from features.readers.json_documents import OneObjectPerLine
from features.readers.json_shapes import Shapes
from features.readers.json_values import UnevenLists, as_scalar, parse_object, rows_of, why
from features.schema import EVENT_TYPE, ITEM_ID, ORDER, TIMESTAMP, USER_ID, VALUE
from features.settings import TableFormat, single
from features.tables import Chunk, Rows, TextStream

_MAX_KEYS = 1000
_LONGEST_KEY = 1000
"""Keys and their characters kept for a message about a missing column."""


def collect_keys(tree: Mapping[str, object], keys: dict[str, None]) -> None:
    """Add the keys of an object to `keys`, up to _MAX_KEYS."""
    if len(keys) < _MAX_KEYS:
        keys |= dict.fromkeys(key[:_LONGEST_KEY] for key in itertools.islice(tree, _MAX_KEYS))


def json_lines(stream: TextStream, where: str) -> Iterator[list[bytes]]:
    """Blocks of the lines of a jsonl file, without blank ones."""
    for block, _ in tables.whole_lines(OneObjectPerLine(stream, where), b"", where):
        yield [line for line in block.split(b"\n") if line.strip()]


def read_jsonl(stream: TextStream, form: TableFormat, where: str) -> Iterator[Chunk]:
    """Chunks of rows of a file with a JSON object per line; column names are dotted paths.

    Raises ValueError for a missing mapped column, naming the keys of the file.
    """
    paths = {ours: _name(form, ours, where) for ours in form.columns}
    shapes = Shapes(paths)
    has_arrays = any("[]" in path for path in paths.values())
    seen: set[str] = set()
    keys: dict[str, None] = {}
    for block, _ in tables.whole_lines(OneObjectPerLine(stream, where), b"", where):
        lines = tables.Lines.of(block)
        is_odd = lines.undecodable() | has_arrays
        matched, rest = shapes.match(lines.texts(), np.flatnonzero(~is_odd))
        parsed = _parsed(lines, np.union1d(rest, np.flatnonzero(is_odd)), paths, keys)
        chunk = replace(
            _chunk(lines, matched, parsed, form, has_arrays=has_arrays), why=functools.partial(why, paths)
        )
        seen |= {ours for ours in paths if chunk.frame[ours].null_count() < len(chunk.frame)}
        if len(chunk.frame):
            yield chunk
    keys |= dict.fromkeys(shapes.keys())
    needed = [ours for ours in (USER_ID, ITEM_ID, TIMESTAMP, EVENT_TYPE, VALUE, ORDER) if ours in paths]
    absent = [ours for ours in needed if ours not in seen and paths[ours] not in keys]
    if keys and absent:
        raise tables.missing_column(form, absent[0], sorted(keys), where)


@dataclass(frozen=True)
class _Parsed:
    """Mapped values of lines that were parsed one by one."""

    rows: Rows
    """Line numbers, without blank lines."""
    frame: pl.DataFrame
    broken: NDArray[np.bool_]


def _parsed(lines: tables.Lines, rows: Rows, paths: Mapping[str, str], keys: dict[str, None]) -> _Parsed:
    """The lines `rows` as JSON objects, of which only the mapped values stay in memory.

    keys: collects keys of the first level.
    """
    numbers: list[int] = []
    broken: list[bool] = []
    values: dict[str, list[str | None]] = {ours: [] for ours in paths}
    for row in rows.tolist():
        text = lines.line(row)
        if not text.strip():
            continue
        tree = parse_object(text)
        try:
            records = [{}] if tree is None else rows_of(tree, paths)
            is_uneven = False
        except UnevenLists:
            records, is_uneven = [{}], True
        for record in records:
            is_broken = tree is None or is_uneven
            for ours in paths:
                value, is_scalar = as_scalar(record.get(ours))
                values[ours].append(value)
                is_broken |= not is_scalar
            numbers.append(row)
            broken.append(is_broken)
        collect_keys(tree or {}, keys)
    frame = pl.DataFrame(values, schema=dict.fromkeys(paths, pl.String))
    return _Parsed(np.array(numbers, dtype=np.int64), frame, np.array(broken, dtype=bool))


def _chunk(
    lines: tables.Lines,
    matched: Sequence[tuple[Rows, pl.DataFrame]],
    parsed: _Parsed,
    form: TableFormat,
    *,
    has_arrays: bool,
) -> Chunk:
    """The rows matched by shape and the parsed ones, in order; exposures in lists with their places."""
    rows = np.concatenate([*(rows for rows, _ in matched), parsed.rows])
    frame = pl.concat([*(frame for _, frame in matched), parsed.frame])
    broken = np.zeros(len(rows), dtype=bool)
    broken[len(rows) - len(parsed.rows) :] = parsed.broken
    if len(matched) + bool(len(parsed.rows)) > 1:
        order = np.argsort(rows, kind="stable")
        rows, frame, broken = rows[order], frame[order], broken[order]
    if tables.has_places(form) and (has_arrays or not np.diff(rows).all()):
        frame = frame.with_columns(tables.places(rows))
    return Chunk(frame, broken, lines.raw(rows, rows))


def _name(form: TableFormat, ours: str, where: str) -> str:
    theirs = single(form.columns[ours])
    if isinstance(theirs, int):
        raise ValueError(
            f"{form.section}.columns.{ours}: received position {theirs} for {where}, expected a name: JSON has no positions"
        )
    return theirs
