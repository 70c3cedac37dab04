"""Parts of the log as Parquet files: streaming writer, search for duplicates, copy without given rows."""

import base64
import json
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from features import schema
from features.schema import EVENT_TYPE, ITEM_ID, SOURCE_FILE, SOURCE_ROW, TIMESTAMP, USER_ID

ROWS_PER_GROUP = 1_000_000
"""Rows of a Parquet row group, about."""
BYTES_PER_GROUP = 256 << 20
"""Bytes in memory of a row group, about, where ids are long."""
_BUCKET_ROWS = 10_000_000
_DESCRIPTION = b"description"
"""Key of a part's `Description` in its footer."""


@dataclass(frozen=True)
class Description:
    """Summary of a part, made while it is written so that it need not be read again."""

    user_ids: list[Any]
    """The smallest and the largest; one if equal, none if the part is empty."""
    item_ids: list[Any]
    earliest: int | None
    """Microseconds since the epoch."""
    latest: int | None
    events_by_type: dict[str, int]
    """Event type to number of events; "" for events without a type."""

    @classmethod
    def of(cls, rows: pl.DataFrame) -> "Description":
        """Summary of rows, of events or of exposures."""
        times = rows[TIMESTAMP].dt.epoch("us")
        types = {"": len(rows)}
        if EVENT_TYPE in rows:
            counts = rows[EVENT_TYPE].value_counts()
            types = {name or "": number for name, number in counts.rows()}
        users, items = rows[USER_ID], rows[ITEM_ID]
        earliest: Any = times.min()
        latest: Any = times.max()
        return cls(
            _ends([users.min(), users.max()]), _ends([items.min(), items.max()]), earliest, latest, types
        )

    def __add__(self, other: "Description") -> "Description":
        times = _ends([self.earliest, self.latest, other.earliest, other.latest])
        types = Counter(self.events_by_type) + Counter(other.events_by_type)
        return Description(
            _ends(self.user_ids + other.user_ids),
            _ends(self.item_ids + other.item_ids),
            min(times, default=None),
            max(times, default=None),
            dict(sorted(types.items())),
        )


def _ends(values: Sequence[Any]) -> list[Any]:
    """The smallest and the largest; one if equal, none if none is given."""
    present = [value for value in values if value is not None]
    return sorted({min(present), max(present)}) if present else []


def describe(part: Path) -> Description:
    """The summary in a part's footer."""
    return Description(**json.loads(pq.read_metadata(part).metadata[_DESCRIPTION]))


def find_duplicates(parts: Sequence[Path], num_rows: int) -> pl.DataFrame:
    """(source_file, source_row) of every event with the user, item, timestamp and type of an earlier one, in order of the parts.

    Works through buckets of users, so memory is bounded.
    """
    key = [USER_ID, ITEM_ID, TIMESTAMP, EVENT_TYPE]
    places = [
        schema.scan(part, schema.EVENTS).select(*key, SOURCE_FILE, SOURCE_ROW, part=pl.lit(number, pl.Int32))
        for number, part in enumerate(parts)
    ]
    log = pl.concat(places)
    num_buckets = -(-num_rows // _BUCKET_ROWS)
    repeats = []
    for bucket in range(max(num_buckets, 1)):
        events = (
            log.filter(pl.col(USER_ID).hash() % max(num_buckets, 1) == bucket)
            .sort("part", SOURCE_ROW)
            .collect()
        )
        repeats.append(events.filter(~pl.struct(key).is_first_distinct()).select(SOURCE_FILE, SOURCE_ROW))
    return pl.concat(repeats)


def write_without(part: Path, rows: pl.Series, target: Path) -> None:
    """Copy a part of the log without the events of these source rows."""
    with pq.ParquetFile(part, pre_buffer=False) as file:
        groups = (file.read_row_group(group) for group in range(file.num_row_groups))
        frames = (pl.DataFrame(pl.from_arrow(group)) for group in groups)
        with PartWriter(target, schema.scan(part, schema.EVENTS).collect_schema()) as writer:
            for frame in frames:
                writer.write(frame.filter(~pl.col(SOURCE_ROW).is_in(rows.implode())))


class PartWriter:
    """Parquet writer of row groups of about ROWS_PER_GROUP rows, or BYTES_PER_GROUP; a thread writes while rows are gathered.

    The footer of rows of a log has their `Description`.
    """

    def __init__(self, path: Path, columns: pl.Schema) -> None:
        self._columns = columns
        self._description: Description | None = None
        if USER_ID in columns:
            self._description = Description.of(columns.to_frame())
        self._waiting: list[pl.DataFrame] = []
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._being_written: Future[None] | None = None
        numbers = [name for name, kind in columns.items() if kind.is_integer() or kind == schema.TIME]
        as_read = _to_arrow(columns.to_frame()).schema
        self._writer = pq.ParquetWriter(
            path,
            _with_one_value(as_read.empty_table()).schema,
            store_schema=False,
            compression={name: "none" if name in numbers else "zstd" for name in columns},
            compression_level={name: 1 for name in columns if name not in numbers},
            use_dictionary=[name for name in columns if name not in numbers],
            column_encoding=dict.fromkeys(numbers, "DELTA_BINARY_PACKED"),
            write_statistics=numbers,  # of text they take as long as writing it
        )
        self._writer.add_key_value_metadata({"ARROW:schema": base64.b64encode(as_read.serialize())})

    def __enter__(self) -> "PartWriter":
        return self

    def write(self, frame: pl.DataFrame) -> None:
        """Add rows."""
        self._waiting.append(frame.select(*self._columns))
        if self._description is not None:
            self._description += Description.of(frame)
        num_bytes = sum(waiting.estimated_size() for waiting in self._waiting)
        if sum(map(len, self._waiting)) >= ROWS_PER_GROUP or num_bytes >= BYTES_PER_GROUP:
            self._flush()

    def _flush(self) -> None:
        self._wait()
        frames, self._waiting = self._waiting, []
        self._being_written = self._thread.submit(self._write, frames)

    def _write(self, frames: list[pl.DataFrame]) -> None:
        table = _with_one_value(_to_arrow(pl.concat(frames)))
        self._writer.write_table(table, row_group_size=4 * ROWS_PER_GROUP)

    def _wait(self) -> None:
        if self._being_written is not None:
            self._being_written.result()

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        try:
            if failure is None and any(map(len, self._waiting)):
                self._flush()
            self._wait()
            if self._description is not None:
                self._writer.add_key_value_metadata({_DESCRIPTION: json.dumps(asdict(self._description))})
        finally:
            self._thread.shutdown()
            self._writer.close()


def _with_one_value(table: pa.Table) -> pa.Table:
    """The table with its source file, which is the same in every row, as one value and its number: to encode that is faster."""
    place = table.column_names.index(SOURCE_FILE)
    value = table[SOURCE_FILE].slice(0, 1).combine_chunks().cast(pa.large_string())
    numbers = pa.array(np.zeros(len(table), dtype=np.int32))
    return table.set_column(place, SOURCE_FILE, pa.DictionaryArray.from_arrays(numbers, value))


def _to_arrow(frame: pl.DataFrame) -> pa.Table:
    return frame.to_arrow(compat_level=pl.CompatLevel.oldest())
