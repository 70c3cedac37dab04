"""`lookback compare` on real runs of a real tracking database."""

import datetime
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import polars as pl
import pytest

from models.evaluation.bootstrap import NO_DIFFERENCE, PairedDifference
from pipeline.artifacts.files import digest_file
from pipeline.commands import compare
from pipeline.commands.compare import as_text, compare_runs
from pipeline.errors import DamagedArtifact, LookbackError
from pipeline.evaluation import comparison
from pipeline.evaluation.comparison import Comparison, SeedGroup, as_tree, metrics_of_runs
from pipeline.tracking import sending
from pipeline.tracking.client import client_at, fluent
from pipeline.tracking.queries import find_run
from pipeline.tracking.record import TARGETS_DIGEST, RunRecord
from pipeline.tracking.tracker import Tracker

TIME = pl.Datetime("us", "UTC")
NOON = datetime.datetime(2020, 1, 1, 12, tzinfo=datetime.UTC)


def targets(ranks: list[float], users: Sequence[str] = "abcdef", item: int = 1) -> pl.DataFrame:
    """targets.parquet of a model with the given ranks, and of a baseline that is always right."""
    table = {
        "user_id": list(users),
        "item_id": [item] * len(users),
        "timestamp": pl.Series([NOON] * len(users), dtype=pl.Datetime("us", "UTC")),
        "history_length": [3] * len(users),
    }
    model = pl.DataFrame(table | {"system": "lookback", "rank": [float(rank) for rank in ranks]})
    return pl.concat([model, pl.DataFrame(table | {"system": "popularity", "rank": [1.0] * len(users)})])


def compared(tables: dict[str, pl.DataFrame], groups: Sequence[SeedGroup] = ()) -> Comparison:
    return Comparison.of(next(iter(tables.values())), metrics_of_runs(tables, (10,), 400, 0), groups)


def test_dislikes_bear_their_rate_alone() -> None:
    tables = {"one": targets([1, 1, 1, 1, 1, 3]), "other": targets([3] * 6)}
    dislikes = {"one": targets([11, 20, 3], "aag"), "other": targets([1, 2, 3], "aag")}
    systems = metrics_of_runs(tables, (10,), 400, 0, dislikes)
    found = as_tree(Comparison.of(tables["one"], systems))
    assert (found["users"], found["targets"]) == (6, 6)
    plain = as_tree(compared(tables))
    for label, rate in (("one", 1 / 3), ("other", 1.0)):
        assert found["metrics"][label]["dislike_rate@10"] == pytest.approx(rate)
        assert found["metrics"][label]["ndcg@10"] == pytest.approx(plain["metrics"][label]["ndcg@10"])
    difference = found["differences"]["other"]["dislike_rate@10"]
    assert difference["difference"] == pytest.approx(2 / 3)
    with pytest.raises(LookbackError, match="different test targets"):
        metrics_of_runs(tables, (10,), 400, 0, {**dislikes, "other": targets([1, 2], "aa")})


def at_nights(ranks: list[float]) -> pl.DataFrame:
    """targets.parquet of two nights: two items taken by a on the first, one each by b on the first and by a on the second."""
    nights = [NOON, NOON, NOON, NOON + datetime.timedelta(days=7)]
    table = {
        "user_id": ["a", "a", "b", "a"],
        "item_id": [1, 2, 1, 3],
        "timestamp": pl.Series([night + datetime.timedelta(days=1) for night in nights], dtype=TIME),
        "history_length": [3, 3, 4, 5],
        "night": pl.Series(nights, dtype=TIME),
        "recommended": [[1], [], [1], [3]],
    }
    return pl.DataFrame(table | {"system": "lookback", "rank": [float(rank) for rank in ranks]})


def test_differences_by_pencil():
    one, other = (
        targets([1, 1, 1, 1, 1, 3]),
        targets([3, 3, 3, 3, 3, 3]).sample(fraction=1, shuffle=True, seed=0),
    )
    tree = as_tree(compared({"one": one, "other": other}))
    assert (tree["users"], tree["targets"]) == (6, 6)
    assert tree["metrics"]["one"]["ndcg@10"] == pytest.approx(5.5 / 6)
    assert tree["metrics"]["other"]["ndcg@10"] == pytest.approx(0.5)
    found = tree["differences"]["other"]["ndcg@10"]
    assert tree["differences"]["other"]["from"] == "one"
    assert found["difference"] == pytest.approx(-2.5 / 6)
    assert found["low"] <= found["difference"] <= found["high"] < 0
    assert found["share"] == pytest.approx(0.0)
    assert found["verdict"] == "worse"
    assert found["p_value"] == pytest.approx(2 / 2**5), (
        "five differences of one sign: two of 32 orders of signs"
    )


def test_all_metrics_of_ranks_are_compared():
    tree = as_tree(compared({"one": targets([1] * 6), "other": targets([4] * 6)}))
    kinds = ("ndcg", "hit_rate", "recall", "precision", "mrr", "map")
    names = {f"{user}{kind}@10" for kind in kinds for user in ("", "user_")}
    assert set(tree["differences"]["other"]) == names | {"from"}
    found = {name: tree["differences"]["other"][f"{name}@10"]["difference"] for name in kinds}
    assert found == pytest.approx(
        {
            "ndcg": 1 / np.log2(5) - 1,
            "hit_rate": 0,
            "recall": 0,
            "precision": 0,
            "mrr": -3 / 4,
            "map": -3 / 4,
        }
    )


def test_a_verdict_has_to_stand_among_several_comparisons():
    """By chance alone one of twenty equal systems looks different; corrected for twenty, none does."""
    users = [f"u{number}" for number in range(60)]
    random = np.random.default_rng(13)
    tables = {f"run {number}": targets(random.integers(1, 30, 60).tolist(), users) for number in range(21)}
    one = as_tree(compared({name: tables[name] for name in ("run 0", "run 1")}))["differences"]["run 1"][
        "ndcg@10"
    ]
    assert one["p_holm"] == one["p_value"]
    found = as_tree(compared(tables))["differences"]
    of_ndcg = [each["ndcg@10"] for each in found.values()]
    assert any(each["low"] > 0 or each["high"] < 0 for each in of_ndcg), "some interval leaves 0 out"
    assert {each["verdict"] for each in of_ndcg} == {NO_DIFFERENCE}
    assert all(each["p_holm"] >= each["p_value"] for each in of_ndcg)


def test_the_table_has_a_column_per_run_and_difference():
    text = as_text(compared({"one": targets([1] * 6), "other": targets([2] * 6)}))
    lines = text.splitlines()
    assert lines[0] == "6 held-out events of 6 users; 95 % intervals, bootstrap over users"
    assert lines[1] == "p: paired bootstrap"
    assert lines[3].split() == ["one", "other", "other", "minus", "one"]
    assert " ".join(lines[4].split()) == (
        "ndcg@10 1.0000 [1.0000, 1.0000] 0.6309 [0.6309, 0.6309] -0.3691 [-0.3691, -0.3691] p 0.000 worse"
    )
    assert lines[-1].startswith("one is best on NDCG@10 (1.0000): better than other by +0.3691")
    assert [line.split()[0] for line in lines[4:8]] == ["ndcg@10", "hit_rate@10", "mrr@10", "user_ndcg@10"]
    three = as_text(compared({name: targets([1] * 6) for name in ("a", "b", "c")}))
    assert "corrected for 2 comparisons (Holm)" in three.splitlines()[1]


def test_runs_that_differ_in_their_seed_have_a_mean_and_a_spread():
    groups = [SeedGroup(("a", "b"), ("0", "1"))]
    comparison = compared({"a": targets([1] * 6), "b": targets([2] * 6), "c": targets([3] * 6)}, groups)
    (found,) = as_tree(comparison)["seeds"]
    assert (found["runs"], found["seeds"]) == (["a", "b"], ["0", "1"])
    assert found["metrics"]["mrr@10"] == pytest.approx({"mean": 0.75, "sd": 0.25 * 2**0.5})
    text = as_text(comparison)
    assert "mean ± sd of a, b (seeds 0, 1)" in text
    assert "0.7500 ± 0.3536" in text


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
        metrics_of_runs({"one": targets([1] * 6), "other": other}, (10,), 100, 0)


def test_metrics_of_nights_are_means_over_user_nights():
    tables = {"one": at_nights([1, 20, 1, 20]), "other": at_nights([2, 20, 20, 1]).reverse()}
    comparison = compared(tables)
    tree = as_tree(comparison)
    assert (tree["users"], tree["targets"]) == (2, 3)
    one, other = tree["metrics"]["one"], tree["metrics"]["other"]
    assert (one["hit_rate@10"], one["recall@10"]) == (pytest.approx(2 / 3), pytest.approx(1.5 / 3))
    assert one["precision@10"] == pytest.approx(0.2 / 3)
    assert one["mrr@10"] == pytest.approx(2 / 3)
    assert other["mrr@10"] == pytest.approx(1.5 / 3)
    text = as_text(comparison).splitlines()
    assert text[0].startswith("3 user-nights of 2 users, 2 nights from 2020-01-01 to 2020-01-08; 95 %")
    assert [line.split()[0] for line in text[4:10]] == [
        f"{name}@10" for name in ("ndcg", "hit_rate", "recall", "precision", "map", "mrr")
    ]


def test_nights_are_not_compared_with_events():
    with pytest.raises(
        LookbackError,
        match="different kinds of test targets: user-nights in 'n', held-out events in 'e'; expected",
    ):
        metrics_of_runs({"e": targets([1] * 6), "n": at_nights([1] * 4)}, (10,), 100, 0)
    other_nights = at_nights([1] * 4).with_columns(pl.col("night") + datetime.timedelta(days=1))
    with pytest.raises(
        LookbackError, match=r"different test targets: .*0 of 'one' also.*of nights also horizon_days"
    ):
        metrics_of_runs({"one": at_nights([1] * 4), "other": other_nights}, (10,), 100, 0)


def log_run(
    folder: Path,
    tracker: Tracker,
    name: str,
    ranks: list[float],
    seed: int,
    dim: int = 8,
    table: Callable[[list[float]], pl.DataFrame] = targets,
) -> None:
    """A training with an evaluation under it, as the stages log them."""
    for stage in ("train", "evaluate"):
        artifact = folder / name / stage
        artifact.mkdir(parents=True)
        plan = RunRecord()
        if stage == "train":
            plan.params(
                {"seed": seed, "model": {"dim": dim}, "score": {"k": seed}, "resolved": {"threads": seed}}
            )
        else:
            table(ranks).write_parquet(artifact / "targets.parquet")
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
    """A database with three trainings that were evaluated, two of them alike but for the seed, and one that was not."""
    folder = tmp_path_factory.mktemp("compare")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    tracker = Tracker(uri, "tiny", (folder / "artifacts").as_uri())
    log_run(folder, tracker, "first", [1, 1, 1, 1, 1, 3], 0)
    log_run(folder, tracker, "second", [3, 3, 3, 3, 3, 3], 1)
    log_run(folder, tracker, "wider", [1, 1, 1, 1, 3, 3], 1, dim=16)
    log_run(folder, tracker, "nights", [1, 20, 1, 20], 0, table=at_nights)
    RunRecord().save(folder)
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
def test_the_settings_that_differ_come_first(capsys: pytest.CaptureFixture[str]):
    compare_runs(None, ["train second", "train wider"], as_json=False)
    heading, setting, *rest = capsys.readouterr().out.splitlines()
    assert heading.split("  ")[0] == "settings that differ"
    assert setting.split() == ["model.dim", "8", "16"]
    assert rest[0] == ""
    compare_runs(None, ["train first", "train second"], as_json=True)
    tree: Any = json.loads(capsys.readouterr().out)
    assert tree["settings"]["seed"] == {"train first": "0", "train second": "1"}
    assert "resolved.threads" not in tree["settings"]


@pytest.mark.usefixtures("_at_server")
def test_runs_are_found_by_the_beginning_of_their_id(server: str):
    run_id = find_run(server, "train first").run_id
    assert find_run(server, run_id[:12]).run_id == run_id
    assert find_run(server, run_id[:12], "tiny").run_id == run_id
    with pytest.raises(LookbackError, match="no such run"):
        find_run(server, run_id[:12][::-1] + "0f0f0f0f")
    with pytest.raises(LookbackError, match="no such run"):
        find_run(server, run_id[:3])


@pytest.mark.usefixtures("_at_server")
def test_an_evaluation_of_nights_is_read_with_its_nights(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    page = tmp_path / "compare.html"
    compare_runs(None, ["train nights"], as_json=False, html=page)
    about = "3 user-nights of 2 users, 2 nights from 2020-01-01 to 2020-01-08"
    assert capsys.readouterr().out.startswith(about)
    assert about in page.read_text(encoding="utf-8")
    with pytest.raises(LookbackError, match="different kinds of test targets: user-nights in 'train nights'"):
        compare_runs(None, ["train nights", "train first"], as_json=True)


@pytest.mark.usefixtures("_at_server")
def test_the_comparison_is_a_run_of_its_own(server: str, capsys: pytest.CaptureFixture[str]):
    names = ["train first", "train second", "train wider"]
    compare_runs(None, names, as_json=True)
    tree: Any = json.loads(capsys.readouterr().out)
    assert [(group["runs"], group["seeds"]) for group in tree["seeds"]] == [
        (["train first", "train second"], ["0", "1"])
    ], "the wider one is another model"
    tracker = Tracker(server, "tiny")
    logged = find_run(tracker.uri, tree["run_id"])
    evaluated = [find_run(tracker.uri, f"evaluate {name}").run_id for name in ("first", "second", "wider")]
    assert (logged.name, logged.status) == ("compare train first train second train wider", "FINISHED")
    assert logged.experiment_id == find_run(tracker.uri, "train first").experiment_id
    assert logged.tags["lookback.compared"].split(",") == evaluated
    assert all(run_id in logged.tags["mlflow.note.content"] for run_id in evaluated)
    found = tree["differences"]["train second"]["ndcg@10"]
    assert logged.metrics["train second/ndcg_at_10_difference"] == pytest.approx(found["difference"])
    with fluent(server):
        client = client_at(server)
        table = pl.from_pandas(client.load_table(logged.experiment_id, "table.json", run_ids=[logged.run_id]))
    assert len(table) == 3 * len(tree["metrics"]["train first"])
    row = table.row(
        by_predicate=(pl.col("run") == "train second") & (pl.col("metric") == "ndcg@10"), named=True
    )
    for part in ("difference", "low", "high", "p_value", "p_holm", "verdict"):
        assert row[part] == (pytest.approx(found[part]) if part != "verdict" else found[part])
    assert row["value"] == pytest.approx(0.5)
    assert row["run_id"] == evaluated[1]
    first = table.filter(pl.col("run") == "train first")
    assert first["difference"].is_null().all() or first["difference"].is_nan().all()


@pytest.mark.usefixtures("_at_server")
def test_a_comparison_that_cannot_be_logged_is_printed_all_the_same(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def refuse(*_: object) -> None:
        raise OSError("no more space")

    monkeypatch.setattr(sending, "send_points", refuse)
    compare_runs(None, ["train first", "train second"], as_json=False)
    said = capsys.readouterr()
    assert "train second minus train first" in said.out
    assert said.err.count("\n") == 1
    assert "no more space" in said.err


@pytest.mark.usefixtures("_at_server")
@pytest.mark.parametrize(
    ("runs", "said"),
    [
        (["train first", "evaluate first"], "repeats an earlier evaluation"),
        (["train third"], "no such run"),
        (["lonely"], "no finished evaluation"),
    ],
)
def test_runs_that_cannot_be_compared(runs: list[str], said: str):
    with pytest.raises(LookbackError, match=said):
        compare_runs(None, runs, as_json=True)


def test_a_difference_that_one_of_several_may_have_by_chance_says_so():
    unsure = PairedDifference(0.02, 0.001, 0.04, 0.9, NO_DIFFERENCE, p_bootstrap_holm=0.061)
    assert comparison.by_chance(unsure, 3) == ", but p 0.061 when corrected for 3 comparisons"
    assert not comparison.by_chance(replace(unsure, low=-0.001), 3)
    assert not comparison.by_chance(replace(unsure, verdict="better"), 3)


def test_damaged_copy_of_the_targets_is_named(tmp_path: Path) -> None:
    (tmp_path / "targets.parquet").write_bytes(b"rows")
    tracker, run = mock.Mock(uri="sqlite:///x"), mock.Mock(run_id="r1", tags={})
    compare._check_targets(tracker, run, tmp_path / "targets.parquet")
    run.tags[TARGETS_DIGEST] = digest_file(tmp_path / "targets.parquet")
    compare._check_targets(tracker, run, tmp_path / "targets.parquet")
    (tmp_path / "targets.parquet").write_bytes(b"rowz")
    with pytest.raises(DamagedArtifact, match=r"targets\.parquet of run .*r1.* lookback run evaluate"):
        compare._check_targets(tracker, run, tmp_path / "targets.parquet")
