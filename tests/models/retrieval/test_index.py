from pathlib import Path

import numpy as np
import pytest

from models.histories import histories_from_lists
from models.retrieval.build import build_index, extend_index
from models.retrieval.index import ItemIndex
from models.topk import recommend_from_scores

NUM_ITEMS, DIM, ROWS = 401, 7, 23


@pytest.fixture(scope="module")
def index() -> ItemIndex:
    vectors = np.random.default_rng(0).normal(size=(NUM_ITEMS, DIM)).astype(np.float32)
    return build_index(vectors, np.arange(1, NUM_ITEMS + 1, dtype=np.int32))


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
    twins = build_index(np.ones((NUM_ITEMS, DIM), np.float32), index.item_index)
    query = np.stack([np.ones(DIM, np.float32), np.zeros(DIM, np.float32)])
    assert twins.search(query, 3)[0].tolist() == [[1, 2, 3], [1, 2, 3]]
    assert twins.search(query, 3, histories_from_lists([[2], []]))[0].tolist() == [[1, 3, 4], [1, 2, 3]]


def test_items_without_a_vector_cannot_be_found(queries: np.ndarray):
    gaps = build_index(np.random.default_rng(0).random((3, DIM), np.float32), np.array([2, 5, 9], np.int32))
    assert np.isfinite(gaps.score_items(queries)).nonzero()[1].tolist() == [2, 5, 9] * ROWS
    assert sorted(gaps.search(queries[:1], 4)[0][0].tolist()) == [0, 2, 5, 9]


def test_save_and_load_change_nothing(index: ItemIndex, queries: np.ndarray, tmp_path: Path):
    index.save(tmp_path)
    again = ItemIndex.load(tmp_path)
    for before, after in zip(index.search(queries, 10), again.search(queries, 10), strict=True):
        assert (before == after).all()


def test_missing_damaged_or_unmatched_files_are_refused(index: ItemIndex, tmp_path: Path):
    with pytest.raises(ValueError, match="is missing"):
        ItemIndex.load(tmp_path)
    index.save(tmp_path)
    np.save(tmp_path / "items.npy", index.item_index[:-1])
    with pytest.raises(ValueError, match=r"items\.npy is damaged"):
        ItemIndex.load(tmp_path)
    with pytest.raises(ValueError, match="401 indexed vectors, 400 items and 401 exact vectors"):
        ItemIndex.load(tmp_path, verify=False)
    (tmp_path / "items.faiss").write_bytes(b"no index")
    with pytest.raises(ValueError, match=r"items\.faiss is damaged"):
        ItemIndex.load(tmp_path, verify=False)


def test_a_folder_without_facts_is_exact(index: ItemIndex, queries: np.ndarray, tmp_path: Path):
    index.save(tmp_path)
    (tmp_path / "index.json").unlink()
    again = ItemIndex.load(tmp_path)
    assert again.facts.type == "exact"
    assert (again.search(queries, 10)[0] == index.search(queries, 10)[0]).all()


def test_no_queries(index: ItemIndex):
    assert index.search(np.zeros((0, DIM), np.float32), 3)[0].shape == (0, 3)


def test_vectors_and_masks_of_another_model_are_refused(index: ItemIndex, queries: np.ndarray):
    with pytest.raises(ValueError, match="vectors of 6 components, expected 7"):
        index.search(queries[:, 1:], 3)
    with pytest.raises(ValueError, match="mask of 401 items, expected 402"):
        index.search(queries, 3, allowed=np.ones(NUM_ITEMS, bool))
    with pytest.raises(ValueError, match="k=0"):
        index.search(queries, 0)


def test_only_allowed_items_are_found(index: ItemIndex, queries: np.ndarray):
    allowed = np.arange(NUM_ITEMS + 1) % 3 == 1
    seen = histories_from_lists([[1, 4, 7, 2]] * ROWS)
    items, _ = index.search(queries, 10, seen, allowed)
    expected = index.score_items(queries)
    expected[:, ~allowed] = -np.inf
    assert (items == recommend_from_scores(expected, seen, 10)[0]).all()
    assert np.isneginf(index.search(queries, 2, allowed=np.zeros(NUM_ITEMS + 1, bool))[1]).all()
    assert (index.search(queries, 200, allowed=allowed)[0] > 0).sum() == ROWS * allowed.sum()


def test_exact_items_are_added_without_building_anew(index: ItemIndex, queries: np.ndarray):
    vectors = np.random.default_rng(2).normal(size=(3, DIM)).astype(np.float32)
    grown, is_rebuilt = extend_index(index, vectors, np.array([402, 405, 406], np.int32))
    whole = build_index(np.concatenate((index.vectors, vectors)), grown.item_index)
    assert not is_rebuilt
    assert grown.num_items == 406
    for one, other in zip(grown.search(queries, 50), whole.search(queries, 50), strict=True):
        assert (one == other).all()
    assert index.num_items == NUM_ITEMS
    with pytest.raises(ValueError, match="ascending numbers above 401"):
        extend_index(index, vectors, np.array([401, 402, 403], np.int32))
