"""Further columns of the log for the ranker: their values, and events counted by them."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from features.attributes import Attribute
from features.histories.event_columns import OTHER
from features.histories.numbering import ItemNumbering
from models.histories import Int32, Int64
from models.ranking.event_columns import EventTables, PairCounts
from pipeline.dataset.dataset import Dataset

Numbered = Sequence[tuple[Attribute, int]]
"""Columns of events, each with the values before its own."""


def fitted(dataset: Dataset, name: str, ends: Int64) -> Attribute:
    """A column of the log, fitted on each user's events up to flat positions `ends` [num_users]; raises as `Attribute.fit`."""
    column = _with_none(dataset.event_values, name)
    place = [*dataset.event_values].index(name)
    number = np.zeros(len(column), np.int64)
    for events in _counted(dataset, ends):
        number += np.bincount(_codes(dataset, events)[:, place], minlength=len(column))
    is_value = (number > 0) & (column != OTHER).fill_null(value=True).to_numpy()
    return Attribute.counted("events", column.filter(pl.Series(is_value)), number[is_value])


def values_of(columns: Numbered, values: Mapping[str, pl.Series]) -> tuple[Int32, Int32]:
    """`EventTables.place` and `EventTables.value` of a log with columns of these values, see `Dataset.event_values`."""
    names = [*values]
    place = [names.index(each.name) if each.name in values else -1 for each, _ in columns]
    codes = [each.codes(_with_none(values, each.name))[:, 0] + start for each, start in columns]
    table = np.zeros((len(codes), max(map(len, codes))), np.int32)
    for row, own in zip(table, codes, strict=True):
        row[: len(own)] = own
    return np.array(place, np.int32), table


def counted(
    columns: Numbered, num_values: int, dataset: Dataset, numbering: ItemNumbering, ends: Int64
) -> EventTables:
    """Tables that count each user's events up to flat positions `ends` [num_users], by the items of a numbering.

    num_values: of all columns of users and events, value 0 included.
    """
    place, value = values_of(columns, dataset.event_values)
    counts = PairCounts(numbering.num_items, num_values)
    for events in _counted(dataset, ends):
        item = numbering.new[dataset.histories.item_index[events]]
        codes = _codes(dataset, events)[:, place]
        counts.add(item[item > 0], value[np.arange(len(place)), codes[item > 0]])
    return counts.tables(place, value)


def training_ends(dataset: Dataset, *, with_validation: bool) -> Int64:
    """[num_users] flat position after each user's last training event; of users over the core filter alone."""
    ends = dataset.training_ends(with_validation=with_validation)
    return np.where(dataset.split.train_user, ends, dataset.histories.offsets[:-1])


def _with_none(values: Mapping[str, pl.Series], name: str) -> pl.Series:
    """Values of a column by code; code 0 is none."""
    own = values.get(name, pl.Series(dtype=pl.String))
    return pl.Series(name, [None], pl.String).append(own)


def _codes(dataset: Dataset, events: NDArray[np.int64]) -> Int32:
    codes = dataset.histories.event_columns
    assert codes is not None, "the log has columns"
    return np.asarray(codes[events])


def _counted(dataset: Dataset, ends: Int64) -> Iterator[Int64]:
    """Flat positions of the events before `ends`, dislikes left out, block by block."""
    histories = dataset.histories
    for first, last in histories.blocks():
        events = np.arange(histories.offsets[first], histories.offsets[last])
        is_before = events < np.repeat(ends[first:last], np.diff(histories.offsets[first : last + 1]))
        events = events[is_before]
        yield events[~histories.is_dislike(events)]
