"""Rank, propensity and list of an exposure, and the reasons against rows."""

import polars as pl
import pytest

from features.events import exposure_fields


def read(**columns: list[object]) -> tuple[dict[str, list[object]], dict[str, list[int]]]:
    """Values of every row, and the rows that each reason speaks against."""
    values, reasons = exposure_fields.read(pl.DataFrame(columns), ".")
    rows = {reason: flags.arg_true().to_list() for reason, flags in reasons.items() if flags is not None}
    return {name: column.to_list() for name, column in values.items()}, rows


def test_places_begin_at_1() -> None:
    values, rows = read(rank=["1", "2.0", " 3", "", None, "0", "-1", "1.5", "first", "3000000000"])
    assert values["rank"][:5] == [1, 2, 3, None, None]
    assert rows == {"bad_rank": [5, 6, 7, 8, 9]}
    assert read(rank=[1, 2, None])[0]["rank"] == [1, 2, None]


def test_propensities_are_probabilities_above_0() -> None:
    values, rows = read(propensity=["0.25", "1", "", "0", "1.01", "-0.5", "half", "nan"])
    assert values["propensity"][:3] == [0.25, 1.0, None]
    assert rows == {"bad_propensity": [3, 4, 5, 6, 7]}
    assert read(propensity=[0.5, float("nan")]) == (
        {"rank": [None] * 2, "propensity": [0.5, None], "list_id": [None] * 2},
        {},
    )


def test_ids_of_lists_are_text() -> None:
    values, rows = read(list_id=[7, 8, None])
    assert (values["list_id"], rows) == (["7", "8", None], {})
    values, rows = read(list_id=["a", " ", "x" * 70_000])
    assert (values["list_id"][:2], rows) == (["a", None], {"bad_list": [2]})
    with pytest.raises(ValueError, match=r"exposures\.columns\.list_id: ids are List"):
        read(list_id=[[1], [2]])


def test_what_the_log_does_not_say_is_null() -> None:
    values, rows = read(user_id=["1", "2"])
    assert values == {"rank": [None] * 2, "propensity": [None] * 2, "list_id": [None] * 2}
    assert rows == {}
