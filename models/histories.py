"""Past interactions as arrays, the input of every recommender.

Item 0 is padding or unknown; items are numbered from 1. Times are microseconds since the epoch, UTC.
"""

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

Int16 = NDArray[np.int16]
Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class ItemSets:
    """Set of items of each row: row i's are `item_index[starts[i]:ends[i]]`, ascending."""

    item_index: Int32
    """[items of all rows], 1..num_items"""
    starts: Int64
    """[rows]"""
    ends: Int64
    """[rows]"""

    @classmethod
    def of(cls, row: Int64, item: NDArray[np.integer], num_rows: int) -> "ItemSets":
        """Sets of distinct pairs of a row and an item, by row and item: two [pairs]."""
        ends = np.cumsum(np.bincount(row, minlength=num_rows), dtype=np.int64)
        return cls(item.astype(np.int32), np.concatenate((np.zeros(1, np.int64), ends))[:num_rows], ends)

    @property
    def lengths(self) -> Int64:
        """[rows], items of each set."""
        return self.ends - self.starts

    def select(self, rows: slice | NDArray[np.integer] | NDArray[np.bool_]) -> Self:
        """The given rows, over the same items."""
        return replace(self, starts=self.starts[rows], ends=self.ends[rows])

    def translate(self, mapping: Int32) -> "ItemSets":
        """Items renumbered by `mapping` [old_num_items + 1], without those that map to 0."""
        row, item = self.pairs()
        kept = mapping[item] > 0
        row, item = row[kept], mapping[item[kept]]
        order = np.lexsort((item, row))
        return ItemSets.of(row[order], item[order], len(self.starts))

    def pairs(self) -> tuple[Int64, Int32]:
        """(row, item) of every item of every row: two [pairs]."""
        row, position = gathered(self.starts, self.ends)
        return row, self.item_index[position]

    def has(self, items: Int32) -> NDArray[np.bool_]:
        """[rows, n], whether each of `items` [rows, n] is in its row's set."""
        row, item = self.pairs()
        width = max(int(item.max(initial=0)), int(items.max(initial=0))) + 1
        keys = np.arange(len(items), dtype=np.int64)[:, None] * width + items
        return np.isin(keys, row * width + item)

    def union(self, other: "ItemSets") -> "ItemSets":
        """Items of either set of each row."""
        (own_row, own_item), (other_row, other_item) = self.pairs(), other.pairs()
        row, item = np.concatenate((own_row, other_row)), np.concatenate((own_item, other_item))
        width = int(item.max(initial=0)) + 1
        pair = np.unique(row * width + item)
        return ItemSets.of(pair // width, pair % width, len(self.starts))


@dataclass(frozen=True)
class Shortlists(ItemSets):
    """The only items that the lists of some rows may have."""

    is_limited: NDArray[np.bool_]
    """[rows], whether the row has a shortlist, which may be empty; the other rows may have any item, and have an empty set"""

    def select(self, rows: slice | NDArray[np.integer] | NDArray[np.bool_]) -> Self:
        """The given rows, over the same items."""
        return replace(super().select(rows), is_limited=self.is_limited[rows])

    def translate(self, mapping: Int32) -> "Shortlists":
        """Items renumbered as in `ItemSets`; limited rows stay so."""
        sets = super().translate(mapping)
        return Shortlists(sets.item_index, sets.starts, sets.ends, self.is_limited)

    def permits(self, items: Int32) -> NDArray[np.bool_]:
        """[rows, n], whether each row's list may have its `items` [rows, n]."""
        return ~self.is_limited[:, None] | self.has(items)

    def without(self, excluded: "Histories | None", allowed: NDArray[np.bool_] | None) -> "Shortlists":
        """The shortlists without each row's `excluded` items and those that `allowed` [num_items + 1] masks."""
        row, item = self.pairs()
        kept = np.ones(len(item), bool) if allowed is None else allowed[item]
        if excluded is not None:
            out, position = excluded.select(self.is_limited).gather()
            out = np.flatnonzero(self.is_limited)[out]
            width = max(int(item.max(initial=0)), int(excluded.item_index.max(initial=0))) + 1
            kept &= ~np.isin(row * width + item, out * width + excluded.item_index[position])
        sets = ItemSets.of(row[kept], item[kept], len(self.starts))
        return Shortlists(sets.item_index, sets.starts, sets.ends, self.is_limited)


@dataclass(frozen=True)
class ShownItems(ItemSets):
    """Items that each row's user was shown before the request."""

    ignored: Int32
    """[items of all rows], times without a reaction"""
    last: Int64
    """[items of all rows], time when it was shown last, microseconds since the epoch"""

    def translate(self, mapping: Int32) -> "ShownItems":
        """Items renumbered as in `ItemSets`."""
        row, position = gathered(self.starts, self.ends)
        item = mapping[self.item_index[position]]
        order = np.lexsort((item, row))
        order = order[item[order] > 0]
        sets, position = ItemSets.of(row[order], item[order], len(self.starts)), position[order]
        return ShownItems(
            sets.item_index, sets.starts, sets.ends, self.ignored[position], self.last[position]
        )


@dataclass(frozen=True)
class Histories:
    """Rows of past interactions as slices of flat arrays: row i is `flat[starts[i]:ends[i]]`, oldest first.

    Rows may overlap, so prefixes of one history share its storage.
    """

    item_index: Int32
    """[events], 1..num_items; 0: unknown to the reader."""
    time: Int64
    """[events], microseconds since the epoch, UTC."""
    event_type: Int16
    """[events], 0: none, 1..num_event_types."""
    starts: Int64
    """[rows], first position of each row."""
    ends: Int64
    """[rows], one past the last position of each row."""
    value: Float32 | None = None
    """[events], event values, NaN where missing; None: no event has one."""
    request_time: Int64 | None = None
    """[rows], time of the request for the next item, microseconds; None: unknown."""
    dislikes: Float32 | None = None
    """[num_event_types + 1], size of the negative weight of types that are dislikes, 0 for others; None: no type is one."""
    weight: Float32 | None = None
    """[events], weight of each event as a target of the training beside that of its type; None: 1."""
    user: Int64 | None = None
    """[rows], row of each history's user in the reader's tables of users, -1: not in them; None: no user is known."""
    left_out: ItemSets | None = None
    """[rows], items that a row's list must not have, besides those of the history where seen items are excluded; None: none."""
    shown: ShownItems | None = None
    """[rows], items that the user was shown; None: unknown, or none."""
    context: Int32 | None = None
    """[rows, columns], codes of the row's last event in further columns of the log, such as its device, 0: no value; None:
    unknown."""
    shortlist: Shortlists | None = None
    """[rows], the only items that a row's list may have; None: no row is limited."""

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def lengths(self) -> Int64:
        """[rows], interactions of each row."""
        return self.ends - self.starts

    def select(self, rows: slice | NDArray[np.integer] | NDArray[np.bool_]) -> "Histories":
        """The given rows, over the same flat arrays."""
        request_time = None if self.request_time is None else self.request_time[rows]
        user = None if self.user is None else self.user[rows]
        left_out = None if self.left_out is None else self.left_out.select(rows)
        shown = None if self.shown is None else self.shown.select(rows)
        context = None if self.context is None else self.context[rows]
        return replace(
            self,
            starts=self.starts[rows],
            ends=self.ends[rows],
            request_time=request_time,
            user=user,
            left_out=left_out,
            shown=shown,
            context=context,
            shortlist=None if self.shortlist is None else self.shortlist.select(rows),
        )

    def last(self, max_length: int) -> "Histories":
        """Each row cut to its `max_length` most recent interactions."""
        return replace(self, starts=np.maximum(self.starts, self.ends - max_length))

    def emptied(self, rows: NDArray[np.bool_]) -> "Histories":
        """The same rows, those of a mask [rows] without interactions and context."""
        context = None if self.context is None else np.where(rows[:, None], 0, self.context)
        return replace(self, ends=np.where(rows, self.starts, self.ends), context=context)

    def gather(self) -> tuple[Int64, Int64]:
        """(row, position) of every interaction of every row: two arrays of [sum of lengths]."""
        return gathered(self.starts, self.ends)

    def compact(self) -> "Histories":
        """The same rows over copied flat arrays, which hold nothing else."""
        _, positions = self.gather()
        ends = np.cumsum(self.lengths, dtype=np.int64)
        return replace(self._events(positions), starts=ends - self.lengths, ends=ends)

    def translate(self, mapping: Int32) -> "Histories":
        """Items renumbered by `mapping` [old_num_items + 1], in the rows' sets too, without interactions whose item maps to 0.

        Flat arrays are copied once; rows keep their number and order (one may become empty).
        """
        renamed = mapping[self.item_index]
        kept = renamed > 0
        position = np.concatenate((np.zeros(1, np.int64), np.cumsum(kept, dtype=np.int64)))
        return replace(
            self._events(kept),
            item_index=renamed[kept].astype(np.int32, copy=False),
            starts=position[self.starts],
            ends=position[self.ends],
            left_out=None if self.left_out is None else self.left_out.translate(mapping),
            shown=None if self.shown is None else self.shown.translate(mapping),
            shortlist=None if self.shortlist is None else self.shortlist.translate(mapping),
        )

    def excluded(self, *, seen: bool) -> "Histories | None":
        """The items that each row's list must not have, as rows without times: `left_out`, with `seen` the history's too.

        None where no row has any; with `seen` and without `left_out` the histories themselves.
        """
        if self.left_out is None:
            return self if seen else None
        row, item = self.left_out.pairs()
        if seen:
            of_event, position = self.gather()
            row, item = np.concatenate((of_event, row)), np.concatenate((self.item_index[position], item))
        order = np.argsort(row, kind="stable")
        sets, none = ItemSets.of(row[order], item[order], len(self)), np.zeros(len(item), np.int64)
        return Histories(sets.item_index, none, none.astype(np.int16), sets.starts, sets.ends)

    def without_dislikes(self) -> "Histories":
        """The same rows without dislikes; copied where the log has any."""
        return self if self.dislikes is None else replace(self._chosen(self.dislikes == 0), dislikes=None)

    def only_dislikes(self) -> "Histories":
        """The dislikes of each row as plain events, copied; empty rows where the log has none."""
        if self.dislikes is None:
            return replace(self, ends=self.starts)
        return replace(self._chosen(self.dislikes > 0), dislikes=None)

    def without_events(self, place: Int32) -> "Histories":
        """The same rows without some events: `place` [rows, n] in the row, from 0; -1: none. Copied."""
        row, position = self.gather()
        at = position - self.starts[row]
        return self.only((at[:, None] != place[row]).all(1))

    def only(self, kept: NDArray[np.bool_]) -> "Histories":
        """The same rows over copied flat arrays, of the events of a mask [sum of lengths] in the order of `gather` alone."""
        row, position = self.gather()
        ends = np.cumsum(np.bincount(row[kept], minlength=len(self)), dtype=np.int64)
        starts = np.concatenate((np.zeros(1, np.int64), ends))[:-1]
        return replace(self._events(position[kept]), starts=starts, ends=ends)

    def _chosen(self, types: NDArray[np.bool_]) -> "Histories":
        """The same rows, copied, of the events of some types [num_event_types + 1] alone."""
        return self.only(types[self.event_type[self.gather()[1]]])

    def with_types(self, mapping: Int16) -> "Histories":
        """Event types renumbered by `mapping` [old_num_event_types + 1]; dislikes of a type that maps to 0 are none any more."""
        dislikes = None
        if self.dislikes is not None:
            dislikes = np.zeros(int(mapping.max()) + 1, np.float32)
            dislikes[mapping] = self.dislikes
            dislikes[0] = 0
        return replace(self, event_type=mapping[self.event_type], dislikes=dislikes)

    def _events(self, chosen: Int64 | NDArray[np.bool_]) -> "Histories":
        """The flat arrays at the chosen positions, rows as they were."""
        return replace(
            self,
            item_index=self.item_index[chosen],
            time=self.time[chosen],
            event_type=self.event_type[chosen],
            value=None if self.value is None else self.value[chosen],
            weight=None if self.weight is None else self.weight[chosen],
        )


def gathered(starts: Int64, ends: Int64) -> tuple[Int64, Int64]:
    """(row, position) of every position of the rows [starts, ends): two of the sum of lengths."""
    lengths = ends - starts
    rows = np.repeat(np.arange(len(starts), dtype=np.int64), lengths)
    before = np.concatenate(([0], np.cumsum(lengths)[:-1])) if len(starts) else np.zeros(0, np.int64)
    positions = np.arange(len(rows), dtype=np.int64) + np.repeat(starts - before, lengths)
    return rows, positions


def histories_from_lists(items: list[list[int]], times: list[list[int]] | None = None) -> Histories:
    """Histories of the given item indices per row; times default to 0, 1, 2 … microseconds."""
    lengths = np.array([len(row) for row in items], dtype=np.int64)
    ends = np.cumsum(lengths)
    times = times if times is not None else [list(range(len(row))) for row in items]
    flat_items = np.array([item for row in items for item in row], dtype=np.int32)
    flat_times = np.array([time for row in times for time in row], dtype=np.int64)
    return Histories(flat_items, flat_times, np.zeros(len(flat_items), np.int16), ends - lengths, ends)
