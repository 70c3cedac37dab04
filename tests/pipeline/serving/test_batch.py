"""A shard's bytes follow from the job alone: whoever writes it, with however many threads, after whatever was killed."""

import hashlib
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import polars as pl
import pytest

from pipeline.artifacts.files import read_json
from pipeline.serving import _load_pyfunc
from tests.workdir import Workdir

SMALL_SHARDS = ("--set", "score.shard_users=10", "--set", "score.batch_users=4")


def digest(folder: Path) -> str:
    """Of the names and bytes of a score artifact's files, records of clocks apart."""
    names = sorted(path for path in (folder / "recommendations").iterdir())
    assert (folder / "_SUCCESS").exists()
    content = b"".join(path.name.encode() + path.read_bytes() for path in names)
    return hashlib.sha256(content).hexdigest()


def scored_anew(workdir: Workdir, *settings: str) -> str:
    summary = workdir.run("score", "--force", *settings)
    return digest(workdir.folder / summary["folder"])


def started(workdir: Workdir, *settings: str, threads: int = 1) -> "subprocess.Popen[bytes]":
    with (workdir.folder / "said.txt").open("wb") as said:
        return subprocess.Popen(
            workdir.command("run", "score", "--force", *settings, "--config", workdir.config),
            cwd=workdir.folder,
            env=workdir.environment() | {"OMP_NUM_THREADS": str(threads)},
            stdout=subprocess.DEVNULL,
            stderr=said,
        )


@pytest.mark.slow
def test_threads_change_no_byte(copied: Workdir) -> None:
    alone = scored_anew(copied, *SMALL_SHARDS)
    process = started(copied, *SMALL_SHARDS, threads=3)
    assert process.wait() == 0, (copied.folder / "said.txt").read_text()
    assert digest(copied.artifact("score", *SMALL_SHARDS)) == alone


@pytest.mark.slow
@pytest.mark.parametrize("system", ["lookback", "popularity", "item_knn"])
def test_killed_between_shards_it_goes_on_where_it_was(copied: Workdir, system: str) -> None:
    settings = (*SMALL_SHARDS, "--set", f"publish.system={system}")
    undisturbed = scored_anew(copied, *settings)
    artifact = copied.artifact("score", *settings)
    workspace = artifact.parent / f".building-{artifact.name}"
    subprocess.run(["rm", "-rf", str(artifact)], check=True)
    process = started(copied, *settings)
    shards = workspace / "recommendations"
    while process.poll() is None and len(list(shards.glob(".part-*.json"))) < 3:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = {path.name: path.stat().st_mtime_ns for path in shards.glob("part-*.parquet")}
    assert 3 <= len(done) < 15, "killed in the middle"
    assert not (workspace / "_SUCCESS").exists()
    summary = copied.run("score", *settings)
    folder = copied.folder / summary["folder"]
    assert digest(folder) == undisturbed
    kept = {path.name: path.stat().st_mtime_ns for path in (folder / "recommendations").iterdir()}
    assert sum(kept[name] == moment for name, moment in done.items()) >= 3
    assert (folder.parent / "latest").resolve() == folder.resolve()


def descendants(process: int) -> list[int]:
    """Processes below one, from /proc."""
    children: dict[int, list[int]] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(status.read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError):
            continue
        children.setdefault(parent, []).append(int(status.parent.name))
    found, waiting = [], [process]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def title(process: int) -> str:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""


@pytest.mark.slow
def test_ray_writes_the_same_bytes_though_a_worker_is_killed(copied: Workdir) -> None:
    pytest.importorskip("ray")
    local = scored_anew(copied, *SMALL_SHARDS)
    on_ray = ("--set", "score.engine=ray", "--set", "score.workers=2")
    process = started(copied, *SMALL_SHARDS, *on_ray)
    killed: list[int] = []
    seen: set[int] = set()
    while process.poll() is None:
        scoring = {each for each in descendants(process.pid) if title(each).startswith("ray::_shard")}
        seen |= scoring
        if scoring and not killed:
            killed.append(min(scoring))
            os.kill(killed[0], signal.SIGKILL)
        time.sleep(0.01)
    assert process.returncode == 0, (copied.folder / "said.txt").read_text()
    assert killed, "a worker was killed while it scored"
    assert len(seen - set(killed)) >= 2, "another one came in its place, beside the second"
    assert digest(copied.artifact("score", *SMALL_SHARDS)) == local, (
        "the engine is no part of the fingerprint"
    )


@pytest.mark.slow
def test_lists_of_unchanged_histories_are_kept_in_the_same_bytes(copied: Workdir) -> None:
    """Without a ranker, whose statistics follow the log; in states whose bits depend on no neighbour."""
    model = ("--set", "model.dim=64", "--set", "train.epochs=1", "--set", "ranker.use=never")
    copied.run("score", *model, *SMALL_SHARDS)
    first = manifest(copied, *model, *SMALL_SHARDS)
    assert first["reused_lists"] == 0
    assert first["not_reused"] == "no earlier lists made alike"
    larger = (*model, "--set", "score.shard_users=25", "--set", "score.batch_users=7")
    summary = copied.run("score", *larger)
    second = manifest(copied, *larger)
    assert second["reused_lists"] == second["users"] - second["cold_users"] > 0
    assert second["reused_from"] == copied.artifact("score", *model, *SMALL_SHARDS).name
    assert f"{second['reused_lists']:,} lists kept from {second['reused_from']}" in summary["summary"]
    counts = ("users", "cold_users", "unknown_items", "users_with_unknown_items", "short_lists", "rows_out")
    assert [second[name] for name in counts] == [first[name] for name in counts]
    kept = digest(copied.artifact("score", *larger))
    assert scored_anew(copied, *larger) == kept
    assert manifest(copied, *larger)["not_reused"] == "--force"
    with_ranker = manifest(copied)
    assert with_ranker["not_reused"] == "the ranker's statistics of items are counted anew"


@pytest.mark.slow
def test_counts_and_users_of_the_table_without_events(copied: Workdir) -> None:
    (copied.folder / "people.csv").write_text("id,kind\nsilent,a\n0,b\n")
    users = ("--set", "users.path=people.csv", "--set", 'users.columns={ user_id = "id", kind = "kind" }')
    known = pl.read_parquet(copied.artifact("features") / "users.parquet")["user_id"]
    asked = [str(known[0]), "silent", "nobody"]
    pl.DataFrame({"user_id": asked}).write_parquet(copied.folder / "asked.parquet")
    summary = copied.run("score", *users, "--set", "score.users=asked.parquet")
    table = pl.read_parquet(copied.folder / summary["folder"] / "recommendations" / "*.parquet")
    assert summary["rows_left_out"] == {"user_not_in_log": 1}
    if known.dtype == pl.String:
        assert table["user_id"].unique().sort().to_list() == sorted(asked[:2])
        shown = copied("recommend", *users, "--user", "silent", "--json").json
        assert shown["history_length"] == 0
        scored = table.filter(pl.col("user_id") == "silent")["item_id"].to_list()
        assert [row["item_id"] for row in shown["recommendations"]] == scored


@pytest.mark.slow
def test_a_time_of_the_request_in_the_configuration_and_on_the_command_line(copied: Workdir) -> None:
    features = copied.artifact("features")
    moment = np.load(features / "time.npy")
    at = str(np.datetime64(int(np.quantile(moment, 0.8)), "us"))
    auto = ("--set", "score.exclude_seen=auto")
    summary = copied.run("score", *auto, "--set", f'score.at="{at}"')
    found = read_json(copied.folder / summary["folder"] / "manifest.json")
    assert found["events_after_request"] == int((moment >= found["request_time"]).sum()) > 0
    assert found["events_before_request"] == int((moment < found["request_time"]).sum()) > 0
    facts = read_json(features / "log_facts.json")
    assert found["exclude_seen"] is (facts["repeated_share"] <= 0.05)
    assert found["repeated_share"] == facts["repeated_share"]
    assert f"{facts['repeated_share']:.1%} of events repeat an earlier item" in summary["summary"]
    table = pl.read_parquet(copied.folder / summary["folder"] / "recommendations" / "*.parquet")
    user = table["user_id"][0]
    shown = copied("recommend", *auto, "--user", str(user), "--at", at, "--json").json
    own = table.filter(pl.col("user_id") == user)
    assert [row["item_id"] for row in shown["recommendations"]] == own["item_id"].to_list()
    probabilities = [row.get("probability") for row in shown["recommendations"]]
    assert probabilities == pytest.approx(own["probability"].to_list(), rel=1e-3)
    wrong = copied("recommend", "--user", str(user), "--at", "soon")
    assert wrong.code != 0
    assert "score.at: received 'soon', expected an ISO date" in wrong.err
    early = copied("recommend", "--user", str(user), "--at", "1999-01-01")
    assert early.code != 0
    assert "score.at: received 1999-01-01T00:00:00.000000, but the log begins at" in early.err


def manifest(workdir: Workdir, *settings: str) -> Any:
    return read_json(workdir.artifact("score", *settings) / "manifest.json")


def test_the_second_night_is_compared_with_the_first(copied: Workdir) -> None:
    shorter = ("--set", "score.k=5")
    copied.run("score", *shorter)
    found = manifest(copied, *shorter)["drift"]
    assert found["before"] == copied.artifact("score").name
    assert found["same_model"] is True
    assert found["users_in_both"] == 1.0
    assert found["overlap"] == pytest.approx(0.5), "the first five of ten"
    assert found["psi"] == pytest.approx(0.0, abs=1e-6)
    assert "drift" not in manifest(copied)


@pytest.mark.parametrize(
    "system",
    ["lookback", *(pytest.param(name, marks=pytest.mark.slow) for name in ("popularity", "item_knn"))],
)
def test_what_is_served_and_recommended_is_what_was_scored(copied: Workdir, system: str) -> None:
    setting = ("--set", f"publish.system={system}")
    copied.run("score", *setting)
    scored = pl.read_parquet(copied.artifact("score", *setting) / "recommendations" / "*.parquet")
    assert scored["because"].list.len().max() == (0 if system == "popularity" else 3)
    lists = scored.group_by("user_id", maintain_order=True).agg("item_id", "score")
    model = _load_pyfunc(str(copied.artifact("publish", *setting) / "bundle"))
    served = model.predict(pd.DataFrame({"user_id": lists["user_id"].to_list()}))
    assert served["item_id"].tolist() == lists["item_id"].to_list()
    for own, other in zip(served["score"], lists["score"].to_list(), strict=True):
        assert own == pytest.approx(other, rel=1e-4)
    user = lists["user_id"][7]
    shown = copied("recommend", *setting, "--user", str(user), "--json").json["recommendations"]
    assert [row["item_id"] for row in shown] == lists["item_id"][7].to_list()
    assert [row["score"] for row in shown] == pytest.approx(lists["score"][7].to_list(), rel=1e-4)


@pytest.mark.slow
def test_effects_of_reranking_are_written_beside_it(copied: Workdir) -> None:
    summary = copied.run("score", "--set", "score.diversity=0.5", "--set", "score.exploration=0.2")
    found = read_json(copied.folder / summary["folder"] / "reranking.json")
    metrics = read_json(copied.artifact("evaluate") / "metrics.json")
    plain = found["metrics"]["by score"]
    assert found["targets"] == metrics["targets"]
    for name in ("ndcg@10", "hit_rate@10", "coverage@10", "diversity@10", "popularity_share@10"):
        assert plain[name] == pytest.approx(metrics["metrics"]["lookback"][name], abs=1e-6), name
    assert found["metrics"]["reranked"]["diversity@10"] > plain["diversity@10"]
    difference = found["metrics"]["reranked"]["ndcg@10"] - plain["ndcg@10"]
    assert found["paired"]["reranked"]["ndcg@10"]["difference"] == pytest.approx(difference)
    assert not (copied.artifact("score") / "reranking.json").exists()
    wrong = copied("run", "score", "--set", 'score.allow=["nothing"]')
    assert wrong.code == 1
    assert "score.allow" in wrong.err
    some = copied.run("score", "--set", 'score.deny=["nothing"]', "--set", "score.k=1000")
    counts = read_json(copied.folder / some["folder"] / "manifest.json")
    assert counts["deny_unknown"] == 1
    assert counts["short_lists"] == counts["users"], "k is larger than the catalogue"
