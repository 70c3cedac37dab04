"""Metrics of ranked targets by pencil: four users with a target each, two systems."""

from dataclasses import replace
from math import log2, sqrt

import numpy as np
import pytest
from numpy.typing import NDArray

from models.evaluation.beyond_accuracy import Catalogue
from models.evaluation.ranks import SystemRanks
from models.histories import histories_from_lists
from pipeline.dataset.targets import NO_HISTORY, UNKNOWN_ITEM, WARM, RankedTargets, counted
from pipeline.evaluation import metrics_report
from pipeline.evaluation.metrics_report import MetricSettings
from pipeline.evaluation.report import ColdTargets
from tests.evaluation_reports import evaluation_report

SETTINGS = MetricSettings((2, 5), 50, 0)
ITEM = np.array([1, 2, 3, 3], np.int32)
COUNTS = np.array([0, 4, 2, 1, 1])
LISTS = np.array([[1, 2], [1, 2], [3, 4], [1, 3]], np.int32)


def system(*rank: float) -> SystemRanks:
    ranks = np.array(rank)
    return SystemRanks(ranks, ranks + 1, LISTS)


RANKED = {"lookback": system(1, 2, 3, np.inf), "popularity": system(2, 2, 2, 2)}


def targets(cold: list[int]) -> RankedTargets:
    user = np.arange(4)
    return RankedTargets.one_each(
        histories_from_lists([[2], [3], [1], [2]]), ITEM, user, user, np.array(cold, np.int8), {}
    )


ALL_WARM = targets([WARM] * 4)


def test_metrics_of_a_rank() -> None:
    """Ranks 1, 2, 3 and a miss at lists of 2: NDCG 1, 1 / log2(3), 0, 0; each user has one target."""
    systems = metrics_report.compute_metrics(RANKED, ALL_WARM, Catalogue(4, COUNTS, None, None), SETTINGS)
    values = systems.values("lookback")
    gains = [1, 1 / log2(3), 0, 0]
    assert values["ndcg@2"] == pytest.approx(sum(gains) / 4)
    assert values["user_ndcg@2"] == pytest.approx(sum(gains) / 4)
    assert values["ndcg@5"] == pytest.approx((1 + 1 / log2(3) + 1 / 2) / 4)
    assert values["hit_rate@2"] == 0.5
    assert values["mrr@5"] == pytest.approx((1 + 1 / 2 + 1 / 3) / 4)
    assert values["pessimistic_hit_rate@2"] == 0.25, "one rank further only the first is hit"
    assert systems.values("popularity")["hit_rate@2"] == 1
    # each target weighs one over the root of its item's events: 4, 2, 1, 1
    weighted = (gains[0] / 2 + gains[1] / sqrt(2)) / (1 / 2 + 1 / sqrt(2) + 1 + 1)
    assert values["debiased_ndcg@2"] == pytest.approx(weighted)


def test_coverage_of_all_lists_together() -> None:
    values, intervals = metrics_report.catalogue_metrics(RANKED, ALL_WARM, 8, SETTINGS)["lookback"]
    assert values["coverage@2"] == 0.5, "items 1 to 4 of eight"
    low, high = intervals["coverage@2"]
    assert low <= 0.5 <= high


@pytest.mark.parametrize(
    ("cold_users", "cold_items", "included"),
    [
        (False, False, [True, False, False, True]),
        (True, False, [True, True, False, True]),
        (False, True, [True, False, True, True]),
        (True, True, [True] * 4),
    ],
)
def test_cold_targets_are_included_where_asked_for(
    cold_users: bool, cold_items: bool, included: list[bool]
) -> None:
    mixed = targets([WARM, NO_HISTORY, UNKNOWN_ITEM, WARM])
    mask = counted(mixed, cold_users=cold_users, cold_items=cold_items)
    assert mask.tolist() == included


def cold(*, cold_items: bool) -> dict[str, ColdTargets]:
    mixed = targets([WARM, NO_HISTORY, UNKNOWN_ITEM, WARM])
    chosen = counted(mixed, cold_users=False, cold_items=cold_items)
    catalogue = Catalogue(4, COUNTS, None, None)
    systems = metrics_report.compute_metrics(
        {name: ranks.select(chosen, chosen) for name, ranks in RANKED.items()},
        mixed.select(chosen),
        catalogue,
        SETTINGS,
    )
    return metrics_report.cold_targets(
        RANKED, mixed, systems, SETTINGS, cold_users=False, cold_items=cold_items
    )


def test_metrics_of_cold_targets() -> None:
    """The second user has no history: rank 2. The third target's item is unknown: rank 3. Warm: ranks 1 and a miss."""
    by_kind = cold(cold_items=False)
    without_history, unknown = by_kind["no_history"], by_kind["unknown_item"]
    assert (without_history.targets, without_history.included, without_history.metrics_with_them) == (
        1,
        False,
        None,
    )
    assert without_history.metrics["lookback"]["mrr@5"] == 0.5
    assert (unknown.targets, unknown.included) == (1, False)
    assert unknown.metrics["lookback"]["mrr@5"] == pytest.approx(1 / 3)
    assert unknown.metrics_with_them is not None
    assert unknown.metrics_with_them["lookback"]["mrr@5"] == pytest.approx((1 + 0 + 1 / 3) / 3)
    assert "novelty@2" not in unknown.metrics_with_them["lookback"], "a metric of lists is no mean over ranks"


def test_metrics_with_cold_targets_that_are_included_already() -> None:
    unknown = cold(cold_items=True)["unknown_item"]
    assert unknown.included
    assert unknown.metrics_with_them is not None
    assert unknown.metrics_with_them["lookback"]["mrr@5"] == pytest.approx((1 + 1 / 3 + 0) / 3)


def test_no_cold_targets_no_metrics() -> None:
    systems = metrics_report.compute_metrics(RANKED, ALL_WARM, Catalogue(4, COUNTS, None, None), SETTINGS)
    by_kind = metrics_report.cold_targets(
        RANKED, ALL_WARM, systems, SETTINGS, cold_users=True, cold_items=True
    )
    assert [(group.targets, dict(group.metrics)) for group in by_kind.values()] == [(0, {}), (0, {})]


def test_segments() -> None:
    """Users 0 and 1 are young, 2 and 3 old; nobody is of the third age."""
    masks: list[tuple[str, str, NDArray[np.bool_]]] = [
        ("age", "young", np.array([True, True, False, False])),
        ("age", "old", np.array([False, False, True, True])),
        ("age", "none", np.zeros(4, bool)),
    ]
    rows = list(metrics_report.segment_metrics(RANKED, ALL_WARM, iter(masks), SETTINGS))
    assert [(row["system"], row["value"], row["targets"], row["users"]) for row in rows] == [
        ("lookback", "young", 2, 2),
        ("lookback", "old", 2, 2),
        ("popularity", "young", 2, 2),
        ("popularity", "old", 2, 2),
    ]
    young, old = rows[:2]
    assert young["ndcg@2"] == pytest.approx((1 + 1 / log2(3)) / 2)
    low, value, high = (float(young[name]) for name in ("ndcg@2_low", "ndcg@2", "ndcg@2_high"))
    assert low <= value <= high
    assert (young["mrr@2"], old["mrr@2"], old["hit_rate@2"]) == (0.75, 0, 0)


def test_mean_and_spread_over_cuts() -> None:
    """0.25 and 0.75: mean 0.5, sample standard deviation sqrt(2 x 0.25^2); what one cut lacks is left out."""
    first = evaluation_report({"lookback": {"ndcg@10": 0.25, "mrr@10": 0.5}, "ease": {"ndcg@10": 0.5}})
    last = evaluation_report({"lookback": {"ndcg@10": 0.75}, "popularity": {"ndcg@10": 0.5}})
    rolling = metrics_report.rolling(
        [replace(first, test_from="2026-01-01"), replace(last, test_from="2026-02-01")]
    )
    assert rolling.mean == {"lookback": {"ndcg@10": 0.5}}
    assert rolling.spread == {"lookback": {"ndcg@10": pytest.approx(0.125**0.5)}}
    assert [cut.test_from for cut in rolling.cuts] == ["2026-01-01", "2026-02-01"]
    assert rolling.cuts[0].metrics == first.metrics
