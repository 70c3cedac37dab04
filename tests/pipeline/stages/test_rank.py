"""Stage rank on a real run: what it writes, who decides that it is used, and what becomes of it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from features.histories.numbering import ItemNumbering
from models import checkpoint
from models.encoder.encoder import AttentionRecommender, with_request_time
from models.ranking.calibration import Calibration
from models.ranking.outcomes import OutcomeLabels
from models.ranking.two_stage import TwoStage
from pipeline.config import load_config
from pipeline.dataset.dataset import Dataset
from pipeline.evaluation.evaluated_model import EvaluatedModel
from pipeline.release.gate import ranks
from pipeline.serving import bundle_ranker
from pipeline.serving.bundle import Bundle
from pipeline.serving.current_log import Log
from pipeline.serving.pyfunc import Recommender
from pipeline.stages import rank
from tests.workdir import Workdir


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_the_ranker_is_written_with_its_calibration_and_how_it_did(finished: Workdir) -> None:
    folder = finished.artifact("rank")
    said = read(folder / "ranker.json")
    assert said["trained"]
    assert said["targets"] >= said["lists"] > 0
    held_out = said["held_out"]
    assert 0 < held_out["targets"] < said["targets"]
    assert 0 <= held_out["calibration_error"] < 0.05
    assert held_out["auc"] > 0.5
    assert sum(row["candidates"] for row in held_out["reliability"]) <= held_out["targets"] * (20 + 30), (
        "retrieved and popular"
    )
    calibration = Calibration.of_dict(said["calibration"])
    assert (np.diff(calibration.probability) >= 0).all()
    history = pl.read_parquet(folder / "ranker_history.parquet")
    assert history["epoch"].to_list() == list(range(said["epochs"] + 1))
    assert history["ndcg"][said["best_epoch"]] == pytest.approx(held_out["two_stage_ndcg@10"])
    assert history["ndcg"][0] == pytest.approx(held_out["retrieval_ndcg@10"])
    classes = said["gain_by_history"]
    assert sum(row["lists"] for row in classes) == held_out["targets"]
    gain = sum(row["lists"] * row["gain"] for row in classes) / held_out["targets"]
    assert gain == pytest.approx(held_out["two_stage_ndcg@10"] - held_out["retrieval_ndcg@10"])


def test_it_learns_from_a_retriever_that_does_not_know_the_validation_targets(copied: Workdir) -> None:
    """Where the encoder learns from validation in the end, the one before that is kept for the ranker."""
    copied.run("rank", "--set", "train.refit_validation=true")
    train, rank, features = (
        copied.artifact(stage, "--set", "train.refit_validation=true")
        for stage in ("train", "rank", "features")
    )
    before, after = np.load(train / "selection" / "items.npy"), np.load(train / "items.npy")
    assert np.array_equal(np.load(rank / "items.npy"), before)
    dataset = Dataset.open(features)
    for numbering, with_validation in ((before, False), (after, True)):
        training = dataset.training_rows(with_validation=with_validation)
        assert np.array_equal(ItemNumbering.of_known(dataset.occurring(training)).new, numbering)
    one, other = (checkpoint.load_model(path) for path in (train / "selection", train))
    assert one.num_items <= other.num_items
    vectors = checkpoint.load_ranker(rank).vectors[1:]
    own = one.item_vectors().detach()[1:]
    assert np.allclose(vectors, own / own.norm(dim=1, keepdim=True), atol=1e-5)


def test_the_paired_test_on_the_test_targets_decides(finished: Workdir) -> None:
    report = read(finished.artifact("evaluate") / "metrics.json")
    ranker = report["ranker"]
    found = ranker["paired"]["ndcg@10"]
    assert found["difference"] == pytest.approx(
        ranker["metrics"]["two_stage"]["ndcg@10"] - ranker["metrics"]["retrieval"]["ndcg@10"]
    )
    assert ranker["used"] == (found["low"] > 0)
    used = "two_stage" if ranker["used"] else "retrieval"
    assert report["metrics"]["lookback"]["ndcg@10"] == pytest.approx(ranker["metrics"][used]["ndcg@10"])


@pytest.mark.slow
@pytest.mark.parametrize("use", ["always", "never"])
def test_always_and_never_are_obeyed(copied: Workdir, use: str) -> None:
    setting = ("--set", f"ranker.use={use}")
    copied.run("publish", *setting)
    ranker = read(copied.artifact("evaluate", *setting) / "metrics.json")["ranker"]
    bundle = copied.artifact("publish", *setting) / "bundle"
    assert ranker["used"] == (use == "always") == (bundle / "ranker").exists()
    if use == "never":
        assert ranker["reason"] == "ranker.use is never: the order of retrieval stands"
        return
    evaluated = EvaluatedModel.open(bundle)
    stage = bundle_ranker.of_bundle(bundle, "deployed")
    assert evaluated.second_stage is not None
    assert stage is not None
    assert len(stage.own) == stage.statistics.num_items + 1


@pytest.mark.slow
def test_the_gate_judges_both_stages(copied: Workdir) -> None:
    """Ranks of the evaluated weights in the bundle are those of the evaluation."""
    from pipeline.dataset.targets import ranked_targets

    setting = ("--set", "ranker.use=always")
    copied.run("publish", *setting)
    features, evaluate = (copied.artifact(stage, *setting) for stage in ("features", "evaluate"))
    evaluated = EvaluatedModel.open(copied.artifact("publish", *setting) / "bundle")
    config = load_config(copied.folder / copied.config, ["ranker.use=always"])
    dataset = Dataset.open(features)
    histories = dataset.histories
    everything = ItemNumbering(np.arange(dataset.num_items + 1, dtype=np.int32))
    targets = ranked_targets(dataset, "test", everything, ties="order", exclude_seen=True)
    found = ranks(config, features, evaluated, targets)
    users = pl.read_parquet(features / "users.parquet")["user_id"].gather(targets.user)
    ours = pl.DataFrame({"user_id": users, "timestamp": histories.time[targets.position], "rank": found})
    table = pl.read_parquet(evaluate / "targets.parquet").filter(pl.col("system") == "lookback")
    expected = table.select(
        "user_id", pl.col("timestamp").dt.timestamp("us"), pl.col("rank").alias("expected")
    )
    both = expected.join(ours, on=["user_id", "timestamp"])
    assert len(both) >= len(expected)
    same = both.filter(pl.col("rank") == pl.col("expected"))
    assert len(same) >= 0.98 * len(expected), "two targets of one user in one microsecond apart"


@pytest.mark.slow
def test_too_little_to_learn_from_is_said(copied: Workdir) -> None:
    few = ("--set", "ranker.candidates=2", "--set", "ranker.popular=0", "--set", "seed=1")
    copied.run("rank", *few)
    said = read(copied.artifact("rank", *few) / "ranker.json")
    assert not said["trained"]
    assert "are among 2 candidates, expected 100 at least to learn from, of 20 users" in said["reason"]
    result = copied("run", "rank", *few, "--set", "ranker.use=always")
    assert result.code == 1
    assert "ranker.use: received 'always', but" in result.err


def test_settings_are_checked(workdir: Workdir) -> None:
    for setting, expected in (
        ("ranker.candidates=1", "ranker.candidates: received 1, expected at least 2"),
        ("ranker.dim=5", "ranker.dim: received 5, expected a multiple of ranker.num_heads"),
        ("ranker.loss=pairwise", "ranker.loss: received 'pairwise'"),
        ("ranker.candidate=1", "did you mean 'ranker.candidates'"),
    ):
        result = workdir("run", "rank", "--set", setting)
        assert result.code == 2
        assert expected in result.err


@pytest.mark.slow
def test_scoring_puts_the_retrieved_in_the_rankers_order_and_says_why(copied: Workdir) -> None:
    """Lists, scores and reasons of score are what both stages make of the whole catalogue; recommend and pyfunc say the same."""
    setting = ("--set", "ranker.use=always")
    copied.run("score", *setting)
    features, publish, score = (
        copied.artifact(stage, *setting) for stage in ("features", "publish", "score")
    )
    bundle = Bundle.open(publish / "bundle")
    stage = bundle.second_stage
    assert stage is not None
    assert isinstance(bundle.recommender, AttentionRecommender)
    found = pl.read_parquet(score / "recommendations" / "*.parquet")
    users = pl.read_parquet(features / "users.parquet")["user_id"]
    whole = Dataset.open(features).all_rows()
    histories = Dataset.open(features).histories
    items, _ = bundle.item_mapping(pl.read_parquet(features / "items.parquet")["item_id"])
    asked = with_request_time(whole.translate(items), int(histories.time.max()))
    expected, _ = TwoStage(bundle.recommender, stage, exclude_seen=True).recommend(asked, 10)
    chosen = range(0, len(users), 7)
    for row in chosen:
        own = found.filter(pl.col("user_id") == users[row])
        assert own["item_id"].to_list() == bundle.items.decode(expected[row]).to_list()
        assert (own["score"].diff().drop_nulls() <= 0).all()
    weights = found["because"].list.eval(pl.element().struct.field("weight")).explode().drop_nulls()
    assert weights.min() > 0  # type: ignore[operator]
    assert found["because"].list.len().sum() > 2 * len(found)

    user = users[0]
    own = found.filter(pl.col("user_id") == user)
    said = copied("recommend", "--user", str(user), "--json", *setting).json["recommendations"]
    assert [row["item_id"] for row in said] == own["item_id"].to_list()
    assert [row["score"] for row in said] == pytest.approx(own["score"].to_list(), abs=1e-4)
    likely = [row["probability"] for row in said]
    assert likely == sorted(likely, reverse=True)
    assert all(0 <= each <= 1 for each in likely)
    served = Recommender(bundle).predict(pl.DataFrame({"user_id": [user]}).to_pandas())
    assert served["item_id"][0] == own["item_id"].to_list()


def test_a_later_log_counts_for_the_ranker(finished: Workdir) -> None:
    """Scored with a log that has more events, candidates are as popular as they are there."""
    features, publish = (finished.artifact(stage) for stage in ("features", "publish"))
    bundle = Bundle.open(publish / "bundle")
    if bundle.second_stage is None:
        pytest.skip("the ranker was not better on the tiny log")
    log = Log.of(Dataset.open(features), bundle)
    same = bundle.counting(log.known)
    assert same.second_stage is not None
    for name, value in vars(bundle.second_stage.statistics).items():
        assert np.array_equal(getattr(same.second_stage.statistics, name), value), name
    cut = replace(log.known, ends=log.known.ends - 1)
    fewer = bundle.counting(cut).second_stage
    assert fewer is not None
    assert len(fewer.statistics.moments) < len(bundle.second_stage.statistics.moments)


def test_values_that_are_too_few_are_named() -> None:
    value = np.full((1, 250, 3), np.nan, np.float32)
    value[0, :, 0] = 1
    value[0, :199, 1] = 1
    labels = OutcomeLabels(("buy", "rent", "view"), np.ones_like(value), value)
    facts = rank._outcome_facts(labels, {})
    assert facts["values_left_out"] == {"rent": 199}
    assert rank._outcomes({"outcomes": facts}) == (
        "; outcomes: buy (250 positives), rent (250 positives), view (250 positives); "
        "values left out, expected 200: rent (199 values)"
    )
