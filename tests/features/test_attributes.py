"""Codes of columns: categories, numbers in bins, lists; rare, unseen and missing values; columns that say nothing."""

import json
from dataclasses import asdict
from datetime import timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest

from features.attributes import MAX_IN_LIST, MAX_LEVELS, MISSING, NUM_BINS, PADDING, RARE, Attribute, Unusable


def fitted(values: list[Any], trained: int | None = None, name: str = "age") -> Attribute:
    """Column of users, of whom the first `trained` are in the training period."""
    is_trained = np.arange(len(values)) < (len(values) if trained is None else trained)
    return Attribute.fit("users", pl.Series(name, values), is_trained)


def codes(attribute: Attribute, *values: Any) -> list[Any]:
    found = attribute.codes(pl.Series("age", list(values)))
    return list(found[:, 0] if attribute.width == 1 else found.tolist())


def test_categories_have_a_code_each_and_rare_and_unseen_ones_share_one() -> None:
    age = fitted(["old"] * 12 + ["young"] * 11 + ["ancient"] * 9 + [None])
    assert age.values == ("old", "young")
    assert codes(age, "young", " old ", "ancient", "martian", None, "") == [
        4,
        3,
        RARE,
        RARE,
        MISSING,
        MISSING,
    ]
    assert age.num_codes == 5
    assert age.label == "users.age"


def test_only_the_training_period_counts() -> None:
    age = fitted(["old"] * 10 + ["young"] * 10 + ["new"] * 50, trained=20)
    assert age.values == ("old", "young")


def test_a_value_that_was_never_missing_in_training_is_unseen_when_it_is() -> None:
    assert codes(fitted(["old"] * 10 + ["young"] * 10), None) == [RARE]


def test_numbers_have_a_bin_of_equally_many_each() -> None:
    price = fitted([f"{number / 2}" for number in range(200)])
    assert len(price.edges) == NUM_BINS - 1
    assert price.edges[:2] == (4.5, 9.5), "ten numbers each: 0 to 4.5, 5 to 9.5"
    found = codes(price, "0", "4.5", "4.6", "-7", "1e9", "dear", None, "nan")
    assert found == [3, 3, 4, 3, 2 + NUM_BINS, RARE, RARE, RARE]


def test_bins_of_a_frequent_number_are_one() -> None:
    price = fitted([0.0] * 100 + [float(number) + 0.5 for number in range(100)])
    assert price.edges[0] == 0.0
    assert len(price.edges) == NUM_BINS // 2, "half of the quantiles are 0"


def test_few_distinct_numbers_are_categories() -> None:
    assert fitted([1, 18, 25] * 10).values == ("1", "18", "25")
    assert fitted([*range(MAX_LEVELS)] * 10).edges == ()
    assert fitted([*range(MAX_LEVELS + 1)] * 10).edges != ()


def test_days_are_numbers() -> None:
    days = pl.datetime_range(pl.datetime(2026, 1, 1), pl.datetime(2026, 4, 10), "1d", eager=True)
    since = Attribute.fit("users", days.alias("since"), np.ones(len(days), bool))
    found = since.codes(days)[:, 0]
    assert np.bincount(found)[3:].tolist() == [5] * NUM_BINS


def test_lists_have_several_codes() -> None:
    genres = fitted([["war", "love"]] * 10 + [["love"]] * 5 + [None, []])
    assert genres.values == ("love", "war")
    assert codes(genres, ["war", "love"], ["love"], ["odd", "love", "war"], [], None) == [
        [4, 3],
        [3, PADDING],
        [RARE, 3],
        [MISSING, PADDING],
        [MISSING, PADDING],
    ]
    many = fitted([[f"{number}" for number in range(20)]] * 10 + [["0"]])
    assert many.width == MAX_IN_LIST


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([None] * 30, "no value"),
        (["  "] * 30, "no value"),
        (["same"] * 30, "a single value"),
        ([*range(1000, 1100)], "a value of its own in every row"),
        ([f"user-{number}" for number in range(100)], "a value of its own in every row"),
        ([f"street {number // 2}" for number in range(100)], "no value of 10 users or more"),
        ([{"a": 1}] * 30, "a column of type Struct"),
    ],
)
def test_columns_that_say_nothing_are_refused(values: list[Any], reason: str) -> None:
    with pytest.raises(Unusable, match=reason):
        fitted(values)


def test_a_single_value_and_none_are_two() -> None:
    assert codes(fitted(["member"] * 20 + [None] * 5), "member", None) == [3, MISSING]


def test_it_is_kept_as_json() -> None:
    for attribute in (fitted(["old"] * 10 + ["young"] * 10), fitted([number / 4 for number in range(100)])):
        assert Attribute.of_dict(json.loads(json.dumps(asdict(attribute)))) == attribute


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_is_not_finite_is_missing(bad: float) -> None:
    price = fitted([*(number / 4 for number in range(100)), bad])
    assert len(price.edges) == NUM_BINS - 1
    assert codes(price, 0.0, bad, None) == [3, MISSING, MISSING]
    few = fitted([1.5] * 10 + [2.0] * 10 + [bad] * 10)
    assert few.values == ("1.5", "2")
    assert codes(few, 2.0, bad) == [4, MISSING]


DAYS = pl.date_range(pl.date(2026, 1, 1), pl.date(2026, 4, 10), eager=True)


@pytest.mark.parametrize(
    ("first", "later"),
    [
        ([20, 30], [[20.0, 30.0], ["20.0", "30"], [" 20 ", "30.00"]]),
        ([1.5, -0.0], [["1.50", "0"], ["1.5", "-0.0"]]),
        ([True, False], [[1, 0], [1.0, 0.0], ["True", "False"], ["true", "false"], ["1", "0"]]),
        ([[1, 0], [0]], [[[1.0, 0.0], [0.0]], [[True, False], [False]], [["1", "0.0"], ["false"]]]),
    ],
)
def test_a_value_is_the_same_in_every_type(first: list[Any], later: list[list[Any]]) -> None:
    attribute = fitted(first * 10)
    known = codes(attribute, *first)
    assert RARE not in np.ravel(known)
    assert [codes(attribute, *values) for values in later] == [known] * len(later)


def test_text_with_zeros_in_front_stays_as_it_is() -> None:
    assert fitted(["0120", "120", "1.0.0"] * 10).values == ("0120", "1.0.0", "120")


@pytest.mark.parametrize("days", [DAYS, DAYS.head(10)])
def test_days_and_times_of_any_unit_are_the_same(days: pl.Series) -> None:
    several = pl.concat([days] * 10)
    attribute = Attribute.fit("users", several.alias("since"), np.ones(len(several), bool))
    known = attribute.codes(days).tolist()
    assert len(np.unique(known)) == (NUM_BINS if attribute.edges else 10)
    for kind in (pl.Datetime("ms"), pl.Datetime("us"), pl.Datetime("ns"), pl.Datetime("ms", "UTC")):
        assert attribute.codes(days.cast(kind)).tolist() == known
    if not attribute.edges:
        for written in (days, days.cast(pl.Datetime("ms")), days.cast(pl.Datetime("us"))):
            assert attribute.codes(written.cast(pl.String)).tolist() == known


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([timedelta(days=1)], "Duration"),
        ([[timedelta(days=1)]], "List.Duration"),
        ([[[1], [2]]], "List.List"),
        ([[{"a": 1}]], "List.Struct"),
        ([b"a"], "Binary"),
        ([[b"a"]], "List.Binary"),
    ],
)
def test_a_type_without_text_is_refused_at_any_time(values: list[Any], kind: str) -> None:
    with pytest.raises(Unusable, match=f"a column of type {kind}"):
        fitted(values * 30)
    with pytest.raises(Unusable, match=f"a column of type {kind}"):
        Attribute("users", "age", ("1",)).codes(pl.Series("age", values))
