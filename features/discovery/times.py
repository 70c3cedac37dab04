"""Unit or pattern of a column of times, found by trying."""

import datetime
from dataclasses import dataclass

import polars as pl

from features.events import timestamps

_MIN_SHARE = 0.95
"""Least share of values that must be times."""
_EARLIEST, _LATEST = (
    int(datetime.datetime(year, 1, 1, tzinfo=datetime.UTC).timestamp() * 1_000_000) for year in (1990, 2100)
)
_DATES = (
    "%m/%d/%Y",
    "%d/%m/%Y",
    "%Y/%m/%d",
    "%d.%m.%Y",
    "%d-%m-%Y",
    "%Y%m%d",
    "%m/%d/%y",
    "%d/%m/%y",
    "%d-%b-%Y",
)
_CLOCKS = ("", " %H:%M", " %H:%M:%S", " %I:%M:%S %p", " %I:%M %p")
_PATTERNS = (*(date + clock for date in _DATES for clock in _CLOCKS), "%Y%m%d%H%M%S", "%a %b %d %H:%M:%S %Y")


@dataclass(frozen=True)
class TimeUnit:
    """How a column tells the time."""

    unit: str
    """As `events.timestamp_unit`."""
    is_certain: bool
    """Whether no other unit reads it as well."""
    earliest: str
    latest: str


def unit_of(column: pl.Series) -> TimeUnit | None:
    """The unit of a column of text; None where it does not tell the time."""
    text = column.drop_nulls().str.strip_chars()
    text = text.filter(text != "")
    if not len(text):
        return None
    fits = [unit for unit in ("s", "ms", "us", "ns", "iso") if _share(text, unit) >= _MIN_SHARE]
    if "iso" in fits and text.str.contains(r"^\d+(\.\d+)?$").all():
        fits.remove("iso")
    fits = fits or [pattern for pattern in _PATTERNS if _share(text, pattern) >= _MIN_SHARE]
    if not fits:
        return None
    best = max(fits, key=lambda unit: (_share(text, unit), -fits.index(unit)))
    times = _times(text, best).drop_nulls()
    others = [unit for unit in fits if unit != best and _share(text, unit) == _share(text, best)]
    ends = (pl.Series([times.min(), times.max()]).cast(pl.Datetime("us"))).dt.strftime("%Y-%m-%d %H:%M")
    return TimeUnit(best, not others, ends[0], ends[1])


def _times(text: pl.Series, unit: str) -> pl.Series:
    return timestamps.microseconds(text, unit, "UTC")


def _share(text: pl.Series, unit: str) -> float:
    times = _times(text, unit)
    return float((times.is_between(_EARLIEST, _LATEST).fill_null(value=False)).sum()) / len(text)
