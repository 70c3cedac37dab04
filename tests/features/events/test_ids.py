"""Ids: exact, and int64 only where they are written as one."""

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.events import ids

CANONICAL = {
    "7": 7,
    "0": 0,
    "-5": -5,
    "17850.0": 17850,
    "-3.00": -3,
    " 7": 7,
    "7 ": 7,
    "\t17850.0\u00a0": 17850,
    "9223372036854775807": 2**63 - 1,
    "-9223372036854775808": -(2**63),
}
OTHER = ["007", "+7", "-0", "-0.0", "-05", "9223372036854775808", "1_0", "1e3", "1.", "A", "٣", "7.5"]


def test_what_is_a_canonical_int64() -> None:
    texts = [*CANONICAL, *OTHER]
    expected = [*CANONICAL.values(), *[None] * len(OTHER)]
    assert ids.canonical(pl.Series(texts)).to_list() == expected


@given(st.lists(st.integers(-(2**70), 2**70)))
def test_every_integer_of_64_bits_comes_through(numbers: list[int]) -> None:
    found = ids.canonical(pl.Series([str(number) for number in numbers], dtype=pl.String)).to_list()
    assert found == [number if -(2**63) <= number < 2**63 else None for number in numbers]


@given(st.lists(st.text(max_size=6)))
def test_an_id_that_is_an_int64_is_written_as_it(texts: list[str]) -> None:
    for text, number in zip(texts, ids.canonical(pl.Series(texts, dtype=pl.String)), strict=True):
        if number is not None:
            head, point, zeros = text.strip().partition(".")
            assert head == str(number)
            assert not zeros.strip("0")
            assert bool(point) == bool(zeros)


def test_text_ids_have_one_spelling() -> None:
    texts = pl.Series(["17850.0", " a b ", "007.0", "-0.0", "3.100", "x.0", "b\u00a0", "12.00", None, "0.0"])
    expected = ["17850", "a b", "007.0", "-0.0", "3.100", "x.0", "b", "12", None, "0"]
    assert ids.typed(texts, "string").to_list() == expected


def test_blanks_are_no_ids() -> None:
    found = ids.is_missing(pl.Series(["", " ", "\t ", None, "a", " a", "!"])).to_list()
    assert found == [True, True, True, True, False, False, False]


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pl.Series([1, None], dtype=pl.Int16), [1, None]),
        (pl.Series([2**63 + 5], dtype=pl.UInt64), [str(2**63 + 5)]),
        (pl.Series([17850.0, 1.5, None, float("nan")]), ["17850", "1.5", None, None]),
        (pl.Series(["a", "b"], dtype=pl.Categorical()), ["a", "b"]),
        (pl.Series(["12345678901234567890"]).cast(pl.Decimal(20, 0)), ["12345678901234567890"]),
        (pl.Series([b"ab"]), ["ab"]),
    ],
)
def test_ids_of_any_column_type(column: pl.Series, expected: list[object]) -> None:
    assert ids.plain(column).to_list() == expected


def test_lists_are_no_ids() -> None:
    with pytest.raises(ValueError, match="ids are List"):
        ids.plain(pl.Series([[1]]))


def test_ids_of_the_form_of_known_ones() -> None:
    known = pl.Series(["A12", "B345", "17"])
    others = pl.Series(["C9", "CC99", "22", "POST", "1234567", "A-1", "a1b2c", "x" * 9])
    found = ids.have_form_of(others, known).to_list()
    assert found == [True, True, True, False, False, False, True, False]
    assert ids.have_form_of(pl.Series([99, 1000, 5]), pl.Series([10, 23])).to_list() == [True, False, True]
