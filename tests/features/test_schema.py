"""Column names and types: what is not as it should be is named."""

from pathlib import Path

import polars as pl
import pytest

from features import schema

GOOD = pl.DataFrame({"item_id": ["a"], "title": ["A"]})


def test_a_table_as_expected_is_read(tmp_path: Path) -> None:
    GOOD.write_parquet(tmp_path / "items.parquet")
    assert schema.read(tmp_path / "items.parquet", schema.ITEMS).equals(GOOD)
    assert schema.read(tmp_path / "items.parquet", schema.ITEMS, ["item_id"]).columns == ["item_id"]


def test_a_missing_column_is_named_with_those_found(tmp_path: Path) -> None:
    GOOD.drop("item_id").write_parquet(tmp_path / "items.parquet")
    with pytest.raises(ValueError, match=r"items\.parquet: has no column 'item_id' \(found title\)"):
        schema.read(tmp_path / "items.parquet", schema.ITEMS)


def test_a_wrong_type_is_named_with_the_right_one(tmp_path: Path) -> None:
    GOOD.with_columns(item_id=pl.lit(1.5)).write_parquet(tmp_path / "items.parquet")
    with pytest.raises(ValueError, match="'item_id' is Float64, expected Int64 or String"):
        schema.scan(tmp_path / "items.parquet", schema.ITEMS)


def test_a_damaged_file_and_no_file_are_one_message(tmp_path: Path) -> None:
    (tmp_path / "items.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(ValueError, match="cannot be read as Parquet"):
        schema.read(tmp_path / "items.parquet", schema.ITEMS)
    with pytest.raises(ValueError, match="no Parquet file"):
        schema.scan([], schema.EVENTS)
