"""Fields as values: numbers in any notation, words for nothing, event types."""

import polars as pl
import pytest

from features.events import fields


@pytest.mark.parametrize(
    ("decimal", "text", "expected"),
    [
        (".", "3.5", 3.5),
        (".", " 3.5 ", 3.5),
        (".", "$3.50", 3.5),
        (".", "3.50 €", 3.5),
        (".", "-£ 2", -2.0),
        (".", "€-2", -2.0),
        (".", "1e3", 1000.0),
        (".", "3,5", None),
        (".", "1.234.567", None),
        (".", "much", None),
        (",", "3,5", 3.5),
        (",", "1.234,5", 1234.5),
        (",", "1.234", 1234.0),
        (",", "12.345.678", 12345678.0),
        (",", "1 234,5", 1234.5),
        (",", "1\u00a0234,5 €", 1234.5),
        (",", "1\u202f234", 1234.0),
        (",", "-1.234,5", -1234.5),
        (",", "7", 7.0),
        (",", ",5", 0.5),
        (",", "12.5", None),
        (",", "1,234,567", None),
    ],
)
def test_a_number_is_what_its_notation_says(decimal: str, text: str, expected: float | None) -> None:
    number, is_bad = fields.numbers(pl.Series([text, ""]), decimal)
    assert number.to_list() == [expected, None]
    assert is_bad is not None
    assert is_bad.to_list() == [expected is None, False]


def test_words_for_nothing_are_null_in_every_type() -> None:
    frame = pl.DataFrame(
        {
            "text": ["NA", " NA ", "NAN", "na", ""],
            "number": [-1, 0, 1, None, 2],
            "kind": pl.Series(["NA", "a", "NA", "b", None], dtype=pl.Categorical()),
            "lists": [["a", "NA"], ["NA"], [], None, ["b"]],
        }
    )
    found = fields.without_words(frame, ["NA", "-1"])
    assert found["text"].to_list() == [None, None, "NAN", "na", ""]
    assert found["number"].to_list() == [None, 0, 1, None, 2]
    assert found["kind"].cast(pl.String).to_list() == [None, "a", None, "b", None]
    assert found["lists"].to_list() == [["a"], [], [], None, ["b"]]
    assert fields.without_words(frame, [""]) is frame


def test_event_types_without_blanks_and_a_long_one_as_none() -> None:
    kinds, is_bad = fields.event_types(pl.Series([" view", "view", " ", "", None, "x" * 70_000]))
    assert kinds.cast(pl.String).to_list() == ["view", "view", None, None, None, None]
    assert is_bad is not None
    assert is_bad.to_list() == [False] * 5 + [True]


def test_text_is_no_event_type() -> None:
    many = pl.Series([f"liked it {number} times" for number in range(10_001)])
    with pytest.raises(ValueError, match=r"event_type: 10,001 different types such as .*leave it out"):
        fields.event_types(many)
    long = pl.Series([f"{number}" + "x" * 60_000 for number in range(18)])
    with pytest.raises(ValueError, match=r"event_type: types of 1,080,0.. letters such as .*x…, expected"):
        fields.event_types(long)
    fields.check_types(["view", "x" * 10_000_000])  # a row's fault, such as an open quote
    fields.check_types([f"type {number}" for number in range(10_000)])
