"""Queries of databases as streams of Arrow batches: PostgreSQL and SQLite through ADBC, DuckDB by its own reader.

PostgreSQL streams by COPY, which takes no parameter: the value of `:since` is bound into a setting of the session that the
query reads. Addresses are handed on with their credentials; messages name them without.
"""

import contextlib
import math
import re
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from features.readers import parquet, records
from features.settings import TableFormat

BATCH_ROWS = 65_536
"""Rows of a batch of SQLite and DuckDB; SQLite's columns get their types from the first batch."""
_SINCE = re.compile(
    r"""'(?:[^']|'')*'|"[^"]*"|--[^\n]*|/\*.*?\*/|(\$\w*\$).*?\1|(?<![:\w])(?P<since>:since)\b""", re.DOTALL
)
"""The placeholder, after what may hold its letters: quoted text and names, comments."""
_NOISE = re.compile(r"\s*Query was: .*|^(?:[A-Z_]+: )?(?:\[libpq\] )?|\s+\^+", re.DOTALL)
_UNKNOWN = ("NULL", "CAST(NULL AS TIMESTAMPTZ)")
"""Stand-ins for `:since` while the type of its column is not known yet."""
_PASSWORD = re.compile(r"(\w+://[^/@:]*:)(.*)@(?=[^@]*$)")
_IN_PARAMETER = re.compile(r"([?&]password=)([^&]*)")
_SHORTEST = 4
"""Characters of a password below which it may be a part of any word."""
_DRIVERS = ("adbc_driver_manager", "duckdb", "_duckdb")
"""Packages whose errors have no common class."""
_CORRECT = "correct the query (a value of another type than expected: CAST it)"
_CHECKS = {
    "postgresql": "check the address, that the server runs, and PGUSER and PGPASSWORD (or ~/.pgpass)",
    "sqlite": "check the path, and that it is a SQLite database",
    "duckdb": "check the path, and that no other process writes to it",
}
_FIRST_DAY = "0001-01-01"
_KINDS = {"string": "TEXT", "float": "FLOAT8", "integer": "BIGINT", "date": "DATE"}
_EARLIEST = {"FLOAT8": "-Infinity", "BIGINT": str(-(2**63))}
"""SQL type to a value before all others, as text; of others the first day."""

Time = int | float | str
"""A time as a column has it; dates and times by their integer."""
Run = Callable[[str, "Since | None"], pa.RecordBatchReader]
"""Run a query, in which `:since` is replaced already, with its parameter."""


@dataclass(frozen=True)
class Database:
    """Database of a section of the configuration, by its address."""

    section: str
    address: str

    @property
    def scheme(self) -> str:
        """postgresql, sqlite or duckdb."""
        name = self.address.partition("://")[0]
        return "postgresql" if name == "postgres" else name

    @property
    def encoded(self) -> str:
        """The address as libpq reads it, whatever characters its password has."""
        match = _PASSWORD.match(self.address)
        if match is None:
            return self.address
        password = urllib.parse.quote(urllib.parse.unquote(match[2]), safe="")
        return match[1] + password + self.address[match.end(2) :]

    @property
    def path(self) -> Path:
        """File of `sqlite:///relative` or `sqlite:////absolute`."""
        return Path(self.address.partition(":///")[2])

    @property
    def shown(self) -> str:
        """The address with `***` for its password."""
        return _IN_PARAMETER.sub(r"\1***", _PASSWORD.sub(r"\1***@", self.address))

    def without_password(self, text: str) -> str:
        """A text without the password of the address."""
        found = [
            match[2] for match in (_PASSWORD.match(self.address), _IN_PARAMETER.search(self.address)) if match
        ]
        for password in found:
            for written in {password, urllib.parse.unquote(password)}:
                text = text.replace(written, "***") if len(written) >= _SHORTEST else text
        return text

    @contextlib.contextmanager
    def opening(self) -> Iterator[None]:
        """Explain errors of opening the database."""
        with self.explained("database", "cannot be opened", _CHECKS[self.scheme]):
            yield

    @contextlib.contextmanager
    def explained(self, key: str, problem: str, advice: str) -> Iterator[None]:
        """Turn errors of a driver into one ValueError without the password."""
        try:
            yield
        except ImportError as error:
            raise ValueError(
                f"{self.section}.database: received {self.shown!r}, but the driver of {self.scheme} is not installed "
                f'({error.name}): pip install "lookback[database]"'
            ) from None
        except Exception as error:
            package = type(error).__module__.partition(".")[0]
            if package not in _DRIVERS and not isinstance(error, ValueError | OSError | pa.ArrowException):
                raise
            reason = " ".join(_NOISE.sub("", self.without_password(str(error))).split()).rstrip(".")
            raise ValueError(f"{self.section}.{key}: {self.shown} {problem}: {reason}; {advice}") from None


@dataclass(frozen=True)
class Query(Database):
    """A table's query of a database."""

    text: str

    @property
    def has_since(self) -> bool:
        """Whether the query has the placeholder."""
        return any(found["since"] for found in _SINCE.finditer(self.text))

    def with_since(self, sql: str) -> str:
        """The query's text with an expression of SQL in the placeholder's place."""
        text = self.text.strip().rstrip(";")
        return _SINCE.sub(lambda found: sql if found["since"] else found[0], text)


@dataclass(frozen=True)
class Since:
    """Parameter of a query: rows after it are asked for."""

    kind: str
    """SQL type."""
    text: str
    value: Time
    """The same for SQLite, which converts no text."""

    @classmethod
    def just_before(cls, kind: pa.DataType, newest: Time) -> "Since":
        """The next smaller time, so that `at > :since` holds for the rows of the newest time too.

        Text loses its last character: of all shorter texts before it the longest that every collation sorts before it.
        """
        if isinstance(newest, str):
            return cls("TEXT", newest[:-1], newest[:-1])
        if isinstance(newest, float):
            before = math.nextafter(newest, -math.inf)
            return cls("FLOAT8", repr(before), before)
        before = newest - 1
        text = str(before)
        if pa.types.is_temporal(kind):
            physical = pa.int32() if pa.types.is_date32(kind) else pa.int64()
            text = str(pa.array([before], physical).cast(kind).cast(pa.string())[0].as_py())
        return cls(sql_type(kind), text, before)

    @classmethod
    def earliest(cls, kind: pa.DataType) -> "Since":
        """A time before all others, for the first read."""
        name = sql_type(kind)
        text = _EARLIEST.get(name, _FIRST_DAY)
        return cls(name, text, text if name == "TEXT" else -(2**63))


def sql_type(kind: pa.DataType) -> str:
    """SQL type of a column that can be compared with `:since`. Raises ValueError for others."""
    types = pa.types
    if types.is_timestamp(kind):
        return "TIMESTAMPTZ" if kind.tz is not None else "TIMESTAMP_NS" if kind.unit == "ns" else "TIMESTAMP"
    is_kind = {
        "integer": types.is_integer,
        "float": types.is_floating,
        "date": types.is_date,
        "string": lambda kind: types.is_string(kind) or types.is_large_string(kind),
    }
    for name, holds in is_kind.items():
        if holds(kind):
            return _KINDS[name]
    raise ValueError(
        f"the column of the time is {kind}, expected a timestamp, date, integer, float or text: CAST it in the query"
    )


def physical(column: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray | pa.Array:
    """A column's times as `Time`: dates and times as their integers."""
    kind = column.type
    if not pa.types.is_temporal(kind):
        return column
    return column.cast(pa.int32() if pa.types.is_date32(kind) else pa.int64())


@dataclass(frozen=True)
class Connection:
    """An open database."""

    query: Query
    _run: Run
    _placeholder: str
    """SQL in the place of `:since`; `{}` is its type."""
    _is_typed: bool = True
    """Whether columns have types of their own, and not each value."""

    @contextlib.contextmanager
    def rows(self, since: Since | None) -> Iterator[tuple[pa.Schema, Iterator[pa.RecordBatch]]]:
        """Yield schema and batches of the query's rows, in bounded memory and in the query's order."""
        text = self.query.with_since("" if since is None else self._placeholder.format(since.kind))
        with self._asked(text, since) as reader:
            schema = _plain_schema(reader.schema)
            yield schema, self._batches(reader, schema)

    def first_since(self, column: Callable[[pa.Schema], str], *, is_text: bool) -> Since:
        """`:since` of the first read, by the type of the column of the time, which `column` names.

        is_text: whether times are text in a database whose columns have no type.

        Raises ValueError for a type that has no order of its own.
        """
        if not self._is_typed:
            return Since.earliest(pa.string() if is_text else pa.int64())
        for stand_in in _UNKNOWN:
            text = f"SELECT * FROM ({self.query.with_since(stand_in)}\n) AS rows_of_the_query LIMIT 0"  # noqa: S608
            try:
                with self._asked(text, None) as reader:
                    schema = reader.schema
                break
            except ValueError:
                if stand_in == _UNKNOWN[-1]:
                    raise
        return Since.earliest(schema.field(column(schema)).type)

    @contextlib.contextmanager
    def _asked(self, text: str, since: Since | None) -> Iterator[pa.RecordBatchReader]:
        with self.query.explained("query", "refuses the query", _CORRECT):
            reader = self._run(text, since)
        with reader:
            yield reader

    def _batches(self, reader: pa.RecordBatchReader, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        while True:
            with self.query.explained("query", "broke off", _CORRECT):
                batch = next(reader, None)
            if batch is None:
                return
            if len(batch):
                yield _plain(batch, schema)


@contextlib.contextmanager
def opened(query: Query) -> Iterator[Connection]:
    """Yield a connection to a query's database.

    Raises ValueError, also while rows are read, where its driver is not installed, it cannot be reached, or refuses the query.
    """
    connect = {"sqlite": _sqlite, "duckdb": _duckdb}.get(query.scheme, _postgresql)
    with contextlib.ExitStack() as stack:
        with query.opening():
            connection = stack.enter_context(connect(query))
        yield connection


def check_columns(schema: pa.Schema, form: TableFormat) -> None:
    """Raise ValueError for a mapped column that a query's rows have not."""
    parquet.check(schema, records.flat(form, {}), f"{form.section}.query")


def _plain_schema(schema: pa.Schema) -> pa.Schema:
    """A schema without the databases' own types: they become text, or what they are stored as."""
    return pa.schema([pa.field(field.name, _plain_type(field.type)) for field in schema])


def _plain_type(kind: pa.DataType) -> pa.DataType:
    if isinstance(kind, pa.UuidType):
        return pa.string()
    return kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind


def _plain(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    columns = []
    for column, field in zip(batch.columns, schema, strict=True):
        if isinstance(column.type, pa.UuidType):
            columns.append(
                pa.array([None if uuid is None else str(uuid) for uuid in column.to_pylist()], field.type)
            )
        else:
            columns.append(column.storage if isinstance(column.type, pa.BaseExtensionType) else column)
    return pa.RecordBatch.from_arrays(columns, schema=schema)


# --- databases ---


@contextlib.contextmanager
def _postgresql(query: Query) -> Iterator[Connection]:
    from adbc_driver_postgresql import dbapi

    with dbapi.connect(query.encoded) as connection, connection.cursor() as cursor:

        def run(text: str, since: Since | None) -> pa.RecordBatchReader:
            connection.rollback()  # after a query that was refused
            if since is not None:
                cursor.execute("SELECT set_config('lookback.since', $1, false)", (since.text,))
                cursor.fetchall()
            cursor.execute(text)
            return cursor.fetch_record_batch()

        yield Connection(query, run, "CAST(current_setting('lookback.since') AS {})")


@contextlib.contextmanager
def _sqlite(query: Query) -> Iterator[Connection]:
    from adbc_driver_sqlite import dbapi

    address = f"file:{urllib.parse.quote(str(_file(query)))}?mode=ro"
    with dbapi.connect(address) as connection, connection.cursor() as cursor:

        def run(text: str, since: Since | None) -> pa.RecordBatchReader:
            cursor.adbc_statement.set_options(**{"adbc.sqlite.query.batch_rows": str(BATCH_ROWS)})
            cursor.execute(text, None if since is None else (since.value,))
            return cursor.fetch_record_batch()

        yield Connection(query, run, "?1", _is_typed=False)


@contextlib.contextmanager
def _duckdb(query: Query) -> Iterator[Connection]:
    import duckdb

    with duckdb.connect(_file(query), read_only=True) as connection:

        def run(text: str, since: Since | None) -> pa.RecordBatchReader:
            relation = connection.sql(text, params=None if since is None else {"since": since.text})
            if relation is None:
                raise ValueError("it gives no rows, expected a SELECT")
            return relation.to_arrow_reader(BATCH_ROWS)

        yield Connection(query, run, "CAST($since AS {})")


def _file(query: Query) -> Path:
    """File of a database that is to be there."""
    if not query.path.is_file():
        raise ValueError(f"there is no file {str(query.path)!r} (from {Path.cwd()})")
    return query.path
