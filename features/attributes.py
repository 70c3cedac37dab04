"""Columns of users, items and events as codes: a code per value of a category, or per quantile bin of a number."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

MIN_COUNT = 10
"""Users, items or events of the training period that share a value, below which it counts as rare."""
MAX_VALUES = 1000
"""Maximum number of values of a column, the most frequent ones."""
MAX_LEVELS = 50
"""Distinct numbers up to which each is a category of its own."""
NUM_BINS = 20
"""Quantile bins of a number."""
MAX_IN_LIST = 8
"""Values of a list that count, the first ones."""
PADDING, RARE, MISSING = range(3)
"""Codes of an empty place, of rare and unseen values, and of none; known values follow."""
FIRST = 3
"""Code of the first known value or bin."""

_SAME_TEXT = {"true": "1", "True": "1", "false": "0", "False": "0", "-0": "0"} | dict.fromkeys(
    ("NaN", "nan", "inf", "-inf")
)
"""Texts of truth values, which are numbers, and of what is no number, which is missing."""
_TRAILING_ZEROS = (
    (r"^((?:\d{4}-\d\d-\d\d \d\d:\d\d:)?[+-]?\d+)\.0*$", "${1}"),
    (r"^((?:\d{4}-\d\d-\d\d \d\d:\d\d:)?[+-]?\d+\.\d*[1-9])0+$", "${1}"),
    (r"^(\d{4}-\d\d-\d\d) 00:00:00$", "${1}"),
)
"""Trailing zeros of numbers, times and days: 20.0 is 20, and 1.50 is 1.5."""

Codes = NDArray[np.int32]


class Unusable(ValueError):
    """A column says nothing that can be learned."""


@dataclass(frozen=True)
class Attribute:
    """Codes of a column, fitted on the rows of the training period."""

    table: str
    """users, items or events"""
    name: str
    values: tuple[str, ...] = ()
    """Known categories, the most frequent first."""
    edges: tuple[float, ...] = ()
    """Upper ends of all bins but the last one, ascending; a number belongs to the first bin whose end is not below it."""
    width: int = 1
    """Codes per row: of lists up to `MAX_IN_LIST`."""
    has_missing: bool = False
    """Whether a row of the training period lacked a value; else a missing value is an unseen one."""

    @classmethod
    def fit(cls, table: str, column: pl.Series, is_trained: NDArray[np.bool_]) -> "Attribute":
        """Fit on the trained rows [rows] of a column.

        Raises Unusable for a column without a value there, with a value of its own in every row, or with one code alone.
        """
        own = column.filter(pl.Series(is_trained))
        return cls.counted(table, own, np.ones(len(own), np.int64))

    @classmethod
    def counted(cls, table: str, column: pl.Series, number: NDArray[np.int64]) -> "Attribute":
        """Fit on values [n] and the number of rows that have each, above 0; raises as `fit`."""
        lists = _as_lists(column)
        numbers = _as_numbers(column, lists)
        values = lists.explode().drop_nulls()
        if not len(values):
            raise Unusable("no value")
        known, num_distinct = numbers.drop_nulls(), values.n_unique()
        is_number = len(known) == len(values) and num_distinct > MAX_LEVELS
        is_measured = is_number and (column.dtype.is_temporal() or bool((known != known.round()).any()))
        rows = pl.Series("number", np.repeat(number, lists.list.len().fill_null(0).to_numpy()))
        if num_distinct == rows.sum() >= MIN_COUNT and not is_measured:
            raise Unusable("a value of its own in every row")
        has_missing = bool(lists.is_null().any())
        if is_number:
            edges = _edges(known, number[numbers.is_not_null().to_numpy()])
            attribute = cls(table, column.name, edges=edges, has_missing=has_missing)
        else:
            counts = values.to_frame().with_columns(rows).group_by(values.name).sum()
            counts = counts.filter(pl.col("number") >= MIN_COUNT)
            kept = counts.sort("number", values.name, descending=[True, False]).head(MAX_VALUES)
            if not len(kept):
                raise Unusable(f"no value of {MIN_COUNT} {table} or more")
            width = min(MAX_IN_LIST, int(lists.drop_nulls().list.len().to_numpy().max()))
            attribute = cls(
                table, column.name, tuple(kept[values.name]), width=width, has_missing=has_missing
            )
        if len(np.unique(attribute.codes(column), axis=0)) < 2:
            raise Unusable("a single value")
        return attribute

    @classmethod
    def of_dict(cls, facts: Mapping[str, Any]) -> "Attribute":
        """From its fields in a JSON file."""
        return cls(**{**facts, "values": tuple(facts["values"]), "edges": tuple(facts["edges"])})

    @property
    def label(self) -> str:
        """`table.name`."""
        return f"{self.table}.{self.name}"

    @property
    def num_codes(self) -> int:
        """Number of codes, that of padding included."""
        return FIRST + (len(self.edges) + 1 if self.edges else len(self.values))

    def codes(self, column: pl.Series) -> Codes:
        """Codes [rows, width] of a column, whatever the type of its values. Raises Unusable for a type without text."""
        lists = _as_lists(column)
        if self.edges:
            numbers = _as_numbers(column, lists).fill_null(np.nan).to_numpy()
            known = FIRST + np.searchsorted(self.edges, numbers)
            codes = np.where(np.isnan(numbers), RARE, known)[:, None]
        else:
            number = {value: FIRST + place for place, value in enumerate(self.values)}
            places = [
                lists.list.get(place, null_on_oob=True).replace_strict(
                    number, default=RARE, return_dtype=pl.Int32
                )
                for place in range(self.width)
            ]
            filled = lists.list.len().fill_null(0).to_numpy()[:, None] > np.arange(self.width)
            codes = np.where(
                filled, np.stack([part.fill_null(RARE).to_numpy() for part in places], 1), PADDING
            )
        is_missing = lists.is_null().to_numpy()
        codes[is_missing] = PADDING
        codes[is_missing, 0] = MISSING if self.has_missing else RARE
        return codes.astype(np.int32)


def _is_list(column: pl.Series) -> bool:
    return isinstance(column.dtype, pl.List | pl.Array)


def _as_lists(column: pl.Series) -> pl.Series:
    """Lists of text without empty elements, the same for a value of any type; null where nothing is left."""
    lists = column if _is_list(column) else column.to_frame().select(pl.concat_list(pl.first())).to_series()
    lists = lists.arr.to_list() if isinstance(lists.dtype, pl.Array) else lists
    assert isinstance(lists.dtype, pl.List)
    kind = lists.dtype.inner
    if isinstance(kind, pl.Struct | pl.Binary | pl.Object | pl.Duration | pl.List | pl.Array):
        raise Unusable(f"a column of type {column.dtype}")
    text = pl.element()
    if isinstance(kind, pl.Date | pl.Datetime):
        text = text.cast(pl.Datetime("us"))
    text = text.cast(pl.String).str.strip_chars()
    for pattern, kept in _TRAILING_ZEROS:
        text = text.str.replace(pattern, kept)
    text = text.replace(_SAME_TEXT)
    lists = lists.list.eval(text.filter(text.is_not_null() & (text != "")))
    return lists.set(lists.list.len().fill_null(0) == 0, None)


def _as_numbers(column: pl.Series, lists: pl.Series) -> pl.Series:
    """Float64 of a column and its lists of text, of days and times microseconds; null where there is no finite number."""
    if _is_list(column):
        return pl.Series(column.name, [None], pl.Float64).new_from_index(0, len(column))
    if isinstance(column.dtype, pl.Date | pl.Datetime):
        return column.cast(pl.Datetime("us")).to_physical().cast(pl.Float64)
    if column.dtype == pl.Time:
        return column.to_physical().cast(pl.Float64) / 1000
    numbers = lists.list.first().cast(pl.Float64, strict=False)
    return numbers.set(~numbers.is_finite(), None)


def _edges(numbers: pl.Series, rows: NDArray[np.int64]) -> tuple[float, ...]:
    """Upper ends of the quantile bins of distinct ends, but for the last one; rows: number of those that have each number."""
    known = numbers.to_numpy()
    order = np.argsort(known, kind="stable")
    known, until = known[order], np.cumsum(rows[order])
    ends = np.unique(known[np.searchsorted(until, -(-int(until[-1]) * np.arange(1, NUM_BINS) // NUM_BINS))])
    return tuple(float(end) for end in ends[ends < known[-1]])
