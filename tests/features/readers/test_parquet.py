"""Parquet from outside: column types, structs, damage."""

import datetime
import decimal
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features import schema
from features.events import ids, timestamps, validation
from features.events.event_format import EventFormat
from features.readers import parquet
from features.settings import EventSettings, TableFormat

D = decimal.Decimal
MOMENT = datetime.datetime(2016, 6, 8, 19, 10, 32, 250_000, tzinfo=datetime.UTC)
BERLIN = "Europe/Berlin"


def write(path: Path, arrays: dict[str, pa.Array], **settings: Any) -> Path:
    pq.write_table(pa.table(arrays), path, **settings)
    return path


def column(tmp_path: Path, array: pa.Array) -> tuple[pl.Series, list[bool]]:
    """A column as it is read back, and which of its rows are broken."""
    path = write(tmp_path / "log.parquet", {"x": array})
    chunks = list(parquet.read(path, TableFormat("events", {"user_id": "x"})))
    broken = np.concatenate([chunk.broken for chunk in chunks])
    return pl.concat([chunk.frame["user_id"] for chunk in chunks]), broken.tolist()


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (pa.array([D("12345678901234567890")], pa.decimal128(20, 0)), ["12345678901234567890"]),
        (pa.array([D("17850.00"), None], pa.decimal128(20, 2)), ["17850.00", None]),
        (pa.array([D("9007199254740993")], pa.decimal256(60, 0)), ["9007199254740993"]),
        (pa.array([2**63 + 1, 5], pa.uint64()), [str(2**63 + 1), "5"]),
        (pa.array([9007199254740993, None], pa.int64()), [9007199254740993, None]),
        (pa.array([17850.0, float("nan"), None, 1.5]), ["17850", None, None, "1.5"]),
        (pa.array([7.0], pa.float16()), ["7"]),
        (pa.array(["007", None]).dictionary_encode(), ["007", None]),
        (pa.array([7, None]).dictionary_encode(), [7, None]),
        (pa.array(["é"], pa.large_string()), ["é"]),
        (pa.array(["é" * 20], pa.string_view()), ["é" * 20]),
        (pa.array([b"ab"], pa.binary()), ["ab"]),
        (pa.array([b"ab"], pa.binary_view()), ["ab"]),
        (pa.array([b"ab"], pa.binary(2)), ["ab"]),
        (pa.array([uuid.UUID(int=7).bytes], pa.uuid()), [str(uuid.UUID(int=7))]),
        (pa.nulls(2), [None, None]),
    ],
)
def test_ids_are_exact_whatever_the_type(tmp_path: Path, array: pa.Array, expected: list[Any]) -> None:
    found, broken = column(tmp_path, array)
    assert ids.plain(found).to_list() == expected
    assert not any(broken)


def test_canonical_decimals_are_int64(tmp_path: Path) -> None:
    found, _ = column(tmp_path, pa.array([D("17850.00"), D("-3.00"), D("0.50")], pa.decimal128(20, 2)))
    assert ids.canonical(ids.plain(found)).to_list() == [17850, -3, None]


@pytest.mark.parametrize(
    ("array", "unit", "expected"),
    [
        *((pa.array([MOMENT], pa.timestamp(unit)), "s", 0) for unit in ("ms", "us", "ns")),
        *((pa.array([MOMENT], pa.timestamp(unit, BERLIN)), "s", 0) for unit in ("s", "ms", "us", "ns")),
        (pa.array([MOMENT], pa.timestamp("us", "+02:00")), "s", 0),
        (pa.array([D("1465413032.250000999")], pa.decimal128(19, 9)), "s", 0),
        (pa.array([D("1465413032250")], pa.decimal128(20, 0)), "ms", 0),
        (pa.array([1465413032.25]), "s", 0),
        (pa.array([b"1465413032.25"]), "s", 0),
        (pa.array(["2016-06-08T19:10:32.25Z"]).dictionary_encode(), "iso", 0),
        (pa.array([1465413032250000000], pa.uint64()), "ns", 0),
    ],
)
def test_times_are_exact_whatever_the_type(tmp_path: Path, array: pa.Array, unit: str, expected: int) -> None:
    found, _ = column(tmp_path, array)
    moment = timestamps.microseconds(found, unit, "UTC")[0]
    seconds = 1_465_413_032_000_000 if array.type != pa.timestamp("s", BERLIN) else 1_465_413_031_750_000
    assert moment - seconds - 250_000 == expected


@pytest.mark.parametrize("year", [1600, 2016, 2500])
@pytest.mark.parametrize("store_schema", [True, False])
def test_int96_is_read_as_it_is_beyond_what_nanoseconds_hold(
    tmp_path: Path, year: int, store_schema: bool
) -> None:
    times = pa.array([MOMENT.replace(year=year, tzinfo=None)], pa.timestamp("us"))
    settings = {"use_deprecated_int96_timestamps": True, "store_schema": store_schema}
    path = write(tmp_path / "log.parquet", {"x": times}, **settings)
    (chunk,) = parquet.read(path, TableFormat("events", {"user_id": "x"}))
    assert chunk.frame["user_id"].dt.year().to_list() == [year]


@pytest.mark.parametrize("unit", ["ms", "us"])
@pytest.mark.parametrize("zone", [None, BERLIN])
def test_times_no_calendar_has_are_refused_and_shown(tmp_path: Path, unit: str, zone: str | None) -> None:
    times = pa.array([2**62, -(2**62), 0], pa.int64()).cast(pa.timestamp(unit, zone))
    path = write(tmp_path / "log.parquet", {"u": pa.array([1, 2, 3]), "i": pa.array([1, 2, 3]), "t": times})
    form = EventFormat(
        EventSettings("log", columns={"user_id": "u", "item_id": "i", "timestamp": "t"}, timezone=BERLIN),
        latest=2 * 10**15,
    )
    counts = validation.ingest_file(path, "f" * 16, form, {"user_id": "int64", "item_id": "int64"}, tmp_path)
    assert counts.refused == {"impossible_time": 3}
    assert "9999-12-31" in counts.examples[0]["raw"]


NESTED = {"user_id": "user.id", "item_id": "a.b", "timestamp": "user.at.s", "value": "v"}


def test_dotted_paths_into_structs_and_several_row_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    users = [{"id": f"u{n}", "at": {"s": 1_600_000_000 + n}} if n % 3 else None for n in range(10)]
    arrays = {
        "user": pa.array(users),
        "a.b": pa.array(range(10)),
        "v": pa.array([0.5] * 10),
        "a": pa.array([{"b": 1}] * 10),
    }
    path = write(tmp_path / "log.parquet", arrays, row_group_size=4)
    monkeypatch.setattr(parquet, "BATCH_ROWS", 3)
    chunks = list(parquet.read(path, TableFormat("events", NESTED)))
    assert len(chunks) > 3
    frame = pl.concat([chunk.frame for chunk in chunks])
    assert frame["item_id"].to_list() == list(range(10))  # the column of that name, not the field
    assert frame["user_id"].to_list() == [f"u{n}" if n % 3 else None for n in range(10)]
    assert frame["timestamp"].to_list() == [1_600_000_000 + n if n % 3 else None for n in range(10)]
    assert '"user.id": "u1"' in chunks[0].raw(np.array([1]))[0]


def test_a_name_that_is_there_twice_needs_a_position(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    pq.write_table(pa.table([pa.array([1]), pa.array(["x"]), pa.array([3])], names=["u", "u", "i"]), path)
    with pytest.raises(ValueError, match="has 2 columns 'u'; give its position"):
        list(parquet.read(path, TableFormat("events", {"user_id": "u"})))
    (chunk,) = parquet.read(path, TableFormat("events", {"user_id": 2, "item_id": 1, "value": "i"}))
    assert chunk.frame.rows() == [("x", 1, 3)]
    assert chunk.raw(np.array([0])) == ['{"u (2)": "x", "u (1)": 1, "i": 3}']


@pytest.mark.parametrize("name", ["user.nothing", "user.id.x", "nobody.id", "user."])
def test_a_path_that_leads_nowhere_is_named(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "log.parquet", {"user": pa.array([{"id": 1}])})
    with pytest.raises(ValueError, match=rf"columns\.user_id: received '{name}', but .*'user'"):
        list(parquet.read(path, TableFormat("events", {"user_id": name})))


@pytest.mark.parametrize("name", ["user_id", "item_id", "timestamp", "event_type", "value"])
@pytest.mark.parametrize("value", [[{"x": 1}], {"x": 1}])
def test_structs_are_refused_by_the_key(tmp_path: Path, name: str, value: Any) -> None:
    arrays = {each: pa.array([1_600_000_000]) for each in schema.EVENTS if not each.startswith("source")}
    path = write(tmp_path / "log.parquet", arrays | {name: pa.array([value])})
    form = EventFormat(EventSettings("log", columns={each: each for each in arrays}), latest=2 * 10**15)
    with pytest.raises(ValueError, match=rf"events\.columns\.{name}: .*(List|Struct).*expected"):
        validation.ingest_file(path, "f" * 16, form, {"user_id": "int64", "item_id": "int64"}, tmp_path)


def test_bytes_that_are_no_text_break_their_rows(tmp_path: Path) -> None:
    found, broken = column(tmp_path, pa.array([b"a", b"\xff", None], pa.binary()))
    assert found.to_list() == ["a", "\\xff", None]
    assert broken == [False, True, False]


@pytest.mark.parametrize("compression", ["none", "snappy", "gzip", "zstd", "lz4", "brotli"])
def test_any_compression_and_one_message_where_it_is_damaged(tmp_path: Path, compression: str) -> None:
    noise = pa.array(np.random.default_rng(0).integers(0, 2**62, 50_000))
    path = write(tmp_path / "log.parquet", {"u": noise}, compression=compression)
    form = TableFormat("events", {"user_id": "u"})
    assert (
        pl.concat([chunk.frame for chunk in parquet.read(path, form)])["user_id"].to_list()
        == noise.to_pylist()
    )
    content = path.read_bytes()
    for damaged in (
        content[:-10],
        content[: len(content) // 2],
        content[:4] + bytes(2000) + content[2004:],
        b"",
    ):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"log\.parquet: cannot be read as Parquet.*") as error:
            list(parquet.read(path, form))
        assert len(str(error.value).splitlines()) == 1


def test_rows_that_a_damaged_file_hides_are_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "log.parquet", {"u": pa.array(range(10))}, row_group_size=5)
    found = iter([next(pq.ParquetFile(path).iter_batches(5))])
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", lambda *_, **__: found)
    with pytest.raises(ValueError, match="damaged or of another format: 5 rows were found of 10"):
        list(parquet.read(path, TableFormat("events", {"user_id": "u"})))
