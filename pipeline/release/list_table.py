"""Live lists in a table of a database, by ADBC: one transaction, so that readers see the lists before or the new ones, whole.

The rows go to a temporary table, and from there to the table by the names of its columns: the database converts their types.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from features.readers.database import Database
from pipeline.deliver_section import DeliverConfig
from pipeline.errors import LookbackError

BATCH_ROWS = 65_536
"""Rows in memory at once."""
_STAGED = "lookback_staged"
_REASONS = "because"
_LOCK = "SELECT 1 FROM pg_advisory_xact_lock(hashtext($1))"
"""One delivery at a time; readers go on."""
_EXISTS = {
    "postgresql": "SELECT 1 WHERE to_regclass($1) IS NOT NULL",
    "sqlite": "SELECT 1 FROM sqlite_master WHERE lower(name) = lower(trim($1, '\"'))",
}
_COLUMNS = "SELECT * FROM {table} LIMIT 0"
_OWN = "SELECT 1 FROM {table} WHERE delivery = $1 LIMIT 1"
_OTHERS = "SELECT 1 FROM {table} WHERE delivery IS DISTINCT FROM $1 LIMIT 1"
_CREATE = "CREATE TABLE {table} AS SELECT * FROM {staged}"
_INDEX = 'CREATE INDEX "{index}" ON {table} ("{column}")'
_EMPTY = "DELETE FROM {table}"
_INSERT = "INSERT INTO {table} ({columns}) SELECT {columns} FROM {staged}"
_ADVICE = "the table is as it was: correct this and deliver again"


@dataclass(frozen=True)
class Lists:
    """Recommendations of one delivery."""

    shards: Sequence[Path]
    """Parquet files, one at least."""
    delivery: str
    """Name, the column `delivery`, by which a table shows whether it has them"""
    facts: Mapping[str, pl.Expr]
    """Further columns with one value for all rows"""

    @property
    def schema(self) -> pa.Schema:
        """Columns of the table."""
        return self._rows(pq.read_schema(self.shards[0]).empty_table()).schema

    def batches(self, rows: list[int]) -> Iterator[pa.RecordBatch]:
        """Yield the rows with the facts, reasons as JSON; `rows` receives the number of each batch."""
        for shard in self.shards:
            for batch in pq.ParquetFile(shard).iter_batches(BATCH_ROWS):
                rows.append(len(batch))
                yield from self._rows(pa.Table.from_batches([batch])).to_batches()

    def _rows(self, table: pa.Table) -> pa.Table:
        frame = pl.DataFrame(table)
        if _REASONS in frame.columns:
            reason = pl.element().struct.json_encode()
            as_json = pl.format("[{}]", pl.col(_REASONS).list.eval(reason).list.join(","))
            frame = frame.with_columns(as_json.alias(_REASONS))
        facts = {**self.facts, "delivery": pl.lit(self.delivery)}
        return frame.with_columns(**facts).to_arrow(compat_level=pl.CompatLevel.oldest())


def write(settings: DeliverConfig, lists: Lists) -> int | None:
    """Write lists to the table, made where it is missing; returns the number of rows, None where the table has them.

    Raises ValueError or LookbackError where the database cannot be opened or refuses the rows, or the table lacks a column.
    """
    database = Database("deliver", settings.database)
    with database.opening():
        connection = _connect(database)
    problem = f"does not take the lists into {settings.table!r}"
    with (
        database.explained("table", problem, _ADVICE),
        connection,
        connection.cursor() as cursor,
    ):
        rows = _Table(database, settings, cursor).deliver(lists)
        connection.commit()
    return rows


def _connect(database: Database) -> Any:
    """Connection of ADBC, in a transaction."""
    if database.scheme == "sqlite":
        from adbc_driver_sqlite import dbapi as sqlite

        return sqlite.connect(str(database.path))
    from adbc_driver_postgresql import dbapi as postgresql

    return postgresql.connect(database.encoded)


@dataclass(frozen=True)
class _Table:
    """Table of a database within a transaction."""

    database: Database
    settings: DeliverConfig
    cursor: Any

    @property
    def name(self) -> str:
        """Quoted name for SQL."""
        return ".".join(f'"{part}"' for part in self.settings.table.split("."))

    def deliver(self, lists: Lists) -> int | None:
        """Write the rows; returns their number, None where the table has them."""
        schema, is_append = lists.schema, self.settings.mode == "append"
        if self.database.scheme == "postgresql":
            self._rows(_LOCK, self.settings.table)
        is_new = not self._rows(_EXISTS[self.database.scheme], self.name)
        if not is_new:
            self._check(schema)
            has_others = not is_append and self._rows(_OTHERS, lists.delivery)
            if self._rows(_OWN, lists.delivery) and not has_others:
                return None
        counted: list[int] = []
        reader = pa.RecordBatchReader.from_batches(schema, lists.batches(counted))
        self.cursor.adbc_ingest(_STAGED, reader, mode="create", temporary=True)
        columns = ", ".join(f'"{name}"' for name in schema.names)
        if is_new:
            self._execute(_CREATE)
            for column in ("user_id", *(["delivery"] if is_append else [])):
                index = f"{self.settings.table.rpartition('.')[2]}_{column}"
                self._execute(_INDEX, index=index, column=column)
        else:
            if not is_append:
                self._execute(_EMPTY)
            self._execute(_INSERT, columns=columns)
        return sum(counted)

    def _execute(self, sql: str, *parameters: str, **names: str) -> None:
        self.cursor.execute(sql.format(table=self.name, staged=_STAGED, **names), parameters or None)

    def _rows(self, sql: str, parameter: str) -> list[Any]:
        self._execute(sql, parameter)
        rows: list[Any] = self.cursor.fetchall()
        return rows

    def _check(self, schema: pa.Schema) -> None:
        """Raise LookbackError where the table lacks a column."""
        self._execute(_COLUMNS)
        present = self.cursor.fetch_arrow_table().column_names
        missing = [name for name in schema.names if name not in present]
        if missing:
            raise LookbackError(
                f"deliver.table: {self.settings.table!r} of {self.database.shown} has no column {', '.join(missing)}; expected "
                f"{', '.join(schema.names)}: add what is missing, or name a new table, which is made"
            )
