"""Decoded size of Parquet row groups, from the headers of their pages before any value is decoded.

A page may decode to any multiple of its bytes: a dictionary's long value stands for every row, and with DELTA_BYTE_ARRAY each
value repeats the one before. The footer tells neither, and its sizes are only claims; the headers are what the decoder obeys.
Source: the Parquet format, `parquet.thrift` (PageHeader), in Thrift's compact protocol.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

LARGEST_PAGES_BYTES = 512 << 20
"""Maximum size of the largest pages of the columns of a row group, together: each is decompressed as a whole."""
_LARGEST_HEADER = 16 << 20
_DICTIONARY_PAGE = 2
_DICTIONARY_ENCODINGS = (2, 8)
_DELTA_BYTE_ARRAY = 7
_FIXED_BYTES = 8
_DATA_HEADERS = {0: (5, 2), 3: (8, 4)}
"""Type of a data page to the fields of its own header and, within, of its encoding."""


@dataclass(frozen=True)
class _Page:
    is_dictionary: bool
    num_values: int
    encoding: int
    num_bytes: int
    """Size once decompressed."""
    start: int
    """Position in the file of its content."""
    stored_bytes: int


def rows_at_a_time(file: pq.ParquetFile, stream: BinaryIO, group: int, columns: list[str], most: int) -> int:
    """Number of rows of a row group that decode to about `most` bytes; at least 1.

    columns: names of columns at the top level. Raises ArrowInvalid for damaged page headers and pages too large to decompress.
    """
    metadata = file.metadata.row_group(group)
    row_bytes, page_bytes = 0.0, 0
    for at in range(metadata.num_columns):
        chunk = metadata.column(at)
        if not any(
            chunk.path_in_schema == name or chunk.path_in_schema.startswith(f"{name}.") for name in columns
        ):
            continue
        pages = list(_pages(stream, chunk))
        page_bytes += sum(
            max((page.num_bytes for page in pages if page.is_dictionary == kind), default=0)
            for kind in (False, True)
        )
        values_per_row = max(chunk.num_values / max(metadata.num_rows, 1), 1)
        fixed = {"FIXED_LEN_BYTE_ARRAY": file.schema.column(at).length}.get(chunk.physical_type, _FIXED_BYTES)
        if chunk.physical_type == "BYTE_ARRAY":
            fixed += _value_bytes(stream, chunk.compression, pages, most / max(chunk.num_values, 1))
        row_bytes += values_per_row * fixed
    if page_bytes > LARGEST_PAGES_BYTES:
        raise pa.ArrowInvalid(
            f"row group {group + 1} needs {page_bytes >> 20:,} MiB for its largest pages, expected at most "
            f"{LARGEST_PAGES_BYTES >> 20} MiB; write it with smaller pages"
        )
    return max(int(most / max(row_bytes, 1)), 1)


def _value_bytes(stream: BinaryIO, compression: str, pages: list[_Page], harmless: float) -> float:
    """Bound on the bytes of a value: exact for dictionaries whose size is not `harmless`, else an average or the page's size."""
    bounds = [0.0]
    for page in pages:
        if page.is_dictionary:
            is_small = page.num_bytes <= harmless
            bounds.append(page.num_bytes if is_small else _longest_value(stream, compression, page))
        elif page.encoding == _DELTA_BYTE_ARRAY:
            bounds.append(page.num_bytes)
        elif page.encoding not in _DICTIONARY_ENCODINGS:
            bounds.append(page.num_bytes / max(page.num_values, 1))
    return max(bounds)


def _longest_value(stream: BinaryIO, compression: str, page: _Page) -> int:
    """Bytes of the longest value of a dictionary; the page's size where it cannot be decompressed here."""
    stream.seek(page.start)
    content: Any = stream.read(page.stored_bytes)
    if page.num_bytes > LARGEST_PAGES_BYTES:
        return page.num_bytes
    try:
        if compression != "UNCOMPRESSED":
            codec = pa.Codec("lz4_raw" if compression == "LZ4" else compression.lower())
            content = codec.decompress(content, page.num_bytes, asbytes=True)
    except (pa.ArrowException, OSError, ValueError):
        return page.num_bytes
    longest = at = 0
    while at + 4 <= len(content):
        num_bytes = int.from_bytes(content[at : at + 4], "little")
        longest = max(longest, num_bytes)
        at += 4 + num_bytes
    return min(longest, page.num_bytes)


def _pages(stream: BinaryIO, chunk: pq.ColumnChunkMetaData) -> Iterator[_Page]:
    """The pages of a column chunk that its decoder reads."""
    at = chunk.data_page_offset
    if chunk.has_dictionary_page and 0 < (chunk.dictionary_page_offset or 0) < at:
        at = chunk.dictionary_page_offset
    end = at + chunk.total_compressed_size
    num_values = 0
    while num_values < chunk.num_values and at < end:
        header, at = _header(stream, at)
        kind, num_bytes, stored_bytes = (_integer(header, field) for field in (1, 2, 3))
        of_kind, encoding = _DATA_HEADERS.get(kind, (7, 2))
        own = header.get(of_kind)
        if own is not None or kind in _DATA_HEADERS:
            if not isinstance(own, dict):
                raise pa.ArrowInvalid("a page header is damaged")
            num_here, code = _integer(own, 1), _integer(own, encoding)
            page = _Page(kind == _DICTIONARY_PAGE, num_here, code, num_bytes, at, stored_bytes)
            num_values += 0 if page.is_dictionary else page.num_values
            yield page
        at += stored_bytes


def _integer(fields: dict[int, Any], number: int) -> int:
    value = fields.get(number)
    if not isinstance(value, int) or value < 0:
        raise pa.ArrowInvalid("a page header is damaged")
    return value


def _header(stream: BinaryIO, start: int) -> tuple[dict[int, Any], int]:
    """Fields of the page header at a position of the file, by number, and the position after it."""
    if start < 0:
        raise pa.ArrowInvalid("the place of a page is damaged")
    num_bytes = 256
    while num_bytes <= _LARGEST_HEADER:
        stream.seek(start)
        reader = _Compact(stream.read(num_bytes))
        try:
            return reader.struct(), start + reader.at
        except IndexError:
            num_bytes *= 16
        except RecursionError:
            break
    raise pa.ArrowInvalid("a page header is damaged")


class _Compact:
    """Reader of Thrift's compact protocol: numbers and structs; text is skipped. IndexError beyond the end."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self.at = 0

    def struct(self) -> dict[int, Any]:
        """Field number to value."""
        fields: dict[int, Any] = {}
        number = 0
        while head := self._byte():
            number = number + (head >> 4) if head >> 4 else self._number()
            fields[number] = self._value(head & 15)
        return fields

    def _value(self, kind: int) -> Any:
        if kind in (1, 2):  # a boolean is its type
            return kind == 1
        if kind in (4, 5, 6):
            return self._number()
        if kind == 12:
            return self.struct()
        if kind in (3, 7):
            self._skip(1 if kind == 3 else 8)
        elif kind == 8:
            self._skip(self._unsigned())
        elif kind in (9, 10):
            head = self._byte()
            for _ in range(self._unsigned() if head >> 4 == 15 else head >> 4):
                self._skip(1) if head & 15 in (1, 2) else self._value(head & 15)
        else:
            raise pa.ArrowInvalid("a page header is damaged")
        return None

    def _byte(self) -> int:
        self.at += 1
        return self._content[self.at - 1]

    def _skip(self, num_bytes: int) -> None:
        self.at += num_bytes
        if self.at > len(self._content):
            raise IndexError

    def _unsigned(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value
            if shift > 70:
                raise pa.ArrowInvalid("a page header is damaged")

    def _number(self) -> int:
        value = self._unsigned()
        return value >> 1 ^ -(value & 1)
