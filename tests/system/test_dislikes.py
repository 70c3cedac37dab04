"""Dislikes by their type and by their value: never a target, never counted, and the share of them that lists would have shown."""

import datetime
import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tests.workdir import Workdir

pytestmark = pytest.mark.slow
SETTINGS = ("--set", "tracking.enabled=false", "--set", "train.epochs=1", "--set", "ranker.epochs=1")


def events(workdir: Workdir, *settings: str) -> pl.DataFrame:
    """Accepted events of the log."""
    parts = workdir.artifact("ingest", *settings) / "events" / "*.parquet"
    return pl.read_parquet(parts).with_columns(pl.col("event_type").cast(pl.String))


def metrics_of(evaluate: Path) -> Any:
    return json.loads((evaluate / "metrics.json").read_text())


def test_likes_of_the_tiny_log_as_dislikes(workdir: Workdir) -> None:
    settings = (*SETTINGS, "--set", "events.types.like=-1.5")
    workdir.run("score", *settings)
    log, evaluate = events(workdir, *settings), workdir.artifact("evaluate", *settings)
    features = json.loads((workdir.artifact("features", *settings) / "manifest.json").read_text())
    is_dislike = pl.col("event_type") == "like"
    assert features["dislikes"] == len(log.filter(is_dislike)) > 0
    pairs = ["user_id", "item_id", "timestamp"]
    targets, dislikes = (pl.read_parquet(evaluate / f"{name}.parquet") for name in ("targets", "dislikes"))
    for table, kind in ((targets, ~is_dislike), (dislikes, is_dislike)):
        assert table.join(log.filter(kind), on=pairs, how="anti").is_empty()
    report = metrics_of(evaluate)
    test = log.filter(is_dislike, pl.col("timestamp") >= datetime.datetime.fromisoformat(report["test_from"]))
    assert report["targets_left_out"]["dislike"] == len(test)
    num_left_out = sum(report["dislikes"]["left_out"].values())
    assert report["dislikes"]["dislikes"] + num_left_out == len(test)
    for system, own in report["metrics"].items():
        rank = dislikes.filter(pl.col("system") == system)["rank"]
        assert len(rank) == report["dislikes"]["dislikes"]
        assert own["dislike_rate@10"] == pytest.approx((rank <= 10).mean())
        low, high = report["intervals"][system]["dislike_rate@10"]
        assert low <= own["dislike_rate@10"] <= high
    assert all("dislike_rate@10" in paired for paired in report["paired"].values())
    folder = workdir.artifact("baselines", *settings)
    fitted = json.loads((folder / "baselines.json").read_text())["systems"]["popularity"]["fitted_on"]
    training = json.loads((workdir.artifact("train", *settings) / "training.json").read_text())["fitted_on"]
    trained = log.sort("timestamp", "source_row").head(features["split_events"]["train"])
    assert training["num_events"] == len(trained)
    assert fitted["num_events"] == len(trained.filter(~is_dislike))
    lists = pl.read_parquet(workdir.artifact("score", *settings) / "recommendations" / "*.parquet")
    assert lists.join(log, on=["user_id", "item_id"], how="semi").is_empty(), "dislikes are seen items"
    items = pl.read_parquet(workdir.artifact("publish", *settings) / "bundle" / "items.parquet")
    counts = log.filter(~is_dislike).group_by("item_id").len().rename({"len": "num_liked"})
    counted = items.join(counts, on="item_id", how="left").with_columns(pl.col("num_liked").fill_null(0))
    assert counted["num_events"].to_list() == counted["num_liked"].to_list()


def test_low_values_as_dislikes_of_leave_one_out(workdir: Workdir) -> None:
    settings = [
        *SETTINGS, "--set", "events.columns.value=value", "--set", "events.dislike_below=20",
        "--set", "split.protocol=leave_one_out", "--set", 'evaluate.baselines=["popularity"]',
    ]  # fmt: skip
    done = workdir("run", "evaluate", *settings)
    assert done.code == 0, done.err
    log = events(workdir, *settings)
    is_dislike = (pl.col("value") < 20).fill_null(value=False)
    features = workdir.artifact("features", *settings)
    names = json.loads((features / "event_types.json").read_text())
    assert names == ["like", "purchase", "view", "purchase disliked"]
    report = metrics_of(workdir.artifact("evaluate", *settings))
    last = (
        log.sort("timestamp", "source_row")
        .with_columns(is_dislike.alias("disliked"))
        .group_by("user_id", maintain_order=True)
        .agg(after=pl.col("disliked").reverse().cum_prod().sum(), liked=(~pl.col("disliked")).sum())
    )
    held_out = int(last.filter(pl.col("liked") >= 3)["after"].sum())
    assert report["targets_left_out"]["dislike"] == held_out > 0
    assert "dislike_rate@10" in report["metrics"]["popularity"]
    assert "that the list would have shown" in done.out
    nothing = workdir("run", "features", *settings, "--set", "events.dislike_below=-1")
    assert "none of" in nothing.err
    assert "events.dislike_below = -1" in nothing.err
