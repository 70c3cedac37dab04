"""Words for user-nights and held-out events, from reports of known numbers."""

from dataclasses import replace

from pipeline.evaluation import target_words
from pipeline.evaluation.report import NightsTested
from tests.evaluation_reports import evaluation_report, nightly_report

METRICS = {"lookback": {"ndcg@10": 0.5}}


def test_targets_of_each_kind() -> None:
    by_events = evaluation_report(METRICS)
    assert target_words.tested(by_events) == "5 held-out events of 3 users"
    first = replace(by_events, targets_of_a_user="first", targets=3)
    assert target_words.tested(first) == "3 held-out events of 3 users, the first of each"
    nightly = replace(nightly_report(METRICS), targets=11_398, users=9_567)
    assert target_words.tested(nightly) == (
        "11,398 user-nights of 9,567 users, 4 nights from 2026-01-02 to 2026-01-23, 7 days each"
    )


def test_single_numbers_and_distances_of_nights() -> None:
    one = NightsTested("2026-01-02T00:00:00+00:00", "2026-01-02T00:00:00+00:00", 1, 1.0, 7.0)
    assert target_words.nights(one) == "1 night of 2026-01-02, 1 day each"
    two = replace(one, last="2026-01-09T00:00:00+00:00", number=2)
    assert target_words.nights(two) == "2 nights from 2026-01-02 to 2026-01-09, 1 day each, one every 7 days"
    assert target_words.counted("nightly", 1, 1) == "1 user-night of 1 user"


def test_every_reason_in_words_and_zeros_left_out() -> None:
    of_events = {"under_core": 1, "not_first": 0, "already_seen": 1200, "no_history": 2, "unknown_item": 3}
    assert target_words.left_out("successive", of_events) == (
        "1 event on items under the core filter, 1,200 events on items already in the history, 2 events of users without a known "
        "history, 3 events on items unseen in training"
    )
    of_nights = {"nothing_taken": 7, "taken_again": 5, "nothing_left": 1, "no_history": 2, "other_type": 0}
    assert target_words.left_out("nightly", of_nights) == (
        "7 user-nights with nothing taken in the horizon, 5 events on an item taken before in the same horizon, 1 user-night "
        "with every event of the horizon left out, 2 user-nights without a known history"
    )
    assert target_words.left_out("nightly", {"nothing_taken": 0}) == ""
    sampled = {"not_sampled": 1000}
    assert (
        target_words.left_out("nightly", sampled) == "1,000 user-nights of users beyond evaluate.max_requests"
    )
    assert target_words.left_out("first", sampled) == "1,000 events of users beyond evaluate.max_requests"


def test_counts_of_user_nights_and_of_events_are_not_added_up() -> None:
    counts = {"nothing_taken": 7, "taken_again": 5, "no_history": 2}
    assert target_words.of_user_nights("nightly", counts) == {"nothing_taken": 7, "no_history": 2}
    assert target_words.of_user_nights("successive", counts) == counts


def test_repeats_and_new_items_of_each_kind() -> None:
    assert list(target_words.parts(nightly_report(METRICS))) == [
        "items taken again",
        "items taken for the first time",
    ]
    apart = nightly_report(METRICS).subsets
    by_events = replace(evaluation_report(METRICS), repeats=apart["repeats"])
    assert list(target_words.parts(by_events)) == ["held-out events on items of the history"]
    only_new = replace(evaluation_report(METRICS), new=apart["new"])
    assert target_words.parts(only_new) == {}, "the metrics themselves are of new items"
