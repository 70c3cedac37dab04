"""Nights with `lookback update`, by the real command: one killed in the training, candidates judged, promoted, nothing new."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from features import simulate
from features.simulation_settings import SimulationSettings
from pipeline.config import load_config
from pipeline.tracking.registry import Registry
from tests.workdir import TINY, Workdir

CHANGES = {
    "gate = false": "gate = true",
    'baselines = ["popularity", "recent_popularity", "co_visitation", "item_knn"]': "baselines = []",
    "epochs = 3\n": "epochs = 1\nfull_every_days = 0\n",
    '"{data_dir}/{name}/raw/items.csv"': '"items.csv"',
    '"{data_dir}/{name}/raw/events.csv"': '"logs"',
}


def log_of_days(workdir: Workdir) -> list[pl.DataFrame]:
    """Write the configuration and the items' table; returns the events until day 80, of day 80, and of day 81."""
    settings = SimulationSettings(num_users=150, num_items=100, num_events=4000)
    simulated = simulate.simulate(settings, 0)
    simulated.items.with_columns(pl.col("categories").list.join("|")).write_csv(workdir.folder / "items.csv")
    text = TINY.split("[simulate]")[0] + "[events]" + TINY.split("[events]")[1]
    for old, new in CHANGES.items():
        assert old in text
        text = text.replace(old, new)
    (workdir.folder / workdir.config).write_text(text)
    (workdir.folder / "logs").mkdir()
    events = simulated.events.select("user_id", "item_id", "timestamp", "event_type")
    day = (events["timestamp"] - events["timestamp"].min()).dt.total_days()
    return [events.filter(day < 80), events.filter(day == 80), events.filter(day == 81)]


def aliases(workdir: Workdir) -> tuple[int, int | None]:
    """Versions of the champion and of the challenger."""
    uri = f"sqlite:///{workdir.folder}/mlruns/mlflow.db"
    registry = Registry(uri, load_config(workdir.folder / workdir.config))
    champion, challenger = (named("lookback-tiny") for named in (registry.champion, registry.challenger))
    assert champion is not None
    return champion.version, None if challenger is None else challenger.version


def updated(workdir: Workdir) -> tuple[dict[str, Any], str]:
    """Summaries of an update by stage, and its stderr."""
    ended = workdir("update", "--json")
    assert ended.code == 0, ended.err
    return {stage["stage"]: stage for stage in ended.json["stages"]}, ended.err


@pytest.mark.slow
def test_three_nights_of_updates(workdir: Workdir) -> None:
    first, *days = log_of_days(workdir)
    first.write_csv(workdir.folder / "logs" / "day-0.csv")
    workdir.run("publish", "score")
    assert aliases(workdir) == (1, None)

    days[0].write_csv(workdir.folder / "logs" / "day-1.csv")
    trains = workdir.folder / "data" / "tiny" / "train"
    killed = workdir.killed(lambda: any(trains.glob(".building-*/checkpoints/update.pt")), "update")
    assert killed.code == -9
    assert aliases(workdir) == (1, None)
    stages, err = updated(workdir)
    assert "gate: lookback-tiny version 2 is not champion (version 1 stays); waiting: an update" in err
    assert aliases(workdir) == (1, 2)
    assert "publish" in stages
    assert "evaluate" not in stages
    lists = Path(workdir.folder / stages["score"]["folder"])
    manifest = json.loads((lists / "manifest.json").read_text())
    assert (manifest["model_version"], manifest["shadows"]["challenger"]["model_version"]) == (1, 2)
    assert manifest["shadows"]["challenger"]["start"] == manifest["bundle_digest"]
    own, other = (
        pl.read_parquet(lists / folder / "*.parquet") for folder in ("recommendations", "shadows/challenger")
    )
    assert own["user_id"].equals(other["user_id"])
    assert not own["score"].equals(other["score"])
    assert other["probability"].null_count() == 0, "the second stage was carried over"

    days[1].write_csv(workdir.folder / "logs" / "day-2.csv")
    stages, err = updated(workdir)
    assert "version 2 is not champion (version 1 stays); waiting: " in err
    assert " of 500 user-nights with lists of both it and the champion are over" in err
    assert aliases(workdir) == (1, 3)

    assert workdir("promote", "3").code == 0
    ended = workdir("update")
    assert ended.code == 0, ended.err
    assert "update: nothing is trained: no history goes on after " in ended.out
    assert "by the champion, version 3" in ended.out
    refused = workdir("run", "evaluate", "--set", "train.start=champion")
    assert refused.code == 2
    assert "the weights of a registered version have learned from the test" in refused.err
