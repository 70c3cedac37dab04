"""An experiment by real commands: lists by arm, the same bytes however they are made, and what is said where there are none."""

import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from pipeline.serving.assignment import Assignment
from tests.pipeline.serving.test_batch import SMALL_SHARDS, digest, started
from tests.system.test_live import NAME, NIGHT, OTHER, link
from tests.workdir import Workdir

SHARES = {"champion": 0.5, "challenger": 0.3, "recent_popularity": 0.2}
EXPERIMENT = (
    "--set",
    "experiment.name=e experiment.salt=s experiment.start=2000-01-01",
    "--set",
    "experiment.arms={ champion = 0.5, challenger = 0.3, recent_popularity = 0.2 }",
)
SCORE = ("score", "--set", "score.model=champion")


@pytest.fixture
def challenged(copied: Workdir) -> Workdir:
    """A second version, refused by the gate: the challenger."""
    refused = copied.run("score", *OTHER, "--set", "evaluate.gate=true")
    assert refused["is_live"] is False
    return copied


def lists_in(folder: Path) -> pl.DataFrame:
    return pl.read_parquet(folder / "recommendations" / "*.parquet")


@pytest.mark.slow
def test_each_arm_gets_the_lists_of_its_system(challenged: Workdir) -> None:
    night = challenged.run(*NIGHT, *EXPERIMENT)
    assert night["live"] == (
        "live: data/tiny/score/live, by the arms of experiment 'e': champion (version 1), challenger (version 2), "
        "recent_popularity"
    )
    assert link(challenged, "live") == Path(night["folder"]).name
    lists = lists_in(challenged.folder / night["folder"])
    users = lists["user_id"].unique().sort()
    assert len(users) == 150
    arm = dict(zip(users, Assignment("s", SHARES).names_of(users), strict=True))
    assert lists["arm"].to_list() == [arm[user] for user in lists["user_id"]]
    assert ", arms: champion " in night["stages"][-1]["summary"]
    shadow = ("--set", 'score.shadows=["recent_popularity"]')
    alone = challenged.folder / challenged.run(*SCORE, *shadow)["folder"]
    second = challenged.run("score", "--set", f"score.model=models:/{NAME}/2")["folder"]
    systems = {
        "champion": lists_in(alone),
        "challenger": lists_in(challenged.folder / second),
        "recent_popularity": pl.read_parquet(alone / "shadows" / "recent_popularity" / "*.parquet"),
    }
    for name, other in systems.items():
        assert "arm" not in other.columns
        own = lists.filter(pl.col("arm") == name)
        right = other.join(own.select("user_id").unique(), on="user_id", how="semi").sort("user_id", "rank")
        assert own["item_id"].to_list() == right["item_id"].to_list(), name
    ledger = pl.read_parquet(challenged.folder / "data" / "tiny" / "score" / "deliveries.parquet")
    rows = ledger.filter(pl.col("folder") == Path(night["folder"]).name)
    assert rows.select("arm", "model_version", "shadow").rows() == [
        ("champion", 1, None),
        ("challenger", 2, None),
        ("recent_popularity", None, None),
    ]
    salted = challenged("run", *NIGHT, *EXPERIMENT, "--set", "experiment.salt=t")
    assert salted.code == 2
    assert salted.err.count("\n") == 1
    assert "experiment.salt: received 't', but 'e' has run with 's' since " in salted.err
    assert "begin another experiment with another experiment.name" in salted.err
    live = link(challenged, "live")
    training = challenged("run", "score", *EXPERIMENT)
    assert (
        "not live: experiment 'e' runs, and these lists are not by its arms; make those with " in training.out
    )
    assert link(challenged, "live") == live


@pytest.mark.slow
def test_where_there_are_no_arms_all_get_the_champion_s_lists(challenged: Workdir) -> None:
    later = challenged("run", *SCORE, *EXPERIMENT, "--set", "experiment.start=2100-01-01")
    assert later.code == 0
    assert (
        "experiment 'e': not applied, all users get the champion's lists; it starts with 2100-01-01"
        in later.err
    )
    plain = challenged.folder / challenged.run(*SCORE)["folder"]
    settings = (*SCORE[1:], *EXPERIMENT, "--set", "experiment.start=2100-01-01")
    assert lists_in(challenged.artifact("score", *settings)).equals(lists_in(plain))
    assert challenged("promote", "2").code == 0
    gone = challenged("run", *SCORE, *EXPERIMENT)
    assert gone.code == 0
    assert "experiment 'e': not applied, all users get the champion's lists; arm challenger: " in gone.err
    assert gone.out.splitlines()[-1] == "live: data/tiny/score/live, by the champion, version 2"
    assert "arm" not in lists_in(challenged.artifact("score", *SCORE[1:], *EXPERIMENT)).columns


@pytest.mark.slow
def test_threads_kills_and_ray_give_the_same_bytes(challenged: Workdir) -> None:
    settings = (*SCORE[1:], *EXPERIMENT, *SMALL_SHARDS)
    undisturbed = digest(challenged.folder / challenged.run("score", *settings)["folder"])
    artifact = challenged.artifact("score", *settings)

    def anew(*more: str, threads: int = 1, until: Callable[[], bool] | None = None) -> None:
        shutil.rmtree(artifact, ignore_errors=True)
        process = started(challenged, *settings, *more, threads=threads)
        while until is not None and process.poll() is None and not until():
            time.sleep(0.002)
        if until is not None:
            process.send_signal(signal.SIGKILL)
        process.wait()

    shards = artifact.parent / f".building-{artifact.name}" / "recommendations"
    anew(threads=3)
    assert digest(artifact) == undisturbed
    anew(until=lambda: len(list(shards.glob(".part-*.json"))) >= 3)
    assert 3 <= len(list(shards.glob("part-*.parquet"))) < 15, "killed in the middle"
    challenged.run("score", *settings)
    assert digest(artifact) == undisturbed
    if pytest.importorskip("ray"):
        anew("--set", "score.engine=ray", "--set", "score.workers=2")
        assert digest(artifact) == undisturbed
