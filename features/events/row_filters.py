"""Rows that are left out on purpose: excluded users and items, and rows that the conditions of `events.where` do not fit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import polars as pl

from features.conditions import where_column
from features.events import ids
from features.schema import ITEM_ID, USER_ID, IdType


class Excluded:
    """Users or items whose rows are left out, as sets of ids of one type."""

    def __init__(self, listed: pl.Series, kind: IdType) -> None:
        self._typed = ids.typed(listed, kind).drop_nulls().unique().implode()
        self._text = ids.typed(listed.cast(pl.String), "string").implode()

    def holds(self, plain: pl.Series, typed: pl.Series) -> pl.Series:
        """[n] whether each id (as `ids.plain` and in its final type) is excluded.

        An id that is not of the final type is compared as text, so that no refused row of an excluded user is kept.
        """
        flags = typed.is_in(self._typed).fill_null(value=False)
        other = typed.is_null() & plain.is_not_null()
        if not other.any():
            return flags
        text = plain.filter(other).cast(pl.String).str.strip_chars()
        return flags.scatter(other.arg_true(), text.is_in(self._text).fill_null(value=False))


@dataclass(frozen=True)
class RowFilters:
    """Everything that leaves out rows by their ids or other columns."""

    users: Excluded | None = None
    items: Excluded | None = None
    where: Sequence[Mapping[str, Any]] = ()
    """Conditions that a row has to fit, each as in `events.where`."""

    @classmethod
    def of(
        cls,
        where: Sequence[Mapping[str, Any]],
        id_types: Mapping[str, IdType],
        users: pl.Series | None = None,
        items: pl.Series | None = None,
    ) -> "RowFilters":
        """Filters by excluded ids (as text, or None) in the log's final types.

        Raises ValueError for a pattern that polars cannot match.
        """
        for condition in where:
            _check_pattern(condition)
        return cls(
            None if users is None else Excluded(users, id_types[USER_ID]),
            None if items is None else Excluded(items, id_types[ITEM_ID]),
            where,
        )

    def reasons(
        self, source: pl.DataFrame, plain: Mapping[str, pl.Series], typed: Mapping[str, pl.Series]
    ) -> dict[str, pl.Series | None]:
        """Reason to [rows] whether it leaves out each row; None where it leaves out none.

        source: the mapped columns and those of the conditions. plain, typed: ids as for `Excluded.holds`.
        """
        excluded = {USER_ID: self.users, ITEM_ID: self.items}
        held = {
            name: None if listed is None else listed.holds(plain[name], typed[name])
            for name, listed in excluded.items()
        }
        fits = [_fits(source[where_column(each["column"])], each) for each in self.where]
        return {
            "excluded_user": held[USER_ID],
            "excluded_item": held[ITEM_ID],
            "where": ~reduce(lambda some, more: some & more, fits) if fits else None,
        }


def _check_pattern(condition: Mapping[str, Any]) -> None:
    try:
        pl.Series([""]).str.contains(condition.get("matches", ""))
    except pl.exceptions.ComputeError as error:
        raise ValueError(
            f"events.where: received matches {condition['matches']!r} for {condition['column']!r}, expected a regular expression "
            f"without look-around and back references, as polars matches them: {_reason(error)}"
        ) from None


def _reason(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.startswith("error: ")]
    return lines[0].removeprefix("error: ") if lines else str(error).splitlines()[0]


def _fits(column: pl.Series, condition: Mapping[str, Any]) -> pl.Series:
    """[n] whether each value fits a condition; a missing one fits `not_in` alone."""
    text = column.cast(pl.String, strict=False).str.strip_chars()
    fits = pl.Series([True]).new_from_index(0, len(column))
    if "in" in condition:
        fits &= _is_one_of(text, condition["in"])
    if "not_in" in condition:
        fits &= ~_is_one_of(text, condition["not_in"])
    for key in ("min", "max"):
        if key in condition:
            limit = condition[key]
            values = text if isinstance(limit, str) else text.cast(pl.Float64, strict=False)
            is_inside = values >= limit if key == "min" else values <= limit
            fits &= is_inside.fill_null(value=False)
    if "matches" in condition:
        fits &= text.str.contains(condition["matches"]).fill_null(value=False)
    return fits


def _is_one_of(text: pl.Series, listed: Sequence[Any]) -> pl.Series:
    """[n] whether each value is in a list: as text, and numbers in it by their value; the empty text stands for missing."""
    numbers = [float(value) for value in listed if not isinstance(value, str | bool)]
    words = [str(value).lower() if isinstance(value, bool) else str(value) for value in listed]
    flags = text.is_in(words).fill_null(value="" in words) | (
        (text == "").fill_null(value=False) & ("" in words)
    )
    if numbers:
        flags |= text.cast(pl.Float64, strict=False).is_in(numbers).fill_null(value=False)
    return flags


def read_listed(key: str, path: Path, column: str) -> pl.Series:
    """The ids of a Parquet file with a column `column`, for a configuration key. Raises ValueError for any other file."""
    try:
        frame = pl.read_parquet(path)
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"{key}: {path}: cannot be read as Parquet: {error}") from None
    if column not in frame.columns:
        raise ValueError(f"{key}: {path}: has columns {', '.join(frame.columns)}, expected {column}")
    try:
        return ids.plain(frame[column]).drop_nulls().unique()
    except ValueError as error:
        raise ValueError(f"{key}: {path}: {column}: {error}") from None
