"""A run's description and its row in the list of runs, from a report of known numbers."""

import json
from dataclasses import replace

import pytest

from pipeline.evaluation.report import SecondStageGain
from pipeline.reporting import run_description
from tests.evaluation_reports import evaluation_report, nightly_report

REPORT = evaluation_report(
    {"lookback": {"ndcg@10": 0.5}, "popularity": {"ndcg@10": 0.25}, "ease": {"ndcg@10": 0.475}}
)


def test_description() -> None:
    summary, about, table = run_description.of_evaluation(REPORT, "ndcg@10").split("\n\n")
    assert summary == (
        "**NDCG@10 0.5000** (95 % interval 0.4500 to 0.5500). "
        "Paired test: better than popularity; no significant difference from EASE."
    )
    assert about == "On 5 held-out events of 3 users, temporal split, ranked among all 23 items."
    assert table.splitlines()[2:] == [
        "| **lookback** | **0.5000** | 0.4500 to 0.5500 | | | |",
        "| EASE | 0.4750 | 0.4250 to 0.5250 | +0.0250 | -0.0250 to +0.0750 | no significant difference |",
        "| popularity | 0.2500 | 0.2000 to 0.3000 | +0.2500 | +0.2000 to +0.3000 | better |",
    ]


def test_description_with_a_second_stage_and_without_baselines() -> None:
    gain = SecondStageGain(True, "auto", "two stages are better", {"retrieval": {}}, {}, {})
    alone = replace(evaluation_report({"lookback": {"ndcg@10": 0.5}}), ranker=gain)
    summary, about, table = run_description.of_evaluation(alone, "ndcg@10").split("\n\n")
    assert summary == "**NDCG@10 0.5000** (95 % interval 0.4500 to 0.5500)."
    assert about.endswith("all 23 items. Two stages are better.")
    assert len(table.splitlines()) == 3


def test_row_of_the_list_of_runs() -> None:
    numbers, verdict = run_description.row_of(REPORT, "ndcg@10")
    assert numbers == pytest.approx(
        {"test/ndcg@10_low": 0.45, "test/ndcg@10_high": 0.55, "best_baseline/ndcg@10": 0.475}
    )
    assert verdict == "better than popularity; no significant difference from EASE"
    alone = evaluation_report({"lookback": {"ndcg@10": 0.5}})
    assert run_description.row_of(alone, "ndcg@10")[1] == "no baseline was evaluated"
    best = evaluation_report({"lookback": {"ndcg@10": 0.5}, "als": {"ndcg@10": 0.25}})
    assert run_description.row_of(best, "ndcg@10")[1] == "better than all 1: ALS"


def test_columns_have_four_digits_and_the_interval_beside_the_value() -> None:
    assert run_description.texts_of(REPORT, "ndcg@10") == {
        "lookback.ndcg_at_10": "0.5000 (0.4500 to 0.5500)",
        "lookback.best_baseline": "0.4750 EASE",
    }
    alone = evaluation_report({"lookback": {"ndcg@10": 0.5}})
    assert run_description.texts_of(alone, "ndcg@10")["lookback.best_baseline"] == "none"


def test_runs_on_other_targets_are_in_another_list_and_columns_fit_a_small_window() -> None:
    one, other = (run_description.view_of("ndcg@10", target_set) for target_set in ("a" * 16, "b" * 16))
    assert one.key != other.key
    assert one.name != other.name
    assert one.run_filter.endswith(f"AND tags.`lookback.target_set` = '{'a' * 16}'")
    state = json.loads(json.loads(one.state())["state"])
    assert state["orderByKey"] == "metrics.`test/ndcg_at_10`"
    shown = state["columnOrder"][: 1 + state["columnOrder"].index("tags.`lookback.best_baseline`")]
    assert {"tags.`lookback.ndcg_at_10`", "tags.`lookback.changed_settings`"} < set(shown)
    assert sum(state["columnWidths"][column] for column in shown) <= 1400


def test_metric_of_the_description() -> None:
    report = evaluation_report({"lookback": {"ndcg@5": 0.5, "ndcg@20": 0.5, "mrr@20": 0.5}})
    assert run_description.metric_of(report, "mrr@20") == "mrr@20"
    assert run_description.metric_of(report, "ndcg@10") == "ndcg@5"


def test_description_of_nights_has_the_cautions() -> None:
    _, about, _ = run_description.of_evaluation(
        nightly_report({"lookback": {"ndcg@10": 0.5}}), "ndcg@10"
    ).split("\n\n")
    assert about == (
        "On 5 user-nights of 3 users, 4 nights from 2026-01-02 to 2026-01-23, 7 days each, temporal split, "
        "ranked among all 23 items. **Caution**: only 5 user-nights of 3 users: intervals are wide below 500 "
        "user-nights or 100 users."
    )
