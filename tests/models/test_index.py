from pathlib import Path

import numpy as np
import pytest

from models.index import ItemIndex
from models.recommender import histories_from_lists
from models.topk import recommend_from_scores, top_k

NUM_ITEMS, DIM, ROWS = 401, 7, 23


@pytest.fixture(scope="module")
def index() -> ItemIndex:
    vectors = np.random.default_rng(0).normal(size=(NUM_ITEMS, DIM)).astype(np.float32)
    return ItemIndex.build(vectors, np.arange(1, NUM_ITEMS + 1, dtype=np.int32))


@pytest.fixture(scope="module")
def queries() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(ROWS, DIM)).astype(np.float32)


def test_search_finds_what_scoring_everything_finds(index: ItemIndex, queries: np.ndarray):
    exact = recommend_from_scores(index.score_items(queries), histories_from_lists([[]] * ROWS), 10)
    found = index.search(queries, 10)
    assert (found[0] == exact[0]).all()
    assert found[1] == pytest.approx(exact[1], rel=1e-5)
    assert index.recall(queries, 10) == 1.0


def test_seen_items_are_replaced_however_many_there_are(index: ItemIndex, queries: np.ndarray):
    order = index.search(queries, NUM_ITEMS)[0]
    # row r has seen its own r * r best items: from none to more than the catalogue lets one fetch
    seen = histories_from_lists(
        [order[row, : row * row].tolist() for row in range(20)] + [[], [5, 5], [NUM_ITEMS]]
    )
    items, scores = index.search(queries, 10, seen)
    for row in range(20):
        expected = order[row, row * row : row * row + 10].tolist()
        assert items[row].tolist() == expected
    exact = recommend_from_scores(index.score_items(queries), seen, 10)
    assert (items == exact[0]).all()
    assert scores == pytest.approx(exact[1], rel=1e-5)


def test_more_than_the_catalogue_is_filled_with_item_zero(index: ItemIndex, queries: np.ndarray):
    items, scores = index.search(queries[:2], NUM_ITEMS + 5, histories_from_lists([[1], []]))
    assert (items == 0).sum(axis=1).tolist() == [6, 5]
    assert np.isneginf(scores[items == 0]).all()


def test_equal_scores_the_lower_item_first_beyond_what_was_fetched(index: ItemIndex):
    twins = ItemIndex.build(np.ones((NUM_ITEMS, DIM), np.float32), index.item_index)
    query = np.stack([np.ones(DIM, np.float32), np.zeros(DIM, np.float32)])
    assert twins.search(query, 3)[0].tolist() == [[1, 2, 3], [1, 2, 3]]
    assert twins.search(query, 3, histories_from_lists([[2], []]))[0].tolist() == [[1, 3, 4], [1, 2, 3]]


def test_items_without_a_vector_cannot_be_found(queries: np.ndarray):
    gaps = ItemIndex.build(
        np.random.default_rng(0).random((3, DIM), np.float32), np.array([2, 5, 9], np.int32)
    )
    assert np.isfinite(gaps.score_items(queries)).nonzero()[1].tolist() == [2, 5, 9] * ROWS
    assert sorted(gaps.search(queries[:1], 4)[0][0].tolist()) == [0, 2, 5, 9]


def test_save_and_load_change_nothing(index: ItemIndex, queries: np.ndarray, tmp_path: Path):
    index.save(tmp_path)
    again = ItemIndex.load(tmp_path)
    for before, after in zip(index.search(queries, 10), again.search(queries, 10), strict=True):
        assert (before == after).all()


def test_missing_or_unmatched_files_are_refused(index: ItemIndex, tmp_path: Path):
    with pytest.raises(ValueError, match="is missing"):
        ItemIndex.load(tmp_path)
    index.save(tmp_path)
    np.save(tmp_path / "items.npy", index.item_index[:-1])
    with pytest.raises(ValueError, match="401 vectors and 400 items"):
        ItemIndex.load(tmp_path)


def test_no_queries(index: ItemIndex):
    assert index.search(np.zeros((0, DIM), np.float32), 3)[0].shape == (0, 3)


def test_only_allowed_items_and_as_many_as_there_are() -> None:
    random = np.random.default_rng(3)
    vectors = random.normal(size=(500, 8)).astype(np.float32)
    index = ItemIndex.build(vectors, np.arange(1, 501, dtype=np.int32))
    queries = random.normal(size=(20, 8)).astype(np.float32)
    for number in (3, 60, 400):
        allowed = np.zeros(501, bool)
        allowed[random.permutation(500)[:number] + 1] = True
        items, scores = index.search(queries, 10, None, allowed)
        exact = index.score_items(queries)
        exact[:, ~allowed] = -np.inf
        assert items.tolist() == top_k(exact, 10)[0].tolist()
        assert ((items > 0).sum(1) == min(10, number)).all()
        assert (np.isneginf(scores) == (items == 0)).all()


def test_added_items_are_found() -> None:
    vectors = np.eye(4, dtype=np.float32)
    index, _ = ItemIndex.build(vectors[:3], np.arange(1, 4, dtype=np.int32)).add(
        vectors[3:] * 2, np.array([4], np.int32)
    )
    assert index.num_items == 4
    assert index.search(np.ones((1, 4), np.float32), 2)[0].tolist() == [[4, 1]]
