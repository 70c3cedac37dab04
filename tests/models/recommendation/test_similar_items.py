"""Lists of similar items: by hand, against all pairs, and each independent of the others."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array

from models.baselines.co_visitation import CoVisitation
from models.encoder.encoder import AttentionRecommender, Encoder, with_request_time
from models.histories import histories_from_lists
from models.recommendation.baseline_engine import BaselineEngine
from models.recommendation.engine import RecommendationEngine
from models.recommendation.rules import Traits
from models.recommendation.similar_items import following, led_to, nearest_by_direction, similar_items
from models.retrieval.build import build_index
from models.settings.encoder import EncoderSettings

NUM_ITEMS, TIME = 53, 1_700_000_000_000_000
ITEMS = np.arange(1, NUM_ITEMS + 1, dtype=np.int32)
NO_SCORE = -np.inf


def engine(*, unlearned: int = 0) -> RecommendationEngine:
    """Random weights; the last `unlearned` items have traits, and no vector."""
    torch.manual_seed(0)
    settings = EncoderSettings(dim=64, num_blocks=1, num_heads=2, time_bias=True, request_time=True)
    encoder = Encoder(settings, NUM_ITEMS, 0, 5)
    torch.nn.init.normal_(encoder.items.ids.weight)  # type: ignore[union-attr]
    encoder.items.forget_untrained()
    vectors = encoder.item_vectors().detach().numpy()
    counts = np.ones(NUM_ITEMS + unlearned + 1, np.float32)
    traits = Traits(counts, vectors=np.pad(vectors, ((0, unlearned), (0, 0))))
    index = build_index(vectors[1:], ITEMS)
    return RecommendationEngine(AttentionRecommender(encoder), index, counts[None], traits)


def test_co_visitation_is_what_followed_by_hand() -> None:
    """Item 1 is followed by 2 (at distance 1) and 3 (at 2), and by 3; item 2 by 3; nothing follows 3."""
    follows = CoVisitation.fit(histories_from_lists([[1, 2, 3], [1, 3]]), 4, decay=0.5).follows
    items, scores = following(follows, np.array([3, 1, 2, 4], np.int32), 2)
    assert items.tolist() == [[0, 0], [3, 2], [3, 0], [0, 0]]
    assert scores.tolist() == [[NO_SCORE] * 2, [(0.5 + 1) / 2, 1 / 2], [1, NO_SCORE], [NO_SCORE] * 2]


def test_equal_entries_go_by_the_lower_item_and_filters_hold_before_the_list_is_cut() -> None:
    follows = csr_array(np.array([[0, 0, 0, 0], [0, 0, 0.5, 0.5], [0, 0.25, 0, 0.5], [0, 0, 0, 0]]))
    items = np.array([1, 2], np.int32)
    assert following(follows, items, 1)[0].tolist() == [[2], [3]]
    allowed = np.array([False, True, True, False])
    assert following(follows, items, 1, allowed)[0].tolist() == [[2], [1]]


def test_vectors_are_compared_by_their_angle_by_hand() -> None:
    """Items at 0, 90, 45 and 180 degrees, and one without a vector."""
    half = np.sqrt(0.5)
    directions = np.array([[0, 0], [1, 0], [0, 1], [half, half], [-1, 0], [0, 0]], np.float32)
    items, scores = nearest_by_direction(directions, np.arange(1, 6, dtype=np.int32), 4)
    assert items.tolist() == [[3, 2, 4, 0], [3, 1, 4, 0], [1, 2, 4, 0], [2, 3, 1, 0], [0] * 4]
    assert scores[0, :3] == pytest.approx([half, 0, -1])
    assert np.isneginf(scores[4]).all()
    allowed = np.array([False, True, True, False, True, True])
    found, _ = nearest_by_direction(directions, np.array([3, 1], np.int32), 2, allowed)
    assert found.tolist() == [[1, 2], [2, 4]], "an item that is sold out has a list and is in none"


def test_an_item_leads_to_what_a_history_of_it_is_recommended() -> None:
    own = engine()
    alone = with_request_time(histories_from_lists([[int(item)] for item in ITEMS]), TIME)
    alone = replace(alone, time=np.full(NUM_ITEMS, TIME))
    expected, scores = own.recommender.recommend(alone, 4, exclude_seen=True)
    found, values = led_to(own, ITEMS, 4, time=TIME)
    assert np.array_equal(found, expected)
    np.testing.assert_allclose(values, scores, atol=1e-5)
    assert not (found == ITEMS[:, None]).any()


def test_a_list_is_the_same_whichever_items_have_one() -> None:
    own, follows = (
        engine(),
        CoVisitation.fit(histories_from_lists([[3, 5, 3, 8], [8, 3, 1]]), NUM_ITEMS).follows,
    )
    allowed = np.arange(NUM_ITEMS + 1) % 3 > 0
    some = np.array([8, 3, 40], np.int32)
    kinds = zip(
        similar_items(own, follows, ITEMS, 6, time=TIME, allowed=allowed),
        similar_items(own, follows, some, 6, time=TIME, allowed=allowed),
        strict=True,
    )
    for (kind, every), (_, few) in kinds:
        assert np.array_equal(every[0][some - 1], few[0]), kind
        np.testing.assert_allclose(every[1][some - 1], few[1], rtol=1e-6)
        assert allowed[every[0][every[0] > 0]].all()


def test_an_item_that_the_encoder_does_not_know_has_a_list_by_co_visitation_alone() -> None:
    own, new = engine(unlearned=1), NUM_ITEMS + 1
    follows = CoVisitation.fit(histories_from_lists([[new, 2]]), new).follows
    lists = dict(similar_items(own, follows, np.array([new], np.int32), 3, time=TIME))
    assert {kind: found.tolist() for kind, (found, _) in lists.items()} == {
        "model": [[0, 0, 0]],
        "vectors": [[0, 0, 0]],
        "co_visitation": [[2, 0, 0]],
    }


def test_a_published_baseline_has_no_vectors_and_lists_as_long_as_its_catalogue() -> None:
    system = CoVisitation.fit(histories_from_lists([[1, 2, 3], [2, 3]]), 3)
    own = BaselineEngine(system, np.ones((1, 4), np.float32), Traits(np.ones(4, np.float32)))
    items = np.arange(1, 4, dtype=np.int32)
    lists = dict(similar_items(own, system.follows, items, 5, time=TIME))
    assert list(lists) == ["model", "co_visitation"]
    assert lists["model"][0].tolist() == [[2, 3, 0, 0, 0], [3, 1, 0, 0, 0], [2, 1, 0, 0, 0]]
