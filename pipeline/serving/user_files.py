"""Parquet files of (user, item) pairs, sorted by scored user once a night and read memory-mapped, a block of users at a time.

A file is streamed twice, in batches of rows, so memory is a few numbers per user and the distinct item ids.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from features.events.ids import plain
from features.histories.vocabulary import Vocabulary
from models.histories import Int32, Int64, gathered
from pipeline.artifacts.files import read_json, write_json
from pipeline.errors import LookbackError

USER, ITEM, RANK = "user_id", "item_id", "rank"
_BATCH_ROWS = 2**20
_FILES, _FACTS = ("offsets", "item", "rank"), "facts.json"


@dataclass(frozen=True)
class UserFile:
    """Pairs of a file by scored user, memory-mapped."""

    offsets: Int64
    """[users + 2], rows of each scored user; the last ones are for all users (a null user)"""
    item: Int32
    """[rows], number of the item among `items`"""
    rank: Int32
    """[rows], rank of a pin; empty without ranks"""
    items: pl.Series
    """Distinct item ids of the file"""
    rows_of_item: Int64
    """[items], rows of scored users with each"""
    num_unknown_users: int
    """Rows of users without a list"""

    @property
    def num_users(self) -> int:
        """Scored users."""
        return len(self.offsets) - 2

    def numbers(self, vocabulary: Vocabulary) -> Int32:
        """[items] each item in a vocabulary, 0 where it is unknown there."""
        return vocabulary.encode_known(self.items)[0]

    def has_any(self, users: Int64) -> NDArray[np.bool_]:
        """[users] whether each of some scored users has a row."""
        return np.asarray(self.offsets[users + 1] > self.offsets[users])

    def of_users(self, users: Int64) -> tuple[Int64, Int64]:
        """(place among `users`, row of the file) of every row of some scored users: two [rows]."""
        return gathered(np.asarray(self.offsets[users]), np.asarray(self.offsets[users + 1]))

    @classmethod
    def open(cls, folder: Path) -> "UserFile":
        """Open what `write` wrote."""
        offsets, item, rank = _arrays(folder)
        items = pl.read_parquet(folder / "items.parquet")
        num_unknown = read_json(folder / _FACTS)["unknown_users"]
        return cls(offsets, item, rank, items[ITEM], items["rows"].to_numpy(), num_unknown)


def write(key: str, path: Path, users: pl.Series, folder: Path, max_rank: int | None = None) -> None:
    """Write the pairs of a Parquet file into a folder, by scored user and then by row.

    key: of the configuration, for messages. users: ids of the scored users, distinct. max_rank: the file has ranks, from 1 to
    this one, and rows of a null user, for all. Raises LookbackError for a file that is none, missing columns, ids that are
    lists or structs, ranks out of range, and two items at one rank of a user.
    """
    with _opened(key, path) as file:
        _check_columns(key, path, file.schema_arrow.names, with_rank=max_rank is not None)
        folder.mkdir(parents=True)
        vocabulary = Vocabulary(_distinct_items(key, path), 0)
        scored, num_users = Vocabulary(users, 0), len(users)
        counts, rows_of_item, num_unknown = (
            np.zeros(num_users + 1, np.int64),
            np.zeros(len(vocabulary), np.int64),
            0,
        )
        with (folder / "codes").open("wb") as codes:
            for batch in _batches(file, with_rank=max_rank is not None):
                user, item, rank = _encoded(key, path, batch, scored, vocabulary, max_rank)
                kept = (user >= 0) & (item >= 0)
                num_unknown += int((user < 0).sum())
                counts += np.bincount(user[kept], minlength=num_users + 1)
                rows_of_item += np.bincount(item[kept], minlength=len(vocabulary))
                codes.write(np.stack([user[kept], item[kept], rank[kept]], 1).astype(np.int32).tobytes())
    offsets = np.concatenate((np.zeros(1, np.int64), np.cumsum(counts)))
    np.save(folder / "offsets.npy", offsets)
    _scatter(folder, offsets, with_rank=max_rank is not None)
    (folder / "codes").unlink()
    if max_rank is not None:
        _check_places(key, path, folder, users)
    pl.DataFrame({ITEM: vocabulary.ids, "rows": rows_of_item}).write_parquet(folder / "items.parquet")
    write_json(folder / _FACTS, {"unknown_users": num_unknown})


def _opened(key: str, path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise LookbackError(f"{key}: {path}: cannot be read as Parquet: {error}") from None


def _check_columns(key: str, path: Path, names: list[str], *, with_rank: bool) -> None:
    for column in (USER, ITEM, *((RANK,) if with_rank else ())):
        if column not in names:
            raise LookbackError(
                f"{key}: {path} has the columns {', '.join(names)}; expected a column {column}"
            )


def _distinct_items(key: str, path: Path) -> pl.Series:
    """Distinct item ids, in order."""
    distinct = pl.scan_parquet(path).select(pl.col(ITEM).unique()).collect(engine="streaming")[ITEM]
    return _plain(key, path, distinct).drop_nulls().unique().sort()


def _batches(file: pq.ParquetFile, *, with_rank: bool) -> Iterator[pl.DataFrame]:
    columns = [USER, ITEM, *((RANK,) if with_rank else ())]
    for batch in file.iter_batches(_BATCH_ROWS, columns=columns):
        yield pl.DataFrame(pa.Table.from_batches([batch]))


def _plain(key: str, path: Path, ids: pl.Series) -> pl.Series:
    try:
        return plain(ids)
    except ValueError as error:
        raise LookbackError(f"{key}: {path}: column {ids.name}: {error}") from None


def _encoded(
    key: str, path: Path, batch: pl.DataFrame, users: Vocabulary, items: Vocabulary, max_rank: int | None
) -> tuple[Int32, Int32, Int32]:
    """User, item and rank of each row, three [rows].

    -1 is a user without a list, or no item; where the file has ranks, a null user is the number of users.
    """
    ids = _plain(key, path, batch[USER])
    user, _ = users.encode_known(ids, unknown=-1)
    item, _ = items.encode_known(batch[ITEM], unknown=-1)
    if max_rank is None:
        return user, item, np.zeros_like(user)
    user[ids.is_null().to_numpy()] = len(users)
    return user, item, _ranks(key, path, batch[RANK], max_rank)


def _ranks(key: str, path: Path, ranks: pl.Series, max_rank: int) -> Int32:
    """[rows] ranks; raises LookbackError for other values than whole numbers from 1 to `max_rank`."""
    whole = pl.Series([None], dtype=pl.Int64).new_from_index(0, len(ranks))
    if ranks.dtype.is_numeric():
        number = ranks.cast(pl.Int64, strict=False)
        whole = number.set(((number != ranks) | ~number.is_between(1, max_rank)).fill_null(value=True), None)
    if whole.null_count():
        received = ranks.filter(whole.is_null())[0]
        raise LookbackError(
            f"{key}: {path}: received rank {received!r}, expected whole numbers from 1 to {max_rank} (score.k)"
        )
    return whole.to_numpy().astype(np.int32)


def _scatter(folder: Path, offsets: Int64, *, with_rank: bool) -> None:
    """Write item.npy and rank.npy by user from the codes by row."""
    num_rows = int(offsets[-1])
    for name in ("item", "rank"):
        np.save(folder / f"{name}.npy", np.zeros(0, np.int32))
    if not num_rows:
        return
    written = {
        name: np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.int32, (num_rows,))
        for name in ("item", "rank")[: 1 + with_rank]
    }
    following = offsets[:-1].copy()
    for start in range(0, num_rows, _BATCH_ROWS):
        part = np.fromfile(folder / "codes", np.int32, 3 * _BATCH_ROWS, offset=12 * start).reshape(-1, 3)
        part = part[np.argsort(part[:, 0], kind="stable")]
        users, first, number = np.unique(part[:, 0], return_index=True, return_counts=True)
        position = np.repeat(following[users] - first, number) + np.arange(len(part))
        following[users] += number
        for column, array in enumerate(written.values(), 1):
            array[position] = part[:, column]
    for array in written.values():
        array.flush()


def _arrays(folder: Path) -> list[Any]:
    """Offsets, items and ranks, memory-mapped."""
    return [np.load(folder / f"{name}.npy", mmap_mode="r") for name in _FILES]


def _check_places(key: str, path: Path, folder: Path, users: pl.Series) -> None:
    """Raise LookbackError where a user, or all users, have two items at one rank."""
    offsets, item, rank = _arrays(folder)
    user = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    order = np.lexsort((item, rank, user))
    user, item, rank = user[order], item[order], rank[order]
    is_wrong = (user[1:] == user[:-1]) & (rank[1:] == rank[:-1]) & (item[1:] != item[:-1])
    if is_wrong.any():
        place = int(is_wrong.argmax())
        whose = (
            "all users (user_id null)" if user[place] == len(users) else f"user {users[int(user[place])]!r}"
        )
        raise LookbackError(
            f"{key}: {path}: received two items at rank {rank[place]} for {whose}; expected one item per rank"
        )
