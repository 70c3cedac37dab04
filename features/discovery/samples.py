"""The form of a file and its first rows, found by looking into it."""

import collections
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from features import tables
from features.readers import dialect, json_lines, json_values, parquet, sources
from features.settings import Column, FileFormat, TableFormat
from features.tables import Utf8Stream

MAX_ROWS = 20_000
_BYTES = 1 << 20
_LINES = 1000
_SEPARATORS = ("::", "\t", ";", "|", ",", " ")
_MIN_SHARE = 0.9
"""Least share of lines that must have the usual number of fields."""
_PARQUET = b"PAR1"
_VALUE = re.compile(r"^\s*[+-]?[\d.:/T -]*\d[\d.:/TZ -]*$")
"""A number, a date or a time: no name of a column."""
_MAX_ACCENTS = 0.03
"""Most bytes that are no ASCII in text of Western languages."""
_MIN_ENTRIES = 20
"""Least entries of one JSON object that is a table."""
_ID = "id"


@dataclass(frozen=True)
class Sample:
    """A file's form, its columns and first rows."""

    path: Path
    form: TableFormat
    """columns: the name of each column in `frame` to the source's name or position."""
    frame: pl.DataFrame
    """Text of all columns; for lists their first element."""
    notes: tuple[str, ...] = ()
    """What is not certain."""

    @property
    def has_rows_of_items(self) -> bool:
        """Whether a row is a user and the list of its items."""
        return bool(self.form.items_separator)


def look_into(path: Path) -> Sample:
    """The sample of a file. Raises ValueError for a file without rows, or of no known form."""
    kind = _kind(path)
    if kind == "parquet":
        return _of_parquet(path)
    return _of_json(path) if kind == "jsonl" else _of_text(path)


def _kind(path: Path) -> FileFormat:
    """Format by the first bytes: extensions are not to be relied on."""
    with path.open("rb") as file:
        if file.read(4) == _PARQUET:
            return "parquet"
    with sources.open_bytes(path) as stream:
        start = Utf8Stream(stream, "utf-8").read(_BYTES).lstrip()
    return "jsonl" if start.startswith((b"{", b"[{", b"[\n", b"[ ", b"[\r")) else "csv"


def _format_key(path: Path, kind: FileFormat) -> FileFormat | None:
    """The key `format`; None where the extension says it."""
    try:
        by_extension = sources.format_of(path, TableFormat("events", {"user_id": 1}))
    except ValueError:
        return kind
    return None if by_extension == kind or {by_extension, kind} == {"json", "jsonl"} else kind


# --- Parquet and JSON ---


def _of_parquet(path: Path) -> Sample:
    form = TableFormat("events", {"user_id": 1}, _format_key(path, "parquet"))
    names = _leaves(parquet.schema(path))
    form = replace(form, columns={name: name for name in names})
    chunk = next(iter(sources.read(path, replace(form, section="items"))), None)
    if chunk is None:
        raise _empty(path)
    columns = [_first_of_list(column).cast(pl.String, strict=False) for column in chunk.frame[:MAX_ROWS]]
    return Sample(path, form, pl.DataFrame(columns))


def _leaves(schema: Mapping[str, Any], above: str = "") -> list[str]:
    """Dotted paths of all columns, through structs and lists of structs."""
    found = []
    for name, kind in schema.items():
        path = f"{above}{name}"
        if isinstance(kind, pl.List) and isinstance(kind.inner, pl.Struct):
            found += _leaves(kind.inner.to_schema(), f"{path}[].") if "[]" not in path else []
        elif isinstance(kind, pl.Struct):
            found += _leaves(kind.to_schema(), f"{path}.") if "[]" not in path else []
        else:
            found.append(path)
    return found


def _first_of_list(column: pl.Series) -> pl.Series:
    return column.list.first() if isinstance(column.dtype, pl.List) else column


def _of_json(path: Path) -> Sample:
    form = TableFormat("events", {"user_id": "x"}, _format_key(path, "jsonl"))
    form = replace(form, encoding=_encoding(path)[0])
    with sources.open_text(path, form) as stream:
        blocks = json_lines.json_lines(stream, str(path))
        lines = itertools.islice(itertools.chain.from_iterable(blocks), MAX_ROWS)
        trees = [tree for line in lines if (tree := json_values.parse_object(line)) is not None]
    if not trees:
        raise _empty(path)
    if len(trees) == 1 and len(trees[0]) >= _MIN_ENTRIES:
        return _of_object(path, form, trees[0])
    paths = list(dict.fromkeys(name for tree in trees[:_LINES] for name in _paths(tree)))
    values = {name: [_first_value(tree, name) for tree in trees] for name in paths}
    frame = pl.DataFrame(values, schema=dict.fromkeys(paths, pl.String))
    return Sample(path, replace(form, columns={name: name for name in paths}), frame)


def _of_object(path: Path, form: TableFormat, tree: dict[str, Any]) -> Sample:
    """The sample of one object from ids to attributes, or to lists of them."""
    entries = dict(itertools.islice(tree.items(), MAX_ROWS))
    attributes = [value for value in entries.values() if isinstance(value, dict)]
    names = list(dict.fromkeys(name for value in attributes[:_LINES] for name in _paths(value)))
    values = {name: [_first_value(value, name) for value in entries.values()] for name in names}
    frame = pl.DataFrame({_ID: list(entries)} | values, schema=dict.fromkeys((_ID, *names), pl.String))
    return Sample(path, replace(form, format="json", columns={name: name for name in (_ID, *names)}), frame)


def _paths(tree: dict[str, Any], above: str = "") -> Iterator[str]:
    for key, value in tree.items():
        path = f"{above}{key}"
        if isinstance(value, dict):
            yield from _paths(value, f"{path}.")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            yield from _paths(value[0], f"{path}[].") if "[]" not in path else ()
        else:
            yield path


def _first_value(tree: dict[str, Any], path: str) -> str | None:
    try:
        value = json_values.rows_of(tree, {path: path})[0][path]
    except json_values.UnevenLists:
        return None
    return json_values.as_scalar(value)[0]


# --- delimited text ---


def _of_text(path: Path) -> Sample:
    encoding, notes = _encoding(path)
    form = TableFormat("events", {"user_id": 1}, _format_key(path, "csv"), encoding=encoding)
    with sources.open_text(path, form) as stream:
        lines = stream.read(_BYTES).decode(errors="replace").splitlines()[:_LINES]
    lines = [line for line in lines if line.strip()]
    if not lines:
        raise _empty(path)
    comment = "#" if lines[0].startswith("#") and not all(line.startswith("#") for line in lines) else ""
    lines = [line for line in lines if not comment or not line.startswith(comment)]
    form = replace(form, comment=comment)
    if _are_lists_of_items(lines):
        form = replace(form, separator=" ", items_separator=" ", header=False)
        frame = pl.DataFrame([line.split(" ", 1) for line in lines], schema=["1", "2"], orient="row")
        return Sample(path, replace(form, columns={"1": 1, "2": 2}), frame, notes)
    separator, num_fields = _separator(lines)
    form = replace(form, separator=separator, columns={str(n + 1): n + 1 for n in range(num_fields)})
    rows = _rows(path, replace(form, header=False))
    header = _header(rows)
    if header is None:
        return Sample(path, replace(form, header=False), rows, notes)
    names = dict(zip(rows.columns, header, strict=True))
    columns: dict[str, Column] = {
        name: name if header.count(name) == 1 and name else position + 1
        for position, name in enumerate(header)
    }
    frame = rows[1:].rename(names) if len(set(header)) == len(header) else rows[1:]
    columns = columns if len(set(header)) == len(header) else dict(form.columns)
    return Sample(path, replace(form, columns=columns), frame, notes)


def _rows(path: Path, form: TableFormat) -> pl.DataFrame:
    """The first rows by position, without broken ones."""
    frames, num_rows = [], 0
    for chunk in sources.read(path, replace(form, section="items")):
        frames.append(chunk.frame.filter(~chunk.broken))
        num_rows += len(chunk.frame)
        if num_rows >= MAX_ROWS:
            break
    if not frames:
        raise _empty(path)
    return pl.concat(frames)[:MAX_ROWS]


def _encoding(path: Path) -> tuple[str, tuple[str, ...]]:
    """The encoding, and a note where it is a guess."""
    with sources.open_bytes(path) as stream:
        start = stream.read(_BYTES)
    if start.startswith(tuple(tables.MARKS)):
        return "utf-8", ()
    whole = start[: start.rfind(b"\n") + 1] or start
    if tables.is_utf8(whole):
        return "utf-8", ()
    others = [byte for byte in whole if byte >= 0x80]
    if len(others) <= _MAX_ACCENTS * len(whole):  # Western text, most of it ASCII
        encoding = "cp1252" if any(byte < 0xA0 for byte in others) else "latin-1"
    else:
        import charset_normalizer

        best = charset_normalizer.from_bytes(whole[: 1 << 17]).best()
        encoding = best.encoding if best is not None else "latin-1"
    return encoding, (f"encoding: {encoding} is a guess; the file is not UTF-8",)


def _are_lists_of_items(lines: Sequence[str]) -> bool:
    """Whether each line is a user and, separated by blanks, its items."""
    fields = [line.split(" ") for line in lines]
    lengths = {len(row) for row in fields}
    return len(lengths) > 1 and min(lengths) > 1 and all(field.isdigit() for row in fields for field in row)


def _separator(lines: Sequence[str]) -> tuple[str, int]:
    """The separator with which most lines have the same number of fields, more than one."""
    found = []
    for rank, separator in enumerate(_SEPARATORS):
        quoting = dialect.Quoting(separator, '"')
        counts = collections.Counter(quoting.count(line) or line.count(separator) + 1 for line in lines)
        (num_fields, number) = counts.most_common(1)[0]
        if num_fields > 1 and number >= _MIN_SHARE * len(lines):
            found.append((number / len(lines) > 0.99, separator != " ", num_fields, -rank, separator))
    if not found:
        return ",", collections.Counter(line.count(",") + 1 for line in lines).most_common(1)[0][0]
    best = max(found)
    return best[-1], best[2]


def _header(rows: pl.DataFrame) -> list[str] | None:
    """The names in the first row, or None where it is a row like the others."""
    first = [str(value or "").strip() for value in rows.row(0)]
    others = rows[1:]
    if not len(others):
        return None
    if any(_VALUE.match(field) for field in first) or not any(first):
        return None
    numeric = [_share_of_numbers(others[name]) for name in rows.columns]
    if any(share > _MIN_SHARE for share in numeric):
        return first
    repeated = [bool((others[name] == field).any()) for name, field in zip(rows.columns, first, strict=True)]
    looks_named = all(len(field) <= 40 for field in first) and len(set(first)) == len(first)
    has_digits = any(character.isdigit() for field in first for character in field)
    return first if looks_named and not any(repeated) and not has_digits else None


def _share_of_numbers(column: pl.Series) -> float:
    text = column.drop_nulls()
    text = text.filter(text != "")
    return 0.0 if not len(text) else float(text.str.contains(_VALUE.pattern).sum()) / len(text)


def _empty(path: Path) -> ValueError:
    return ValueError(f"{path}: has no row, expected a log or a table")
