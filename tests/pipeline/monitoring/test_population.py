"""Shift of days against the two weeks that ended a day before, worked out by hand."""

import math

import pytest

from features.histories.jagged import JaggedHistories
from pipeline.monitoring import population
from pipeline.monitoring.ledger import DAY
from tests.factories import jagged

NOW = 20_000 * DAY
ITEMS = 10


def log(rows: list[tuple[int, int, int]]) -> JaggedHistories:
    """Rows (days before NOW, user, item), in the middle of the day."""
    events = [
        [(NOW - day * DAY - DAY // 2, item) for day, own, item in rows if own == user] for user in range(3)
    ]
    return jagged([sorted(own) for own in events])


def shifts(rows: list[tuple[int, int, int]]) -> list[population.DayShift | None]:
    histories = log(rows)
    return population.of_days(histories, histories.item_counts(int(histories.item_index.max())), NOW)


def usual(days: range) -> list[tuple[int, int, int]]:
    """Users 0 and 1 take items 1..10, each once a day."""
    return [(day, item % 2, item) for day in days for item in range(1, ITEMS + 1)]


def test_days_like_those_before_have_no_shift() -> None:
    days = shifts(usual(range(40)))
    assert len(days) == population.SHOWN
    assert all(day == population.DayShift(0.0, 0.0, 0.0) for day in days)


def test_what_is_new_stays_new_for_two_days() -> None:
    """Item 11 and user 2 come on the last day but one: half of that day's events, a third of its users, then all."""
    newest = [(0, 2, 11)] * 6
    before = [(1, 2, 11)] * 10 + usual(range(1, 2))
    first, second, third, *_ = shifts(newest + before + usual(range(2, 40)))
    assert first is not None
    assert second is not None
    rest = 10 * (0.1 - 0.005) * math.log(0.1 / 0.005)
    assert first.items == pytest.approx(rest + (1 - 0.005) * math.log(1 / 0.005))
    assert (first.unknown_items, first.unknown_users) == (1.0, 1.0)
    rest = 10 * (0.1 - 0.05) * math.log(0.1 / 0.05)
    assert second.items == pytest.approx(rest + (0.5 - 0.005) * math.log(0.5 / 0.005))
    assert second.unknown_items == 0.5
    assert second.unknown_users == pytest.approx(1 / 3)
    assert third == population.DayShift(0.0, 0.0, 0.0)


def test_events_after_now_and_long_ago_make_nothing_new() -> None:
    """An item of a year ago is known; one with its first event after NOW is in no day."""
    days = shifts([(-3, 0, 12), (365, 0, 11), (0, 1, 11), *usual(range(40))])
    assert days[0] is not None
    assert days[0].unknown_items == 0.0
    assert days[1] == population.DayShift(0.0, 0.0, 0.0)


def test_a_day_without_events_or_without_two_weeks_before_shows_nothing() -> None:
    """Day 5 is empty, and the log began 20 days ago: the older of day 11's weeks are the days 20 to 26."""
    days = shifts([row for row in usual(range(20)) if row[0] != 5])
    assert [number for number, day in enumerate(days) if day is None] == [5, *range(11, 16)]
