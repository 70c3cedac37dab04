"""JSON lines: one object per line."""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from features import tables
from features.readers.json_shapes import Shapes
from features.schema import ITEM_ID, TIMESTAMP, USER_ID
from features.settings import TableFormat, single
from features.tables import Chunk, Rows, Utf8Stream

_MAX_KEYS = 1000
_LONGEST_KEY = 1000
"""Keys and their characters kept for a message about a missing column."""


class _Invalid(ValueError):
    """A line is not valid JSON."""


def _refuse_constant(name: str) -> Any:
    raise _Invalid(name)


def parse_object(line: bytes) -> dict[str, Any] | None:
    """A line as a JSON object, None if it is not one; numbers stay text, so that ids are exact."""
    try:
        value = json.loads(line.decode(), parse_int=str, parse_float=str, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def at_path(tree: dict[str, Any], path: str) -> Any:
    """Value at a dotted path of a JSON object (a key with dots in it comes first); None if absent."""
    if path in tree:
        return tree[path]
    node: Any = tree
    for part in path.split("."):
        if not isinstance(node, dict):
            return None
        node = node.get(part)
    return node


def json_lines(stream: Utf8Stream, where: str) -> Iterator[list[bytes]]:
    """Blocks of the lines of a jsonl file, without blank ones."""
    for block, _ in tables.whole_lines(stream, b"", where):
        yield [line for line in block.split(b"\n") if line.strip()]


def read_jsonl(stream: Utf8Stream, form: TableFormat, where: str) -> Iterator[Chunk]:
    """Chunks of rows of a file with a JSON object per line; column names are dotted paths.

    Raises ValueError for a missing mapped column, naming the keys of the file.
    """
    paths = {ours: _name(form, ours, where) for ours in form.columns}
    shapes = Shapes(paths)
    seen: set[str] = set()
    keys: dict[str, None] = {}
    for block, _ in tables.whole_lines(stream, b"", where):
        lines = tables.Lines.of(block)
        is_text = ~lines.undecodable()
        matched, rest = shapes.match(lines.texts(), np.flatnonzero(is_text))
        chunk = _chunk(
            lines, matched, _parsed(lines, np.union1d(rest, np.flatnonzero(~is_text)), paths, keys)
        )
        seen |= {ours for ours in paths if chunk.frame[ours].null_count() < len(chunk.frame)}
        if len(chunk.frame):
            yield chunk
    keys |= dict.fromkeys(shapes.keys())
    needed = [ours for ours in (USER_ID, ITEM_ID, TIMESTAMP) if ours in paths]
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

    keys: collects keys of the first level, up to _MAX_KEYS.
    """
    numbers: list[int] = []
    broken: list[bool] = []
    values: dict[str, list[str | None]] = {ours: [] for ours in paths}
    for row in rows.tolist():
        text = lines.line(row)
        if not text.strip():
            continue
        tree = parse_object(text)
        is_broken = tree is None
        for ours, path in paths.items():
            value, is_scalar = _scalar(None if tree is None else at_path(tree, path))
            values[ours].append(value)
            is_broken |= not is_scalar
        numbers.append(row)
        broken.append(is_broken)
        if tree and len(keys) < _MAX_KEYS:
            keys |= dict.fromkeys(key[:_LONGEST_KEY] for key in itertools.islice(tree, _MAX_KEYS))
    frame = pl.DataFrame(values, schema=dict.fromkeys(paths, pl.String))
    return _Parsed(np.array(numbers, dtype=np.int64), frame, np.array(broken, dtype=bool))


def _chunk(lines: tables.Lines, matched: Sequence[tuple[Rows, pl.DataFrame]], parsed: _Parsed) -> Chunk:
    """The rows matched by shape and the parsed ones, in order."""
    rows = np.concatenate([*(rows for rows, _ in matched), parsed.rows])
    frame = pl.concat([*(frame for _, frame in matched), parsed.frame])
    broken = np.zeros(len(rows), dtype=bool)
    broken[len(rows) - len(parsed.rows) :] = parsed.broken
    if len(matched) + bool(len(parsed.rows)) > 1:
        order = np.argsort(rows)
        rows, frame, broken = rows[order], frame[order], broken[order]
    return Chunk(frame, broken, lines.raw(rows, rows))


def _scalar(value: Any) -> tuple[str | None, bool]:
    """A value as text and True; None and False for an object, a list or a lone surrogate."""
    if isinstance(value, bool):
        return ("true" if value else "false"), True
    if value is None or (isinstance(value, str) and _is_encodable(value)):
        return value, True
    return None, False


def _is_encodable(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _name(form: TableFormat, ours: str, where: str) -> str:
    theirs = single(form.columns[ours])
    if isinstance(theirs, int):
        raise ValueError(
            f"{form.section}.columns.{ours}: received position {theirs} for {where}, expected a name: JSON has no positions"
        )
    return theirs
