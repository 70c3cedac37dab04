"""Rows that are limited to a shortlist have the lists that leaving out all other items would give, with every kind of system."""

from dataclasses import replace

import numpy as np
import pytest

from models.evaluation.ranks import rank_targets
from models.histories import Histories, ItemSets, Shortlists, histories_from_lists
from models.ranking.two_stage import TwoStage
from models.recommendation.answer import Answer
from models.recommendation.baseline_engine import BaselineEngine
from models.recommendation.engine import RecommendationEngine
from models.recommendation.rules import Rules, Traits
from models.recommendation.shortlists import fill_limited
from tests.models.recommendation.test_engine import (
    NUM_ITEMS,
    RULES,
    UNLEARNED,
    made,
    repeating,
    with_ranker,
    with_unlearned,
)


def shortlists(rows: list[list[int] | None]) -> Shortlists:
    """Shortlist of each row; None: not limited."""
    lengths = [len(items or []) for items in rows]
    row = np.repeat(np.arange(len(rows)), lengths)
    sets = ItemSets.of(row, np.array([item for items in rows for item in sorted(items or [])]), len(rows))
    is_limited = np.array([items is not None for items in rows])
    return Shortlists(sets.item_index, sets.starts, sets.ends, is_limited)


def drawn(rows: int, num_items: int) -> list[list[int] | None]:
    """Every third row is free; the others have none to 60 items, most of them of one in ten items."""
    random = np.random.default_rng(3)
    return [
        None if row % 3 == 2 else [*np.unique(random.integers(1, 301, row * 5)).tolist(), num_items - row]
        for row in range(rows)
    ]


def leaving_out_others(rows: Histories, lists: list[list[int] | None], num_items: int) -> Histories:
    others = [
        [] if items is None else np.setdiff1d(np.arange(1, num_items + 1), items).tolist() for items in lists
    ]
    row = np.repeat(np.arange(len(lists)), [len(items) for items in others])
    left_out = ItemSets.of(row, np.array([item for items in others for item in items]), len(lists))
    return replace(rows, left_out=left_out)


def with_new(engine: RecommendationEngine, rows: Histories) -> tuple[RecommendationEngine, Histories]:
    """`with_unlearned`, with a number of events of each item."""
    engine, rows = with_unlearned(engine, rows)
    return replace(engine, traits=Traits(np.pad(engine.traits.num_events, (0, UNLEARNED)))), rows


def same(first: Answer, second: Answer) -> None:
    np.testing.assert_array_equal(first.item_index, second.item_index)
    np.testing.assert_allclose(
        first.score, second.score, rtol=1e-4
    )  # the ranker's last bits follow the shape of its batch


@pytest.mark.parametrize(
    ("system", "rule"),
    [
        *(("index", rule) for rule in ("plain", "seen", "few", "categories")),
        *((system, "plain") for system in ("whole catalogue", "ranker", "unlearned")),
        ("ranker", "seen"),
    ],
)
def test_a_limited_row_has_the_list_that_leaves_out_all_other_items(system: str, rule: str) -> None:
    rows, engine = repeating(12), made(**({"readout": "target"} if system == "whole catalogue" else {}))
    num_items, rules = NUM_ITEMS, RULES[rule]
    if system in ("ranker", "unlearned"):
        engine = with_ranker(engine, rows)
    if system == "unlearned":
        engine, rows = with_new(engine, rows)
        num_items += UNLEARNED
    rows = replace(rows, ends=np.where(np.arange(12) % 5 == 1, rows.starts, rows.ends))  # some are cold
    lists = drawn(12, num_items)
    limited = replace(rows, shortlist=shortlists(lists))
    answer = engine.answer(limited, 8, rules)
    same(answer, engine.answer(leaving_out_others(rows, lists, num_items), 8, rules))
    free = np.array([items is None for items in lists])
    plain = engine.answer(rows, 8, rules)
    np.testing.assert_array_equal(answer.item_index[free], plain.item_index[free])
    for row, items in enumerate(lists):
        if items is not None and not rules.max_per_category:
            may = np.array(items)
            may = may if rules.allowed is None else may[rules.allowed[may]]
            own = rows.item_index[rows.starts[row] : rows.ends[row]]
            may = np.setdiff1d(may, own) if rules.exclude_seen else may
            assert (answer.item_index[row] > 0).sum() == min(8, len(may)), (
                "full where the shortlist allows it"
            )


def test_all_items_of_a_shortlist_that_the_encoder_does_not_know_are_ranked() -> None:
    """More of them than the ranker takes as popular; a list longer than its candidates."""
    engine, rows = with_new(made(), repeating(6))
    new = list(range(NUM_ITEMS + 1, NUM_ITEMS + UNLEARNED + 1))
    limited = replace(rows, shortlist=shortlists([[*new, 7, 8]] * 6))
    answer = engine.answer(limited, 20, Rules(exclude_seen=False), because="balanced")
    assert (np.sort(answer.item_index, axis=1)[:, -5:] == [7, 8, *new]).all()
    assert (answer.item_index[:, 5:] == 0).all()


def test_a_row_in_a_block_has_the_same_bits_alone() -> None:
    rows, engine = repeating(12), made(dim=64)
    engine.recommender.encoder.requires_grad_(requires_grad=False)
    limited = replace(rows, shortlist=shortlists(drawn(12, NUM_ITEMS)))
    together = engine.answer(limited, 6, Rules(), in_blocks=True)
    for row in range(12):
        alone = engine.answer(limited.select(slice(row, row + 1)), 6, Rules(), in_blocks=True)
        assert alone.item_index.tobytes() == together.item_index[row].tobytes()
        assert alone.score.tobytes() == together.score[row].tobytes()


def test_a_baseline_follows_shortlists_too() -> None:
    rows = repeating(6)
    engine = made()
    own = BaselineEngine(engine.recommender, engine.popularity, engine.traits)
    lists = drawn(6, NUM_ITEMS)
    limited = own.answer(replace(rows, shortlist=shortlists(lists)), 8, Rules())
    same(limited, own.answer(leaving_out_others(rows, lists, NUM_ITEMS), 8, Rules()))


def test_the_best_of_a_shortlist_by_hand() -> None:
    candidates = np.full((3, 2), 9, np.int32), np.full((3, 2), 0.5, np.float32)
    scores = np.array([0, 0.1, 0.3, 0.3, -np.inf, 0.2], np.float32)
    fill_limited(candidates, shortlists([[1, 2, 3, 5], None, [4, 1]]), lambda _, item: scores[item])
    assert candidates[0].tolist() == [[2, 3], [9, 9], [1, 0]]
    assert candidates[1].tolist() == [
        pytest.approx([0.3, 0.3]),
        [0.5, 0.5],
        [pytest.approx(0.1), -np.inf],
    ]


@pytest.mark.parametrize("exclude_seen", [True, False])
@pytest.mark.parametrize("system", ["index", "unlearned"])
def test_ranks_among_a_shortlist_are_places_in_its_list(system: str, exclude_seen: bool) -> None:
    rows, engine = repeating(8), made()
    if system == "unlearned":
        engine, rows = with_new(engine, rows)
    random = np.random.default_rng(5)
    lists = [np.unique([*random.integers(1, 301, 30), NUM_ITEMS + (system == "unlearned")]) for _ in range(8)]
    limited = replace(rows, shortlist=shortlists([items.tolist() for items in lists]))
    answer = engine.answer(limited, 40, Rules(exclude_seen=exclude_seen))
    judged = (
        engine.recommender
        if engine.second_stage is None
        else TwoStage(engine.recommender, engine.second_stage, exclude_seen=exclude_seen)
    )
    request = np.repeat(np.arange(8), 3)
    target = np.concatenate([items[items > 0][[0, 2, 5]] for items in answer.item_index])
    ranks = rank_targets(judged, limited, target, 0, exclude_seen=exclude_seen, request=request)
    assert ranks.rank.tolist() == [1, 3, 6] * 8
    assert ranks.pessimistic.tolist() == ranks.rank.tolist()


def test_equal_scores_among_a_shortlist_count_half() -> None:
    class Constant:
        num_items = 9

        def score_items(self, histories: Histories) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
            return np.tile(np.array([-np.inf, *[0.5] * 6, *[-np.inf] * 3], np.float32), (len(histories), 1))

        recommend = RecommendationEngine.answer  # not called

    rows = replace(histories_from_lists([[1], [2]]), shortlist=shortlists([[2, 3, 4, 9], [3, 8, 9]]))
    ranks = rank_targets(Constant(), rows, np.array([3, 9], np.int32), 0, exclude_seen=False)  # type: ignore[arg-type]
    assert ranks.rank.tolist() == [2.0, 2.5], "of 2, 3 and 4 the middle; behind 3, level with 8"
    assert ranks.pessimistic.tolist() == [3, 3]
