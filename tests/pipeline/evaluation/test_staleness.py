"""Metric by age of model and lists, by pencil."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from features.histories.numbering import ItemNumbering
from pipeline.dataset.dataset import Dataset
from pipeline.dataset.night_targets import night_targets
from pipeline.dataset.protocol import DAY, Nights
from pipeline.dataset.targets import RankedTargets
from pipeline.evaluation.metrics_report import MetricSettings
from pipeline.evaluation.ranking import Part
from pipeline.evaluation.report import Bounded, StaleAge, Staleness
from pipeline.evaluation.staleness import LISTS, MODEL, POPULARITY, as_of, by_age
from tests.evaluation_reports import evaluation_report
from tests.factories import jagged
from tests.pipeline.dataset.test_night_targets import split_of

SETTINGS = MetricSettings((1, 10), 200, 0)
EVERY = ItemNumbering(np.arange(5, dtype=np.int32))
NIGHTS = Nights(np.array([10 * DAY, 17 * DAY]), 7 * DAY)
HISTORIES = jagged(
    [
        [(1 * DAY, 1), (9 * DAY, 2), (11 * DAY, 3), (18 * DAY, 4)],
        [(2 * DAY, 1), (16 * DAY, 2), (17 * DAY, 3)],
        [(12 * DAY, 1), (20 * DAY, 2)],
    ]
)


def dataset() -> Dataset:
    return Dataset(Path(), HISTORIES, split_of(HISTORIES, 10 * DAY))


def test_frozen_histories_end_before_the_first_night():
    """At the second night user 0 has had 1, 2, 3 and user 2 item 1; before the first one user 0 had 1, 2, user 2 nothing."""
    targets = night_targets(dataset(), NIGHTS, EVERY, exclude_seen=False, trained=EVERY.known)
    assert targets.user.tolist() == [0, 1, 2, 0, 1, 2]
    assert targets.histories.lengths.tolist() == [2, 1, 0, 3, 2, 1]
    part = Part(HISTORIES_ROWS, EVERY, targets, EVERY)
    frozen = as_of(targets, dataset(), part, 10 * DAY)
    assert frozen.histories.lengths.tolist() == [2, 1, 0, 2, 1, 0]
    assert set(frozen.moment.tolist()) == {10 * DAY}
    assert frozen.item.tolist() == targets.item.tolist(), "the targets are those of the night"
    assert frozen.histories.item_index[frozen.histories.gather()[1]].tolist() == [1, 2, 1, 1, 2, 1]


HISTORIES_ROWS = dataset().all_rows()


def ages_of(model: list[float], lists: list[float], popular: list[float]) -> tuple[StaleAge, ...]:
    """Ages 0 and 7 of three users each, who take one item at each night."""
    targets = night_targets(dataset(), NIGHTS, EVERY, exclude_seen=False, trained=EVERY.known)
    ranks = {MODEL: model, LISTS: lists, POPULARITY: popular}
    arrays = {name: np.array(ranks[name]) for name in ranks}
    return by_age(arrays, one_each(targets), (targets.moment - 10 * DAY) / DAY, SETTINGS)


def one_each(targets: RankedTargets) -> RankedTargets:
    """The first target of each request."""
    return targets.select(np.flatnonzero(np.diff(targets.request, prepend=-1)))


def test_values_and_differences_by_pencil():
    """NDCG@1 is the share of first ranks: the model 1, then 2/3; the lists 1, then 1/3; popularity 1/3 at both."""
    first, later = ages_of([1, 1, 1, 1, 1, 2], [1, 1, 1, 1, 2, 2], [1, 2, 2, 1, 2, 2])
    assert (first.days, later.days, later.user_nights, later.users) == (0, 7, 3, 3)
    assert (first.model.value, first.lists.value) == (1, 1)
    assert (later.model.value, later.lists.value) == pytest.approx((2 / 3, 1 / 3))
    assert later.lists_minus_model.difference == pytest.approx(-1 / 3)
    assert later.model_change.difference == pytest.approx(-1 / 3)
    assert later.model_change_minus_popularity.difference == pytest.approx(-1 / 3)
    assert later.model_change.low <= -1 / 3 <= later.model_change.high
    assert (first.model_change.difference, first.lists_minus_model.difference) == (0, 0)


def test_a_night_that_is_harder_for_all_is_no_loss_of_the_model():
    first, later = ages_of([1, 1, 1, 2, 2, 2], [1, 1, 1, 2, 2, 2], [1, 1, 1, 2, 2, 2])
    assert later.model_change.high < 0
    assert later.model_change_minus_popularity.difference == 0
    advice = Staleness("ndcg@1", (first, later)).sentences
    assert advice == (
        "No loss of a model trained up to 7 days before shows.",
        "No loss of lists up to 7 days old shows.",
    )


def test_advice_names_the_least_age_with_a_loss():
    first, later = ages_of([1, 1, 1, 2, 2, 2], [1, 1, 1, 2, 2, 2], [2, 2, 2, 2, 2, 2])
    stale = Staleness("ndcg@1", (first, replace(later, days=3.0), later))
    assert stale.sentences[0] == (
        "Retrain every 3 days: after 3 days the model has lost 100% (-1.0000, 95 % interval -1.0000 to -1.0000)."
    )
    first, later = ages_of([1, 1, 1, 1, 1, 1], [1, 1, 1, 2, 2, 2], [2, 2, 2, 2, 2, 2])
    assert Staleness("ndcg@1", (first, later)).sentences[1] == (
        "Score again every 7 days: after 7 days the lists have lost 100% (-1.0000, 95 % interval -1.0000 to -1.0000)."
    )
    assert Staleness("ndcg@1", (first,), (30.0,)).sentences == (
        "The test holds no later night, so no loss can be measured.",
    )


def test_it_is_read_back_from_metrics_json(tmp_path: Path):
    ages = ages_of([1, 1, 1, 1, 1, 2], [1, 1, 1, 1, 2, 2], [1, 2, 2, 1, 2, 2])
    report = evaluation_report({"lookback": {"ndcg@1": 0.5}}, stale=Staleness("ndcg@1", ages, (14.0,)))
    report.save(tmp_path)
    found = type(report).load(tmp_path).stale
    assert found == report.stale
    assert found is not None
    assert isinstance(found.ages[0].model, Bounded)
