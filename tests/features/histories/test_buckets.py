"""From parts of the log to jagged histories by pencil: order, ties, types, repeats; and bucket by bucket as all at once."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from features import schema
from features.histories import buckets
from features.histories.event_types import EventTypes
from features.histories.jagged import JaggedHistories
from features.histories.vocabulary import Vocabulary

Row = tuple[str, int, int, str | None, float | None]
"""user, item, second, type, value"""

# two source files; at second 5 user a has three events: the source file decides, and then the row
FILES: list[list[Row]] = [
    [
        ("a", 10, 9, "like", None),
        ("b", 30, 5, "view", 1.0),
        ("a", 30, 5, "view", 3.0),
        ("a", 30, 5, "view", 4.0),
    ],
    [("a", 20, 5, None, 2.0)],
]
TYPES = ["like", "view"]


def write(folder: Path, files: list[list[Row]]) -> list[Path]:
    """Parts of the log, one per source file, in row groups of two."""
    parts = []
    for number, rows in enumerate(files):
        names = ("user_id", "item_id", "second", "event_type", "value")
        frame = pl.DataFrame(rows, schema=list(names), orient="row", strict=False)
        moment = (pl.col("second") * 1_000_000).cast(pl.Datetime("us", "UTC")).alias("timestamp")
        events = frame.select(
            pl.col("user_id").cast(pl.String),
            pl.col("item_id").cast(pl.Int64),
            moment,
            pl.col("event_type").cast(pl.String).cast(pl.Categorical),
            pl.col("value").cast(pl.Float32),
            pl.lit(f"f{number}").alias("source_file"),
            pl.int_range(1, pl.len() + 1, dtype=pl.Int64).alias("source_row"),
        )
        schema.check(events.schema, schema.EVENTS, "the test's log")
        parts.append(folder / f"{number}.parquet")
        events.write_parquet(parts[-1], row_group_size=2)
    return parts


def build(
    folder: Path,
    files: list[list[Row]],
    *,
    drop_consecutive: bool = False,
    by_place: bool = False,
    bucket_events: int = 1000,
) -> tuple[JaggedHistories, dict[str, int]]:
    parts = write(folder, files)
    log = pl.scan_parquet(parts)
    users, counts = Vocabulary.counted(log, "user_id", 0)
    items, _ = Vocabulary.counted(log, "item_id", 1)
    return buckets.build(
        parts,
        folder,
        users,
        counts,
        items,
        EventTypes(TYPES),
        drop_consecutive=drop_consecutive,
        by_place=by_place,
        bucket_events=bucket_events,
    )


def test_the_place_in_the_log_is_the_time_where_there_is_none(tmp_path: Path) -> None:
    built, _ = build(tmp_path, FILES, by_place=True, bucket_events=4)
    assert built.time.tolist() == [1, 3, 4, 5, 2]  # of user a in the order of the files and rows, then of b


@pytest.mark.parametrize("bucket_events", [1, 4, 1000])
def test_by_pencil(tmp_path: Path, bucket_events: int) -> None:
    built, left_out = build(tmp_path, FILES, bucket_events=bucket_events)
    assert built.offsets.tolist() == [0, 4, 5]
    assert built.item_index.tolist() == [3, 3, 2, 1, 3]
    assert built.time.tolist() == [5_000_000, 5_000_000, 5_000_000, 9_000_000, 5_000_000]
    assert built.event_type.tolist() == [2, 2, 0, 1, 2]
    assert built.value[[0, 1, 2]].tolist() == [3.0, 4.0, 2.0]
    assert np.isnan(built.value[3])
    assert built.users().tolist() == [0, 0, 0, 0, 1]
    assert left_out == {}
    assert isinstance(built.item_index, np.memmap)
    assert not list(tmp_path.glob(".buckets-*"))


def test_consecutive_repeats_are_left_out_and_counted(tmp_path: Path) -> None:
    built, left_out = build(tmp_path, FILES, drop_consecutive=True)
    assert built.offsets.tolist() == [0, 3, 4]
    assert built.item_index.tolist() == [3, 2, 1, 3]  # b's 30 follows a's 10, not a's 30
    assert left_out == {"consecutive_repeat": 1}


ROWS = st.tuples(
    st.sampled_from("abcdef"),
    st.integers(1, 4),
    st.integers(0, 3) | st.sampled_from([2**41, -(2**41)]),  # far apart: user and time fit into no one number
    st.sampled_from([None, *TYPES]),
    st.sampled_from([None, 1.0, 2.0]),
)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    files=st.lists(st.lists(ROWS, min_size=1, max_size=8), min_size=1, max_size=3),
    drop=st.booleans(),
    bucket_events=st.integers(1, 12),
)
def test_bucket_by_bucket_is_as_sorting_everything(
    tmp_path: Path, files: list[list[Row]], drop: bool, bucket_events: int
) -> None:
    built, left_out = build(tmp_path, files, drop_consecutive=drop, bucket_events=bucket_events)
    rows = [row for file in files for row in file]
    rows = sorted(rows, key=lambda row: (row[0], row[2]))  # stable
    kept = [row for at, row in enumerate(rows) if not (drop and at and row[:2] == rows[at - 1][:2])]
    assert left_out.get("consecutive_repeat", 0) == len(rows) - len(kept)
    items = sorted({row[1] for row in rows})
    users = sorted({row[0] for row in rows})
    assert built.item_index.tolist() == [items.index(row[1]) + 1 for row in kept]
    assert built.time.tolist() == [row[2] * 1_000_000 for row in kept]
    assert built.event_type.tolist() == [TYPES.index(row[3]) + 1 if row[3] else 0 for row in kept]
    assert np.array_equal(built.value, [row[4] or np.nan for row in kept], equal_nan=True)
    assert [users[user] for user in built.users()] == [row[0] for row in kept]


def test_an_event_whose_id_has_no_place_is_refused(tmp_path: Path) -> None:
    parts = write(tmp_path, FILES)
    users = Vocabulary.of(pl.Series(["a"]), 0)
    with pytest.raises(ValueError, match="'b'"):
        buckets.build(
            parts,
            tmp_path,
            users,
            np.array([4]),
            Vocabulary.of(pl.Series([10, 20, 30]), 1),
            EventTypes(TYPES),
        )
