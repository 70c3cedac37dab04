"""Columns that `ranker.columns` can mean."""

import pytest

from features.attribute_settings import attribute_columns
from features.settings import ItemSettings, UserSettings

USERS = UserSettings(path="u.csv", columns={"user_id": 1, "country": 2, "age": 3})
ITEMS = ItemSettings(
    path="i.csv",
    columns={"item_id": 1, "title": 2, "categories": 3, "text": 4, "embedding": 5, "country": 6, "price": 7},
)


def test_auto_means_all_that_are_values() -> None:
    assert attribute_columns(USERS, ITEMS, "auto") == [
        ("users", "country"),
        ("users", "age"),
        ("items", "categories"),
        ("items", "country"),
        ("items", "price"),
    ]
    assert attribute_columns(None, None, "auto") == []


def test_a_plain_name_means_both_tables() -> None:
    assert attribute_columns(USERS, ITEMS, ["country"]) == [("users", "country"), ("items", "country")]
    assert attribute_columns(USERS, ITEMS, ["items.country", "age"]) == [
        ("users", "age"),
        ("items", "country"),
    ]
    assert attribute_columns(USERS, ITEMS, []) == []


@pytest.mark.parametrize("name", ["brand", "user_id", "title", "events.age"])
def test_an_unknown_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"ranker.columns: received '{name}', expected auto .*users.age"):
        attribute_columns(USERS, ITEMS, [name])
    with pytest.raises(ValueError, match="they name none"):
        attribute_columns(None, None, [name])


def test_items_have_further_columns_but_no_misspelt_ones() -> None:
    assert "price" in ITEMS.columns
    with pytest.raises(ValueError, match=r"did you mean 'items.columns.categories'"):
        ItemSettings(path="i.csv", columns={"item_id": 1, "categorys": 2})
