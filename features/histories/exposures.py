"""Exposures of users, stored like their histories and joined with the events that followed, in bounded memory.

A bucket is a range of users, as in `buckets`. The exposure log is read twice, once for the numbers per user; each bucket is then
sorted alone, joined with the same users' events, and appended to the flat arrays.
"""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
import pyarrow.parquet as pq
from numpy.typing import NDArray

from features import schema
from features.histories.buckets import BUCKET_EVENTS, ArrayWriter, distribute, read, row_groups
from features.histories.jagged import JaggedHistories, user_ranges
from features.histories.vocabulary import Vocabulary

_UNKNOWN_USER = -1
_PAIR = ("user_index", "item_index")
_FLAT = {
    "item_index": np.int32,
    "time": np.int64,
    "rank": np.int32,
    "propensity": np.float32,
    "list_start": np.int64,
    "reaction_type": np.int16,
    "reaction_delay": np.int64,
}
"""The flat arrays of JaggedExposures."""


@dataclass(frozen=True)
class JaggedExposures:
    """Exposures of users 0..num_users-1: user u's are `flat[offsets[u]:offsets[u + 1]]`, by time and then rank."""

    offsets: NDArray[np.int64]
    """[num_users + 1]"""
    item_index: NDArray[np.int32]
    """[exposures], 1..num_items; 0: an item that is not in the catalogue"""
    time: NDArray[np.int64]
    """[exposures], microseconds since the epoch, UTC"""
    rank: NDArray[np.int32]
    """[exposures], place in the list from 1; 0 where the log has none"""
    propensity: NDArray[np.float32]
    """[exposures], probability of the item at its place, in (0, 1]; NaN where the log has none"""
    list_start: NDArray[np.int64]
    """[exposures], flat position of the first exposure of the same list: of the same user and list_id, or without one of the
    same time"""
    reaction_type: NDArray[np.int16]
    """[exposures], event type of the reaction as in the histories; 0: none, or a reaction without a type"""
    reaction_delay: NDArray[np.int64]
    """[exposures], microseconds until the reaction, the user's first event on the item within the window; -1: none"""

    @property
    def num_users(self) -> int:
        """Number of users, including those who were shown nothing."""
        return len(self.offsets) - 1

    @classmethod
    def load(cls, folder: Path) -> "JaggedExposures":
        """The saved exposures, memory-mapped: nothing is read until it is used."""
        return cls(
            **{field.name: np.load(folder / f"{field.name}.npy", mmap_mode="r") for field in fields(cls)}
        )


@dataclass
class ExposureCounts:
    """Numbers of exposures."""

    rows_in: int = 0
    rows_out: int = 0
    unknown_users: int = 0
    """Left out: of users without an event in the log."""
    unknown_items: int = 0
    """Kept, of items that are not in the catalogue."""
    without_propensity: int = 0
    with_reaction: int = 0
    after_event: int = 0
    """Without a reaction, and with the user's event on the item within the window before: shown after it was taken."""


def build(
    parts: Sequence[Path],
    folder: Path,
    users: Vocabulary,
    items: Vocabulary,
    histories: JaggedHistories,
    *,
    window: int,
    bucket_rows: int = BUCKET_EVENTS,
) -> ExposureCounts:
    """Write the exposures of every user with their reactions to a folder, which is made.

    parts: Parquet files with the columns of `schema.EXPOSURES`, in order of their source files. window: microseconds after an
    exposure in which an event of its user on its item, at its own time at the earliest, is its reaction. bucket_rows: maximum
    exposures and events of a bucket (unless one user has more).
    """
    folder.mkdir()
    lengths, counts = _lengths(parts, users)
    offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
    ranges = list(user_ranges(offsets + histories.offsets, bucket_rows))
    with tempfile.TemporaryDirectory(dir=folder, prefix=".buckets-") as place, ExitStack() as stack:
        files = distribute(_encoded(parts, users, items), ranges, len(users), Path(place))
        arrays = {
            name: stack.enter_context(ArrayWriter(folder / f"{name}.npy", np.dtype(kind)))
            for name, kind in _FLAT.items()
        }
        for (first, last), file in zip(ranges, files, strict=True):
            if offsets[first] == offsets[last]:
                continue
            shown = _in_lists(read(file), int(offsets[first]))
            file.unlink()
            joined = _joined(shown, _events(histories, first, last), window)
            _count(counts, joined)
            for name, array in arrays.items():
                array.append(joined[name].to_numpy())
    np.save(folder / "offsets.npy", offsets, allow_pickle=False)
    return counts


def _lengths(parts: Sequence[Path], users: Vocabulary) -> tuple[NDArray[np.int64], ExposureCounts]:
    """[users] exposures of each, and the numbers of all and of those of unknown users."""
    lengths, counts = np.zeros(len(users), np.int64), ExposureCounts()
    for chunk in _chunks(parts, [schema.USER_ID]):
        user, num_unknown = users.encode_known(chunk[schema.USER_ID], _UNKNOWN_USER)
        lengths += np.bincount(user[user != _UNKNOWN_USER], minlength=len(users))
        counts.rows_in += len(chunk)
        counts.unknown_users += num_unknown
    counts.rows_out = counts.rows_in - counts.unknown_users
    return lengths, counts


def _chunks(parts: Sequence[Path], columns: list[str]) -> Iterator[pl.DataFrame]:
    """Columns of the log in the order of the parts, some rows at a time."""
    for part in parts:
        schema.scan(part, schema.EXPOSURES)
        with pq.ParquetFile(part) as file:
            for groups in row_groups(file):
                yield pl.DataFrame(file.read_row_groups(groups, columns=columns))


def _encoded(parts: Sequence[Path], users: Vocabulary, items: Vocabulary) -> Iterator[pl.DataFrame]:
    """Exposures of known users as numbers, in the order of the parts; a list is known by a hash of its id, or by its time."""
    columns = [name for name in schema.EXPOSURES if name not in (schema.SOURCE_FILE, schema.SOURCE_ROW)]
    for chunk in _chunks(parts, columns):
        user, _ = users.encode_known(chunk[schema.USER_ID], _UNKNOWN_USER)
        item, _ = items.encode_known(chunk[schema.ITEM_ID])
        time = pl.col(schema.TIMESTAMP).dt.epoch("us")
        listed = pl.col(schema.LIST_ID)
        yield chunk.select(
            pl.Series("user_index", user),
            pl.Series("item_index", item),
            time.alias("time"),
            pl.col(schema.RANK).fill_null(0).alias("rank"),
            pl.col(schema.PROPENSITY).fill_null(float("nan")).alias("propensity"),
            pl.when(listed.is_null()).then(time.hash()).otherwise(listed.hash()).alias("list"),
        ).filter(pl.col("user_index") != _UNKNOWN_USER)


def _in_lists(shown: pl.DataFrame, start: int) -> pl.DataFrame:
    """The exposures of a bucket in order of user, time and rank, otherwise of the log, with the flat position of the first of
    each list; start: flat position of the bucket.
    """
    ordered = shown.sort("user_index", "time", "rank", maintain_order=True).with_row_index("place")
    first = pl.col("place").first().over("user_index", "list").cast(pl.Int64) + start
    return ordered.with_columns(first.alias("list_start")).drop("list")


def _events(histories: JaggedHistories, first: int, last: int) -> pl.DataFrame:
    """The events of users first..last-1: user_index, item_index, event_time, event_type."""
    begin, end = histories.offsets[first], histories.offsets[last]
    user = np.repeat(np.arange(first, last, dtype=np.int32), np.diff(histories.offsets[first : last + 1]))
    return pl.DataFrame(
        {
            "user_index": user,
            "item_index": np.asarray(histories.item_index[begin:end]),
            "event_time": np.asarray(histories.time[begin:end]),
            "event_type": np.asarray(histories.event_type[begin:end]),
        }
    )


def _joined(shown: pl.DataFrame, events: pl.DataFrame, window: int) -> pl.DataFrame:
    """The exposures with reaction_type and reaction_delay, and whether the event came before instead (is_after_event).

    An event's place in the history is in the order of its time, so the first of several at one time is the first in the history.
    """
    events = events.unique([*_PAIR, "event_time"], keep="first", maintain_order=True)

    def nearest(strategy: Literal["forward", "backward"]) -> pl.DataFrame:
        return shown.join_asof(
            events,
            left_on="time",
            right_on="event_time",
            by=_PAIR,
            strategy=strategy,
            tolerance=window,
            coalesce=False,
            check_sortedness=False,
        )

    after, before = nearest("forward"), nearest("backward")
    has_reaction = after["event_time"].is_not_null()
    return after.with_columns(
        pl.col("event_type").fill_null(0).alias("reaction_type"),
        (pl.col("event_time") - pl.col("time")).fill_null(-1).alias("reaction_delay"),
        (before["event_time"].is_not_null() & ~has_reaction).alias("is_after_event"),
    )


def _count(counts: ExposureCounts, joined: pl.DataFrame) -> None:
    counts.unknown_items += int((joined["item_index"] == 0).sum())
    counts.without_propensity += int(joined["propensity"].is_nan().sum())
    counts.with_reaction += int((joined["reaction_delay"] >= 0).sum())
    counts.after_event += int(joined["is_after_event"].sum())
