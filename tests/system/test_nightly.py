"""Two nights: a log up to a date, then one more file with later days; nothing is trained until it is asked for."""

import datetime
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from features import simulate
from features.simulation_settings import SimulationSettings
from tests.workdir import TINY, Workdir

SMALL = """
[model]
dim = 16
[history]
max_length = 20
[train]
epochs = 2
precision = "fp32"
compile = "off"
[evaluate]
resamples = 100
baselines = ["popularity"]
gate = false
[ranker]
epochs = 2
"""
SIMULATED = 'types = { view = 1.0, like = 1.5, purchase = 2.0 }\ntimestamp_unit = "iso"'
DESKDROP = """
[events]
path = "logs"
columns = { user_id = "personId", item_id = "contentId", timestamp = "timestamp", event_type = "eventType" }
[split]
protocol = "leave_one_out"
"""


def two_nights(workdir: Workdir, first: pl.DataFrame, second: pl.DataFrame) -> None:
    """Run the first night whole, the second without training, then train again; check what the issue of each is."""
    logs = workdir.folder / "logs"
    logs.mkdir()
    first.write_csv(logs / "day-1.csv")
    workdir.run("all")
    trained = set((workdir.folder / "data" / "tiny" / "train").glob("*/manifest.json"))
    part = next((workdir.artifact("ingest") / "events").glob("*.parquet"))
    inode = part.stat().st_ino

    second.write_csv(logs / "day-2.csv")
    nightly = ("ingest", "features", "monitor", "score", "--set", "score.model=champion")
    summary = workdir.run(*nightly)
    assert [stage["stage"] for stage in summary["stages"]] == ["ingest", "features", "monitor", "score"]
    assert set((workdir.folder / "data" / "tiny" / "train").glob("*/manifest.json")) == trained
    assert inode in {path.stat().st_ino for path in (workdir.artifact("ingest") / "events").glob("*.parquet")}
    check_scored(workdir, first, second)
    again = workdir.run(*nightly)
    assert all(stage["up_to_date"] for stage in again["stages"])
    for file in (workdir.folder / "data" / "tiny" / ".bundles").glob("*/items.parquet"):
        file.write_bytes(b"damaged")
    mended = workdir("run", *nightly, "--set", "score.k=5")
    assert mended.code == 0
    assert "is damaged, a copy of models:/lookback-tiny/1: fetched anew" in mended.err

    workdir.run("all")  # retraining makes a new version
    assert set((workdir.folder / "data" / "tiny" / "train").glob("*/manifest.json")) > trained
    assert workdir.manifest("score")["model_version"] == 2
    assert "champion is version 2" in workdir("promote", "2").out
    workdir.run(*nightly)
    settings = ("--set", "score.model=champion")
    assert read_manifest(workdir, *settings)["model_version"] == 2


def read_manifest(workdir: Workdir, *settings: str) -> Any:
    import json

    return json.loads((workdir.artifact("score", *settings) / "manifest.json").read_text())


def check_scored(workdir: Workdir, first: pl.DataFrame, second: pl.DataFrame) -> None:
    """Known and new users have recommendations from the first night's items, and these look back over the new events."""
    manifest = read_manifest(workdir, "--set", "score.model=champion")
    assert manifest["model_version"] == 1
    folder = workdir.artifact("score", "--set", "score.model=champion")
    scored = pl.read_parquet(folder / "recommendations" / "*.parquet")
    user, item = ("personId", "contentId") if "personId" in first.columns else ("user_id", "item_id")
    both = pl.concat([first, second])
    assert set(scored["user_id"]) == set(both[user])
    assert set(scored["item_id"]) <= set(first[item])
    new_users = set(second[user]) - set(first[user])
    assert new_users
    unknown = second.filter(~pl.col(item).is_in(first[item].unique().implode()))
    assert manifest["unknown_items"] == len(unknown)
    new = second.filter(pl.col(item).is_in(first[item].unique().implode()))
    reasons = scored.explode("because", empty_as_null=False).unnest("because", separator=":")
    based = reasons.join(new, left_on=["user_id", "because:item_id"], right_on=[user, item], how="semi")
    assert len(based) > 0
    assert set(based["user_id"]) & new_users
    warm = set(new[user])
    assert manifest["cold_users"] == len(set(both[user]) - set(first[user]) - warm)


@pytest.mark.slow
def test_two_nights_of_a_simulated_log(tmp_path: Path) -> None:
    settings = SimulationSettings(num_users=150, num_items=100, num_events=4000)
    events = simulate.simulate(settings, 0).events.select("user_id", "item_id", "timestamp", "event_type")
    late = events["timestamp"].cast(pl.String).str.slice(0, 10) >= "2026-03-20"
    newcomer = pl.DataFrame(
        {
            "user_id": ["newcomer", "newcomer", "stranger"],
            "item_id": [events["item_id"][0], events["item_id"][1], 1],
            "timestamp": [events["timestamp"][-1]] * 3,
            "event_type": ["view"] * 3,
        },
        schema=events.schema,
    )
    toml = (
        TINY.split("[simulate]")[0]
        + '[events]\npath = "logs"\ncolumns = { user_id = "user_id", item_id = "item_id", '
    )
    toml += 'timestamp = "timestamp", event_type = "event_type" }\n' + SIMULATED + SMALL
    (tmp_path / "tiny.toml").write_text(toml)
    two_nights(Workdir(tmp_path), events.filter(~late), pl.concat([events.filter(late), newcomer]))


@pytest.mark.slow
def test_two_nights_of_deskdrop(tmp_path: Path, public_data: Callable[[str], Path]) -> None:
    log = pl.read_csv(public_data("deskdrop") / "users_interactions.csv", infer_schema_length=None)
    log = log.select("timestamp", "eventType", "contentId", "personId")
    until = int(datetime.datetime(2017, 2, 1, tzinfo=datetime.UTC).timestamp())
    (tmp_path / "tiny.toml").write_text('name = "tiny"\n' + DESKDROP + SMALL)
    before = pl.col("timestamp") < until
    two_nights(Workdir(tmp_path), log.filter(before), log.filter(~before))
