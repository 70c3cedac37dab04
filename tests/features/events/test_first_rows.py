"""First row of each id, over blocks of rows."""

import polars as pl
import pytest

from features import memory
from features.events import first_rows
from features.events.first_rows import FirstRows


def block(*rows: tuple[str | None, str]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema={"item_id": pl.String, "title": pl.String}, orient="row")


@pytest.mark.parametrize("merged_bytes", [0, 1 << 20])
def test_rows_of_several_blocks(monkeypatch: pytest.MonkeyPatch, merged_bytes: int) -> None:
    monkeypatch.setattr(first_rows, "_MERGED_BYTES", merged_bytes)
    rows = FirstRows("item_id", "int64", "items.path: a.csv", 0)
    rows.add(block(("1", "a"), ("2", "b"), ("1", "c"), (None, "d")), 5)
    rows.add(block(("x", "e"), ("2", "f")), 2)
    rows.add(block(("3", "g"), ("1", "h"), ("3", "i")), 3)
    table = rows.table()
    assert table.frame.rows() == [(1, "a"), (2, "b"), (3, "g")]
    assert (table.rows_in, table.left_out) == (
        10,
        {"unparseable": 1, "missing_item": 1, "bad_item": 1, "duplicate": 4},
    )


def test_a_table_larger_than_memory_permits_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of 40 MiB; what other files hold counts too, repeated rows do not."""
    monkeypatch.setattr(memory, "usable_bytes", lambda: 40 << 20)
    monkeypatch.setattr(first_rows, "_MERGED_BYTES", 1 << 20)
    rows = FirstRows("item_id", "string", "items.path: a.csv", 5 << 20)
    for number in range(20):
        rows.add(block(("1", f"{number}" * (1 << 20))), 1)
    for number in range(2, 6):
        rows.add(block((f"{number}", f"{number}" * (1 << 20))), 1)
    with pytest.raises(
        ValueError,
        match=r"items\.path: a\.csv: the first 25 rows take 13 MiB in memory, expected at most 10 MiB for the table, 25% of",
    ):
        rows.add(block(*((f"n{number}", f"{number}" * (1 << 20)) for number in range(3))), 1)
