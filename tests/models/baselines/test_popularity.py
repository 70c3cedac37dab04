import numpy as np
import pytest

from models.baselines.als import ALS
from models.baselines.base import Baseline, FittedOn, interactions, item_counts, popularity_prior
from models.baselines.co_visitation import CoVisitation
from models.baselines.ease import EASE
from models.baselines.item_knn import ItemKNN
from models.baselines.own_items import OwnFrequent, OwnRecent
from models.baselines.popularity import Popularity, RecentPopularity
from models.baselines.tifu_knn import TIFUKNN
from models.histories import Histories, histories_from_lists

DAY = 86_400_000_000
NOBODY = histories_from_lists([[]])
OWN: tuple[type[Baseline], ...] = (OwnFrequent, OwnRecent, TIFUKNN)
ALL: tuple[type[Baseline], ...] = (Popularity, RecentPopularity, CoVisitation, ItemKNN, EASE, ALS, *OWN)


def rows_of_one(items: list[int], days: list[int]) -> Histories:
    """An event per row."""
    return histories_from_lists([[item] for item in items], [[day * DAY] for day in days])


def test_popularity_counts_events():
    model = Popularity.fit(histories_from_lists([[2, 2, 3], [2, 0], [5, 5]]), 5)
    assert model.score_items(NOBODY).tolist() == [[-np.inf, 0, 3, 1, 0, 2]]
    assert model.recommend(NOBODY, 4)[0].tolist() == [[2, 5, 3, 1]]


def test_popularity_of_given_counts():
    model = Popularity(np.array([9, 2, 0, 3], np.float32))
    assert model.score_items(NOBODY).tolist() == [[-np.inf, 2, 0, 3]]
    assert model.fitted_on == FittedOn(5, None)


def test_recent_popularity_counts_the_last_days_only():
    model = RecentPopularity.fit(rows_of_one([1, 1, 1, 2, 3], [0, 1, 2, 4, 9]), 3, days=7)
    # day 2 is seven days back: no longer recent
    assert model.score_items(NOBODY).tolist() == [[-np.inf, 0, 1, 1]]


def test_recent_popularity_looks_at_the_rows_it_is_given_alone():
    everything = rows_of_one([1, 1, 1, 2, 3], [0, 1, 2, 4, 9])
    model = RecentPopularity.fit(everything.select(slice(0, 4)), 3, days=3)
    assert model.score_items(NOBODY).tolist() == [[-np.inf, 1, 1, 0]]
    assert model.fitted_on == FittedOn(4, 4 * DAY)


def test_recent_popularity_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no events"):
        RecentPopularity.fit(NOBODY, 3, days=7)
    with pytest.raises(ValueError, match="days=0, expected more than 0"):
        RecentPopularity.fit(rows_of_one([1], [0]), 3, days=0)


def test_fitted_on_counts_known_events_of_the_rows_given():
    histories = histories_from_lists([[1, 2, 0], [], [3, 1], [2]], [[5, 7, 99], [], [1, 30], [40]])
    assert FittedOn.of(histories) == FittedOn(5, 40)
    assert FittedOn.of(histories.select(slice(0, 3))) == FittedOn(4, 30)
    assert FittedOn.of(histories.select(slice(1, 2))) == FittedOn(0, None)


@pytest.mark.parametrize("baseline", ALL)
def test_every_baseline_says_what_it_was_fitted_on(baseline: type[Baseline]):
    histories = histories_from_lists([[1, 2], [2, 3, 1], [3, 4]], [[5, 7], [1, 30, 31], [40, 41]])
    for rows, expected in ((slice(0, 3), FittedOn(7, 41)), (slice(0, 2), FittedOn(5, 31))):
        assert baseline.fit(histories.select(rows), 4).fitted_on == expected  # type: ignore[attr-defined]


@pytest.mark.parametrize("baseline", ALL)
def test_every_point_of_a_grid_can_be_fitted(baseline: type[Baseline]):
    assert 1 <= len(baseline.GRID) <= 6
    assert len({tuple(sorted(point.items())) for point in baseline.GRID}) == len(baseline.GRID)
    histories = histories_from_lists([[1, 2], [2, 3, 1], [3, 4]])
    for point in baseline.GRID:
        model = baseline.fit(histories, 4, **point)  # type: ignore[attr-defined]
        assert np.isfinite(model.score_items(histories)[:, 1:]).all()


@pytest.mark.parametrize("baseline", [Popularity, CoVisitation, ItemKNN, EASE, ALS, *OWN])
def test_an_empty_history_is_answered_by_popularity(baseline: type[Baseline]):
    model = baseline.fit(histories_from_lists([[1, 2], [2, 3], [3, 2, 5]]), 5)  # type: ignore[attr-defined]
    assert model.recommend(NOBODY, 5)[0].tolist() == [[2, 3, 1, 5, 4]]


@pytest.mark.parametrize("baseline", [Popularity, CoVisitation, ItemKNN, EASE, ALS, *OWN])
def test_nothing_to_fit_on_still_answers(baseline: type[Baseline]):
    for nothing in (histories_from_lists([[], []]), histories_from_lists([])):
        model = baseline.fit(nothing, 3)  # type: ignore[attr-defined]
        assert model.recommend(histories_from_lists([[1]]), 2)[0].tolist() == [[2, 3]]
        assert model.fitted_on == FittedOn(0, None)


def test_own_items_need_that_seen_ones_are_recommended_and_counts_move_with_the_night():
    assert {baseline for baseline in ALL if baseline.needs_seen} == set(OWN)
    moving = {Popularity, RecentPopularity, OwnFrequent, OwnRecent, CoVisitation}
    assert {baseline for baseline in ALL if baseline.moves} == moving


@pytest.mark.parametrize("baseline", ALL)
def test_chunks_of_events_change_nothing(baseline: type[Baseline], monkeypatch: pytest.MonkeyPatch):
    random = np.random.default_rng(0)
    histories = histories_from_lists(
        [random.integers(1, 8, random.integers(0, 6)).tolist() for _ in range(31)]
    )
    whole = baseline.fit(histories, 7).score_items(histories)  # type: ignore[attr-defined]
    monkeypatch.setattr("models.topk._CHUNK_EVENTS", 10)
    monkeypatch.setattr("models.baselines.neighbours._BLOCK_CELLS", 17)
    monkeypatch.setattr("models.baselines.ease._BLOCK_CELLS", 15)
    monkeypatch.setattr("models.baselines.tifu_knn._BLOCK_CELLS", 50)
    cut = baseline.fit(histories, 7).score_items(histories)  # type: ignore[attr-defined]
    assert cut == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize("baseline", ALL)
def test_fits_with_several_settings_are_those_with_each(baseline: type[Baseline]):
    random = np.random.default_rng(1)
    histories = histories_from_lists(
        [random.integers(1, 12, random.integers(0, 9)).tolist() for _ in range(23)]
    )
    together = list(baseline.fits(histories, 11, baseline.GRID))
    assert len(together) == len(baseline.GRID)
    for point, system in zip(baseline.GRID, together, strict=True):
        alone = baseline.fit(histories, 11, **point)  # type: ignore[attr-defined]
        assert np.array_equal(system.score_items(histories), alone.score_items(histories))
        assert system.fitted_on == alone.fitted_on


def test_interactions_are_distinct_known_items():
    histories = histories_from_lists([[3, 1, 3], [], [0, 2], [0]])
    expected = [[0, 1, 0, 1], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    assert interactions(histories, 3).toarray().tolist() == expected
    assert interactions(histories.select(slice(2, 1, -1)), 3).toarray().tolist() == [expected[2]]
    assert interactions(histories.select(slice(0, 0)), 3).shape == (0, 4)


def test_counts_and_prior_by_pencil():
    counts = item_counts(histories_from_lists([[3, 1, 3], [0, 2]]), 4)
    assert counts.tolist() == [0, 1, 1, 2, 0]
    assert popularity_prior(counts) == pytest.approx(np.array([0, 0.25, 0.25, 0.5, 0]) * 1e-4)
    assert popularity_prior(np.zeros(3, np.int64)).tolist() == [0, 0, 0]
