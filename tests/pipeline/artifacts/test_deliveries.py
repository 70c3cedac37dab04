"""A log from a database: each read that gives new rows is one file; nothing twice, nothing lost, no password anywhere."""

import contextlib
import sqlite3
import sys
import urllib.parse
from pathlib import Path

import duckdb
import polars as pl
import pytest
from adbc_driver_postgresql import dbapi

from pipeline.__main__ import cli
from pipeline.artifacts import deliveries
from pipeline.artifacts.files import files_below
from pipeline.commands import erase
from pipeline.commands.leftovers import leftovers
from pipeline.config import Config, load_config
from pipeline.errors import ConfigError, LookbackError
from pipeline.orchestration.graph import resolve
from pipeline.orchestration.runner import read_databases
from tests.postgresql_server import SECRET

NEW = "SELECT u, i, t FROM log WHERE t > :since ORDER BY t, u"
DAY_1 = [("ann", "x", "2026-01-01 08:00:00"), ("bob", "y", "2026-01-01 09:00:00.000001")]
DAY_2 = [("bob", "x", "2026-01-02 08:00:00"), ("cat", "z", "2026-01-02 09:00:00")]
SAME_TIME = [("cat", "y", DAY_1[1][2]), DAY_1[1]]


class Database:
    """A database with a table `log`."""

    def __init__(self, address: str, kind: str = "TIMESTAMP") -> None:
        self.address = address
        self.execute("DROP TABLE IF EXISTS log")
        self.execute(f"CREATE TABLE log (u TEXT, i TEXT, t {kind})")

    def execute(self, statement: str) -> None:
        place = self.address.partition(":///")[2]
        if self.address.startswith("sqlite"):
            with contextlib.closing(sqlite3.connect(place)) as connection, connection:
                connection.execute(statement)
        elif self.address.startswith("duckdb"):
            with duckdb.connect(place) as file:
                file.execute(statement)
        else:
            with dbapi.connect(self.address, autocommit=True) as server, server.cursor() as cursor:
                cursor.execute(statement)

    def insert(self, rows: list[tuple[str, str, str]]) -> None:
        self.execute("INSERT INTO log VALUES " + ", ".join(map(repr, rows)))


class Log:
    """A configuration over a database, and what it reads."""

    def __init__(self, folder: Path, database: Database) -> None:
        self.folder, self.database, self.form = folder, database, "iso"

    def config(self, query: str = NEW, further: str = "", address: str = "") -> Config:
        text = f'name = "log"\ndata_dir = "{self.folder}/data"\n[tracking]\nenabled = false\n[events]\n'
        text += f'database = "{address or self.database.address}"\nquery = "{query}"\ntimestamp_unit = "{self.form}"\n'
        text += f'columns = {{ user_id = "u", item_id = "i", timestamp = "t" }}\n{further}'
        (self.folder / "log.toml").write_text(text)
        return load_config(self.folder / "log.toml")

    def read(self, query: str = NEW, further: str = "", *, force: bool = False) -> list[int]:
        """Number of rows of each delivery that counts, after a read."""
        read_databases(self.config(query, further), ["ingest"], force=force)
        return [len(frame) for frame in self.frames(query, further)]

    def frames(self, query: str = NEW, further: str = "") -> list[pl.DataFrame]:
        return [pl.read_parquet(path) for path in deliveries.digests(self.config(query, further), "events")]

    def events(self, query: str = NEW, further: str = "") -> list[tuple[str, str]]:
        self.config(query, further)
        command = ["run", "ingest", "--config", str(self.folder / "log.toml")]
        cli.main(command, standalone_mode=False)
        files = (self.folder / "data" / "log" / "ingest" / "latest" / "events").glob("*.parquet")
        events = pl.concat([pl.read_parquet(file) for file in files])
        return sorted(events.select("user_id", "item_id").rows())


@pytest.fixture(params=["sqlite", "duckdb", "postgresql", "postgresql with zone"])
def log(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Log:
    """A log of one day in each kind of database."""
    address = f"{request.param}:///{tmp_path}/log.{request.param}"
    if request.param.startswith("postgresql"):
        monkeypatch.setenv("PGPASSWORD", SECRET)
        address = request.getfixturevalue("postgresql")
    database = Database(address, "TIMESTAMPTZ" if "zone" in request.param else "TIMESTAMP")
    database.insert(DAY_1)
    return Log(tmp_path, database)


@pytest.fixture
def sqlite(tmp_path: Path) -> Log:
    """The same in SQLite alone."""
    log = Log(tmp_path, Database(f"sqlite:///{tmp_path}/log.db", "TEXT"))
    log.database.insert(DAY_1)
    return log


# --- reading ---


def test_each_read_with_new_rows_is_one_delivery(log: Log, capsys: pytest.CaptureFixture[str]) -> None:
    assert log.read() == [2]
    assert log.read() == [2], "nothing new"
    log.database.insert(DAY_2)
    assert log.read() == [2, 2]
    assert log.read() == [2, 2]
    assert log.events() == [("ann", "x"), ("bob", "x"), ("bob", "y"), ("cat", "z")]
    capsys.readouterr()
    log.events()
    assert "is up to date" in capsys.readouterr().out


def test_rows_of_the_newest_time_are_neither_lost_nor_doubled(log: Log) -> None:
    assert log.read() == [2]
    log.database.insert(SAME_TIME)  # another row, and a true repeat of one that is there
    assert log.read() == [2, 2]
    assert log.read() == [2, 2]
    users = [frame["u"].to_list() for frame in log.frames()]
    assert users == [["ann", "bob"], ["bob", "cat"]]


def test_a_window_of_ones_own_finds_late_rows_once(log: Log) -> None:
    is_sqlite = log.database.address.startswith("sqlite")
    earlier = "datetime(:since, '-1 day')" if is_sqlite else ":since - INTERVAL '1 day'"
    query = f"SELECT * FROM log WHERE t > {earlier}"
    assert log.read(query) == [2]
    log.database.insert([("late", "x", "2026-01-01 07:00:00")])
    assert log.read(query) == [2, 1]
    assert log.read(query) == [2, 1]


def test_the_order_of_the_query_is_kept(sqlite: Log) -> None:
    query = "SELECT u, i, t FROM log WHERE t > :since ORDER BY u DESC"
    sqlite.read(query)
    (frame,) = sqlite.frames(query)
    assert frame["u"].to_list() == ["bob", "ann"]


def test_a_time_far_ahead_does_not_end_the_reading(sqlite: Log) -> None:
    sqlite.database.insert([("dora", "x", "2999-01-01 00:00:00")])
    assert sqlite.read() == [3]
    sqlite.database.insert(DAY_2)
    assert sqlite.read() == [3, 2]
    assert sqlite.read() == [3, 2]


def test_integers_are_times_too(tmp_path: Path) -> None:
    log = Log(tmp_path, Database(f"sqlite:///{tmp_path}/log.db", "INTEGER"))
    log.form = "s"
    log.database.execute("INSERT INTO log VALUES ('ann', 'x', 1600000000), ('bob', 'y', 1600000001)")
    assert log.read() == [2]
    log.database.execute("INSERT INTO log VALUES ('cat', 'x', 1600000001)")
    assert log.read() == [2, 1]


def test_text_that_does_not_sort_by_time_is_refused(sqlite: Log) -> None:
    sqlite.database.execute("DELETE FROM log")
    sqlite.database.insert([("ann", "x", "02.01.2026"), ("bob", "y", "01.02.2026")])
    sqlite.form = "%d.%m.%Y"
    with pytest.raises(LookbackError, match="text whose order is not that of the times"):
        sqlite.read()


def test_another_query_or_force_reads_everything_anew(sqlite: Log) -> None:
    sqlite.read()
    sqlite.database.insert(DAY_2)
    assert sqlite.read() == [2, 2]
    assert sqlite.read("SELECT u, i, t FROM log WHERE t > :since AND i = 'x'") == [2]
    assert sqlite.read() == [2, 2], "back to the earlier query, nothing is read twice"
    assert sqlite.read(force=True) == [4]
    stale = leftovers(sqlite.config())
    assert [path.name for path in stale] == ["000001.parquet", "000002.parquet"]


def test_without_since_the_rows_as_they_are_now_count(sqlite: Log) -> None:
    query = "SELECT * FROM log ORDER BY t"
    assert sqlite.read(query) == [2]
    before = deliveries.digests(sqlite.config(query), "events")
    assert sqlite.read(query) == [2]
    assert deliveries.digests(sqlite.config(query), "events") == before
    sqlite.database.insert(DAY_2)
    assert sqlite.read(query) == [4]
    sqlite.database.execute("DELETE FROM log")
    with pytest.raises(LookbackError, match=r"events\.query: .* gave no rows"):
        sqlite.read(query)
    assert len(deliveries.digests(sqlite.config(query), "events")) == 1, "what is there stays"


def test_since_within_quotes_comments_and_casts_is_no_placeholder(sqlite: Log) -> None:
    query = "SELECT u, i, t FROM log WHERE u <> ':since' AND t > :since /* :since */ -- :since"
    assert sqlite.read(query) == [2]
    assert sqlite.read(query) == [2]
    assert sqlite.read(query.replace("t > :since", "t > ''")) == [2]


def test_types_of_a_server_are_read(postgresql: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD", SECRET)
    log = Log(tmp_path, Database(postgresql, "TIMESTAMPTZ"))
    log.database.insert(DAY_1)
    query = (
        "SELECT md5(u)::uuid AS u, i::varchar(9) AS i, t, 2.5::numeric AS v, jsonb_build_object('a', 1) AS j, "
        "ARRAY[1, 2] AS a FROM log WHERE t > :since"
    )
    log.read(query)
    (frame,) = log.frames(query)
    row = frame.sort("t").row(0, named=True)
    assert str(row["u"]) == "7e0d7f8a-5d96-c24f-fcc8-40f31bce72b2"
    assert (row["v"], row["j"], row["a"], row["t"].isoformat()) == (
        *("2.5", '{"a": 1}', [1, 2]),
        "2026-01-01T07:00:00+00:00",
    )
    with pytest.raises(LookbackError, match=r"column of the time is .*numeric.*CAST"):
        log.read("SELECT u, i, extract(epoch FROM t) AS t FROM log WHERE extract(epoch FROM t) > :since")


def test_items_and_users_are_read_whole(sqlite: Log) -> None:
    sqlite.database.execute("CREATE TABLE goods (id TEXT, name TEXT)")
    sqlite.database.execute("INSERT INTO goods VALUES ('x', 'ex'), ('y', 'why')")
    columns = 'columns = { item_id = "id", title = "name" }'
    items = f'[items]\ndatabase = "{sqlite.database.address}"\nquery = "SELECT * FROM goods ORDER BY id"\n{columns}\n'
    sqlite.events(further=items)
    (path,) = resolve(sqlite.config(further=items), ["ingest"]).sources["items"]
    assert pl.read_parquet(path)["name"].to_list() == ["ex", "why"]
    with pytest.raises(ConfigError, match=r"items\.query: received :since"):
        sqlite.read(further=items.replace("goods", "goods WHERE id > :since"))


# --- erasing ---


def test_erased_users_are_in_no_delivery_and_nothing_is_built_again(sqlite: Log) -> None:
    pl.DataFrame({"user_id": ["ann"]}).write_parquet(sqlite.folder / "forget.parquet")
    key = f'exclude_users = "{sqlite.folder}/forget.parquet"\n'
    key += f'[exposures]\ndatabase = "{sqlite.database.address}"\nquery = "SELECT u, i, t FROM log"\n'
    key += 'columns = { user_id = "u", item_id = "i", timestamp = "t" }\n'
    old = "SELECT * FROM log"
    sqlite.read(old)
    sqlite.database.insert(DAY_2)
    before = sqlite.events(further=key)
    fingerprint = resolve(sqlite.config(further=key), ["ingest"]).nodes["ingest"].artifact.name
    erase.prune_excluded(sqlite.config(further=key), dry_run=False)
    folder = sqlite.folder / "data"
    assert not [path for path in files_below(folder) if b"ann" in path.read_bytes()]
    assert b"bob" in b"".join(path.read_bytes() for path in files_below(folder))
    assert resolve(sqlite.config(further=key), ["ingest"]).nodes["ingest"].artifact.name == fingerprint
    sqlite.database.insert([("ann", "y", "2026-01-03 08:00:00"), ("bob", "z", "2026-01-03 09:00:00")])
    assert sqlite.events(further=key) == sorted([*before, ("bob", "z")])
    assert not [path for path in files_below(folder) if b"ann" in path.read_bytes()]


# --- messages and secrets ---


def test_errors_are_one_message_and_nothing_is_kept(sqlite: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    for query, expected in (
        ("SELEC 1", r"events\.query: sqlite:///.* refuses the query: .*syntax error"),
        ("SELECT nope FROM log", r"events\.query: .* no such column: nope"),
        ("SELECT u, i FROM log", r"events\.columns\.timestamp: received 't', but events\.query has 2 column"),
        ("SELECT * FROM log WHERE u = 'nobody'", r"events\.query: .* gave no rows, expected some"),
    ):
        with pytest.raises(LookbackError, match=expected):
            sqlite.read(query)
    with pytest.raises(LookbackError, match=r"nothing has been read .* lookback run ingest"):
        resolve(sqlite.config(), ["ingest"])
    with pytest.raises(LookbackError, match=r"events\.database: .* there is no file 'nowhere\.db'"):
        read_databases(sqlite.config(address="sqlite:///nowhere.db"), ["ingest"], force=False)
    monkeypatch.setitem(sys.modules, "adbc_driver_sqlite", None)
    with pytest.raises(LookbackError, match=r'not installed .*: pip install "lookback\[database\]"'):
        sqlite.read()
    assert not list((sqlite.folder / "data").rglob("*.parquet*"))


def test_a_database_needs_a_query_and_no_path(sqlite: Log) -> None:
    for further, expected in (
        ('path = "log"', r"events\.path: received 'log', expected none beside database"),
        ('format = "csv"', r"events\.format: received 'csv', expected none"),
    ):
        with pytest.raises(ConfigError, match=expected):
            sqlite.config(further=further)
    with pytest.raises(ConfigError, match=r"events\.database: .* begins with postgresql://"):
        sqlite.config(address="mysql://host/name")
    with pytest.raises(ConfigError, match=r"events\.query: received '', expected a SELECT"):
        sqlite.config(query="")


def test_a_password_is_used_and_written_nowhere(
    postgresql: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PGPASSWORD", SECRET)
    log = Log(tmp_path, Database(postgresql, "TIMESTAMPTZ"))
    log.database.insert(DAY_1)
    monkeypatch.delenv("PGPASSWORD")
    quoted = urllib.parse.quote(SECRET, safe="")
    (tmp_path / "mlruns").mkdir()
    monkeypatch.chdir(tmp_path)
    addresses = {spelling: postgresql.replace("shop@", f"shop:{spelling}@") for spelling in (SECRET, quoted)}
    for spelling, address in addresses.items():
        log.database.address = address
        assert len(log.events()) == 2, spelling
    log.database.address = addresses[SECRET].replace("h7W", "xxx")
    with pytest.raises(
        LookbackError, match=r"events\.database: .*password authentication failed.*PGPASSWORD"
    ) as refused:
        log.read()
    log.database.address = f"postgresql://shop:{SECRET}@127.0.0.1:1/postgres"
    with pytest.raises(LookbackError, match=r"events\.database: .*Connection refused") as away:
        log.read()
    log.database.address = addresses[SECRET]
    with pytest.raises(LookbackError, match=r'events\.query: .*relation "nope" does not exist') as wrong:
        log.read("SELECT * FROM nope")
    (tmp_path / "log.toml").unlink()
    texts = [str(refused.value), str(away.value), str(wrong.value), *capfd.readouterr()]
    kept = b"".join(path.read_bytes() for path in files_below(tmp_path))
    for spelling in (SECRET, quoted, "zPl"):
        assert spelling.encode() not in kept
        assert not [text for text in texts if spelling in text]
