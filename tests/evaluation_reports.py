"""Evaluation reports for tests."""

from collections.abc import Mapping
from typing import Any

from models.evaluation.bootstrap import NO_DIFFERENCE, Difference, PairedDifference, Verdict
from models.evaluation.off_policy import WEIGHTINGS
from pipeline.evaluation.report import (
    Bounded,
    ColdTargets,
    EvaluationReport,
    Leaks,
    NightsTested,
    OffPolicyEstimate,
    OffPolicyRefused,
    OffPolicyValue,
    SecondStageGain,
    ShownLists,
    StaleAge,
    Staleness,
    SubsetMetrics,
)
from pipeline.sections import MODEL


def evaluation_report(metrics: Mapping[str, Mapping[str, float]], **changes: Any) -> EvaluationReport:
    """A report with these metrics by system, each interval and paired difference .05 to either side; changes: other fields."""
    fields: dict[str, Any] = {
        "protocol": "temporal",
        "test_from": "2026-01-02T00:00:00+00:00",
        "targets_of_a_user": "successive",
        "ties": "order",
        "users": 3,
        "targets": 5,
        "targets_left_out": {"unknown_item": 2, "no_history": 0},
        "num_items": 23,
        "exclude_seen": True,
        "refit_validation": True,
        "resamples": 100,
        "metrics": metrics,
        "intervals": {
            system: {name: [value - 0.05, value + 0.05] for name, value in values.items()}
            for system, values in metrics.items()
        },
        "differences": {
            system: {name: difference(metrics[MODEL][name] - value) for name, value in values.items()}
            for system, values in metrics.items()
            if system != MODEL
        },
        "cold_targets": {
            "no_history": ColdTargets(0, False, {}),
            "unknown_item": ColdTargets(0, False, {}, {}),
        },
        "leaks": Leaks([], {}),
        "tuning": {},
        "not_applicable": {},
        "index": {"recall@10": 1.0},
        "ranker": SecondStageGain(False, "never", "ranker.use is never"),
    }
    return EvaluationReport(**fields | changes)


def difference(value: float, **p_values: float) -> PairedDifference:
    """A paired difference with an interval .05 to either side."""
    low, high = value - 0.05, value + 0.05
    verdict: Verdict = "better" if low > 0 else "worse" if high < 0 else NO_DIFFERENCE
    return PairedDifference(value, low, high, 0.5, verdict, **p_values)


def nightly_report(metrics: Mapping[str, Mapping[str, float]], **changes: Any) -> EvaluationReport:
    """The same of four nights, a caution, two kinds of targets, and repeats (half of each metric) and new items (a quarter)."""

    def part(targets: int, share: float) -> SubsetMetrics:
        values = {
            system: {name: share * value for name, value in own.items()} for system, own in metrics.items()
        }
        ends = {
            system: {name: [value - 0.01, value + 0.01] for name, value in own.items()}
            for system, own in values.items()
        }
        return SubsetMetrics(targets, values, ends)

    halves = {system: {name: value / 2 for name, value in own.items()} for system, own in metrics.items()}
    nightly: dict[str, Any] = {
        "targets_of_a_user": "nightly",
        "targets_left_out": {"nothing_taken": 7, "taken_again": 2, "unknown_item": 0},
        "exclude_seen": False,
        "nights": NightsTested("2026-01-02T00:00:00+00:00", "2026-01-23T00:00:00+00:00", 4, 7.0, 7.0),
        "cautions": ("only 5 user-nights of 3 users: intervals are wide below 500 user-nights or 100 users",),
        "repeats": part(6, 0.5),
        "new": part(9, 0.25),
        "by_targets": {"nightly": metrics, "successive": halves},
    }
    return evaluation_report(metrics, **nightly | changes)


def off_policy() -> dict[str, Any]:
    """Fields of a report with exposures: the model's list as a whole is refused."""
    names = [f"{kind}_{weighting}" for kind in ("ips", "snips", "dr") for weighting in WEIGHTINGS]
    value = OffPolicyValue(0.5, 0.375, 0.625, 1234.0)
    found: dict[str, OffPolicyEstimate] = dict.fromkeys(("dm", *names), value)
    found["snips_list"] = OffPolicyRefused("an effective sample of 7 lists; at least 100 are needed")
    left_out = {"without_rank": 0, "without_propensity": 1, "unfinished": 2}
    return {
        "off_policy": {MODEL: found, "popularity": found},
        "off_policy_lists": ShownLists(2000, 300, 2, 0.625, None, left_out),
    }


def staleness() -> Staleness:
    """Ages 0 and 7: the model keeps .5, the lists fall from .5 to .4; a third age lies beyond the test."""

    def around(value: float) -> Bounded:
        return Bounded(value, value - 0.05, value + 0.05)

    def age(days: float, lists: float) -> StaleAge:
        none, loss = difference(0.0), Difference(lists - 0.5, lists - 0.51, lists - 0.49, 0.0, "worse")
        return StaleAge(days, 5, 3, around(0.5), around(lists), around(0.25), loss, none, none)

    return Staleness("ndcg@10", (age(0.0, 0.5), age(7.0, 0.4)), (14.0,))
