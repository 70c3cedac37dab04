"""Faithfulness of explanations by pencil: where a score is a sum of what each interaction adds the best order is known."""

import json
from typing import Any

import numpy as np
import pytest

from models.encoder.encoder import AttentionRecommender
from models.explanation.contributions import contributions, kept_scores
from models.explanation.faithfulness import (
    STEPS,
    areas,
    controls,
    curves,
    mean_spread,
    measure,
    measure_encoder,
    spearman,
)
from models.histories import Float32, Histories, Int32, histories_from_lists

WORTH = np.array([0, 8, 4, 2, 1, 16], np.float32)
"""What each item adds to any score."""


def added_up(histories: Histories, _items: Int32, kept: Any) -> Float32:
    """[b] the worth of the kept interactions together."""
    rows, flat = histories.gather()
    worth = np.zeros(kept.shape, np.float32)
    worth[rows, flat - histories.starts[rows]] = WORTH[histories.item_index[flat]]
    found: Float32 = (worth * kept).sum(1)
    return found


def test_spearman_by_pencil():
    first = np.array([[1, 2, 3, 9], [1, 1, 2, 0], [5, 5, 0, 0], [7, 0, 0, 0]], np.float32)
    second = np.array([[30, 10, 20, 0], [1, 2, 3, 0], [1, 2, 0, 0], [3, 0, 0, 0]], np.float32)
    found = spearman(first, second, np.array([3, 3, 2, 1]))
    # ranks 1 2 3 and 3 1 2: 1 - 6 * 6 / 24; 1.5 1.5 3 and 1 2 3: 1.5 / sqrt(1.5 * 2); constant; single
    np.testing.assert_allclose(found, [-0.5, np.sqrt(0.75), np.nan, np.nan])


def test_curves_take_the_strongest_first():
    histories = histories_from_lists([[1, 2, 3, 4, 5], [4, 1]])
    items, weights = np.array([1, 1], np.int32), np.zeros((2, 5), np.float32)
    weights[0], weights[1, :2] = WORTH[[1, 2, 3, 4, 5]], [1, 8]
    deletion, insertion = curves(weights, added_up, histories, items)
    assert deletion.shape == insertion.shape == (2, STEPS + 1)
    gone = [0, 0, 1, 2, 2, 2, 3, 4, 4, 4, 5]  # of five, round(t / 2): half to even
    left = np.array([31, 15, 7, 3, 1, 0])
    np.testing.assert_allclose(deletion[0], left[gone])
    np.testing.assert_allclose(insertion[0], 31 - left[gone])
    np.testing.assert_allclose(deletion[1], [9] * 3 + [1] * 5 + [0] * 3)
    # both rows' whole is worth 31 and 9 more than nothing, 20 in the mean
    assert mean_spread(deletion) == 20
    trapezoids = (deletion[1, :-1] + deletion[1, 1:]).sum() / 2 / STEPS
    np.testing.assert_allclose(areas(deletion, 20)[1], trapezoids / 20)


def test_equal_weights_the_more_recent_first():
    histories = histories_from_lists([[1, 2, 3, 4]])
    deletion, _ = curves(np.ones((1, 4), np.float32), added_up, histories, np.array([1], np.int32))
    np.testing.assert_allclose(deletion[0, [0, 3, 5, 7, 10]], [15, 14, 12, 8, 0])


def test_the_right_order_is_better_than_any_other():
    random = np.random.default_rng(0)
    histories = histories_from_lists([random.integers(1, 6, 10).tolist() for _ in range(40)])
    items = np.ones(40, np.int32)
    right = WORTH[histories.item_index].reshape(40, 10)
    others = {"random": random.random((40, 10)).astype(np.float32), "reversed": -right}
    found = measure({"right": right}, others, right, added_up, histories, items, resamples=200)
    assert found["methods"]["right"]["spearman"]["mean"] == pytest.approx(1)
    assert found["methods"]["reversed"]["spearman"]["mean"] == pytest.approx(-1)
    for control in others:
        for kind in ("deletion", "insertion"):
            assert found["against"]["right"][control][kind]["verdict"] == "better"
    methods = found["methods"]
    # what is taken away in one order is put in by the other
    assert methods["right"]["deletion"]["area"] == pytest.approx(1 - methods["right"]["insertion"]["area"])
    assert methods["right"]["insertion"]["area"] == pytest.approx(methods["reversed"]["deletion"]["area"])
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_controls_by_pencil(random_encoder):
    encoder = random_encoder()
    histories = histories_from_lists([[3, 9, 4], [5]])
    counts = np.arange(30, dtype=np.float32) * 10
    found = controls(encoder, histories, np.array([7, 5], np.int32), counts)
    assert set(found) == {"random", "recency", "popularity", "item_cosine", "attention"}
    assert found["recency"].tolist() == [[0, 1, 2], [0, 0, 0]]
    assert found["popularity"].tolist() == [[30, 90, 40], [50, 0, 0]]
    vectors = encoder.item_vectors().detach().numpy()
    cosine = vectors[9] @ vectors[7] / np.linalg.norm(vectors[9]) / np.linalg.norm(vectors[7])
    assert found["item_cosine"][0, 1] == pytest.approx(cosine, rel=1e-5)
    assert found["item_cosine"][1, 0] == pytest.approx(1, rel=1e-5)
    np.testing.assert_allclose(found["attention"].sum(1), 1, rtol=1e-5)
    assert "attention" not in controls(random_encoder(block="gru"), histories, np.array([7, 5]), counts)


def test_an_encoder_measured(random_encoder, random_histories):
    encoder, histories = random_encoder(spread=0.2), random_histories([7, 0, 1, 6, 5, 9])
    lists, _ = AttentionRecommender(encoder).recommend(histories, 2)
    lists[3] = 0
    found = measure_encoder(encoder, histories, lists, np.ones(30, np.float32), resamples=50)
    assert found["rows"] == 4
    methods = found["methods"]
    assert list(methods)[:3] == ["fast", "balanced", "exact"]
    assert methods["exact"]["spearman"]["mean"] == pytest.approx(1)
    assert methods["exact"]["spearman"]["rows_without"] == 1, "of one interaction"
    assert methods["popularity"]["spearman"]["rows_without"] == 4, "all alike"
    assert methods["balanced"]["spearman"]["mean"] > 0.8
    assert set(found["against"]) == {"fast", "balanced", "exact"}
    assert measure_encoder(encoder, histories, lists * 0, np.ones(30, np.float32)) == {"rows": 0}


def test_a_deletion_is_what_exact_leaves_out(random_encoder, random_histories):
    """Rows of ten: the first step takes one interaction away."""
    encoder, histories = random_encoder(max_length=10), random_histories([10] * 3)
    items = np.array([7, 8, 9], np.int32)
    exact = contributions(encoder, histories, items[:, None], "exact")[:, 0]
    deletion, insertion = curves(exact, lambda *given: kept_scores(encoder, *given), histories, items)
    np.testing.assert_allclose(deletion[:, 0] - deletion[:, 1], exact.max(1), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(deletion[:, 0], insertion[:, -1], rtol=1e-4, atol=1e-4)
    assert not deletion[:, -1].any()
