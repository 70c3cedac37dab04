"""What form a table from outside has, and the chunks of rows in which it is read."""

import codecs
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from features.settings import TableFormat

Rows = NDArray[np.int64]

BLOCK_BYTES = 16 << 20
"""How much is read at a time; a chunk holds the whole rows in it."""
LONGEST_ROW_BYTES = 64 << 20
_LINE_FEED = 10


@dataclass(frozen=True)
class Chunk:
    """Some rows of a table, in the order of the source; blank lines are no rows."""

    frame: pl.DataFrame
    """The mapped columns under our names: String from text, else the type that the source has."""
    broken: NDArray[np.bool_]
    """[rows] whether the row is not what the format says: then its fields mean nothing."""
    raw: Callable[[Rows], list[str]]
    """The text of rows, by position within the chunk."""


Reading = Callable[[], Chunk]
"""A chunk that is parsed when it is called for, by whichever thread."""


def given(chunk: Chunk) -> Chunk:
    """A chunk that is parsed already."""
    return chunk


@dataclass(frozen=True)
class Lines:
    """A block of text cut into lines, each ended by a line feed."""

    text: bytes
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    is_valid: bool
    """Whether all of it is UTF-8."""

    @classmethod
    def of(cls, text: bytes) -> "Lines":
        """The lines of a text; the last one gets a line feed where it has none."""
        if text and not text.endswith(b"\n"):
            text += b"\n"
        ends = np.flatnonzero(np.frombuffer(text, np.uint8) == _LINE_FEED)
        return cls(text, np.concatenate(([0], ends + 1))[:-1], ends, is_utf8(text))

    def __len__(self) -> int:
        return len(self.ends)

    def line(self, line: int) -> bytes:
        """One of them."""
        return self.text[self.starts[line] : self.ends[line]]

    def texts(self) -> pl.Series:
        """[lines] text, with the line feeds; bytes that are none are replaced."""
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
        """The text of rows that go from one line to another."""
        return lambda rows: [
            as_text(self.text[self.starts[first[row]] : self.ends[last[row]]], "utf-8") for row in rows
        ]


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


def as_utf8(block: bytes, encoding: str) -> bytes:
    """A block of text as UTF-8, as far as it is valid."""
    return block if encoding == "utf-8" or block.isascii() else block.decode(encoding).encode()


def whole_lines(stream: BinaryIO, first: bytes, where: str) -> Iterator[tuple[bytes, bool]]:
    """Blocks that end at the end of a line, and whether it is the last one; `first` stands before what the stream holds."""
    rest = first
    while more := stream.read(BLOCK_BYTES):
        cut = more.rfind(b"\n") + 1
        if cut:
            yield b"".join((rest, memoryview(more)[:cut])), False
            rest = more[cut:]
        else:
            rest += more
        check_row_length(len(rest), where)
    yield rest, True


def check_row_length(num_bytes: int, where: str) -> None:
    """Raise ValueError for a row that is longer than any row is."""
    if num_bytes > LONGEST_ROW_BYTES:
        raise ValueError(
            f"{where}: a line is longer than {LONGEST_ROW_BYTES >> 20} MiB, expected text with a row per line"
        )


def without_mark(start: bytes, where: str, section: str) -> bytes:
    """The first bytes of a text file without a byte order mark of UTF-8; one of UTF-16 is refused."""
    if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise ValueError(
            f"{where}: is UTF-16, expected utf-8 or latin-1 ({section}.encoding); convert it first"
        )
    return start.removeprefix(b"\xef\xbb\xbf")


def as_text(line: bytes, encoding: str) -> str:
    """A line as text, whatever bytes it holds."""
    return line.rstrip(b"\r\n").decode(encoding, errors="backslashreplace")


def printable(text: str) -> str:
    """A text for a message: on one line, nothing in it but what can be seen."""
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)


def column_at(
    form: TableFormat, ours: str, found: Sequence[str], where: str, first_rows: Sequence[str] = ()
) -> str:
    """The source's name of a mapped column.

    Raises ValueError where no column, or more than one, answers to the mapping.
    """
    theirs = form.columns[ours]
    name = theirs if isinstance(theirs, str) else found[theirs - 1] if theirs <= len(found) else None
    if name is None or name not in found:
        raise missing_column(form, ours, found, where, first_rows)
    if name == theirs and found.count(name) > 1:
        raise ValueError(
            f"{form.section}.columns.{ours}: {where} has {found.count(name)} columns {name!r}; give its position"
        )
    return name


def missing_column(
    form: TableFormat, ours: str, found: Sequence[str], where: str, first_rows: Sequence[str] = ()
) -> ValueError:
    """What to raise where a mapped column is not there."""
    rows = "".join(f"\n  {printable(row)}" for row in first_rows)
    return ValueError(
        f"{form.section}.columns.{ours}: received {form.columns[ours]!r}, but {where} has {len(found)} column(s): "
        f"{', '.join(map(repr, found[:50]))}{'. The first rows:' if rows else '.'}{rows}\n"
        f"Settings in force: {form.describe()}"
    )
