import numpy as np
import pytest

from models.baselines import CoVisitation, Popularity, RecentPopularity
from models.recommender import histories_from_lists

DAY = 86_400_000_000
NOBODY = histories_from_lists([[]])


def test_popularity_counts_events():
    model = Popularity.fit(np.array([2, 2, 3, 2, 0, 5, 5], np.int32), 5)
    assert model.score_items(NOBODY).tolist() == [[-np.inf, 0, 3, 1, 0, 2]]
    assert model.recommend(NOBODY, 4)[0].tolist() == [[2, 5, 3, 1]]


def test_recent_popularity_counts_the_last_days_only():
    item, time = np.array([1, 1, 1, 2, 3], np.int32), np.array([0, 1, 2, 4, 9]) * DAY
    model = RecentPopularity.fit_recent(item, time, 3, days=7)
    assert model.score_items(NOBODY).tolist() == [
        [-np.inf, 0, 1, 1]
    ]  # day 2 is seven days back: no longer recent


def test_recent_popularity_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no events"):
        RecentPopularity.fit_recent(np.zeros(0, np.int32), np.zeros(0, np.int64), 3, days=7)


def test_co_visitation_by_pencil():
    # 1 -> 2 twice at distance 1; 1 -> 3 and 2 -> 3 at distances 2 and 1; pairs never cross users; 0 is no item
    model = CoVisitation.fit(histories_from_lists([[1, 2, 3], [1, 2], [0, 3]]), 3, window=2, decay=0.5)
    expected = [[0, 0, 0, 0], [0, 0, 1, 0.25], [0, 0, 0, 0.5], [0, 0, 0, 0]]
    assert model.follows.toarray() == pytest.approx(np.array(expected))
    prior = np.array([2, 2, 2]) / 6 * 1e-4
    scored = model.score_items(histories_from_lists([[2, 1], []]))
    assert scored[0, 1:] == pytest.approx(
        np.array([0, 1, 0.25 + 0.5 * 0.5]) + prior
    )  # age 0: item 1; age 1: item 2
    assert scored[1, 1:] == pytest.approx(prior)


def test_co_visitation_looks_at_the_window_only():
    model = CoVisitation.fit(histories_from_lists([[1, 2], [3, 4], [3, 4], [4, 4]]), 4, window=1)
    assert model.recommend(histories_from_lists([[1, 3]]), 1)[0].tolist() == [[4]]
    assert model.recommend(histories_from_lists([[3, 1]]), 1)[0].tolist() == [[2]]


def test_co_visitation_keeps_the_strongest_neighbours():
    model = CoVisitation.fit(
        histories_from_lists([[1, 2], [1, 3], [1, 3], [1, 4]]), 4, window=1, max_neighbours=2
    )
    assert model.follows.toarray()[1] == pytest.approx([0, 0, 0.25, 0.5, 0])


def test_chunks_of_events_change_nothing(monkeypatch: pytest.MonkeyPatch):
    random = np.random.default_rng(0)
    histories = histories_from_lists(
        [random.integers(1, 8, random.integers(0, 6)).tolist() for _ in range(31)]
    )
    whole = CoVisitation.fit(histories, 7).follows.toarray()
    monkeypatch.setattr("models.topk._CHUNK_EVENTS", 10)
    assert CoVisitation.fit(histories, 7).follows.toarray() == pytest.approx(whole)


def test_nothing_to_fit_on_still_answers():
    model = CoVisitation.fit(histories_from_lists([[], []]), 3)
    assert model.recommend(histories_from_lists([[1]]), 2)[0].tolist() == [[2, 3]]
