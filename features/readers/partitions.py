"""Columns that the folders of a path give: `day=2026-01-31/log.csv` has day."""

import urllib.parse
from pathlib import Path

from features.settings import TableFormat, columns_of

_NOTHING = "__HIVE_DEFAULT_PARTITION__"


def used(path: str | Path, form: TableFormat) -> dict[str, str]:
    """The columns of a path's folders that are mapped, with their values."""
    mapped = {column for theirs in form.columns.values() for column in columns_of(theirs)}
    parts = (part.partition("=") for part in Path(path).parts[:-1])
    found = {name: urllib.parse.unquote(value) for name, mark, value in parts if mark and name in mapped}
    return {name: "" if value == _NOTHING else value for name, value in found.items()}
