"""Lists by arm: each user's by the system of the arm, in the same bytes after an interruption and with more threads."""

import dataclasses
from collections import Counter
from pathlib import Path
from unittest import mock

import numpy as np
import polars as pl
import pytest
import torch

from models.recommendation.rules import Rules
from pipeline.dataset.dataset import Dataset
from pipeline.sections import ScoreConfig
from pipeline.serving.arms import Arm, Arms, ArmScorer
from pipeline.serving.assignment import Assignment
from pipeline.serving.batch import Job, Scorer, Users
from pipeline.serving.bundle import Bundle
from pipeline.serving.current_log import Log
from pipeline.serving.request import Request
from pipeline.serving.shadows import counting
from tests.factories import jagged, small_bundle

USERS, SHARD, BATCH, K = 50, 20, 7, 3
SHARES = {"champion": 0.5, "challenger": 0.3, "popularity": 0.2}
ASSIGNMENT = Assignment("s", SHARES)


def scorer_of(bundle: Path, folder: Path, dataset: Dataset) -> Scorer:
    """Scorer of all users with a bundle of items "i1" to "i7", which number the log's."""
    folder.mkdir(exist_ok=True)
    settings = ScoreConfig(k=K, exclude_seen=False, shard_users=SHARD, batch_users=BATCH)
    types = np.zeros(1, np.int16)
    log = Log(dataset, np.arange(8, dtype=np.int32), types, Request.of(None, 100, timed=True))
    job = Job(bundle, folder, folder, folder, settings, seed=0)
    users = Users(log.users, np.arange(USERS), 0)
    rules = Rules(exclude_seen=False)
    return Scorer(job, Bundle.open(bundle), log, users, rules, {}, np.zeros(USERS, np.int64))


@pytest.fixture(scope="module")
def systems(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Scorer]:
    """Two models of random weights, and popularity counted on the log."""
    root = tmp_path_factory.mktemp("arms")
    random = np.random.default_rng(0)
    rows = [
        [(time, int(item)) for time, item in enumerate(random.integers(1, 8, random.integers(1, 6)))]
        for _ in range(USERS)
    ]
    dataset = Dataset(root, jagged(rows), mock.sentinel.split)
    dataset.__dict__["users"] = pl.DataFrame({"user_id": [f"u{number:02}" for number in range(USERS)]})
    for seed in (0, 1):
        small_bundle(root / str(seed), seed)
    first, second = (scorer_of(root / str(seed), root / f"lists {seed}", dataset) for seed in (0, 1))
    counted = counting(first, "popularity", {}, first.job)
    return {"champion": first, "challenger": second, "popularity": counted}


def by_arm(systems: dict[str, Scorer], folder: Path) -> ArmScorer:
    folder.mkdir(exist_ok=True)
    first = systems["champion"]
    own = {part.name: getattr(first, part.name) for part in dataclasses.fields(Scorer)}
    own["job"] = dataclasses.replace(first.job, folder=folder)
    arms = Arms(ASSIGNMENT, {name: Arm(None) for name in systems})
    return ArmScorer(**own, arms=arms, scorers=systems, arm=ASSIGNMENT.of(first.users.ids))


def scored(scorer: Scorer) -> tuple[pl.DataFrame, Counter[str]]:
    counts: Counter[str] = Counter()
    for number in range(scorer.num_shards):
        counts.update(scorer.score(number, lambda _: None))
    return pl.read_parquet(scorer.job.folder / "part-*.parquet"), counts


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("part-*.parquet")}


def test_each_user_s_list_is_that_of_the_arm_s_system(systems: dict[str, Scorer], tmp_path: Path) -> None:
    lists, counts = scored(by_arm(systems, tmp_path / "all"))
    assert lists.columns[-1] == "arm"
    assert lists.select("user_id", "rank").equals(lists.select("user_id", "rank").sort("user_id", "rank"))
    assert len(lists) == USERS * K
    ids = systems["champion"].users.ids
    arm_of = dict(zip(ids, ASSIGNMENT.names_of(ids), strict=True))
    assert Counter(arm_of.values()) == {name: counts[f"arm {name}"] for name in SHARES}
    assert counts["users"] == USERS
    for name, scorer in systems.items():
        folder = tmp_path / name
        folder.mkdir()
        alone, _ = scored(dataclasses.replace(scorer, job=dataclasses.replace(scorer.job, folder=folder)))
        own = lists.filter(pl.col("arm") == name)
        assert set(own["user_id"]) == {user for user, arm in arm_of.items() if arm == name}
        right = alone.join(own.select("user_id").unique(), on="user_id", how="semi").sort("user_id", "rank")
        assert own["item_id"].to_list() == right["item_id"].to_list()
        assert own["score"].to_list() == pytest.approx(right["score"].to_list(), rel=1e-4)


def test_interruptions_and_threads_change_no_byte(systems: dict[str, Scorer], tmp_path: Path) -> None:
    whole, again = by_arm(systems, tmp_path / "whole"), by_arm(systems, tmp_path / "again")
    scored(whole)
    again.score(1, lambda _: None)
    part = tmp_path / "again" / "part-00001.parquet"
    before = part.stat().st_mtime_ns
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        _, counts = scored(again)
    finally:
        torch.set_num_threads(threads)
    assert part.stat().st_mtime_ns == before, "kept"
    assert counts["users_before"] == SHARD
    assert contents(tmp_path / "again") == contents(tmp_path / "whole")


def test_shards_made_without_arms_are_made_anew(systems: dict[str, Scorer], tmp_path: Path) -> None:
    folder = tmp_path / "lists"
    folder.mkdir()
    alone = systems["champion"]
    plain = dataclasses.replace(alone, job=dataclasses.replace(alone.job, folder=folder))
    scored(plain)
    lists, counts = scored(by_arm(systems, folder))
    assert set(lists["arm"]) == set(SHARES)
    assert "users_before" not in counts
    assert "arm" not in scored(plain)[0].columns
