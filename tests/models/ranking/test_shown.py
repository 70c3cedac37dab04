"""Features of what was shown, by pencil; a ranker reads them in any order of rows, and after a renumbering."""

from dataclasses import replace

import numpy as np
import pytest

from models.histories import ShownItems, histories_from_lists
from models.ranking.features import ItemStatistics
from models.ranking.shown import SHOWN_FEATURES, shown_features

DAY = 86_400_000_000
NOW = 100 * DAY
ITEMS = np.array([[1, 3, 0], [5, 3, 9], [3, 9, 1]], np.int32)
TIMES = np.log1p(np.array([[0, 2, 0], [1, 0, 0], [0, 0, 0]]))
DAYS = np.log1p(np.array([[14, 3, 14], [0.5, 14, 14], [14, 14, 14]]))


def shown() -> ShownItems:
    """Row 0 was shown 3 twice, three days ago, and 7 once with a reaction; row 1 item 5 once, half a day ago; row 2 nothing."""
    starts, ends = np.array([0, 2, 3]), np.array([2, 3, 3])
    last = np.array([NOW - 3 * DAY, NOW - DAY, NOW - DAY // 2])
    return ShownItems(np.array([3, 7, 5], np.int32), starts, ends, np.array([2, 0, 1], np.int32), last)


def test_times_without_a_reaction_and_days_since() -> None:
    columns = shown_features(shown(), ITEMS, np.full(3, NOW))
    assert columns["times_ignored"] == pytest.approx(TIMES)
    assert columns["last_shown"] == pytest.approx(DAYS)
    order = np.array([2, 1, 1, 0])
    again = shown_features(shown().select(order), ITEMS[order], np.full(4, NOW))
    assert again["last_shown"] == pytest.approx(DAYS[order])
    none = shown_features(None, ITEMS, np.full(3, NOW))
    assert not none["times_ignored"].any()
    assert none["last_shown"] == pytest.approx(np.full((3, 3), np.log(15)))


def test_items_shown_keep_their_numbers_when_they_are_renumbered() -> None:
    mapping = np.array([0, 1, 2, 8, 4, 5, 6, 2, 3, 9], np.int32)  # 3 -> 8, 7 -> 2
    renamed = shown().translate(mapping)
    assert renamed.item_index.tolist() == [2, 8, 5]
    assert renamed.ignored.tolist() == [0, 2, 1]
    mapping[3] = 0
    assert shown().translate(mapping).item_index.tolist() == [2, 5]
    assert shown().translate(mapping).lengths.tolist() == [1, 1, 0]


def test_statistics_give_them_by_the_time_of_the_request() -> None:
    rows = histories_from_lists([[1], [2], [3]], [[NOW], [NOW - DAY], [NOW]])
    own = ItemStatistics.of(rows, 9)
    asked = replace(rows, request_time=np.full(3, NOW), shown=shown())
    features = own.features(asked, ITEMS, np.zeros((3, 3), np.float32), SHOWN_FEATURES)
    assert features[..., 0] == pytest.approx(TIMES, abs=1e-6)
    assert features[..., 1] == pytest.approx(DAYS, abs=1e-6)
    plain = own.features(replace(asked, shown=None), ITEMS, np.zeros((3, 3), np.float32))
    assert np.array_equal(plain, own.features(asked, ITEMS, np.zeros((3, 3), np.float32)))
