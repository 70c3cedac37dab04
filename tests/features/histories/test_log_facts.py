"""Facts of a log: ties, repeats and the newest regular event, against counts by hand."""

import numpy as np
import pytest

from features.histories.jagged import JaggedHistories
from features.histories.log_facts import LogFacts, newest_regular

MINUTE = 60_000_000
HOUR = 60 * MINUTE
DAY = 24 * HOUR


def log(rows: list[list[tuple[int, int]]]) -> JaggedHistories:
    """Histories of (item, time in microseconds) per user."""
    flat = [event for row in rows for event in row]
    offsets = np.concatenate(([0], np.cumsum([len(row) for row in rows]))).astype(np.int64)
    item = np.array([event[0] for event in flat], np.int32)
    time = np.array([event[1] for event in flat], np.int64)
    return JaggedHistories(
        offsets, item, time, np.zeros(len(flat), np.int16), np.zeros(len(flat), np.float32)
    )


def test_ties_and_repeats_count_a_visit_once() -> None:
    rows = [[(1, 0), (1, 0), (2, 0), (1, DAY)], [(2, 5), (3, 5 + MINUTE)], []]
    facts = LogFacts.of(log(rows))
    assert facts.tied_share == pytest.approx(2 / 4)  # of 3 + 1 pairs of neighbours, two at one time
    assert facts.repeated_share == pytest.approx(1 / 5)  # (1, 2), (1), then (2), (3): the later 1 repeats
    session = LogFacts.of(log(rows), session_minutes=1)
    assert session.tied_share == pytest.approx(3 / 4)
    assert session.repeated_share == pytest.approx(1 / 5)


def test_a_log_of_positions_has_no_ties() -> None:
    facts = LogFacts.of(log([[(1, 0), (2, 1), (1, 2)]]), timed=False)
    assert (facts.tied_share, facts.now) == (0, 2)
    assert facts.repeated_share == pytest.approx(1 / 3)


def test_wrong_clocks_do_not_move_now() -> None:
    regular = [(1, day * DAY + hour * HOUR) for day in range(30) for hour in range(24)]
    newest = regular[-1][1]
    assert newest_regular(log([regular])) == newest
    assert newest_regular(log([regular, [(2, newest + 300 * DAY)]])) == newest
    assert newest_regular(log([regular, [(2, newest + 300 * DAY), (2, newest + 300 * DAY + 1)]])) == newest
    # three events within a day are a tenth of 24: regular
    late = [(2, newest + 300 * DAY + minute * MINUTE) for minute in range(3)]
    assert newest_regular(log([regular, late])) == late[-1][1]
    # a quiet but real last hour is regular as long as its day is
    assert newest_regular(log([regular, [(2, newest + HOUR)]])) == newest + HOUR


def test_now_agrees_with_a_plain_count() -> None:
    random = np.random.default_rng(0)
    for _ in range(20):
        times = np.sort(random.integers(0, 40 * DAY, random.integers(1, 300)))
        times = np.concatenate((times, np.sort(random.integers(60 * DAY, 90 * DAY, random.integers(0, 4)))))
        _, counts = np.unique(times // DAY, return_counts=True)
        inside = [int(np.count_nonzero((times > time - DAY) & (times <= time))) for time in times]
        least = max(0.1 * np.median(counts), min(2, np.median(counts)))
        expected = times[[number >= least for number in inside]].max(initial=0) or times.max()
        assert newest_regular(log([[(1, int(time)) for time in times]])) == expected


@pytest.mark.parametrize(
    ("times", "step"), [([0, DAY, 3 * DAY], DAY), ([5, DAY + 5], DAY), ([0, HOUR, 90 * MINUTE], 30 * MINUTE)]
)
def test_resolution_of_times(times: list[int], step: int) -> None:
    assert LogFacts.of(log([[(1, time) for time in times]])).resolution == step


def test_one_wrong_clock_does_not_move_now_in_a_small_log() -> None:
    few = [(1, day * DAY + hour * HOUR) for day in range(5) for hour in range(3)]
    assert newest_regular(log([few, [(2, 300 * DAY)]])) == few[-1][1]
    single = [(1, day * DAY) for day in range(5)]  # an event a day: the newest counts
    assert newest_regular(log([single, [(2, 300 * DAY)]])) == 300 * DAY


def test_an_empty_log_has_no_facts() -> None:
    assert LogFacts.of(log([[]])) == LogFacts(0, 0, 0, DAY)
