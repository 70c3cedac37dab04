"""Times of every form, against the standard library and by hand."""

import datetime
import decimal
import zoneinfo

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.events.timestamps import microseconds

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
        ("position", "1e300", None),
        *(
            (unit, text, None)
            for unit in ("s", "ms", "us", "ns")
            for text in ("1e300", "9" * 40, "nan", "-inf", "0x10", "٣", "")
        ),
        ("ms", "1465413032.9999999", 1_465_413_032_999),
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
    "2016-06-08t19:10:32z": 0,
    "2016-06-08T21:10:32 +0200": 0,
    "2016-06-08T21:10:32+02": 0,
    "2016-06-08T19:10:32,25Z": 250_000,
    " 2016-06-08T19:10:32 ": 0,
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


def test_of_a_local_time_that_came_twice_the_earlier_is_meant() -> None:
    texts = pl.Series(["2016-10-30 02:30:00", "2016-10-30 03:00:00", "2016-10-30T02:30:00+01:00"])
    twice = 1_477_787_400 * 10**6  # 00:30 UTC, and again at 01:30
    expected = [twice, twice + 5400 * 10**6, twice + 3600 * 10**6]
    assert microseconds(texts, "iso", "Europe/Berlin").to_list() == expected
    assert microseconds(texts.head(1), "%Y-%m-%d %H:%M:%S", "Europe/Berlin").to_list() == [twice]
    naive = pl.Series([datetime.datetime(2016, 10, 30, 2, 30)])  # noqa: DTZ001
    assert microseconds(naive, "s", "Europe/Berlin").to_list() == [twice]


days = st.sampled_from(["2016-06-08", "2016-10-30", "2016-6-8", "20160608", "12", "", "x", "-", "+"])
clocks = st.sampled_from(["T", " ", "t", "19:10:32", "02:30", "2:30:0", "23:59:60", ".25", ".", ",5"])
zones = st.sampled_from(["Z", "z", "+0200", "+02:00", " -07", " UTC"])
isos = st.lists(days | clocks | zones, max_size=6).map("".join) | st.builds(
    "{}{}{}{}{}".format,
    *(
        st.sampled_from(each)
        for each in (["2016-06-08", "2016-03-27"], "T ", ["02:30", "19:10"], ["", ":07", ":07.25"])
    ),
    st.sampled_from(["", "Z", " UTC", "+02:00", "+0200", " +02"]),
)


@given(st.lists(isos, max_size=8), st.sampled_from(["UTC", "Europe/Berlin"]))
def test_what_a_text_means_does_not_depend_on_the_others(texts: list[str], zone: str) -> None:
    together = microseconds(pl.Series(texts, dtype=pl.String), "iso", zone).to_list()
    alone = [microseconds(pl.Series([text]), "iso", zone)[0] for text in texts]
    assert together == alone
    for text, found in zip(texts, alone, strict=True):
        expected = standard(text, zone)
        assert expected in (None, found), text


def standard(text: str, zone: str) -> int | None:
    """What the standard library reads, but for times that never were."""
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=zoneinfo.ZoneInfo(zone))
        if moment.astimezone(datetime.UTC).astimezone(zoneinfo.ZoneInfo(zone)).time() != moment.time():
            return None
    return (moment - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)) // datetime.timedelta(microseconds=1)


@given(st.integers(-(10**15), 10**16))
def test_seconds_are_exact_to_the_microsecond(expected: int) -> None:
    sign, (whole, part) = "-" * (expected < 0), divmod(abs(expected), 10**6)
    text = f"{sign}{whole}.{part:06}"
    columns = [pl.Series([text]), pl.Series([decimal.Decimal(text)]), pl.Series([expected / 10**6])]
    for column in columns[: 3 if abs(expected) < 4 * 10**15 else 2]:  # floats have no microseconds after 2096
        assert microseconds(column, "s", "UTC").to_list() == [expected]


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns", "iso", "position", "%Y-%m-%d"])
@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin"])
def test_no_number_is_too_strange(unit: str, zone: str) -> None:
    columns = [
        pl.Series([1e300, -1e300, float("nan"), float("inf"), -float("inf"), 5e-324]),
        pl.Series([2**63 - 1, -(2**63)]),
        pl.Series([2**64 - 1], dtype=pl.UInt64),
        pl.Series([10**35], dtype=pl.Int128),
        pl.Series([decimal.Decimal("9" * 30 + ".5")]),
        pl.Series(["1e300", "9" * 5000, "-", "+262142-12-31", "0000-00-00", "\x00", "2016-06-08T25:61:61"]),
        pl.Series([True, None]),
        pl.Series([None]),
        pl.Series([2**62, -(2**62)]).cast(pl.Datetime("us")),
    ]
    for column in columns:
        assert len(microseconds(column, unit, zone)) == len(column)


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


def test_a_column_that_holds_no_times() -> None:
    with pytest.raises(ValueError, match="timestamp: the column is List"):
        microseconds(pl.Series([[1]]), "s", "UTC")
