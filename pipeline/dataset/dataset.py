"""From a features folder to the arrays that models read: rows to train on and held-out targets with their histories."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from features.histories.jagged import JaggedHistories
from features.histories.splits import Split
from models.histories import Histories, Int32, Int64


def rows(histories: JaggedHistories, starts: Int64, ends: Int64) -> Histories:
    """Rows `[starts[i], ends[i])` of the flat arrays, nothing copied."""
    return Histories(
        histories.item_index, histories.time, histories.event_type, starts, ends, histories.value
    )


def training_rows(histories: JaggedHistories, split: Split, *, with_validation: bool) -> Histories:
    """The training events of every user over the core filter, with those of validation or without; items under it become 0."""
    ends = split.validation_end if with_validation else split.train_end
    wanted = rows(histories, histories.offsets[:-1], np.asarray(ends)).select(split.train_user)
    kept = np.where(split.kept_item, np.arange(len(split.kept_item)), 0).astype(np.int32)
    return wanted if split.kept_item[1:].all() else wanted.translate(kept)


def event_types(folder: Path) -> list[str]:
    """Names of the event types of a features folder; the name at position p has code p + 1."""
    names: list[str] = json.loads((folder / "event_types.json").read_text(encoding="utf-8"))
    return names


def num_items(folder: Path) -> int:
    """Items of the catalogue of a features folder."""
    return int(pl.scan_parquet(folder / "items.parquet").select(pl.len()).collect().item())


def known_items(histories: Histories, num_items: int, also: NDArray[np.bool_] | None = None) -> Int32:
    """[num_items + 1] item -> its number among the items that occur in the rows (`also`: or are known otherwise), else 0."""
    _, positions = histories.gather()
    seen = np.zeros(num_items + 1, bool)
    seen[histories.item_index[positions]] = True
    if also is not None:
        seen |= also
    seen[0] = False
    return np.where(seen, np.cumsum(seen), 0).astype(np.int32)


@dataclass(frozen=True)
class Targets:
    """Held-out events, each with the history before it."""

    user: Int64
    """[targets], user index"""
    position: Int64
    """[targets], flat position of the event"""
    item: Int32
    """[targets], item index of the features folder"""
    time: Int64
    """[targets], microseconds since the epoch"""
    histories: Histories
    """[targets] rows: the user's whole history before the event"""

    def __len__(self) -> int:
        return len(self.user)

    def select(self, chosen: NDArray[np.bool_]) -> "Targets":
        """The chosen ones."""
        return Targets(
            self.user[chosen],
            self.position[chosen],
            self.item[chosen],
            self.time[chosen],
            self.histories.select(chosen),
        )


def held_out(histories: JaggedHistories, split: Split, part: str, ties: str) -> Targets:
    """Every event of the evaluated users in the `validation` or `test` part, one after the other.

    Each history is all that came before: by order, or (ties = `strict`) by time alone.
    """
    starts, ends = split.stretch(histories, part)
    lengths = np.where(split.kept_user, np.asarray(ends) - np.asarray(starts), 0)
    user = np.repeat(np.arange(histories.num_users), lengths)
    position = np.arange(len(user)) + np.repeat(starts - np.cumsum(lengths) + lengths, lengths)
    history_start = histories.offsets[user]
    history_end = _first_of_tie(histories, history_start, position) if ties == "strict" else position
    before = replace(rows(histories, history_start, history_end), request_time=histories.time[position])
    return Targets(user, position, histories.item_index[position], histories.time[position], before)


def _first_of_tie(histories: JaggedHistories, start: Int64, position: Int64) -> Int64:
    """[targets] first position from `start` on whose event has the time of the one at `position`: times ascend in between."""
    low, high = start.copy(), position.copy()
    while (is_open := low < high).any():
        middle = (low + high) // 2
        is_earlier = is_open & (histories.time[middle] < histories.time[position])
        low, high = np.where(is_earlier, middle + 1, low), np.where(is_open & ~is_earlier, middle, high)
    return low


def former_numbers(before: Int32, after: Int32) -> Int32:
    """[new num_items + 1] what an item was numbered before, from two numberings of the same folder; 0: it was not known."""
    former = np.zeros(int(after.max()) + 1, np.int32)
    former[after[after > 0]] = before[after > 0]
    return former


def under_core(histories: JaggedHistories, split: Split) -> NDArray[np.bool_]:
    """[num_items + 1]: items that the core filter took away; of others under it nothing was there to train on."""
    if split.protocol == "leave_one_out":
        return ~split.kept_item
    return ~split.kept_item & (histories.item_counts(len(split.kept_item) - 1, split.train_end) > 0)
