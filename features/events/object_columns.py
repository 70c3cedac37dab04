"""Side tables written in JSON, as blocks of columns of text."""

import ast
import functools
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from features import schema, tables
from features.printable import LONGEST, printable
from features.readers import json_lines, json_members, json_values, records, sources
from features.schema import CATEGORIES, EMBEDDING, ITEM_ID
from features.settings import Column, TableFormat, columns_of
from features.tables import Chunk, MissingColumn, Rows

BLOCK_CHARACTERS = 1 << 20
"""Minimum length of the JSON objects of a block; as Python objects they take up to fifty times as much."""

_START_BYTES = 1 << 12

_Objects = Iterator[tuple[Mapping[str, Any] | None, Any, int]]
"""JSON objects, None for what is none; each with its line or else its value, and its number of characters."""
NUMBER = r"[^\[\],;|\s]+"
"""Pattern of one number in the text of an embedding."""


class ObjectColumns:
    """The mapped columns of the JSON objects of a file (default: an items table's)."""

    def __init__(self, form: TableFormat, id_name: str, separator: str | None, where: str) -> None:
        """separator: of categories within one text; None for a table of users."""
        self._form, self._id_name, self._separator, self._where = form, id_name, separator, where
        self._columns = form.columns or {name: name for name in (id_name, *schema.ITEM_COLUMNS)}
        self._keys: dict[str, None] = {}
        self._seen: set[str] = set()
        self._lists: set[str] = set()
        """Columns with a value, and with one that is a list."""

    def blocks(self, path: Path, *, whole: bool) -> Iterator[Chunk]:
        """Chunks of ids as text and all other columns as lists of text; at least one.

        whole: one JSON object from id to attributes, or an array of objects, instead of an object per line. Raises ValueError for
        something else.
        """
        whole = whole and not self._is_array(path)
        for block in _cut(self._members(path) if whole else self._lines(path)):
            frame = self._frame([tree or {} for tree, _ in block])
            broken = np.array([tree is None for tree, _ in block], dtype=bool)
            yield Chunk(frame, broken, functools.partial(_raw, [content for _, content in block]))

    def finished(self, table: pl.DataFrame) -> pl.DataFrame:
        """The table without absent columns that are not mapped; attributes of users without any list become text.

        Raises ValueError for a mapped column that no object has.
        """
        absent = [name for name in self._columns if name not in self._seen]
        if self._keys and absent and (self._form.columns or self._id_name in absent):
            raise MissingColumn(
                absent[0],
                f"{self._form.section}.columns.{absent[0]}: {self._where}: nothing at {self._columns[absent[0]]!r} in any "
                f"object; found {', '.join(sorted(self._keys)[:50])}",
            )
        present = [
            name for name in table.columns if self._form.columns or name not in {*absent} - {self._id_name}
        ]
        is_users = self._separator is None
        texts = [
            pl.col(name).list.first()
            for name in present
            if is_users and name not in {self._id_name, *self._lists}
        ]
        return table.select(present).with_columns(texts)

    def _frame(self, trees: list[Mapping[str, Any]]) -> pl.DataFrame:
        columns = []
        ids = [_value(tree, self._columns[self._id_name], self._form) for tree in trees]
        for tree in trees:
            json_lines.collect_keys(tree, self._keys)
        for name, theirs in self._columns.items():
            values = [_value(tree, theirs, self._form) for tree in trees]
            if any(value is not None for value in values):
                self._seen.add(name)
            if any(isinstance(value, list) for value in values):
                self._lists.add(name)
            columns.append(self._column(name, values, ids))
        return pl.DataFrame(columns)

    def _column(self, name: str, values: list[Any], ids: list[Any]) -> pl.Series:
        if name == self._id_name:
            return pl.Series(name, [_as_text(value) for value in values], dtype=pl.String)
        lists: list[list[str | None] | None] = []
        for id_, value in zip(ids, values, strict=True):
            if value is None:
                lists.append(None)
                continue
            parts = [
                _as_text(part) for part in itertools.islice(self._parts(name, value), tables.MAX_FIELDS + 1)
            ]
            if len(parts) > tables.MAX_FIELDS:
                raise too_many_parts(f"{self._form.section}.columns.{name}: {self._where}", id_, len(parts))
            lists.append(parts)
        return pl.Series(name, lists, dtype=pl.List(pl.String))

    def _parts(self, name: str, value: Any) -> Iterator[Any]:
        """Elements of a list, nested lists flattened; categories of a text, numbers of the text of an embedding."""
        if isinstance(value, str) and self._separator is not None and name in (CATEGORIES, EMBEDDING):
            if name == CATEGORIES:
                found = written_list(value) if value.lstrip().startswith("[") else None
                yield from value.split(self._separator, tables.MAX_FIELDS) if found is None else found
            else:
                yield from (match[0] for match in re.finditer(NUMBER, value))
            return
        waiting = [value]
        while waiting:
            element = waiting.pop()
            if isinstance(element, list):
                waiting += reversed(element)
            else:
                yield element

    def _members(self, path: Path) -> _Objects:
        """Members of one JSON object, {id: {…}} or {id: [category, …]}, as objects with the id under the source's name."""
        id_key, categories = (str(self._form.columns.get(name, name)) for name in (self._id_name, CATEGORIES))
        with sources.open_text(path, self._form) as stream:
            try:
                for key, value, length in json_members.members(stream):
                    if isinstance(value, dict):
                        yield {**value, id_key: key}, {key: value}, length
                    else:
                        tree = {categories: value, id_key: key} if self._id_name == ITEM_ID else None
                        yield tree, {key: value}, length
            except json_members.NotAnObject:
                raise ValueError(
                    f"{self._form.section}.path: {self._where}: is not one JSON object from {self._id_name} to its attributes, "
                    f"each of at most {tables.LONGEST_ROW_BYTES >> 20} MiB; for an object per line set "
                    f'{self._form.section}.format = "jsonl"'
                ) from None

    def _is_array(self, path: Path) -> bool:
        with sources.open_text(path, self._form) as stream:
            return stream.read(_START_BYTES).lstrip().startswith(b"[")

    def _lines(self, path: Path) -> _Objects:
        with sources.open_text(path, self._form) as stream:
            for lines in json_lines.json_lines(stream, self._where):
                for line in lines:
                    yield json_values.parse_object(line), line, len(line)


def _value(tree: Mapping[str, Any], theirs: Column, form: TableFormat) -> Any:
    """The value of a mapped column in an object, also of one from several."""
    values = [json_values.at_path(tree, str(column)) for column in columns_of(theirs)]
    if isinstance(theirs, str | int):
        return values[0]
    texts = [_as_text(value) for value in values]
    found = [text for text in texts if text is not None and text.strip() not in ("", *form.missing)]
    if isinstance(theirs, dict) and "first_of" in theirs:
        return found[0] if found else None
    if isinstance(theirs, dict):
        return records.JOINED_BY.join(found) if len(found) == len(values) else None
    return " ".join(found) or None


def too_many_parts(where: str, id_: Any, num_parts: int) -> ValueError:
    """Error for a list, or a text to split, of more than `tables.MAX_FIELDS` parts."""
    return ValueError(
        f"{where}: {printable(str(id_), LONGEST)} has {num_parts:,} parts or more, expected at most {tables.MAX_FIELDS:,}"
    )


def written_list(text: str) -> list[str] | None:
    """Elements of a list as Python or JSON writes it, as text; None for other text."""
    try:
        found: Any = ast.literal_eval(
            text.strip().replace("null", "None") if "null" in text else text.strip()
        )
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    return [str(element) for element in found if element is not None] if isinstance(found, list) else None


def _raw(contents: list[Any], rows: Rows) -> list[str]:
    """Text of objects by their number in a block."""
    return [
        tables.as_text(content, "utf-8")
        if isinstance(content := contents[row], bytes)
        else _as_text(content) or ""
        for row in rows.tolist()
    ]


def _cut(objects: _Objects) -> Iterator[list[tuple[Mapping[str, Any] | None, Any]]]:
    """Blocks of objects of BLOCK_CHARACTERS and more; at least one."""
    block: list[tuple[Mapping[str, Any] | None, Any]] = []
    num_characters, is_first = 0, True
    for tree, content, length in objects:
        block.append((tree, content))
        num_characters += length
        if num_characters >= BLOCK_CHARACTERS:
            yield block
            block, num_characters, is_first = [], 0, False
    if block or is_first:
        yield block


def _as_text(value: Any) -> str | None:
    if value is None or isinstance(value, json_values.Constant):
        return None
    try:
        text = (
            value
            if isinstance(value, str)
            else json.dumps(value, ensure_ascii=False, default=lambda _constant: None)
        )
    except RecursionError:  # nested too deep
        return None
    return text.encode("utf-8", errors="replace").decode()
