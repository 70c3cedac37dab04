import numpy as np
import pytest
from scipy.sparse import csr_array

from models.baselines.base import interactions
from models.baselines.co_visitation import CoVisitation
from models.baselines.item_knn import ItemKNN
from models.baselines.neighbours import largest_per_row
from models.histories import histories_from_lists


def test_co_visitation_by_pencil():
    # 1 -> 2 twice at distance 1; 1 -> 3 and 2 -> 3 at distances 2 and 1; pairs never cross users; 0 is no item
    model = CoVisitation.fit(histories_from_lists([[1, 2, 3], [1, 2], [0, 3]]), 3, window=2, decay=0.5)
    expected = [[0, 0, 0, 0], [0, 0, 1, 0.25], [0, 0, 0, 0.5], [0, 0, 0, 0]]
    assert model.follows.toarray() == pytest.approx(np.array(expected))
    prior = np.array([2, 2, 2]) / 6 * 1e-4
    scored = model.score_items(histories_from_lists([[2, 1], []]))
    # age 0: item 1; age 1: item 2
    assert scored[0, 1:] == pytest.approx(np.array([0, 1, 0.25 + 0.5 * 0.5]) + prior)
    assert scored[1, 1:] == pytest.approx(prior)


def test_co_visitation_looks_at_the_window_only():
    model = CoVisitation.fit(histories_from_lists([[1, 2], [3, 4], [3, 4], [4, 4]]), 4, window=1)
    assert model.recommend(histories_from_lists([[1, 3]]), 1)[0].tolist() == [[4]]
    assert model.recommend(histories_from_lists([[3, 1]]), 1)[0].tolist() == [[2]]


def test_a_window_of_one_is_a_first_order_markov_chain():
    histories = histories_from_lists([[1, 2, 1, 3], [1, 2], [2, 3], [3, 1]])
    follows = CoVisitation.fit(histories, 3, window=1, decay=1.0).follows.toarray()
    # the next one of 1: 2, 3, 2, none; of 2: 1, none, 3; of 3: none, none, 1
    assert follows[1:, 1:] == pytest.approx(np.array([[0, 2 / 4, 1 / 4], [1 / 3, 0, 1 / 3], [1 / 3, 0, 0]]))


def test_co_visitation_keeps_the_strongest_neighbours():
    model = CoVisitation.fit(
        histories_from_lists([[1, 2], [1, 3], [1, 3], [1, 4]]), 4, window=1, max_neighbours=2
    )
    assert model.follows.toarray()[1] == pytest.approx([0, 0, 0.25, 0.5, 0])


def test_item_knn_by_pencil():
    # held by: 1 three rows, 2 two, 3 one; together: 1 and 2 twice, 1 and 3 once; a repeat counts once; 4 is held by nobody
    histories = histories_from_lists([[1, 2, 1], [2, 1], [3, 1]])
    model = ItemKNN.fit(histories, 4, shrinkage=0.5, max_neighbours=9)
    s12, s13 = 2 / (np.sqrt(6) + 0.5), 1 / (np.sqrt(3) + 0.5)
    expected = np.array([[0, s12, s13, 0], [s12, 0, 0, 0], [s13, 0, 0, 0], [0, 0, 0, 0]])
    assert model.similarity.toarray()[1:, 1:] == pytest.approx(expected)
    assert not model.similarity.toarray()[0].any()
    prior = np.array([4, 2, 1, 0]) / 7 * 1e-4
    scored = model.score_items(histories_from_lists([[2, 3, 2], [0, 4]]))
    assert scored[0, 1:] == pytest.approx(np.array([s12 + s13, 0, 0, 0]) + prior)
    assert scored[1, 1:] == pytest.approx(prior)


def test_item_knn_without_shrinkage_is_the_cosine():
    from sklearn.metrics.pairwise import cosine_similarity

    random = np.random.default_rng(0)
    histories = histories_from_lists(
        [random.integers(1, 24, random.integers(0, 9)).tolist() for _ in range(61)]
    )
    cosine = cosine_similarity(interactions(histories, 23).T)
    np.fill_diagonal(cosine, 0)
    model = ItemKNN.fit(histories, 23, shrinkage=0, max_neighbours=23)
    assert model.similarity.toarray() == pytest.approx(cosine, abs=1e-6)
    cut = ItemKNN.fit(histories, 23, shrinkage=0, max_neighbours=5).similarity.toarray()
    kept = np.sort(np.argsort(-cosine, axis=1, kind="stable")[:, :5], axis=1)
    for item in range(1, 24):
        assert np.flatnonzero(cut[item]).tolist() == [j for j in kept[item].tolist() if cosine[item, j] > 0]


@pytest.mark.parametrize("settings", [{"shrinkage": -1.0}, {"max_neighbours": 0}])
def test_item_knn_refuses_nonsense(settings: dict[str, float]):
    with pytest.raises(ValueError, match="expected at least 0 and 1"):
        ItemKNN.fit(histories_from_lists([[1, 2]]), 3, **settings)  # type: ignore[arg-type]


def test_largest_entries_of_each_row_by_pencil():
    cells = [[0, 3, 1, 3, 3], [5, 0, 0, 2, 0], [0, 0, 0, 0, 0], [1, 2, 3, 4, 5]]
    kept = largest_per_row(csr_array(np.array(cells, np.float32)), 2)
    assert kept.toarray().tolist() == [[0, 3, 0, 3, 0], [5, 0, 0, 2, 0], [0] * 5, [0, 0, 0, 4, 5]]
    assert kept.indptr.tolist() == [0, 2, 4, 4, 6]
