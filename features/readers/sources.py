"""Source files as streams of chunks: csv, JSON and Parquet by extension, also compressed or in a zip archive."""

import contextlib
import functools
import lzma
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import polars as pl
import pyarrow as pa

from features import tables
from features.readers import delimited, dialect, json_lines, parquet, partitions, records
from features.settings import FileFormat, TableFormat
from features.tables import Chunk, Reading, Utf8Stream

_COMPRESSED = (".gz", ".zst", ".bz2", ".xz", ".zip")
_MAGIC = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bz2",
    b"\xfd7zXZ\x00": "xz",
    b"PK\x03\x04": "zip",
}
"""First bytes of compressed files."""
_EXTENSION = {"gzip": ".gz", "zstd": ".zst", "bz2": ".bz2", "xz": ".xz", "zip": ".zip"}
_WORKBOOKS = (".xlsx", ".xls", ".xlsm", ".xlsb", ".ods")
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
    if not suffixes and path.suffix.lower() == ".zip" and path.exists():
        suffixes = Path(_member(path)).suffixes
    if suffixes and suffixes[-1] in _WORKBOOKS:
        raise ValueError(
            f"{form.section}.path: {path}: is a spreadsheet, expected text or Parquet; save the sheet as csv, or convert it with "
            'polars.read_excel("…").write_parquet("…")'
        )
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


def readings(
    path: Path,
    form: TableFormat,
    source_path: str | None = None,
    types: Mapping[str, pl.DataType] | None = None,
) -> Iterator[Reading]:
    """As `read`, but parsed when called where a chunk does not depend on earlier ones; chunks may be empty.

    source_path: where the file comes from, whose folders may be columns; default: `path`. types: columns of delimited text that
    may be parsed while they are read; such chunks have `texts`.
    """
    form = form_for(path, form)
    is_log = form.section not in _SIDE_TABLES
    lists = is_log and format_of(path, form) == "parquet"
    given = partitions.used(source_path or path, form)
    types = types if records.is_flat(form, given) else None
    yield from records.rows(_of_source(path, records.flat(form, given), types), form, given, lists=lists)


def _of_source(path: Path, form: TableFormat, types: Mapping[str, pl.DataType] | None) -> Iterator[Reading]:
    """Chunks of the columns of a source, each by itself."""
    kind = format_of(path, form)
    if kind == "parquet":
        yield from (functools.partial(tables.given, chunk) for chunk in parquet.read(path, form))
        return
    with open_text(path, form) as stream:
        if kind == "csv":
            yield from delimited.read(stream, form, str(path), types)
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
    """A file's bytes as a stream, decompressed by what its first bytes say.

    Raises ValueError for a damaged compressed file, possibly only while reading, and an archive of several files.
    """
    with path.open("rb") as stream:
        start = stream.read(6)
        compression = next((kind for magic, kind in _MAGIC.items() if start.startswith(magic)), None)
        if compression is None:
            stream.seek(0)
            yield stream
            return
    try:
        with _decompressed(path, compression) as stream:
            yield stream
    except (pa.ArrowException, zipfile.BadZipFile, lzma.LZMAError, EOFError, zlib.error, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ValueError(
            f"{path}: cannot be decompressed, the file is damaged or not {_EXTENSION[compression]}: {error}"
        ) from None


@contextlib.contextmanager
def _decompressed(path: Path, compression: str) -> Iterator[BinaryIO]:
    if compression == "xz":
        with lzma.open(path) as stream:
            yield stream  # type: ignore[misc]
    elif compression == "zip":
        with zipfile.ZipFile(path) as archive, archive.open(_member(path)) as stream:
            yield stream  # type: ignore[misc]
    else:
        with pa.input_stream(str(path), compression=compression) as stream:
            yield stream


def _member(path: Path) -> str:
    """Name of the one file in a zip archive. Raises ValueError for none or several."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if not name.endswith("/")]
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path}: cannot be decompressed, the file is damaged or not zip: {error}") from None
    names = [name for name in names if not name.startswith("__MACOSX/")]
    if len(names) != 1:
        raise ValueError(
            f"{path}: an archive of {len(names)} files ({', '.join(names[:5])}), expected one file in it; unpack it and name the "
            "files to read"
        )
    return names[0]


def column_names(path: Path, form: TableFormat) -> list[str]:
    """Column names of a csv file with a header, or of a Parquet file."""
    if format_of(path, form) == "parquet":
        return parquet.names(path)
    form = form_for(path, form)
    with open_text(path, form) as stream:
        return dialect.names(stream, form, str(path))
