"""Source files as streams of chunks: csv, jsonl and parquet by extension, also .gz, .zst and .bz2."""

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

from features import tables
from features.readers import delimited, dialect, json_lines, parquet, records
from features.settings import FileFormat, TableFormat
from features.tables import Chunk, Reading, Utf8Stream

_COMPRESSED = (".gz", ".zst", ".bz2")
_SIDE_TABLES = ("items", "users")
"""Tables whose lists are values, and not rows."""
_EXTENSIONS: dict[str, FileFormat] = {
    **dict.fromkeys((".csv", ".tsv", ".dat", ".data", ".txt"), "csv"),
    **dict.fromkeys((".jsonl", ".ndjson"), "jsonl"),
    **dict.fromkeys((".parquet", ".pq"), "parquet"),
    ".json": "json",
}


def format_of(path: Path, form: TableFormat) -> FileFormat:
    """The configured format, else that of the extension. Raises ValueError for an unknown extension."""
    if form.format is not None:
        return form.format
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in _COMPRESSED]
    by_extension = _EXTENSIONS.get(suffixes[-1]) if suffixes else None
    if by_extension is None:
        raise ValueError(
            f"{form.section}.path: {path}: received a file of unknown extension (expected {' '.join(_EXTENSIONS)}, and "
            f"{' '.join(_COMPRESSED)} after them); set {form.section}.format to csv, jsonl or parquet"
        )
    return by_extension


def form_for(path: Path, form: TableFormat) -> TableFormat:
    """The form for a file: `.tsv` is separated by tabs where no separator is configured."""
    is_tsv = ".tsv" in (suffix.lower() for suffix in path.suffixes)
    return replace(form, separator="\t") if is_tsv and form.separator == "," else form


def form_of(path: Path, form: TableFormat) -> list[str]:
    """Format and compression of a file."""
    suffix = path.suffix.lower()
    return [format_of(path, form), suffix if suffix in _COMPRESSED else ""]


def read(path: Path, form: TableFormat) -> Iterator[Chunk]:
    """Chunks of rows of one file, in bounded memory.

    Raises ValueError for a damaged file, one of another format, and a missing mapped column.
    """
    chunks = (reading() for reading in readings(path, form))
    return (chunk for chunk in chunks if len(chunk.frame))


def readings(path: Path, form: TableFormat) -> Iterator[Reading]:
    """As `read`, but parsed when called where a chunk does not depend on earlier ones; chunks may be empty."""
    form = form_for(path, form)
    is_log = form.section not in _SIDE_TABLES
    lists = is_log and format_of(path, form) == "parquet"
    yield from records.rows(_of_source(path, records.flat(path, form)), path, form, lists=lists)


def _of_source(path: Path, form: TableFormat) -> Iterator[Reading]:
    """Chunks of the columns of a source, each by itself."""
    kind = format_of(path, form)
    if kind == "parquet":
        yield from (functools.partial(tables.given, chunk) for chunk in parquet.read(path, form))
        return
    with open_text(path, form) as stream:
        if kind == "csv":
            yield from delimited.read(stream, form, str(path))
        else:
            chunks = json_lines.read_jsonl(stream, form, str(path))
            yield from (functools.partial(tables.given, chunk) for chunk in chunks)


@contextlib.contextmanager
def open_text(path: Path, form: TableFormat) -> Iterator[Utf8Stream]:
    """A file's text as UTF-8, decompressed by its extension. Raises ValueError as `open_bytes`."""
    with open_bytes(path) as stream:
        yield Utf8Stream(stream, form.encoding)


@contextlib.contextmanager
def open_bytes(path: Path) -> Iterator[BinaryIO]:
    """A file's bytes as a stream, decompressed by its extension.

    Raises ValueError for a damaged compressed file, possibly only while reading.
    """
    compression = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}.get(path.suffix.lower())
    if compression is None:
        with path.open("rb") as stream:
            yield stream
        return
    try:
        with pa.input_stream(str(path), compression=compression) as stream:
            yield stream
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ValueError(
            f"{path}: cannot be decompressed, the file is damaged or not {path.suffix}: {error}"
        ) from None


def column_names(path: Path, form: TableFormat) -> list[str]:
    """Column names of a csv file with a header, or of a Parquet file."""
    if format_of(path, form) == "parquet":
        return parquet.names(path)
    form = form_for(path, form)
    with open_text(path, form) as stream:
        return dialect.names(stream, form, str(path))
