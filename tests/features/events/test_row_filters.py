"""Rows left out by conditions on the source's own columns."""

from typing import Any

import polars as pl
import pytest

from features.events.row_filters import RowFilters
from features.settings import EventSettings

COUNTRIES = ["UK", " UK ", "FR", None, ""]
NUMBERS = ["3", "3.0", "-2", "x", None]


@pytest.mark.parametrize(
    ("column", "condition", "fits"),
    [
        (COUNTRIES, {"in": ["UK"]}, [True, True, False, False, False]),
        (COUNTRIES, {"in": ["UK", ""]}, [True, True, False, True, True]),
        (COUNTRIES, {"not_in": ["UK"]}, [False, False, True, True, True]),
        (COUNTRIES, {"matches": "^U"}, [True, True, False, False, False]),
        (NUMBERS, {"in": [3]}, [True, True, False, False, False]),
        (NUMBERS, {"min": 0}, [True, True, False, False, False]),
        (NUMBERS, {"max": 0}, [False, False, True, False, False]),
        (
            ["2026-01-31", "2025-12-31", None, "", "2027"],
            {"min": "2026-01-01"},
            [True, False, False, False, True],
        ),
        ([1.5, 3.0, None, -1.0, 0.0], {"min": 0, "max": 2}, [True, False, False, False, True]),
        ([True, False, None, True, False], {"in": [True]}, [True, False, False, True, False]),
    ],
)
def test_rows_that_a_condition_does_not_fit(column: list[Any], condition: Any, fits: list[bool]) -> None:
    filters = RowFilters.of([{"column": "c", **condition}], {"user_id": "int64", "item_id": "int64"})
    reasons = filters.reasons(pl.DataFrame({"where.c": column}), {}, {})
    assert reasons["where"] is not None
    assert (~reasons["where"]).to_list() == fits


@pytest.mark.parametrize(
    "condition", [{"column": "c"}, {"in": ["x"]}, {"column": "c", "in": "x"}, {"column": "c", "is": 1}]
)
def test_a_condition_that_cannot_be_meant_is_refused(condition: dict[str, Any]) -> None:
    columns: Any = {"user_id": "u", "item_id": "i", "timestamp": "t"}
    with pytest.raises(ValueError, match=r"events\.where: received .*expected a column by name"):
        EventSettings("log", columns=columns, where=[condition])


def test_a_pattern_that_polars_cannot_match_is_refused_before_anything_is_read() -> None:
    with pytest.raises(
        ValueError, match=r"matches '\(\?!a\)b' for 'c', expected .*: look-around, .* is not supported$"
    ):
        RowFilters.of([{"column": "c", "matches": "(?!a)b"}], {})


def test_a_pattern_that_is_no_regular_expression_is_refused_before_anything_is_read() -> None:
    columns = {"user_id": "u", "item_id": "i", "timestamp": "t"}
    with pytest.raises(
        ValueError, match=r"events\.where: received matches '\(a' for 'c', expected a regular"
    ):
        EventSettings("log", columns=columns, where=[{"column": "c", "matches": "(a"}])
