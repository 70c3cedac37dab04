"""Item and user tables in any format, with ids typed like the events'."""

import functools
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl

from features import schema, tables
from features.events import ids
from features.events.first_rows import FirstRows, Table
from features.events.object_columns import NUMBER, ObjectColumns, too_many_parts
from features.readers import sources
from features.schema import CATEGORIES, EMBEDDING, ITEM_ID, USER_ID, IdType
from features.settings import TableFormat

MAX_ODD_WIDTHS = 0.05
"""Maximum share of embeddings whose width is not the usual one; a table with more is refused."""
PARTS_AT_A_TIME = 500_000
"""Categories and numbers of embeddings that are split at a time; each takes up to fifty times the memory of its text."""

_CONTENT = tuple(schema.ITEM_CONTENT)
_LIST = (pl.List, pl.Array)


@dataclass(frozen=True)
class ItemFormat:
    """Format of the items table: the keys of a configuration's `[items]`."""

    table: TableFormat
    """Maps item_id and any of title, categories, text, embedding; without a mapping, the source's columns of these names
    (in a JSON object from item to a list, the list is the categories)."""
    category_separator: str = "|"
    """Separator of categories within one text; lists need none."""


def read_items(paths: Sequence[Path], form: ItemFormat, id_type: IdType) -> Table:
    """The items of one or more files: item_id and the mapped columns of title, categories, text, embedding.

    The first row of an item counts, files in the order given. Blank fields are null, and so is an embedding of another width
    than the others or with a value that is not a finite number.

    Raises ValueError for a file of another format, a mapped column that is missing or of an unusable type, a table without a
    usable row, and embeddings of several widths.
    """
    files: list[Table] = []
    for path in paths:
        content = functools.partial(_with_content, form=form, path=path)
        files.append(_read(path, form.table, ITEM_ID, id_type, files, content, form.category_separator))
    table = _joined(files, "diagonal", ITEM_ID, paths, form.table, id_type)
    if EMBEDDING not in table.frame:
        return table
    vectors, num_bad = _checked_vectors(table.frame, form.table.section)
    notes = {"bad_embedding": num_bad} if num_bad else {}
    return replace(table, frame=table.frame.with_columns(vectors), notes=notes)


def read_users(paths: Sequence[Path], form: TableFormat, id_type: IdType) -> Table:
    """The users of one or more files: user_id and every mapped attribute in the source's type (JSON: text or lists of text).

    Raises ValueError for a file of another format, a missing mapped column, a table without a usable row, and files whose
    types do not fit together.
    """
    files: list[Table] = []
    for path in paths:
        files.append(_read(path, form, USER_ID, id_type, files))
    try:
        return _joined(files, "vertical_relaxed", USER_ID, paths, form, id_type)
    except pl.exceptions.PolarsError as error:
        kinds = "; ".join(
            f"{path}: {dict(file.frame.schema)}" for file, path in zip(files, paths, strict=True)
        )
        raise ValueError(
            f"{form.section}.path: columns of several files do not fit together: {str(error).splitlines()[0]} ({kinds})"
        ) from None


def _joined(
    files: Sequence[Table],
    how: Literal["diagonal", "vertical_relaxed"],
    id_name: str,
    paths: Sequence[Path],
    form: TableFormat,
    id_type: IdType,
) -> Table:
    """First row of each id of several files. Raises ValueError where nothing is left."""
    rows = pl.concat([file.frame for file in files], how=how)
    frame = rows if len(files) == 1 else rows.unique(id_name, keep="first", maintain_order=True)
    left_out = sum((Counter(file.left_out) for file in files), Counter({"duplicate": len(rows) - len(frame)}))
    rows_in = sum(file.rows_in for file in files)
    if not len(frame):
        reasons = ", ".join(f"{number:,} {reason}" for reason, number in left_out.items()) or "no row"
        raise ValueError(
            f"{form.section}.path: {', '.join(map(str, paths))}: none of {rows_in:,} rows can be used ({reasons}), expected ids "
            f"of type {id_type} like the events'. Settings in force: {form.describe()}"
        )
    return Table(frame, rows_in, dict(left_out), {})


# --- reading ---


def _read(
    path: Path,
    form: TableFormat,
    id_name: str,
    id_type: IdType,
    earlier: Sequence[Table],
    prepared: Callable[[pl.DataFrame], pl.DataFrame] = lambda block: block,
    separator: str | None = None,
) -> Table:
    """First row of each id of a file, blocks of rows `prepared` one by one."""
    held_bytes = sum(int(table.frame.estimated_size()) for table in earlier)
    rows = FirstRows(id_name, id_type, f"{form.section}.path: {path}", held_bytes)
    kind = sources.format_of(path, form)
    if kind not in ("json", "jsonl"):
        for block, rows_in in _blocks(path, form, id_name):
            rows.add(prepared(block), rows_in)
        return rows.table()
    columns = ObjectColumns(form, id_name, separator, str(path))
    for block, rows_in in columns.blocks(path, whole=kind == "json"):
        rows.add(prepared(block), rows_in)
    table = rows.table()
    return replace(table, frame=columns.finished(table.frame))


def _blocks(path: Path, form: TableFormat, id_name: str) -> Iterator[tuple[pl.DataFrame, int]]:
    """The rows of a block that can be parsed (ids as text, columns in the source's types), and the number of all its rows.

    At least one block, possibly an empty one.
    """
    is_empty = True
    for chunk in _chunks(path, form, id_name):
        is_empty = False
        try:
            plain = ids.plain(chunk.frame[id_name]).cast(pl.String)
        except ValueError as error:
            raise ValueError(f"{form.section}.columns.{id_name}: {path}: {error}") from None
        yield chunk.frame.with_columns(plain.alias(id_name)).filter(~chunk.broken), len(chunk.frame)
    if is_empty:
        yield pl.DataFrame(schema=dict.fromkeys(form.columns or (id_name,), pl.String())), 0


def _chunks(path: Path, form: TableFormat, id_name: str) -> Iterator[tables.Chunk]:
    if not form.columns:
        present = sources.column_names(path, form)
        form = replace(
            form, columns={name: name for name in (id_name, *_CONTENT) if name in (id_name, *present)}
        )
    yield from sources.read(path, form)


# --- content ---


def _with_content(block: pl.DataFrame, form: ItemFormat, path: Path) -> pl.DataFrame:
    """item_id and the content columns of a block."""
    names = [name for name in _CONTENT if name in block]
    pieces = [
        piece.select(ITEM_ID, *(_content(piece[name], form, path) for name in names))
        for piece in _pieces(block, form, path)
    ]
    return pl.concat(pieces)


def _pieces(block: pl.DataFrame, form: ItemFormat, path: Path) -> Iterator[pl.DataFrame]:
    """A block in pieces with about PARTS_AT_A_TIME parts of text to split; at least one.

    Raises ValueError for a text of more than `tables.MAX_FIELDS` parts.
    """
    num_parts = np.zeros(len(block), np.int64)
    for name, pattern in ((CATEGORIES, pl.escape_regex(form.category_separator)), (EMBEDDING, NUMBER)):
        if name in block and block[name].dtype == pl.String:
            num_parts += block[name].str.count_matches(pattern).fill_null(0).to_numpy()
            if num_parts.max(initial=0) > tables.MAX_FIELDS:
                row = int(num_parts.argmax())
                where = f"{form.table.section}.columns.{name}: {path}"
                raise too_many_parts(where, block[ITEM_ID][row], int(num_parts[row]))
    cuts = np.flatnonzero(np.diff(np.cumsum(num_parts) // PARTS_AT_A_TIME)) + 1
    for start, end in itertools.pairwise((0, *cuts.tolist(), len(block))):
        yield block.slice(start, end - start)


def _content(column: pl.Series, form: ItemFormat, path: Path) -> pl.Series:
    """A content column in its type of `schema.ITEM_CONTENT`; blanks are null."""
    received = column.dtype
    while isinstance(column.dtype, _LIST) and isinstance(column.dtype.inner, _LIST):
        column = column.cast(pl.List(column.dtype.inner)).list.eval(pl.element().explode())
    element = column.dtype.inner if isinstance(column.dtype, _LIST) else column.dtype
    if isinstance(element, pl.Struct | pl.Binary | pl.Object):
        (expected,) = schema.ITEM_CONTENT[column.name]
        raise ValueError(
            f"{form.table.section}.columns.{column.name}: {path}: received {received}, expected {expected} or what can be "
            "written as that"
        )
    if column.name == CATEGORIES:
        return _category_lists(column, form.category_separator)
    return _vectors(column) if column.name == EMBEDDING else _plain_text(column)


def _plain_text(column: pl.Series) -> pl.Series:
    """A column as text, the elements of a list joined by blanks."""
    if isinstance(column.dtype, _LIST):
        column = column.cast(pl.List(pl.String), strict=False).list.join(" ", ignore_nulls=True)
    text = column.cast(pl.String, strict=False).str.strip_chars()
    return text.set(text == "", None)


def _category_lists(column: pl.Series, separator: str) -> pl.Series:
    lists = (
        column.cast(pl.List(pl.String), strict=False)
        if isinstance(column.dtype, _LIST)
        else column.cast(pl.String, strict=False).str.split(separator)
    )
    cleaned = lists.list.eval(pl.element().str.strip_chars().filter(pl.element().str.strip_chars() != ""))
    return cleaned.set(cleaned.list.len() == 0, None)


def _vectors(column: pl.Series) -> pl.Series:
    """Lists of numbers, also from text such as "[0.5, 1]" or "0.5 1"; null for an element that is not a number."""
    parts = (
        column
        if isinstance(column.dtype, _LIST)
        else column.cast(pl.String, strict=False).str.extract_all(NUMBER)
    )
    vectors = parts.cast(pl.List(pl.Float32), strict=False)
    return vectors.set(vectors.list.len() == 0, None)


def _checked_vectors(table: pl.DataFrame, section: str) -> tuple[pl.Series, int]:
    """Embeddings of the usual width with finite values, null for all others, and the number of those.

    Raises ValueError where more than `MAX_ODD_WIDTHS` have another width, or most hold something other than numbers.
    """
    vectors = table[EMBEDDING]
    widths = vectors.list.len()
    counts = Counter(widths.drop_nulls().to_list())
    if not counts:
        return vectors, 0
    width = counts.most_common(1)[0][0]
    odd = widths.is_not_null() & (widths != width).fill_null(value=False)
    if odd.sum() > MAX_ODD_WIDTHS * counts.total():
        row = odd.arg_true()[0]
        raise ValueError(
            f"{section}.columns.embedding: item {table[ITEM_ID][row]!r} has {widths[row]} numbers, expected one width, and most "
            f"have {width} (widths and how many items have each: {dict(counts.most_common(5))})"
        )
    finite = vectors.list.eval(pl.element().is_finite().fill_null(value=False)).list.all()
    unreadable = (vectors.is_not_null() & ~odd & ~finite).fill_null(value=False)
    if 2 * unreadable.sum() > counts.total():
        raise ValueError(
            f"{section}.columns.embedding: item {table[ITEM_ID][unreadable.arg_true()[0]]!r} and {unreadable.sum() - 1} more of "
            f"{counts.total()} hold values that are not finite numbers, expected a list of numbers, or text such as '0.1 0.2'"
        )
    good = (~odd & finite).fill_null(value=False)
    return vectors.set(~good, None), int((vectors.is_not_null() & ~good).sum())
