"""Tables of items and users beside a log, found by the ids in them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from features.discovery.roles import by_name, share
from features.discovery.samples import Sample

_MIN_SHARE = 0.1
"""Least share of the log's ids that must have a row."""
_WORD = r"[^\W\d_]{2}"


@dataclass(frozen=True)
class SideTable:
    """A table of items or users."""

    kind: str
    """items or users"""
    sample: Sample
    id: str
    share: float
    """Share of the log's ids, as far as read, that have a row."""
    title: str | None = None
    categories: str | None = None
    category_separator: str = "|"


def side_table(sample: Sample, ids: Mapping[str, pl.Series]) -> SideTable | None:
    """The table that a file is, by the column whose ids are most like the log's; None where none holds a tenth of them.

    ids: `items` and `users` to the ids in the log.
    """
    found: list[tuple[float, float, str, str]] = []
    for kind, known in ids.items():
        for name in sample.frame.columns:
            column = sample.frame[name].drop_nulls()
            if column.n_unique() == len(column):
                both = share(known.is_in(column.implode())) * share(column.is_in(known.implode()))
                found.append((both, share(known.is_in(column.implode())), kind, name))
    _, most, kind, name = max(found, default=(0.0, 0.0, "", ""))
    if most < _MIN_SHARE:
        return None
    if kind == "users":
        return SideTable(kind, sample, name, most)
    others = [other for other in sample.frame.columns if other != name]
    title = by_name(sample.frame, "title", others) or _title(sample.frame, others)
    rest = sample.frame.select([other for other in others if other != title])
    categories = by_name(rest, "categories") or _categories(rest)
    separator = _category_separator(sample.frame[categories]) if categories is not None else "|"
    return SideTable(kind, sample, name, most, title, categories, separator)


def _title(frame: pl.DataFrame, names: Sequence[str]) -> str | None:
    """Without names: the first column of words of which most differ."""
    return next(
        (
            name
            for name in names
            if share(frame[name].str.contains(_WORD)) > 0.9 and frame[name].n_unique() > 0.8 * len(frame)
        ),
        None,
    )


def _categories(frame: pl.DataFrame) -> str | None:
    """Without names: the first column of words of which many come again."""
    return next(
        (
            name
            for name in frame.columns
            if share(frame[name].str.contains(_WORD)) > 0.9
            and frame[name].n_unique() < 0.5 * len(frame)
            and share(frame[name].str.contains(r"\d")) < 0.5
        ),
        None,
    )


def _category_separator(column: pl.Series) -> str:
    text = column.drop_nulls()
    return next((mark for mark in ("|", ";", ",", "/") if text.str.contains(mark, literal=True).any()), "|")
