"""Jagged per-user arrays: every user's whole history, stored once, flat and memory-mapped."""

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from features import schema
from features.vocabulary import Vocabulary


@dataclass(frozen=True)
class JaggedHistories:
    """Histories of users 0..num_users-1: user u's events are `flat[offsets[u]:offsets[u + 1]]`, oldest first.

    Order is (timestamp, source file, source row), so equal times keep the order of the log.
    """

    offsets: NDArray[np.int64]
    """[num_users + 1]"""
    item_index: NDArray[np.int32]
    """[events], 1..num_items"""
    time: NDArray[np.int64]
    """[events], microseconds since the epoch, UTC"""
    event_type: NDArray[np.int16]
    """[events], 0: none, 1.. in the order of the type names"""
    value: NDArray[np.float32]
    """[events], NaN where the log has none"""

    @property
    def num_users(self) -> int:
        """Users, those without events included."""
        return len(self.offsets) - 1

    def users(self) -> NDArray[np.int64]:
        """[events] the user of every event."""
        return np.repeat(np.arange(self.num_users), np.diff(self.offsets))

    def save(self, folder: Path) -> None:
        """One .npy file per array."""
        for each in fields(self):
            np.save(folder / f"{each.name}.npy", getattr(self, each.name), allow_pickle=False)

    @classmethod
    def load(cls, folder: Path) -> "JaggedHistories":
        """The saved histories, memory-mapped: nothing is read until it is used."""
        return cls(**{each.name: np.load(folder / f"{each.name}.npy", mmap_mode="r") for each in fields(cls)})


def build(
    events: pl.LazyFrame,
    users: Vocabulary,
    items: Vocabulary,
    event_types: list[str],
    *,
    drop_consecutive: bool = False,
) -> tuple[JaggedHistories, dict[str, int]]:
    """Whole histories of every user, and how many events were left out per reason (`consecutive_repeat`).

    Events have the columns of `schema.EVENTS`; every id must be in its vocabulary.
    """
    codes = np.arange(1, len(event_types) + 1, dtype=np.int16)
    types = pl.LazyFrame({"event_type": pl.Series(event_types, dtype=pl.String), "type_index": codes})
    frame = (
        events.with_columns(pl.col(schema.EVENT_TYPE).cast(pl.String))
        .join(users.frame("user_index", schema.USER_ID).lazy(), on=schema.USER_ID)
        .join(items.frame("item_index", schema.ITEM_ID).lazy(), on=schema.ITEM_ID)
        .join(types, on="event_type", how="left")
        .select(
            "user_index",
            "item_index",
            pl.col(schema.TIMESTAMP).dt.epoch("us").alias("time"),
            pl.col("type_index").fill_null(0).cast(pl.Int16).alias("event_type"),
            pl.col(schema.VALUE).fill_null(float("nan")).alias("value"),
            pl.col(schema.SOURCE_FILE).rank("dense").cast(pl.Int32),
            schema.SOURCE_ROW,
        )
        .sort("user_index", "time", schema.SOURCE_FILE, schema.SOURCE_ROW)
        .collect()
    )
    left_out: dict[str, int] = {}
    if drop_consecutive:
        before = len(frame)
        same = (pl.col("item_index") == pl.col("item_index").shift(1)) & (
            pl.col("user_index") == pl.col("user_index").shift(1)
        )
        frame = frame.filter(~same.fill_null(value=False))
        left_out["consecutive_repeat"] = before - len(frame)
    counts = np.bincount(frame["user_index"].to_numpy(), minlength=len(users))
    histories = JaggedHistories(
        np.concatenate(([0], np.cumsum(counts))).astype(np.int64),
        frame["item_index"].to_numpy().astype(np.int32),
        frame["time"].to_numpy().astype(np.int64),
        frame["event_type"].to_numpy().astype(np.int16),
        frame["value"].to_numpy().astype(np.float32),
    )
    return histories, left_out
