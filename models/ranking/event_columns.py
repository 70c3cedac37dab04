"""Further columns of the log in the second stage: the value of a request, and how often an item was taken under it.

Letters: r rows, n candidates per row, se columns of events that the ranker reads, m most codes of one. A request has the values
of the row's last event before it, as nobody knows those of the coming one.
"""

from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

from models.histories import Float32, Histories, Int32, Int64

PRIOR_EVENTS = 5.0
"""Events that an item is taken to have had under a value in proportion to their frequencies, besides its own."""


@dataclass(frozen=True)
class EventTables:
    """Values of the codes of `Histories.context`, and counts of training events by item and value."""

    place: Int32
    """[se], column of the context, -1: it lacks the column"""
    value: Int32
    """[se, m], value of each code of a column; code 0 is no value"""
    pair: Int64
    """[pairs], `item * values + value` of training events, ascending, by a reader's item numbers"""
    number: Int64
    """[pairs], events of each pair"""
    of_item: Int64
    """[num_items + 2], events of each item"""
    of_value: Int64
    """[values], events of each value; 0 for value 0 and those of users' columns"""

    def values(self, histories: Histories) -> Int32:
        """Values [r, se] of each row's request; without a context those of no value."""
        codes = np.zeros((len(histories), len(self.place)), np.int32)
        if histories.context is not None:
            is_there = self.place >= 0
            codes[:, is_there] = histories.context[:, self.place[is_there]]
        return self.value[np.arange(len(self.place)), codes]

    def affinity(self, values: Int32, items: Int32) -> Float32:
        """[r, n, se]: `ln((events of item under value + p) / (expected + p))`, p `PRIOR_EVENTS`, of values [r, se], items [r, n].

        expected: events of the item times those of the value over all events. Above 0: taken more often under the value than at
        other times (a smoothed pointwise mutual information, Church and Hanks 1990).
        """
        item, value = items.astype(np.int64)[:, :, None], values.astype(np.int64)[:, None, :]
        key = item * len(self.of_value) + value
        place = np.minimum(np.searchsorted(self.pair, key), max(len(self.pair) - 1, 0))
        taken = np.zeros(key.shape)
        if len(self.pair):
            taken = np.where(self.pair[place] == key, self.number[place], 0)
        expected = self.of_item[item] * self.of_value[value] / max(int(self.of_item.sum()), 1)
        return np.log((taken + PRIOR_EVENTS) / (expected + PRIOR_EVENTS)).astype(np.float32)

    def reading(self, place: Int32, value: Int32) -> "EventTables":
        """The same counts for contexts with other codes, such as those of a later log."""
        return replace(self, place=place, value=value)

    def extended(self, more: int) -> "EventTables":
        """Append items without events after the last one."""
        return replace(self, of_item=np.concatenate([self.of_item, np.zeros(more, np.int64)]))

    def shuffled(self, histories: Histories, column: int, seed: int) -> Histories:
        """The rows with their values of one of the columns shuffled among them."""
        place = self.place[column]
        if histories.context is None or place < 0:
            return histories
        context = histories.context.copy()
        context[:, place] = np.random.default_rng(seed).permutation(context[:, place])
        return replace(histories, context=context)

    def save(self, folder: Path) -> None:
        """Write `column_event_*.npy` into an existing folder."""
        for field in fields(self):
            np.save(folder / f"column_event_{field.name}.npy", getattr(self, field.name), allow_pickle=False)

    @classmethod
    def load(cls, folder: Path) -> "EventTables | None":
        """Load saved tables; None where there are none."""
        paths = {field.name: folder / f"column_event_{field.name}.npy" for field in fields(cls)}
        if not paths["place"].exists():
            return None
        return cls(**{name: np.load(path) for name, path in paths.items()})


@dataclass
class PairCounts:
    """Counts of events by item and value, block by block."""

    num_items: int
    num_values: int

    def __post_init__(self) -> None:
        self._pair, self._number = np.zeros(0, np.int64), np.zeros(0, np.int64)
        self._of_item = np.zeros(self.num_items + 2, np.int64)

    def add(self, item: Int32, values: Int32) -> None:
        """Count events of items [e], 1.., with values [e, se]."""
        key = (item.astype(np.int64)[:, None] * self.num_values + values).ravel()
        joined = np.concatenate([self._pair, key])
        weight = np.concatenate([self._number, np.ones(len(key), np.int64)])
        self._pair, own = np.unique(joined, return_inverse=True)
        self._number = np.bincount(own, weight, len(self._pair)).astype(np.int64)
        self._of_item += np.bincount(item, minlength=len(self._of_item))

    def tables(self, place: Int32, value: Int32) -> EventTables:
        """Tables with these counts."""
        of_value = np.bincount(self._pair % self.num_values, self._number, self.num_values).astype(np.int64)
        return EventTables(place, value, self._pair, self._number, self._of_item, of_value)
