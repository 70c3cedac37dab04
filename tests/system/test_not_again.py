"""Nights of one log with `score.max_shown`: what the ledger's lists had shown is not in the next ones, nor in single requests."""

import datetime
import json

import polars as pl
import pytest

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
    answer = copied("recommend", "--user", str(user), "--k", "10", "--json", *at)
    own = third.filter(pl.col("user_id") == user)["item_id"].to_list()
    assert [str(row["item_id"]) for row in answer.json["recommendations"]] == [str(item) for item in own]
