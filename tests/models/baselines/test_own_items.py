import numpy as np
import pytest

from models.baselines.own_items import OwnFrequent, OwnItems, OwnRecent
from models.baselines.visits import Visits
from models.histories import Histories, histories_from_lists

DAY = 86_400_000_000


def log() -> Histories:
    """Recent events (30 days): item 5 three, item 6 two, item 1 one."""
    items = [[5, 5, 5], [6, 6], [1], [2, 2, 2, 2]]
    days = [[50, 51, 52], [50, 53], [52], [1, 2, 3, 4]]
    return histories_from_lists(items, [[day * DAY for day in row] for row in days])


def of_days(items: list[list[int]], days: list[list[int]]) -> Histories:
    return histories_from_lists(items, [[day * DAY for day in row] for row in days])


def test_visits_hold_each_item_once_with_its_latest_time():
    histories = histories_from_lists([[3, 1, 3, 2, 0], [], [2, 2]], [[5, 5, 5, 9, 30], [], [9, 12]])
    visits = Visits.of(histories)
    assert visits.row.tolist() == [0, 0, 0, 2, 2]
    assert visits.visit.tolist() == [0, 0, 1, 0, 1]
    assert visits.item.tolist() == [1, 3, 2, 2, 2]
    assert visits.time.tolist() == [5, 5, 9, 9, 12]
    assert visits.num_visits.tolist() == [2, 0, 2]
    session = Visits.of(histories, session=4)
    assert session.visit.tolist() == [0, 0, 0, 0]
    assert session.item.tolist() == [1, 2, 3, 2]
    assert session.time.tolist() == [5, 9, 5, 12]
    assert session.num_visits.tolist() == [1, 0, 1]


def test_the_most_frequent_own_item_first_then_the_latest_then_the_popular_then_the_rest():
    model = OwnFrequent.fit(log(), 7)
    history = of_days([[3, 4, 3, 3, 1, 6, 7]], [[1, 2, 2, 2, 3, 3, 3]])
    # visits: 3 two (day 2 holds it twice, which counts once); 4, 1, 6, 7 one each: 4 on day 2, the others on day 3
    items, scores = model.recommend(history, 7, exclude_seen=False)
    assert items.tolist() == [
        [3, 6, 1, 7, 4, 5, 2]
    ]  # 6 is more popular than 1 than 7; 5 alone is not own and recent
    assert scores[0] == pytest.approx([2 + 5 / 6, 1 + 4 / 6, 1 + 3 / 6, 1 + 2 / 6, 1 + 1 / 6, 0.5 * 3 / 6, 0])


def test_the_latest_own_item_first_then_the_frequent_then_the_popular_then_the_rest():
    model = OwnRecent.fit(log(), 7)
    history = of_days([[3, 4, 3, 3, 1, 6, 7]], [[1, 2, 2, 4, 4, 4, 4]])
    items, scores = model.recommend(history, 7, exclude_seen=False)
    assert items.tolist() == [[3, 6, 1, 7, 4, 5, 2]]
    assert scores[0] == pytest.approx([5, 4, 3, 2, 1, 0.5 * 3 / 6, 0])


@pytest.mark.parametrize("kind", [OwnFrequent, OwnRecent])
def test_equal_own_items_have_equal_scores_and_the_lower_one_is_first(kind: type[OwnItems]):
    model = kind.fit(histories_from_lists([]), 4)
    items, scores = model.recommend(of_days([[4, 2, 3]], [[1, 1, 0]]), 4, exclude_seen=False)
    assert items.tolist() == [[2, 4, 3, 1]]
    assert scores[0, 0] == scores[0, 1] > scores[0, 2] >= 1 > scores[0, 3]


@pytest.mark.parametrize("kind", [OwnFrequent, OwnRecent])
def test_own_items_come_before_all_others_however_popular(kind: type[OwnItems]):
    model = kind.fit(histories_from_lists([[1] * 999]), 3)
    assert model.recommend(of_days([[2]], [[0]]), 3, exclude_seen=False)[0].tolist() == [[2, 1, 3]]


def test_events_of_one_session_are_one_visit():
    history = histories_from_lists([[1, 1, 1, 2, 2]], [[0, 3, 6, 20, 40]])
    assert OwnFrequent.fit(log(), 7).recommend(history, 1, exclude_seen=False)[0].tolist() == [[1]]
    assert OwnFrequent.fit(log(), 7, session=3).recommend(history, 1, exclude_seen=False)[0].tolist() == [[2]]


def test_the_window_of_days_decides_who_fills_up():
    model = OwnFrequent.fit(log(), 7, days=60)
    assert model.recommend(histories_from_lists([[]]), 4)[0].tolist() == [[2, 5, 6, 1]]
    model = OwnFrequent.fit(log(), 7, days=1)
    assert model.recommend(histories_from_lists([[]]), 2)[0].tolist() == [[6, 1]]


def test_a_plain_count_over_many_rows():
    random = np.random.default_rng(0)
    items = [random.integers(0, 14, random.integers(0, 40)).tolist() for _ in range(50)]
    days = [np.sort(random.integers(0, 9, len(row))).tolist() for row in items]
    histories = of_days(items, days)
    model = OwnFrequent.fit(histories, 13, days=3)
    recent = model.counts
    got = model.recommend(histories, 13, exclude_seen=False)[0]
    for row, (own, when) in enumerate(zip(items, days, strict=True)):
        visits: dict[int, set[int]] = {}
        for item, day in zip(own, when, strict=True):
            if item:
                visits.setdefault(item, set()).add(day)
        order = sorted(visits, key=lambda j: (-len(visits[j]), -max(visits[j]), -recent[j], j))
        rest = sorted(set(range(1, 14)) - set(visits), key=lambda j: (-recent[j], j))
        assert got[row].tolist() == order + rest


@pytest.mark.parametrize("settings", [{"days": 0.0}, {"session": -1}])
def test_nonsense_is_refused(settings: dict[str, float]):
    with pytest.raises(ValueError, match=r"OwnRecent: received .* expected days above 0"):
        OwnRecent.fit(log(), 7, **settings)  # type: ignore[arg-type]


def test_popularity_breaks_ties_before_time_where_chosen():
    # item 1 is popular, item 2 was taken last; the user took each once
    histories = histories_from_lists([[1, 2], [1], [1], [2]])
    latest = OwnFrequent.fit(histories, 3, days=36_500.0)
    popular = OwnFrequent.fit(histories, 3, days=36_500.0, popular_first=1)
    row = histories.select(slice(0, 1))
    assert latest.recommend(row, 2, exclude_seen=False)[0].tolist() == [[2, 1]]
    assert popular.recommend(row, 2, exclude_seen=False)[0].tolist() == [[1, 2]]
