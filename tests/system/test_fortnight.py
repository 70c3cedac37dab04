"""A fortnight by real commands: two trainings, a promotion, a refused challenger, an erasure, a killed night, a drift.

Every figure of the series, the alerts, the ledger and the report are worked out again by plain polars from the files of the log
and the lists that each night delivered.
"""

import datetime
import json
import math
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from features import simulate
from features.simulation_settings import SimulationSettings
from pipeline.monitoring.night_table import NightTable
from tests.system.test_nightly import SIMULATED, SMALL
from tests.workdir import ROOT, TINY, Workdir, with_database

NIGHTS, WARM_DAYS = 14, 60
TRAINED, BY_MAKE, ERASED, KILLED, DRIFTED = 5, 3, 9, 10, 12
"""Nights on which something happens; from DRIFTED on users have other tastes."""
DAY = 86_400_000_000
K = 10
NIGHT = ("ingest", "features", "monitor", "score", "--set", "score.model=champion")
KEPT = "log_time", "window_days", "system"

Lists = dict[tuple[int, str], pl.DataFrame]


@dataclass
class Fortnight:
    """The project, and what the test saw of each night."""

    workdir: Workdir
    events: pl.DataFrame
    command: tuple[str, ...] = ("run", *NIGHT)
    """Command of a night"""
    lists: dict[str, Lists] = field(default_factory=dict)
    """Folder of a delivery to its lists by (time of the log, system)"""
    judged: dict[tuple[int, float, str], pl.DataFrame] = field(default_factory=dict)
    """Lists that the series should have, by (time of the log, window, system)"""
    covered: dict[tuple[int, float, str], float] = field(default_factory=dict)
    """Their coverage of the items that the log had when they were judged"""
    alerts: dict[int, list[str]] = field(default_factory=dict)
    open: set[tuple[str, float]] = field(default_factory=set)
    """Deliveries and windows that are to be judged"""

    @property
    def score(self) -> Path:
        return self.workdir.folder / "data" / "tiny" / "score"

    def log(self, night: int) -> pl.DataFrame:
        """Events of the files up to a night, without excluded users: user_id, item_id, time in microseconds."""
        days = (pl.col("timestamp") - simulate.FIRST_DAY).dt.total_days()
        log = self.events.filter(days < WARM_DAYS + night)
        excluded = self.workdir.folder / "forget.parquet"
        if excluded.exists():
            log = log.join(pl.read_parquet(excluded), on="user_id", how="anti")
        return log.select("user_id", "item_id", time=pl.col("timestamp").dt.timestamp("us"))

    def show(self, night: int) -> None:
        """Write the file of a night."""
        days = (pl.col("timestamp") - simulate.FIRST_DAY).dt.total_days()
        chosen = days < WARM_DAYS if night == 0 else days == WARM_DAYS + night - 1
        self.events.filter(chosen).write_csv(self.workdir.folder / "logs" / f"day-{night:02}.csv")

    def expect(self, night: int) -> None:
        """Before a run of the monitor: windows that end within the log of a night are judged, if their lists are there."""
        log = self.log(night)
        end = int(log["time"].max()) + 1_000_000  # type: ignore[arg-type]
        for folder, days in sorted(self.open, key=lambda each: self.ledger().index(each[0])):
            (moment, *_), *_ = self.lists[folder]
            if moment + 1 + days * DAY > end:
                continue
            self.open.remove((folder, days))
            if not (self.score / folder / "_SUCCESS").exists():
                continue
            for (_, system), lists in self.lists[folder].items():
                key = (moment, days, system)
                self.judged[key] = lists
                self.covered[key] = lists["item_id"].n_unique() / log["item_id"].n_unique()

    def ledger(self) -> list[str]:
        """Folders of the deliveries, oldest first."""
        table = pl.read_parquet(self.score / "deliveries.parquet")
        return table["folder"].unique(maintain_order=True).to_list()

    def keep_lists(self) -> None:
        """Read the lists of the deliveries that the test has not read yet."""
        for folder in self.ledger():
            if folder in self.lists:
                continue
            manifest = json.loads((self.score / folder / "manifest.json").read_text())
            moment = manifest["request_time"]
            named = {"delivered": "recommendations"} | {
                name: f"shadows/{name}" for name in manifest.get("shadows", {})
            }
            self.lists[folder] = {
                (moment, system): pl.read_parquet(self.score / folder / place / "*.parquet").select(
                    "user_id", "item_id", "rank"
                )
                for system, place in named.items()
            }
            self.open |= {(folder, 1.0), (folder, 7.0)}

    def scores_new_lists(self) -> bool:
        """Whether the stage `score` is at work."""
        return any(self.score.glob(".building-*"))

    def night(self, number: int) -> Any:
        """Run a night; returns its summary."""
        self.expect(number)
        ended = self.workdir(*self.command, "--json")
        assert ended.code == 0, ended.err
        summary = ended.json
        self.alerts[number] = next(own["alerts"] for own in summary["stages"] if own["stage"] == "monitor")
        self.keep_lists()
        return summary


@pytest.fixture
def fortnight(tmp_path: Path, empty_database: Path) -> Fortnight:
    """Project with a log of sixty days."""
    shadows = '[score]\nexclude_seen = true\nshadows = ["popularity", "previous"]\n'
    return project(tmp_path, empty_database, SMALL + shadows)


def project(tmp_path: Path, empty_database: Path, settings: str, num_users: int = 200) -> Fortnight:
    """Project with further settings and a log of sixty days."""
    with_database(tmp_path, empty_database)
    (tmp_path / "logs").mkdir()
    toml = TINY.split("[simulate]")[0] + '[events]\npath = "logs"\n' + SIMULATED
    toml += '\ncolumns = { user_id = "user_id", item_id = "item_id", timestamp = "timestamp", event_type = "event_type" }\n'
    (tmp_path / "tiny.toml").write_text(toml + settings)
    simulation = SimulationSettings(
        num_users=num_users,
        num_items=150,
        num_events=80 * num_users,
        num_days=WARM_DAYS + NIGHTS,
        drift_day=WARM_DAYS + DRIFTED - 1,
    )
    events = simulate.simulate(simulation, 1).events.select("user_id", "item_id", "timestamp", "event_type")
    made = Fortnight(Workdir(tmp_path), events)
    made.show(0)
    return made


def figures(log: pl.DataFrame, lists: pl.DataFrame, moment: int, days: float) -> dict[str, tuple[float, int]]:
    """Metric to (value, users) of one night's lists, over the users who took an item that was new to them."""
    before = log.filter(pl.col("time") <= moment).select("user_id", "item_id").unique()
    window = log.filter((pl.col("time") > moment) & (pl.col("time") <= moment + days * DAY))
    taken = window.select("user_id", "item_id").unique().join(before, on=["user_id", "item_id"], how="anti")
    active = taken.group_by("user_id").len("taken")
    reached = active.join(lists, on="user_id", how="semi")
    hits = taken.join(lists, on=["user_id", "item_id"])
    ideal = np.cumsum(1 / np.log2(np.arange(2, K + 2)))
    users = (
        hits.group_by("user_id")
        .agg(
            gain=(1 / (pl.col("rank") + 1).log(2)).sum(),
            hits=pl.len(),
            first=1 / pl.col("rank").min(),
            **{
                f"place@{place}": (pl.col("rank") == place).any().cast(pl.Float64)
                for place in range(1, K + 1)
            },
        )
        .join(reached, on="user_id", how="right")
        .fill_null(0)
        .with_columns(ideal=pl.lit(pl.Series(ideal)).gather(pl.col("taken").clip(1, K) - 1))
    )
    metrics = {
        f"hit_rate@{K}": (pl.col("hits") > 0).mean(),
        f"ndcg@{K}": (pl.col("gain") / pl.col("ideal")).mean(),
        f"recall@{K}": (pl.col("hits") / pl.col("taken")).mean(),
        f"mrr@{K}": pl.col("first").mean(),
    }
    metrics |= {f"place@{place}": pl.col(f"place@{place}").mean() for place in range(1, K + 1)}
    values = users.select(**metrics).row(0, named=True)
    known = {name: (float(value), len(reached)) for name, value in values.items()}
    return known | {"reached": (len(reached) / len(active), len(active))}


def stability(log: pl.DataFrame, now: int) -> float:
    """Population stability index of the last day's items against the two weeks that ended a day before."""
    day = (now - pl.col("time")) // DAY
    earlier, newest = (
        dict(
            log.filter(chosen)
            .group_by("item_id")
            .len()
            .sort("len", "item_id", descending=[True, False])
            .iter_rows()
        )
        for chosen in (day.is_between(2, 15), day == 0)
    )
    before, new, done, total = [0.0] * 11, [0.0] * 11, 0, sum(earlier.values())
    for item, count in earlier.items():
        group = min(math.floor(10 * (done + count / 2) / total), 9)
        done += count
        before[group] += count / total
        new[group] += newest.get(item, 0) / sum(newest.values())
    new[10] = 1 - sum(new)
    pairs = [(max(old, 0.005), max(own, 0.005)) for old, own in zip(before, new, strict=True)]
    return sum((own - old) * math.log(own / old) for old, own in pairs)


def by_make(workdir: Workdir) -> None:
    """`make nightly` with a stand-in for the installed environment."""
    program = workdir.folder / "venv" / "bin" / "lookback"
    program.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m pipeline "$@"\n')
    program.chmod(0o755)
    for name in ("constraints.txt", "pyproject.toml", "venv/installed"):
        (workdir.folder / name).touch()
    command = ["make", "-f", str(ROOT / "Makefile"), "nightly", "VENV=venv", "CONFIG=tiny.toml"]
    subprocess.run(command, cwd=workdir.folder, env=workdir.environment(), check=True, capture_output=True)


def train_and_promote(fortnight: Fortnight) -> None:
    """A second version, promoted by hand; a third one, refused by the gate."""
    workdir = fortnight.workdir
    workdir.run("all")
    fortnight.keep_lists()
    page = (workdir.artifact("report") / "report.html").read_text()
    assert "What became of the last lists" in page
    log = fortnight.log(TRAINED)
    for (moment, days, system), lists in fortnight.judged.items():
        value, _ = figures(log, lists, moment, days)[f"ndcg@{K}"]
        when = datetime.datetime.fromtimestamp(moment / 1e6, datetime.UTC)
        row = page[
            page.index(f'<td>{when:%Y-%m-%d %H:%M}</td><td class="number">{days:g}</td><td>{system}</td>') :
        ]
        assert f"{value:.4f}" in row[: row.index("</tr>")]
    assert "champion is version 2" in workdir("promote", "2").out
    refused = workdir("run", "publish", "--set", "publish.system=popularity", "--set", "evaluate.gate=true")
    assert "version 3" in refused.out + refused.err


def erase(fortnight: Fortnight) -> str:
    """Exclude a user of the first sixty days who was active in a judged window, from the next run on."""
    workdir = fortnight.workdir
    outcomes = pl.read_parquet(workdir.folder / "data" / "tiny" / "monitor" / "latest" / "outcomes.parquet")
    known = outcomes.join(fortnight.log(0), on="user_id", how="semi")
    user: str = known["user_id"].mode().sort()[0]
    pl.DataFrame({"user_id": [user]}).write_parquet(workdir.folder / "forget.parquet")
    toml = (workdir.folder / "tiny.toml").read_text()
    changed = toml.replace("[events]\n", '[events]\nexclude_users = "forget.parquet"\n')
    (workdir.folder / "tiny.toml").write_text(changed)
    return user


@pytest.mark.slow
def test_a_fortnight(fortnight: Fortnight) -> None:
    workdir, user = fortnight.workdir, ""
    workdir.run("all")
    fortnight.keep_lists()
    for number in range(1, NIGHTS + 1):
        fortnight.show(number)
        if number == ERASED:
            user = erase(fortnight)
        if number == KILLED:
            fortnight.expect(number)
            assert workdir.killed(fortnight.scores_new_lists, *fortnight.command).code == -9
        if number == BY_MAKE:
            fortnight.expect(number)
            by_make(workdir)
        fortnight.night(number)
        if number == TRAINED:
            train_and_promote(fortnight)
            fortnight.night(number)
        if number == ERASED:
            pruned = workdir("prune", "--excluded")
            assert pruned.code == 1
            assert "models:/lookback-tiny/2 is the champion and holds excluded users" in pruned.err
    monitor = workdir.artifact("monitor", *NIGHT[-2:])
    check_series(fortnight, monitor, user, {"delivered", "popularity", "previous"})
    check_ledger(fortnight)
    check_alerts(fortnight, monitor)


def check_series(fortnight: Fortnight, monitor: Path, user: str, systems: set[str]) -> None:
    """All figures of the systems; the erased user is in none."""
    assert user not in pl.read_parquet(monitor / "outcomes.parquet")["user_id"]
    table = pl.read_parquet(monitor / "nights.parquet").with_columns(pl.col("log_time").dt.timestamp("us"))
    assert table["segment"].null_count() == len(table)
    by_night = dict(table.group_by(KEPT))
    assert set(by_night) == set(fortnight.judged)
    assert {days for _, days, _ in by_night} == {1.0, 7.0}
    assert {system for *_, system in by_night} == systems
    log = fortnight.log(NIGHTS)
    for key, rows in by_night.items():
        moment, days, _ = key
        expected = figures(log, fortnight.judged[key].filter(pl.col("user_id") != user), moment, days)
        actual = {row["metric"]: (row["value"], row["users"]) for row in rows.iter_rows(named=True)}
        assert actual.pop(f"coverage@{K}")[0] == pytest.approx(fortnight.covered[key])
        assert actual == {name: pytest.approx(value) for name, value in expected.items()}
    shown = NightTable.load(monitor).rows
    newest = max(moment for moment, days, _ in by_night if days == 1)
    own = [row for row in shown if (row.window_days, row.system) == (1.0, "delivered")][-1]
    rows = by_night[newest, 1.0, "delivered"].filter(pl.col("metric") == f"ndcg@{K}")
    assert (own.ndcg, own.low, own.high) == rows.select("value", "low", "high").row(0)


def check_ledger(fortnight: Fortnight) -> None:
    """Each night once, twice on the night of the training and once more by its own lists; the version of each."""
    table = pl.read_parquet(fortnight.score / "deliveries.parquet")
    delivered = table.filter(pl.col("shadow").is_null())
    moments = [int(fortnight.log(night)["time"].max()) for night in range(NIGHTS + 1)]  # type: ignore[arg-type]
    nights = [moments.index(moment) for moment in delivered["log_time"].dt.timestamp("us")]
    versions = [1] * (TRAINED + 1) + [2] * (NIGHTS + 2 - TRAINED)
    assert nights == sorted([*range(NIGHTS + 1), TRAINED, TRAINED])
    assert delivered["model_version"].to_list() == versions
    shadows = table.filter(pl.col("shadow") == "previous")
    assert shadows["model_version"].unique().to_list() == [1]


def check_alerts(fortnight: Fortnight, monitor: Path) -> None:
    """None before the drift; on its second night, at the latest, that of the population, to the number."""
    quiet = [lines for night, lines in fortnight.alerts.items() if night < DRIFTED]
    assert quiet == [[]] * (DRIFTED - 1)
    (first,) = (
        night for night in (DRIFTED, DRIFTED + 1) if "population_drift" in str(fortnight.alerts[night])
    )
    log = fortnight.log(first)
    value = stability(log, int(log["time"].max()))  # type: ignore[arg-type]
    assert any(f"population_drift: {value:.2f} is the stability" in line for line in fortnight.alerts[first])
    record = json.loads((monitor / "monitor.json").read_text())
    assert [f"alert: {alert['rule']}: {alert['message']}" for alert in record["alerts"]] == fortnight.alerts[
        NIGHTS
    ]
