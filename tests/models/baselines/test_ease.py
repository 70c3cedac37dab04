import numpy as np
import pytest

from models.baselines import ease
from models.baselines.base import interactions
from models.baselines.ease import EASE
from models.histories import Histories, histories_from_lists


def log(num_items: int = 13) -> Histories:
    random = np.random.default_rng(0)
    return histories_from_lists(
        [random.integers(1, num_items + 1, random.integers(0, 9)).tolist() for _ in range(61)]
    )


def test_by_pencil():
    # X'X + 1 I = [[3, 1], [1, 2]]; its inverse [[2, -1], [-1, 3]] / 5; B_ij = -P_ij / P_jj
    model = EASE.fit(histories_from_lists([[1, 2, 1], [1]]), 2, l2=1.0)
    assert model.weights == pytest.approx(np.array([[0, 1 / 3], [1 / 2, 0]]))
    prior = np.array([3, 1]) / 4 * 1e-4
    scored = model.score_items(histories_from_lists([[1], [2, 2], []]))
    assert scored[:, 1:] == pytest.approx(np.array([[0, 1 / 3], [1 / 2, 0], [0, 0]]) + prior)


def test_the_closed_form_by_numpy():
    held = interactions(log(), 13).toarray()[:, 1:].astype(np.float64)
    precision = np.linalg.inv(held.T @ held + 20 * np.eye(13))
    expected = np.eye(13) - precision / np.diag(precision)
    model = EASE.fit(log(), 13, l2=20.0)
    assert model.weights == pytest.approx(expected, rel=1e-5, abs=1e-7)
    assert model.weights.dtype == np.float32


def test_each_item_is_the_ridge_regression_on_the_others():
    from sklearn.linear_model import Ridge

    held = interactions(log(), 13).toarray()[:, 1:].astype(np.float64)
    weights = EASE.fit(log(), 13, l2=5.0).weights
    assert (np.diagonal(weights) == 0).all()
    for item in range(13):
        others = np.delete(np.arange(13), item)
        fitted = Ridge(alpha=5.0, fit_intercept=False).fit(held[:, others], held[:, item])
        assert weights[others, item] == pytest.approx(fitted.coef_, rel=1e-4, abs=1e-6)


def test_many_blocks_are_one(monkeypatch: pytest.MonkeyPatch):
    whole = EASE.fit(log(), 13).weights
    monkeypatch.setattr(ease, "_BLOCK_CELLS", 40)
    assert (EASE.fit(log(), 13).weights == whole).all()


def test_a_catalogue_too_large_is_refused_before_anything_is_held():
    with pytest.raises(
        ValueError, match=r"100,000 items, expected at most 30,000: it would need 120 GB .*min_item_events"
    ):
        EASE.fit(histories_from_lists([[1, 2]]), 100_000)


def test_l2_must_be_positive():
    with pytest.raises(ValueError, match=r"l2=0, expected more than 0"):
        EASE.fit(log(), 13, l2=0)
