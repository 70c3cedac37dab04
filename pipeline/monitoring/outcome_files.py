"""Outcomes of all nights, a Parquet file per night and window: a monitor writes those it judges and links the earlier ones."""

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl

from pipeline.artifacts.event_parts import link
from pipeline.artifacts.files import known_digest
from pipeline.artifacts.store import read_manifest

FOLDER = "outcomes.parquet"
"""Folder of the files in a monitor's artifact; `polars.read_parquet` and `pyarrow.parquet.read_table` read it as one table."""
RECENT_NIGHTS = 28
"""Newest nights of a window: their digests are checked before they are linked, and experiments are planned on them."""
_EMPTY = "none.parquet"
_TIME = "%Y-%m-%dT%H%M%S.%f"
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_MICROSECOND = datetime.timedelta(microseconds=1)

Key = tuple[int, float]
"""Night (`log_time`, microseconds since the epoch) and window in days."""


class OutcomeFiles:
    """Files of the outcomes in a monitor's artifact or workspace."""

    def __init__(self, artifact: Path) -> None:
        self.artifact = artifact
        self.folder = artifact / FOLDER
        self.linked: dict[str, str] = {}
        """Relative path to sha256 of the files that are links to the predecessor's."""

    def all_keys(self) -> list[Key]:
        """Nights and windows, oldest night first."""
        keys = []
        for path in self.folder.glob("*d.parquet"):
            night, days = path.name.removesuffix("d.parquet").rsplit("-", 1)
            moment = datetime.datetime.strptime(night, _TIME).replace(tzinfo=datetime.UTC)
            keys.append(((moment - _EPOCH) // _MICROSECOND, float(days)))
        return sorted(keys)

    def path(self, key: Key) -> Path:
        """File of a night and window, whether it exists or not."""
        night, days = key
        return self.folder / f"{_EPOCH + night * _MICROSECOND:{_TIME}}-{days:g}d.parquet"

    def read(self, key: Key) -> pl.DataFrame:
        """Rows of a night and window (see `outcomes.columns`); raises FileNotFoundError without them."""
        return pl.read_parquet(self.path(key), glob=False)

    def read_if_any(self, key: Key) -> list[pl.DataFrame]:
        """Rows of a night and window in a list of one; an empty list without them."""
        return [self.read(key)] if self.path(key).exists() else []

    def write(self, key: Key, rows: pl.DataFrame) -> None:
        """Write the rows of a night and window anew; without rows there is no file."""
        path = self.path(key)
        path.unlink(missing_ok=True)  # it may be a link
        self.linked.pop(self._name(path), None)
        if len(rows):
            path.parent.mkdir(exist_ok=True)
            rows.write_parquet(path, compression="zstd")

    def write_none(self, columns: Mapping[str, pl.DataType]) -> None:
        """Without any night a table without rows, so that the folder can be read."""
        if not self.all_keys():
            self.folder.mkdir()
            pl.DataFrame(schema=columns).write_parquet(self.folder / _EMPTY)

    def recent(self, before: int | None = None) -> list[Key]:
        """Keys of the newest RECENT_NIGHTS of each window, oldest first; before: of nights before this one."""
        keys = [key for key in self.all_keys() if before is None or key[0] < before]
        of_window = ([key for key in keys if key[1] == days] for days in sorted({days for _, days in keys}))
        return sorted(key for own in of_window for key in own[-RECENT_NIGHTS:])

    def rows_of(self, system: str, keys: Sequence[Key]) -> pl.DataFrame:
        """Rows of a system in nights and windows [at least one]."""
        rows = pl.scan_parquet([self.path(key) for key in keys], glob=False)
        return rows.filter(pl.col("system") == system).collect(engine="streaming")

    def num_rows(self) -> int:
        """Number of rows of all files."""
        keys = self.all_keys()
        if not keys:
            return 0
        return int(
            pl.scan_parquet([self.path(key) for key in keys], glob=False).select(pl.len()).collect().item()
        )

    def link_from(self, previous: "OutcomeFiles") -> set[Key]:
        """Link the files of a predecessor; returns the nights and windows whose files are damaged, and left out.

        Files of recent nights are compared with the predecessor's digests, the others only by size.
        """
        files = read_manifest(previous.artifact)["files"]
        recent, damaged = set(previous.recent()), set[Key]()
        for key in previous.all_keys():
            path = previous.path(key)
            name = self._name(self.path(key))
            size, digest = files.get(name, (None, ""))
            if path.stat().st_size != size or (key in recent and known_digest(path) != digest):
                damaged.add(key)
                continue
            self.folder.mkdir(exist_ok=True)
            if link(path, self.path(key)):
                self.linked[name] = digest
        return damaged

    def _name(self, path: Path) -> str:
        return path.relative_to(self.artifact).as_posix()
