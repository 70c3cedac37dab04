"""Proven reasons: what an enumeration of all sets of events says, and what would be no proof."""

import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from models.baselines.popularity import Popularity
from models.histories import Float32, Histories, ItemSets, histories_from_lists
from models.recommendation.answer import Answer, Run
from models.recommendation.baseline_engine import BaselineEngine
from models.recommendation.engine import RecommendationEngine
from models.recommendation.rules import Rules, Traits
from models.settings.exploration import Exploration
from tests.models.recommendation.test_engine import NUM_ITEMS as ENCODED_ITEMS
from tests.models.recommendation.test_engine import made, repeating, with_ranker, with_unlearned

NUM_ITEMS = 12
POPULAR = np.array([0, *range(NUM_ITEMS, 0, -1)], np.float32)


class Table(Popularity):
    """score(j) = sum over events i of weight[i, j], and over neighbouring events h, i of pair[(h + i) mod 13, j]."""

    def __init__(self, weight: Float32, pair: Float32 | None = None) -> None:
        super().__init__(POPULAR)
        self.weight, self.pair = weight, pair

    def score_items(self, histories: Histories) -> Float32:
        scores = np.zeros((len(histories), NUM_ITEMS + 1), np.float32)
        for row, (start, end) in enumerate(zip(histories.starts, histories.ends, strict=True)):
            items = histories.item_index[start:end]
            scores[row] = self.weight[items].sum(0)
            if self.pair is not None:
                scores[row] += self.pair[(items[1:] + items[:-1]) % (NUM_ITEMS + 1)].sum(0)
        scores[:, 0] = -np.inf
        return scores


def engine_of(recommender: Table) -> BaselineEngine:
    return BaselineEngine(recommender, POPULAR[None], Traits(POPULAR))


def proven_sets(answer: Answer, row: int) -> dict[int, list[int]]:
    """Items of the proof of each proven item of a row."""
    because = answer.because
    assert because is not None
    assert because.proven is not None
    return {
        int(item): [int(past) for past in because.item_index[row, place] if past]
        for place, item in enumerate(answer.item_index[row])
        if because.proven[row, place]
    }


def test_a_proof_by_pencil() -> None:
    """Items 9, 7, 8 lead items 10 and 11, which have 2 each from event 4."""
    weight = np.zeros((NUM_ITEMS + 1, NUM_ITEMS + 1), np.float32)
    weight[1, [7, 8, 9]] = 9, 3, 1
    weight[2, [8, 9]] = 4, 4
    weight[3, [8, 9]] = 2, 5
    weight[4, [10, 11]] = 2, 2
    answer = engine_of(Table(weight)).answer(
        histories_from_lists([[1, 2, 3, 4], [4]]), 3, Rules(), because="proven", because_items=1
    )
    assert answer.item_index.tolist() == [[9, 7, 8], [10, 11, 1]]
    # 7 has nothing left without 1; 8 has 9 = 4 + 3 + 2, and 2 are enough to stay before 10; 9 has 10 = 5 + 4 + 1
    assert proven_sets(answer, 0) == {9: [3, 2], 7: [1], 8: [2, 1, 3]}
    because = answer.because
    assert because is not None
    assert because.weight[0].tolist() == [[5, 4, 0], [9, 0, 0], [4, 3, 2]]
    # popular items are all that is left without event 4: 1, 2, 3
    assert proven_sets(answer, 1) == {10: [4], 11: [4]}
    assert because.item_index[1, 2].tolist() == [0, 0, 0]


@pytest.mark.parametrize("exclude_seen", [True, False])
@pytest.mark.parametrize("is_additive", [True, False])
def test_proofs_are_among_the_sets_of_an_enumeration(is_additive: bool, exclude_seen: bool) -> None:
    """Each is one of the minimal sets; an item without one stays without its strongest, and the newest events."""
    random, k = np.random.default_rng(0), 3
    weight = random.normal(size=(NUM_ITEMS + 1, NUM_ITEMS + 1)).astype(np.float32)
    table = Table(weight, None if is_additive else 2 * weight[::-1].copy())
    histories = histories_from_lists([(1 + random.permutation(NUM_ITEMS)[:6]).tolist() for _ in range(30)])
    engine, rules = engine_of(table), Rules(exclude_seen=exclude_seen)
    answer = engine.answer(histories, k, rules, because="proven")
    weighed = engine.answer(histories, k, rules, because="exact")
    assert weighed.because is not None
    assert answer.item_index.tolist() == weighed.item_index.tolist()
    sizes = []
    for row in range(len(histories)):
        own = histories.item_index[histories.starts[row] : histories.ends[row]].tolist()
        every = [gone for size in (1, 2, 3) for gone in itertools.combinations(own, size)]
        scores = table.score_items(
            histories_from_lists([[past for past in own if past not in gone] for gone in every])
        )
        if exclude_seen:
            scores[:, own] = -np.inf
        lists = dict(
            zip(map(frozenset, every), np.argsort(-scores, axis=1, kind="stable")[:, :k], strict=True)
        )
        proofs = proven_sets(answer, row)
        for place, item in enumerate(answer.item_index[row].tolist()):
            enough = [gone for gone, items in lists.items() if item not in items]
            if item in proofs:
                proof = frozenset(proofs[item])
                assert proof in enough
                assert not any(other < proof for other in enough)
                sizes.append(len(proof))
            else:
                strongest = [past for past in weighed.because.item_index[row, place].tolist() if past]
                for tried in (strongest, own[::-1]):
                    assert not any(frozenset(tried[:size]) in enough for size in (1, 2, 3))
                sizes.append(0)
    assert {0, 1, 2} <= set(sizes)


def test_a_seen_item_that_comes_back_is_no_proof() -> None:
    """Without event 1 item 1 would be first, and push item 7 out, were it not still among the seen ones."""
    weight = np.zeros((NUM_ITEMS + 1, NUM_ITEMS + 1), np.float32)
    weight[1, 7] = 1
    weight[2, [1, 7]] = 9, 5
    engine = engine_of(Table(weight))
    assert engine.answer(histories_from_lists([[2]]), 1, Rules()).item_index.tolist() == [[1]], "the trap"
    answer = engine.answer(histories_from_lists([[1, 2]]), 1, Rules(), because="proven")
    assert answer.item_index.tolist() == [[7]]
    assert proven_sets(answer, 0) == {7: [2, 1]}, "without either the other is enough for item 7"
    free = engine.answer(histories_from_lists([[1, 2]]), 1, Rules(exclude_seen=False), because="proven")
    assert free.item_index.tolist() == [[1]], "what is allowed to come back is first as it is"


def test_the_newest_events_are_tried_where_the_strongest_prove_nothing() -> None:
    """Events 4, 5, 6 speak for item 7 as for item 8, which is half a point behind; the newest, 1, is worth one to item 7."""
    weight = np.zeros((NUM_ITEMS + 1, NUM_ITEMS + 1), np.float32)
    weight[4:7, 7:9], weight[1, 7], weight[2, 8] = 3, 1, 0.5
    rows = histories_from_lists([[4, 5, 6, 2, 1]])
    answer = engine_of(Table(weight)).answer(rows, 1, Rules(), because="proven")
    assert answer.item_index.tolist() == [[7]]
    assert proven_sets(answer, 0) == {7: [1]}
    assert answer.because is not None
    assert answer.because.weight[0, 0].tolist() == [1, 0, 0]


def test_a_proof_has_events_not_items() -> None:
    """The latest of an item's events may be enough; where two are needed, the set has the item twice."""
    weight = np.zeros((NUM_ITEMS + 1, NUM_ITEMS + 1), np.float32)
    weight[1, 7], weight[2, 8] = 2, 3
    rows = histories_from_lists([[1, 2, 1], [1, 2, 1, 1]])
    answer = engine_of(Table(weight)).answer(rows, 1, Rules(), because="proven")
    assert answer.item_index.tolist() == [[7], [7]]
    assert [proven_sets(answer, row) for row in (0, 1)] == [{7: [1]}, {7: [1, 1]}]


def without(histories: Histories, row: int, items: list[int], *, exclude_seen: bool) -> Histories:
    """A row without its events on some items, which stay excluded."""
    one = histories.select(slice(row, row + 1)).compact()
    place = np.flatnonzero(np.isin(one.item_index, items)).tolist()
    if exclude_seen:
        seen = np.unique(one.item_index)
        own = ItemSets.of(np.zeros(len(seen), np.int64), seen, 1)
        one = replace(one, left_out=own if one.left_out is None else one.left_out.union(own))
    return one.without_events(np.array([place], np.int32))


@pytest.mark.parametrize("exclude_seen", [True, False])
@pytest.mark.parametrize("system", ["encoder", "target", "ranker", "unlearned", "gru"])
def test_proofs_hold_through_the_whole_pipeline(system: str, exclude_seen: bool) -> None:
    settings = {"target": {"readout": "target"}, "gru": {"block": "gru"}}.get(system, {})
    engine, rows = made(**settings), repeating(5)
    if system in ("ranker", "unlearned"):
        engine = with_ranker(engine, rows)
    if system == "unlearned":
        engine, rows = with_unlearned(engine, rows)
    engine.recommender.encoder.requires_grad_(requires_grad=False)
    row_of, position = rows.gather()
    _, first = np.unique(np.stack([row_of, rows.item_index[position]]), axis=1, return_index=True)
    rows = rows.only(np.isin(position, first))  # an item once: events of a proof are known by their items
    rules = Rules(exclude_seen=exclude_seen)
    answer = engine.answer(rows, 5, rules, because="proven")
    plain = engine.answer(rows, 5, rules, because="balanced")
    assert answer.item_index.tolist() == plain.item_index.tolist()
    assert answer.because is not None
    assert plain.because is not None
    assert answer.because.proven is not None
    assert answer.because.proven.any()
    unproven = ~answer.because.proven
    assert (answer.because.item_index[unproven] == plain.because.item_index[unproven]).all()
    for row in range(len(rows)):
        for item, past in proven_sets(answer, row).items():
            for size in range(1, len(past) + 1):
                for gone in itertools.combinations(past, size):
                    left = without(rows, row, list(gone), exclude_seen=exclude_seen)
                    stays = item in engine.answer(left, 5, rules).item_index[0]
                    assert stays == (size < len(past))


def bits(engine: RecommendationEngine, rows: Histories, run: Run = map) -> list[bytes]:
    """Bits of each row's list and reasons."""
    answer = engine.answer(rows, 4, Rules(), because="proven", run=run, in_blocks=True)
    because = answer.because
    assert because is not None
    assert because.proven is not None
    parts = [answer.item_index, because.item_index, because.weight, because.proven]
    return [b"".join(part[row].tobytes() for part in parts) for row in range(len(rows))]


def test_proofs_have_the_same_bits_whoever_the_neighbours_are(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = made(dim=64)
    engine.recommender.encoder.requires_grad_(requires_grad=False)
    random = np.random.default_rng(4)
    rows = histories_from_lists(
        [random.integers(1, ENCODED_ITEMS + 1, length).tolist() for length in random.integers(0, 30, 12)]
    )
    whole, order = bits(engine, rows), random.permutation(12)[:9].tolist()
    assert bits(engine, rows.select(np.array([7]))) == [whole[7]]
    monkeypatch.setattr("models.topk._CHUNK_EVENTS", 200)
    with ThreadPoolExecutor(2) as pool:
        assert bits(engine, rows.select(np.array(order)), pool.map) == [whole[row] for row in order]


def test_drawn_places_cannot_be_proven() -> None:
    rules = Rules(exploration=Exploration(0.25))
    with pytest.raises(ValueError, match="received 'proven' with places drawn at random"):
        made().answer(histories_from_lists([[1, 2]]), 3, rules, because="proven")


def test_scores_that_read_no_history_prove_nothing() -> None:
    """Not even the popular items that a row without events would get instead."""
    table = Table(np.zeros((NUM_ITEMS + 1, NUM_ITEMS + 1), np.float32))
    engine = BaselineEngine(table, POPULAR[None], Traits(POPULAR), reads_history=False)
    answer = engine.answer(histories_from_lists([[1], [], [2, 3]]), 3, Rules(), because="proven")
    assert answer.item_index[0].tolist() == [2, 3, 4]
    assert answer.because is not None
    assert answer.because.proven is not None
    assert not answer.because.proven.any()


def test_answers_of_two_parts_of_the_rows_keep_their_proofs() -> None:
    random = np.random.default_rng(1)
    engine = engine_of(Table(random.normal(size=(NUM_ITEMS + 1, NUM_ITEMS + 1)).astype(np.float32)))
    rows = histories_from_lists([(1 + random.permutation(NUM_ITEMS)[:4]).tolist() for _ in range(9)])
    is_first = np.arange(9) % 3 == 0
    whole, first, second = (
        engine.answer(part, 3, Rules(), because="proven")
        for part in (rows, rows.select(is_first), rows.select(~is_first))
    )
    merged = Answer.merged(is_first, first, second)
    for row in range(9):
        assert proven_sets(merged, row) == proven_sets(whole, row)
    assert any(proven_sets(whole, row) for row in range(9))
