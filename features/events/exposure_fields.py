"""Fields of an exposure beside user, item and time: rank, propensity, list."""

import polars as pl

from features.events import fields, ids
from features.schema import LIST_ID, PROPENSITY, RANK

_HIGHEST_RANK = 2**31 - 1
EXPECTED = {
    "bad_rank": "no place, expected a whole number: places in a list begin at 1",
    "bad_propensity": "no propensity, expected a probability above 0 and at most 1",
    "bad_list": f"no id of a list, expected at most {ids.LONGEST_BYTES:,} bytes",
}
"""Reason against an exposure to what is wrong with its value."""
COLUMN_OF = {"bad_rank": RANK, "bad_propensity": PROPENSITY, "bad_list": LIST_ID}


def read(source: pl.DataFrame, decimal: str) -> tuple[dict[str, pl.Series], dict[str, pl.Series | None]]:
    """Rank (Int32), propensity (Float32) and list_id of every row, null where there is none; and the reasons against rows.

    Raises ValueError for a column that cannot hold such values.
    """
    rank, bad_rank = _ranks(source)
    propensity, bad_propensity = _propensities(source, decimal)
    list_id, bad_list = _list_ids(source)
    values = {RANK: rank, PROPENSITY: propensity, LIST_ID: list_id}
    return values, {"bad_rank": bad_rank, "bad_propensity": bad_propensity, "bad_list": bad_list}


def _ranks(source: pl.DataFrame) -> fields.Parsed:
    if RANK not in source:
        return fields.nothing(len(source), pl.Int32()), None
    number, bad = fields.places(source[RANK], "exposures.columns.rank")
    is_place = (number == number.round()) & number.is_between(1, _HIGHEST_RANK)
    return _judged(number.cast(pl.Int32, strict=False), is_place, bad)


def _propensities(source: pl.DataFrame, decimal: str) -> fields.Parsed:
    if PROPENSITY not in source:
        return fields.nothing(len(source), pl.Float32()), None
    column = source[PROPENSITY]
    column = column.fill_nan(None) if column.dtype.is_float() else column
    number, bad = fields.numbers(column, decimal, "exposures.columns.propensity")
    return _judged(number, (number > 0) & (number <= 1), bad)


def _judged(number: pl.Series, fits: pl.Series, bad: pl.Series | None) -> fields.Parsed:
    """The numbers, and which rows have one that does not fit, or something that is none; None where none has."""
    unfit = ~fits.fill_null(value=True)
    unfit = unfit if bad is None else unfit | bad
    return number, unfit if unfit.any() else None


def _list_ids(source: pl.DataFrame) -> fields.Parsed:
    if LIST_ID not in source:
        return fields.nothing(len(source), pl.String()), None
    try:
        text = ids.typed(ids.plain(source[LIST_ID]), "string")
    except ValueError as error:
        raise ValueError(f"exposures.columns.list_id: {error}") from None
    too_long = ids.is_too_long(text)
    return text.set(ids.is_missing(text), None), too_long if too_long.any() else None
