"""Format of source tables, and the chunks of rows in which they are read."""

import codecs
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO, Protocol

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from features.printable import LONGEST, printable
from features.schema import RANK
from features.settings import TableFormat, single

Rows = NDArray[np.int64]

BLOCK_BYTES = 12 << 20
"""Bytes read at a time; a chunk holds the whole rows in them."""
BLOCK_LINES = 250_000
"""Maximum lines of a block: a blank line of one byte costs as much memory as any other row."""
LONGEST_ROW_BYTES = 16 << 20
MAX_FIELDS = 100_000
"""Maximum fields of a row of delimited text."""
_PIECE_BYTES = 128 << 10
"""Bytes searched at a time: a comparison of them stays in the cache of a core."""


@dataclass(frozen=True)
class Chunk:
    """Consecutive rows of a table; blank lines are no rows."""

    frame: pl.DataFrame
    """The mapped columns under our names: String from text formats, else the source's type."""
    broken: NDArray[np.bool_]
    """[rows] whether a row violates the format; its fields are then meaningless."""
    raw: Callable[[Rows], list[str]]
    """Text of rows, by position within the chunk."""
    why: Callable[[str], str] = field(default=lambda _: "")
    """What is wrong with a broken row, in words, from its text; empty where nothing more is known."""
    texts: Callable[[Rows], pl.DataFrame] | None = None
    """Fields of rows as text, where some columns of `frame` were parsed while they were read; what is no number is null there."""

    def fields(self, rows: Rows) -> pl.DataFrame:
        """Fields of rows as the source has them, by position within the chunk."""
        return self.frame[rows] if self.texts is None else self.texts(rows)


Reading = Callable[[], Chunk]
"""A chunk that is parsed when called, by any thread."""


def given(chunk: Chunk) -> Chunk:
    """Return a chunk that is already parsed, as a `Reading` does."""
    return chunk


def has_places(form: TableFormat) -> bool:
    """Whether the place of an item in its list is its rank: of exposures without a column for it."""
    return form.section == "exposures" and RANK not in form.columns


def places(of_record: Rows) -> pl.Series:
    """[rows] Int32: the place of each row among those of its record, from 1. of_record: ascending numbers of records."""
    starts = np.flatnonzero(np.append(True, np.diff(of_record) != 0)) if len(of_record) else of_record
    lengths = np.diff(np.append(starts, len(of_record)))
    return pl.Series(RANK, np.arange(len(of_record)) - np.repeat(starts, lengths) + 1, dtype=pl.Int32)


MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
"""Byte order marks, the longer of two with the same beginning first, and what they say about the encoding."""


class TextStream(Protocol):
    """A text as UTF-8."""

    def read(self, size: int, /) -> bytes:
        """About `size` more bytes; none at the end."""


class Utf8Stream:
    """A text in any encoding, read as UTF-8; bytes that are no text in that encoding become bytes that are no UTF-8.

    A byte order mark is left out, and decides the encoding.
    """

    def __init__(self, stream: BinaryIO, encoding: str) -> None:
        self._stream = stream
        start = stream.read(4)
        for mark, marked in MARKS.items():
            if start.startswith(mark):
                start, encoding = start[len(mark) :], marked
                break
        self._start = start
        is_utf8 = codecs.lookup(encoding).name == "utf-8"
        self._decoder = None if is_utf8 else codecs.getincrementaldecoder(encoding)(_UNDECODABLE)

    def read(self, size: int) -> bytes:
        """About `size` more bytes; none at the end."""
        while True:
            read = self._stream.read(size)
            block, self._start = self._start + read, b""
            if self._decoder is None:
                return block
            try:
                text = self._decoder.decode(block, final=not read)
            except UnicodeError as error:
                raise ValueError(f"cannot be decoded: {error}") from None
            if text or not read:
                return text.encode(errors="surrogateescape")


def _undecodable(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return "\udcff", error.end


_UNDECODABLE = "lookback.undecodable"
codecs.register_error(_UNDECODABLE, _undecodable)


@dataclass(frozen=True)
class Lines:
    """Block of text split into lines, each ended by a line feed."""

    text: bytes
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    is_valid: bool
    """Whether all of it is UTF-8."""

    @classmethod
    def of(cls, text: bytes) -> "Lines":
        """Lines of a text; a line feed is added to the last one if missing."""
        if text and not text.endswith(b"\n"):
            text += b"\n"
        ends = places_of(text, b"\n")
        return cls(text, np.concatenate(([0], ends + 1))[:-1], ends, is_utf8(text))

    def __len__(self) -> int:
        return len(self.ends)

    def line(self, line: int) -> bytes:
        """Text of a line, without its line feed."""
        return self.text[self.starts[line] : self.ends[line]]

    def texts(self) -> pl.Series:
        """[lines] text with line feeds; undecodable bytes are replaced."""
        text = self.text if self.is_valid else self.text.decode(errors="replace").encode()
        lines = self if self.is_valid else Lines.of(text)
        offsets = np.append(lines.starts, len(text))
        array = pa.LargeStringArray.from_buffers(len(self), pa.py_buffer(offsets), pa.py_buffer(text))
        return pl.Series(pl.from_arrow(array))

    def undecodable(self) -> NDArray[np.bool_]:
        """[lines] whether a line is not UTF-8."""
        bad = np.zeros(len(self), dtype=bool)
        if self.is_valid:
            return bad
        view, line = memoryview(self.text), 0
        while line < len(self):
            try:
                codecs.utf_8_decode(view[self.starts[line] :], "strict", True)
            except UnicodeDecodeError as error:
                line = int(np.searchsorted(self.ends, self.starts[line] + error.start))
                bad[line] = True
                line += 1
            else:
                break
        return bad

    def raw(self, first: Rows, last: Rows) -> Callable[[Rows], list[str]]:
        """Text of rows by index; first, last: [rows] first and last line of each row."""
        return lambda rows: [
            as_text(self.text[self.starts[first[row]] : self.ends[last[row]]], "utf-8") for row in rows
        ]


def count(text: bytes, mark: bytes) -> int:
    """Number of bytes of a text that are `mark`, one byte (as `bytes.count`, twice as fast)."""
    return sum(int(np.count_nonzero(piece == mark[0])) for _, piece in _pieces(text))


def places_of(text: bytes, marks: bytes) -> Rows:
    """Ascending positions of the bytes of a text that are one of `marks`."""
    found = [np.zeros(0, dtype=np.int64)]
    for start, piece in _pieces(text):
        is_mark = piece == marks[0]
        for mark in marks[1:]:
            is_mark |= piece == mark
        found.append(np.flatnonzero(is_mark) + start)
    return np.concatenate(found)


def _pieces(text: bytes) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Positions and bytes of the pieces of a text."""
    codes = np.frombuffer(text, np.uint8)
    for start in range(0, len(codes), _PIECE_BYTES):
        yield start, codes[start : start + _PIECE_BYTES]


def is_utf8(text: bytes) -> bool:
    """Whether a text is valid UTF-8 (as Python decodes it, five times faster)."""
    if text.isascii():
        return True
    offsets = pa.py_buffer(np.array([0, len(text)]))
    try:
        pa.LargeStringArray.from_buffers(1, offsets, pa.py_buffer(text)).validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def whole_lines(stream: TextStream, first: bytes, where: str) -> Iterator[tuple[bytes, bool]]:
    """Blocks of whole lines, and whether a block is the last; `first`: bytes already read from the stream."""
    rest = first
    while more := stream.read(BLOCK_BYTES):
        cut = more.rfind(b"\n") + 1
        if cut:
            yield from _cut(b"".join((rest, memoryview(more)[:cut])), last=False)
            rest = more[cut:]
        else:
            rest += more
        check_row_length(len(rest), where)
    yield from _cut(rest, last=True)


def _cut(block: bytes, *, last: bool) -> Iterator[tuple[bytes, bool]]:
    """A block in pieces of about BLOCK_LINES lines; `last`: whether the last piece is the end of the text."""
    cuts = [0, len(block)]
    if count(block, b"\n") > BLOCK_LINES:
        cuts[1:1] = (places_of(block, b"\n")[BLOCK_LINES - 1 : -1 : BLOCK_LINES] + 1).tolist()
    for start, end in itertools.pairwise(cuts):
        yield block[start:end], last and end == len(block)


def check_row_length(num_bytes: int, where: str) -> None:
    """Raise ValueError for more bytes than the longest allowed row."""
    if num_bytes > LONGEST_ROW_BYTES:
        raise ValueError(
            f"{where}: a line is longer than {LONGEST_ROW_BYTES >> 20} MiB, expected text with a row per line"
        )


def too_many_fields(num_fields: int, form: TableFormat, where: str) -> ValueError:
    """Error for a row of more than MAX_FIELDS fields where the columns are found."""
    return ValueError(
        f"{where}: the first row has {num_fields:,} fields, expected at most {MAX_FIELDS:,}; check "
        f"{form.section}.separator, {form.separator!r}"
    )


def as_text(line: bytes, encoding: str) -> str:
    """A line as text; undecodable bytes as backslash escapes."""
    return line.rstrip(b"\r\n").decode(encoding, errors="backslashreplace")


class MissingColumn(ValueError):
    """A source has no column for a mapped one, `column`."""

    def __init__(self, column: str, message: str) -> None:
        super().__init__(message)
        self.column = column


def column_at(
    form: TableFormat, ours: str, names: Sequence[str], where: str, first_rows: Sequence[str] = ()
) -> str:
    """The source's name of a mapped column.

    Raises ValueError if no column, or more than one, has that name or position.
    """
    theirs = single(form.columns[ours])
    name = theirs if isinstance(theirs, str) else names[theirs - 1] if theirs <= len(names) else None
    if name is None or name not in names:
        raise missing_column(form, ours, names, where, first_rows)
    if name == theirs and names.count(name) > 1:
        raise ValueError(
            f"{form.section}.columns.{ours}: {where} has {names.count(name)} columns {name!r}; give its position"
        )
    return name


def missing_column(
    form: TableFormat, ours: str, names: Sequence[str], where: str, first_rows: Sequence[str] = ()
) -> MissingColumn:
    """Error for a missing mapped column, with the file's columns, first rows and settings."""
    rows = "".join(f"\n  {printable(row)}" for row in first_rows)
    return MissingColumn(
        ours,
        f"{form.section}.columns.{ours}: received {form.columns[ours]!r}, but {where} has {len(names)} column(s): "
        f"{', '.join(repr(name[:LONGEST]) for name in names[:50])}{'. The first rows:' if rows else '.'}{rows}\n"
        f"Settings in force: {form.describe()}",
    )
