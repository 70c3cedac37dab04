"""Items that users were shown again and again without a reaction, which their next lists leave out (`score.max_shown`).

Shown are the rows of the exposure log, and own lists delivered outside its time. Users are read in blocks, and of the lists
only the row groups with users of the block, so memory follows the block alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
from numpy.typing import NDArray

from features.histories.vocabulary import Vocabulary
from models.histories import Histories, Int32, Int64, ItemSets
from pipeline.dataset.dataset import Dataset
from pipeline.dataset.exposed_items import DAY, shown_before
from pipeline.serving.request import Request

Bool = NDArray[np.bool_]


@dataclass(frozen=True)
class ShownList:
    """Lists delivered to many users at one time."""

    folder: Path
    """Folder of the Parquet files"""
    time: int
    """Time of their request, microseconds since the epoch"""
    before: int
    """Events from this time on came after them, microseconds since the epoch"""
    is_logged: bool = False
    """Whether the exposure log covers that time: then the lists count for users whom it does not have, those without events"""


@dataclass(frozen=True)
class NotAgain:
    """Rule: an item that a user was shown `max_shown` times within `days` without a reaction is left out."""

    max_shown: int
    days: float
    lists: tuple[ShownList, ...] = ()
    """Own lists that count as shown, oldest first"""


@dataclass(frozen=True)
class Shown:
    """What users were shown before a request, in a bundle's item numbering."""

    rule: NotAgain
    dataset: Dataset
    request: Request
    items: Vocabulary
    """Items of the bundle"""
    of_log: Int32
    """[num_items + 1] item of the log -> the bundle's, 0: unknown"""

    def left_out(self, ids: pl.Series, index: Int64, known: Histories) -> ItemSets:
        """Items of each user [users] that the rule leaves out.

        ids: of the users, distinct. index: in the log, -1 without events. known: their histories up to the request, in the
        bundle's numbering.
        """
        parts = [self._ignored_in_log(index), self._ignored_in_lists(ids, index, known)]
        row, item = (np.concatenate(part) for part in zip(*parts, strict=True))
        width = len(self.items) + 1
        pair, times = np.unique(row * width + item, return_counts=True)
        pair = pair[times >= self.rule.max_shown]
        return ItemSets.of(pair // width, pair % width, len(index))

    def _ignored_in_log(self, index: Int64) -> tuple[Int64, Int32]:
        """(row, item) of every exposure without a reaction before the request: two [exposures]."""
        moment = np.full(len(index), self.request.before)
        shown = shown_before(self.dataset, index, moment, self.rule.days)
        if shown is None:
            return np.zeros(0, np.int64), np.zeros(0, np.int32)
        shown = shown.translate(self.of_log)
        row, item = shown.pairs()
        return np.repeat(row, shown.ignored), np.repeat(item, shown.ignored)

    def _ignored_in_lists(self, ids: pl.Series, index: Int64, known: Histories) -> tuple[Int64, Int32]:
        """(row, item) of every place of an own list without a reaction: two [places].

        Of several lists of one time the last with the user counts. A list stands until the user's next one, the last until the
        request; a reaction is an event on the item meanwhile that is no dislike.
        """
        row, number, item = self._listed(ids)
        is_logged = np.array([own.is_logged for own in self.rule.lists], bool)
        counts = ~is_logged[number] | (index[row] < 0)
        row, number, item = row[counts], number[counts], item[counts]
        whole = len(self.rule.lists)
        before = np.array([own.before for own in self.rule.lists], np.int64)
        night = np.unique([own.time for own in self.rule.lists], return_inverse=True)[1]
        standing, own = np.unique(row * whole + number, return_inverse=True)
        of_user, of_list = np.divmod(standing, max(whole, 1))
        has_next = np.append(of_user[1:] == of_user[:-1], np.zeros(min(1, len(standing)), bool))
        following = np.append(of_list[1:], of_list[:1])
        is_last = ~has_next | (night[following] != night[of_list])
        until = np.where(has_next, before[following], self.request.before)[own]
        ignored = is_last[own] & ~_has_event(known, row, item, before[number], until) & (item > 0)
        return row[ignored], item[ignored]

    def _listed(self, ids: pl.Series) -> tuple[Int64, Int64, Int32]:
        """(row, number of the list, item) of every place of own lists of users, three [places]."""
        users = pl.DataFrame({"user_id": ids}).with_row_index("row")
        parts = [
            delivered.of_users(users).with_columns(number=pl.lit(number, pl.Int64))
            for number, delivered in enumerate(self._delivered)
            if self.rule.lists[number].time >= self.request.before - round(self.rule.days * DAY)
        ]
        if not parts:
            return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int32)
        places = pl.concat(parts, how="vertical_relaxed")  # ids may have become text
        item, _ = self.items.encode_known(places["item_id"])
        return places["row"].to_numpy().astype(np.int64), places["number"].to_numpy(), item

    @cached_property
    def _delivered(self) -> list["DeliveredLists"]:
        return [DeliveredLists.open(own.folder) for own in self.rule.lists]


def shown_counts(left_out: Int64) -> dict[str, int]:
    """Counts of the items left out for each user [users]."""
    return {"shown_items_left_out": int(left_out.sum()), "users_with_shown_items": int((left_out > 0).sum())}


@dataclass(frozen=True)
class DeliveredLists:
    """Parquet files of lists by user, of which row groups with some users are read."""

    paths: Sequence[Path]
    groups: Sequence[tuple[int, int]]
    """File and number of each row group"""
    least: pl.Series
    """[groups] first user id of each, null where unknown"""
    greatest: pl.Series
    """[groups] last user id of each, null where unknown"""

    @classmethod
    def open(cls, folder: Path) -> "DeliveredLists":
        """Lists of a folder."""
        paths, groups, limits = sorted(folder.glob("*.parquet")), [], []
        for place, path in enumerate(paths):
            metadata = pq.read_metadata(path)
            column = metadata.schema.names.index("user_id")
            for number in range(metadata.num_row_groups):
                known = metadata.row_group(number).column(column).statistics
                groups.append((place, number))
                limits.append(
                    (known.min, known.max) if known is not None and known.has_min_max else (None, None)
                )
        kind = pl.read_parquet_schema(paths[0])["user_id"]
        least, greatest = (pl.Series([limit[side] for limit in limits], dtype=kind) for side in (0, 1))
        return cls(paths, groups, least, greatest)

    def of_users(self, users: pl.DataFrame) -> pl.DataFrame:
        """(row, item_id) of every place of the lists of users (user_id, row)."""
        low, high = users["user_id"].min(), users["user_id"].max()
        is_outside = ((self.greatest < low) | (self.least > high)).fill_null(value=False)
        parts: dict[int, list[int]] = {}
        for position in (~is_outside).arg_true().to_list():
            place, number = self.groups[position]
            parts.setdefault(place, []).append(number)
        columns = ["user_id", "item_id"]
        frames = [pl.read_parquet(self.paths[0], columns=columns, n_rows=0)]
        for place, numbers in parts.items():
            with pq.ParquetFile(self.paths[place]) as file:
                frames.append(pl.DataFrame(file.read_row_groups(numbers, columns=columns)))
        return pl.concat(frames).join(users, on="user_id").select("row", "item_id")


def _has_event(known: Histories, row: Int64, item: Int32, start: Int64, end: Int64) -> Bool:
    """[n] whether a row has an event on an item at `start` or later and before `end`, dislikes apart.

    The times of the intervals' ends are few, so events are compared by the number of ends that precede them.
    """
    ends = np.unique(np.concatenate((start, end)))
    of_event, position = known.gather()
    recent = known.time[position] >= ends.min(initial=np.iinfo(np.int64).max)
    if known.dislikes is not None:
        recent &= known.dislikes[known.event_type[position]] == 0
    of_event, position = of_event[recent], position[recent]
    width, steps = max(int(known.item_index.max(initial=0)), int(item.max(initial=0))) + 1, len(ends) + 1
    event = np.searchsorted(ends, known.time[position], side="right")
    keys = np.unique((of_event * width + known.item_index[position]) * steps + event)
    pair = (row * width + item) * steps
    first, last = (
        np.searchsorted(keys, pair + np.searchsorted(ends, side, side="right")) for side in (start, end)
    )
    return np.asarray(first < last)
