"""Lists in a table of PostgreSQL and SQLite: the old rows or the new ones, whole; once; no password in a message."""

import contextlib
import datetime
import os
import sqlite3
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from adbc_driver_postgresql import dbapi

from pipeline.deliver_section import DeliverConfig
from pipeline.errors import LookbackError
from pipeline.release import list_table
from pipeline.release.list_table import Lists, write
from tests.postgresql_server import SECRET

NIGHT = datetime.datetime(2026, 1, 1, 23, 30, tzinfo=datetime.UTC)
FIRST = [("ann", "x", 1, 0.5), ("ann", 'y"', 2, 0.25), ("bob", "x", 1, 0.125)]
SECOND = [("ann", "z", 1, 0.75), ("cat", "x", 1, 0.5)]
SHORT = "user_id, item_id, rank, score"


@dataclass
class Database:
    """A database, and a folder for shards."""

    address: str
    folder: Path

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """Execute SQL; returns its rows."""
        if self.address.startswith("sqlite"):
            with contextlib.closing(sqlite3.connect(self.address.partition(":///")[2])) as file, file:
                return file.execute(sql).fetchall()
        with dbapi.connect(self.address, autocommit=True) as server, server.cursor() as cursor:
            cursor.execute(sql)
            return cursor.fetchall() if cursor.description else []

    def lists(self, name: str, rows: list[tuple[str, str, int, float]]) -> Lists:
        """Lists of two shards, with a reason for each recommendation."""
        columns = ("user_id", "item_id", "rank", "score")
        table = pl.DataFrame(rows, schema=columns, orient="row").with_columns(
            pl.col("rank").cast(pl.Int32),
            pl.col("score").cast(pl.Float32),
            because=pl.concat_list(pl.struct(item_id=pl.col("item_id"), weight=pl.lit(0.5, pl.Float32))),
        )
        shards = [self.folder / f"{name}-{number}.parquet" for number in range(2)]
        for shard, part in zip(shards, (table.head(1), table.slice(1)), strict=True):
            part.write_parquet(shard)
        moment = pl.lit(NIGHT).cast(pl.Datetime("us", "UTC"))
        return Lists(shards, name, {"log_time": moment, "model_version": pl.lit(3, pl.Int32)})

    def write(self, name: str, rows: list[tuple[str, str, int, float]], mode: Any = "replace") -> int | None:
        settings = DeliverConfig(database=self.address, table="recommended", mode=mode)
        return write(settings, self.lists(name, rows))

    def content(self) -> list[tuple[Any, ...]]:
        return sorted(self.rows(f"SELECT {SHORT} FROM recommended"))


@pytest.fixture(params=["sqlite", "postgresql"])
def database(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Database]:
    monkeypatch.setattr(list_table, "BATCH_ROWS", 1)
    if request.param == "sqlite":
        yield Database(f"sqlite:///{tmp_path}/shop.db", tmp_path)
        return
    monkeypatch.setenv("PGPASSWORD", SECRET)
    server = Database(request.getfixturevalue("postgresql"), tmp_path)
    yield server
    server.rows("DROP TABLE IF EXISTS recommended")


@pytest.fixture
def sqlite(tmp_path: Path) -> Database:
    return Database(f"sqlite:///{tmp_path}/shop.db", tmp_path)


def test_replaced_lists_are_the_newest_ones_alone(database: Database) -> None:
    assert database.write("a", FIRST) == 3
    assert database.content() == sorted(FIRST)
    assert database.write("b", SECOND) == 2
    assert database.write("b", SECOND) is None, "the table has them"
    assert database.content() == sorted(SECOND)
    assert database.write("a", FIRST) == 3, "back to earlier lists"
    assert database.content() == sorted(FIRST)


def test_appended_lists_stand_beside_the_earlier_ones_once(database: Database) -> None:
    written = [database.write(name, rows, "append") for name, rows in (("a", FIRST), ("b", SECOND))]
    assert written == [3, 2]
    assert database.write("a", FIRST, "append") is None
    assert database.content() == sorted([*FIRST, *SECOND])
    counts = "SELECT delivery, count(*) FROM recommended GROUP BY delivery ORDER BY delivery"
    assert database.rows(counts) == [("a", 3), ("b", 2)]
    assert database.write("b", SECOND, "replace") == 2, "all other rows go"
    assert database.content() == sorted(SECOND)


def test_reasons_are_json_and_facts_have_their_types(database: Database) -> None:
    database.write("a", FIRST)
    one = "SELECT because, log_time, model_version, delivery FROM recommended WHERE rank = 2"
    ((because, moment, version, delivery),) = database.rows(one)
    assert because == '[{"item_id":"y\\"","weight":0.5}]'
    assert (version, delivery) == (3, "a")
    if not isinstance(moment, datetime.datetime):
        moment = datetime.datetime.fromisoformat(moment).replace(tzinfo=datetime.UTC)
    assert moment == NIGHT


def test_a_table_of_ones_own_keeps_its_types_indices_and_further_columns(database: Database) -> None:
    database.rows(
        "CREATE TABLE recommended (note TEXT DEFAULT 'own', rank BIGINT, item_id VARCHAR(9), user_id TEXT, score FLOAT, "
        "because TEXT, log_time TIMESTAMP, model_version BIGINT, delivery TEXT, PRIMARY KEY (user_id, rank))"
    )
    database.write("a", FIRST)
    database.write("b", SECOND)
    assert database.content() == sorted(SECOND)
    assert database.rows("SELECT DISTINCT note FROM recommended") == [("own",)]
    with pytest.raises(
        ValueError, match=r"deliver\.table: .* does not take the lists into 'recommended': .*(?i:unique)"
    ):
        database.write("c", [*SECOND, SECOND[0]])
    assert database.content() == sorted(SECOND), "the table is as it was"


def test_a_delivery_that_breaks_off_leaves_the_table_whole(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    database.write("a", FIRST)
    rows = Lists.batches

    def broken(lists: Lists, counted: list[int]) -> Iterator[pa.RecordBatch]:
        yield next(rows(lists, counted))
        raise OSError("the disk went away")

    monkeypatch.setattr(Lists, "batches", broken)
    with pytest.raises(ValueError, match=r"the disk went away.*; the table is as it was"):
        database.write("b", SECOND)
    assert database.content() == sorted(FIRST)
    monkeypatch.setattr(Lists, "batches", rows)
    assert database.write("b", SECOND) == 2


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["replace", "append"])
def test_a_delivery_that_is_killed_leaves_the_table_whole(database: Database, mode: str) -> None:
    """Killed between the change of the table and the commit; the next delivery writes everything once."""
    database.write("a", FIRST, mode)
    database.lists("b", SECOND)
    told = database.folder / "told"
    program = f"""
import pathlib, time
from tests.pipeline.release.test_list_table import SECOND, Database, list_table
insert = list_table._Table._execute
def stopped(table, sql, *parameters, **names):
    insert(table, sql, *parameters, **names)
    if sql == list_table._INSERT:
        pathlib.Path({str(told)!r}).touch()
        time.sleep(600)
list_table._Table._execute = stopped
Database({database.address!r}, pathlib.Path({str(database.folder)!r})).write("b", SECOND, {mode!r})
"""
    process = subprocess.Popen([sys.executable, "-c", program], cwd=Path(__file__).resolve().parents[3])
    try:
        for _ in range(600):
            if told.exists() or process.poll() is not None:
                break
            time.sleep(0.1)
    finally:
        process.kill()
        process.wait()
    assert told.exists()
    assert database.content() == sorted(FIRST)
    assert database.write("b", SECOND, mode) == 2
    assert database.content() == sorted([*FIRST, *SECOND] if mode == "append" else SECOND)


def test_a_table_without_a_column_is_refused(database: Database) -> None:
    database.rows(
        "CREATE TABLE recommended (user_id TEXT, item_id TEXT, rank INTEGER, score FLOAT, because TEXT)"
    )
    wanted = r"'recommended' of .* has no column log_time, model_version, delivery; expected user_id, .*: add what is missing"
    for mode in ("replace", "append"):
        with pytest.raises(LookbackError, match=wanted):
            database.write("a", FIRST, mode)
    assert database.content() == []


def test_what_is_no_database_or_has_no_driver_is_one_message(
    sqlite: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    (sqlite.folder / "shop.db").write_text("no database at all" * 100)
    with pytest.raises(ValueError, match=r"deliver\.\w+: sqlite:///.*not a database"):
        sqlite.write("a", FIRST)
    away = Database(f"sqlite:///{sqlite.folder}/nowhere/shop.db", sqlite.folder)
    with pytest.raises(ValueError, match=r"deliver\.database: .* cannot be opened: .*check the path"):
        away.write("a", FIRST)
    monkeypatch.setitem(sys.modules, "adbc_driver_sqlite", None)
    with pytest.raises(
        ValueError, match=r'deliver\.database: .*not installed .*: pip install "lookback\[database\]"'
    ):
        sqlite.write("a", FIRST)


def test_a_password_of_the_address_is_in_no_message(postgresql: str, tmp_path: Path) -> None:
    assert "PGPASSWORD" not in os.environ
    quoted = urllib.parse.quote(SECRET, safe="")
    server = Database(postgresql.replace("shop@", f"shop:{SECRET}@"), tmp_path)
    lists = server.lists("a", FIRST)
    messages = []
    for address, table, reason in (
        (server.address, "nowhere.recommended", 'schema "nowhere" does not exist'),
        (server.address.replace("shop:h7W", "shop:xxx"), "recommended", "password authentication failed"),
        (f"postgresql://shop:{quoted}@127.0.0.1:1/shop", "recommended", "Connection refused"),
    ):
        with pytest.raises(ValueError, match=reason) as refused:
            write(DeliverConfig(database=address, table=table), lists)
        messages.append(str(refused.value))
    assert "zPl" not in "".join(messages)
    assert all("shop:***@" in message for message in messages)
