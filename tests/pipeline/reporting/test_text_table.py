"""The printed table of an evaluation, from a report of known numbers."""

from dataclasses import replace

from pipeline.evaluation.report import ColdTargets, Cut, Leaks, Rolling
from pipeline.reporting.text_table import aligned, as_text
from tests.evaluation_reports import difference, evaluation_report, nightly_report, off_policy, staleness

METRICS = {
    "lookback": {"ndcg@10": 0.5, "ndcg@200": 0.625},
    "popularity": {"ndcg@10": 0.25, "ndcg@200": 0.375},
    "ease": {"ndcg@10": 0.475, "ndcg@200": 0.5},
}
PAIRED = {"ndcg@10": difference(0.25, p_bootstrap_holm=0.004)}
REPORT = evaluation_report(METRICS, differences={"popularity": PAIRED, "ease": PAIRED})


def test_cells_are_padded_to_their_column() -> None:
    assert aligned([["a", "bb"], ["ccc", "d"]]) == "a    bb\nccc  d"


def test_a_row_per_system_the_best_baseline_first() -> None:
    about, left_out, blank, head, *rows = as_text(
        replace(REPORT, not_applicable={"als": "no users"})
    ).splitlines()
    assert about.startswith(
        "5 held-out events of 3 users, temporal, all 23 items ranked, seen ones masked, ties order; 95 %"
    )
    assert left_out == "left out: 2 events on items unseen in training"
    assert blank == ""
    assert head.split() == ["ndcg@10", "ndcg@200", "the", "model", "on", "ndcg@10"]
    assert [row.split()[0] for row in rows] == ["lookback", "ease", "popularity", "als:"]
    assert rows[0].split() == ["lookback", "0.5000", "[0.4500,", "0.5500]", "0.6250", "[0.5750,", "0.6750]"]
    assert rows[2].endswith("better (+0.2500 [+0.2000, +0.3000], p 0.004)")
    assert rows[3] == "als: not evaluated, no users"


def test_cold_targets_leaks_and_cuts() -> None:
    own = {"lookback": {"ndcg@10": 0.125}}
    report = replace(
        REPORT,
        cold_targets={
            "no_history": ColdTargets(1, True, own),
            "unknown_item": ColdTargets(2, False, own, own),
        },
        leaks=Leaks([], {"targets_before_training_end": 0.5}),
        rolling=Rolling((Cut("2026-01-02T00:00:00+00:00", 3, 5, METRICS, {}),) * 2, METRICS, METRICS),
    )
    lines = as_text(report).splitlines()[7:]
    assert lines[:3] == [
        "1 targets without a history (counted above): ndcg@10 lookback 0.1250",
        "2 targets on items unseen in training (not counted above); with them ndcg@10 of the model 0.1250",
        "leaked by the protocol: targets before training end 50.0%",
    ]
    assert lines[4].split() == ["ndcg@10,", "test", "from", "2026-01-02", "2026-01-02", "mean", "spread"]
    assert lines[5].split() == ["lookback", *["0.5000"] * 4]


def test_nights_with_repeats_other_kinds_and_cautions() -> None:
    names = ("ndcg@10", "hit_rate@10", "recall@10", "precision@10", "mrr@10", "map@10", "user_ndcg@10")
    metrics = {system: dict.fromkeys(names, value) for system, value in (("lookback", 0.5), ("als", 0.25))}
    report = nightly_report(
        metrics, differences={"als": {"ndcg@10": difference(0.25, p_bootstrap_holm=0.004)}}
    )
    about, left_out, caution, _, head, *rows = as_text(report).splitlines()
    assert about.startswith(
        "5 user-nights of 3 users, 4 nights from 2026-01-02 to 2026-01-23, 7 days each, temporal, all 23 items ranked, seen ones "
        "not masked"
    )
    assert left_out == (
        "left out: 7 user-nights with nothing taken in the horizon, 2 events on an item taken before in the same horizon"
    )
    assert caution.startswith("caution: only 5 user-nights of 3 users: intervals are wide")
    assert head.split()[:5] == ["ndcg@10", "hit_rate@10", "recall@10", "precision@10", "mrr@10"]
    apart = rows[2:]
    assert apart[1] == "apart: 6 items taken again, 9 items taken for the first time"
    assert apart[3].split("  ")[-1].strip() == "new, hit_rate@10"
    assert apart[4].split() == [
        "lookback",
        *["0.2500", "[0.2400,", "0.2600]"] * 2,
        *["0.1250", "[0.1150,", "0.1350]"] * 2,
    ]
    kinds = apart[6:]
    assert kinds[1] == "by kind of targets, the first is the headline"
    assert [" ".join(row.split()) for row in kinds[3:6]] == [
        "nightly, ndcg@10 nightly, hit_rate@10 successive, ndcg@10 successive, hit_rate@10",
        "lookback 0.5000 0.5000 0.2500 0.2500",
        "als 0.2500 0.2500 0.1250 0.1250",
    ]


def test_cold_items_of_nights_count_already() -> None:
    own = {"lookback": {"ndcg@10": 0.125}}
    cold = {"no_history": ColdTargets(3, False, own), "unknown_item": ColdTargets(2, True, own, own)}
    lines = as_text(nightly_report({"lookback": {"ndcg@10": 0.5}}, cold_targets=cold)).splitlines()
    assert lines[-2:] == [
        "3 items taken by users without a history (not counted above): ndcg@10 lookback 0.1250",
        "2 items taken unseen in training (counted above)",
    ]


def test_the_ages_of_model_and_lists_are_a_sentence_each() -> None:
    lines = as_text(nightly_report({"lookback": {"ndcg@10": 0.5}}, stale=staleness())).splitlines()
    assert lines[-2:] == [
        "No loss of a model trained up to 7 days before shows.",
        "Score again every 7 days: after 7 days the lists have lost 20% (-0.1000, 95 % interval -0.1100 to -0.0900).",
    ]


def test_what_was_shown_and_what_each_system_would_have_had() -> None:
    lines = as_text(replace(REPORT, **off_policy())).splitlines()
    assert lines[-5] == (
        "2,000 lists of 300 users in the test period, shown with known propensities, had 0.625 reactions each at their first 2 "
        "places (left out: 1 list with a place without a propensity, 2 lists whose window of reactions ends after the log)"
    )
    assert lines[-3].startswith("would have had  predicted reactions")
    own = "0.5000 [0.3750, 0.6250]"
    assert lines[-2].split("  ")[0] == "lookback"
    assert lines[-2].count(own) == 4
    assert lines[-2].endswith("refused")
    assert lines[-1].split("  ")[0] == "popularity"
    assert as_text(replace(REPORT, off_policy_lists=off_policy()["off_policy_lists"])).endswith(
        "by the whole list"
    )
