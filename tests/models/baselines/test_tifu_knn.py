import numpy as np
import pytest

from models.baselines import tifu_knn
from models.baselines.tifu_knn import TIFUKNN
from models.histories import Histories, histories_from_lists


def log() -> Histories:
    random = np.random.default_rng(0)
    items = [random.integers(0, 14, random.integers(0, 30)).tolist() for _ in range(41)]
    return histories_from_lists(items, [np.sort(random.integers(0, 9, len(row))).tolist() for row in items])


def test_a_vector_by_pencil():
    # five visits in two groups: {1}, {2} | {1, 3}, {1}, {2, 2}; decays .5 within and .25 between groups
    history = histories_from_lists([[1, 2, 1, 3, 1, 2, 2]], [[0, 1, 2, 2, 3, 4, 4]])
    model = TIFUKNN.fit(history, 3, neighbours=1, num_groups=2, basket_decay=0.5, group_decay=0.25)
    older = np.array([0.5, 1, 0]) / 2
    newer = np.array([0.25 + 0.5, 1, 0.25]) / 3
    assert model.vectors.toarray()[0, 1:] == pytest.approx((0.25 * older + newer) / 2)


def test_fewer_visits_than_groups_are_a_group_each():
    history = histories_from_lists([[1, 2]])
    model = TIFUKNN.fit(history, 2, num_groups=5, group_decay=0.5)
    assert model.vectors.toarray()[0, 1:] == pytest.approx([0.5 / 2, 1 / 2])


def test_scores_by_pencil():
    # vectors of single visits are 0/1; the history {1, 2} is nearest to {1, 2, 3} (1), then {4} (3), then {3, 4} (4)
    training = histories_from_lists([[1, 2, 3], [4], [3, 4]], [[0, 0, 0], [0], [0, 0]])
    model = TIFUKNN.fit(training, 4, neighbours=2, alpha=0.6)
    scored = model.score_items(histories_from_lists([[1, 2], []], [[7, 7], []]))
    prior = np.array([1, 1, 2, 2]) / 6 * 1e-4
    assert scored[0, 1:] == pytest.approx(np.array([0.6 + 0.2, 0.6 + 0.2, 0.2, 0.2]) + prior)
    assert scored[1, 1:] == pytest.approx(prior)


def test_dense_distances_give_the_same():
    training, num_items = log(), 13
    model = TIFUKNN.fit(training, num_items, neighbours=5, num_groups=3, alpha=0.4)
    vectors = model.vectors.toarray().astype(np.float64)
    scored = model.score_items(training)
    for row in range(len(training)):
        own = TIFUKNN.fit(training.select(slice(row, row + 1)), num_items, num_groups=3).vectors.toarray()
        if not len(own):
            continue
        distances = np.linalg.norm(vectors - own[0], axis=1)
        nearest = np.argsort(distances.round(6), kind="stable")
        if distances[nearest[5]] - distances[nearest[4]] < 1e-4:
            continue  # a tie
        expected = 0.4 * own[0] + 0.6 * vectors[nearest[:5]].mean(axis=0)
        assert scored[row, 1:] == pytest.approx(expected[1:], abs=2e-4)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch):
    model = TIFUKNN.fit(log(), 13, neighbours=5)
    whole = model.score_items(log())
    monkeypatch.setattr(tifu_knn, "_BLOCK_CELLS", 100)
    assert (model.score_items(log()) == whole).all()


def test_neighbours_are_the_newest_histories(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tifu_knn, "MAX_VECTORS", 2)
    training = histories_from_lists([[1], [2], [3], []], [[5], [1], [9], []])
    assert TIFUKNN.fit(training, 3).vectors.toarray().tolist() == [[0, 1, 0, 0], [0, 0, 0, 1]]


@pytest.mark.parametrize(
    "settings",
    [
        *({"neighbours": 0}, {"num_groups": 0}, {"basket_decay": 0.0}),
        *({"group_decay": 1.1}, {"alpha": -0.1}, {"session": -1}),
    ],
)
def test_nonsense_is_refused(settings: dict[str, float]):
    with pytest.raises(ValueError, match=f"TIFUKNN: received .*{next(iter(settings))}="):
        TIFUKNN.fit(log(), 13, **settings)  # type: ignore[arg-type]
