"""The sections that the pipeline reads itself: refused where they make no sense."""

from typing import Any

import pydantic
import pytest

from pipeline.experiment_section import ExperimentConfig
from pipeline.sections import (
    BASELINES,
    DataConfig,
    EvaluateConfig,
    ScoreConfig,
    Section,
    TrackingConfig,
    TuneConfig,
)


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        (EvaluateConfig, {"k": []}, r"evaluate.k: received \[\], expected list lengths of at least 1"),
        (EvaluateConfig, {"k": [0, 10]}, r"evaluate.k: received \[0, 10\]"),
        (EvaluateConfig, {"baselines": ["magic"]}, "received 'magic', expected all, names among popularity"),
        (
            EvaluateConfig,
            {"recent_days": []},
            r"evaluate.recent_days: received \[\], expected numbers above 0",
        ),
        (EvaluateConfig, {"recent_days": 0}, "evaluate.recent_days: received 0"),
        (EvaluateConfig, {"training_fractions": [1.5]}, "evaluate.training_fractions: .*, 1 at most"),
        (
            EvaluateConfig,
            {"gate_metric": "ndcg@7"},
            "received 'ndcg@7', expected one of ndcg@10, hit_rate@10",
        ),
        (
            EvaluateConfig,
            {"k": [20], "gate_metric": "ndcg@10"},
            "received 'ndcg@10', expected one of ndcg@20",
        ),
        (EvaluateConfig, {"resamples": 99}, "greater than or equal to 100"),
        (
            EvaluateConfig,
            {"stale_days": [-1]},
            r"evaluate.stale_days: received \[-1.0\], expected days of at",
        ),
        (
            ScoreConfig,
            {"users": "foo"},
            "score.users: received 'foo', expected all, a .parquet file with user_id",
        ),
        (ScoreConfig, {"at": "noon"}, "score.at: received 'noon', expected an ISO date"),
        (
            ScoreConfig,
            {"allow": "items.csv"},
            "score.allow: .*a .parquet file with item_id, or a list of ids",
        ),
        (ScoreConfig, {"availability": "x.csv"}, "score.availability: .*a .parquet file with item_id "),
        (ScoreConfig, {"model": "best"}, "score.model: received 'best', expected run, champion"),
        (ScoreConfig, {"model": "models:/a/b/c"}, "score.model: received 'models:/a/b/c', expected run"),
        (ScoreConfig, {"model": "models:/x"}, "models:/NAME/VERSION"),
        (ScoreConfig, {"diversity": 1.0}, "less than 1"),
        (TrackingConfig, {"port": 0}, "greater than or equal to 1"),
        (DataConfig, {}, "Field required"),
        (TuneConfig, {"pruner": "best"}, "'median', 'halving' or 'none'"),
    ],
)
def test_sections_that_make_no_sense(section: type[Section], values: dict[str, Any], message: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=message):
        section(**values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"arms": {"champion": 0.9, "challenger": 0.2}},
            "shares that add up to 1.1, expected 1, such as { champion",
        ),
        ({"arms": {"champion": 0.9}}, "experiment.arms: received 1 arms, expected at least two, such as"),
        (
            {"arms": {"champion": 0.9, "gru": 0.1}},
            "experiment.arms: received 'gru', expected champion, challenger, popularity, .*, or models:/NAME/VERSION",
        ),
        (
            {"arms": {"champion": 1.0, "challenger": 0.0}},
            "experiment.arms: received challenger = 0, expected a share above 0, or no such arm",
        ),
        ({"salt": ""}, "experiment.salt: received 0 bytes, expected 1 to 64"),
        ({"salt": "ä" * 33}, "experiment.salt: received 66 bytes, expected 1 to 64"),
        ({"start": "soon"}, "experiment.start: received 'soon', expected an ISO date"),
        ({"smallest_effect": 0}, "greater than 0"),
    ],
)
def test_experiments_that_make_no_sense(values: dict[str, Any], message: str) -> None:
    right: dict[str, Any] = {
        "name": "ranker-2",
        "arms": {"champion": 0.7, "models:/shop/3": 0.2, "popularity": 0.1},
        "salt": "2026-11",
        "start": "2026-11-30",
    }
    ExperimentConfig(**right)
    with pytest.raises(pydantic.ValidationError, match=message):
        ExperimentConfig(**(right | values))


def test_list_lengths_are_sorted_and_each_is_measured_once() -> None:
    assert EvaluateConfig(k=[20, 5, 20], gate_metric="mrr@5").k == [5, 20]


def test_the_gate_s_metric_follows_the_lists_unless_it_is_set_or_there_is_no_gate() -> None:
    assert EvaluateConfig().gate_metric == "ndcg@10"
    assert EvaluateConfig(k=[20, 50]).gate_metric == "ndcg@20"
    assert EvaluateConfig(k=[20], gate=False).gate_metric == "ndcg@10"
    assert EvaluateConfig(k=[20], gate=False, gate_metric="ndcg@7").gate_metric == "ndcg@7"


@pytest.mark.parametrize(
    "model",
    ["run", "champion", "models:/lookback-x/3", "models:/lookback-x/latest", "models:/lookback-x@challenger"],
)
def test_models_to_score_with(model: str) -> None:
    assert ScoreConfig(model=model).model == model


def test_files_ids_and_baselines_that_are_taken() -> None:
    score = ScoreConfig(allow="a.parquet", deny=["1", "2"], availability="b.parquet", users="2026-01-31")
    assert (score.allow, score.deny) == ("a.parquet", ["1", "2"])
    assert EvaluateConfig(baselines=list(BASELINES)).baselines == list(BASELINES)


def test_baselines_in_their_order_then_classes_of_ones_own() -> None:
    mixed = EvaluateConfig(baselines=["a.b:C", "ease", "popularity", "a:D", "a.b:C"])
    assert mixed.baseline_names == ("popularity", "ease", "a.b:C", "a:D")
    assert mixed.custom_baselines == ("a.b:C", "a:D")
    assert EvaluateConfig(baselines=["a:B", "all"]).baseline_names == (*BASELINES, "a:B")
    assert EvaluateConfig().baseline_names == BASELINES
    assert EvaluateConfig(baselines=[]).baseline_names == ()
    for wrong in ("a.b", "a.b:", ":C", "a..b:C", "a/b.py:C", "a:B.C", "1a:B"):
        with pytest.raises(pydantic.ValidationError, match=r"or package\.module:Class"):
            EvaluateConfig(baselines=[wrong])


def test_a_search_space_without_quotes_is_a_table_in_a_table() -> None:
    nested: dict[str, Any] = {"train": {"dropout": [0.1], "learning_rate": {"low": 0.1, "high": 0.2}}}
    quoted: dict[str, Any] = {"train.dropout": [0.1], "train.learning_rate": {"low": 0.1, "high": 0.2}}
    assert TuneConfig(space=nested) == TuneConfig(space=quoted)
    assert set(TuneConfig(space=nested).space) == set(quoted)


def test_sections_are_frozen() -> None:
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        ScoreConfig().k = 3  # type: ignore[misc]


def test_age_0_is_always_among_the_ages() -> None:
    assert EvaluateConfig().stale_days == []
    assert EvaluateConfig(stale_days=[14, 1, 7, 1]).stale_days == [0, 1, 7, 14]
