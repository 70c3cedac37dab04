"""Logs in the forms in which they are found: small files and the rows that are in them."""

import bz2
import codecs
import csv
import gzip
import io
import json
import lzma
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from features import tables
from features.readers import sources
from features.settings import TableFormat

NAMES = {"user_id": "u", "item_id": "i", "timestamp": "t"}
NUMBERS = {"user_id": 1, "item_id": 2, "timestamp": 3}
ONE = [("1", "2", "3")]
TWO = [("1", "2", "3"), ("4", "5", "6")]


def rows_of(path: Path, form: TableFormat) -> list[tuple[Any, ...] | None]:
    """The rows of a file; None for one that is broken."""
    found: list[tuple[Any, ...] | None] = []
    for chunk in sources.read(path, form):
        assert len(chunk.raw(np.arange(len(chunk.frame)))) == len(chunk.frame)
        names = [name for name in ("user_id", "item_id", "timestamp", "value") if name in chunk.frame]
        rows = chunk.frame.select(names).rows()
        found += [None if bad else row for row, bad in zip(rows, chunk.broken, strict=True)]
    return found


def read(folder: Path, name: str, content: str | bytes, **keys: Any) -> list[tuple[Any, ...] | None]:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return rows_of(path, TableFormat("events", **({"columns": NAMES} | keys)))


STRAY = 'u{s}i{s}t{s}title\n0{s}100{s}10{s}song\n2{s}102{s}11{s}"Untitled\n0{s}103{s}12{s}x\n0{s}106{s}13{s}Live at the Roxy"\n'
SONGS = [("0", "100", "10"), ("2", "102", "11"), ("0", "103", "12"), ("0", "106", "13")]


@pytest.mark.parametrize("separator", ["\t", "|", "::", " "])
def test_a_quote_is_a_character_where_nothing_shows_that_fields_are_quoted(
    tmp_path: Path, separator: str
) -> None:
    text = STRAY.replace("song", "song").replace(" at the ", "-") if separator == " " else STRAY
    assert read(tmp_path, "a.dat", text.format(s=separator), separator=separator) == SONGS


@pytest.mark.parametrize("separator", [",", ";"])
def test_a_stray_quote_costs_its_line_alone(tmp_path: Path, separator: str) -> None:
    found = read(tmp_path, "a.csv", STRAY.format(s=separator), separator=separator)
    assert found == [SONGS[0], None, *SONGS[2:]]


def test_a_stray_quote_among_many_lines(tmp_path: Path) -> None:
    lines = [f"{number},{number % 7},{number},title {number}" for number in range(5_000)]
    lines[70], lines[90] = '70,0,70,"open', '90,6,90,closed"'
    found = read(tmp_path, "a.csv", "\n".join(["u,i,t,title", *lines]))
    assert len(found) == 5_000
    assert [row for row, value in enumerate(found) if value is None] == [70]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('"u"\t"i"\t"t"\n"1"\t"2"\t"3"\n', ONE),  # the header is quoted
        ('u\ti\tt\n1\t"2"\t3\n4\t"5"\t6\n', TWO),  # a whole column is
        ('u\ti\tt\n1\t"a\tb"\t3\n4\t5\t6\n', [("1", "a\tb", "3"), TWO[1]]),  # only quotes make the row fit
        ('u\ti\tt\n1\t"a ""b"""\t3\n4\t5\t6\n', [("1", 'a "b"', "3"), TWO[1]]),  # doubled quotes
        ('u\ti\tt\n1\t"2"\t3\n4\t5\t6\n', [("1", '"2"', "3"), TWO[1]]),  # one quoted word shows nothing
    ],
)
def test_quotes_of_tables_with_tabs(
    tmp_path: Path, text: str, expected: list[tuple[str, ...] | None]
) -> None:
    assert read(tmp_path, "a.tsv", text) == expected


def test_quotes_and_escapes_as_configured(tmp_path: Path) -> None:
    text = 'u,i,t\n1,"Weird Al" Yankovic,3\n1,"a \\"b\\", c",3\n1,"say ""x""",3\n'
    assert read(tmp_path, "a.csv", text, escape="\\") == [
        ("1", '"Weird Al" Yankovic', "3"),
        ("1", 'a "b", c', "3"),
        ("1", 'say "x"', "3"),
    ]
    assert read(tmp_path, "a.csv", "u,i,t\n1,'a, b',3\n", quote="'") == [("1", "a, b", "3")]
    assert read(tmp_path, "a.csv", 'u,i,t\n1,"2",3\n', quote="") == [("1", '"2"', "3")]


def test_as_many_rows_as_an_independent_reader_counts(tmp_path: Path) -> None:
    fields = ["a", "b c", 'say "hi"', "two\nlines", "a, b", "", "ä"]
    records = [
        [str(number), fields[number % 7], str(number), fields[number * 3 % 7]] for number in range(2_000)
    ]
    text = io.StringIO(newline="")
    csv.writer(text).writerows([["u", "i", "t", "x"], *records])
    assert read(tmp_path, "a.csv", text.getvalue()) == [tuple(record[:3]) for record in records]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-8-sig"])
def test_a_byte_order_mark_decides(tmp_path: Path, encoding: str) -> None:
    assert read(tmp_path, "a.csv", "u,i,t\r\n1,é€,3\r\n".encode(encoding)) == [("1", "é€", "3")]
    assert read(tmp_path, "a.jsonl", '{"u":1,"i":"é","t":3}\n'.encode(encoding)) == [("1", "é", "3")]


@pytest.mark.parametrize("encoding", ["cp1252", "cp1251", "shift_jis", "utf-16-le", "gb18030", "latin-1"])
def test_any_encoding(tmp_path: Path, encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    item = {"cp1251": "Война", "shift_jis": "戦争", "gb18030": "战争"}.get(encoding, "café")
    text = "u,i,t\n" + f"1,{item},3\n" * 100
    monkeypatch.setattr(tables, "BLOCK_BYTES", 7)
    assert read(tmp_path, "a.csv", text.encode(encoding), encoding=encoding) == [("1", item, "3")] * 100


def test_bytes_that_are_no_text_of_an_encoding_break_their_row(tmp_path: Path) -> None:
    content = "u,i,t\n1,戦,3\n".encode("shift_jis") + b"1,\x81\xff,3\n4,5,6\n"
    assert read(tmp_path, "a.csv", content, encoding="shift_jis") == [("1", "戦", "3"), None, TWO[1]]


def test_unknown_encodings_are_refused() -> None:
    for encoding in ("ebcdic", "base64", ""):
        with pytest.raises(ValueError, match=r"events\.encoding: received .*expected a text encoding"):
            TableFormat("events", NAMES, encoding=encoding)


@pytest.mark.parametrize(
    ("text", "keys", "expected"),
    [
        ("sep=;\nu;i;t\n1;2;3\n", {}, ONE),
        ('"sep=\t"\nu\ti\tt\n1\t2\t3\n', {}, ONE),
        ("# made by x\n# y\nu,i,t\n1,2,3\n#c\n4,5,6\n", {"comment": "#"}, TWO),
        ('//a\nu,i,t\n1,2,3\n//"b\n4,5,"6"\n', {"comment": "//"}, TWO),
        ("Report\nof May\nu,i,t\n1,2,3\n", {"skip_lines": 2}, ONE),
        ("u,i,t\n1,2,3,\n4,5,6,\n", {}, TWO),
        ("u,i,t,\n1,2,3\n4,5,6\n", {}, TWO),
        ("u,i,t,\n1,2,3,\n4,5,6,\n", {}, TWO),
        ("u,i,t\n1,2\n4,5,6\n7,8,9,10\n", {}, [None, TWO[1], None]),
        ("u,i,t\n1,2\n4,5,6\n7,8,9,10\n", {"ragged": "fill"}, [("1", "2", ""), TWO[1], ("7", "8", "9")]),
        ('u,i,t\n"1",2\n4,5,6,"7"\n', {"ragged": "fill"}, [("1", "2", ""), TWO[1]]),
        ("u,i,t\n1,2,3\nu,i,t\n4,5,6\n", {}, TWO),
        ("u\ti\tt\n1\t2\t3\n", {"separator": "\\t"}, ONE),
    ],
)
def test_what_stands_around_the_rows(
    tmp_path: Path, text: str, keys: dict[str, Any], expected: list[tuple[str, ...] | None]
) -> None:
    found = read(tmp_path, "a.csv", text, **keys)
    assert [row and tuple(value or "" for value in row) for row in found] == expected


def test_columns_of_folders(tmp_path: Path) -> None:
    columns = {"user_id": "u", "item_id": "i", "timestamp": "dt", "value": "event"}
    found = read(tmp_path, "event=view%20it/dt=2024-01-01/a.csv", "u,i\n1,2\n", columns=columns)
    assert found == [("1", "2", "2024-01-01", "view it")]


def test_one_column_from_several(tmp_path: Path) -> None:
    columns = {
        "user_id": {"first_of": ["user", "guest"]},
        "item_id": {"join": ["artist", "track"]},
        "timestamp": ["day", "hour"],
    }
    text = "day,hour,user,guest,artist,track\n2024-01-01,10:00,,g,a,b\n2024-01-02,,7,g,a,\n"
    expected = [("g", "a|b", "2024-01-01 10:00"), ("7", None, "2024-01-02")]
    assert read(tmp_path, "a.csv", text, columns=columns) == expected
    lines = "".join(json.dumps(row) + "\n" for row in csv.DictReader(io.StringIO(text)))
    assert read(tmp_path, "a.jsonl", lines, columns=columns) == expected
    path = tmp_path / "a.parquet"
    pl.read_csv(io.StringIO(text), infer_schema=False).with_columns(
        pl.col("day").str.to_date()
    ).write_parquet(path)
    assert rows_of(path, TableFormat("events", columns)) == expected  # type: ignore[arg-type]


def test_words_for_nothing_in_columns_from_several(tmp_path: Path) -> None:
    columns = {**NAMES, "user_id": {"first_of": ["u", "g"]}}
    found = read(tmp_path, "a.csv", "u,g,i,t\nNA,8,2,3\n 7 ,8,2,3\n", columns=columns, missing=["", "NA"])
    assert found == [("8", "2", "3"), (" 7 ", "2", "3")]


def test_values_given_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "BLOCK_BYTES", 5)
    text = "u,i,t\n1,2,3\n,4,5\n,6,7\n8,9,10\n"
    expected = [("1", "2", "3"), ("1", "4", "5"), ("1", "6", "7"), ("8", "9", "10")]
    assert read(tmp_path, "a.csv", text, fill_down=["user_id"]) == expected


def test_values_in_lines_between_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "BLOCK_BYTES", 5)
    text = "1:\n5,3,2005-01-01\n6,4,2005-01-02\n2:\n5,1,2005-01-03\nbroken\n"
    found = read(
        tmp_path,
        "a.txt",
        text,
        header=False,
        columns={"user_id": 1, "timestamp": 3},
        fill_down={"item_id": r"^(\d+):$"},
    )
    assert found == [("5", "1", "2005-01-01"), ("6", "1", "2005-01-02"), ("5", "2", "2005-01-03"), None]


def test_lists_of_items_in_a_field(tmp_path: Path) -> None:
    assert read(tmp_path, "a.csv", "u,i,t\n1,2|3,5\n4,,6\n", items_separator="|") == [
        ("1", "2", "5"),
        ("1", "3", "5"),
        ("4", "", "6"),
    ]
    found = read(
        tmp_path,
        "a.txt",
        "7 1 2 3\n8 4\n9\n",
        separator=" ",
        header=False,
        columns={"user_id": 1, "item_id": 2},
        items_separator=" ",
    )
    assert found == [("7", "1"), ("7", "2"), ("7", "3"), ("8", "4"), ("9", None)]


def test_long_lists_are_cut_into_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("features.readers.records.MAX_ROWS", 10)
    path = tmp_path / "a.csv"
    path.write_text("u,i,t\n" + "".join(f"{user},{'|'.join(map(str, range(7)))},1\n" for user in range(20)))
    chunks = list(sources.read(path, TableFormat("events", NAMES, items_separator="|")))
    assert sum(len(chunk.frame) for chunk in chunks) == 140
    assert max(len(chunk.frame) for chunk in chunks) < 20
    assert [raw for chunk in chunks for raw in chunk.raw(np.arange(len(chunk.frame)))][
        7
    ] == "1,0|1|2|3|4|5|6,1"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[{"u":1,"i":2,"t":3},\n {"u":4,\n "i":5,"t":6}]', TWO),
        ('[{"u":1,"i":2,"t":3}]', ONE),
        ("[]", []),
        ('{\n "u":1,\n "i":2,"t":3}\n{\n"u":4,"i":5,"t":6}\n', TWO),
        ('[\n{"u":1,"i":2,"t":3},\n{"u":1,"i":,\n"t":3},\n{"u":4,"i":5,"t":6}\n]\n', [ONE[0], None, TWO[1]]),
        ('{"u":1,"i":2,"t":3}\n{"u":1,"i":\n{"u":4,"i":5,"t":6}\n', [ONE[0], None, TWO[1]]),
        ('{"u":1,"i":\n{"u":4,"i":5,"t":6}\n', [None, TWO[1]]),
        ("{'u': 1, 'i': '2', 't': 3, 'z': None, 'w': True}\n", ONE),
        ('{"u":1,"i":2,"t":3,"r":NaN}\n{"u":1,"i":NaN,"t":3}\n', [ONE[0], None]),
        (
            '{"u":1,"i":[7,8],"t":[1,2]}\n{"u":1,"i":[7,8],"t":[1]}\n',
            [("1", "7", "1"), ("1", "8", "2"), None],
        ),
        ('{"u":1,"i":[],"t":3}\n', [("1", None, "3")]),
    ],
)
def test_forms_of_json(tmp_path: Path, text: str, expected: list[tuple[str, ...] | None]) -> None:
    assert read(tmp_path, "a.json", text) == expected


def test_an_array_longer_than_a_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "BLOCK_BYTES", 11)
    text = json.dumps([{"u": number, "i": "a\u2028[b", "t": 3} for number in range(200)], ensure_ascii=False)
    assert read(tmp_path, "a.json", text) == [(str(number), "a\u2028[b", "3") for number in range(200)]


def test_paths_through_arrays(tmp_path: Path) -> None:
    columns = {"user_id": "u", "item_id": "items[].id", "timestamp": "t", "value": "items[].of.v"}
    records: list[dict[str, Any]] = [
        {"u": 1, "items": [{"id": 7, "of": {"v": 1}}, {"id": 8, "of": {"v": 2}}], "t": 3},
        {"u": 4, "items": [], "t": 6},
    ]
    expected = [(1, 7, 3, 1), (1, 8, 3, 2), (4, None, 6, None)]
    lines = "".join(json.dumps(record) + "\n" for record in records)
    as_text = [tuple(None if value is None else str(value) for value in row) for row in expected]
    assert read(tmp_path, "a.jsonl", lines, columns=columns) == as_text
    path = tmp_path / "a.parquet"
    pl.DataFrame(records[:1] * 3).write_parquet(path)
    assert rows_of(path, TableFormat("events", columns)) == expected[:2] * 3


def test_lists_in_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pl.DataFrame({"u": [1, 2, 3], "i": [[3, 4], [5], []], "t": [[1, 2], [1, 2], []]}).write_parquet(path)
    assert rows_of(path, TableFormat("events", NAMES)) == [(1, 3, 1), (1, 4, 2), None, (3, None, None)]


def test_keys_with_dots(tmp_path: Path) -> None:
    columns = {"user_id": "a.b.c", "item_id": "x.y", "timestamp": "t"}
    text = '{"a.b":{"c":1},"x":{"y":2},"t":3}\n{"a":{"b.c":1},"x.y":2,"t":3}\n'
    assert read(tmp_path, "a.jsonl", text, columns=columns) == ONE * 2


def zipped(content: bytes, *names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, content)
    return buffer.getvalue()


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.csv.xz"])
@pytest.mark.parametrize(
    "pack", [gzip.compress, bz2.compress, lzma.compress, lambda text: zipped(text, "a.csv")]
)
def test_compression_by_the_first_bytes(tmp_path: Path, name: str, pack: Any) -> None:
    assert read(tmp_path, name, pack(b"u,i,t\n1,2,3\n")) == ONE


def test_archives(tmp_path: Path) -> None:
    assert read(tmp_path, "a.zip", zipped(b"u\ti\tt\n1\t2\t3\n", "a.tsv"), separator="\t") == ONE
    assert read(tmp_path, "a.csv.zip", zipped(b"u,i,t\n1,2,3\n", "__MACOSX/a", "a.csv")) == ONE
    with pytest.raises(ValueError, match=r"an archive of 2 files \(a\.csv, b\.csv\), expected one"):
        read(tmp_path, "b.zip", zipped(b"u,i,t\n", "a.csv", "b.csv"), format="csv")
    with pytest.raises(ValueError, match="cannot be decompressed"):
        read(tmp_path, "c.csv.zip", zipped(b"u,i,t\n1,2,3\n" * 1000, "a.csv")[:60])


def test_marks_of_encodings_are_told_apart() -> None:
    for mark, encoding in ((codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF32_LE, "utf-32-le")):
        stream = tables.Utf8Stream(io.BytesIO(mark + "aé".encode(encoding)), "utf-8")
        assert stream.read(100) + stream.read(100) == "aé".encode()


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.csv", "u,i,t\n1,2,3,4\n", "4 fields, the header has 3"),
        ("a.csv", "u,i,t\n1\n", "1 field, the header has 3"),
        ("a.csv", 'u,i,t\n1,2,"3\n', "a quote that is not closed"),
        ("a.csv", b"u,i,t\n1,\xff,3\n", "bytes that are no utf-8"),
        ("a.jsonl", '{"u":1\n', "not a JSON object"),
        ("a.jsonl", '{"u":{"x":1},"i":2,"t":3}\n', "an object where a value is expected (u)"),
        ("a.jsonl", '{"u":1,"i":NaN,"t":3}\n', "NaN or Infinity where a value is expected (i)"),
        ("a.jsonl", '{"u":1,"i":[1,2],"t":[3]}\n', "lists of different lengths"),
    ],
)
def test_what_is_wrong_with_a_broken_row(tmp_path: Path, name: str, text: str | bytes, expected: str) -> None:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    (chunk,) = sources.read(path, TableFormat("events", NAMES))
    assert chunk.broken.tolist() == [True]
    assert expected in chunk.why(chunk.raw(np.array([0]))[0])


def test_lists_of_different_lengths_in_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pl.DataFrame({"u": [1], "i": [[3, 4]], "t": [[1]]}).write_parquet(path)
    (chunk,) = sources.read(path, TableFormat("events", NAMES))
    assert chunk.why(chunk.raw(np.array([0]))[0]) == "lists of different lengths"
