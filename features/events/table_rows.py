"""Rows of an items or users table from a file in any format, and the refused ones."""

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from features import schema, tables
from features.events import fields, ids
from features.readers import json_lines, json_values, sources
from features.schema import CATEGORIES, ITEM_ID, IdType
from features.settings import TableFormat
from features.tables import Chunk, MissingColumn, Rows

MAX_OBJECT_BYTES = 256 << 20
"""Maximum size of a JSON object from item to attributes, which is parsed as a whole."""

_CONTENT = tuple(schema.ITEM_CONTENT)
_REFUSED = {
    name: schema.QUARANTINE[name][0]
    for name in (schema.SOURCE_PATH, schema.SOURCE_ROW, schema.RAW, schema.REASON)
}


@dataclass(frozen=True)
class TableRows:
    """Rows of one or more files of a table."""

    frame: pl.DataFrame
    """The valid rows: ids in their final type, other columns in the source's types."""
    refused: pl.DataFrame
    """source_path, source_row, raw, reason (unparseable, missing_item, bad_item; _user in a users table)"""
    absent_columns: dict[str, list[str]]
    """Mapped columns that some of the files lack, and those files."""

    @property
    def rows_in(self) -> int:
        """Number of all rows."""
        return len(self.frame) + len(self.refused)


def load(
    paths: Sequence[Path], form: TableFormat, id_name: str, id_type: IdType, separator: str | None
) -> list[TableRows]:
    """Rows of each file; a column that other files have may be missing in it.

    separator: of parts of a text where other rows have lists (JSON); None: none. Raises ValueError for a file of another format,
    an id column of another type, and a mapped column that all files lack.
    """
    loaded, errors = [], dict[str, list[MissingColumn]]()
    for path in paths:
        rows, absent = _load_present(path, form, id_name, id_type, separator)
        loaded.append(rows)
        for error in absent:
            errors.setdefault(error.column, []).append(error)
    for same in errors.values():
        if len(same) == len(paths):
            raise same[0]
    return loaded


def _load_present(
    path: Path, form: TableFormat, id_name: str, id_type: IdType, separator: str | None
) -> tuple[TableRows, list[MissingColumn]]:
    """Rows of a file without the mapped columns that it lacks, and the errors about these."""
    absent: list[MissingColumn] = []
    while True:
        try:
            rows = _load(path, form, id_name, id_type, separator)
        except MissingColumn as error:
            if error.column == id_name:
                raise
            absent.append(error)
            columns = {ours: theirs for ours, theirs in form.columns.items() if ours != error.column}
            form = replace(form, columns=columns)
        else:
            return replace(rows, absent_columns={each.column: [str(path)] for each in absent}), absent


def _load(path: Path, form: TableFormat, id_name: str, id_type: IdType, separator: str | None) -> TableRows:
    kind = sources.format_of(path, form)
    if kind in ("json", "jsonl"):
        objects = _json_object(path, form, id_name) if kind == "json" else _json_lines(path, form)
        chunks = iter([_from_objects(objects, form, id_name, separator, path)])
    else:
        chunks = _chunks(path, form, id_name)
    frames, refused, num_rows = [], [], 0
    for chunk in chunks:
        try:
            plain = ids.plain(fields.without_words(chunk.frame.select(id_name), form.missing)[id_name])
        except ValueError as error:
            raise ValueError(f"{form.section}.columns.{id_name}: {path}: {error}") from None
        typed, reasons = _judged(plain, chunk.broken, id_name, id_type)
        rows = reasons.is_not_null().arg_true().to_numpy().astype(np.int64)
        where = {schema.SOURCE_PATH: [str(path)] * len(rows), schema.SOURCE_ROW: num_rows + rows + 1}
        refused.append(
            pl.DataFrame(
                where | {schema.RAW: chunk.raw(rows), schema.REASON: reasons.gather(rows)}, schema=_REFUSED
            )
        )
        others = fields.without_words(chunk.frame.drop(id_name), form.missing)
        frames.append(pl.DataFrame([typed, *others]).filter(reasons.is_null()))
        num_rows += len(chunk.frame)
    if not frames:
        names = form.columns or (id_name,)
        kinds = dict.fromkeys(names, pl.String()) | {id_name: schema.ID_TYPES[id_type]}
        return TableRows(pl.DataFrame(schema=kinds), pl.DataFrame(schema=_REFUSED), {})
    return TableRows(pl.concat(frames, how="vertical_relaxed"), pl.concat(refused), {})


def _judged(
    plain: pl.Series, broken: NDArray[np.bool_], id_name: str, id_type: IdType
) -> tuple[pl.Series, pl.Series]:
    """[rows] ids in their final type, and why a row is refused, null where it is not."""
    kind = id_name.removesuffix("_id")
    typed = ids.typed(plain, id_type).alias(id_name)
    is_missing = ids.is_missing(plain)
    is_bad = typed.is_null() | (
        ids.is_too_long(plain)
        if plain.dtype == pl.String
        else pl.Series([False]).new_from_index(0, len(plain))
    )
    reasons = pl.select(
        pl.when(pl.Series(broken))
        .then(pl.lit("unparseable"))
        .when(is_missing)
        .then(pl.lit(f"missing_{kind}"))
        .when(is_bad)
        .then(pl.lit(f"bad_{kind}"))
    ).to_series()
    return typed, reasons


def _chunks(path: Path, form: TableFormat, id_name: str) -> Iterator[Chunk]:
    if not form.columns:
        present = sources.column_names(path, form)
        form = replace(
            form, columns={name: name for name in (id_name, *_CONTENT) if name in (id_name, *present)}
        )
    yield from sources.read(path, form)


def _json_object(path: Path, form: TableFormat, id_name: str) -> Iterator[dict[str, Any] | str]:
    """Entries of one JSON object, {id: {…}} or {id: [category, …]}, as objects with the id under the source's name; others
    as text.
    """
    with sources.open_text(path, form) as stream:
        text = stream.read(MAX_OBJECT_BYTES + 1)
    if len(text) > MAX_OBJECT_BYTES:
        raise ValueError(
            f"{form.section}.path: {path}: one JSON object of more than {MAX_OBJECT_BYTES >> 20} MiB, expected at most that, as "
            "it is held in memory whole; write an object per line (.jsonl)"
        )
    first_wins = _FirstWins()
    try:
        content = json.loads(
            text.decode(),
            parse_int=str,
            parse_float=str,
            parse_constant=str,
            object_pairs_hook=first_wins,
        )
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise ValueError(
            f"{form.section}.path: {path}: is not one JSON object from {id_name} to its attributes; "
            f'for an object per line set {form.section}.format = "jsonl"'
        )
    for key, value in itertools.chain(content.items(), first_wins.repeats):
        if isinstance(value, dict):
            yield {**value, str(form.columns.get(id_name, id_name)): key}
        elif id_name == ITEM_ID:
            yield {
                str(form.columns.get(CATEGORIES, CATEGORIES)): value,
                str(form.columns.get(id_name, id_name)): key,
            }
        else:
            yield json.dumps({key: value}, ensure_ascii=False)


class _FirstWins:
    """Builds dictionaries in which the first of equal keys wins; `repeats` holds those of the last, outermost one."""

    repeats: list[tuple[str, Any]]

    def __call__(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made: dict[str, Any] = {}
        self.repeats = []
        for key, value in pairs:
            if key in made:
                self.repeats.append((key, value))
            else:
                made[key] = value
        return made


def _json_lines(path: Path, form: TableFormat) -> Iterator[dict[str, Any] | str]:
    with sources.open_text(path, form) as stream:
        for lines in json_lines.json_lines(stream, str(path)):
            for line in lines:
                tree = json_values.parse_object(line)
                yield tables.as_text(line, "utf-8") if tree is None else tree


def _from_objects(
    objects: Iterable[dict[str, Any] | str],
    form: TableFormat,
    id_name: str,
    separator: str | None,
    path: Path,
) -> Chunk:
    """JSON objects as rows of the mapped columns (default: an items table's); text, which is no object, as broken rows."""
    columns = form.columns or {name: name for name in (id_name, *_CONTENT)}
    values: dict[str, list[Any]] = {name: [] for name in columns}
    keys: dict[str, None] = {}
    texts: dict[int, str] = {}
    for number, tree in enumerate(objects):
        if isinstance(tree, str):
            texts[number] = tree
        keys |= dict.fromkeys(() if isinstance(tree, str) else tree)
        for ours, theirs in columns.items():
            values[ours].append(None if isinstance(tree, str) else json_values.at_path(tree, str(theirs)))
    absent = [name for name, column in values.items() if all(value is None for value in column)]
    if keys and absent and (form.columns or id_name in absent):
        raise MissingColumn(
            absent[0],
            f"{form.section}.columns.{absent[0]}: {path}: nothing at {columns[absent[0]]!r} in any object; "
            f"found {', '.join(sorted(keys)[:50])}",
        )
    present = [name for name in columns if form.columns or name == id_name or name not in absent]
    frame = pl.DataFrame(
        [_json_column(name, values[name], separator, is_id=name == id_name) for name in present]
    )
    broken = np.zeros(len(frame), dtype=bool)
    broken[list(texts)] = True

    def raw(rows: Rows) -> list[str]:
        """The text of what is no object, and the mapped values of objects."""
        return [
            texts[row] if row in texts else json.dumps(frame.row(row, named=True), ensure_ascii=False)
            for row in rows.tolist()
        ]

    return Chunk(frame, broken, raw)


def _json_column(name: str, values: Sequence[Any], separator: str | None, *, is_id: bool) -> pl.Series:
    """Values at one path as text, or as lists of text where any is a list (plain text is then split at the separator)."""
    if is_id or not any(isinstance(value, list) for value in values):
        return pl.Series(name, [_as_text(value) for value in values], dtype=pl.String)
    lists = [
        None if value is None else [_as_text(part) for part in _parts(value, separator)] for value in values
    ]
    return pl.Series(name, lists, dtype=pl.List(pl.String))


def _parts(value: Any, separator: str | None) -> Iterator[Any]:
    """Elements of a list, nested lists flattened, or the parts of a text."""
    if isinstance(value, str) and separator is not None:
        yield from value.split(separator)
        return
    waiting = [value]
    while waiting:
        element = waiting.pop()
        if isinstance(element, list):
            waiting += reversed(element)
        else:
            yield element


def _as_text(value: Any) -> str | None:
    if value is None:
        return None
    try:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    except RecursionError:  # nested too deep
        return None
    return text.encode("utf-8", errors="replace").decode()
