"""Kills at random moments of whole commands: what follows ends in the same bytes, and nothing is left lying about.

Each of six commands is killed twenty times, started again after every kill, and begun anew whenever it ended before its kill.
"""

import random
import re
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import polars as pl
import pytest

from features import simulate
from features.simulation_settings import SimulationSettings
from pipeline.config import load_config
from pipeline.orchestration.graph import ALL
from pipeline.tracking.registry import Registry
from tests.system.test_erase import forget, holding
from tests.system.test_kill import contents, visible_artifacts_are_whole
from tests.workdir import TINY, Workdir, after, copy_of, in_one_file, with_database

pytestmark = pytest.mark.slow

KILLS = 20
MOST_SECONDS = 3.0
"""Latest kill after a start: what is finished stays, so that later moments come with later starts."""
LOGS = """
[events]
path = "logs"
columns = { user_id = "user_id", item_id = "item_id", timestamp = "timestamp", event_type = "event_type" }
timestamp_unit = "iso"
types = { view = 1.0, like = 1.5, purchase = 2.0 }
"""
SETTINGS = TINY[TINY.index("[history]") :].replace("epochs = 3", "epochs = 1")
CHAMPION = ("--set", "score.model=champion")
NIGHTLY = ("run", "ingest", "features", "monitor", "score", *CHAMPION)
JUDGED = ("--set", "evaluate.gate=true", "--set", "train.full_every_days=0")
"""Settings of updates that wait beside the champion."""
REST = re.compile(r"^\.(building|old|downloading|temporary)|\.part$")
"""Names of unfinished files and folders."""


@dataclass(frozen=True)
class Nights:
    """Folder in which every stage has run on a log, and the file of the next two days."""

    folder: Path
    next_days: Path

    def copy(self, folder: Path, *, with_next_days: bool = False) -> Workdir:
        """Copy of the folder in an empty place."""
        shutil.rmtree(folder, ignore_errors=True)
        copied = copy_of(self.folder, folder)
        if with_next_days:
            shutil.copyfile(self.next_days, folder / "logs" / "day-2.csv")
        return copied


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Nights:
    """Every stage has run, and two further scorings, which `prune --keep 1` removes."""
    folder = tmp_path_factory.mktemp("campaign")
    (folder / "logs").mkdir()
    with_database(folder, empty_database)
    (folder / "tiny.toml").write_text(f'name = "tiny"\n{LOGS}{SETTINGS}')
    settings = SimulationSettings(num_users=150, num_items=100, num_events=4000)
    events = simulate.simulate(settings, 0).events.select("user_id", "item_id", "timestamp", "event_type")
    later = events["timestamp"] >= simulate.FIRST_DAY + timedelta(days=settings.num_days - 2)
    events.filter(~later).write_csv(folder / "logs" / "day-1.csv")
    next_days = tmp_path_factory.mktemp("next") / "day-2.csv"
    events.filter(later).write_csv(next_days)
    for k in (5, 6):
        Workdir(folder).run("all", "--set", f"score.k={k}")
    Workdir(folder).run("all")
    in_one_file(folder / "mlruns" / "mlflow.db")
    return Nights(folder, next_days)


def endure(
    start: Callable[[], Workdir], command: Sequence[str], check: Callable[[Workdir], None], code: int = 0
) -> None:
    """Kill a command at random moments, begin anew where it ended with its code, and check every end."""
    workdir, began = start(), time.monotonic()
    ended = workdir(*command)
    assert ended.code == code, ended.err
    seconds = min(time.monotonic() - began, MOST_SECONDS)
    check(workdir)
    drawn, kills, workdir, is_new = random.Random(command[1]), 0, start(), True
    while kills < KILLS:
        began = time.monotonic()
        ended = workdir.killed(after(drawn.uniform(0, seconds)), *command)
        visible_artifacts_are_whole(workdir.folder)
        if ended.code == -9:
            kills, is_new = kills + 1, False
            continue
        assert ended.code == code, ended.err
        if is_new:  # the machine has become faster since
            seconds = min(seconds, time.monotonic() - began)
        check(workdir)
        workdir, is_new = start(), True
    ended = workdir(*command)
    assert ended.code == code, ended.err
    check(workdir)


def no_rests(workdir: Workdir) -> None:
    """After `prune` nothing unfinished is left."""
    pruned = workdir("prune")
    assert pruned.code == 0, pruned.err
    places = (workdir.folder / "data", workdir.folder / "mlruns")
    rests = [path for place in places for path in place.rglob("*") if REST.search(path.name)]
    assert rests == []


def every_stage(workdir: Workdir) -> dict[str, dict[str, str]]:
    """Digests by stage and file, without drawings, since those have the seconds of the training."""
    return {
        stage: {
            name: digest
            for name, digest in contents(workdir.artifact(stage)).items()
            if name not in ("charts.json", "figures.html")
        }
        for stage in ALL
    }


def test_every_stage(nights: Nights, tmp_path: Path) -> None:
    expected = every_stage(Workdir(nights.folder))

    def start() -> Workdir:
        workdir = nights.copy(tmp_path / "copy")
        for stage in ALL:
            shutil.rmtree(workdir.folder / "data" / "tiny" / stage)
        return workdir

    def check(workdir: Workdir) -> None:
        assert every_stage(workdir) == expected
        no_rests(workdir)

    endure(start, ("run", "all"), check)


def test_a_night(nights: Nights, tmp_path: Path) -> None:
    """The lists of the night before are judged, and popularity is scored beside the new ones."""
    night = (*NIGHTLY, "--set", 'score.shadows=["popularity"]')
    reference = nights.copy(tmp_path / "reference", with_next_days=True)
    reference.run(*night[1:])
    stages = ("monitor", "score")
    expected = [contents(reference.artifact(stage, *night[5:])) for stage in stages]
    assert any(name.startswith("outcomes.parquet/") for name in expected[0])
    assert len(pl.read_parquet(reference.artifact("monitor", *night[5:]) / "outcomes.parquet"))
    assert any(name.startswith("shadows/popularity/") for name in expected[1])
    entered = ledger_of(reference)
    assert len(entered) == 5

    def check(workdir: Workdir) -> None:
        assert [contents(workdir.artifact(stage, *night[5:])) for stage in stages] == expected
        assert ledger_of(workdir) == entered
        no_rests(workdir)

    endure(lambda: nights.copy(tmp_path / "copy", with_next_days=True), night, check)


def test_an_update(nights: Nights, tmp_path: Path) -> None:
    """One version more, which waits; the champion is the one before, whenever the command was killed."""
    update = ("update", *JUDGED)
    candidate = (*JUDGED, "--set", "train.start=champion")
    lists = (*JUDGED, *CHAMPION, "--set", 'score.shadows=["challenger"]')
    before = versions_of(nights.copy(tmp_path / "before"))
    reference = nights.copy(tmp_path / "reference", with_next_days=True)
    ended = reference(*update)
    assert ended.code == 0, ended.err
    expected = [
        contents(reference.artifact("publish", *candidate)),
        contents(reference.artifact("score", *lists)),
    ]
    assert any(name.startswith("shadows/challenger/") for name in expected[1])
    entered, versions = ledger_of(reference), versions_of(reference)
    assert versions == [*before, (2, "challenger")]

    def start() -> Workdir:
        return nights.copy(tmp_path / "copy", with_next_days=True)

    def check(workdir: Workdir) -> None:
        assert versions_of(workdir) == versions
        own = [workdir.artifact("publish", *candidate), workdir.artifact("score", *lists)]
        assert [contents(folder) for folder in own] == expected
        assert ledger_of(workdir) == entered
        no_rests(workdir)

    endure(start, update, check)


def versions_of(workdir: Workdir) -> list[tuple[int, str]]:
    """Registered versions with their alias, oldest first."""
    uri = f"sqlite:///{workdir.folder}/mlruns/mlflow.db"
    registry, name = Registry(uri, load_config(workdir.folder / workdir.config)), "lookback-tiny"
    champion, challenger = registry.champion(name), registry.challenger(name)
    aliases = {
        each.version: alias for each, alias in ((challenger, "challenger"), (champion, "champion")) if each
    }
    return sorted((each.version, aliases.get(each.version, "")) for each in registry.versions(name))


def ledger_of(workdir: Workdir) -> list[tuple[object, ...]]:
    """Deliveries, without the times at which they were made."""
    table = pl.read_parquet(workdir.folder / "data" / "tiny" / "score" / "deliveries.parquet")
    return table.drop("delivered_utc").rows()


def test_publication(nights: Nights, tmp_path: Path) -> None:
    expected = contents(Workdir(nights.folder).artifact("publish"))

    def check(workdir: Workdir) -> None:
        assert contents(workdir.artifact("publish")) == expected
        workdir.run(*NIGHTLY[1:])
        no_rests(workdir)

    endure(lambda: nights.copy(tmp_path / "copy"), ("run", "publish", "--force"), check)


def test_pruning(nights: Nights, tmp_path: Path) -> None:
    def check(workdir: Workdir) -> None:
        assert all(stage["up_to_date"] for stage in workdir.run("all")["stages"])
        scorings = (workdir.folder / "data" / "tiny" / "score").glob("*/manifest.json")
        assert len({path.resolve() for path in scorings}) == 1
        no_rests(workdir)

    endure(lambda: nights.copy(tmp_path / "copy"), ("prune", "--keep", "1"), check)


def test_erasure(nights: Nights, tmp_path: Path) -> None:
    """The champion holds the user and is named; everything else is gone, and the series keeps the other users.

    What a night's update made goes too, and no further update starts from the champion.
    """
    judged = nights.copy(tmp_path / "judged", with_next_days=True)
    ended = judged("update", *JUDGED)
    assert ended.code == 0, ended.err
    outcomes = pl.read_parquet(judged.artifact("monitor") / "outcomes.parquet")
    user = outcomes["user_id"][0]
    setting = forget(judged.folder, user).replace(str(judged.folder), ".")
    judged.run("monitor", "--set", setting)
    in_one_file(judged.folder / "mlruns" / "mlflow.db")

    def check(workdir: Workdir) -> None:
        assert not list(holding(workdir.folder / "data", user))
        left = pl.read_parquet(workdir.artifact("monitor", "--set", setting) / "outcomes.parquet")
        assert left.equals(outcomes.filter(pl.col("user_id") != user))
        assert versions_of(workdir) == [(1, "champion")]
        no_rests(workdir)

    prepared = Nights(judged.folder, nights.next_days)
    assert versions_of(judged) == [(1, "champion"), (2, "challenger")]
    endure(lambda: prepared.copy(tmp_path / "copy"), ("prune", "--excluded", "--set", setting), check, code=1)
    erased = Workdir(tmp_path / "copy")
    ended = erased("update", *JUDGED, "--set", setting)
    assert ended.code == 0, ended.err
    assert (
        "trained from scratch: models:/lookback-tiny/1 has learned from users of events.exclude_users"
        in ended.out
    )
    assert not list(holding(erased.artifact("publish", *JUDGED, "--set", setting), user))
