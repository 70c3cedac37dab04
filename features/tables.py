"""What form a table from outside has, and the chunks of rows in which it is read."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

FileFormat = Literal["csv", "jsonl", "parquet", "json"]
Rows = NDArray[np.int64]

BLOCK_BYTES = 16 << 20
"""How much is read at a time; a chunk holds the whole rows in it."""
LONGEST_ROW_BYTES = 64 << 20


@dataclass(frozen=True)
class TableFormat:
    """What form a table has: the keys of a configuration's `[events]`, `[items]` or `[users]`, named `section` in messages."""

    section: str
    columns: Mapping[str, str | int]
    """Our name for a column to the source's name, or to its position from 1."""
    format: FileFormat | None = None
    """None: by the extension."""
    separator: str = ","
    """csv, any number of characters."""
    header: bool = True
    """csv: whether the first row names the columns."""
    encoding: Literal["utf-8", "latin-1"] = "utf-8"
    """csv, jsonl."""

    def __post_init__(self) -> None:
        if not self.separator or set(self.separator) & set('"\r\n'):
            raise ValueError(
                f"{self.section}.separator: received {self.separator!r}, expected text without quotes or line ends"
            )
        if not self.columns and self.section == "events":
            raise ValueError(
                "events.columns: received none, expected at least user_id, item_id and timestamp"
            )
        for ours, theirs in self.columns.items():
            if isinstance(theirs, int) and theirs < 1:
                raise ValueError(
                    f"{self.section}.columns.{ours}: received position {theirs}, expected one from 1"
                )

    def describe(self) -> str:
        """The settings in force, for a message."""
        columns = ", ".join(f"{ours} = {theirs!r}" for ours, theirs in self.columns.items())
        form = "" if self.format is None else f"format {self.format}, "
        header = f"header {str(self.header).lower()}"
        return (
            f"{form}separator {self.separator!r}, {header}, encoding {self.encoding}, columns {{ {columns} }}"
        )


@dataclass(frozen=True)
class Chunk:
    """Some rows of a table, in the order of the source; blank lines are no rows."""

    frame: pl.DataFrame
    """The mapped columns under our names: String from text, else the type that the source has."""
    broken: NDArray[np.bool_]
    """[rows] whether the row is not what the format says: then its fields mean nothing."""
    raw: Callable[[Rows], list[str]]
    """The text of rows, by position within the chunk."""


def whole_lines(stream: BinaryIO, first: bytes, where: str) -> Iterator[tuple[bytes, bool]]:
    """Blocks that end at the end of a line, and whether it is the last one; `first` stands before what the stream holds."""
    rest = first
    while True:
        more = stream.read(BLOCK_BYTES)
        block = rest + more
        cut = block.rfind(b"\n") + 1 if more else len(block)
        if cut or not more:
            yield block[:cut], not more
        if not more:
            return
        rest = block[cut:]
        if len(rest) > LONGEST_ROW_BYTES:
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
    rows = "".join(f"\n  {row}" for row in first_rows)
    return ValueError(
        f"{form.section}.columns.{ours}: received {form.columns[ours]!r}, but {where} has {len(found)} column(s): "
        f"{', '.join(map(repr, found[:50]))}{'. The first rows:' if rows else '.'}{rows}\n"
        f"Settings in force: {form.describe()}"
    )
