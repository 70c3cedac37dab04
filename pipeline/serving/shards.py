"""Shards of a scoring: users in their order, of whom some have lists already."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from models.histories import Int64
from pipeline.serving import previous_lists
from pipeline.serving.previous_lists import PreviousLists, UInt64
from pipeline.serving.shown_items import shown_counts

Counts = dict[str, int]
POOL_BATCHES = 8
"""Row groups whose users are scored from one pool, where all of them are."""


@dataclass(frozen=True)
class Batch:
    """Lists of some users, by user and rank."""

    table: pa.Table
    rows: Int64
    """[users] length of each list"""
    counts: Counts


@dataclass(frozen=True)
class Shard:
    """Users of a Parquet file."""

    ids: pl.Series
    users: Int64
    """[users] numbers among all users"""
    previous: PreviousLists | None
    history: UInt64
    """[users] digests of their histories, 0 where none are kept"""
    num_unknown: Int64
    """[users] interactions with unknown items"""
    num_shown: Int64
    """[users] items that were shown too often"""
    position: Int64
    """[users] place among the previous lists, -1: to be made anew"""
    rows: Int64
    """[users] length of each list"""

    @classmethod
    def of(cls, ids: pl.Series, users: Int64, previous: PreviousLists | None) -> "Shard":
        """Shard whose lists are made anew until `compared`."""
        none = np.zeros(len(users), np.int64)
        return cls(
            ids, users, previous, none.astype(np.uint64), none.copy(), none.copy(), none - 1, none.copy()
        )

    def compared(self) -> "Shard":
        """The same shard, its users of unchanged histories with their previous lists."""
        if self.previous is None:
            return self
        position = self.previous.positions(self.ids, self.history)
        return replace(self, position=position, rows=self.previous.num_rows(position))

    def fresh(self, pool: slice) -> Int64:
        """Numbers of a pool's users whose lists are made anew."""
        return self.users[pool][self.position[pool] < 0]

    def copied(self, k: int) -> Counts:
        """Counts of the copied lists."""
        own = self.position >= 0
        return {
            "users": int(own.sum()),
            "reused_lists": int(own.sum()),
            "unknown_items": int(self.num_unknown[own].sum()),
            "users_with_unknown_items": int((self.num_unknown[own] > 0).sum()),
            "short_lists": int((self.rows[own] < k).sum()),
            "recommendations": int(self.rows[own].sum()),
            **shown_counts(self.num_shown[own]),
        }

    def pools(self, batch_users: int) -> Iterator[slice]:
        """Consecutive users, of whole row groups, with about as many to be made anew as POOL_BATCHES row groups have users."""
        starts = np.arange(0, len(self.users), batch_users)
        before: Int64 = np.cumsum(self.position < 0) - (self.position < 0)
        _, first = np.unique(before[starts] // (POOL_BATCHES * batch_users), return_index=True)
        ends = [*starts[first[1:]].tolist(), len(self.users)]
        yield from map(slice, starts[first].tolist(), ends)

    def row_groups(
        self, pool: slice, batch_users: int, fresh: Batch
    ) -> Iterator[tuple[pa.Table, pa.Table | None]]:
        """Lists of each `batch_users` of a pool by user and rank, and those of them that are copied; sets `rows`."""
        self.rows[pool][self.position[pool] < 0] = fresh.rows
        taken = 0
        for start in range(pool.start, pool.stop, batch_users):
            position = self.position[start : min(start + batch_users, pool.stop)]
            rows = self.rows[start : start + len(position)]
            number = int(rows[position < 0].sum())
            table, copied = fresh.table.slice(taken, number), None
            taken += number
            if self.previous is not None and (position >= 0).any():
                copied = self.previous.read(position[position >= 0])
                parts = np.flatnonzero(position < 0), np.flatnonzero(position >= 0)
                user = np.concatenate([np.repeat(part, rows[part]) for part in parts])
                order = np.argsort(user, kind="stable")
                table = pa.concat_tables([table, copied]).combine_chunks().take(pa.array(order))
            yield table.combine_chunks(), copied

    def save(self, path: Path) -> None:
        """Write digests and lengths of lists."""
        previous_lists.write_histories(path, self.ids, self.history, self.rows)
