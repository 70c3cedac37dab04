"""`lookback compare` on real runs of a real tracking database."""

import datetime
import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipeline.compare import as_text, as_tree, compare_runs, judge
from pipeline.errors import LookbackError
from pipeline.plan import Plan
from pipeline.tracking import Tracker

NOON = datetime.datetime(2020, 1, 1, 12, tzinfo=datetime.UTC)


def targets(ranks: list[float], users: str = "abcdef", item: int = 1) -> pl.DataFrame:
    """targets.parquet of a model with the given ranks, and of a baseline that is always right."""
    table = {
        "user_id": list(users),
        "item_id": [item] * len(users),
        "timestamp": pl.Series([NOON] * len(users), dtype=pl.Datetime("us", "UTC")),
        "history_length": [3] * len(users),
    }
    model = pl.DataFrame(table | {"system": "lookback", "rank": [float(rank) for rank in ranks]})
    return pl.concat([model, pl.DataFrame(table | {"system": "popularity", "rank": [1.0] * len(users)})])


def test_differences_by_pencil():
    one, other = (
        targets([1, 1, 1, 1, 1, 3]),
        targets([3, 3, 3, 3, 3, 3]).sample(fraction=1, shuffle=True, seed=0),
    )
    tree = as_tree(judge({"one": one, "other": other}, (10,), 200, 0))
    assert (tree["users"], tree["targets"]) == (6, 6)
    assert tree["metrics"]["one"]["ndcg@10"] == pytest.approx(5.5 / 6)
    assert tree["metrics"]["other"]["ndcg@10"] == pytest.approx(0.5)
    found = tree["differences"]["other"]["ndcg@10"]
    assert tree["differences"]["other"]["from"] == "one"
    assert found["difference"] == pytest.approx(-2.5 / 6)
    assert found["verdict"] == "worse"


def test_the_table_has_a_column_per_run_and_difference():
    text = as_text(judge({"one": targets([1] * 6), "other": targets([2] * 6)}, (10,), 100, 0))
    lines = text.splitlines()
    assert lines[0] == "6 targets of 6 users; 95 % intervals, bootstrap over users"
    assert lines[2].split() == ["one", "other", "other", "minus", "one"]
    assert " ".join(lines[3].split()) == (
        "ndcg@10 1.0000 [1.0000, 1.0000] 0.6309 [0.6309, 0.6309] -0.3691 [-0.3691, -0.3691] worse"
    )


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (targets([1] * 5, "abcde"), "6 in 'one', 5 in 'other', 5 of 'one' also in 'other'"),
        (targets([1] * 6, item=2), "6 in 'one', 6 in 'other', 0 of 'one' also in 'other'"),
        (targets([1] * 6).with_columns(pl.col("item_id").cast(pl.String)), "ids of other types"),
    ],
)
def test_other_targets_are_refused(other: pl.DataFrame, said: str):
    with pytest.raises(LookbackError, match=f"different test targets.*{said}"):
        judge({"one": targets([1] * 6), "other": other}, (10,), 100, 0)


def log_run(folder: Path, tracker: Tracker, name: str, ranks: list[float]) -> None:
    """A training with an evaluation under it, as the stages log them."""
    for stage in ("train", "evaluate"):
        artifact = folder / name / stage
        artifact.mkdir(parents=True)
        plan = Plan()
        if stage == "evaluate":
            targets(ranks).write_parquet(artifact / "targets.parquet")
            plan.artifact("targets.parquet", "evaluate")
        plan.save(artifact)
        tracker.replay(
            folder=artifact,
            stage=stage,
            fingerprint=f"{name}-{stage}",
            run_name=f"{stage} {name}",
            tags={},
            link_file=folder / name / f"{stage}.json",
            parent_link_file=folder / name / "train.json" if stage == "evaluate" else None,
        )


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A database with two trainings that were evaluated and one that was not."""
    folder = tmp_path_factory.mktemp("compare")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    tracker = Tracker(uri, "tiny", (folder / "artifacts").as_uri())
    log_run(folder, tracker, "first", [1, 1, 1, 1, 1, 3])
    log_run(folder, tracker, "second", [3, 3, 3, 3, 3, 3])
    Plan().save(folder)
    link = folder / "lonely.json"
    tracker.replay(folder=folder, stage="train", fingerprint="f", run_name="lonely", tags={}, link_file=link)
    return uri


@pytest.fixture
def _at_server(server: str, _own_tracking: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)


@pytest.mark.usefixtures("_at_server")
def test_runs_are_found_by_the_name_of_the_training_or_the_evaluation(capsys: pytest.CaptureFixture[str]):
    compare_runs(None, ["train first", "evaluate second"], as_json=True)
    tree: Any = json.loads(capsys.readouterr().out)
    assert list(tree["metrics"]) == ["train first", "evaluate second"]
    assert tree["differences"]["evaluate second"]["ndcg@10"]["difference"] == pytest.approx(-2.5 / 6)
    compare_runs(None, ["evaluate second", "train first"], as_json=False)
    assert "train first minus evaluate second" in capsys.readouterr().out


@pytest.mark.usefixtures("_at_server")
@pytest.mark.parametrize(
    ("runs", "said"),
    [
        (["train first", "evaluate first"], "named before"),
        (["train third"], "no such run"),
        (["lonely"], "no finished evaluation"),
    ],
)
def test_runs_that_cannot_be_compared(runs: list[str], said: str):
    with pytest.raises(LookbackError, match=said):
        compare_runs(None, runs, as_json=True)
