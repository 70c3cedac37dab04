import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.histories import histories_from_lists
from models.topk import contains, mask_seen, recommend_from_scores, recommend_in_chunks, row_chunks, top_k

INF = np.inf


def test_top_k_by_pencil():
    items, scores = top_k(np.array([[-INF, 3, 9, 5, 9, -INF]], np.float32), 3)
    assert items.tolist() == [[2, 4, 3]]
    assert scores.tolist() == [[9, 9, 5]]


def test_the_lower_item_wins_a_tie_at_the_last_place():
    assert top_k(np.array([[-INF, 1, 7, 1, 1, 1]], np.float32), 3)[0].tolist() == [[2, 1, 3]]


def test_too_few_items_are_filled_with_item_zero():
    items, scores = top_k(np.array([[-INF, -INF, 4, 5]], np.float32), 6)
    assert items.tolist() == [[3, 2, 0, 0, 0, 0]]
    assert scores.tolist() == [[5, 4, -INF, -INF, -INF, -INF]]
    assert items.dtype == np.int32


def test_no_rows():
    assert top_k(np.zeros((0, 4), np.float32), 2)[0].shape == (0, 2)


def test_a_list_of_no_length_is_refused():
    with pytest.raises(ValueError, match="k=0"):
        top_k(np.zeros((1, 4), np.float32), 0)


@given(
    st.lists(st.lists(st.sampled_from([-INF, 0, 1, 2]), min_size=7, max_size=7), min_size=1, max_size=4),
    st.integers(1, 9),
)
def test_top_k_equals_a_stable_sort(rows: list[list[float]], k: int):
    table = np.array([[-INF, *row] for row in rows], np.float32)
    items, scores = top_k(table, k)
    for row in range(len(rows)):
        finite = [item for item in range(1, 8) if table[row, item] > -INF]
        order = sorted(finite, key=lambda item: -table[row, item])[:k]
        assert items[row].tolist() == order + [0] * (k - len(order))
        assert scores[row].tolist() == [table[row, item] for item in order] + [-INF] * (k - len(order))


def test_masking_touches_each_rows_own_items_only():
    masked = mask_seen(np.zeros((3, 5), np.float32), histories_from_lists([[1, 4, 1], [], [2]]))
    assert np.isneginf(masked).tolist() == [
        [False, True, False, False, True],
        [False] * 5,
        [False, False, True, False, False],
    ]


def test_masking_in_chunks_of_events_changes_nothing(monkeypatch: pytest.MonkeyPatch):
    histories = histories_from_lists([[1, 2, 3, 4], [], [2], [4, 4], []])
    whole = mask_seen(np.zeros((5, 5), np.float32), histories)
    monkeypatch.setattr("models.topk._CHUNK_EVENTS", 2)
    assert (mask_seen(np.zeros((5, 5), np.float32), histories) == whole).all()
    assert contains(histories, np.array([3, 1, 2, 1, 0], np.int32)).tolist() == [
        True,
        False,
        True,
        False,
        False,
    ]


def test_seen_items_are_left_out_when_asked():
    histories, table = histories_from_lists([[3]]), np.array([[-INF, 1, 2, 3]], np.float32)
    assert recommend_from_scores(table.copy(), histories, 2, exclude_seen=False)[0].tolist() == [[3, 2]]
    assert recommend_from_scores(table.copy(), histories, 2)[0].tolist() == [[2, 1]]


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch):
    histories = histories_from_lists([[row % 5 + 1] for row in range(13)])
    table = np.random.default_rng(0).random((5 + 1, 6), np.float32)
    whole = recommend_in_chunks(lambda part: table[part.item_index[part.starts]], 5, histories, 3)
    monkeypatch.setattr("models.topk.row_chunks", lambda rows, items: row_chunks(rows, items, cells=24))
    parts = recommend_in_chunks(lambda part: table[part.item_index[part.starts]], 5, histories, 3)
    assert (whole[0] == parts[0]).all()
    assert (whole[1] == parts[1]).all()


def test_row_chunks_cover_every_row_once():
    assert row_chunks(7, 9, cells=30) == [slice(0, 3), slice(3, 6), slice(6, 7)]
    assert row_chunks(2, 10**9) == [slice(0, 1), slice(1, 2)]
    assert row_chunks(0, 9) == []
