"""`lookback recommend --without ITEM --with ITEM`: the changed history, and two lists beside each other."""

from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest

from features.histories.vocabulary import Vocabulary
from models.histories import histories_from_lists
from pipeline.commands.changed_history import Change, Difference, Row
from pipeline.errors import LookbackError

ITEMS = Vocabulary(pl.Series("item_id", ["a", "b", "c", "d"]), 1)
KNOWN = replace(
    histories_from_lists([[1, 2, 1, 3]], [[10, 20, 30, 40]]),
    event_type=np.array([1, 2, 2, 3], np.int16),
    value=np.array([1, 2, 3, 4], np.float32),
    dislikes=np.array([0, 0, 0, 1], np.float32),
    request_time=np.array([50]),
)


def test_all_events_of_an_item_go_and_added_ones_are_the_newest() -> None:
    changed = Change(("a",), ("d", "b")).applied(KNOWN, ITEMS, 50)
    assert changed.item_index.tolist() == [2, 3, 4, 2]
    assert changed.time.tolist() == [20, 40, 50, 50]
    assert changed.event_type.tolist() == [2, 3, 2, 2], "the most frequent type that is no dislike"
    assert np.isnan(changed.value[2:]).all()  # type: ignore[index]
    assert changed.lengths.tolist() == [4]
    assert changed.request_time is KNOWN.request_time
    later = Change((), ("d",)).applied(KNOWN, ITEMS, 5)
    assert later.time.tolist() == [10, 20, 30, 40, 40], "not before the newest"
    assert Change(("a", "b", "c"), ()).applied(KNOWN, ITEMS, 50).lengths.tolist() == [0]
    assert not Change((), ())


def test_items_that_are_not_there_are_named() -> None:
    with pytest.raises(
        LookbackError, match="--without: received 'd', 'x', not among the 4 interactions"
    ) as one:
        Change(("a", "d", "x"), ()).applied(KNOWN, ITEMS, 50)
    assert "such as a, b, c" in str(one.value)
    with pytest.raises(
        LookbackError, match=r"--with: received 'x', not known to the model.* such as a, b, c"
    ):
        Change((), ("a", "x")).applied(KNOWN, ITEMS, 50)
    with pytest.raises(LookbackError, match="this one is empty"):
        Change(("a",), ()).applied(histories_from_lists([[]]), ITEMS, 50)


def rows(*items: str) -> list[Row]:
    return [
        {"rank": rank, "item_id": item, "title": f"Film {item}", "score": 1.0, "because": []}
        for rank, item in enumerate(items, 1)
    ]


def test_what_enters_leaves_and_moves() -> None:
    difference = Difference(Change(("x\x1b",), ("y",)), rows("a", "b", "c"), rows("b", "d", "a", "c"))
    assert difference.as_text().split("\n") == [
        "1 enter the list, 0 leave it, 3 move",
        r"     as it is           without x\x1b, with y",
        "  1  a  Film a          b  Film b  up from 2",
        "  2  b  Film b          d  Film d  enters",
        "  3  c  Film c          a  Film a  down from 1",
        "  4                     c  Film c  down from 3",
    ]
    found: dict[str, Any] = difference.as_json()
    assert found["entered"] == ["d"]
    assert found["left"] == []
    assert found["moved"][0] == {"item_id": "b", "from": 2, "to": 1}
    assert found["recommendations"][1] == {"rank": 2, "item_id": "d", "title": "Film d", "score": 1.0}
    back = Difference(Change((), ("y",)), rows("a", "b"), rows("a"))
    assert back.as_text().split("\n")[1:] == [
        "     as it is           with y",
        "  1  a  Film a          a  Film a",
        "  2  b  Film b  leaves",
    ]
