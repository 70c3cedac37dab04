"""JSON lines: one object per line."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np
import polars as pl
from numpy.typing import NDArray

from features import tables
from features.readers.json_shapes import Shapes
from features.schema import ITEM_ID, TIMESTAMP, USER_ID
from features.settings import TableFormat
from features.tables import Chunk, Rows


class _Invalid(ValueError):
    """A line is not valid JSON."""


def _refuse_constant(name: str) -> Any:
    raise _Invalid(name)


def parse_object(line: bytes, encoding: str) -> dict[str, Any] | None:
    """A line as a JSON object, None if it is not one; numbers stay text, so that ids are exact."""
    try:
        value = json.loads(
            line.decode(encoding), parse_int=str, parse_float=str, parse_constant=_refuse_constant
        )
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


def json_lines(stream: BinaryIO, form: TableFormat, where: str) -> Iterator[list[bytes]]:
    """Blocks of the lines of a jsonl file, without blank ones."""
    start = tables.without_mark(stream.read(4), where, form.section)
    for block, _ in tables.whole_lines(stream, start, where):
        yield [line for line in block.split(b"\n") if line.strip()]


def read_jsonl(stream: BinaryIO, form: TableFormat, where: str) -> Iterator[Chunk]:
    """Chunks of rows of a file with a JSON object per line; column names are dotted paths.

    Raises ValueError for a missing mapped column, naming the keys of the file.
    """
    paths = {ours: _name(form, ours, where) for ours in form.columns}
    shapes = Shapes(paths)
    seen: set[str] = set()
    keys: set[str] = set()
    start = tables.without_mark(stream.read(4), where, form.section)
    for block, _ in tables.whole_lines(stream, start, where):
        lines = tables.Lines.of(tables.as_utf8(block, form.encoding))
        is_text = ~lines.undecodable()
        matched, rest = shapes.match(lines.texts(), np.flatnonzero(is_text))
        objects = _parsed(lines, np.union1d(rest, np.flatnonzero(~is_text)))
        chunk = _chunk(lines, matched, objects, paths)
        seen |= {ours for ours in paths if chunk.frame[ours].null_count() < len(chunk.frame)}
        keys |= {key for tree in list(objects.values())[:100] if tree is not None for key in tree}
        if len(chunk.frame):
            yield chunk
    keys |= shapes.keys()
    needed = [ours for ours in (USER_ID, ITEM_ID, TIMESTAMP) if ours in paths]
    absent = [ours for ours in needed if ours not in seen and paths[ours] not in keys]
    if keys and absent:
        raise tables.missing_column(form, absent[0], sorted(keys), where)


def _parsed(lines: tables.Lines, rows: Rows) -> dict[int, dict[str, Any] | None]:
    """Line number to JSON object (None: invalid), without blank lines."""
    texts = ((row, lines.line(row)) for row in rows.tolist())
    return {row: parse_object(text, "utf-8") for row, text in texts if text.strip()}


def _chunk(
    lines: tables.Lines,
    matched: Sequence[tuple[Rows, pl.DataFrame]],
    objects: Mapping[int, dict[str, Any] | None],
    paths: Mapping[str, str],
) -> Chunk:
    """The rows matched by shape and the parsed ones, in order."""
    is_broken = np.array([tree is None for tree in objects.values()], dtype=bool)
    parsed = {
        ours: _scalars(
            [None if tree is None else at_path(tree, path) for tree in objects.values()], is_broken
        )
        for ours, path in paths.items()
    }
    rows = np.concatenate([*(rows for rows, _ in matched), np.array(list(objects), dtype=np.int64)])
    frame = pl.concat([*(frame for _, frame in matched), pl.DataFrame(parsed)])
    broken = np.zeros(len(rows), dtype=bool)
    broken[len(rows) - len(objects) :] = is_broken
    if len(matched) + bool(objects) > 1:
        order = np.argsort(rows)
        rows, frame, broken = rows[order], frame[order], broken[order]
    return Chunk(frame, broken, lines.raw(rows, rows))


def _scalars(values: Sequence[Any], broken: NDArray[np.bool_]) -> pl.Series:
    """Values of one key as text; marks rows with an object, a list or a lone surrogate as broken."""
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


def _name(form: TableFormat, ours: str, where: str) -> str:
    theirs = form.columns[ours]
    if isinstance(theirs, int):
        raise ValueError(
            f"{form.section}.columns.{ours}: received position {theirs} for {where}, expected a name: JSON has no positions"
        )
    return theirs
