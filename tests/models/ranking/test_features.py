"""What is known of candidates, counted by pencil; nothing at or after a request enters."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from models.histories import Float32, Histories, histories_from_lists
from models.ranking.features import FEATURES, LATEST, ItemStatistics
from models.ranking.takings import DAY

MICRO = DAY * 1_000_000
ITEMS = 4
LOG = histories_from_lists(
    [[1, 2, 1], [2, 3], [1]],
    [[0, 1 * MICRO, 10 * MICRO], [2 * MICRO, 20 * MICRO], [20 * MICRO]],
)


def feature(found: Float32, name: str) -> Float32:
    column: Float32 = found[..., FEATURES.index(name)]
    return column


def asked(days: float, items: list[int] | None = None) -> Histories:
    """One history, by default of item 3, whose next item is asked for after so many days."""
    history = histories_from_lists([items or [3]], [[0] * len(items or [3])])
    return replace(history, request_time=np.array([round(days * MICRO)]))


def of(days: float, *candidates: int, log: Histories = LOG, horizon: float | None = None) -> Float32:
    statistics = ItemStatistics.of(log, ITEMS, days=horizon)
    items = np.array([candidates], np.int32)
    found: Float32 = statistics.features(asked(days), items, np.zeros(items.shape, np.float32))[0]
    return found


def share(count: int, total: int) -> float:
    return float(np.log((count + 0.1) / (total + 0.1 * ITEMS)))


@pytest.mark.parametrize(
    ("days", "counts", "total"),
    [
        (0, (0, 0, 0, 0), 0),
        (1, (1, 0, 0, 0), 1),
        (5, (1, 2, 0, 0), 3),
        (20, (2, 2, 0, 0), 4),
        (21, (3, 2, 1, 0), 6),
    ],
)
def test_popularity_is_what_came_before_the_request(days: float, counts: tuple[int, ...], total: int) -> None:
    found = feature(of(days, 1, 2, 3, 4), "popularity")
    assert found == pytest.approx([share(count, total) for count in counts], abs=1e-5)


def test_recent_popularity_counts_the_days_before_the_request() -> None:
    found = of(10.5, 1, 2)
    assert feature(found, "popularity_1d") == pytest.approx([share(1, 1), share(0, 1)], abs=1e-5)
    assert feature(found, "popularity_7d") == pytest.approx([share(1, 1), share(0, 1)], abs=1e-5)
    assert feature(found, "popularity_30d") == pytest.approx([share(2, 4), share(2, 4)], abs=1e-5)


def test_activity_is_the_events_per_user_of_the_days_before() -> None:
    """The users begin on days 0, 2 and 20; an event at the moment itself is not before it."""
    statistics = ItemStatistics.of(LOG, ITEMS)
    moments = MICRO * np.array([0, 2, 5, 20, 21, 30])
    assert statistics.activity(moments, 10.0) == pytest.approx([0, 2 / 1, 3 / 2, 1 / 2, 2 / 3, 2 / 3])
    assert statistics.recounted(LOG, 5.0).activity(moments[4:], 1.0) == pytest.approx([2 / 3, 0])
    assert ItemStatistics.of(LOG, ITEMS, timed=False).activity(moments, 10.0).tolist() == [0] * 6


def test_ages_are_days_since_the_first_and_the_last_event() -> None:
    found = of(21, 1, 2)
    assert feature(found, "item_age") == pytest.approx(np.log1p([21, 20]))
    assert feature(found, "item_last_seen") == pytest.approx(np.log1p([1, 19]))


def test_a_horizon_changes_nothing_for_requests_after_it() -> None:
    whole, cut = of(21, 1, 2, 3, 4), of(21, 1, 2, 3, 4, horizon=15)
    late = [name for name in FEATURES if name != "popularity_30d"]
    for name in late:
        assert feature(cut, name) == pytest.approx(feature(whole, name)), name


def test_the_future_changes_nothing() -> None:
    earlier = histories_from_lists([[1, 2], [2]], [[0, 1 * MICRO], [2 * MICRO]])
    now = 2.5
    before, after = of(now, 1, 2, 3, 4, log=earlier), of(now, 1, 2, 3, 4)
    for name in FEATURES:
        assert feature(after, name) == pytest.approx(feature(before, name)), name


def test_a_log_without_times_has_popularity_alone() -> None:
    statistics = ItemStatistics.of(LOG, ITEMS, timed=False)
    found = statistics.features(asked(0), np.array([[1, 4]], np.int32), np.zeros((1, 2), np.float32))[0]
    assert feature(found, "popularity") == pytest.approx([share(3, 6), share(0, 6)], abs=1e-5)
    for name in ("popularity_7d", "item_age", "item_last_seen", "user_last_seen"):
        assert not feature(found, name).any()


def test_followers_are_those_of_the_latest_interactions_the_last_one_first() -> None:
    statistics = ItemStatistics.of(LOG, ITEMS)
    found = statistics.followed(asked(30, [1, 2]), np.array([[1, 3, 2, 0]], np.int32))[0]
    assert found.shape == (4, LATEST)
    # item 2 has two events, followed at distance 1 by item 1 and by item 3; item 1 has three, one of them followed by item 2
    assert found[0, :2] == pytest.approx([1 / 2, 0])
    assert found[1, :2] == pytest.approx([1 / 2, 0])
    assert found[2, :2] == pytest.approx([0, 1 / 3])
    assert not found[3].any()
    assert not found[:, 2:].any()


def test_scores_and_ranks_are_those_of_the_list() -> None:
    statistics = ItemStatistics.of(LOG, ITEMS)
    scores = np.array([[2.0, 1.0, -np.inf]], np.float32)
    found = statistics.features(asked(3, [3, 3, 2]), np.array([[2, 3, 0]], np.int32), scores)[0]
    total = np.log(np.exp(2) + np.exp(1))
    assert feature(found, "retrieval_score")[:2] == pytest.approx([2 - total, 1 - total])
    assert feature(found, "retrieval_rank") == pytest.approx(np.log1p([0, 1, 2]))
    assert feature(found, "times_seen")[:2] == pytest.approx(np.log1p([1, 2]))
    assert feature(found, "history_length") == pytest.approx(np.log1p([3, 3, 3]))


def test_content_is_compared_with_the_latest_items() -> None:
    content = np.array([[0, 0], [1, 0], [0, 1], [0.6, 0.8], [0, 0]], np.float32)
    statistics = ItemStatistics.of(LOG, ITEMS, content)
    found = statistics.features(asked(3, [1, 2]), np.array([[3, 4]], np.int32), np.zeros((1, 2), np.float32))[
        0
    ]
    assert feature(found, "content_of_last") == pytest.approx([0.8, 0])
    assert feature(found, "content_of_history") == pytest.approx([1.4 / np.sqrt(2), 0])


def test_it_is_saved_and_loaded_and_recounted(tmp_path: Path) -> None:
    statistics = ItemStatistics.of(LOG, ITEMS, days=5)
    statistics.save(tmp_path)
    loaded = ItemStatistics.load(tmp_path)
    other = ItemStatistics.of(LOG.select(slice(0, 2)), ITEMS).recounted(LOG, days=5)
    for name, value in vars(statistics).items():
        assert np.array_equal(getattr(loaded, name), value), name
        if not name.startswith("follower"):
            assert np.array_equal(getattr(other, name), value), name
    (tmp_path / "began.npy").unlink()
    older = ItemStatistics.load(tmp_path)
    assert older.activity(np.array([21 * MICRO]), 10.0).tolist() == [0], "a bundle of version 0.7: unknown"


def test_more_items_change_nothing_for_the_others() -> None:
    statistics = ItemStatistics.of(LOG, ITEMS, np.eye(ITEMS + 1, 3, dtype=np.float32))
    more = statistics.extended(np.ones((2, 3), np.float32))
    items, scores = np.array([[1, 2]], np.int32), np.zeros((1, 2), np.float32)
    history = asked(21, [1, 2])
    rest = [
        name for name in FEATURES if not name.startswith("popularity")
    ]  # shares are of a larger catalogue
    for name in rest:
        before, after = (feature(each.features(history, items, scores), name) for each in (statistics, more))
        assert np.array_equal(before, after), name
    assert np.array_equal(more.followed(history, items), statistics.followed(history, items))
    new = more.features(history, np.array([[6]], np.int32), np.zeros((1, 1), np.float32))[0]
    assert feature(new, "item_age") == pytest.approx(np.log1p([21])), "as old as the log: nobody has met it"
