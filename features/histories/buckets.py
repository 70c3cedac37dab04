"""Jagged histories built from parts of the log in bounded memory.

A bucket is a range of user indices. The log is read once, in order of (source file, source row), and each event is appended
to its bucket's file. Each bucket is then sorted alone (stably, so equal times keep that order, or have that of the log's column
for it) and appended to the flat arrays.
"""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from features import schema
from features.histories.event_columns import EventColumn
from features.histories.event_types import EventTypes
from features.histories.jagged import DISLIKES, EVENT_COLUMNS, JaggedHistories, user_ranges
from features.histories.vocabulary import Vocabulary
from features.parallel import in_order

BUCKET_EVENTS = 8_000_000
"""Maximum events of a bucket (unless one user has more)."""
CHUNK_EVENTS = 4_000_000
"""Events that are read together."""

_TIME_UNITS = (1_000_000, 1000)
"""Microseconds; all times of a log are often multiples of one of these."""
_FLAT = {"item_index": np.int32, "time": np.int64, "event_type": np.int16, "value": np.float32}
"""The flat arrays of JaggedHistories."""


def build(
    parts: Sequence[Path],
    folder: Path,
    users: Vocabulary,
    user_counts: NDArray[np.int64],
    items: Vocabulary,
    event_types: EventTypes,
    columns: Sequence[EventColumn] = (),
    *,
    drop_consecutive: bool = False,
    by_place: bool = False,
    bucket_events: int = BUCKET_EVENTS,
) -> tuple[JaggedHistories, dict[str, int]]:
    """Write whole histories of every user to a folder; return them memory-mapped, and the events left out by reason.

    parts: Parquet files with the columns of `schema.EVENTS`, in order of their source files, rows in order of source_row;
    every id must be in its vocabulary. user_counts: [users] events of each. columns: further ones of the parts. by_place: the
    time of an event is its place in the log, whatever its timestamp. Left out: `consecutive_repeat`; a dislike and another event
    on the same item are no repeat.
    """
    offsets = np.concatenate(([0], np.cumsum(user_counts)))
    ranges = list(user_ranges(offsets, bucket_events))
    num_dropped = 0
    with tempfile.TemporaryDirectory(dir=folder, prefix=".buckets-") as place, ExitStack() as stack:
        events = _encoded(parts, users, items, event_types, columns)
        events = _numbered(events) if by_place else events
        buckets = distribute(events, ranges, len(users), Path(place))
        arrays = {
            name: stack.enter_context(ArrayWriter(folder / f"{name}.npy", np.dtype(kind)))
            for name, kind in _FLAT.items()
        }
        if columns:
            width = len(columns)
            codes = stack.enter_context(ArrayWriter(folder / EVENT_COLUMNS, np.dtype(np.int32), width))
        lengths = []
        in_turn = in_order(_taken, buckets, max_threads=1)
        for (first, last), ordered in zip(ranges, in_turn, strict=True):
            kept = _without_repeats(ordered, event_types) if drop_consecutive else ordered
            num_dropped += len(ordered) - len(kept)
            lengths.append(np.bincount(kept["user_index"].to_numpy() - first, minlength=last - first))
            for name, array in arrays.items():
                array.append(kept[name].to_numpy())
            if columns:
                codes.append(kept.select(_code_names(columns)).to_numpy())
    offsets = np.concatenate(([0], np.cumsum(np.concatenate(lengths)))).astype(np.int64)
    np.save(folder / "offsets.npy", offsets, allow_pickle=False)
    if event_types.dislikes is not None:
        np.save(folder / DISLIKES, event_types.dislikes, allow_pickle=False)
    return JaggedHistories.load(folder), {"consecutive_repeat": num_dropped} if drop_consecutive else {}


def _encoded(
    parts: Sequence[Path],
    users: Vocabulary,
    items: Vocabulary,
    event_types: EventTypes,
    further: Sequence[EventColumn],
) -> Iterator[pl.DataFrame]:
    """user_index, item_index, time, event_type, value (and order, and codes of further columns) of every event, in the order of
    the parts, some at a time.
    """
    columns = [schema.USER_ID, schema.ITEM_ID, schema.TIMESTAMP, schema.EVENT_TYPE, schema.VALUE]
    columns += [each.name for each in further]

    def encoded(place: tuple[Path, list[int]]) -> pl.DataFrame:
        part, groups = place
        with pq.ParquetFile(part) as file:
            order = [schema.ORDER] if schema.ORDER in file.schema_arrow.names else []
            events = pl.DataFrame(file.read_row_groups(groups, columns=[*columns, *order]))
        return events.select(
            pl.Series("user_index", users.encode(events[schema.USER_ID])),
            pl.Series("item_index", items.encode(events[schema.ITEM_ID])),
            pl.col(schema.TIMESTAMP).dt.epoch("us").alias("time"),
            event_types.codes(events),
            pl.col(schema.VALUE).fill_null(float("nan")).alias("value"),
            *order,
            *(
                each.codes(events).alias(name)
                for each, name in zip(further, _code_names(further), strict=True)
            ),
        )

    return in_order(encoded, _places(parts), max_threads=1)


def _places(parts: Sequence[Path]) -> Iterator[tuple[Path, list[int]]]:
    """Parts with the row groups of them that are read together."""
    for part in parts:
        schema.scan(part, schema.EVENTS)
        with pq.ParquetFile(part) as file:
            groups = list(row_groups(file))
        yield from ((part, together) for together in groups)


def _code_names(columns: Sequence[EventColumn]) -> list[str]:
    """Columns of codes, under names that are no others'."""
    return [f"code {number}" for number in range(len(columns))]


def _numbered(chunks: Iterator[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    """The events with their place in the log, from 1, as their time."""
    num_before = 0
    for chunk in chunks:
        yield chunk.with_columns(
            time=pl.int_range(num_before + 1, num_before + len(chunk) + 1, dtype=pl.Int64)
        )
        num_before += len(chunk)


def row_groups(file: pq.ParquetFile) -> Iterator[list[int]]:
    """Row groups of a file, as many together as make CHUNK_EVENTS."""
    together: list[int] = []
    num_rows = 0
    for group in range(file.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        if together and num_rows + rows > CHUNK_EVENTS:
            yield together
            together, num_rows = [], 0
        together.append(group)
        num_rows += rows
    if together:
        yield together


def distribute(
    chunks: Iterator[pl.DataFrame], ranges: Sequence[tuple[int, int]], num_users: int, place: Path
) -> list[Path]:
    """Append every row to the file of its user's bucket, in order; return the files, empty ones without a row."""
    paths = [place / f"{bucket}.arrow" for bucket in range(len(ranges))]
    bucket_of = np.zeros(num_users, np.uint16)
    for bucket, (first, last) in enumerate(ranges):
        bucket_of[first:last] = bucket
    with ExitStack() as stack:
        writers: list[pa.RecordBatchStreamWriter] = []
        for chunk in chunks:
            bucket = bucket_of[chunk["user_index"].to_numpy()]
            ordered = chunk[np.argsort(bucket, kind="stable")] if len(ranges) > 1 else chunk
            ends = np.cumsum(np.bincount(bucket, minlength=len(ranges)))
            table = ordered.to_arrow()
            if not writers:
                writers = [stack.enter_context(pa.ipc.new_stream(path, table.schema)) for path in paths]
            for writer, start, end in zip(writers, np.concatenate(([0], ends)), ends, strict=False):
                writer.write_table(table.slice(start, end - start))
    return paths


def read(bucket: Path) -> pl.DataFrame:
    """The rows of a bucket."""
    with pa.memory_map(str(bucket)) as source:
        return pl.DataFrame(pa.ipc.open_stream(source).read_all())


def _taken(bucket: Path) -> pl.DataFrame:
    """Sorted events of a bucket, whose file is removed."""
    events = _sorted(read(bucket))
    bucket.unlink()
    return events


def _sorted(events: pl.DataFrame) -> pl.DataFrame:
    """Events in stable order of user, time, and the log's own order (missing: last); user and time as one integer where that
    fits, which is twice as fast.
    """
    if schema.ORDER in events:
        return events.sort("user_index", "time", schema.ORDER, nulls_last=True, maintain_order=True)
    user, time = events["user_index"].to_numpy().astype(np.int64), events["time"].to_numpy()
    user, since = user - user.min(), time - time.min()
    unit = next((unit for unit in _TIME_UNITS if not (since % unit).any()), 1)
    num_times = int(since.max()) // unit + 1
    if (int(user.max()) + 1) * num_times >= 2**63:
        return events.sort("user_index", "time", maintain_order=True)
    order = pl.Series("order", user * num_times + since // unit)
    return events.with_columns(order).sort("order", maintain_order=True)


def _without_repeats(events: pl.DataFrame, event_types: EventTypes) -> pl.DataFrame:
    """Events without those on the same item as the user's previous event, both dislikes or neither."""
    same = (pl.col("item_index") == pl.col("item_index").shift(1)) & (
        pl.col("user_index") == pl.col("user_index").shift(1)
    )
    if event_types.dislikes is not None:
        is_dislike = pl.col("event_type").is_in(np.flatnonzero(event_types.dislikes).tolist())
        same &= is_dislike == is_dislike.shift(1)
    return events.filter(~same.fill_null(value=False))


class ArrayWriter:
    """A .npy file of numbers, or of rows of `width` numbers, that grows; the header's length is corrected on exit (numpy leaves
    room for it).
    """

    def __init__(self, path: Path, dtype: np.dtype[np.generic], width: int | None = None) -> None:
        self._file = path.open("wb")
        self._dtype = dtype
        self._row = () if width is None else (width,)
        self._length = 0
        self._write_header()

    def append(self, values: NDArray[np.generic]) -> None:
        """Add numbers or rows."""
        self._file.write(np.ascontiguousarray(values, self._dtype).data)
        self._length += len(values)

    def _write_header(self) -> None:
        description = np.lib.format.dtype_to_descr(self._dtype)
        np.lib.format.write_array_header_1_0(
            self._file, {"descr": description, "fortran_order": False, "shape": (self._length, *self._row)}
        )

    def __enter__(self) -> "ArrayWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.seek(0)
        self._write_header()
        self._file.close()
