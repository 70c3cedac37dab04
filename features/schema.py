"""Column names and types of the tables between stages; every Parquet read goes through `scan` or `read`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import polars as pl

USER_ID = "user_id"
ITEM_ID = "item_id"
TIMESTAMP = "timestamp"
EVENT_TYPE = "event_type"
VALUE = "value"
ORDER = "order"
SOURCE_FILE = "source_file"
SOURCE_PATH = "source_path"
SOURCE_ROW = "source_row"
RAW = "raw"
REASON = "reason"
TITLE = "title"
CATEGORIES = "categories"
PROVIDER = "provider"
RANK = "rank"
PROPENSITY = "propensity"
LIST_ID = "list_id"
TEXT = "text"
EMBEDDING = "embedding"

IdType = Literal["int64", "string"]
ID_TYPES: dict[IdType, pl.DataType] = {"int64": pl.Int64(), "string": pl.String()}
TIME = pl.Datetime("us", "UTC")

Columns = Mapping[str, tuple[pl.DataType, ...]]
"""Column to the types it may have."""

_IDS = tuple(ID_TYPES.values())

EVENTS: Columns = {
    USER_ID: _IDS,
    ITEM_ID: _IDS,
    TIMESTAMP: (TIME,),
    EVENT_TYPE: (pl.Categorical(),),
    VALUE: (pl.Float32(),),
    SOURCE_FILE: (pl.String(),),
    SOURCE_ROW: (pl.Int64(),),
}
"""One row per event. source_file: 16 digits of the content digest; source_row: from 1 within its file."""
EVENT_ORDER: Columns = {ORDER: (pl.Float64(),)}
"""Where the log has a column for it: order of a user's events at one time. Further columns of the log are text."""

EXPOSURES: Columns = {
    USER_ID: _IDS,
    ITEM_ID: _IDS,
    TIMESTAMP: (TIME,),
    RANK: (pl.Int32(),),
    PROPENSITY: (pl.Float32(),),
    LIST_ID: (pl.String(),),
    SOURCE_FILE: (pl.String(),),
    SOURCE_ROW: (pl.Int64(),),
}
"""One row per item that was shown to a user. rank: place in the list from 1; propensity: probability of the item at its place,
in (0, 1]; null where the log does not say."""

QUARANTINE: Columns = {
    SOURCE_FILE: (pl.String(),),
    SOURCE_PATH: (pl.String(),),
    SOURCE_ROW: (pl.Int64(),),
    RAW: (pl.String(),),
    REASON: (pl.String(),),
}
"""One row per refused row, with its text in the source."""

ITEMS: Columns = {ITEM_ID: _IDS}
ITEM_CONTENT: Columns = {
    TITLE: (pl.String(),),
    CATEGORIES: (pl.List(pl.String()),),
    TEXT: (pl.String(),),
    EMBEDDING: (pl.List(pl.Float32()),),
}
"""Content of items: optional columns of an items table, by the configuration."""

ITEM_COLUMNS: Columns = {**ITEM_CONTENT, PROVIDER: (pl.String(),)}
"""Columns of an items table with a meaning. provider: maker, publisher or shop, by which lists are compared. Any further
attribute is text under its own name."""

USERS: Columns = {USER_ID: _IDS}
"""A users table also has any attribute under its own name."""


def check(columns: pl.Schema, expected: Columns, where: str) -> None:
    """Raise ValueError for a missing column or one of another type."""
    for name, types in expected.items():
        names = " or ".join(str(kind) for kind in types)
        if name not in columns:
            raise ValueError(
                f"{where}: has no column {name!r} (found {', '.join(columns)}), expected it as {names}"
            )
        if columns[name] not in types:
            raise ValueError(f"{where}: column {name!r} is {columns[name]}, expected {names}")


def scan(paths: Path | Sequence[Path], expected: Columns) -> pl.LazyFrame:
    """Parquet files as one lazy table whose columns are checked (from the first file's footer; the rest must agree)."""
    files = [paths] if isinstance(paths, Path) else list(paths)
    if not files:
        raise ValueError("no Parquet file to read, expected at least one")
    try:
        frame = pl.scan_parquet(files, glob=False)
        check(frame.collect_schema(), expected, str(files[0]))
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"{files[0]}: cannot be read as Parquet: {error}") from None
    return frame


def read(path: Path, expected: Columns, columns: Sequence[str] | None = None) -> pl.DataFrame:
    """One Parquet file as a table whose columns are checked."""
    frame = scan(path, expected)
    return (frame if columns is None else frame.select(columns)).collect()
