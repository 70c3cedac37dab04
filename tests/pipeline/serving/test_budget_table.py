"""Budgets of a file: as written down, in any of three formats; each mistake has one message."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from features.histories.vocabulary import Vocabulary
from models.allocation.night import NO_CAP, UNIT
from pipeline.errors import LookbackError
from pipeline.serving import budget_table
from pipeline.serving.budget_table import Catalogue

HEADER = "field,value,min_places,max_places,unit\n"
ITEMS = ["a", "b", "c", "d"]


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    """Items a, b of acme, c of bolt; a and c are new."""
    pl.DataFrame(
        {
            "item_id": ITEMS,
            "title": ["A", "B", "C", "D"],
            "categories": [["toys"], ["toys", "books"], ["books"], []],
            "provider": ["acme", "acme", "bolt", None],
        }
    ).write_parquet(tmp_path / "items.parquet")
    ages = np.array([0, 3.0, 30, 5, 90])
    return Catalogue(Vocabulary(pl.Series(ITEMS), 1), tmp_path / "items.parquet", None, lambda: ages)


def written(folder: Path, rows: str) -> Path:
    path = folder / "budgets.csv"
    path.write_text(HEADER + rows, encoding="utf-8")
    return path


def test_fields_values_and_units(tmp_path: Path, catalogue: Catalogue) -> None:
    """Ten users with lists of two: 20 places."""
    path = written(
        tmp_path,
        "item_id,b,,3,\ncategory,books,4,,places\nprovider,acme,0.25,0.75,share\nage_days,7,2,,\n*,,,20,\n",
    )
    rows, budgets = budget_table.budgets_of(path, catalogue, 10, np.full(2, UNIT))
    groups = [sorted(budgets.item[budgets.budget == number].tolist()) for number in range(5)]
    assert groups == [[2], [2, 3], [1, 2], [1, 3], [1, 2, 3, 4]]
    assert (budgets.low / UNIT).tolist() == [0, 4, 5, 2, 0]
    assert (budgets.high[[0, 2, 4]] / UNIT).tolist() == [3, 15, 20]
    assert budgets.high[[1, 3]].tolist() == [NO_CAP, NO_CAP]
    assert [row.name for row in rows[1:4:2]] == ["category 'books'", "age_days '7'"]
    assert rows[4].name == "all places"


def test_formats_say_the_same(tmp_path: Path) -> None:
    table = pl.DataFrame({"field": ["item_id", "*"], "value": ["7", None], "max_places": [3, 9]})
    table.write_parquet(tmp_path / "b.parquet")
    table.write_csv(tmp_path / "b.csv")
    text = '[[budgets]]\nfield = "item_id"\nvalue = 7\nmax_places = 3\n[[budgets]]\nfield = "*"\nmax_places = 9\n'
    (tmp_path / "b.toml").write_text(text, encoding="utf-8")
    read = [budget_table.read(tmp_path / f"b.{kind}") for kind in ("parquet", "csv", "toml")]
    assert read[0] == read[1] == read[2]
    assert [(row.value, row.high) for row in read[0]] == [("7", 3), ("*", 9)]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("item_id,a,-1,,\n", "row 1: received min_places '-1', expected a whole number of places from 0"),
        ("item_id,a,,2.5,\n", "row 1: received max_places '2.5', expected a whole number"),
        ("*,,,1.2,share\n", "row 1: received max_places '1.2', expected a share from 0 to 1"),
        ("*,,,1,part\n", "row 1: received unit 'part', expected 'places' or 'share'"),
        ("item_id,a,5,4,\n", "row 1: received min_places 5 above max_places 4"),
        ("item_id,a,,,\n", "row 1: received neither min_places nor max_places"),
        ("item_id,,1,,\n", "row 1: received field 'item_id', value None; expected both"),
        ("item_id,a,1,,\nitem_id,a,,3,\n", "rows 1 and 2 are both of item_id 'a'"),
        ("provder,acme,,3,\n", "row 1: unknown field 'provder'; did you mean 'provider'"),
        (
            "provider,acmee,,3,\nprovider,acme,,3,\n",
            "1 of 2 values of provider are unknown, the first 'acmee'; did you mean 'acme'",
        ),
        ("age_days,new,1,,\n", "received age_days 'new', expected the greatest age"),
        (
            "item_id,a,11,,\n",
            "item_id 'a' has min_places 11, but its 1 items have at most 10 places in the lists of 10 users",
        ),
        (
            "item_id,a,6,,\nprovider,acme,,4,\n",
            "item_id 'a' has at least 6 places and provider 'acme', which contains it, at most 4; expected min_places of at",
        ),
        (
            "item_id,a,4,,\nitem_id,b,5,,\nprovider,acme,,7,\n",
            "rows of item_id with min_places within provider 'acme' need 9 places together, but there are at most 7; expected",
        ),
        (
            "provider,acme,12,,\nprovider,bolt,9,,\n",
            "the 2 rows of provider with min_places within the night need 21 places together, but there are at most 20",
        ),
    ],
)
def test_each_mistake_has_a_message(rows: str, message: str, tmp_path: Path, catalogue: Catalogue) -> None:
    path = written(tmp_path, rows)
    with pytest.raises(LookbackError) as raised:
        budget_table.budgets_of(path, catalogue, 10, np.full(2, UNIT))
    assert str(raised.value).startswith(f"score.budgets: {path}: ")
    assert message in str(raised.value)


def test_a_floor_that_the_filters_forbid(tmp_path: Path, catalogue: Catalogue) -> None:
    own = Catalogue(catalogue.items, catalogue.table, np.array([False, True, True, False, True]), dict)  # type: ignore[arg-type]
    with pytest.raises(
        LookbackError, match=r"provider 'bolt' has min_places 2, but the filters of \[score\] leave"
    ):
        budget_table.budgets_of(written(tmp_path, "provider,bolt,2,,\n"), own, 10, np.full(2, UNIT))


def test_columns_and_files(tmp_path: Path) -> None:
    path = tmp_path / "b.csv"
    path.write_text("field,value,max_place\n*,,3\n", encoding="utf-8")
    with pytest.raises(LookbackError, match="unknown column 'max_place'; did you mean 'max_places'"):
        budget_table.read(path)
    path.write_text("value,max_places\na,3\n", encoding="utf-8")
    with pytest.raises(LookbackError, match="has the columns max_places, value; expected field, value"):
        budget_table.read(path)
    (tmp_path / "b.parquet").write_bytes(b"none")
    with pytest.raises(LookbackError, match="cannot be read as parquet"):
        budget_table.read(tmp_path / "b.parquet")
    (tmp_path / "b.toml").write_text("[caps]\na = 3\n", encoding="utf-8")
    with pytest.raises(LookbackError, match=r"received the keys caps; expected tables \[\[budgets\]\]"):
        budget_table.read(tmp_path / "b.toml")


def test_groups_of_fairness_have_one_value_per_item(catalogue: Catalogue) -> None:
    assert budget_table.groups_of("provider", catalogue).tolist() == [0, 1, 1, 2, 0]
    with pytest.raises(LookbackError, match="1 items have several values of 'category'"):
        budget_table.groups_of("category", catalogue)
    with pytest.raises(LookbackError, match="unknown field 'provide'; did you mean 'provider'"):
        budget_table.groups_of("provide", catalogue)
