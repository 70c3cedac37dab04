"""Rules for single users by real commands: in lists, shadows, single requests and evaluation; a kill and Ray change no byte."""

import json
import shutil
import signal
import time
from pathlib import Path

import polars as pl
import pytest

from tests.pipeline.serving.test_batch import SMALL_SHARDS, digest, started
from tests.workdir import Workdir

PLAIN = ("--set", "score.because=false")


def lists_of(folder: Path, lists: str = "recommendations") -> dict[object, list[object]]:
    table = pl.read_parquet(folder / lists / "*.parquet")
    return dict(table.group_by("user_id", maintain_order=True).agg("item_id").iter_rows())


@pytest.mark.slow
def test_rules_of_users_hold_everywhere_and_in_the_same_bytes(copied: Workdir) -> None:
    copied.run("score", *PLAIN)
    before = lists_of(copied.artifact("score", *PLAIN))
    users = list(before)
    excluded = {user: items[0] for user, items in before.items()}
    limited = {user: before[user][1:7] for user in users[::2]}
    pinned = before[users[0]][5]
    exclude = pl.DataFrame({"user_id": list(excluded), "item_id": list(excluded.values())})
    exclude.write_parquet(copied.folder / "exclude.parquet")
    pairs = [(user, item) for user, items in limited.items() for item in items]
    table = pl.DataFrame(pairs, schema=["user_id", "item_id"], orient="row")
    table.write_parquet(copied.folder / "candidates.parquet")
    pin = {"user_id": [None, users[1]], "item_id": [pinned, excluded[users[1]]], "rank": [3, 1]}
    pl.DataFrame(pin, schema_overrides={"user_id": exclude["user_id"].dtype}).write_parquet(
        copied.folder / "pin.parquet"
    )
    files = [f"score.{key}={key}.parquet" for key in ("exclude", "candidates", "pin")]
    settings = (
        *PLAIN,
        *(part for file in (*files, 'score.shadows=["popularity"]') for part in ("--set", file)),
    )
    summary = copied.run("score", *settings, *SMALL_SHARDS)["summary"]
    artifact = copied.artifact("score", *settings, *SMALL_SHARDS)
    manifest = json.loads((artifact / "manifest.json").read_text())
    for lists in (lists_of(artifact), lists_of(artifact, "shadows/popularity")):
        assert not any(excluded[user] in items for user, items in lists.items())
        assert all(set(lists[user]) <= set(items) for user, items in limited.items() if user in lists)
    received = lists_of(artifact)
    assert all(len(items) == len(before[user]) for user, items in received.items() if user not in limited), (
        "still full"
    )
    assert received[users[0]][2] == pinned
    counts = manifest["user_rules"]
    assert counts["exclude_rows"] == len(users)
    assert (counts["candidates_rows"], counts["users_with_candidates"]) == (len(pairs), len(limited))
    assert counts["pins_placed"] == sum(pinned in items for items in received.values()) > 0
    assert counts["pins_excluded"] >= 1, "that of the second user, whose own exclusion it is"
    assert manifest["not_reused"] is not None
    assert f"{counts['pins_placed']:,} pins" in summary
    assert not (artifact / "user_rules").exists()
    answer = copied("recommend", "--user", str(users[0]), "--json", *settings)
    assert [str(row["item_id"]) for row in answer.json["recommendations"]] == [
        str(item) for item in received[users[0]]
    ]
    undisturbed = digest(artifact)
    shards = artifact.parent / f".building-{artifact.name}" / "recommendations"
    shutil.rmtree(artifact)
    process = started(copied, *settings, *SMALL_SHARDS)
    while process.poll() is None and len(list(shards.glob(".part-*.json"))) < 3:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    copied.run("score", *settings, *SMALL_SHARDS)
    assert digest(artifact) == undisturbed
    if pytest.importorskip("ray"):
        on_ray = ("--set", "score.engine=ray", "--set", "score.workers=2")
        copied.run("score", "--force", *settings, *SMALL_SHARDS, *on_ray)
        assert digest(artifact) == undisturbed


@pytest.mark.slow
def test_candidates_join_an_evaluation_and_publish_nothing_new(copied: Workdir) -> None:
    events = pl.read_parquet(copied.artifact("ingest") / "events" / "*.parquet")
    events.select("user_id", "item_id").unique().write_parquet(copied.folder / "candidates.parquet")
    settings = ("--set", "score.candidates=candidates.parquet")
    copied.run("evaluate", *settings)
    report = json.loads((copied.artifact("evaluate", *settings) / "metrics.json").read_text())
    among = report["among_candidates"]
    assert among["outside"] == 0, "the candidates are all that a user ever took"
    assert set(among["metrics"]) == set(report["metrics"])
    for system, values in among["metrics"].items():
        assert values["ndcg@10"] > report["metrics"][system]["ndcg@10"]
        assert (
            among["intervals"][system]["mrr@10"][0]
            <= values["mrr@10"]
            <= among["intervals"][system]["mrr@10"][1]
        )
    assert copied.artifact("publish", *settings) == copied.artifact("publish")
