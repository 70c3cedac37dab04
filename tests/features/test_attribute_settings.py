"""Columns that `ranker.columns` can mean."""

import pytest

from features.attribute_settings import attribute_columns
from features.settings import EventSettings, ItemSettings, UserSettings

USERS = UserSettings(path="u.csv", columns={"user_id": 1, "country": 2, "age": 3})
ITEMS = ItemSettings(
    path="i.csv",
    columns={"item_id": 1, "title": 2, "categories": 3, "text": 4, "embedding": 5, "country": 6, "price": 7},
)
_IDS = {"user_id": 1, "item_id": 2, "timestamp": 3}
EVENTS = EventSettings(path="e.csv", columns={**_IDS, "device": 4, "country": 5})
PLAIN = EventSettings(path="e.csv", columns=_IDS)


def test_auto_means_all_that_are_values() -> None:
    assert attribute_columns(USERS, ITEMS, EVENTS, "auto") == [
        ("users", "country"),
        ("users", "age"),
        ("items", "categories"),
        ("items", "country"),
        ("items", "price"),
        ("events", "device"),
        ("events", "country"),
    ]
    assert attribute_columns(None, None, PLAIN, "auto") == []


def test_a_plain_name_means_all_tables() -> None:
    assert attribute_columns(USERS, ITEMS, EVENTS, ["country"]) == [
        ("users", "country"),
        ("items", "country"),
        ("events", "country"),
    ]
    assert attribute_columns(USERS, ITEMS, EVENTS, ["events.country"]) == [("events", "country")]
    assert attribute_columns(USERS, ITEMS, EVENTS, ["items.country", "age"]) == [
        ("users", "age"),
        ("items", "country"),
    ]
    assert attribute_columns(USERS, ITEMS, EVENTS, []) == []


@pytest.mark.parametrize("name", ["brand", "user_id", "title", "events.age"])
def test_an_unknown_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"ranker.columns: received '{name}', expected auto .*users.age"):
        attribute_columns(USERS, ITEMS, EVENTS, [name])
    with pytest.raises(ValueError, match="they name none"):
        attribute_columns(None, None, PLAIN, [name])


def test_items_have_further_columns_but_no_misspelt_ones() -> None:
    assert "price" in ITEMS.columns
    with pytest.raises(ValueError, match=r"did you mean 'items.columns.categories'"):
        ItemSettings(path="i.csv", columns={"item_id": 1, "categorys": 2})


@pytest.mark.parametrize("name", ["type", "time", "evnt_type", "user", "item_ids"])
def test_events_have_further_columns_but_no_misspelt_ones(name: str) -> None:
    assert EVENTS.further == ("device", "country")
    with pytest.raises(
        ValueError, match=rf"unknown key 'events.columns.{name}', .* did you mean 'events.columns"
    ):
        EventSettings(path="e.csv", columns={**_IDS, name: 6})


@pytest.mark.parametrize("name", ["source_row", "two words", "a.b"])
def test_a_further_column_has_a_plain_name(name: str) -> None:
    with pytest.raises(ValueError, match=r"events.columns: received .*expected a name of letters, digits"):
        EventSettings(path="e.csv", columns={**_IDS, name: 6})
