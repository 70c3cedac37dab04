"""Small pipeline for tests: simulated log, real command line, real tracking database."""

import contextlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import pytest

from tests import warm_commands

ROOT = Path(__file__).resolve().parents[1]
TINY = """
name = "tiny"
[simulate]
num_users = 150
num_items = 100
num_events = 4000
[events]
path = "{data_dir}/{name}/raw/events.csv"
columns = { user_id = "user_id", item_id = "item_id", timestamp = "timestamp", event_type = "event_type" }
timestamp_unit = "iso"
types = { view = 1.0, like = 1.5, purchase = 2.0 }
[items]
path = "{data_dir}/{name}/raw/items.csv"
columns = { item_id = "item_id", title = "title", categories = "categories" }
[history]
max_length = 20
[model]
dim = 16
[train]
epochs = 3
patience = 2
precision = "fp32"
compile = "off"
[evaluate]
resamples = 100
baselines = ["popularity", "recent_popularity", "co_visitation", "item_knn"]
gate = false
[publish]
system = "lookback"
[ranker]
candidates = 20
max_length = 10
epochs = 2
[score]
exclude_seen = true
shard_users = 40
batch_users = 16
"""


@dataclass(frozen=True)
class Result:
    """Exit code and output of a command."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The JSON object on the last line of stdout."""
        return json.loads(self.out.splitlines()[-1])


@dataclass(frozen=True)
class Workdir:
    """Working directory with a configuration, in which the command line runs."""

    folder: Path
    config: str = "tiny.toml"

    def command(self, *arguments: str) -> list[str]:
        """Command line as a list."""
        return [sys.executable, "-m", "pipeline", *arguments]

    def environment(self) -> dict[str, str]:
        """Environment of a command: this checkout, one thread, no outside tracking server."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW")}
        return kept | warm_commands.OURS

    def __call__(self, *arguments: str, config: bool = True) -> Result:
        """Run `lookback ARGUMENTS --config …`, forked from a process with the imports done."""
        words = (*arguments, *(("--config", self.config) if config else ()))
        environment = self.environment()
        server = warm_commands.server()
        if not server.fits(environment):
            return self.fresh(*words, config=False)
        ended = server.run("pipeline", words, self.folder, environment)
        assert "Traceback" not in ended.err, ended.err
        return Result(ended.code, ended.out, ended.err)

    def killed(self, at: Callable[[], bool], *arguments: str) -> Result:
        """Run `lookback ARGUMENTS --config …`, killed by SIGKILL as soon as a condition holds, unless it has ended (code -9)."""
        words = (*arguments, "--config", self.config)
        server = warm_commands.server()
        ended = server.run("pipeline", words, self.folder, self.environment(), kill_at=at)
        assert "Traceback" not in ended.err, ended.err
        return Result(ended.code, ended.out, ended.err)

    def fresh(self, *arguments: str, config: bool = True) -> Result:
        """Run the command in a new interpreter."""
        words = self.command(*arguments, *(("--config", self.config) if config else ()))
        done = subprocess.run(
            words, cwd=self.folder, env=self.environment(), capture_output=True, text=True, check=False
        )
        assert "Traceback" not in done.stderr, done.stderr
        return Result(done.returncode, done.stdout, done.stderr)

    def run(self, *arguments: str) -> Any:
        """Run `lookback run ARGUMENTS --json`; returns its summary."""
        result = self("run", *arguments, "--json")
        assert result.code == 0, result.err
        return result.json

    def artifact(self, stage: str, *settings: str) -> Path:
        """Folder printed by `lookback path`."""
        result = self("path", stage, *settings)
        assert result.code == 0, result.err
        return self.folder / result.out.splitlines()[-1]

    def manifest(self, stage: str) -> Any:
        """Manifest of a stage's up-to-date artifact."""
        return json.loads((self.artifact(stage) / "manifest.json").read_text())


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Folder filled by one xdist worker and read by all; the others wait."""
    base = factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, done = shared / f"shared-{name}", shared / f"shared-{name}.done"
    with filelock.FileLock(shared / f"shared-{name}.lock"):
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)  # left by a worker that failed
            folder.mkdir()
            make(folder)
            done.touch()
    return folder


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Empty tracking database to copy, because MLflow takes seconds to create one."""

    def make(folder: Path) -> None:
        path = folder / "mlflow.db"
        create = f"from pipeline.tracking.client import client_at; client_at('sqlite:///{path}')"
        subprocess.run([sys.executable, "-c", create], cwd=ROOT, check=True)
        in_one_file(path)

    return made_once(tmp_path_factory, "database", make) / "mlflow.db"


def in_one_file(path: Path) -> None:
    """Write a database's journal into its one file."""
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def with_database(folder: Path, database: Path) -> None:
    """Copy the empty database into a working directory."""
    (folder / "mlruns").mkdir()
    shutil.copyfile(database, folder / "mlruns" / "mlflow.db")


@pytest.fixture
def workdir(tmp_path: Path, empty_database: Path) -> Workdir:
    """Working directory with the tiny configuration, nothing run."""
    (tmp_path / "tiny.toml").write_text(TINY)
    with_database(tmp_path, empty_database)
    return Workdir(tmp_path)


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Path:
    """Folder in which every stage has run, only to be copied."""

    def make(folder: Path) -> None:
        (folder / "tiny.toml").write_text(TINY)
        with_database(folder, empty_database)
        Workdir(folder).run("all")
        in_one_file(folder / "mlruns" / "mlflow.db")

    return made_once(tmp_path_factory, "finished", make)


def after(seconds: float) -> Callable[[], bool]:
    """Condition that holds once so many seconds have passed."""
    moment = time.monotonic() + seconds
    return lambda: time.monotonic() >= moment


def copy_of(pristine: Path, folder: Path) -> Workdir:
    """Copy a working directory and rewrite the absolute paths in its tracking database and link files."""
    shutil.copytree(pristine, folder, symlinks=True, dirs_exist_ok=True)
    with contextlib.closing(sqlite3.connect(folder / "mlruns" / "mlflow.db")) as database, database:
        for (table,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            for _, column, kind, *_ in database.execute(f"PRAGMA table_info({table})").fetchall():
                if kind.startswith(("VARCHAR", "TEXT")):
                    database.execute(
                        f"UPDATE {table} SET {column} = replace({column}, ?, ?) WHERE instr({column}, ?)",
                        (str(pristine), str(folder), str(pristine)),
                    )
    for path in (*(folder / "data").rglob("*.json"), *(folder / "mlruns").rglob("MLmodel")):
        text = path.read_text()
        if str(pristine) in text:
            path.write_text(text.replace(str(pristine), str(folder)))
    return Workdir(folder)


@pytest.fixture(scope="session")
def finished(pristine: Path, tmp_path_factory: pytest.TempPathFactory) -> Workdir:
    """Working directory in which every stage has run; read-only for tests."""
    return copy_of(pristine, tmp_path_factory.mktemp("finished"))


@pytest.fixture
def copied(pristine: Path, tmp_path: Path) -> Workdir:
    """Copy of the finished working directory that a test may change."""
    return copy_of(pristine, tmp_path / "copy")


@pytest.fixture
def log_workdir(tmp_path: Path, empty_database: Path) -> Callable[[str, str], Workdir]:
    """Make a working directory from a csv text (user_id, item_id, timestamp) and further TOML."""
    with_database(tmp_path, empty_database)

    def make(text: str, settings: str = "") -> Workdir:
        (tmp_path / "log.csv").write_text(text)
        columns = '{ user_id = "user_id", item_id = "item_id", timestamp = "timestamp" }'
        (tmp_path / "tiny.toml").write_text(
            f'name = "tiny"\n[events]\npath = "log.csv"\ncolumns = {columns}\n{settings}'
        )
        return Workdir(tmp_path)

    return make
