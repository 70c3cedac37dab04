import warnings

import numpy as np
import pytest

from models.baselines.als import ALS
from models.baselines.base import interactions
from models.histories import Histories, histories_from_lists

NUM_ITEMS = 17


def log() -> Histories:
    random = np.random.default_rng(0)
    return histories_from_lists(
        [random.integers(1, NUM_ITEMS + 1, random.integers(1, 9)).tolist() for _ in range(61)]
    )


def fitted(**settings: float) -> ALS:
    return ALS.fit(log(), NUM_ITEMS, **({"factors": 5, "regularization": 0.5, "alpha": 3.0} | settings))  # type: ignore[arg-type]


def test_a_history_is_folded_in_by_its_own_least_squares():
    model = fitted()
    items = model.model.item_factors.astype(np.float64)
    x = model.factors_of(histories_from_lists([[4, 9, 4, 2], []]))
    held = items[[3, 8, 1]]
    left = items.T @ items + (3.0 - 1) * held.T @ held + 0.5 * np.eye(5)
    assert x[0] == pytest.approx(np.linalg.solve(left, 3.0 * held.sum(axis=0)), rel=1e-4)
    assert not x[1].any()


def test_a_known_user_is_scored_as_by_implicit_itself():
    from scipy.sparse import csr_matrix

    model = fitted()
    held = csr_matrix(interactions(log(), NUM_ITEMS)[:, 1:])
    for user in (0, 7, 60):
        expected, scores = model.model.recommend(
            user, held[[user]], N=6, filter_already_liked_items=True, recalculate_user=True
        )
        items, ours = model.recommend(log().select(slice(user, user + 1)), 6)
        assert items[0].tolist() == (expected + 1).tolist()
        assert ours[0] == pytest.approx(scores, rel=1e-3, abs=2e-5)  # the prior is theirs not


def test_it_finds_two_groups_of_items():
    random = np.random.default_rng(0)
    rows = [random.choice(np.arange(1, 9) + 8 * (user % 2), 5, replace=False).tolist() for user in range(80)]
    model = ALS.fit(histories_from_lists(rows), 16, factors=2)
    items, _ = model.recommend(histories_from_lists([[1, 2], [16, 12]]), 6)
    assert sorted(items[0].tolist()) == [3, 4, 5, 6, 7, 8]
    assert sorted(items[1].tolist()) == [9, 10, 11, 13, 14, 15]


def test_the_same_seed_gives_the_same_factors():
    first, again, other = fitted(), fitted(), fitted(seed=1)
    assert (first.model.item_factors == again.model.item_factors).all()
    assert (first.model.item_factors != other.model.item_factors).any()


def test_threads_of_blas_are_left_as_they_were_and_nobody_warns():
    from implicit import utils
    from threadpoolctl import threadpool_info, threadpool_limits

    def threads() -> list[int]:
        return [each["num_threads"] for each in threadpool_info() if each["user_api"] == "blas"]

    with threadpool_limits(2, "blas"), warnings.catch_warnings():
        warnings.simplefilter("error")
        utils._checked_blas_config = False  # implicit looks once in a process
        before = threads()
        fitted().score_items(log())
        assert threads() == before


@pytest.mark.parametrize(
    "settings", [{"factors": 0}, {"iterations": 0}, {"regularization": -1.0}, {"alpha": 0.0}]
)
def test_nonsense_is_refused(settings: dict[str, float]):
    with pytest.raises(ValueError, match="expected at least 1 factor"):
        fitted(**settings)
