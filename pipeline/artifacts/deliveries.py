"""Rows read from databases, kept as source files: each read that gives new rows is one Parquet file.

`database/<role>/<query>/000001.parquet` and on, the query known by the digest of its text, its address without the password
and the column of its time. `deliveries.json` beside them lists the files that count; it is replaced last, so a read that was
killed leaves nothing behind that counts. A delivery is known by the digest of its bytes as they were read, also after users
were erased from it.
"""

import contextlib
import datetime
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from features.settings import TIMESTAMP_UNITS, TableSettings, iso_microseconds
from pipeline.artifacts.files import (
    digest_file,
    fingerprint,
    fsync,
    is_abandoned,
    now,
    read_record,
    temporary_beside,
    write_json,
)
from pipeline.config import Config
from pipeline.errors import ConfigError, LookbackError

if TYPE_CHECKING:
    import numpy as np
    import polars as pl
    import pyarrow as pa
    from numpy.typing import NDArray

    from features.readers.database import Connection, Query, Since, Time

DATABASE = "database"
"""The folder beside the stages' folders."""
ROLES = ("events", "items", "users", "exposures")
_INDEX = "deliveries.json"


@dataclass(frozen=True)
class Delivery:
    """One file of rows."""

    name: str
    digest: str
    """sha256 of the file as it was written first."""
    rows: int
    read_utc: str
    type: str = ""
    """Arrow type of the column of the time, where the query has `:since`."""
    newest: "Time | None" = None
    """Newest time that is possible; where `:since` goes on."""
    last: "Time | None" = None
    """Largest time, possible or not."""


def digests(config: Config, role: str) -> dict[str, str]:
    """Path to digest of a table's deliveries.

    Raises LookbackError where none has been read.
    """
    folder = _folder(config, role)
    kept = _listed(folder)
    if not kept:
        raise LookbackError(
            f"{role}.query: nothing has been read from {_query(config, role).shown} with this query yet; expected what an "
            f"earlier run kept in {folder}; read it with: {config.command('run', 'ingest')}"
        )
    return {str(folder / delivery.name): delivery.digest for delivery in kept}


def is_one(config: Config, path: str) -> bool:
    """Whether a source file is a delivery."""
    return Path(path).is_relative_to(config.folder / DATABASE)


def take(config: Config, role: str, excluded: "pl.Series | None", *, force: bool) -> str:
    """Read what is new in a table's database into a delivery; returns a line about it.

    excluded: users whose rows are not kept. force: read everything into a delivery that replaces all others.
    Raises LookbackError for a database that cannot be read, a mapped column that is missing, and no row at all; ConfigError for
    `:since` where it has no meaning.
    """
    import filelock

    from features.readers import database

    query, settings = _query(config, role), _settings(config, role)
    if query.has_since and (role != "events" or not isinstance(settings.columns.get("timestamp"), str | int)):
        raise ConfigError(
            f"{role}.query: received :since, expected it in [events] alone, with one column of the query as "
            "events.columns.timestamp; without it everything is read each time"
        )
    folder = _folder(config, role)
    folder.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder / ".lock"), contextlib.ExitStack() as stack:
        kept = [] if force else _listed(folder)
        target = folder / f"{_next_number(folder):06}.parquet"
        temporary = temporary_beside(target)
        stack.callback(temporary.unlink, missing_ok=True)
        try:
            connection = stack.enter_context(database.opened(query))
            reading = _Reading(config, role, connection, folder, kept, temporary)
            new = reading.fetch(excluded)
        except ValueError as error:
            raise LookbackError(str(error)) from None
        if new is None and not (kept and query.has_since):
            raise LookbackError(
                f"{role}.query: {query.shown} gave no rows, expected some; check the query (tables, conditions)"
            )
        if new is None or (not query.has_since and kept and new.digest == kept[-1].digest):
            return f"{role}.database: nothing new"
        fsync(temporary)
        temporary.replace(target)
        fsync(folder)
        kept = [*(kept if query.has_since else []), replace(new, name=target.name)]
        content = {
            "address": query.shown,
            "query": query.text,
            "files": [asdict(delivery) for delivery in kept],
        }
        write_json(folder / _INDEX, content)
        return f"{role}.database: {new.rows:,} rows read into {target}{reading.left_out}"


def unused(config: Config) -> list[Path]:
    """Files of reads that count no more, or were killed; none of a query that is being read."""
    files = []
    for folder in sorted((config.folder / DATABASE).glob("*/*/")):
        if _is_locked(folder):
            continue
        names = {delivery.name for delivery in _listed(folder)}
        files += [path for path in sorted(folder.glob("*.parquet")) if path.name not in names]
        files += [path for path in sorted(folder.glob(".*")) if is_abandoned(path)]
    return files


def others(config: Config) -> list[Path]:
    """Folders of queries that this configuration does not have."""
    present = {_folder(config, role) for role in ROLES if _has_database(config, role)}
    return [folder for folder in sorted((config.folder / DATABASE).glob("*/*/")) if folder not in present]


def with_users(config: Config, excluded: "pl.Series") -> dict[Path, "NDArray[np.bool_]"]:
    """Deliveries of this configuration that hold excluded users, and which of their rows do."""
    found = {}
    for role in ("events", "users", "exposures"):
        if _has_database(config, role):
            folder = _folder(config, role)
            for delivery in _listed(folder):
                rows = _rows_of(folder / delivery.name, _settings(config, role), excluded)
                if rows.any():
                    found[folder / delivery.name] = rows
    return found


def erase(path: Path, rows: "NDArray[np.bool_]") -> None:
    """Rewrite a delivery without some rows; readers see the old file or the new one."""
    temporary = temporary_beside(path)
    try:
        _write_without(path, rows, temporary)
        fsync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync(path.parent)


# --- places ---


def _settings(config: Config, role: str) -> TableSettings:
    settings: TableSettings = getattr(config, role)
    return settings


def _has_database(config: Config, role: str) -> bool:
    settings = getattr(config, role)
    return settings is not None and settings.database is not None


def _query(config: Config, role: str) -> "Query":
    from features.readers.database import Query

    settings = _settings(config, role)
    assert settings.database is not None
    assert settings.query is not None
    return Query(role, settings.database, settings.query)


def _folder(config: Config, role: str) -> Path:
    query = _query(config, role)
    time = str(_settings(config, role).columns["timestamp"]) if query.has_since and role == "events" else ""
    return config.folder / DATABASE / role / fingerprint([query.shown, query.text, time])


def _listed(folder: Path) -> list[Delivery]:
    """Deliveries that count, in order."""
    files: Any = read_record(folder / _INDEX).get("files", [])
    return [Delivery(**file) for file in files]


def _next_number(folder: Path) -> int:
    return 1 + max((int(path.stem) for path in folder.glob("[0-9]*.parquet")), default=0)


def _is_locked(folder: Path) -> bool:
    import filelock

    with contextlib.suppress(filelock.Timeout), filelock.FileLock(folder / ".lock", timeout=0):
        return False
    return True


# --- reading ---


@dataclass
class _Reading:
    """One read of a query, into a temporary file."""

    config: Config
    role: str
    connection: "Connection"
    folder: Path
    kept: list[Delivery]
    temporary: Path
    left_out: str = ""
    """Rows that are not in the delivery, in words."""

    def fetch(self, excluded: "pl.Series | None") -> Delivery | None:
        """Write the rows that are new; None where there is none."""
        import numpy as np

        has_since = self.connection.query.has_since
        num_rows = self._write(self._since() if has_since else None)
        rows = np.zeros(num_rows, dtype=bool)
        if not num_rows:
            return None
        times = self._times() if has_since else ("", None, None)
        if has_since:
            rows = self._repeats(num_rows)
        num_repeats = int(rows.sum())
        if excluded is not None and self.role != "items":
            rows |= _rows_of(self.temporary, _settings(self.config, self.role), excluded)
        if num_users := int(rows.sum()) - num_repeats:
            self.left_out = f", without {num_users:,} of excluded users"
        if rows.all():
            return None
        if rows.any():
            erase(self.temporary, rows)
        return Delivery(
            "", digest_file(self.temporary), num_rows - int(rows.sum()), now().isoformat(), *times
        )

    def _since(self) -> "Since":
        from features.readers.database import Since

        known = [delivery for delivery in self.kept if delivery.newest is not None]
        if not known:
            is_text = self.config.events.timestamp_unit not in (*TIMESTAMP_UNITS[:4], "position")
            return self.connection.first_since(self._column, is_text=is_text)
        newest: Any = max(delivery.newest for delivery in known)  # type: ignore[type-var]
        return Since.just_before(
            self._schema(known[-1]).field(self._column(self._schema(known[-1]))).type, newest
        )

    def _schema(self, delivery: Delivery) -> "pa.Schema":
        import pyarrow.parquet as pq

        return pq.read_schema(self.folder / delivery.name)

    def _column(self, schema: "pa.Schema") -> str:
        """The query's column of the time."""
        from features import tables

        form = _settings(self.config, self.role).table
        return tables.column_at(form, "timestamp", schema.names, f"{self.role}.query")

    def _write(self, since: "Since | None") -> int:
        """Write all rows; returns their number."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        from features.readers import database

        num_rows = 0
        with self.connection.rows(since) as (schema, batches):
            database.check_columns(schema, _settings(self.config, self.role).table)
            try:
                with pq.ParquetWriter(self.temporary, schema, compression="zstd") as writer:
                    for batch in batches:
                        writer.write_batch(batch)
                        num_rows += len(batch)
            except pa.ArrowException as error:
                raise ValueError(
                    f"{self.role}.query: a column cannot be kept as Parquet: {error}; leave it out or CAST it"
                ) from None
        return num_rows

    def _times(self) -> "tuple[str, Time | None, Time | None]":
        """Type, newest and last of the rows' times, as in `Delivery`."""
        import polars as pl
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        from features.events import timestamps
        from features.readers.database import physical, sql_type

        settings = self.config.events
        column = pq.read_table(self.temporary, columns=[self._column(pq.read_schema(self.temporary))]).column(
            0
        )
        sql_type(column.type)
        earlier = {delivery.type for delivery in self.kept if delivery.type}
        if earlier - {str(column.type)}:
            raise ValueError(
                f"events.query: the column of the time is {column.type} now, and was {', '.join(sorted(earlier))} in earlier "
                "reads; expected one type: CAST it in the query, or read everything anew with --force"
            )
        times = physical(column)
        ahead = datetime.timedelta(days=min(settings.max_days_ahead, 1e6))
        moments = timestamps.microseconds(
            pl.Series(pl.from_arrow(column)), settings.timestamp_unit, settings.timezone
        )
        text = pl.Series(pl.from_arrow(column))
        if text.dtype == pl.String and not moments.gather(text.arg_sort()).drop_nulls().is_sorted():
            raise ValueError(
                "events.query: the column of the time is text whose order is not that of the times, expected one that sorts by "
                "time; CAST it to a timestamp in the query"
            )
        is_possible = (moments <= iso_microseconds((now() + ahead).isoformat())).fill_null(value=False)
        if settings.timestamp_unit == "position":
            is_possible = moments.is_not_null()
        newest = pc.max(times.filter(is_possible.to_arrow()))
        return str(column.type), newest.as_py(), pc.max(times).as_py()

    def _repeats(self, num_rows: int) -> "NDArray[np.bool_]":
        """[rows] whether a row is there already: as many of its equals as earlier deliveries have."""
        import numpy as np
        import pyarrow as pa
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        from features.readers.database import physical

        schema = pq.read_schema(self.temporary)
        column = self._column(schema)
        times = physical(pq.read_table(self.temporary, columns=[column]).column(0))
        first, has_missing = pc.min(times).as_py(), times.null_count > 0
        earlier = [
            delivery
            for delivery in self.kept
            if has_missing or (first is not None and delivery.last is not None and delivery.last >= first)
        ]
        names = [name for name in schema.names if all(name in self._schema(one).names for one in earlier)]
        there: Counter[tuple[Any, str]] = Counter()
        for delivery in earlier:
            there.update(
                key
                for _, key in _keys(
                    self.folder / delivery.name, column, names, lambda times: _from(times, first)
                )
            )
        rows = np.zeros(num_rows, dtype=bool)
        if there:
            known = pa.array({time for time, _ in there}, times.type)
            for row, key in _keys(
                self.temporary, column, names, lambda times: pc.is_in(times, value_set=known)
            ):
                rows[row] = there[key] > 0
                there[key] -= 1
        return rows


# --- rows of a file ---


def _from(times: "pa.Array", first: Any) -> "pa.Array":
    """Which times are not before the first, or missing."""
    import pyarrow.compute as pc

    return times.is_null() if first is None else pc.fill_null(pc.greater_equal(times, first), fill_value=True)


def _keys(
    path: Path, column: str, names: list[str], wanted: "Callable[[pa.Array], pa.Array]"
) -> "Iterator[tuple[int, tuple[Any, str]]]":
    """Position, time and text of the wanted rows of a file."""
    import numpy as np

    from features.readers.database import physical

    start = 0
    for batch in _batches(path, [*dict.fromkeys((*names, column))]):
        times = physical(batch[column])
        rows = np.flatnonzero(wanted(times).to_numpy(zero_copy_only=False))
        chosen = batch.take(rows).select(names).to_pylist()
        for row, time, values in zip(rows, times.take(rows).to_pylist(), chosen, strict=True):
            yield start + int(row), (time, repr(values))
        start += len(batch)


def _batches(path: Path, columns: list[str] | None = None) -> "Iterator[pa.RecordBatch]":
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        yield from file.iter_batches(columns=columns)


def _rows_of(path: Path, settings: TableSettings, users: "pl.Series") -> "NDArray[np.bool_]":
    """[rows] whether a row of a delivery is one of these users."""
    import numpy as np
    import polars as pl

    from features import schema
    from features.events import ids, row_filters
    from features.readers import sources

    column = {schema.USER_ID: settings.columns[schema.USER_ID]}
    form = replace(
        settings.table, format="parquet", columns=column, items_separator="", clicked_suffix="", fill_down=[]
    )
    flags = []
    for reading in sources.readings(path, form):
        plain = ids.plain(reading().frame[schema.USER_ID])
        kind: schema.IdType = "string" if plain.dtype == pl.String else "int64"
        flags.append(row_filters.Excluded(users, kind).holds(plain, ids.typed(plain, kind)).to_numpy())
    return np.concatenate(flags) if flags else np.zeros(0, dtype=bool)


def _write_without(path: Path, rows: "NDArray[np.bool_]", target: Path) -> None:
    """Write a file without some of its rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    start = 0
    with pq.ParquetWriter(target, pq.read_schema(path), compression="zstd") as writer:
        for batch in _batches(path):
            writer.write_batch(batch.filter(pa.array(~rows[start : start + len(batch)])))
            start += len(batch)
