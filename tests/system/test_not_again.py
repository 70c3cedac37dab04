"""Nights of one log with `score.max_shown`: what the ledger's lists had shown is not in the next ones, nor in single requests."""

import datetime
import json

import numpy as np
import polars as pl
import pytest

from tests.system.test_night_lists import SETTINGS, evaluated_lists, same, scored_lists
from tests.workdir import Workdir

RULE = ("--set", "score.max_shown=1", "--set", "score.because=false")


@pytest.mark.slow
def test_lists_of_nights_and_single_requests_leave_out_what_was_shown(copied: Workdir) -> None:
    events = pl.read_parquet(copied.artifact("ingest") / "events" / "*.parquet")
    end = events["timestamp"].max()
    assert isinstance(end, datetime.datetime)
    lists = []
    for days in (4, 2, 1):
        at = (*RULE, "--set", f"score.at={(end - datetime.timedelta(days=days)).isoformat()}")
        ended = copied("run", "score", *at)
        assert ended.code == 0, ended.err
        if days == 4:
            assert "nothing is left out" in ended.err
        folder = copied.artifact("score", *at)  # its own lists are none of its inputs
        lists.append(pl.read_parquet(folder / "recommendations" / "*.parquet"))
        manifest = json.loads((folder / "manifest.json").read_text())
        assert len(manifest["shown_lists"]) == len(lists) - 1
        assert (manifest["shown_items_left_out"] > 0) == (len(lists) > 1)
    first, second, third = (own.select("user_id", "item_id") for own in lists)
    reacted = events.select("user_id", "item_id").unique()
    again = first.join(second, on=["user_id", "item_id"]).join(reacted, on=["user_id", "item_id"], how="anti")
    assert len(first) > 0
    assert again.is_empty()
    assert (
        third.join(second, on=["user_id", "item_id"])
        .join(reacted, on=["user_id", "item_id"], how="anti")
        .is_empty()
    )
    user = third["user_id"][0]
    answer = copied("recommend", "--user", str(user), "--json", *at)
    own = third.filter(pl.col("user_id") == user)["item_id"].to_list()
    assert [str(row["item_id"]) for row in answer.json["recommendations"]] == [str(item) for item in own]


EXPOSURES = (
    *SETTINGS,
    *("ranker.use=always", "score.exclude_seen=false", "exposures.path=shown.csv"),
    "exposures.columns={ user_id = 'user_id', item_id = 'item_id', timestamp = 'timestamp' }",
)


def write_exposures(workdir: Workdir, *settings: str) -> None:
    """Half of the events were shown an hour before; each is followed by items that nobody takes, for two days every hour."""
    events = pl.read_parquet(workdir.artifact("ingest", *settings) / "events" / "*.parquet")
    shown = events.gather_every(2).select("user_id", "item_id", pl.col("timestamp").dt.offset_by("-1h"))
    random = np.random.default_rng(0)
    ignored = pl.concat([shown] * 3).with_columns(
        shown["item_id"].sample(3 * len(shown), with_replacement=True, seed=1),
        pl.col("timestamp")
        + pl.Series(random.integers(1, 48, 3 * len(shown)) * 3_600_000_000).cast(pl.Duration("us")),
    )
    table = pl.concat([shown, ignored]).with_columns(pl.col("timestamp").cast(pl.String))
    table.write_csv(workdir.folder / "shown.csv")


@pytest.mark.slow
def test_lists_of_a_night_are_those_of_scoring_where_the_ranker_reads_exposures(workdir: Workdir) -> None:
    plain = tuple(part for setting in SETTINGS for part in ("--set", setting))
    workdir.run("ingest", *plain)
    write_exposures(workdir, *plain)
    chosen = tuple(part for setting in EXPOSURES for part in ("--set", setting))
    workdir.run("evaluate", *chosen)
    ranker = json.loads((workdir.artifact("rank", *chosen) / "ranker_config.json").read_text())
    assert ranker["features"][-2:] == ["times_ignored", "last_shown"]
    effect = json.loads((workdir.artifact("rank", *chosen) / "ranker.json").read_text())["by_times_shown"]
    assert len(effect) == 6
    assert all(0 < probability < 1 for probability in effect)
    lists = evaluated_lists(workdir, *chosen)
    night = lists["night"].max()
    assert isinstance(night, datetime.datetime)
    at = (*chosen, "--set", f"score.at={night.isoformat()}", "--set", "score.because=false")
    workdir.run("score", *at)
    same(lists.filter(pl.col("night") == night), scored_lists(workdir, *at))
