"""`lookback deliver` and the end of a run: the live lists, once, and what to do where they cannot be delivered."""

import contextlib
import datetime
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipeline.artifacts.store import Artifact
from pipeline.commands.deliver import deliver
from pipeline.config import Config, load_config
from pipeline.errors import ConfigError, DamagedArtifact, LookbackError
from tests.workdir import Workdir

Row = tuple[int, int, int]


@dataclass
class Shop:
    """A folder with fabricated lists."""

    folder: Path

    def config(self, *overrides: str) -> Config:
        (self.folder / "shop.toml").write_text(
            f'name = "shop"\ndata_dir = "{self.folder}/data"\n[events]\npath = "log.csv"\n'
            'columns = { user_id = "u", item_id = "i", timestamp = "t" }\n'
        )
        return load_config(self.folder / "shop.toml", overrides)

    def table(self, *more: str) -> Config:
        """Configuration with a table in SQLite."""
        return self.config(f"deliver.database=sqlite:///{self.folder}/shop.db", "deliver.table=recs", *more)

    def score(self, name: str, day: int, lists: Sequence[Row]) -> Artifact:
        """Lists (user, item, rank) made at the end of a day."""
        artifact = Artifact(self.folder / "data" / "shop" / "score", name * 16)
        (artifact.workspace / "recommendations").mkdir(parents=True)
        shard = artifact.workspace / "recommendations" / "part-00000.parquet"
        pl.DataFrame(lists, schema=["user_id", "item_id", "rank"], orient="row").write_parquet(shard)
        manifest = {
            "created_utc": f"2026-04-{day + 1:02}T02:00:00+00:00",
            "request_time": int(datetime.datetime(2026, 4, day, 23, 59, 59, tzinfo=datetime.UTC).timestamp())
            * 10**6,
            "settings": {"score.k": 3, "score.at": None},
            "inputs": {"features": "f"},
            "model_version": 1,
            "bundle_digest": "digest",
            "exclude_seen": False,
            "users": 2,
            "cold_users": 0,
            "short_lists": 0,
        }
        artifact.commit(manifest)
        return artifact

    def rows(self, columns: str = "user_id, item_id, rank") -> list[Any]:
        with contextlib.closing(sqlite3.connect(self.folder / "shop.db")) as file:
            return file.execute(f"SELECT DISTINCT {columns} FROM recs ORDER BY 1, 3").fetchall()


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


FIRST, SECOND = [(1, 7, 1), (1, 8, 2), (2, 7, 1)], [(1, 9, 1), (3, 7, 1)]


def test_the_live_lists_are_delivered_once(shop: Shop) -> None:
    shop.score("a", 1, FIRST).point_live()
    config = shop.table()
    assert deliver(config) == (
        "delivered: 3 rows, the lists of 2026-04-01T23:59, to table recs, in place of the earlier ones"
    )
    assert deliver(config) == "delivered: table recs has the lists of 2026-04-01T23:59 already"
    newer = shop.score("b", 2, SECOND)
    assert "already" in deliver(config), "the newer lists are not live"
    newer.point_live()
    assert deliver(config).startswith("delivered: 2 rows, the lists of 2026-04-02T23:59")
    assert shop.rows() == SECOND
    facts = ("2026-04-03T02:00:00.000000", "2026-04-02T23:59:59.000000", 1, "b" * 16)
    assert shop.rows("delivered_utc, log_time, model_version, delivery") == [facts]


def test_what_cannot_be_delivered_says_the_next_step(shop: Shop) -> None:
    config = shop.table()
    with pytest.raises(
        LookbackError, match=r"no live lists yet .*lookback run ingest features monitor score .*champion"
    ):
        deliver(config)
    lists = shop.score("a", 1, FIRST)
    lists.point_live()
    with pytest.raises(
        ConfigError, match=r"without \[deliver\], expected where to write the lists: database = "
    ):
        deliver(shop.config())
    (shop.folder / "shop.db").mkdir()
    with pytest.raises(
        LookbackError,
        match=r"deliver\.database: .*; the lists stay in .*; .*again: lookback deliver --config",
    ):
        deliver(config)
    (shop.folder / "shop.db").rmdir()
    part = lists.folder / "recommendations" / "part-00000.parquet"
    part.write_bytes(part.read_bytes()[:-1] + b"x")
    with pytest.raises(DamagedArtifact, match="part-00000"):
        deliver(config)
    assert not (shop.folder / "shop.db").exists(), "damaged lists open no database"


def test_only_a_known_database_and_a_plain_table_are_taken(shop: Shop) -> None:
    for settings, expected in (
        (
            ("deliver.database=mysql://u:pass@host/shop", "deliver.table=recs"),
            r"received 'mysql', expected .*postgresql://",
        ),
        (
            ("deliver.database=sqlite:///shop.db", "deliver.table=a;b"),
            r"deliver\.table: received 'a;b', expected a name of letters",
        ),
        (("deliver.database=sqlite:///shop.db", "deliver.table=a.b"), r"received 'a\.b'"),
        (
            ("deliver.database=sqlite:///shop.db", "deliver.table=recs", "deliver.mode=upsert"),
            r"deliver\.mode: .*expected .*replace.*append",
        ),
        (("deliver.table=recs",), r"deliver\.database is missing"),
    ):
        with pytest.raises(ConfigError, match=expected) as refused:
            shop.config(*settings)
        assert "pass@" not in str(refused.value)


@pytest.mark.slow
def test_a_run_delivers_where_its_lists_go_live(copied: Workdir) -> None:
    """A refused delivery is exit code 1, and the lists stay; the next run delivers; alerts come after it."""
    live = copied.folder / "data" / "tiny" / "score" / "live"
    settings = ("--set", "deliver.database=sqlite:///shop.db", "--set", "deliver.table=recs")
    (copied.folder / "shop.db").mkdir()
    refused = copied("run", "score", *settings)
    assert refused.code == 1
    assert refused.err.count("lookback: deliver.database: sqlite:///shop.db cannot be opened") == 1
    assert live.exists()
    (copied.folder / "shop.db").rmdir()
    done = copied("run", "score", *settings)
    assert done.code == 0, done.err
    number = copied.manifest("score")["rows_out"]
    assert f"delivered: {number:,} rows, the lists of " in done.out
    assert "already" in copied("deliver", *settings).out
    some = copied("run", "score", *settings, "--set", "score.users=2020-01-01", "--json")
    assert some.code == 0, some.err
    assert not some.json["is_live"]
    with contextlib.closing(sqlite3.connect(copied.folder / "shop.db")) as file:
        assert file.execute("SELECT count(*) FROM recs").fetchone() == (number,)
