from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.recommendation.category_quota import is_fullest
from models.recommendation.rules import Chosen, Rules, Traits, choose, draws, relevance
from models.settings.exploration import Exploration


def one(items: list[int], scores: list[float]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([items], np.int32), np.array([scores], np.float32)


EVENTS = np.array([0, 10, 10, 10, 10, 10], np.float32)
NO_TRAITS = Traits(EVENTS)


def test_without_rules_the_order_stands_and_short_rows_are_padded() -> None:
    items, scores, _ = choose(*one([3, 1], [2.0, 1.0]), 3, Rules(), NO_TRAITS)
    assert items.tolist() == [[3, 1, 0]]
    assert scores.tolist() == [[2.0, 1.0, -np.inf]]
    assert choose(*one([3, 1], [2.0, 1.0]), 1, Rules(), NO_TRAITS)[0].tolist() == [[3]]


def test_at_most_so_many_per_category() -> None:
    """Items 1 2 3 are of category 1, item 3 of category 2 too, items 4 5 of category 2, by descending score."""
    categories = np.array([[0, 0], [1, 0], [1, 0], [1, 2], [2, 0], [2, 0]], np.int32)
    candidates = one([1, 2, 3, 4, 5], [5.0, 4.0, 3.0, 2.0, 1.0])
    traits = Traits(EVENTS, categories)
    assert choose(*candidates, 4, Rules(max_per_category=1), traits)[0].tolist() == [[1, 4, 0, 0]]
    assert choose(*candidates, 4, Rules(max_per_category=2), traits)[0].tolist() == [[1, 2, 4, 5]]
    assert choose(*candidates, 4, Rules(max_per_category=3), traits)[0].tolist() == [[1, 2, 3, 4]]
    found = choose(*candidates, 3, Rules(max_per_category=1), Traits(EVENTS))[0]
    assert found.tolist() == [[1, 2, 3]], "where nothing is known of categories there is nothing to limit"


ALL = np.array([True])
WIDE_FIRST = np.array([[0, 0], [1, 2], [1, 0], [2, 0], [3, 0]], np.int32)
"""Item 1 takes the room of items 2 and 3."""


def test_an_item_of_many_categories_makes_room_for_more_where_there_are_no_others() -> None:
    """One by one: 1, then 4, and nothing has room. Of three there are 2 3 4 alone; of two, places in order are enough."""
    candidates = one([1, 2, 3, 4], [10.0, 9.0, 8.0, 0.0])
    traits, rules = Traits(EVENTS, WIDE_FIRST), Rules(max_per_category=1)
    assert choose(*candidates, 3, rules, traits, is_all=~ALL)[0].tolist() == [[1, 4, 0]]
    items, scores, _ = choose(*candidates, 3, rules, traits, is_all=ALL)
    assert (items.tolist(), scores.tolist()) == ([[2, 3, 4]], [[9.0, 8.0, 0.0]])
    assert choose(*candidates, 2, rules, traits, is_all=ALL)[0].tolist() == [[1, 4]]
    assert choose(*candidates, 5, rules, traits, is_all=ALL)[0].tolist() == [[2, 3, 4, 0, 0]]


def test_diversity_and_draws_order_the_fullest_list() -> None:
    """Item 3 is item 2 over again, item 4 the opposite: with D = .5 it comes second."""
    candidates = one([1, 2, 3, 4], [10.0, 9.0, 8.0, 0.0])
    vectors = np.array([[0, 0], [0, 1], [1, 0], [1, 0], [-1, 0]], np.float32)
    traits = Traits(EVENTS, WIDE_FIRST, vectors)
    items, scores, _ = choose(*candidates, 3, Rules(max_per_category=1, diversity=0.5), traits, is_all=ALL)
    assert (items.tolist(), scores.tolist()) == ([[2, 4, 3]], [[9.0, 0.0, 8.0]])
    drawn = Rules(max_per_category=1, exploration=Exploration(1))
    keys = [np.array([key], np.uint64) for key in range(20)]
    found = [choose(*candidates, 3, drawn, traits, key, ALL)[0][0].tolist() for key in keys]
    assert all(sorted(each) == [2, 3, 4] for each in found)
    assert len({tuple(each) for each in found}) > 1


def test_a_bound_shows_where_nothing_is_to_be_gained() -> None:
    categories = np.array([[1, 0], [1, 0], [2, 0], [0, 0], [1, 2]], np.int32)
    assert is_fullest(categories, np.array([0, 2, 3]), 1), (
        "one of each of two full categories, and one of none"
    )
    assert not is_fullest(categories, np.array([4, 3]), 1), "two full categories in a single item"
    assert is_fullest(categories, np.arange(5), 3), "all there are"


def feasible(categories: np.ndarray, most: int, k: int) -> list[tuple[int, ...]]:
    """Every choice of candidates that the rule allows, as places."""
    sizes = range(min(k, len(categories)) + 1)
    every = (places for size in sizes for places in combinations(range(len(categories)), size))
    return [
        places
        for places in every
        if np.bincount(categories[list(places)].ravel(), minlength=9)[1:].max() <= most
    ]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.sets(st.integers(1, 4), max_size=3), st.integers(0, 9)), min_size=1, max_size=9),
    st.integers(1, 6),
    st.integers(1, 2),
    st.sampled_from([0.0, 0.7]),
)
def test_a_list_is_short_only_where_no_choice_is_longer(
    given_items: list[tuple[set[int], int]], k: int, most: int, damping: float
) -> None:
    categories = np.array([[0] * 3, *([*sorted(of), 0, 0, 0][:3] for of, _ in given_items)], np.int32)
    score = np.array([-np.inf, *(score for _, score in given_items)], np.float32)
    items = np.argsort(-score, kind="stable")[None, :].astype(np.int32)  # ends with item 0
    traits = Traits(np.arange(len(score), dtype=np.float32), categories)
    rules = Rules(max_per_category=most, popularity_damping=damping)
    plain, _, _ = choose(items, score[items], k, rules, traits)
    found, scores, _ = choose(items, score[items], k, rules, traits, is_all=ALL)
    worth = (relevance(items, score[items]) - damping * traits.popularity[items])[0, :-1].astype(float)
    allowed = feasible(categories[items[0, :-1]], most, k)
    longest = max(len(places) for places in allowed)
    assert (found > 0).sum() == longest
    if (plain > 0).sum() == longest:
        assert found.tolist() == plain.tolist(), "places in order are kept where they are enough"
        return
    places = [items[0].tolist().index(item) for item in found[0, :longest]]
    assert tuple(sorted(places)) in allowed
    best = max(worth[list(each)].sum() for each in allowed if len(each) == longest)
    assert worth[places].sum() == pytest.approx(best, abs=1e-6)
    assert (np.diff(worth[places]) <= 0).all(), "in the order of worth"
    assert scores[0, :longest].tolist() == score[found[0, :longest]].tolist()


def test_maximal_marginal_relevance_by_hand() -> None:
    """Relevance 1, .9, .5, 0; item 2 is item 1 over again, item 3 at a right angle, item 4 the opposite of item 1."""
    vectors = np.array([[0, 0], [2, 0], [1, 0], [0, 3], [-1, 0], [0, 0]], np.float32)
    candidates = one([1, 2, 3, 4], [10.0, 9.0, 5.0, 0.0])
    traits = Traits(EVENTS, vectors=vectors)
    # D = .5, second place: 2: .45 - .5 = -.05; 3: .25 - 0 = .25; 4: 0 + .5 = .5. Third: 2: -.05; 3: .25
    items, scores, _ = choose(*candidates, 3, Rules(diversity=0.5), traits)
    assert items.tolist() == [[1, 4, 3]]
    assert scores.tolist() == [[10.0, 0.0, 5.0]], "the model's own scores"
    # D = .1: 2: .81 - .1 = .71; 3: .45; 4: .1
    assert choose(*candidates, 3, Rules(diversity=0.1), traits)[0].tolist() == [[1, 2, 3]]


def test_popularity_is_damped() -> None:
    """ln(1 + events) / ln(1 + most): item 1 has 1, item 2 has 1/2, item 3 none."""
    traits = Traits(np.array([0, 99, 9, 0], np.float32))
    assert traits.popularity[1:] == pytest.approx([1.0, 0.5, 0.0])
    candidates = one([1, 2, 3], [2.0, 1.5, 0.0])  # relevance 1, .75, 0
    assert choose(*candidates, 2, Rules(popularity_damping=0.4), traits)[0].tolist() == [[1, 2]]
    assert choose(*candidates, 2, Rules(popularity_damping=0.6), traits)[0].tolist() == [[2, 1]]
    assert choose(*candidates, 2, Rules(popularity_damping=1.6), traits)[0].tolist() == [[3, 2]]


def test_relevance_is_the_same_for_any_scale_and_equal_scores_are_alike() -> None:
    items = np.array([[1, 2, 3], [1, 2, 0], [4, 0, 0], [0, 0, 0]], np.int32)
    scores = np.array([[3, 2, 1], [7, 7, -np.inf], [5, -np.inf, -np.inf], [-np.inf] * 3], np.float32)
    found = relevance(items, scores)
    assert found[0].tolist() == [1.0, 0.5, 0.0]
    assert found[1, :2].tolist() == [1.0, 1.0]
    assert found[2, 0] == 1.0
    assert relevance(items, 100 * scores - 3)[0] == pytest.approx(found[0])


def test_exploration_draws_the_last_places_from_what_is_beyond() -> None:
    items = np.tile(np.arange(1, 101, dtype=np.int32), (200, 1))
    scores = -items.astype(np.float32)
    keys = np.arange(200, dtype=np.uint64)
    traits = Traits(np.ones(101, np.float32))
    rules = Rules(exploration=Exploration(0.3), seed=1)
    found, _, _ = choose(items, scores, 10, rules, traits, keys)
    assert (found[:, :7] == np.arange(1, 8)).all()
    beyond = found[:, 7:]
    assert beyond.min() > 7
    assert all(len(set(row)) == 10 for row in found.tolist())
    counts = np.bincount(beyond.ravel(), minlength=101)[8:]
    assert (counts > 0).mean() > 0.9, "each of 93 is drawn 6.5 times on average"
    assert counts.max() < 20
    other, _, _ = choose(items, scores, 10, Rules(exploration=Exploration(0.3), seed=2), traits, keys)
    assert (other[:, 7:] != beyond).mean() > 0.9


def test_draws_are_even_and_follow_from_key_and_item() -> None:
    items = np.arange(1, 20_001, dtype=np.int32)[None]
    found = draws(5, np.array([3], np.uint64), items)[0]
    assert 0 <= found.min() < found.max() < 1
    assert np.histogram(found, 10, (0, 1))[0] == pytest.approx(2000, rel=0.1)
    assert abs(np.corrcoef(found[:-1], found[1:])[0, 1]) < 0.03
    assert (draws(5, np.array([9, 3], np.uint64), np.tile(items[:, 7:9], (2, 1)))[1] == found[7:9]).all()


@pytest.mark.parametrize(
    "rules",
    [
        Rules(max_per_category=2),
        Rules(diversity=0.4),
        Rules(exploration=Exploration(0.2)),
        Rules(
            diversity=0.3, popularity_damping=0.5, exploration=Exploration(0.2), max_per_category=3, seed=4
        ),
    ],
    ids=["categories", "diversity", "exploration", "everything"],
)
def test_a_row_does_not_depend_on_the_others_and_one_by_one_is_the_same(rules: Rules) -> None:
    random = np.random.default_rng(0)
    items = np.stack([random.permutation(60)[:40] + 1 for _ in range(30)]).astype(np.int32)
    scores = -np.sort(-random.normal(size=items.shape).astype(np.float32), axis=1)
    lengths = random.integers(3, 41, 30)
    items[np.arange(40) >= lengths[:, None]] = 0
    scores[items == 0] = -np.inf
    categories = np.stack([random.permutation(9)[:3] % 7 for _ in range(61)]).astype(np.int32)
    categories[:, 1:][categories[:, 1:] == categories[:, :1]] = 0
    categories[:, 2][categories[:, 2] == categories[:, 1]] = 0
    traits = Traits(
        random.integers(0, 50, 61).astype(np.float32),
        categories,
        random.normal(size=(61, 5)).astype(np.float32),
    )
    keys = random.integers(0, 2**63, 30).astype(np.uint64)
    together, given_scores, _ = choose(items, scores, 10, rules, traits, keys)
    longer, _, _ = choose(items, scores, 10, rules, traits, keys, np.arange(30) % 3 > 0)
    assert bool(rules.max_per_category) == bool(((longer > 0).sum(1) > (together > 0).sum(1)).any())
    assert longer[::3].tolist() == together[::3].tolist()
    for row in range(30):
        alone = choose(items[row : row + 1], scores[row : row + 1], 10, rules, traits, keys[row : row + 1])
        assert alone[0].tolist() == together[row : row + 1].tolist()
        if row % 3:
            one_row = items[row : row + 1], scores[row : row + 1]
            alone = choose(*one_row, 10, rules, traits, keys[row : row + 1], ALL)
            assert alone[0].tolist() == longer[row : row + 1].tolist()
        assert together[row].tolist() == plainly(items[row], scores[row], rules, traits, keys[row])
        own = dict(zip(items[row].tolist(), scores[row].tolist(), strict=True))
        assert given_scores[row].tolist() == [
            own[item] if item else -np.inf for item in together[row].tolist()
        ]


def plainly(items: np.ndarray, scores: np.ndarray, rules: Rules, traits: Traits, key: np.uint64) -> list[int]:
    """The same, candidate by candidate."""
    left = [int(item) for item in items if item]
    of = {int(item): float(score) for item, score in zip(items, scores, strict=True)}
    low, high = min(of[item] for item in left), max(of[item] for item in left)
    assert traits.categories is not None
    listed: list[int] = []
    for place in range(10):
        best, most = 0, -np.inf
        for item in left:
            categories = set(traits.categories[item]) - {0}
            counts = [
                sum(category in traits.categories[other] for other in listed) for category in categories
            ]
            if rules.max_per_category and any(count >= rules.max_per_category for count in counts):
                continue
            if place >= 10 - rules.exploration.num_places(10):
                worth = float(draws(rules.seed, np.array([key]), np.array([[item]], np.int32))[0, 0])
            else:
                worth = (of[item] - low) / (high - low) - rules.popularity_damping * float(
                    traits.popularity[item]
                )
                if rules.diversity and listed:
                    like = max(float(traits.directions[item] @ traits.directions[other]) for other in listed)
                    worth = (1 - rules.diversity) * worth - rules.diversity * like
            if worth > most:
                best, most = item, worth
        if not best:
            break
        left.remove(best)
        listed.append(best)
    return listed + [0] * (10 - len(listed))


def test_the_number_of_candidates_and_of_drawn_places() -> None:
    assert Rules().pool(10) == 10
    assert Rules(diversity=0.1).pool(10) == 100
    assert Rules(max_per_category=1).pool(50) == 200
    assert [Exploration(share).num_places(10) for share in (0, 0.04, 0.1, 0.25, 1)] == [0, 0, 1, 3, 10]


@pytest.mark.parametrize("wrong", [{"diversity": 1.0}, {"diversity": -0.1}, {"popularity_damping": -1.0}])
def test_nonsense_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Rules(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [{"share": 1.5}, {"share": -0.1}, {"temperature": 0.0}])
def test_nonsense_exploration_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(
        ValueError, match=f"score.exploration.{next(iter(wrong))}: received {next(iter(wrong.values()))}"
    ):
        Exploration(**wrong)  # type: ignore[arg-type]


ROWS = 40_000


def drawn(exploration: Exploration, k: int, traits: Traits = NO_TRAITS, **rules: float) -> Chosen:
    """Lists of as many rows as draws, each of the same five candidates with relevance 1, .75, .5, .25, 0."""
    items = np.tile(np.arange(1, 6, dtype=np.int32), (ROWS, 1))
    scores = np.tile(np.arange(5, 0, -1).astype(np.float32), (ROWS, 1))
    keys = np.arange(ROWS, dtype=np.uint64)
    return choose(items, scores, k, Rules(exploration=exploration, seed=3, **rules), traits, keys)  # type: ignore[arg-type]


def test_propensity_of_uniform_draws() -> None:
    items, _, propensity = drawn(Exploration(0.5), 4)
    assert (items[:, :2] == [1, 2]).all()
    np.testing.assert_allclose(propensity, np.tile(np.array([1, 1, 1 / 3, 1 / 2], np.float32), (ROWS, 1)))
    lists, counts = np.unique(items[:, 2:], axis=0, return_counts=True)
    assert len(lists) == 6
    np.testing.assert_allclose(counts / ROWS, 1 / 6, atol=0.01)


def test_propensity_of_softmax_draws_is_that_of_plackett_and_luce() -> None:
    items, _, propensity = drawn(Exploration(1.0, "softmax", 0.5), 3)
    worth = np.exp(np.array([1, 0.75, 0.5, 0.25, 0]) / 0.5)
    lists, first, counts = np.unique(items, axis=0, return_index=True, return_counts=True)
    assert len(lists) == 5 * 4 * 3
    for chosen, row, count in zip(lists, first, counts, strict=True):
        left, expected = worth.sum(), []
        for item in chosen:
            expected.append(worth[item - 1] / left)
            left -= worth[item - 1]
        np.testing.assert_allclose(propensity[row], expected, rtol=1e-5)
        assert count / ROWS == pytest.approx(np.prod(expected), abs=0.008)


def test_propensity_counts_what_the_quota_leaves_and_what_diversity_prefers() -> None:
    traits = Traits(
        EVENTS,
        np.array([[0], [1], [1], [1], [2], [2]], np.int32),
        np.eye(6, dtype=np.float32)[[0, 1, 1, 2, 3, 4]],
    )
    items, _, propensity = drawn(Exploration(0.5), 2, traits, max_per_category=1)
    assert (items[:, 0] == 1).all()
    assert set(items[:, 1].tolist()) == {4, 5}
    assert (propensity[:, 1] == np.float32(0.5)).all()
    items, _, propensity = drawn(Exploration(0.5, "softmax", 0.2), 2, traits, diversity=0.4)
    worth = np.exp(np.array([0.6 * 0.75 - 0.4, 0.6 * 0.5, 0.6 * 0.25, 0]) / 0.2)  # item 2 is like item 1
    for item in (2, 3, 4, 5):
        expected = worth[item - 2] / worth.sum()
        np.testing.assert_allclose(propensity[items[:, 1] == item, 1], expected, rtol=1e-5)
        assert (items[:, 1] == item).mean() == pytest.approx(expected, abs=0.01)


def test_nothing_left_to_draw_is_certain() -> None:
    for kind in ("uniform", "softmax"):
        items, _, propensity = choose(
            *one([3, 1], [2.0, 1.0]), 4, Rules(exploration=Exploration(0.5, kind)), NO_TRAITS
        )
        assert items.tolist() == [[3, 1, 0, 0]]
        assert propensity.tolist() == [[1, 1, 1, 1]]
