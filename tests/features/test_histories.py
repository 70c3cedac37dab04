"""Jagged histories by pencil: order, ties, types, repeats."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl

from features import histories, schema
from features.vocabulary import Vocabulary


def log(rows: list[tuple[str, int, int, str | None, float | None, str, int]]) -> pl.LazyFrame:
    """Events from (user, item, second, type, value, source file, source row)."""
    names = ("user_id", "item_id", "second", "event_type", "value", "source_file", "source_row")
    frame = pl.DataFrame(rows, schema=list(names), orient="row")
    moment = (pl.col("second") * 1_000_000).cast(pl.Datetime("us", "UTC")).alias("timestamp")
    return frame.with_columns(
        moment, pl.col("event_type").cast(pl.Categorical), pl.col("value").cast(pl.Float32)
    ).lazy()


ROWS = [
    ("b", 30, 5, "view", 1.0, "f1", 3),
    ("a", 10, 9, "like", None, "f1", 1),
    ("a", 20, 5, None, 2.0, "f2", 1),  # at the same time as the next: the source file decides
    ("a", 30, 5, "view", 3.0, "f1", 9),
    ("a", 30, 5, "view", 4.0, "f1", 10),  # and then the row
]
USERS = Vocabulary.of(pl.Series(["a", "b", "c"]), 0)
ITEMS = Vocabulary.of(pl.Series([10, 20, 30, 40]), 1)


def test_by_pencil() -> None:
    built, left_out = histories.build(log(ROWS), USERS, ITEMS, ["like", "view"])
    assert built.offsets.tolist() == [0, 4, 5, 5]  # c has no event
    assert built.item_index.tolist() == [3, 3, 2, 1, 3]
    assert built.time.tolist() == [5_000_000, 5_000_000, 5_000_000, 9_000_000, 5_000_000]
    assert built.event_type.tolist() == [2, 2, 0, 1, 2]
    assert built.value[[0, 1, 2]].tolist() == [3.0, 4.0, 2.0]
    assert np.isnan(built.value[3])
    assert built.users().tolist() == [0, 0, 0, 0, 1]
    assert left_out == {}


def test_the_order_of_the_log_s_rows_does_not_matter() -> None:
    one, _ = histories.build(log(ROWS), USERS, ITEMS, ["like", "view"])
    other, _ = histories.build(log(ROWS[::-1]), USERS, ITEMS, ["like", "view"])
    assert (one.item_index == other.item_index).all()
    assert (one.event_type == other.event_type).all()


def test_consecutive_repeats_are_left_out_and_counted() -> None:
    built, left_out = histories.build(log(ROWS), USERS, ITEMS, ["like", "view"], drop_consecutive=True)
    assert built.item_index.tolist() == [3, 2, 1, 3]  # b's 30 follows a's 10, not a's 30
    assert left_out == {"consecutive_repeat": 1}


def test_saved_and_memory_mapped(tmp_path: Path) -> None:
    built, _ = histories.build(log(ROWS), USERS, ITEMS, ["like", "view"])
    built.save(tmp_path)
    again = histories.JaggedHistories.load(tmp_path)
    assert isinstance(again.item_index, np.memmap)
    assert (again.item_index == built.item_index).all()
    assert (again.offsets == built.offsets).all()


def test_the_columns_are_the_schema_s() -> None:
    assert set(log(ROWS).collect_schema().names()) - {"second"} == set(schema.EVENTS)
    assert datetime.fromtimestamp(5, UTC).year == 1970
