"""Times of every form, against the standard library and by hand."""

import datetime

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.timestamps import check_unit, microseconds

MOMENT = datetime.datetime(2016, 6, 8, 19, 10, 32, 250_000, tzinfo=datetime.UTC)
SECONDS = 1_465_413_032


@pytest.mark.parametrize(
    ("unit", "text", "expected"),
    [
        ("s", "1465413032", SECONDS * 10**6),
        ("s", "978300760.0", 978_300_760 * 10**6),
        ("s", "1465413032.123456789", SECONDS * 10**6 + 123_456),
        ("s", "-1.5", -1_500_000),
        ("s", " 1465413032 ", SECONDS * 10**6),
        ("s", "1.465413032e9", SECONDS * 10**6),
        ("s", "9223372036854775807", None),
        ("s", "99999999999999999999", None),
        ("s", "soon", None),
        ("ms", "1465413032123", SECONDS * 10**6 + 123_000),
        ("us", "1465413032123456", SECONDS * 10**6 + 123_456),
        ("ns", "1465413032123456789", SECONDS * 10**6 + 123_456),
        ("position", "17", 17),
        ("position", "17.5", None),
        ("position", "17.0", 17),
    ],
)
def test_numbers(unit: str, text: str, expected: int | None) -> None:
    assert microseconds(pl.Series([text]), unit, "UTC").to_list() == [expected]


ISO = {
    "2016-06-08T19:10:32.25Z": 250_000,
    "2016-06-08T21:10:32.250+02:00": 250_000,
    "2016-06-08T19:10:32.250000999Z": 250_000,
    "2016-06-08 19:10:32": 0,
    "2016-06-08T19:10:32": 0,
    "2016-06-08 19:10:32 UTC": 0,
    "20160608T191032Z": 0,
    "2016-06-08 12:10:32-0700": 0,
}


def test_iso_in_any_mixture() -> None:
    found = microseconds(
        pl.Series([*ISO, "2016-06-08", "2016-06-31", "yesterday", None]), "iso", "UTC"
    ).to_list()
    day = int(datetime.datetime(2016, 6, 8, tzinfo=datetime.UTC).timestamp()) * 10**6
    assert found == [*[SECONDS * 10**6 + part for part in ISO.values()], day, None, None, None]


def test_a_time_without_a_zone_is_in_the_configured_one() -> None:
    texts = pl.Series(
        ["2016-06-08 21:10:32", "2016-06-08T21:10", "2016-03-27 02:30:00", "2016-06-08T19:10:32Z"]
    )
    found = microseconds(texts, "iso", "Europe/Berlin").to_list()
    assert found == [SECONDS * 10**6, (SECONDS - 32) * 10**6, None, SECONDS * 10**6]  # 02:30 never was


def test_a_pattern() -> None:
    found = microseconds(pl.Series(["08/06/2016 19:10", "2016"]), "%d/%m/%Y %H:%M", "UTC")
    assert found.to_list() == [(SECONDS - 32) * 10**6, None]
    numbers = microseconds(pl.Series([20160608]), "%Y%m%d", "UTC")
    assert numbers.to_list() == [1_465_344_000 * 10**6]


def test_columns_that_are_times_already() -> None:
    naive = pl.Series([MOMENT.replace(tzinfo=None)])
    for column in (pl.Series([MOMENT]), naive.cast(pl.Datetime("ms")), naive.cast(pl.Datetime("ns"))):
        assert microseconds(column, "s", "UTC").to_list() == [SECONDS * 10**6 + 250_000]
    assert microseconds(pl.Series([MOMENT.date()]), "iso", "UTC").to_list() == [1_465_344_000 * 10**6]
    assert microseconds(pl.Series([1.25, float("nan")]), "s", "UTC").to_list() == [1_250_000, None]
    assert microseconds(pl.Series([SECONDS], dtype=pl.UInt32), "s", "UTC").to_list() == [SECONDS * 10**6]


@given(st.datetimes(timezones=st.just(datetime.UTC)), st.sampled_from(["T", " "]), st.booleans())
def test_iso_agrees_with_the_standard_library(moment: datetime.datetime, separator: str, zone: bool) -> None:
    text = (moment if zone else moment.replace(tzinfo=None)).isoformat(separator)
    since = moment - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    assert microseconds(pl.Series([text]), "iso", "UTC").to_list() == [
        since // datetime.timedelta(microseconds=1)
    ]


def test_what_is_no_unit_zone_or_time() -> None:
    with pytest.raises(ValueError, match="received 'sec', expected s, ms"):
        check_unit("sec", "UTC")
    with pytest.raises(ValueError, match="received 'Mars'"):
        check_unit("s", "Mars")
    with pytest.raises(ValueError, match="timestamps are List"):
        microseconds(pl.Series([[1]]), "s", "UTC")
