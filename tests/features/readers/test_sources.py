"""The same log in every form is the same log."""

import bz2
import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from features import schema, tables
from features.events import validation, verdicts
from features.events.event_format import EventFormat
from features.readers import delimited, dialect, json_shapes, parquet, sources
from features.schema import IdType
from features.settings import EventSettings, TableFormat

NAMES: dict[str, str | int] = {"user_id": "u", "item_id": "i", "timestamp": "t", "value": "v"}
PACKS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".zst": lambda content: bytes(pa.compress(content, "zstd", asbytes=True)),
}
Row = tuple[str | None, ...]


def as_csv(rows: list[Row], separator: str = ",") -> bytes:
    """Values as text; null and empty are the same in csv."""
    if len(separator) > 1:  # no writer knows those
        quoted = [
            ['"' + (each or "").replace('"', '""') + '"' for each in row] for row in [tuple("uitv"), *rows]
        ]
        return "".join(separator.join(row) + "\n" for row in quoted).encode()
    text = io.StringIO()
    csv.writer(text, delimiter=separator, lineterminator="\n").writerows([tuple("uitv"), *rows])
    return text.getvalue().encode()


def as_jsonl(rows: list[Row], *, ascii_only: bool = False) -> bytes:
    objects = [dict(zip("uitv", row, strict=True)) for row in rows]
    return "\n".join(json.dumps(each, ensure_ascii=ascii_only) for each in objects).encode()


def as_parquet(rows: list[Row], kind: pa.DataType) -> bytes:
    buffer = io.BytesIO()
    columns = {name: pa.array([row[at] for row in rows], kind) for at, name in enumerate("uitv")}
    pq.write_table(pa.table(columns), buffer, row_group_size=5)
    return buffer.getvalue()


def ingest(content: bytes, name: str, folder: Path, separator: str = ",") -> tuple[Any, ...]:
    """Events, (row, reason) of refused rows, and the types of the ids, found as the stage does."""
    path = folder / name
    path.write_bytes(content)
    settings = EventSettings(
        "log", columns=NAMES, separator=separator, quote='"'
    )  # few rows cannot show that they are quoted
    form = EventFormat(settings, latest=2 * 10**15)
    id_types: dict[str, IdType] = {"user_id": "int64", "item_id": "int64"}
    while True:
        try:
            validation.ingest_file(path, "f" * 16, form, id_types, folder)
        except verdicts.TextIds as found:
            id_types[found.column] = "string"
        else:
            break
    log = (
        schema.read(folder / "events.parquet", schema.EVENTS)
        .sort("source_row")
        .drop("source_file", "event_type")
    )
    refused = schema.read(folder / "quarantine.parquet", schema.QUARANTINE)
    return log.rows(), refused.select("source_row", "reason").rows(), id_types


texts = st.sampled_from(
    [
        "7",
        "0",
        "-5",
        "17850.0",
        "007",
        "+7",
        " 7",
        "-0",
        "1e3",
        str(2**53 + 1),
        str(2**63 - 1),
        str(-(2**63)),
        str(2**63),
    ]
) | st.text(st.characters(exclude_characters="\r", exclude_categories=["Cs"]), max_size=4)
numbers = st.integers(-(2**63), 2**63 - 1).map(str)
some_ids = st.one_of(numbers, numbers, texts, st.none())
times = st.sampled_from(
    ["1600000000", "1600000000.25", "0", "", "soon", "1e300", "9" * 30, "1.6e9", " 1600000000"]
)
some_values = st.sampled_from(["1.5", "2", "", "much", "nan", "inf", "1e39", "-0.0", None])


def is_whole_row_within(text: str | None) -> bool:
    """Whether a first field ends in a line that is a row by itself: then its opening quote is a stray one."""
    return "\n" in (text or "")[:-1]


@settings(max_examples=10)
@given(
    st.lists(
        st.tuples(some_ids.filter(lambda text: not is_whole_row_within(text)), some_ids, times, some_values),
        min_size=1,
        max_size=12,
    ),
    st.booleans(),
)
@example([(str(2**53 + 1), "17850.0", "1600000000", "1"), ("5", "17850", "1600000000", "1")], True)
@example([("7", "\n", "1600000000", "")], False)
@example([("3059153", None, "0", None), ("\n", None, "0", "much")], False)
@example([("007", str(2**63), "1600000000", "1"), ("7", "9", "1600000000", "1")], True)
def test_every_form_gives_the_same_events(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Row], small: bool
) -> None:
    folder = tmp_path_factory.mktemp("forms")
    with pytest.MonkeyPatch.context() as patch:
        if small:
            patch.setattr(tables, "BLOCK_BYTES", 50)
            patch.setattr(parquet, "BATCH_ROWS", 2)
            patch.setattr(json_shapes, "MIN_ROWS", 1)
        found = {
            "csv": ingest(as_csv(rows), "log.csv", folder),
            "csv ::": ingest(as_csv(rows, "::"), "log.dat", folder, "::"),
            "csv tab": ingest(as_csv(rows, "\t"), "log.tsv", folder, "\t"),
            "jsonl": ingest(as_jsonl(rows), "log.jsonl", folder),
            "jsonl escaped": ingest(as_jsonl(rows, ascii_only=True), "log.ndjson", folder),
            "parquet": ingest(as_parquet(rows, pa.string()), "log.parquet", folder),
            "parquet view": ingest(as_parquet(rows, pa.string_view()), "log.pq", folder),
            "parquet binary": ingest(as_parquet(rows, pa.binary()), "log.pq", folder),
        }
    for form, result in found.items():
        assert result == found["csv"], form


@settings(max_examples=15)
@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=8))
def test_numbers_as_numbers_are_the_same_too(
    tmp_path_factory: pytest.TempPathFactory, numbers: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("numbers")
    rows = [(number, number, 1_600_000_000, 1.5) for number in numbers]
    expected = ingest(as_csv([tuple(map(str, row)) for row in rows]), "log.csv", folder)
    objects = "\n".join(json.dumps(dict(zip("uitv", row, strict=True))) for row in rows)
    assert ingest(objects.encode(), "log.jsonl", folder) == expected
    decimals = {
        name: pl.Series([row[at] for row in rows], dtype=pl.Decimal(25, 3)) for at, name in enumerate("uit")
    }
    for columns in (
        dict(zip("uitv", zip(*rows, strict=True), strict=True)),
        {**decimals, "v": [1.5] * len(rows)},
    ):
        buffer = io.BytesIO()
        pl.DataFrame(columns).write_parquet(buffer)
        assert ingest(buffer.getvalue(), "log.parquet", folder) == expected


@pytest.mark.parametrize("suffix", PACKS)
@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_compressed_in_one_piece_or_several(tmp_path: Path, suffix: str, form: str) -> None:
    rows: list[Row] = [(str(n), str(n % 7), "1600000000", "1.5") for n in range(3000)]
    content = as_csv(rows) if form == "csv" else as_jsonl(rows)
    expected = ingest(content, f"log.{form}", tmp_path)
    assert len(expected[0]) == 3000
    pack, name = PACKS[suffix], f"log.{form}{suffix}"
    assert ingest(pack(content), name, tmp_path) == expected
    pieces = pack(content[:1000]) + pack(content[1000:20_000]) + pack(content[20_000:])
    assert ingest(pieces, name, tmp_path) == expected
    for damaged in (
        pack(content)[:-1],
        pieces[:-40],
        pack(content)[: len(content) // 50],
        pack(content) + b"more",
    ):
        with pytest.raises(
            ValueError, match=rf"{name}: cannot be decompressed, the file is damaged or not {suffix}"
        ):
            ingest(damaged, name, tmp_path)


@pytest.mark.parametrize("separator", [",", ";", "\t", "::", ", ", "||", "|", " ", "ab", "§"])
@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "mark"])
def test_every_way_to_write_csv(separator: str, header: bool, line_end: str, encoding: str) -> None:
    fields = [["1", "café", "10"], ["2", f'a "b"{separator}c', ""], ["", "x\ny", "30"], ["4", "", "5"]]
    lines = [["u", "i", "t"], *fields] if header else fields
    text = line_end.join(
        separator.join(
            '"' + f.replace('"', '""') + '"' if set(f) & set(f'"\n{separator}') else f for f in line
        )
        for line in lines
    )
    content = text.encode("utf-8-sig" if encoding == "mark" else encoding)
    names: dict[str, str | int] = {"user_id": "u", "item_id": "i", "timestamp": "t"}
    positions: dict[str, str | int] = {"user_id": 1, "item_id": 2, "timestamp": 3}
    form = TableFormat(
        "events",
        names if header else positions,
        separator=separator,
        header=header,
        encoding="latin-1" if encoding == "latin-1" else "utf-8",
    )
    for ending in ("", line_end, line_end * 3):
        readings = delimited.read(
            tables.Utf8Stream(io.BytesIO(content + ending.encode()), form.encoding), form, "log.csv"
        )
        chunks = [reading() for reading in readings]
        assert not any(chunk.broken.any() for chunk in chunks)
        assert [list(row) for chunk in chunks for row in chunk.frame.rows()] == fields


def test_a_format_by_extension() -> None:
    form = TableFormat("events", NAMES)
    for name, expected in (
        ("a.CSV.GZ", "csv"),
        ("a.b.ndjson.zst", "jsonl"),
        ("u.data", "csv"),
        ("x.pq", "parquet"),
    ):
        assert sources.format_of(Path(name), form) == expected
    with pytest.raises(ValueError, match=r"log\.xlsx: is a spreadsheet, .*save the sheet as csv"):
        sources.format_of(Path("log.xlsx"), form)
    for name in ("log", "log.gz", "log.docx"):
        with pytest.raises(ValueError, match=r"set events\.format to csv, jsonl or parquet"):
            sources.format_of(Path(name), form)


def test_blocks_end_after_so_many_lines_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "BLOCK_LINES", 3)
    for text, expected in (
        (b"\n" * 8, [b"\n" * 3, b"\n" * 3, b"\n" * 2]),
        (b"a\n\nb\n\nc", [b"a\n\nb\n", b"\nc"]),
        (b"a\n\nb\n", [b"a\n\nb\n"]),
        (b"", [b""]),
    ):
        blocks = list(tables.whole_lines(tables.Utf8Stream(io.BytesIO(), "utf-8"), text, "log.csv"))
        assert [block for block, _ in blocks] == expected
        assert [last for _, last in blocks] == [False] * (len(expected) - 1) + [True]
        read_in_pieces = [
            block
            for block, _ in tables.whole_lines(tables.Utf8Stream(io.BytesIO(text), "utf-8"), b"", "log.csv")
            if block
        ]
        assert b"".join(read_in_pieces) == text
        assert max([block.count(b"\n") for block in read_in_pieces], default=0) <= 3


def test_chunks_of_blank_and_short_lines_are_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "BLOCK_LINES", 10)
    (tmp_path / "log.csv.gz").write_bytes(gzip.compress(b"u,i,t\n" + b"\n" * 95 + b"1,2,3\n" * 25))
    (tmp_path / "log.jsonl.gz").write_bytes(gzip.compress(b"\n" * 95 + b'{"u":1,"i":2,"t":3}\n' * 25))
    form = TableFormat("events", {"user_id": "u", "item_id": "i", "timestamp": "t"})
    for name in ("log.csv.gz", "log.jsonl.gz"):
        sizes = [len(chunk.frame) for chunk in sources.read(tmp_path / name, form)]
        assert sum(sizes) == 25
        assert max(sizes) <= 10


def test_more_columns_than_any_table_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "MAX_FIELDS", 5)
    path = tmp_path / "log.csv"
    path.write_text("u,i,t,a,b,c\n1,2,3,4,5,6\n")
    with pytest.raises(ValueError, match=r"log\.csv: the first row has 6 fields, expected at most 5"):
        list(sources.read(path, TableFormat("events", NAMES)))


def test_a_quote_over_more_bytes_than_a_row_has_is_a_stray_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "LONGEST_ROW_BYTES", 20)
    content = b'u,i,t\n1,"a\nb",3\n1,"' + b"xxxx\n" * 6 + b'",3\n1,2,3\n'
    form = TableFormat("events", {"user_id": "u", "item_id": "i", "timestamp": "t"})
    for block in (1, 7, 1000):
        monkeypatch.setattr(tables, "BLOCK_BYTES", block)
        monkeypatch.setattr(dialect, "FIRST_BYTES", block)
        chunks = [
            reading()
            for reading in delimited.read(
                tables.Utf8Stream(io.BytesIO(content), form.encoding), form, "log.csv"
            )
        ]
        rows = [row for chunk in chunks for row in chunk.frame.filter(~chunk.broken).rows()]
        assert rows == [("1", "a\nb", "3"), ("1", "2", "3")]
        assert sum(len(chunk.frame) for chunk in chunks) == 9


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_ids_above_64_kb_are_refused(tmp_path: Path, form: str) -> None:
    fits, long = "a" * 65_536, "a" * 65_537
    rows: list[Row] = [
        ("1", fits, "1600000000", "1"),
        ("1", long, "1600000000", "1"),
        (long, "2", "1600000000", "1"),
    ]
    content = {"csv": as_csv(rows), "jsonl": as_jsonl(rows), "parquet": as_parquet(rows, pa.string())}[form]
    log, refused, id_types = ingest(content, f"log.{form}", tmp_path)
    assert [row[1] for row in log] == [fits]
    assert refused == [(2, "bad_item"), (3, "bad_user")]
    assert id_types == {"user_id": "int64", "item_id": "string"}
    kept = schema.read(tmp_path / "quarantine.parquet", schema.QUARANTINE)["raw"]
    assert all(long in raw for raw in kept)
