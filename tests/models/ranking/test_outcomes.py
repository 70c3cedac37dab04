"""Outcomes: labels, losses and utility by pencil; heads find what was planted, together with the order."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from models import checkpoint
from models.ranking.calibration_quality import quality
from models.ranking.outcomes import NO_TYPE, OutcomeEvents, OutcomeHeads, OutcomeLabels, Utility
from models.ranking.outputs import log_loss_gain, outputs
from models.ranking.predictions import Predictions, calibrate_outcomes, predict
from models.ranking.ranker import SecondStage
from models.ranking.training import RankerFit, Retrieved, _with_idle, fit_ranker
from models.settings.outcomes import OutcomeSettings, check_order, check_utility
from tests.models.ranking.test_ranker import SETTINGS, a_log, a_stage, candidates

TYPES = ("click", "purchase")
NAN = float("nan")


def test_labels_by_pencil() -> None:
    items = np.array([[4, 2, 0], [5, 4, 2]], np.int32)
    events = OutcomeEvents(
        np.array([0, 0, 0, 0, 1, 1, 1]),
        np.array([4, 4, 4, 9, 4, 2, 0], np.int32),  # 9 is no candidate, 0 unknown
        np.array([0, 1, 1, 0, 1, NO_TYPE, 0]),
        np.array([NAN, 3, 2, 1, NAN, 1, 1], np.float32),
    )
    labels = OutcomeLabels.of(TYPES, items, events)
    assert labels.done[0].tolist() == [[1, 1], [0, 0], [0, 0]]
    assert labels.done[1, :2].tolist() == [[0, 0], [0, 1]]
    assert np.isnan(labels.done[1, 2]).all(), "an event without a type: the log does not say"
    assert labels.value[0, 0, 1] == 5, "both purchases"
    assert np.isfinite(labels.value).sum() == 1, "an event without a value has none"
    assert labels.num_positives == {"click": 1, "purchase": 2}
    assert labels.num_values == {"click": 0, "purchase": 1}
    assert labels.of_types(["purchase"]).select(np.array([1])).done[0, 1].tolist() == [1]
    none = OutcomeLabels.of(
        TYPES, items[:0], replace(events, request=events.request[:0], item=events.item[:0])
    )
    assert none.done.shape == (0, 3, 2)


def test_uncertainty_weighs_each_task_by_pencil() -> None:
    """Cross-entropy exp(-s) L + s / 2, squared error half of it; unknown outcomes, missing values and padding do not count."""
    heads = OutcomeHeads(TYPES, ["purchase"], 3)
    with torch.no_grad():
        heads.log_variance.copy_(torch.tensor([np.log(2), np.log(4), 0.0, np.log(8)]))
        heads.value_mean.fill_(10)
        heads.value_scale.fill_(2)
    logits = torch.tensor([[[0.0, 1.0], [0.0, 5.0], [9.0, 9.0]]])
    values = torch.tensor([[[0.5], [7.0], [7.0]]])
    done = torch.tensor([[[1.0, 1.0], [0.0, NAN], [1.0, 1.0]]])
    value = torch.tensor([[[NAN, 13.0], [NAN, NAN], [NAN, 1.0]]])
    weight = torch.tensor([[1.0, 3.0, 0.0]])
    found = heads.loss(torch.tensor(0.6), logits, values, done, value, weight)
    purchase = np.log1p(np.exp(-1))
    expected = 0.6 / 2 + np.log(2) / 4 + purchase + (1.5 - 0.5) ** 2 / 2 / 8
    assert float(found.detach()) == pytest.approx(
        expected + (np.log(2) + np.log(4) + np.log(8)) / 2, rel=1e-5
    )


def test_values_stay_within_those_seen() -> None:
    heads = OutcomeHeads(TYPES, ["purchase"], 3)
    done = np.array([[[1, 1], [0, 1], [0, 0], [0, NAN]]], np.float32)
    heads.start(
        OutcomeLabels(TYPES, done, np.array([[[NAN, 2], [NAN, 6], [NAN, NAN], [NAN, NAN]]], np.float32))
    )
    assert torch.sigmoid(heads.bias[:2]).tolist() == pytest.approx([1 / 4, 2 / 3])
    amounts = heads.amounts(torch.tensor([[[-9.0], [0.0], [0.5], [9.0]]]))
    assert amounts[0, :, 1].tolist() == [2, 4, 5, 6]
    assert amounts[..., 0].isnan().all()


def test_utility_by_pencil() -> None:
    utility = Utility.of({"click": 0.1, "purchase": "value", "like": 3.0}, (*TYPES, "view"))
    probability = np.array([[0.5, 0.2, 0.9], [NAN, 0.5, 0.9]], np.float32)
    value = np.array([[NAN, 10, NAN], [NAN, NAN, NAN]], np.float32)
    assert utility(probability, value) == pytest.approx([0.05 + 2, 0])


def test_orders_by_pencil() -> None:
    score = np.array([[3, 2, 1, -np.inf]], np.float32)
    probability = np.array([[[0.1], [0.4], [0.4], [NAN]]], np.float32)
    found = Predictions(score, probability, np.full_like(probability, NAN))
    items = np.array([[7, 8, 9, 0]], np.int32)
    assert found.order(items, None).tolist() == [[0, 1, 2, 3]]
    utility = Utility.of({"click": 2.0}, ["click"])
    assert found.order(items, utility).tolist() == [[1, 2, 0, 3]], "equal utilities: by score"
    assert found.utility(utility)[0] == pytest.approx([0.2, 0.8, 0.8, -np.inf])


def planted(rows: int, seed: int = 5) -> Retrieved:
    """The candidate whose content is most like the last item's is clicked, and bought for its number where it is very like it."""
    log, (items, scores) = a_log(rows, seed), candidates(rows, 11, seed)
    likeness = a_stage().statistics.features(log, items, scores, ("content_of_last",))[..., 0]
    request, place = np.arange(rows, dtype=np.int64), likeness.argmax(1)
    target = items[request, place]
    buys = np.flatnonzero(likeness.max(1) > 0.9)
    events = OutcomeEvents(
        np.concatenate([request, buys]),
        np.concatenate([target, target[buys]]),
        np.repeat([0, 1], [rows, len(buys)]),
        np.concatenate([np.full(rows, NAN), target[buys]]).astype(np.float32),
    )
    retrieved = Retrieved.of(log, items, scores, target, request, request)
    return replace(retrieved, outcomes=OutcomeLabels.of(TYPES, items, events))


@pytest.fixture(scope="module")
def trained() -> RankerFit:
    settings = replace(SETTINGS, epochs=4, learning_rate=0.03, dropout=0.0)
    stage = a_stage(loud=False, settings=settings)
    stage.ranker.add_outcomes(TYPES, ["purchase"])
    fitted, held_out = fit_ranker(stage, planted(200), 0), planted(500, 7)
    assert held_out.outcomes is not None
    calibrate_outcomes(stage, held_out.histories, held_out.items, held_out.scores, held_out.outcomes)
    return fitted


def test_heads_and_order_are_learned_together(trained: RankerFit) -> None:
    lists = planted(150, 9)
    assert lists.outcomes is not None
    found = predict(trained.stage, lists.histories, lists.items, lists.scores)
    for place, name in enumerate(TYPES):
        done = lists.outcomes.done[..., place].ravel() == 1
        own = quality(found.probability[..., place].ravel(), done)
        base = quality(np.full(len(done), done.mean(), np.float32), done)
        assert own.log_loss < 0.8 * base.log_loss, name
        assert own.expected_per_hit == pytest.approx(1, abs=0.25)
    best, first = trained.history[trained.best_epoch], trained.history[0]
    assert best.ndcg > first.ndcg + 0.2
    assert first.outcome_gain == 0
    assert best.outcome_gain is not None
    assert best.outcome_gain > 0.2
    assert np.isnan(found.value[..., 0]).all()
    assert found.value[..., 1].min() >= 1
    assert np.isfinite(found.probability).all()


def test_heads_are_saved_and_loaded(trained: RankerFit, tmp_path: Path) -> None:
    stage, lists = trained.stage, planted(7, 2)
    checkpoint.save_ranker(stage.ranker, tmp_path)
    loaded = SecondStage(checkpoint.load_ranker(tmp_path), stage.statistics, stage.own)
    both = [predict(own, lists.histories, lists.items, lists.scores) for own in (stage, loaded)]
    for one, other in zip(*(vars(found).values() for found in both), strict=True):
        assert np.array_equal(one, other, equal_nan=True)
    score = stage.score(lists.histories, lists.items, lists.scores)
    assert np.array_equal(score, outputs(stage, lists.histories, lists.items, lists.scores).score)


def test_lists_without_a_relevant_candidate_count_for_the_heads_with_their_number() -> None:
    settings = replace(SETTINGS, epochs=1, learning_rate=1e-6)
    some, idle = planted(40), planted(300, 11)
    assert some.outcomes is not None
    request = np.arange(340, dtype=np.int64)
    log = a_log(340, 8)
    items = np.concatenate([some.items, idle.items])
    none = np.zeros((300, 11, 2), np.float32)
    done = np.concatenate([some.outcomes.done, none])
    both = Retrieved(
        log,
        items,
        np.concatenate([some.scores, idle.scores]),
        np.concatenate([some.relevant, np.zeros_like(idle.relevant)]),
        np.concatenate([some.num_relevant, np.zeros(300, np.int64)]),
        request,
        outcomes=OutcomeLabels(TYPES, done, np.full_like(done, NAN)),
    )
    stage = a_stage(loud=False, settings=settings)
    stage.ranker.add_outcomes(TYPES, ())
    rows = np.flatnonzero(both.is_hit)
    train, labels = _with_idle(both, rows, ~both.is_hit, np.random.default_rng(0))
    assert len(train) == 80
    assert labels.weight is not None
    assert labels.weight.sum() == pytest.approx(340 * 11), "as many as stand for all lists"
    assert np.isfinite(fit_ranker(stage, both, 0).history[1].loss)


def test_gain_by_pencil() -> None:
    done = np.array([[[1], [0], [0], [NAN]]], np.float32)
    labels = OutcomeLabels(("click",), done, np.full_like(done, NAN))
    items = np.array([[1, 2, 3, 4]], np.int32)
    rate = np.full((1, 4, 1), np.log(0.5), np.float32)
    assert log_loss_gain(rate, labels, items) == pytest.approx(0, abs=1e-6)
    sure = np.array([[[40], [-40], [-40], [40]]], np.float32)
    assert log_loss_gain(sure, labels, items) == pytest.approx(1)
    assert log_loss_gain(sure, labels, 0 * items) == 0


def test_settings_refuse_what_cannot_be_learned() -> None:
    with pytest.raises(ValueError, match=r"outcomes\.types: received \[\], expected different event types"):
        OutcomeSettings([])
    with pytest.raises(ValueError, match=r"outcomes\.types: received \['a', 'a'\]"):
        OutcomeSettings(["a", "a"])
    weights = {"click": 1.0, "hide": -1.0, "view": 0.0}
    OutcomeSettings(["click"]).check_types(weights)
    OutcomeSettings(["buy"]).check_types({})  # the log decides
    with pytest.raises(
        ValueError, match=r"received 'hide', of weight -1 in events\.types; expected .*: click$"
    ):
        OutcomeSettings(["hide"]).check_types(weights)
    with pytest.raises(ValueError, match=r"received 'view', of weight 0 in events\.types"):
        OutcomeSettings(["view"]).check_types(weights)
    with pytest.raises(ValueError, match=r"received 'buy', no type of events\.types"):
        OutcomeSettings(["buy"]).check_types(weights)


@pytest.mark.parametrize(
    ("utility", "message"),
    [
        (
            {"buy": 1.0},
            r"utility\.buy: received the utility of an outcome that is not learned, expected .*: click",
        ),
        ({"click": -1.0}, r"utility\.click: received -1\.0, expected 0 or more, or 'value'"),
        ({"click": NAN}, r"utility\.click: received nan"),
        ({"click": float("inf")}, r"utility\.click: received inf"),
        ({"click": 0.0}, r"utility: received no utility above 0"),
        ({}, r"utility: received no utility above 0"),
    ],
)
def test_utilities_are_amounts_of_learned_outcomes(utility: dict[str, float], message: str) -> None:
    check_utility({"click": "value"}, ["click"])
    with pytest.raises(ValueError, match=message):
        check_utility(utility, ["click"])


def test_an_order_by_utility_needs_utilities_and_a_ranker() -> None:
    check_order("next", None, "never")
    check_order("utility", {"click": 1.0}, "auto")
    with pytest.raises(ValueError, match=r"score\.order: received 'utility' without a section \[utility\]"):
        check_order("utility", None, "auto")
    with pytest.raises(ValueError, match=r"score\.order: received 'utility' with ranker\.use 'never'"):
        check_order("utility", {"click": 1.0}, "never")
