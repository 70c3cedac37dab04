"""First row of each id, over blocks of rows."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from features import memory
from features.events import first_rows
from features.events.first_rows import FirstRows
from features.settings import TableFormat
from features.tables import Chunk

FORM = TableFormat("items", {"item_id": "id", "title": "name"})


def add(rows: FirstRows, *block: tuple[str | None, str | None]) -> None:
    """Add a block of rows; one without anything cannot be parsed."""
    frame = pl.DataFrame(block, schema={"item_id": pl.String, "title": pl.String}, orient="row")
    broken = np.array([row == (None, None) for row in block])
    rows.add(Chunk(frame, broken, lambda indices: [f"{block[row][0]}" for row in indices]), lambda rows: rows)


@pytest.mark.parametrize("merged_bytes", [0, 1 << 20])
def test_rows_of_several_blocks(monkeypatch: pytest.MonkeyPatch, merged_bytes: int) -> None:
    monkeypatch.setattr(first_rows, "_MERGED_BYTES", merged_bytes)
    rows = FirstRows(FORM, "item_id", "int64", Path("a.csv"), 0)
    add(rows, ("1", "a"), ("2", "b"), (None, None), ("1", "c"), (None, "d"))
    add(rows, ("x", "e"), ("2", "f"))
    add(rows, ("3", "g"), ("1", "h"), ("3", "i"))
    table = rows.table()
    assert table.frame.rows() == [(1, "a"), (2, "b"), (3, "g")]
    assert (table.rows_in, table.left_out) == (
        10,
        {"unparseable": 1, "missing_item": 1, "bad_item": 1, "duplicate": 4},
    )
    assert table.refused.rows() == [
        ("a.csv", 3, "None", "unparseable"),
        ("a.csv", 5, "None", "missing_item"),
        ("a.csv", 6, "x", "bad_item"),
    ]


def test_a_table_larger_than_memory_permits_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of 40 MiB; what other files hold counts too, repeated rows do not."""
    monkeypatch.setattr(memory, "usable_bytes", lambda: 40 << 20)
    monkeypatch.setattr(first_rows, "_MERGED_BYTES", 1 << 20)
    rows = FirstRows(FORM, "item_id", "string", Path("a.csv"), 5 << 20)
    for number in range(20):
        add(rows, ("1", f"{number}" * (1 << 20)))
    for number in range(2, 6):
        add(rows, (f"{number}", f"{number}" * (1 << 20)))
    with pytest.raises(
        ValueError,
        match=r"items\.path: a\.csv: the first 27 rows take 13 MiB in memory, expected at most 10 MiB for the table, 25% of",
    ):
        add(rows, *((f"n{number}", f"{number}" * (1 << 20)) for number in range(3)))
