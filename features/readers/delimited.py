"""Delimited text (csv): separators of any length, quotes, embedded line ends, undecodable bytes.

Every line that has another number of fields than the header (without one: than most of the first lines) is broken, unless
`ragged` is fill. Blank lines, comments and a header that comes again are no rows. A quote that would make one row of lines that
are whole rows themselves is a stray one: its line is broken, and the others are rows.

pyarrow.csv takes 0.7 times the CPU, but keeps no raw text of rows refused later, lets an open quote swallow the rest of the file
and fails a column for one undecodable byte (tests/benchmarks/results/2026-11-29-readers.md).
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from features import tables
from features.readers import dialect as dialects
from features.readers.dialect import LINES_PER_ROW, Dialect, Unclosed
from features.settings import TableFormat
from features.tables import Chunk, Reading, Rows, TextStream

_LINE_FEED = 10
_MAX_SUSPECTS = 1000
"""Maximum lines of a chunk whose fields are counted one by one."""
_UNUSED = [bytes([code]) for code in (*range(0x1F, 0x1B, -1), *range(1, 9))]


def read(
    stream: TextStream, form: TableFormat, where: str, types: Mapping[str, pl.DataType] | None = None
) -> Iterator[Reading]:
    """Chunks of rows of a delimited text; those without quotes are parsed when called, by the caller's threads.

    types: mapped columns to parse where no quotes are, all of them or, where the first rows have other fields for numbers, none.

    Raises ValueError for a missing mapped column, naming the columns of the file.
    """
    dialect, start = dialects.find(stream, form, where)
    if dialect is None:
        return
    types = types or {}
    numbers = [dialect.positions[ours] for ours, kind in types.items() if kind.is_numeric()]
    if not set(numbers) <= set(dialect.numbers):
        types = {}
    rest = b""
    last_given: dict[str, pl.Series] = {}
    for block, last in tables.whole_lines(stream, start, where):
        text = rest + dialects.normal(block)
        if dialect.has_rest or dialect.given:
            yield functools.partial(tables.given, _by_line(tables.Lines.of(text), dialect, last_given))
            continue
        one_byte = dialect.separator if len(dialect.separator) == 1 else _unused(text)
        if one_byte is not None and not _needs_care(text, dialect):
            rest = b""
            yield functools.partial(_parse, text, dialect, one_byte, types)
        else:
            chunk, used = _split_quoted(tables.Lines.of(text), dialect, one_byte, last=last)
            rest = text[used:]
            yield functools.partial(tables.given, chunk)


def _parse(text: bytes, dialect: Dialect, one_byte: bytes, types: Mapping[str, pl.DataType]) -> Chunk:
    """The rows of whole lines without quotes."""
    plain = text if one_byte == dialect.separator else text.replace(dialect.separator, one_byte)
    is_valid = tables.is_utf8(text)
    frame = _fields(plain, dialect, one_byte, is_valid=is_valid, types=types)
    suspects = (_is_empty(frame["_last"]) | (frame["_beyond"] != "")).arg_true().to_numpy()
    may_hold_others = _may_hold_others(text, dialect)
    if is_valid and not may_hold_others and _is_regular_block(plain, suspects, len(frame), dialect, one_byte):
        return Chunk(
            frame.select(*dialect.positions),
            np.zeros(len(frame), dtype=bool),
            _raw(text),
            dialect.why,
            (lambda rows: _texts(tables.Lines.of(text), rows, dialect)) if types else None,
        )
    lines = tables.Lines.of(text)
    assert len(frame) == len(lines)
    broken = lines.undecodable()
    if not dialect.is_filled:
        broken |= _wrong_counts(plain, suspects, lines, dialect, one_byte)
    kept = np.flatnonzero(_are_rows(lines, dialect, may_hold_others))
    if len(kept) < len(lines):
        frame, broken = frame[kept], broken[kept]
    return Chunk(
        frame.select(*dialect.positions),
        broken,
        lines.raw(kept, kept),
        dialect.why,
        (lambda rows: _texts(lines, kept[rows], dialect)) if types else None,
    )


def _is_empty(fields: pl.Series) -> pl.Series:
    return fields == "" if fields.dtype == pl.String else fields.is_null()


def _texts(lines: tables.Lines, rows: Rows, dialect: Dialect) -> pl.DataFrame:
    """The mapped fields of some lines without quotes, as text; empty if absent."""
    texts = pl.Series("line", [lines.line(row).decode(errors="replace") for row in rows], dtype=pl.String)
    fields = texts.str.split(dialect.quoting.separator).to_frame()
    return fields.select(
        pl.col("line").list.get(at, null_on_oob=True).fill_null("").alias(ours)
        for ours, at in dialect.positions.items()
    )


def _by_line(lines: tables.Lines, dialect: Dialect, last_given: dict[str, pl.Series]) -> Chunk:
    """The rows of lines without quotes: the last field may be the rest of a line, and lines between the rows give values.

    last_given: our name to the last value of the text before, which holds on.
    """
    texts = lines.texts().str.strip_chars_end("\r\n")
    is_row = pl.Series(_are_rows(lines, dialect))
    columns = {}
    for ours, pattern in dialect.given:
        value = texts.str.extract(pattern, 1)
        is_row &= value.is_null()
        before = last_given.get(ours, value.clear().extend_constant(None, 1))
        columns[ours] = pl.concat([before, value]).fill_null(strategy="forward")[1:]
        last_given[ours] = pl.concat([before, columns[ours]])[-1:]
    num_fields = dialect.num_fields
    fields = texts.str.splitn(dialect.quoting.separator, num_fields).struct.unnest()
    columns |= {ours: fields.to_series(position) for ours, position in dialect.positions.items()}
    broken = lines.undecodable()
    if not dialect.is_filled and not dialect.has_rest:
        count = texts.str.count_matches(dialect.quoting.separator, literal=True)
        broken |= (count != num_fields - 1).to_numpy()
    kept = np.flatnonzero(is_row.to_numpy())
    return Chunk(pl.DataFrame(columns)[kept], broken[kept], lines.raw(kept, kept), dialect.why)


def _may_hold_others(text: bytes, dialect: Dialect) -> bool:
    """Whether comments, or the header again, may be among the lines."""
    marks = [mark for mark in (dialect.comment, dialect.header) if mark]
    return any(text.startswith(mark) or b"\n" + mark in text for mark in marks)


def _are_rows(
    lines: tables.Lines, dialect: Dialect, may_hold_others: bool | None = None
) -> NDArray[np.bool_]:
    """[lines] whether a line is neither blank nor a comment nor the header again; may_hold_others: see there, if it is known."""
    flags = lines.ends > lines.starts
    if _may_hold_others(lines.text, dialect) if may_hold_others is None else may_hold_others:
        comment, header = dialect.comment, dialect.header
        for line in np.flatnonzero(flags).tolist():
            text = lines.line(line)
            flags[line] = not ((comment and text.startswith(comment)) or (header and text == header))
    return flags


def _raw(text: bytes) -> Callable[[Rows], list[str]]:
    """Text of given lines of a block without blank lines; split lazily."""

    def raw(rows: Rows) -> list[str]:
        lines = tables.Lines.of(text if len(rows) else b"")
        indices = np.arange(len(lines))
        return lines.raw(indices, indices)(rows)

    return raw


def _needs_care(text: bytes, dialect: Dialect) -> bool:
    """Whether a field may be quoted, or holds a carriage return (which the fast parser would strip)."""
    quote = dialect.quoting.quote.encode()
    return b"\r" in text or (
        bool(quote)
        and quote in text
        and (dialect.separator + quote in text or b"\n" + quote in text or text.startswith(quote))
    )


def _unused(text: bytes) -> bytes | None:
    """A control character absent from the text, to replace a longer separator."""
    return next((byte for byte in _UNUSED if byte not in text), None)


def _fields(
    text: bytes,
    dialect: Dialect,
    separator: bytes,
    *,
    is_valid: bool = True,
    quote: str = "",
    types: Mapping[str, pl.DataType] | None = None,
) -> pl.DataFrame:
    """Mapped fields of every line, the last one (`_last`) and the one beyond (`_beyond`), as text; empty if absent.

    types: columns to parse; null where absent, empty or not of that type.
    """
    names = [str(position).encode() for position in range(dialect.num_fields + 1)]
    positions = dialect.positions | {"_last": dialect.num_fields - 1, "_beyond": dialect.num_fields}
    return pl.read_csv(
        b"".join((separator.join(names), b"\n", text)),
        columns=sorted({str(position) for position in positions.values()}),
        separator=separator.decode(),
        quote_char=quote or None,
        encoding="utf8" if is_valid else "utf8-lossy",
        infer_schema=False,
        schema_overrides={str(dialect.positions[ours]): kind for ours, kind in (types or {}).items()},
        ignore_errors=bool(types),
        empty_string_is_null=False,
        truncate_ragged_lines=True,
    ).select(pl.col(str(position)).alias(ours) for ours, position in positions.items())


def _is_regular_block(
    text: bytes, suspects: NDArray[np.integer], num_lines: int, dialect: Dialect, separator: bytes
) -> bool:
    """Whether every line, without quotes, has the right number of fields, as far as fast checks show; blank lines do not.

    suspects: lines without a last field, or with one beyond it. Without suspects no line is short, and none is long if the
    total is right. With many, every `num_fields`-th mark (separator or line feed) must be a line feed.
    """
    if 0 < len(suspects) <= _MAX_SUSPECTS:
        return False
    if tables.count(text, separator) != num_lines * (dialect.num_fields - 1):
        return False
    if not len(suspects):
        return True
    if dialect.num_fields == 1:
        return False
    ends = tables.places_of(text, separator + b"\n")[dialect.num_fields - 1 :: dialect.num_fields]
    return bool((np.frombuffer(text, np.uint8)[ends] == _LINE_FEED).all())


def _wrong_counts(
    text: bytes, suspects: NDArray[np.integer], lines: tables.Lines, dialect: Dialect, separator: bytes
) -> NDArray[np.bool_]:
    """[lines] whether a line without quotes has the wrong number of fields.

    A few suspects are counted alone; the other lines are right if the total is.
    """
    is_wrong = np.zeros(len(lines), dtype=bool)
    if len(suspects) <= _MAX_SUSPECTS:
        counts = np.array([lines.line(line).count(dialect.separator) for line in suspects], dtype=np.int64)
        others = (len(lines) - len(suspects)) * (dialect.num_fields - 1)
        if tables.count(text, separator) == others + counts.sum():
            is_wrong[suspects] = counts != dialect.num_fields - 1
            return is_wrong
    marks = tables.places_of(text, separator + b"\n")
    ends_at = np.flatnonzero(np.frombuffer(text, np.uint8)[marks] == _LINE_FEED)
    is_wrong[:] = np.diff(ends_at, prepend=-1) != dialect.num_fields
    return is_wrong


@dataclass(frozen=True)
class _Odd:
    """A row outside the fast parser: its first and last line, and its fields, None if it is broken."""

    first: int
    last: int
    fields: list[str] | None


def _split_quoted(
    lines: tables.Lines, dialect: Dialect, one_byte: bytes | None, *, last: bool
) -> tuple[Chunk, int]:
    """The rows of text with quotes, and the bytes used: a row still open at the end waits for more text.

    Lines that are whole rows go to the fast parser, others one by one.
    """
    column = lines.texts()
    is_row = _are_rows(lines, dialect)
    is_regular = _is_regular(column, dialect, one_byte) & is_row
    if one_byte is not None and lines.is_valid and is_regular.all():
        text = lines.text.replace(dialect.separator, one_byte)
        frame = _fields(text, dialect, one_byte, quote=dialect.quoting.quote).select(*dialect.positions)
        indices = np.arange(len(lines))
        chunk = Chunk(frame, np.zeros(len(lines), dtype=bool), lines.raw(indices, indices), dialect.why)
        return chunk, len(lines.text)
    odd, used = _odd_rows(lines, is_regular, is_row, dialect, last=last)
    for row in odd:
        is_regular[row.first : row.last + 1] = False
    regular = np.flatnonzero(is_regular[:used])
    first = np.concatenate((regular, np.array([row.first for row in odd], dtype=np.int64)))
    final = np.concatenate((regular, np.array([row.last for row in odd], dtype=np.int64)))
    order = np.argsort(first)
    frame = pl.concat([_regular_rows(column[regular], dialect, one_byte), _odd_frame(odd, dialect)])[order]
    broken = np.concatenate(
        (np.zeros(len(regular), dtype=bool), np.array([row.fields is None for row in odd], dtype=bool))
    )[order]
    first, final = first[order], final[order]
    num_bad_before = np.concatenate(([0], np.cumsum(lines.undecodable())))
    broken |= num_bad_before[final + 1] > num_bad_before[first]
    used_bytes = int(lines.ends[used - 1]) + 1 if used else 0
    return Chunk(frame, broken, lines.raw(first, final), dialect.why), used_bytes


def _is_regular(texts: pl.Series, dialect: Dialect, one_byte: bytes | None) -> NDArray[np.bool_]:
    """[lines] whether the fast parser reads a line right: expected number of fields, quotes only around fields."""
    quoting = dialect.quoting
    if one_byte is None or len(quoting.quote.encode()) > 1:
        return np.zeros(len(texts), dtype=bool)
    special = "".join(pl.escape_regex(mark) for mark in (quoting.quote, quoting.escape)) + r"\r"
    if one_byte == dialect.separator:
        separator = pl.escape_regex(quoting.separator)
        field = f"[^{special}\\n{separator}]*"
        if quoting.quote:
            quote = pl.escape_regex(quoting.quote)
            field = f"(?:{quote}(?:[^{special}]|{quote}{quote})*{quote}|{field})"
        return texts.str.contains(f"^{field}(?:{separator}{field}){{{dialect.num_fields - 1}}}\n$").to_numpy()
    count = texts.str.count_matches(quoting.separator, literal=True)
    return ((count == dialect.num_fields - 1) & ~texts.str.contains(f"[{special}]")).to_numpy()


def _regular_rows(texts: pl.Series, dialect: Dialect, one_byte: bytes | None) -> pl.DataFrame:
    if one_byte is None or not len(texts):
        return pl.DataFrame(schema=dict.fromkeys(dialect.positions, pl.String))
    text = texts.str.join("").item().encode()
    return _fields(
        text.replace(dialect.separator, one_byte), dialect, one_byte, quote=dialect.quoting.quote
    ).select(*dialect.positions)


def _odd_frame(odd: Sequence[_Odd], dialect: Dialect) -> pl.DataFrame:
    fields = [row.fields for row in odd]
    columns = {
        ours: [None if row is None else row[at] for row in fields] for ours, at in dialect.positions.items()
    }
    return pl.DataFrame(columns, schema=dict.fromkeys(dialect.positions, pl.String))


def _odd_rows(
    lines: tables.Lines,
    is_regular: NDArray[np.bool_],
    is_row: NDArray[np.bool_],
    dialect: Dialect,
    *,
    last: bool,
) -> tuple[list[_Odd], int]:
    """The rows that begin with an irregular line, and the number of lines used."""
    rows: list[_Odd] = []
    for line in np.flatnonzero(~is_regular & is_row).tolist():
        if rows and line <= rows[-1].last:
            continue
        row = _odd_row(lines, line, dialect)
        is_open = len(lines) - line < LINES_PER_ROW and _is_row_length(lines, line, len(lines) - 1)
        if row is None and not last and is_open:
            return rows, line
        rows.append(row or _Odd(line, line, None))
    return rows, len(lines)


def _is_row_length(lines: tables.Lines, first: int, last: int) -> bool:
    return bool(lines.ends[last] - lines.starts[first] <= tables.LONGEST_ROW_BYTES)


def _odd_row(lines: tables.Lines, line: int, dialect: Dialect) -> _Odd | None:
    """The row that begins at a line, over as many lines as its quotes span; None if they never close."""
    quote = dialect.quoting.quote.encode()
    for end in range(line, min(line + LINES_PER_ROW, len(lines))):
        if not _is_row_length(lines, line, end):
            break
        if end > line and quote not in lines.line(end):
            continue
        text = lines.text[lines.starts[line] : lines.ends[end]].decode(errors="replace")
        try:
            fields = dialect.quoting.split(text)
        except Unclosed:
            continue
        if fields is not None and dialect.is_filled:
            fields = (fields + [""] * dialect.num_fields)[: dialect.num_fields]
        if fields is None or len(fields) != dialect.num_fields or _is_stray(lines, line, end, dialect):
            return _Odd(line, line, None)
        return _Odd(line, end, fields)
    return None


def _is_stray(lines: tables.Lines, first: int, last: int, dialect: Dialect) -> bool:
    """Whether the lines after the first of a row are whole rows themselves."""
    return last > first and all(
        dialect.is_whole_row(lines.line(line).decode(errors="replace")) for line in range(first + 1, last + 1)
    )
