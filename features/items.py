"""What is known about items and users beside the log: tables in any form, ids typed like the events'."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from features import ids, records, schema, sources, tables
from features.schema import CATEGORIES, EMBEDDING, ITEM_ID, TEXT, TITLE, USER_ID, IdType
from features.tables import TableFormat

_CONTENT = tuple(schema.ITEM_CONTENT)


@dataclass(frozen=True)
class ItemFormat:
    """What form the items' table has: the keys of a configuration's `[items]`."""

    table: TableFormat
    """With columns item_id and any of title, categories, text, embedding; none: those that the source has under these names
    (in a JSON object from item to a list of attributes, the list is the categories)."""
    category_separator: str = "|"
    """What stands between categories in one text; a list needs none."""


@dataclass(frozen=True)
class Table:
    """A table with an id per row, each id once."""

    frame: pl.DataFrame
    rows_in: int
    left_out: dict[str, int]
    """Rows that are not in it, by reason: unparseable, missing_item, bad_item, duplicate (the first of an item stays)."""
    notes: dict[str, int]
    """Rows that are in it without something: bad_embedding."""


def read_items(paths: Sequence[Path], form: ItemFormat, id_type: IdType) -> Table:
    """The items of one or more files: item_id and those of title, categories, text, embedding that are mapped.

    Raises ValueError for a file that is not of its format, a mapped column that is not there, embeddings of two widths.
    """
    loaded = [_load(path, form) for path in paths]
    rows_in = sum(rows for _, rows in loaded)
    frame = pl.concat([frame for frame, _ in loaded], how="diagonal")
    table = _unique(frame, ITEM_ID, "item", id_type, rows_in)
    if EMBEDDING not in table.frame:
        return table
    vectors, num_bad = _checked_vectors(table.frame[EMBEDDING])
    return Table(table.frame.with_columns(vectors), rows_in, table.left_out, {"bad_embedding": num_bad})


def read_users(paths: Sequence[Path], form: TableFormat, id_type: IdType) -> Table:
    """The users of one or more files: user_id and every mapped attribute, as text or as the source's type."""
    frames, rows_in = [], 0
    for path in paths:
        for chunk in _chunks(path, form):
            rows_in += len(chunk.frame)
            frames.append(_plain_ids(chunk.frame.filter(~chunk.broken), USER_ID))
    if not frames:
        raise ValueError(f"{form.section}.path: {', '.join(map(str, paths))}: no row in any file")
    return _unique(pl.concat(frames, how="vertical_relaxed"), USER_ID, "user", id_type, rows_in)


def _plain_ids(frame: pl.DataFrame, name: str) -> pl.DataFrame:
    """Ids as text, so that files of different types fit together."""
    return frame.with_columns(ids.plain(frame[name]).cast(pl.String))


def _unique(frame: pl.DataFrame, name: str, what: str, id_type: IdType, rows_in: int) -> Table:
    """Rows with an id, the first of each; ids in their final type."""
    text = frame[name]
    missing = ids.is_missing(text)
    typed = ids.typed(text, id_type)
    bad = typed.is_null() & ~missing
    kept = frame.with_columns(typed).filter(~missing & ~bad)
    table = kept.unique(name, keep="first", maintain_order=True)
    left_out = {
        "unparseable": rows_in - len(frame),
        f"missing_{what}": int(missing.sum()),
        f"bad_{what}": int(bad.sum()),
        "duplicate": len(kept) - len(table),
    }
    return Table(table, rows_in, {reason: number for reason, number in left_out.items() if number}, {})


# --- reading ---


def _load(path: Path, form: ItemFormat) -> tuple[pl.DataFrame, int]:
    """A file's good rows, item_id as text and content in its types, and how many rows there were."""
    kind = sources.format_of(path, form.table)
    if kind in ("json", "jsonl"):
        pairs = list(_json_object(path, form.table) if kind == "json" else _json_lines(path, form.table))
        return _from_objects([each for each in pairs if each is not None], form), len(pairs)
    chunks = list(_chunks(path, form.table))
    frames = [_plain_ids(chunk.frame.filter(~chunk.broken), ITEM_ID) for chunk in chunks]
    if not frames:
        return pl.DataFrame(schema={ITEM_ID: pl.String()}), 0
    frame = pl.concat(frames, how="vertical_relaxed")
    typed = [_content(frame[name], form.category_separator) for name in frame.columns if name in _CONTENT]
    return frame.select(ITEM_ID).with_columns(typed), sum(len(chunk.frame) for chunk in chunks)


def _chunks(path: Path, form: TableFormat) -> Iterator[tables.Chunk]:
    if form.columns:
        yield from sources.read(path, form)
        return
    names = sources.column_names(path, form)
    known = {name: name for name in (ITEM_ID, *_CONTENT) if name in names or name == ITEM_ID}
    yield from sources.read(
        path, TableFormat(form.section, known, form.format, form.separator, form.header, form.encoding)
    )


def _json_object(path: Path, form: TableFormat) -> Iterator[dict[str, Any] | None]:
    """One object for all items: {id: [attribute, …]} or {id: {…}}; each as {item_id, …} under the source's names."""
    with sources.open_bytes(path) as stream:
        text = tables.without_mark(stream.read(), str(path), form.section)
    content = records.parse_object(text, form.encoding)
    if content is None:
        raise ValueError(
            f"{form.section}.path: {path}: is not one JSON object from item_id to its attributes; "
            f'for an object per line set {form.section}.format = "jsonl"'
        )
    id_name, categories_name = (str(form.columns.get(name, name)) for name in (ITEM_ID, CATEGORIES))
    for item_id, value in content.items():
        yield {id_name: item_id, **(value if isinstance(value, dict) else {categories_name: value})}


def _json_lines(path: Path, form: TableFormat) -> Iterator[dict[str, Any] | None]:
    with sources.open_bytes(path) as stream:
        for lines in records.json_lines(stream, form, str(path)):
            yield from (records.parse_object(line, form.encoding) for line in lines)


def _from_objects(objects: Sequence[dict[str, Any]], form: ItemFormat) -> pl.DataFrame:
    """JSON objects as columns: item_id as text, title, categories, text, embedding where mapped (or there, if nothing is)."""
    keys = {key for each in objects for key in each}
    columns = form.table.columns or {name: name for name in (ITEM_ID, *_CONTENT) if name in keys}
    found: dict[str, list[Any]] = {
        ours: [records.at_path(each, str(theirs)) for each in objects] for ours, theirs in columns.items()
    }
    absent = [ours for ours, values in found.items() if objects and all(each is None for each in values)]
    if absent or (ITEM_ID not in found and objects):
        name = absent[0] if absent else ITEM_ID
        raise ValueError(
            f"{form.table.section}.columns.{name}: nothing at {columns.get(name, name)!r} in any object; "
            f"found {', '.join(sorted(keys)[:50])}"
        )
    frame = pl.DataFrame(
        {ITEM_ID: pl.Series([_as_text(each) for each in found.get(ITEM_ID, [])], dtype=pl.String)}
    )
    for name in _CONTENT:
        if name in found:
            frame = frame.with_columns(_from_json(name, found[name], form.category_separator))
    return frame


def _from_json(name: str, values: Sequence[Any], separator: str) -> pl.Series:
    if name in (TITLE, TEXT):
        return _content(pl.Series(name, [_as_text(each) for each in values], dtype=pl.String), separator)
    split = separator if name == CATEGORIES else None
    lists = [None if each is None else [_as_text(part) for part in _as_list(each, split)] for each in values]
    return _content(pl.Series(name, lists, dtype=pl.List(pl.String)), separator)


def _as_list(value: Any, separator: str | None) -> Iterable[Any]:
    if isinstance(value, list):
        return value
    if isinstance(value, dict):
        return list(value)
    return (
        str(value).split(separator)
        if separator is not None
        else str(value).strip("[] ").replace(",", " ").split()
    )


def _as_text(value: Any) -> str | None:
    if value is None:
        return None
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text.encode("utf-8", errors="replace").decode()


# --- content ---


def _content(column: pl.Series, separator: str) -> pl.Series:
    """A content column in its type of `schema.ITEM_CONTENT`; blanks are null."""
    name, is_list = column.name, isinstance(column.dtype, pl.List | pl.Array)
    if name in (TITLE, TEXT):
        text = column.cast(pl.String, strict=False).str.strip_chars()
        return text.set(text == "", None)
    if name == CATEGORIES:
        return _category_lists(column, separator, is_list=is_list)
    parts = (
        column
        if is_list
        else column.cast(pl.String).str.strip_chars("[] ").str.replace_all(r"[,;|\s]+", " ").str.split(" ")
    )
    return parts.cast(pl.List(pl.Float32), strict=False)


def _category_lists(column: pl.Series, separator: str, *, is_list: bool) -> pl.Series:
    lists = (
        column.cast(pl.List(pl.String), strict=False)
        if is_list
        else column.cast(pl.String, strict=False).str.split(separator)
    )
    cleaned = lists.list.eval(pl.element().str.strip_chars().filter(pl.element().str.strip_chars() != ""))
    return cleaned.set(cleaned.list.len() == 0, None)


def _checked_vectors(vectors: pl.Series) -> tuple[pl.Series, int]:
    """Embeddings of one width; one of another width or with something that is no finite number becomes null and is counted."""
    widths = Counter(vectors.drop_nulls().list.len().to_list())
    if not widths:
        return vectors, 0
    width = widths.most_common(1)[0][0]
    finite = vectors.list.eval(pl.element().is_finite().fill_null(value=False)).list.all()
    bad = (vectors.is_not_null() & ((vectors.list.len() != width) | ~finite)).fill_null(value=False)
    if bad.sum() > np.ceil(0.5 * len(vectors.drop_nulls())) or width == 0:
        raise ValueError(
            f"items.columns.embedding: widths are {dict(widths.most_common(5))}, expected one width and finite numbers"
        )
    return pl.select(pl.when(~bad).then(vectors)).to_series().alias(vectors.name), int(bad.sum())
