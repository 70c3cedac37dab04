from pathlib import Path

import numpy as np
import pytest

from models.retrieval.content_map import FOLDS, ContentMap


def test_a_linear_map_is_found_and_its_worth_is_what_unseen_items_get(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    weight, offset = random.normal(size=(6, 4)), random.normal(size=4)
    features = random.normal(size=(300, 6)).astype(np.float32)
    vectors = (features @ weight + offset).astype(np.float32)
    fitted = ContentMap.fit(features, vectors)
    assert fitted is not None
    told_by, worth = fitted
    assert told_by(features) == pytest.approx(vectors, abs=1e-2)
    assert worth.r2 > 0.999
    assert worth.cosine > 0.999 > worth.mean_cosine
    assert (worth.items, worth.features) == (300, 6)
    told_by.save(tmp_path)
    again = ContentMap.load(tmp_path)
    assert again is not None
    assert (again(features) == told_by(features)).all()


def test_where_content_says_nothing_the_worth_says_so(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    features = random.normal(size=(200, 20)).astype(np.float32)
    vectors = random.normal(size=(200, 5)).astype(np.float32)
    fitted = ContentMap.fit(features, vectors)
    assert fitted is not None
    assert -0.1 < fitted[1].r2 < 0.1
    assert fitted[1].penalty == 1000
    assert ContentMap.load(tmp_path) is None


def test_too_little_to_learn_from() -> None:
    assert ContentMap.fit(np.ones((19, 2), np.float32), np.ones((19, 3), np.float32)) is None
    assert ContentMap.fit(np.zeros((50, 2), np.float32), np.ones((50, 3), np.float32)) is None


def test_the_same_as_the_formula_of_each_fold() -> None:
    """Ridge with an intercept, by the normal equations of every fold."""
    random = np.random.default_rng(2)
    x = random.normal(size=(50, 3)).astype(np.float32)
    y = (x @ random.normal(size=(3, 2)) + random.normal(size=(50, 2))).astype(np.float32)
    fitted = ContentMap.fit(x, y)
    assert fitted is not None
    worth = fitted[1]
    told = np.empty((50, 2))
    for fold in np.array_split(np.random.default_rng(0).permutation(50), FOLDS):
        rest = np.setdiff1d(np.arange(50), fold)
        mean_x, mean_y = x[rest].mean(0), y[rest].mean(0)
        centred = (x[rest] - mean_x).astype(np.float64)
        weight = np.linalg.solve(
            centred.T @ centred + worth.penalty * np.eye(3), centred.T @ (y[rest] - mean_y)
        )
        told[fold] = mean_y + (x[fold] - mean_x) @ weight
    cosine = (told * y).sum(1) / np.linalg.norm(told, axis=1) / np.linalg.norm(y, axis=1)
    assert worth.cosine == pytest.approx(cosine.mean(), abs=1e-5)
