"""Delimited text against a reference that goes through the text character by character."""

import io
import random

import numpy as np
import pytest

from features import tables
from features.readers import delimited, dialect
from features.settings import TableFormat

Rows = list[tuple[list[str] | None, str]]


def split_slowly(text: str, separator: str) -> list[str] | str | None:
    """The fields of a row; "open" where a quote does not close, None for an unquoted field over several lines."""
    fields = []
    while True:
        field, at = "", 1
        while text.startswith('"'):
            end = text.find('"', at)
            if end < 0:
                return "open"
            field += text[at:end]
            if not text.startswith('""', end):
                rest = text[end + 1 :]
                break
            field, at = field + '"', end + 2
        if not text.startswith('"') or (rest and not rest.startswith(separator)):
            field, found, rest = text.partition(separator)
            rest = found + rest
            if "\n" in field:
                return None
        fields.append(field)
        if not rest:
            return fields
        text = rest.removeprefix(separator)


def read_slowly(content: bytes, separator: str, num_fields: int, encoding: str) -> Rows:
    lines = content.replace(b"\r\n", b"\n").removesuffix(b"\n").split(b"\n")
    rows: Rows = []
    while lines:
        for number in range(1, min(dialect.LINES_PER_ROW, len(lines)) + 1):
            joined = b"\n".join(lines[:number])
            fields = split_slowly(joined.decode(encoding, "replace"), separator)
            if fields != "open":
                break
        if not isinstance(fields, list) or len(fields) != num_fields:
            fields, number = None, 1
        text = b"\n".join(lines[:number]).decode(encoding, "backslashreplace")
        if "\ufffd" in "".join(fields or ()):  # the texts here have none of their own
            fields = None
        if lines[0]:
            rows.append((fields, text.rstrip("\r")))
        lines = lines[number:]
    return rows


def read(content: bytes, form: TableFormat) -> Rows:
    rows: Rows = []
    for reading in delimited.read(tables.Utf8Stream(io.BytesIO(content), form.encoding), form, "log.csv"):
        chunk = reading()
        raw = chunk.raw(np.arange(len(chunk.frame)))
        fields = [
            None if bad else list(row) for row, bad in zip(chunk.frame.rows(), chunk.broken, strict=True)
        ]
        rows += zip(fields, raw, strict=True)
    return rows


def some_text(rng: random.Random, separator: str, num_fields: int) -> str:
    """Rows of which most are well formed, or plain soup."""
    if rng.random() < 0.5:
        pieces = ["a", "12", '"', separator, separator, "\n", "\r\n", "é"]
        return "".join(rng.choices(pieces, k=rng.randint(0, 50)))
    fields = ["", "a", "12", '"q"', '"a\nb"', f'"x{separator}y"', '"d""e"', '5"', "é", "\r"]
    lines = []
    for _ in range(rng.randint(0, 8)):
        count = num_fields if rng.random() < 0.8 else rng.randint(1, 6)
        lines.append(separator.join(rng.choices(fields, k=count)) + rng.choice(["\n", "\n", "\r\n"]))
    return "".join(lines)


@pytest.mark.parametrize("seed", range(4))
def test_agrees_with_the_reference(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delimited, "_is_stray", lambda *_: False)
    rng = random.Random(seed)
    for _ in range(100):
        separator = rng.choice([",", ";", "\t", "::", "|", "||", "¦", " "])
        encoding = rng.choice(["utf-8", "latin-1"])
        num_fields = rng.randint(1, 5)
        monkeypatch.setattr(delimited, "LINES_PER_ROW", rng.choice([2, 3, 100]))
        monkeypatch.setattr(dialect, "LINES_PER_ROW", delimited.LINES_PER_ROW)  # type: ignore[attr-defined]
        monkeypatch.setattr(dialect, "FIRST_BYTES", rng.choice([30, 1 << 20]))
        monkeypatch.setattr(tables, "BLOCK_BYTES", rng.choice([1, 2, 7, 1000]))
        content = bytearray(some_text(rng, separator, num_fields).encode(encoding))
        if content and rng.random() < 0.3:
            content[rng.randrange(len(content))] = rng.choice([0, 0xFF, 0x1F, 34, 10])
        header = separator.join(f"h{number}" for number in range(num_fields)) + "\n"
        columns = {f"c{number}": number + 1 for number in range(num_fields)}
        form = TableFormat("events", columns, separator=separator, encoding=encoding, quote='"')
        text = header.encode(encoding) + content
        found_dialect, _ = dialect.find(tables.Utf8Stream(io.BytesIO(text), encoding), form, "log.csv")
        assert found_dialect is not None
        assert found_dialect.num_fields - num_fields in (0, 1)
        expected = read_slowly(bytes(content), separator, found_dialect.num_fields, encoding)
        expected = [(fields and fields[:num_fields], raw) for fields, raw in expected]
        found = read(text, form)
        assert [(fields, raw.rstrip("\r")) for fields, raw in found] == expected, (
            separator,
            encoding,
            content,
        )


COLUMNS = {"user_id": 1, "item_id": 2}


def test_marks_line_ends_and_blank_lines() -> None:
    form = TableFormat("events", {"user_id": "u", "item_id": "i"})
    assert read(b"\xef\xbb\xbfu,i\r\n1,2\r\n\r\n3,4", form) == [(["1", "2"], "1,2"), (["3", "4"], "3,4")]
    assert read(b"", form) == []
    assert read(b"u,i\n", form) == []
    assert read(b"\n\n", TableFormat("events", COLUMNS, header=False)) == []


def test_the_number_of_fields_without_a_header_is_that_of_most_rows() -> None:
    found = read(b"1\n1,2\n3,4\n5,6,7\n", TableFormat("events", COLUMNS, header=False))
    assert [fields for fields, _ in found] == [None, ["1", "2"], ["3", "4"], None]


def test_bytes_that_are_no_text_break_their_row_only() -> None:
    found = read(b"1,caf\xe9\n2,caf\xc3\xa9\n", TableFormat("events", COLUMNS, header=False))
    assert found == [(None, "1,caf\\xe9"), (["2", "café"], "2,café")]
    latin = TableFormat("events", COLUMNS, header=False, encoding="latin-1")
    assert read(b"1,caf\xe9\n", latin) == [(["1", "café"], "1,café")]


def test_a_stray_quote_does_not_swallow_the_file() -> None:
    text = '1,"open\n' + "2,b\n" * 300
    found = read(text.encode(), TableFormat("events", COLUMNS, header=False))
    assert [fields for fields, _ in found] == [None, *[["2", "b"]] * 300]


@pytest.mark.parametrize(
    ("content", "form", "message"),
    [
        (
            b"u;i\n1;2\n",
            TableFormat("events", {"user_id": "u"}),
            r"columns\.user_id: received 'u'.*'u;i'.*1;2",
        ),
        (b"u,u\n1,2\n", TableFormat("events", {"user_id": "u"}), "2 columns 'u'; give its position"),
        (
            b"1::2\n",
            TableFormat("events", COLUMNS, header=False),
            r"item_id: received 2.*1 column.*1::2.*separator ','",
        ),
        (b"1,2\n", TableFormat("events", {"user_id": "u"}, header=False), "expected a position"),
        (b"\xff\xfev\x00\n\x00x\x00", TableFormat("events", {"user_id": "u"}), "1 column.s.: .v."),
    ],
)
def test_what_does_not_fit_is_one_message(content: bytes, form: TableFormat, message: str) -> None:
    with pytest.raises(ValueError, match=f"(?s){message}"):
        read(content, form)


def test_a_separator_must_be_one() -> None:
    with pytest.raises(ValueError, match="separator"):
        TableFormat("events", COLUMNS, separator="")
    with pytest.raises(ValueError, match="separator"):
        TableFormat("events", COLUMNS, separator='"')


def test_a_first_line_longer_than_the_first_block_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dialect, "FIRST_BYTES", 5)
    form = TableFormat("events", {"user_id": "user", "item_id": "item"})
    assert read(b"\n\nsomething else,user,item\nx,1,2\n", form) == [(["1", "2"], "x,1,2")]


def test_a_line_that_never_ends_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dialect, "FIRST_BYTES", 10)
    monkeypatch.setattr(tables, "BLOCK_BYTES", 10)
    monkeypatch.setattr(tables, "LONGEST_ROW_BYTES", 50)
    form = TableFormat("events", COLUMNS, header=False)
    for content in (b"1" * 100, b"1,2\n" * 5 + b"1" * 100):
        with pytest.raises(ValueError, match=r"log\.csv: a line is longer than"):
            read(content, form)


@pytest.mark.parametrize("empty", [0, 1, 2])
def test_rows_with_an_empty_last_field_among_others(empty: int) -> None:
    lines = ["1,2,3", "1,2,", "4,,", "4,5", "1,2,3,4", ",,"]
    text = "\n".join(lines[: 3 + empty] + ["7,8,"] * 3)
    found = read(text.encode(), TableFormat("events", {"user_id": 1, "item_id": 3}, header=False))
    expected = [line.split(",") for line in text.split("\n")]
    assert [fields for fields, _ in found] == [[r[0], r[2]] if len(r) == 3 else None for r in expected]
    assert [raw for _, raw in found] == text.split("\n")


def test_first_rows_in_a_message_are_printable() -> None:
    with pytest.raises(ValueError, match=r"u;\\x00\\x1bé") as error:
        read("h\nu;\x00\x1bé\n".encode(), TableFormat("events", {"user_id": "u"}))
    assert "\x1b" not in str(error.value)
