"""Lists that rules leave short are filled from more candidates until the catalogue has no more; a row is answered by itself."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from models.encoder.batching import Window
from models.encoder.encoder import AttentionRecommender, Encoder
from models.explanation.contributions import Method
from models.histories import Float32, Histories, ItemSets, histories_from_lists
from models.ranking.calibration import Calibration
from models.ranking.candidates import learned_part
from models.ranking.features import ItemStatistics
from models.ranking.outcomes import Utility
from models.ranking.predictions import predict
from models.ranking.ranker import Ranker, SecondStage
from models.ranking.two_stage import TwoStage
from models.recommendation.answer import Run
from models.recommendation.engine import RecommendationEngine
from models.recommendation.rules import Rules, Traits
from models.retrieval.build import build_index
from models.settings.encoder import EncoderSettings
from models.settings.exploration import Exploration
from models.settings.ranker import RankerSettings

NUM_ITEMS, ROWS = 3_000, 40
POPULAR = np.array([[0, *range(NUM_ITEMS, 0, -1)], [0, *range(1, NUM_ITEMS + 1)]], np.float32)


def made(**settings: Any) -> RecommendationEngine:
    """Random weights; item i is of category 1 + i % 7, but for those above 500: all of category 8."""
    torch.manual_seed(0)
    small = {"dim": 8, "num_blocks": 1, "num_heads": 1}
    encoder = Encoder(EncoderSettings(**(small | settings)), NUM_ITEMS, 0, 20)
    torch.nn.init.normal_(encoder.items.ids.weight)  # type: ignore[union-attr]
    encoder.items.forget_untrained()
    vectors = encoder.item_vectors().detach().numpy()
    numbers = np.arange(1, NUM_ITEMS + 1, dtype=np.int32)
    categories = np.where(np.arange(NUM_ITEMS + 1) > 500, 8, 1 + np.arange(NUM_ITEMS + 1) % 7)[:, None]
    categories[0] = 0
    traits = Traits(POPULAR[0], categories.astype(np.int32), vectors)
    return RecommendationEngine(
        AttentionRecommender(encoder), build_index(vectors[1:], numbers), POPULAR, traits
    )


def histories(random: np.random.Generator) -> Histories:
    return histories_from_lists([random.integers(1, NUM_ITEMS + 1, 12).tolist() for _ in range(ROWS)])


RULES = {
    "plain": Rules(),
    "seen": Rules(exclude_seen=False),
    "few": Rules(allowed=np.isin(np.arange(NUM_ITEMS + 1), [5, 77, 901, 2999])),
    "categories": Rules(max_per_category=2),
    "everything": Rules(
        allowed=np.arange(NUM_ITEMS + 1) % 5 != 0,
        max_per_category=1,
        diversity=0.3,
        popularity_damping=0.2,
        exploration=Exploration(0.25),
        seed=3,
    ),
}


@pytest.mark.parametrize("name", RULES)
def test_every_rule_holds_and_short_lists_are_those_of_the_catalogue(name: str) -> None:
    answering, rules = made(), RULES[name]
    rows = histories(np.random.default_rng(0))
    k = 8
    answer = answering.answer(rows, k, rules)
    items = answer.item_index
    for row in range(ROWS):
        given = items[row][items[row] > 0].tolist()
        own = set(rows.item_index[rows.starts[row] : rows.ends[row]].tolist())
        assert len(set(given)) == len(given)
        if rules.exclude_seen:
            assert not own & set(given)
        if rules.allowed is not None:
            assert rules.allowed[given].all()
        assert answering.traits.categories is not None
        if rules.max_per_category:
            assert np.bincount(answering.traits.categories[given, 0]).max() <= rules.max_per_category
        may = np.flatnonzero(rules.allowed) if rules.allowed is not None else np.arange(1, NUM_ITEMS + 1)
        may = np.setdiff1d(may, list(own)) if rules.exclude_seen else may
        counts = np.bincount(answering.traits.categories[may, 0])
        most = int(np.minimum(counts, rules.max_per_category or NUM_ITEMS).sum())
        assert len(given) == min(k, most), "short only where there is no more"


def test_filters_are_those_of_exact_search() -> None:
    answering = made()
    rows = histories(np.random.default_rng(1))
    allowed = np.arange(NUM_ITEMS + 1) % 50 == 1
    answer = answering.answer(rows, 10, Rules(allowed=allowed))
    scores = answering.recommender.score_items(rows)
    for row in range(ROWS):
        scores[row, rows.item_index[rows.starts[row] : rows.ends[row]]] = -np.inf
    scores[:, ~allowed] = -np.inf
    order = np.argsort(-scores, axis=1, kind="stable")[:, :10]
    assert answer.item_index.tolist() == order.tolist()


@pytest.mark.parametrize("name", RULES)
def test_a_row_is_answered_by_itself(name: str) -> None:
    answering, rules = made(), RULES[name]
    rows = histories(np.random.default_rng(2))
    rows = replace(rows, ends=np.where(np.arange(ROWS) % 9 == 0, rows.starts, rows.ends))
    keys, segment = np.arange(ROWS, dtype=np.uint64) * 7, np.arange(ROWS) % 2
    together = answering.answer(rows, 8, rules, keys=keys, segment=segment)
    for row in range(ROWS):
        one = slice(row, row + 1)
        alone = answering.answer(rows.select(one), 8, rules, keys=keys[one], segment=segment[one])
        assert alone.item_index.tolist() == together.item_index[one].tolist()
        assert alone.score == pytest.approx(together.score[one], rel=1e-4)
        assert alone.cold[0] == together.cold[row]


@pytest.mark.parametrize(
    ("block", "because"), [("transformer", "balanced"), ("transformer", None), ("hstu", None), ("gru", None)]
)
def test_in_blocks_a_row_has_the_same_bits_whoever_its_neighbours_are(
    block: str, because: Method | None
) -> None:
    """Of every shape of block; in a call of its own, among others in another order, and on a thread of a pool."""
    answering = made(block=block, dim=64)
    answering.recommender.encoder.requires_grad_(requires_grad=False)
    random = np.random.default_rng(4)
    rows = histories_from_lists(
        [random.integers(1, NUM_ITEMS + 1, length).tolist() for length in random.integers(1, 30, 90)]
    )
    assert answering.answers_alike(8, because)

    def bits(order: list[int], run: Run = map) -> list[bytes]:
        answer = answering.answer(
            rows.select(np.array(order)), 8, Rules(), because=because, run=run, in_blocks=True
        )
        parts = [answer.item_index, answer.score]
        if answer.because is not None:
            parts += [answer.because.item_index, answer.because.weight]
        return [b"".join(part[row].tobytes() for part in parts) for row in range(len(order))]

    whole, order = bits(list(range(90))), random.permutation(90).tolist()
    assert bits(order) == [whole[row] for row in order]
    assert bits([7]) == [whole[7]]
    with ThreadPoolExecutor(2) as pool:
        assert bits(order[:40], pool.map) == [whole[row] for row in order[:40]]


def test_places_of_a_block_that_round_otherwise_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    answering = made()
    encode = AttentionRecommender.encode_window

    def by_place(recommender: AttentionRecommender, window: Window) -> Float32:
        vectors = encode(recommender, window)
        vectors[-1] += np.spacing(vectors[-1])
        return vectors

    monkeypatch.setattr(AttentionRecommender, "encode_window", by_place)
    assert not answering.answers_alike(8, None)


def test_empty_rows_get_what_is_popular_in_their_segment() -> None:
    answering = made()
    nobody = histories_from_lists([[], [], [4, 5]])
    answer = answering.answer(nobody, 3, Rules(), segment=np.array([0, 1, 1]))
    assert answer.cold.tolist() == [True, True, False]
    assert answer.item_index[:2].tolist() == [[1, 2, 3], [3000, 2999, 2998]]
    limited = answering.answer(
        nobody,
        3,
        Rules(allowed=np.arange(NUM_ITEMS + 1) % 2 == 0, max_per_category=1),
        segment=np.array([0, 1, 1]),
    )
    assert limited.item_index[0].tolist() == [2, 4, 6]
    assert limited.item_index[1].tolist() == [3000, 500, 498], "above 500 all are of one category"


def test_a_list_that_another_choice_would_fill_is_filled() -> None:
    """Where item 5 comes first, it leaves no room for the two others, which fill the list."""
    answering = made()
    categories = np.zeros((NUM_ITEMS + 1, 2), np.int32)
    categories[[5, 77, 901]] = [[1, 2], [1, 0], [2, 0]]
    answering = replace(answering, traits=Traits(POPULAR[0], categories))
    rules = Rules(allowed=np.isin(np.arange(NUM_ITEMS + 1), [5, 77, 901]), max_per_category=1)
    rows = histories_from_lists([[], *([item] for item in range(1000, 1030))])
    answer = answering.answer(rows, 2, rules, segment=np.ones(31, np.int64))
    assert (np.sort(answer.item_index, axis=1) == [77, 901]).all()
    first = answering.answer(rows, 1, rules, segment=np.ones(31, np.int64))
    assert (first.item_index == 5).any(), "a place of its own is filled in the order of the scores"


def test_target_attention_follows_the_rules_too() -> None:
    answering = made(readout="target")
    allowed = np.arange(NUM_ITEMS + 1) % 100 == 7
    rows = histories_from_lists([[7, 8, 9], [107]])
    answer = answering.answer(rows, 40, Rules(allowed=allowed))
    assert ((answer.item_index > 0).sum(1) == 29).all(), "30 are allowed, one of them was seen"
    assert allowed[answer.item_index[answer.item_index > 0]].all()
    assert 7 not in answer.item_index[0]


@pytest.mark.parametrize("method", ["fast", "balanced", "exact"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"block": "hstu"},
        {"block": "ligr"},
        {"weighting": "silu"},
        {"block": "gru"},
        {"readout": "target"},
    ],
    ids=str,
)
def test_lists_are_the_same_to_the_bit_whether_or_not_reasons_are_wanted(
    settings: dict[str, str], method: Method, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With rows of different lengths, and more of them than are explained in one part."""
    engine = made(**settings)
    engine.recommender.encoder.requires_grad_(requires_grad=False)
    random = np.random.default_rng(4)
    rows = histories_from_lists(
        [random.integers(1, NUM_ITEMS + 1, length).tolist() for length in [7, 3, 0, 9, 1, 7, 7, 2, 5, 5, 8]]
    )
    monkeypatch.setattr("models.explanation.contributions.BATCH_CELLS", 4 * 6 * 8)
    plain, explained = (engine.answer(rows, 6, Rules(), because=because) for because in (None, method))
    np.testing.assert_array_equal(explained.item_index, plain.item_index)
    np.testing.assert_array_equal(explained.score, plain.score)
    assert explained.because is not None
    assert explained.because.item_index.any()


def with_ranker(engine: RecommendationEngine, log: Histories) -> RecommendationEngine:
    """A ranker with random weights, and item statistics of the log."""
    settings = RankerSettings(
        dim=4, hidden=8, num_heads=1, max_length=6, candidates=9, favourites=4, popular=5
    )
    torch.manual_seed(5)
    ranker = Ranker(settings, torch.randn(NUM_ITEMS + 1, 3), 0)
    with torch.no_grad():
        for weight in ranker.parameters():
            weight.copy_(torch.randn_like(weight) * 0.2)
    own = np.arange(NUM_ITEMS + 1, dtype=np.int32)
    return replace(engine, second_stage=SecondStage(ranker, ItemStatistics.of(log, NUM_ITEMS), own))


def repeating(rows: int) -> Histories:
    """Histories of few items each, half of them of one in ten items, over a month."""
    random = np.random.default_rng(6)
    items = [random.integers(1, 301, random.integers(1, 12)).tolist() for _ in range(rows)]
    times = [np.sort(random.integers(0, 30 * 86_400, len(row))) * 1_000_000 for row in items]
    log = histories_from_lists(items, [row.tolist() for row in times])
    return replace(log, request_time=np.full(rows, 31 * 86_400 * 1_000_000))


@pytest.mark.parametrize("settings", [{}, {"readout": "target"}], ids=str)
@pytest.mark.parametrize("exclude_seen", [True, False])
def test_lists_have_the_candidates_of_the_evaluation(settings: dict[str, str], exclude_seen: bool) -> None:
    rows = repeating(12)
    engine = with_ranker(made(**settings), rows)
    assert engine.second_stage is not None
    both = TwoStage(engine.recommender, engine.second_stage, exclude_seen=exclude_seen)
    expected, _ = both.recommend(rows, 30, exclude_seen)
    answer = engine.answer(rows, 30, Rules(exclude_seen=exclude_seen))
    assert answer.item_index.tolist() == expected.tolist()
    candidates, _ = both.candidates(rows)
    for row in range(len(rows)):
        own = np.unique(rows.item_index[rows.starts[row] : rows.ends[row]])
        assert (
            np.isin(own, candidates[row]).sum() == (0 if exclude_seen else min(4, len(own))) or len(own) > 4
        )
        there = candidates[row][candidates[row] > 0]
        assert len(np.unique(there)) == len(there) >= 9


UNLEARNED = 3
"""Items that the encoder of `with_unlearned` does not know, numbered behind its own."""


def with_unlearned(engine: RecommendationEngine, rows: Histories) -> tuple[RecommendationEngine, Histories]:
    """An engine whose ranker knows new items of many events, and rows of which some have taken them, the first nothing else."""
    random = np.random.default_rng(8)
    is_new = random.random(len(rows.item_index)) < 0.4
    is_new[rows.starts[0] : rows.ends[0]] = True
    new = random.integers(NUM_ITEMS + 1, NUM_ITEMS + UNLEARNED + 1, len(is_new))
    rows = replace(rows, item_index=np.where(is_new, new, rows.item_index).astype(np.int32))
    stage = with_ranker(engine, learned_part(rows, NUM_ITEMS)).second_stage
    assert stage is not None
    stage = stage.extended(np.zeros((UNLEARNED, 0), np.float32)).counting(rows)
    popularity = np.pad(engine.popularity, ((0, 0), (0, UNLEARNED)))
    return replace(engine, second_stage=stage, popularity=popularity), rows


@pytest.mark.parametrize("settings", [{}, {"readout": "target"}], ids=str)
@pytest.mark.parametrize("exclude_seen", [True, False])
def test_items_unknown_to_the_encoder_are_recommended_by_their_events(
    settings: dict[str, str], exclude_seen: bool
) -> None:
    engine, rows = with_unlearned(made(**settings), repeating(12))
    assert engine.second_stage is not None
    both = TwoStage(engine.recommender, engine.second_stage, exclude_seen=exclude_seen)
    assert both.num_items == NUM_ITEMS + UNLEARNED
    expected, _ = both.recommend(rows, 12, exclude_seen)
    answer = engine.answer(rows, 12, Rules(exclude_seen=exclude_seen))
    assert answer.item_index.tolist() == expected.tolist()
    assert not answer.cold.any()
    own = [rows.item_index[start:end] for start, end in zip(rows.starts, rows.ends, strict=True)]
    for row in range(len(rows)):
        others = np.setdiff1d(np.arange(NUM_ITEMS + 1, both.num_items + 1), own[row] if exclude_seen else [])
        assert np.isin(others, both.candidates(rows)[0][row]).all(), "as popular ones"
        if exclude_seen:
            assert not np.isin(answer.item_index[row], own[row]).any()
    allowed = np.arange(both.num_items + 1) != both.num_items
    few = engine.answer(rows, 12, Rules(exclude_seen=exclude_seen, allowed=allowed))
    assert (few.item_index > NUM_ITEMS).any()
    assert not (few.item_index == both.num_items).any()


@pytest.mark.parametrize("system", ["index", "whole catalogue", "ranker", "unlearned"])
def test_items_left_out_are_left_out_as_seen_ones_are(system: str) -> None:
    """A row that leaves out its own items by a set has the list that excludes what it has seen."""
    rows, engine = repeating(12), made(**({"readout": "target"} if system == "whole catalogue" else {}))
    if system in ("ranker", "unlearned"):
        engine = with_ranker(engine, rows)
    if system == "unlearned":
        engine, rows = with_unlearned(engine, rows)
    row, position = rows.gather()
    pairs = np.unique(np.stack([row, rows.item_index[position]]), axis=1)
    own = replace(rows, left_out=ItemSets.of(pairs[0], pairs[1], len(rows)))
    with_rules = [] if system == "unlearned" else [Rules(max_per_category=2, diversity=0.2)]
    for rules in (Rules(), *with_rules):
        seen, left_out = (
            engine.answer(histories, 30, replace(rules, exclude_seen=exclude_seen), because="fast")
            for histories, exclude_seen in ((rows, True), (own, False))
        )
        both = engine.answer(own, 30, rules)
        assert seen.item_index.tolist() == left_out.item_index.tolist() == both.item_index.tolist()
        assert seen.score.tolist() == left_out.score.tolist()


def test_empty_rows_get_full_lists_without_what_is_left_out() -> None:
    rows = histories_from_lists([[], [], []])
    sets = ItemSets.of(np.array([1, 1, 2]), np.array([1, 3, 7]), 3)
    answer = made().answer(replace(rows, left_out=sets), 4, Rules())
    assert answer.item_index.tolist() == [[1, 2, 3, 4], [2, 4, 5, 6], [1, 2, 3, 4]]
    nearly_all = ItemSets.of(np.zeros(NUM_ITEMS - 2, np.int64), np.arange(3, NUM_ITEMS + 1), 1)
    short = made().answer(replace(rows.select(np.array([0])), left_out=nearly_all), 4, Rules())
    assert short.item_index.tolist() == [[1, 2, 0, 0]]


@pytest.mark.parametrize("method", ["fast", "balanced", "exact"])
def test_reasons_are_items_that_the_encoder_knows(method: Method) -> None:
    engine, rows = with_unlearned(made(), repeating(9))
    engine.recommender.encoder.requires_grad_(requires_grad=False)
    plain, explained = (
        engine.answer(rows, 6, Rules(exclude_seen=False), because=because) for because in (None, method)
    )
    np.testing.assert_array_equal(explained.item_index, plain.item_index)
    np.testing.assert_array_equal(explained.score, plain.score)
    assert explained.because is not None
    reasons = explained.because
    assert np.isfinite(reasons.weight).all()
    assert reasons.item_index[1:].any()
    assert not reasons.item_index[0].any(), "it has taken unknown items alone"
    assert reasons.item_index.max() <= NUM_ITEMS
    assert reasons.item_index[explained.item_index > NUM_ITEMS].any(), "the ranker's own reasons"


@pytest.mark.parametrize("name", RULES)
def test_rules_hold_with_a_ranker_and_rows_are_answered_by_themselves(name: str) -> None:
    rows, rules = repeating(11), RULES[name]
    engine = with_ranker(made(), rows)
    together = engine.answer(rows, 8, rules)
    for row in range(len(rows)):
        items = together.item_index[row][together.item_index[row] > 0]
        assert len(np.unique(items)) == len(items) >= 3
        if rules.allowed is not None:
            assert rules.allowed[items].all()
        if rules.exclude_seen:
            assert not np.isin(items, rows.item_index[rows.starts[row] : rows.ends[row]]).any()
        alone = engine.answer(rows.select(slice(row, row + 1)), 8, rules)
        assert alone.item_index[0].tolist() == together.item_index[row].tolist()


@pytest.mark.parametrize("method", ["fast", "balanced", "exact"])
def test_ranked_lists_are_the_same_to_the_bit_with_reasons(method: Method) -> None:
    rows = repeating(9)
    engine = with_ranker(made(), rows)
    engine.recommender.encoder.requires_grad_(requires_grad=False)
    rules = Rules(exclude_seen=False)
    plain, explained = (engine.answer(rows, 6, rules, because=because) for because in (None, method))
    np.testing.assert_array_equal(explained.item_index, plain.item_index)
    np.testing.assert_array_equal(explained.score, plain.score)
    assert explained.because is not None
    assert np.isfinite(explained.because.weight).all()


def with_outcomes(engine: RecommendationEngine) -> RecommendationEngine:
    """Random heads of two outcomes, one with a value, calibrated by the logistic function."""
    stage = engine.second_stage
    assert stage is not None
    points = np.linspace(-9, 9, 50)
    logistic = Calibration(points, 1 / (1 + np.exp(-points)))
    stage.ranker.add_outcomes(["click", "buy"], ["buy"], (logistic, logistic))
    heads = stage.ranker.heads
    assert heads is not None
    torch.manual_seed(7)
    with torch.no_grad():
        heads.weight.copy_(torch.randn_like(heads.weight) * 0.3)
        heads.value_mean.fill_(5)
        heads.value_bounds[1] = 9
    return engine


def test_lists_by_expected_utility_hold_the_same_candidates() -> None:
    rows = repeating(12)
    engine = with_ranker(made(), rows)
    without = engine.answer(rows, 30, Rules(exclude_seen=False))
    assert without.outcomes is None
    engine = with_outcomes(engine)
    stage = engine.second_stage
    assert stage is not None
    plain = engine.answer(rows, 30, Rules(exclude_seen=False))
    assert plain.item_index.tolist() == without.item_index.tolist(), "heads alone change no list"
    assert plain.outcomes is not None
    assert plain.outcomes.utility is None
    utility = Utility.of({"click": 0.5, "buy": "value"}, ["click", "buy"], orders=True)
    ordered = replace(engine, second_stage=stage.with_utility(utility))
    answer = ordered.answer(rows, 30, Rules(exclude_seen=False), in_blocks=True)
    assert answer.outcomes is not None
    assert answer.outcomes.utility is not None
    candidates, scores = TwoStage(engine.recommender, stage, exclude_seen=False).candidates(rows)
    found = predict(stage, rows, candidates, scores)
    for row in range(len(rows)):
        number = int((candidates[row] > 0).sum())
        best = np.argsort(-found.utility(utility)[row], kind="stable")[:number]
        assert answer.item_index[row, :number].tolist() == candidates[row, best].tolist()
        for name in ("score", "probability"):
            own, expected = getattr(answer.outcomes, name)[row], getattr(found, name)[row, best]
            assert own[:number] == pytest.approx(expected, abs=1e-5)
            assert np.isnan(own[number:]).all(), "items behind the candidates have no predictions"
        assert answer.outcomes.utility[row, :number] == pytest.approx(answer.score[row, :number], abs=1e-5)
    assert (np.diff(answer.score, axis=1)[:, :8] <= 0).all()
