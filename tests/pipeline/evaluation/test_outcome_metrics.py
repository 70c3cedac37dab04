"""Quality of predicted outcomes and both orders of the lists, by pencil."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from models.histories import histories_from_lists
from models.ranking.outcomes import OutcomeEvents, OutcomeLabels, Utility
from models.ranking.predictions import Predictions
from models.ranking.training import Retrieved
from pipeline.evaluation.metrics_report import MetricSettings
from pipeline.evaluation.outcome_metrics import HeldOutLists, _quality, _realised, orders
from pipeline.evaluation.outcome_quality import OutcomeOrders
from pipeline.evaluation.report import EvaluationReport
from tests.evaluation_reports import evaluation_report

NAN = float("nan")
TYPES = ("click", "buy")
SETTINGS = MetricSettings((2,), 200, 0)


def lists() -> HeldOutLists:
    """Three candidates of three users: the first clicks the first, the second buys the third for 8, the last is idle."""
    items = np.array([[1, 2, 3], [1, 2, 3], [4, 5, 0]], np.int32)
    log = replace(histories_from_lists([[9]] * 3), request_time=np.zeros(3, np.int64))
    target, request = np.array([1, 3], np.int32), np.array([0, 1])
    retrieved = Retrieved.of(log, items, np.zeros((3, 3), np.float32), target, request, np.arange(3))
    events = OutcomeEvents(
        np.array([0, 1, 1]),
        np.array([1, 3, 3], np.int32),
        np.array([0, 0, 1]),
        np.array([NAN, NAN, 8], np.float32),
    )
    return HeldOutLists(retrieved, OutcomeLabels.of(("click", "buy"), items, events))


def predictions() -> Predictions:
    """By score the candidates come as they are; the third of each full list is the likeliest buy."""
    score = np.array([[3, 2, 1], [3, 2, 1], [2, 1, -np.inf]], np.float32)
    probability = np.full((3, 3, 2), 0.1, np.float32)
    probability[:2, 2, 1] = 0.5
    probability[2, 2] = NAN
    value = np.full((3, 3, 2), NAN, np.float32)
    value[..., 1] = 6
    return Predictions(score, probability, value)


def test_both_orders_by_pencil() -> None:
    found = orders(predictions(), TYPES, lists(), {"click": 1.0, "buy": "value"}, SETTINGS)
    assert (found.requests, found.users) == (2, 2)
    second = 1 / np.log2(3)
    # by score the lists are 1, 2; by utility 3, 1: the first user's click comes second, the other's third item first
    assert found.metrics["next"] == pytest.approx({"ndcg@2": (1 + 0) / 2, "utility@2": (1 + 0) / 2})
    assert found.metrics["utility"] == pytest.approx({"ndcg@2": (second + 1) / 2, "utility@2": (1 + 9) / 2})
    assert found.paired["utility@2"].difference == pytest.approx(4.5)
    low, high = found.intervals["utility"]["utility@2"]
    assert low == 1
    assert high == 9


def test_an_outcome_without_a_head_is_realised_but_orders_nothing() -> None:
    """As `utility@k` of all systems: what users did counts, predicted or not."""
    found = predictions()
    of_clicks = Predictions(found.score, found.probability[..., :1], found.value[..., :1])
    own = orders(of_clicks, TYPES[:1], lists(), {"click": 1.0, "buy": "value"}, MetricSettings((3,), 200, 0))
    assert own.metrics["next"] == own.metrics["utility"]
    assert own.metrics["next"]["utility@3"] == pytest.approx((1 + 9) / 2)


def test_quality_by_pencil() -> None:
    found = _quality(predictions(), lists(), 1)
    assert (found.candidates, found.positives, found.values) == (8, 1, 1)
    losses = 6 * -np.log(0.9) + 2 * -np.log(0.5)
    assert found.log_loss == pytest.approx(losses / 8, rel=1e-5)
    assert found.base_log_loss == pytest.approx(-(np.log(1 / 8) + 7 * np.log(7 / 8)) / 8, rel=1e-5)
    assert found.auc == pytest.approx((6 + 0.5) / 7)
    assert found.value_error == pytest.approx(2)
    assert found.base_value_error == 0
    assert _quality(predictions(), lists(), 0).value_error is None


def test_realised_utility_of_any_lists() -> None:
    events = OutcomeEvents(
        np.array([0, 0, 1]),
        np.array([7, 8, 7], np.int32),
        np.array([0, 1, 0]),
        np.array([NAN, 5, NAN], np.float32),
    )
    utility = Utility.of({"click": 0.5, "buy": "value"}, ["click", "buy"])
    shown = np.array([[7, 8], [8, 0]], np.int32)
    assert _realised(utility, ["click", "buy"], shown, events).tolist() == [5.5, 0]


def test_the_price_of_utility_in_words_and_in_the_report(tmp_path: Path) -> None:
    found = orders(predictions(), TYPES, lists(), {"click": 1.0, "buy": "value"}, SETTINGS)
    assert found.sentence == "The order of utility shows no more utility than that of the next item."
    gained = replace(found.paired["utility@2"], difference=0.1, low=0.05)
    lost = replace(found.paired["ndcg@2"], difference=-0.05)
    dearer = OutcomeOrders(
        2, 2, {"next": {"ndcg@2": 0.5, "utility@2": 0.5}}, {}, {"ndcg@2": lost, "utility@2": gained}
    )
    assert dearer.sentence == (
        "The order of utility brings 20.0% more utility; each percent of it costs 0.50 % of ndcg@2."
    )
    from_nothing = replace(dearer, metrics={"next": {"ndcg@2": 0.5, "utility@2": 0.0}})
    assert from_nothing.sentence == (
        "The order of utility brings 0.1 more utility@2 per list, from 0; it costs 0.0500 of ndcg@2."
    )
    from_debt = replace(
        from_nothing,
        metrics={"next": {"ndcg@2": 0.5, "utility@2": -2.0}},
        paired={**dearer.paired, "ndcg@2": replace(lost, difference=0.0)},
    )
    assert from_debt.sentence == (
        "The order of utility brings 0.1 more utility@2 per list, from -2; it costs no ndcg@2."
    )
    report = replace(
        evaluation_report({"lookback": {"ndcg@10": 0.5}}),
        outcomes={"buy": _quality(predictions(), lists(), 1)},
        orders=found,
    )
    report.save(tmp_path)
    assert EvaluationReport.load(tmp_path) == report
    tree = json.loads((tmp_path / "metrics.json").read_text())
    assert {"auc", "log_loss", "calibration_error"} <= set(tree["outcomes"]["buy"])
    assert set(tree["orders"]["metrics"]) == {"next", "utility"}
