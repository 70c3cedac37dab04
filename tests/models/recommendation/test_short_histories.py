"""Histories of no, one, two and all items; lists of one item, beyond the ranker's candidates and beyond the catalogue."""

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch

from models.baselines.item_knn import ItemKNN
from models.baselines.own_items import OwnFrequent
from models.baselines.popularity import Popularity
from models.encoder.encoder import AttentionRecommender, Encoder
from models.explanation.contributions import Method
from models.histories import Histories, histories_from_lists
from models.ranking.features import ItemStatistics
from models.ranking.ranker import Ranker, SecondStage
from models.recommendation.answer import Answer
from models.recommendation.baseline_engine import BaselineEngine
from models.recommendation.engine import RecommendationEngine
from models.recommendation.rules import Rules, Traits
from models.retrieval.build import build_index
from models.settings.encoder import EncoderSettings
from models.settings.ranker import RankerSettings

NUM_ITEMS, CANDIDATES = 7, 3
HOUR = 3_600_000_000
POPULAR = np.array([[-np.inf, 1, 1, 1, 1, 1, 9, 5]], np.float32)
TRAITS = Traits(np.array([0, 1, 1, 1, 1, 1, 9, 5], np.float32))
ENCODERS = {
    "attention": EncoderSettings(dim=4, num_blocks=1, num_heads=1),
    "gru": EncoderSettings(dim=4, num_blocks=1, block="gru"),
    "target": EncoderSettings(dim=4, num_blocks=1, num_heads=1, readout="target"),
}
BASELINES: dict[str, type[Popularity | OwnFrequent | ItemKNN]] = {
    "popularity": Popularity,
    "own_frequent": OwnFrequent,
    "item_knn": ItemKNN,
}
SYSTEMS = [
    *((name, use) for name in ENCODERS for use in (False, True)),
    *((name, False) for name in BASELINES),
]
HISTORIES = [[], [4], [2, 5], [5, 5], [*range(1, NUM_ITEMS + 1)]]


def rows_of(items: list[list[int]]) -> Histories:
    times = [[HOUR * (place + 1) for place in range(len(row))] for row in items]
    return replace(
        histories_from_lists(items, times), request_time=np.full(len(items), 10 * HOUR, dtype=np.int64)
    )


LOG = rows_of([[1, 2, 3, 2], [2, 3, 5], [4, 5], [6, 7, 1]])


def an_engine(name: str, *, is_ranked: bool) -> RecommendationEngine | BaselineEngine:
    """Random weights, large ones in the ranker, which ranks 3 candidates and a popular item or favourite."""
    if name in BASELINES:
        system = BASELINES[name].fit(LOG, NUM_ITEMS)
        return BaselineEngine(system, POPULAR, TRAITS, name != "popularity")
    torch.manual_seed(0)
    encoder = Encoder(ENCODERS[name], NUM_ITEMS, 0, 5).eval()
    torch.nn.init.normal_(encoder.items.ids.weight)  # type: ignore[union-attr]
    vectors = encoder.item_vectors().detach()
    index = build_index(vectors.numpy()[1:], np.arange(1, NUM_ITEMS + 1, dtype=np.int32))
    engine = RecommendationEngine(AttentionRecommender(encoder), index, POPULAR, TRAITS)
    if not is_ranked:
        return engine
    settings = RankerSettings(dim=4, hidden=4, max_length=4, candidates=CANDIDATES, favourites=1, popular=1)
    ranker = Ranker(settings, vectors, 0)
    with torch.no_grad():
        for weight in ranker.parameters():
            weight.copy_(torch.randn_like(weight) * 0.5)
    own = np.arange(NUM_ITEMS + 1, dtype=np.int32)
    return replace(engine, second_stage=SecondStage(ranker, ItemStatistics.of(LOG, NUM_ITEMS), own))


def lists(answer: Answer) -> list[list[int]]:
    return [row[row > 0].tolist() for row in answer.item_index]


@pytest.mark.parametrize("exclude_seen", [True, False])
@pytest.mark.parametrize(("name", "is_ranked"), SYSTEMS)
def test_every_list_is_as_long_as_it_can_be_and_begins_alike(
    name: str, is_ranked: bool, exclude_seen: bool
) -> None:
    engine, rules = an_engine(name, is_ranked=is_ranked), Rules(exclude_seen=exclude_seen)
    rows = rows_of(HISTORIES)
    whole = lists(engine.answer(rows, NUM_ITEMS + 1, rules))
    for own, items in zip(HISTORIES, whole, strict=True):
        assert sorted(items) == sorted({*range(1, NUM_ITEMS + 1)} - (set(own) if exclude_seen else set()))
    assert whole[0][:2] == [6, 7], "popular"
    for k in (1, CANDIDATES + 1, 10**9):
        assert lists(engine.answer(rows, k, rules)) == [items[:k] for items in whole]
        for method in get_args(Method):
            answer = engine.answer(rows, k, rules, because=method, because_items=2)
            assert answer.item_index.shape == (len(HISTORIES), min(k, NUM_ITEMS))
            assert lists(answer) == [items[:k] for items in whole]
            assert answer.because is not None
            assert np.isfinite(answer.because.weight).all()
            for own, reasons in zip(HISTORIES, answer.because.item_index, strict=True):
                assert set(reasons.ravel().tolist()) <= {0, *own}
    for row, items in enumerate(whole):
        assert lists(engine.answer(rows.select(slice(row, row + 1)), NUM_ITEMS, rules)) == [items]


@pytest.mark.parametrize("method", get_args(Method))
@pytest.mark.parametrize("name", ENCODERS)
def test_items_that_the_ranker_does_not_order_are_explained_by_retrieval(name: str, method: Method) -> None:
    """Behind the candidates a list has retrieval's distances, so the reasons are retrieval's too."""
    rows, rules = rows_of([[2, 5], [4]]), Rules(exclude_seen=False)
    retrieval, both = an_engine(name, is_ranked=False), an_engine(name, is_ranked=True)
    (items, weights), (ours, alone) = (
        engine.contributions(rows, NUM_ITEMS, rules, method) for engine in (both, retrieval)
    )
    for row in range(len(rows)):
        for place in (NUM_ITEMS - 2, NUM_ITEMS - 1):
            same = ours[row].tolist().index(items[row, place])
            assert weights[row, place] == pytest.approx(alone[row, same], abs=1e-5)
    ranked = both.answer(rows, 1, rules).item_index[:, 0]
    for row in range(len(rows)):
        same = ours[row].tolist().index(ranked[row])
        assert weights[row, 0] != pytest.approx(alone[row, same], abs=1e-3)
