"""Settings of log, tables, histories, split and simulation: refused where they make no sense."""

import dataclasses
import datetime
import subprocess
import sys
from typing import Any

import pytest

from features.settings import (
    EventSettings,
    HistorySettings,
    ItemSettings,
    SplitSettings,
    TableFormat,
    UserSettings,
    check_iso,
    iso_microseconds,
)

COLUMNS: dict[str, str | int] = {"user_id": 1, "item_id": 2, "timestamp": 3, "event_type": 4, "value": 5}
BARE: dict[str, str | int] = {"user_id": 1, "item_id": 2, "timestamp": 3}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"path": ""}, "events.path: received '', expected a file, folder or glob"),
        ({"path": []}, r"events.path: received \[\]"),
        ({"path": ["a.csv", ""]}, r"events.path: received \['a.csv', ''\]"),
        ({"separator": ""}, "events.separator: received ''"),
        ({"separator": ',"'}, "expected text without quotes or line ends"),
        ({"columns": {}}, "expected a column for user_id, item_id, timestamp too"),
        ({"columns": {"user_id": 1}}, "expected a column for item_id, timestamp too"),
        ({"columns": {**BARE, "user_id": 0}}, "received position 0, expected one from 1"),
        ({"columns": {**BARE, "valeu": 4}}, "did you mean 'events.columns.value'"),
        (
            {"columns": {**BARE, "timestmp": 4}},
            "'events.columns.timestmp', expected user_id, .*or the name of a further column; did you mean",
        ),
        ({"columns": BARE, "types": {"view": 1.0}}, "events.columns names no event_type"),
        ({"columns": BARE, "min_value": 1.0}, "events.columns names no value"),
        ({"types": {}}, "events.types: received {}, expected at least one type"),
        (
            {"columns": BARE, "dislike_below": 2.5},
            "events.dislike_below: received a value, but .* names no value",
        ),
        ({"types": {"view": -1.0, "skip": 0.0}}, "expected at least one type with a weight above 0"),
        (
            {"timestamp_unit": "minutes"},
            "received 'minutes', expected s, ms, us, ns, iso, position or a strftime",
        ),
        ({"timezone": "Mars"}, "received 'Mars', expected an IANA name such as Europe/Berlin"),
        ({"earliest": "soon"}, "events.earliest: received 'soon', expected an ISO date"),
        ({"max_refused_fraction": 1.1}, r"expected a share in \[0, 1\]"),
        ({"max_refused_fraction": float("nan")}, "max_refused_fraction: received nan"),
        ({"max_days_ahead": -1.0}, "events.max_days_ahead: received -1.0"),
        ({"max_days_ahead": float("nan")}, "events.max_days_ahead: received nan"),
    ],
)
def test_event_settings_that_make_no_sense(changes: dict[str, Any], message: str) -> None:
    good = EventSettings("log.csv", columns=COLUMNS)
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(good, **changes)


@pytest.mark.parametrize("unit", ["ms", "iso", "position", "%d/%m/%Y %H:%M"])
def test_units_of_time(unit: str) -> None:
    assert EventSettings("log.csv", columns=COLUMNS, timestamp_unit=unit).timestamp_unit == unit


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"columns": {"title": 1}}, "items.columns: .*expected a column for item_id too"),
        ({"columns": {"item_id": 1, "titel": 2}}, "did you mean 'items.columns.title'"),
        ({"text_dim": -1}, "items.text_dim: received -1, expected at least 0"),
        ({"text_max_words": 0}, "items.text_max_words: received 0, expected at least 1"),
        ({"category_separator": ""}, "items.category_separator: received ''"),
        ({"separator": "\n"}, "items.separator: received"),
        ({"path": ""}, "items.path: received ''"),
    ],
)
def test_item_settings_that_make_no_sense(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(ItemSettings("items.csv"), **changes)


def test_user_settings_need_a_user_and_take_any_attribute() -> None:
    assert UserSettings("users.csv", columns={"user_id": 1, "city": 2}).columns["city"] == 2
    with pytest.raises(
        ValueError, match=r"users.columns: received \['city'\], expected a column for user_id"
    ):
        UserSettings("users.csv", columns={"city": 2})


def test_a_table_s_format_is_that_of_its_settings() -> None:
    settings = ItemSettings("items.csv", "csv", ";", header=False, encoding="latin-1", columns={"item_id": 1})
    assert settings.table == TableFormat(
        "items", {"item_id": 1}, "csv", ";", header=False, encoding="latin-1"
    )


@pytest.mark.parametrize("key", ["max_length", "min_user_events", "min_item_events"])
def test_history_settings_that_make_no_sense(key: str) -> None:
    changes: dict[str, Any] = {key: 0}
    with pytest.raises(ValueError, match=f"history.{key}: received 0, expected at least 1"):
        HistorySettings(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test_fraction": 0.0}, "split.test_fraction: received 0.0"),
        ({"validation_fraction": 1.0}, "split.validation_fraction: received 1.0"),
        ({"validation_fraction": float("nan")}, "split.validation_fraction: received nan"),
        ({"held_back": 1.0}, "split.held_back: received 1.0"),
        ({"cuts": 0}, "split.cuts: received 0"),
        ({"test_from": "soon"}, "split.test_from: received 'soon'"),
        ({"test_fraction": 0.5, "validation_fraction": 0.5}, "expected less than 1 together"),
        ({"cuts": 9}, "expected less than 1 together"),
        ({"cuts": 2, "protocol": "leave_one_out"}, "cuts are shares of the log by time"),
        ({"held_back": 0.1, "test_from": "2026-01-01"}, "cuts are shares of the log by time"),
    ],
)
def test_split_settings_that_make_no_sense(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SplitSettings(**changes)


def test_a_test_from_a_time_on_needs_no_fractions_that_fit() -> None:
    assert SplitSettings(test_from="2026-01-01", test_fraction=0.9, validation_fraction=0.9).cuts == 1


def test_iso_times_are_utc_where_they_carry_no_zone() -> None:
    assert iso_microseconds("1970-01-01") == 0
    assert iso_microseconds("1969-12-31T23:59:59.999999") == -1
    assert iso_microseconds("1970-01-01T02:00:00+02:00") == 0
    now = datetime.datetime(2026, 1, 31, 1, 2, 3, 456_789, tzinfo=datetime.UTC)
    assert iso_microseconds(now.isoformat()) == 1_769_821_323_456_789


def test_what_is_no_iso_date_names_the_key_and_its_other_forms() -> None:
    with pytest.raises(ValueError, match=r"score\.users: received 'x', expected all, or an ISO date"):
        check_iso("score.users", "x", "all, or ")


def test_the_settings_import_nothing_heavy() -> None:
    code = (
        "import sys, features.settings; print({'numpy', 'polars', 'pyarrow', 'pydantic'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
