"""Timestamps of any format as microseconds since the epoch, UTC; integers stay integers all the way."""

import datetime

import polars as pl

DIGITS = {"s": 6, "ms": 3, "us": 0, "ns": -3}
"""Powers of ten from each unit to microseconds."""

_LIMIT = 2**63 - 1
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_ENDS = (":%SZ", ":%S", ":%S UTC", ":%S%.f%#z", ":%S%.f", ":%S%.f UTC", "")
_ISO = (*(f"%Y-%m-%d{between}%H:%M{end}" for between in "T " for end in _ENDS), "%Y-%m-%d")
"""The usual formats. No two parse a text differently; those without fractions are listed because polars parses them faster."""


def microseconds(times: pl.Series, unit: str, timezone: str, section: str = "events") -> pl.Series:
    """[n] Int64, microseconds since the epoch (for `position`: the position itself); null where it is not a timestamp.

    unit: s, ms, us, ns, iso, a strftime pattern, or position; ignored for columns that are dates or times already.
    timezone: for timestamps without one; an ambiguous local time is the earlier, a non-existent one is null. section: of the
    configuration, for messages.

    Raises ValueError for a column type that cannot be a timestamp and for an invalid pattern.
    """
    kind = times.dtype
    if isinstance(kind, pl.Datetime) or kind == pl.Date:
        moments = times.cast(pl.Datetime("us", getattr(kind, "time_zone", None)), strict=False)
        return _utc(moments, timezone)
    if kind.is_nested() or kind.is_temporal():
        raise ValueError(
            f"{section}.columns.timestamp: the column is {kind}, expected numbers, text, dates or dates with time"
        )
    if unit in DIGITS or unit == "position":
        return _scaled(times, DIGITS.get(unit, 0), fractions=unit != "position")
    text = times.cast(pl.String, strict=False)
    return _iso(text, timezone) if unit == "iso" else _by_pattern(text, unit, timezone)


def describe_impossible(value: object, moment: int | None, unit: str, span: tuple[int, int]) -> str:
    """What is wrong with a time: how it is read in its unit, and a unit in which it would be possible.

    moment: as of `microseconds`. span: earliest and latest possible time, in microseconds since the epoch.
    """
    is_number = unit in DIGITS and not isinstance(value, datetime.date)
    if moment is None:
        return f"{str(value)[:40]!r} is no time in the unit {unit}"
    side, limit = ("before", span[0]) if moment < span[0] else ("after", span[1])
    text = f"{side} {_day(limit)}" + (f" read as {unit}" if is_number else "")
    for other in DIGITS if is_number else ():
        number = _scaled(pl.Series([value]), DIGITS[other], fractions=True)[0]
        if number is not None and span[0] <= number <= span[1]:
            return f"{text}; as {other} it would be {_day(number)}"
    return text


def _day(moment: int) -> str:
    try:
        return str((_EPOCH + datetime.timedelta(microseconds=moment)).date())
    except OverflowError:
        return "the year 9999" if moment > 0 else "the year 1"


def _utc(moments: pl.Series, timezone: str) -> pl.Series:
    """Microseconds since the epoch of datetimes with a time zone, or without one and then in `timezone`."""
    if getattr(moments.dtype, "time_zone", None) is None:
        moments = moments.dt.replace_time_zone(timezone, ambiguous="earliest", non_existent="null")
    return moments.dt.epoch("us")


def _scaled(times: pl.Series, digits: int, *, fractions: bool) -> pl.Series:
    """The times · 10^digits, from integers, floats, or text of either."""
    if times.dtype.is_float():
        scaled = (times.cast(pl.Float64) * 10.0**digits).round()
        if not fractions:
            scaled = scaled.set(times != times.round(), None)
        return scaled.cast(pl.Int64, strict=False)
    if times.dtype.is_integer():
        return _shift(times.cast(pl.Int64, strict=False), digits)
    text = times.cast(pl.String, strict=False)
    whole = _shift(text.cast(pl.Int64, strict=False), digits)
    rest = whole.is_null() & text.is_not_null()
    if not rest.any():
        return whole
    return whole.scatter(rest.arg_true(), _from_decimals(text.filter(rest), digits, fractions=fractions))


def _shift(whole: pl.Series, digits: int) -> pl.Series:
    """The number · 10^digits (rounded down), null where that does not fit."""
    unit = 10 ** abs(digits)
    if digits <= 0:
        return pl.select(whole // unit).to_series()
    fits = whole.is_between(-(_LIMIT // unit), _LIMIT // unit)
    scaled: pl.Series = (whole if fits.all() else whole.set(~fits, None)) * unit
    return scaled


def _from_decimals(text: pl.Series, digits: int, *, fractions: bool) -> pl.Series:
    """Text such as 978300760.25, ` 978300760` or 9.783e8, scaled; exact where there is no exponent."""
    parts = (
        text.str.strip_chars()
        .str.extract_groups(r"^(?<sign>[+-]?)(?<whole>\d+)(?:\.(?<part>\d*))?$")
        .struct.unnest()
        .with_columns(
            pl.col("part").fill_null(""), text.str.strip_chars().cast(pl.Float64, strict=False).alias("float")
        )
    )
    whole = _shift(parts["whole"].cast(pl.Int64, strict=False), digits)
    if digits > 0:
        padded = parts["part"].str.head(digits).str.pad_end(digits, "0")
        whole += padded.cast(pl.Int64, strict=False)
    if not fractions:
        whole = whole.set(parts["part"].str.contains("[1-9]"), None)
    exact = pl.select(pl.when(parts["sign"] == "-").then(-whole).otherwise(whole)).to_series()
    exponent = parts["whole"].is_null() & text.str.contains("[eE]")
    return exact.zip_with(
        ~exponent.fill_null(value=False), _scaled(parts["float"], digits, fractions=fractions)
    )


def _iso(text: pl.Series, timezone: str) -> pl.Series:
    """Any mixture of ISO 8601 formats, with and without offset."""
    usual = text.drop_nulls().head(1)
    patterns = sorted(_ISO, key=lambda pattern: _by_pattern(usual, pattern, "UTC").null_count())
    parsed = pl.Series(text.name, [None], dtype=pl.Int64).new_from_index(0, len(text))
    for pattern in (*patterns, None):
        rest = parsed.is_null() & text.is_not_null()
        if not rest.any():
            break
        texts = text if rest.all() else text.filter(rest)
        if pattern is None:
            times = _by_standard_library(texts, timezone)
        else:
            times = _by_pattern(texts, pattern, "UTC" if pattern.endswith(("Z", "UTC")) else timezone)
        parsed = times if rest.all() else parsed.scatter(rest.arg_true(), times)
    return parsed


def _by_pattern(text: pl.Series, pattern: str, timezone: str) -> pl.Series:
    try:
        return _utc(text.str.to_datetime(pattern, time_unit="us", strict=False), timezone)
    except pl.exceptions.PolarsError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"timestamp_unit: {pattern!r} does not work as a strftime pattern: {reason}"
        ) from None


def _by_standard_library(text: pl.Series, timezone: str) -> pl.Series:
    """The rarer formats (`2016-06-08T19:10`, `20160608T191032Z`, a blank before the offset, ` UTC`), one by one."""
    known: dict[str, tuple[int | None, bool]] = {
        value: _moment(value) for value in text.drop_nulls().unique()
    }
    values = [known.get(value, (None, True)) for value in text]
    moments = pl.Series(text.name, [value for value, _ in values], dtype=pl.Int64)
    local = pl.Series([not aware for _, aware in values], dtype=pl.Boolean)
    if not local.any():
        return moments
    return _utc(moments.cast(pl.Datetime("us")), timezone).zip_with(local, moments)


def _moment(text: str) -> tuple[int | None, bool]:
    """Microseconds since the epoch, and whether the text names its time zone."""
    text = text.strip().upper()
    text = text.removesuffix(" UTC").replace(" +", "+").replace(" -", "-") + "Z" * text.endswith(" UTC")
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError:
        return None, True
    aware = moment.tzinfo is not None
    since = (moment if aware else moment.replace(tzinfo=datetime.UTC)) - _EPOCH
    return since // datetime.timedelta(microseconds=1), aware
