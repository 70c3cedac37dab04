"""Content of items: titles, texts, categories and embeddings in their types, from columns of any type."""

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from features import schema, tables
from features.events import fields
from features.events.object_columns import NUMBER, too_many_parts, written_list
from features.schema import CATEGORIES, EMBEDDING, ITEM_ID
from features.settings import TableFormat

MAX_ODD_WIDTHS = 0.05
"""Maximum share of embeddings whose width is not the usual one; a table with more is refused."""
PARTS_AT_A_TIME = 500_000
"""Categories and numbers of embeddings that are split at a time; each takes up to fifty times the memory of its text."""

_COLUMNS = tuple(schema.ITEM_COLUMNS)
_LIST = (pl.List, pl.Array)


@dataclass(frozen=True)
class ItemFormat:
    """Format of the items table: the keys of a configuration's `[items]`."""

    table: TableFormat
    """Maps item_id and any of title, categories, text, embedding, provider; without a mapping, columns of these names
    (in a JSON object from item to a list, the list is the categories)."""
    category_separator: str = "|"
    """Separator of categories within one text; lists need none."""

    @property
    def attributes(self) -> tuple[str, ...]:
        """Further mapped columns."""
        return tuple(name for name in self.table.columns if name not in (ITEM_ID, *_COLUMNS))


def with_content(block: pl.DataFrame, form: ItemFormat, path: Path) -> pl.DataFrame:
    """item_id, the content columns of a block, and further mapped ones as text."""
    names = [name for name in (*_COLUMNS, *form.attributes) if name in block]
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
    """A content column in its type of `schema.ITEM_COLUMNS`; blanks are null."""
    received = column.dtype
    while isinstance(column.dtype, _LIST) and isinstance(column.dtype.inner, _LIST):
        column = column.cast(pl.List(column.dtype.inner)).list.eval(pl.element().explode())
    element = column.dtype.inner if isinstance(column.dtype, _LIST) else column.dtype
    if isinstance(element, pl.Struct | pl.Binary | pl.Object):
        (expected,) = schema.ITEM_COLUMNS.get(column.name, (pl.String(),))
        raise ValueError(
            f"{form.table.section}.columns.{column.name}: {path}: received {received}, expected {expected} or what can be "
            "written as that"
        )
    if column.name == CATEGORIES:
        return _category_lists(column, form.category_separator, form.table.missing)
    return _vectors(column) if column.name == EMBEDDING else _plain_text(column)


def _plain_text(column: pl.Series) -> pl.Series:
    """A column as text, the elements of a list joined by blanks."""
    if isinstance(column.dtype, _LIST):
        column = column.cast(pl.List(pl.String), strict=False).list.join(" ", ignore_nulls=True)
    text = column.cast(pl.String, strict=False).str.strip_chars()
    return text.set(text == "", None)


def _category_lists(column: pl.Series, separator: str, missing: Sequence[str]) -> pl.Series:
    """Lists of categories, from lists, text with separators, or text such as "['Action', 'Indie']" and "[27, 9]"."""
    if isinstance(column.dtype, _LIST):
        lists = column.cast(pl.List(pl.String), strict=False)
    else:
        text = column.cast(pl.String, strict=False)
        lists = text.str.split(separator)
        written = text.str.contains(r"^\s*\[.*\]\s*$").fill_null(value=False)
        if written.any():
            parsed = {each: written_list(each) for each in text.filter(written).unique()}
            values = [
                parts if (found := parsed.get(each)) is None else found
                for each, parts in zip(text, lists, strict=True)
            ]
            lists = pl.Series(lists.name, values, dtype=pl.List(pl.String))
    lists = fields.without_words(lists.to_frame(), missing).to_series()
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


def checked_vectors(table: pl.DataFrame, section: str) -> tuple[pl.Series, int]:
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
