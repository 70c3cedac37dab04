"""Delimited text (csv): separators of any length, quotes, embedded line ends, undecodable bytes.

A field is quoted where it begins with a quote; it ends with a quote before a separator or the end of the line, and "" within
stands for one quote. A quote anywhere else is a character like any other. Every line that has another number of fields than the
header (without one: than most of the first lines) is broken. Blank lines are no rows.

pyarrow.csv takes 0.7 times the CPU, but keeps no raw text of rows refused later, lets an open quote swallow the rest of the file
and fails a column for one undecodable byte (tests/benchmarks/results/2026-11-29-readers.md).
"""

import collections
import functools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import polars as pl
from numpy.typing import NDArray

from features import tables
from features.settings import TableFormat
from features.tables import Chunk, Reading, Rows

LINES_PER_ROW = 100
"""Maximum lines of a row; a quote not closed by then, or within the longest row's bytes, is a stray one."""

_LINE_FEED = 10
FIRST_BYTES = 1 << 20
_FIRST_LINES = 1000
_MAX_SUSPECTS = 1000
"""Maximum lines of a chunk whose fields are counted one by one."""
_UNUSED = [bytes([code]) for code in (*range(0x1F, 0x1B, -1), *range(1, 9))]
_CLOSING = re.compile(r'[^"]*+(?:""[^"]*+)*+"')


class Unclosed(Exception):
    """A quoted field does not end within the text."""


@dataclass(frozen=True)
class _Layout:
    """Positions of the mapped fields."""

    separator: bytes
    num_fields: int
    positions: dict[str, int]
    """Our name to the field's position from 0."""


def read(stream: BinaryIO, form: TableFormat, where: str) -> Iterator[Reading]:
    """Chunks of rows of a delimited text; those without quotes are parsed when called, by the caller's threads.

    Raises ValueError for a missing mapped column, naming the columns of the file.
    """
    start = _first_block(stream, where, form.section)
    names, start = _header(start, form, where) if form.header else (None, start)
    layout = _layout(_normal(start, form.encoding), names, form, where)
    if layout is None:
        return
    rest = b""
    for block, last in tables.whole_lines(stream, start, where):
        text = rest + _normal(block, form.encoding)
        one_byte = layout.separator if len(layout.separator) == 1 else _unused(text)
        if one_byte is not None and not _needs_care(text, layout.separator):
            rest = b""
            yield functools.partial(_parse, text, layout, one_byte)
        else:
            chunk, used = _split_quoted(tables.Lines.of(text), layout, one_byte, last=last)
            rest = text[used:]
            yield functools.partial(tables.given, chunk)


def header_names(stream: BinaryIO, form: TableFormat, where: str) -> list[str]:
    """Column names in the header; empty without one."""
    return _header(_first_block(stream, where, form.section), form, where)[0] if form.header else []


def _first_block(stream: BinaryIO, where: str, section: str) -> bytes:
    """The beginning of the file, at least one whole line."""
    start = b""
    while len(start) < FIRST_BYTES or b"\n" not in start.lstrip(b"\r\n"):
        more = stream.read(FIRST_BYTES)
        if not more:
            break
        start += more
        tables.check_row_length(len(start) - FIRST_BYTES, where)
    return tables.without_mark(start, where, section)


def _header(start: bytes, form: TableFormat, where: str) -> tuple[list[str], bytes]:
    """Names in the first row that is not blank, and the rest of the text."""
    start = start.lstrip(b"\r\n")
    end = 0
    for _ in range(LINES_PER_ROW):
        end = start.find(b"\n", end) + 1 or len(start)
        text = start[:end].decode(form.encoding, errors="replace").rstrip("\r\n")
        try:
            names = split_row(text, form.separator)
        except Unclosed:
            if end < len(start):
                continue
            names = None
        break
    else:
        names = None
    if names is None:
        end = start.find(b"\n") + 1 or len(start)
        text = start[:end].decode(form.encoding, errors="replace").rstrip("\r\n")
        if (num_fields := text.count(form.separator) + 1) > tables.MAX_FIELDS:
            raise tables.too_many_fields(num_fields, form, where)
        names = text.split(form.separator)
    return [name.strip() for name in names], start[end:]


def _layout(start: bytes, names: Sequence[str] | None, form: TableFormat, where: str) -> _Layout | None:
    """Positions of the mapped fields; None for a file without a row."""
    lines = [line for line in start.split(b"\n", _FIRST_LINES)[:_FIRST_LINES] if line]
    if not lines and (names is None or names == [""]):
        return None
    shown = [tables.as_text(line, "utf-8")[:200] for line in lines[:3]]
    if names is None:
        names = _numbered(lines, form)
    positions = {}
    for ours, theirs in form.columns.items():
        name = tables.column_at(form, ours, names, where, shown)
        positions[ours] = theirs - 1 if isinstance(theirs, int) else names.index(name)
    return _Layout(form.separator.encode(), len(names), positions)


def _numbered(lines: Sequence[bytes], form: TableFormat) -> list[str]:
    """Without a header: "1", "2", … for as many fields as most of the first lines have."""
    for ours, theirs in form.columns.items():
        if isinstance(theirs, str):
            raise ValueError(
                f"{form.section}.columns.{ours}: received the name {theirs!r}, expected a position from 1, "
                f"as there is no header ({form.section}.header = false)"
            )
    counts = collections.Counter(_count_fields(line, form.separator) for line in lines)
    return [str(position + 1) for position in range(counts.most_common(1)[0][0])]


def _count_fields(line: bytes, separator: str) -> int:
    try:
        fields = split_row(line.rstrip(b"\r").decode(errors="replace"), separator)
    except Unclosed:
        fields = None
    return 0 if fields is None else len(fields)


def split_row(text: str, separator: str) -> list[str] | None:
    """Unquoted fields of one row; None if text follows a closing quote or there are too many. Raises Unclosed."""
    fields: list[str] = []
    position = 0
    while len(fields) < tables.MAX_FIELDS:
        if text.startswith('"', position):
            closing = _CLOSING.match(text, position + 1)
            if closing is None:
                raise Unclosed
            fields.append(text[position + 1 : closing.end() - 1].replace('""', '"'))
            position = closing.end()
            if position == len(text):
                return fields
            if not text.startswith(separator, position):
                return None
            position += len(separator)
        else:
            end = text.find(separator, position)
            fields.append(text[position:] if end < 0 else text[position:end])
            if end < 0:
                return fields
            position = end + len(separator)
    return None


def _normal(block: bytes, encoding: str) -> bytes:
    """Whole lines as UTF-8 (invalid bytes kept), each ended by one line feed."""
    block = tables.as_utf8(block, encoding)
    if b"\r" in block:
        block = block.replace(b"\r\n", b"\n")
    return block if not block or block.endswith(b"\n") else block + b"\n"


def _parse(text: bytes, layout: _Layout, one_byte: bytes) -> Chunk:
    """The rows of whole lines without quotes."""
    plain = text if one_byte == layout.separator else text.replace(layout.separator, one_byte)
    is_valid = tables.is_utf8(text)
    frame = _fields(plain, layout, one_byte, is_valid=is_valid)
    suspects = ((frame["_last"] == "") | (frame["_beyond"] != "")).arg_true().to_numpy()
    if is_valid and _is_regular_block(plain, suspects, len(frame), layout, one_byte):
        return Chunk(frame.select(*layout.positions), np.zeros(len(frame), dtype=bool), _raw(text))
    lines = tables.Lines.of(text)
    assert len(frame) == len(lines)
    broken = _wrong_counts(plain, suspects, lines, layout, one_byte) | lines.undecodable()
    kept = np.flatnonzero(lines.ends > lines.starts)
    if len(kept) < len(lines):
        frame, broken = frame[kept], broken[kept]
    return Chunk(frame.select(*layout.positions), broken, lines.raw(kept, kept))


def _raw(text: bytes) -> Callable[[Rows], list[str]]:
    """Text of given lines of a block without blank lines; split lazily."""

    def raw(rows: Rows) -> list[str]:
        lines = tables.Lines.of(text if len(rows) else b"")
        indices = np.arange(len(lines))
        return lines.raw(indices, indices)(rows)

    return raw


def _needs_care(text: bytes, separator: bytes) -> bool:
    """Whether a field may be quoted, or holds a carriage return (which the fast parser would strip)."""
    return b"\r" in text or (
        b'"' in text and (separator + b'"' in text or b'\n"' in text or text.startswith(b'"'))
    )


def _unused(text: bytes) -> bytes | None:
    """A control character absent from the text, to replace a longer separator."""
    return next((byte for byte in _UNUSED if byte not in text), None)


def _fields(
    text: bytes, layout: _Layout, separator: bytes, *, is_valid: bool = True, quotes: bool = False
) -> pl.DataFrame:
    """Mapped fields of every line as text, the last one (`_last`) and the one beyond (`_beyond`); empty if absent."""
    names = [str(position).encode() for position in range(layout.num_fields + 1)]
    positions = layout.positions | {"_last": layout.num_fields - 1, "_beyond": layout.num_fields}
    return pl.read_csv(
        b"".join((separator.join(names), b"\n", text)),
        columns=sorted({str(position) for position in positions.values()}),
        separator=separator.decode(),
        quote_char='"' if quotes else None,
        encoding="utf8" if is_valid else "utf8-lossy",
        infer_schema=False,
        empty_string_is_null=False,
        truncate_ragged_lines=True,
    ).select(pl.col(str(position)).alias(ours) for ours, position in positions.items())


def _is_regular_block(
    text: bytes, suspects: NDArray[np.integer], num_lines: int, layout: _Layout, separator: bytes
) -> bool:
    """Whether every line, without quotes, has the right number of fields, as far as fast checks show; blank lines do not.

    suspects: lines without a last field, or with one beyond it. Without suspects no line is short, and none is long if the
    total is right. With many, every `num_fields`-th mark (separator or line feed) must be a line feed.
    """
    if 0 < len(suspects) <= _MAX_SUSPECTS:
        return False
    codes = np.frombuffer(text, np.uint8)
    is_separator = codes == separator[0]
    if np.count_nonzero(is_separator) != num_lines * (layout.num_fields - 1):
        return False
    if not len(suspects):
        return True
    is_end = codes == _LINE_FEED
    marks = np.flatnonzero(is_separator | is_end)
    return layout.num_fields > 1 and bool(is_end[marks[layout.num_fields - 1 :: layout.num_fields]].all())


def _wrong_counts(
    text: bytes, suspects: NDArray[np.integer], lines: tables.Lines, layout: _Layout, separator: bytes
) -> NDArray[np.bool_]:
    """[lines] whether a line without quotes has the wrong number of fields.

    A few suspects are counted alone; the other lines are right if the total is.
    """
    codes = np.frombuffer(text, np.uint8)
    is_wrong = np.zeros(len(lines), dtype=bool)
    if len(suspects) <= _MAX_SUSPECTS:
        counts = np.array([lines.line(line).count(layout.separator) for line in suspects], dtype=np.int64)
        others = (len(lines) - len(suspects)) * (layout.num_fields - 1)
        if np.count_nonzero(codes == separator[0]) == others + counts.sum():
            is_wrong[suspects] = counts != layout.num_fields - 1
            return is_wrong
    marks = np.flatnonzero((codes == separator[0]) | (codes == _LINE_FEED))
    ends_at = np.flatnonzero(codes[marks] == _LINE_FEED)
    is_wrong[:] = np.diff(ends_at, prepend=-1) != layout.num_fields
    return is_wrong


@dataclass(frozen=True)
class _Odd:
    """A row outside the fast parser: its first and last line, and its fields, None if it is broken."""

    first: int
    last: int
    fields: list[str] | None


def _split_quoted(
    lines: tables.Lines, layout: _Layout, one_byte: bytes | None, *, last: bool
) -> tuple[Chunk, int]:
    """The rows of text with quotes, and the bytes used: a row still open at the end waits for more text.

    Lines that are whole rows go to the fast parser, others one by one.
    """
    column = lines.texts()
    is_regular = _is_regular(column, layout, one_byte) & (lines.ends > lines.starts)
    if one_byte is not None and lines.is_valid and is_regular.all():
        text = lines.text.replace(layout.separator, one_byte)
        frame = _fields(text, layout, one_byte, quotes=True).select(*layout.positions)
        indices = np.arange(len(lines))
        return Chunk(frame, np.zeros(len(lines), dtype=bool), lines.raw(indices, indices)), len(lines.text)
    odd, used = _odd_rows(lines, is_regular, layout, last=last)
    for row in odd:
        is_regular[row.first : row.last + 1] = False
    regular = np.flatnonzero(is_regular[:used])
    first = np.concatenate((regular, np.array([row.first for row in odd], dtype=np.int64)))
    final = np.concatenate((regular, np.array([row.last for row in odd], dtype=np.int64)))
    order = np.argsort(first)
    frame = pl.concat([_regular_rows(column[regular], layout, one_byte), _odd_frame(odd, layout)])[order]
    broken = np.concatenate(
        (np.zeros(len(regular), dtype=bool), np.array([row.fields is None for row in odd], dtype=bool))
    )[order]
    first, final = first[order], final[order]
    num_bad_before = np.concatenate(([0], np.cumsum(lines.undecodable())))
    broken |= num_bad_before[final + 1] > num_bad_before[first]
    return Chunk(frame, broken, lines.raw(first, final)), int(lines.ends[used - 1]) + 1 if used else 0


def _is_regular(texts: pl.Series, layout: _Layout, one_byte: bytes | None) -> NDArray[np.bool_]:
    """[lines] whether the fast parser reads a line right: expected number of fields, quotes only around fields."""
    if one_byte is None:
        return np.zeros(len(texts), dtype=bool)
    if one_byte == layout.separator:
        separator = re.escape(one_byte.decode())
        field = f'(?:"(?:[^"\\r]|"")*"|[^"\\r\\n{separator}]*)'
        return texts.str.contains(f"^{field}(?:{separator}{field}){{{layout.num_fields - 1}}}\n$").to_numpy()
    count = texts.str.count_matches(layout.separator.decode(), literal=True)
    return ((count == layout.num_fields - 1) & ~texts.str.contains(r'["\r]')).to_numpy()


def _regular_rows(texts: pl.Series, layout: _Layout, one_byte: bytes | None) -> pl.DataFrame:
    if one_byte is None or not len(texts):
        return pl.DataFrame(schema=dict.fromkeys(layout.positions, pl.String))
    text = texts.str.join("").item().encode()
    return _fields(text.replace(layout.separator, one_byte), layout, one_byte, quotes=True).select(
        *layout.positions
    )


def _odd_frame(odd: Sequence[_Odd], layout: _Layout) -> pl.DataFrame:
    fields = [row.fields for row in odd]
    columns = {
        ours: [None if row is None else row[at] for row in fields] for ours, at in layout.positions.items()
    }
    return pl.DataFrame(columns, schema=dict.fromkeys(layout.positions, pl.String))


def _odd_rows(
    lines: tables.Lines, is_regular: NDArray[np.bool_], layout: _Layout, *, last: bool
) -> tuple[list[_Odd], int]:
    """The rows that begin with an irregular line, and the number of lines used."""
    separator = layout.separator.decode()
    rows: list[_Odd] = []
    for line in np.flatnonzero(~is_regular).tolist():
        if (rows and line <= rows[-1].last) or not lines.line(line):
            continue
        row = _odd_row(lines, line, separator, layout.num_fields)
        is_open = len(lines) - line < LINES_PER_ROW and _is_row_length(lines, line, len(lines) - 1)
        if row is None and not last and is_open:
            return rows, line
        rows.append(row or _Odd(line, line, None))
    return rows, len(lines)


def _is_row_length(lines: tables.Lines, first: int, last: int) -> bool:
    return bool(lines.ends[last] - lines.starts[first] <= tables.LONGEST_ROW_BYTES)


def _odd_row(lines: tables.Lines, line: int, separator: str, num_fields: int) -> _Odd | None:
    """The row that begins at a line, over as many lines as its quotes span; None if they never close."""
    for end in range(line, min(line + LINES_PER_ROW, len(lines))):
        if not _is_row_length(lines, line, end):
            break
        if end > line and b'"' not in lines.line(end):
            continue
        text = lines.text[lines.starts[line] : lines.ends[end]].decode(errors="replace")
        try:
            fields = split_row(text, separator)
        except Unclosed:
            continue
        if fields is not None and len(fields) == num_fields:
            return _Odd(line, end, fields)
        return _Odd(line, line, None)
    return None
