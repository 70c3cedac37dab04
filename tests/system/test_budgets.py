"""Budgets of a night by real commands: kept over all lists, certified, in the same bytes after kills, by any shards, on Ray."""

import json
import shutil
import signal
import time

import polars as pl
import pytest

from tests.pipeline.serving.test_batch import SMALL_SHARDS, digest, started
from tests.workdir import Workdir

PLAIN = ("--set", "score.because=false")


@pytest.mark.slow
def test_budgets_hold_over_the_night_in_the_same_bytes(copied: Workdir) -> None:
    copied.run("score", *PLAIN)
    before = pl.read_parquet(copied.artifact("score", *PLAIN) / "recommendations" / "*.parquet")
    ordered = before["item_id"].value_counts(sort=True)
    (most, rare), users = (ordered["item_id"][place] for place in (0, -1)), before["user_id"].n_unique()
    names = ["field", "value", "min_places", "max_places"]
    pl.DataFrame([("item_id", str(most), 1, None)], schema=names, orient="row").write_csv(
        copied.folder / "loose.csv"
    )
    loose = (*PLAIN, "--set", "score.budgets=loose.csv")
    copied.run("score", *loose)
    same = pl.read_parquet(copied.artifact("score", *loose) / "recommendations" / "*.parquet")
    assert same["item_id"].equals(before["item_id"]), "candidates with a floor are ranked beside the others"
    cap, floor = int(ordered["count"][0]) // 2, users // 3
    rows = [("item_id", str(most), None, cap), ("item_id", str(rare), floor, None)]
    pl.DataFrame(rows, schema=names, orient="row").write_csv(copied.folder / "budgets.csv")
    settings = (*PLAIN, "--set", "score.budgets=budgets.csv")
    summary = copied.run("score", *settings, *SMALL_SHARDS)["summary"]
    artifact = copied.artifact("score", *settings, *SMALL_SHARDS)
    manifest = json.loads((artifact / "manifest.json").read_text())
    lists = pl.read_parquet(artifact / "recommendations" / "*.parquet")
    held = dict(lists["item_id"].value_counts().iter_rows())
    assert held.get(most, 0) <= cap
    assert held[rare] >= floor
    assert len(lists) == len(before), "still full"
    certificate = manifest["budgets"]
    assert certificate["infeasible"] == []
    assert certificate["gap"] < 0.005
    assert 0 < certificate["value_lost_share"] < 0.2
    assert {row["value"] for row in certificate["binding"]} <= {str(most), str(rare)}
    assert "2 budgets kept" in summary
    assert manifest["not_reused"] == "lists are chosen together (score.budgets)"
    assert not (artifact / "night").exists()

    undisturbed = digest(artifact)
    workspace = artifact.parent / f".building-{artifact.name}"
    for pattern in ("night/shard-*.json", "recommendations/.part-*.json"):
        shutil.rmtree(artifact, ignore_errors=True)
        process = started(copied, *settings, *SMALL_SHARDS)
        while process.poll() is None and len(list(workspace.glob(pattern))) < 3:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (workspace / "_SUCCESS").exists()
        copied.run("score", *settings, *SMALL_SHARDS)
        assert digest(artifact) == undisturbed
    other = ("--set", "score.shard_users=17", "--set", "score.batch_users=4")
    copied.run("score", *settings, *other)
    own = pl.read_parquet(copied.artifact("score", *settings, *other) / "recommendations" / "*.parquet")
    assert own.equals(lists)
    if pytest.importorskip("ray"):
        on_ray = ("--set", "score.engine=ray", "--set", "score.workers=2")
        copied.run("score", "--force", *settings, *SMALL_SHARDS, *on_ray)
        assert digest(artifact) == undisturbed
