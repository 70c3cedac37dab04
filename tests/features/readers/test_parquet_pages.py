"""Rows of a Parquet row group that are decoded at a time, by the headers of its pages."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features import tables
from features.readers import parquet, parquet_pages
from features.settings import TableFormat

LONG = "a" * 1000
FORM = TableFormat("events", {"user_id": "u"})


def write(path: Path, ids: pa.Array, **settings: Any) -> Path:
    """A file with ids and a time of eight bytes."""
    pq.write_table(pa.table({"u": ids, "t": np.zeros(len(ids), np.int64)}), path, **settings)
    return path


def rows(path: Path, most: int, columns: list[str]) -> int:
    with pq.ParquetFile(path) as file, path.open("rb") as stream:
        return parquet_pages.rows_at_a_time(file, stream, 0, columns, most)


@pytest.mark.parametrize("compression", ["none", "snappy", "gzip", "zstd", "brotli", "lz4"])
def test_a_dictionary_counts_by_its_longest_value(tmp_path: Path, compression: str) -> None:
    path = write(tmp_path / "log.parquet", pa.array(["x", LONG] * 500), compression=compression)
    assert rows(path, 10_160, ["u"]) == 10_160 // (1000 + 8)
    assert rows(path, 10_160, ["u", "t"]) == 10
    assert rows(path, 10_160, ["t"]) == 10_160 // 8


@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_other_encodings(tmp_path: Path, version: str) -> None:
    def of(encoding: str) -> int:
        settings = {"use_dictionary": False, "column_encoding": {"u": encoding}, "data_page_version": version}
        return rows(write(tmp_path / "log.parquet", pa.array([LONG] * 100), **settings), 100_000, ["u"])

    assert 95 <= of("PLAIN") <= 100
    assert 95 <= of("DELTA_LENGTH_BYTE_ARRAY") <= 100
    assert 50 <= of("DELTA_BYTE_ARRAY") <= 100  # one page, of 1,000 bytes and what the 99 others add
    fixed = write(tmp_path / "log.parquet", pa.array([b"abcd" * 25] * 10, pa.binary(100)))
    assert rows(fixed, 1000, ["u"]) == 10


def test_chunks_are_small_where_values_are_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "BLOCK_BYTES", 20_000)
    short, long = ["x"] * 1000, [LONG] * 100
    plain = {"use_dictionary": False, "data_page_size": 2000, "write_batch_size": 10}
    for settings in ({}, plain, {"use_dictionary": False, "column_encoding": {"u": "DELTA_BYTE_ARRAY"}}):
        path = write(tmp_path / "log.parquet", pa.array(short + long), **settings)
        chunks = list(parquet.read(path, FORM))
        assert any(len(chunk.frame) > 200 for chunk in chunks)
        assert [value for chunk in chunks for value in chunk.frame["user_id"]] == short + long
        assert max(chunk.frame.estimated_size() for chunk in chunks) <= 50_000


def test_rows_of_many_small_groups_make_one_chunk(tmp_path: Path) -> None:
    path = write(tmp_path / "log.parquet", pa.array(["x", "y"] * 10), row_group_size=2)
    assert [len(chunk.frame) for chunk in parquet.read(path, FORM)] == [20]


def test_pages_too_large_to_decompress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_pages, "LARGEST_PAGES_BYTES", 1 << 20)
    path = write(
        tmp_path / "log.parquet", pa.array([LONG] * 3000), use_dictionary=False, data_page_size=4 << 20
    )
    with pytest.raises(
        ValueError, match=r"row group 1 needs 2 MiB for its largest pages, expected at most 1 MiB"
    ):
        list(parquet.read(path, FORM))


def test_damaged_headers(tmp_path: Path) -> None:
    path = write(tmp_path / "log.parquet", pa.array(["x", "y"]))
    content = path.read_bytes()
    for damage in (b"\xff" * 8, b"\x1c" * 8, b"\x15\x00\x00"):
        path.write_bytes(content[:4] + damage + content[4 + len(damage) :])
        with pytest.raises(ValueError, match="damaged"):
            list(parquet.read(path, FORM))


def test_a_page_before_the_file_is_damage() -> None:
    with pytest.raises(pa.ArrowInvalid, match="the place of a page is damaged"):
        parquet_pages._header(io.BytesIO(b"PAR1"), -5)
