import numpy as np
import pytest

from models.judgement import Judgement

USER = np.array([7, 7, 7, 3])
RANKS = {"one": np.array([1.0, 3.0, 11.0, 1.0]), "other": np.array([2.0, 11.0, 11.0, 11.0])}


@pytest.fixture(scope="module")
def judged() -> Judgement:
    return Judgement.of(RANKS, USER, (1, 10), resamples=400, seed=0)


def test_values_by_pencil(judged: Judgement):
    assert (judged.num_users, judged.num_targets) == (2, 4)
    values = judged.values("one")
    assert values["hit_rate@1"] == 0.5
    assert values["hit_rate@10"] == 0.75
    assert values["ndcg@10"] == pytest.approx((1 + 0.5 + 0 + 1) / 4)
    assert values["mrr@10"] == pytest.approx((1 + 1 / 3 + 0 + 1) / 4)
    assert values["user_ndcg@10"] == pytest.approx((1 + 1.5 / 3) / 2)
    assert values["user_hit_rate@1"] == pytest.approx((1 + 1 / 3) / 2)
    assert set(values) == {
        f"{of}{name}@{k}" for of in ("", "user_") for name in ("ndcg", "hit_rate", "mrr") for k in (1, 10)
    }


def test_users_by_pencil(judged: Judgement):
    own = judged.of_users("other")
    assert judged.users.tolist() == [3, 7]
    assert own["targets"].tolist() == [1, 3]
    assert own["hit_rate@10"] == pytest.approx([0, 1 / 3])
    assert list(own) == ["targets", "ndcg@1", "hit_rate@1", "mrr@1", "ndcg@10", "hit_rate@10", "mrr@10"]


def test_intervals_are_the_extremes_of_two_users(judged: Judgement):
    # a resample has user 3 twice (hit rate 1), user 7 twice (1/3), or both ((1 + 1) / 4 targets)
    assert judged.intervals("one")["hit_rate@1"] == pytest.approx([1 / 3, 1])
    assert set(np.round(judged.resampled[:, 0, judged.names.index("hit_rate@1")], 6)) == {0.333333, 0.5, 1.0}


def test_differences_are_paired(judged: Judgement):
    found = judged.paired("one", "other")
    assert found["hit_rate@10"]["difference"] == pytest.approx(0.5)
    assert found["hit_rate@10"]["low"] == pytest.approx(1 / 3)  # user 7 alone: 2/3 - 1/3
    assert found["hit_rate@10"]["high"] == pytest.approx(1)
    assert found["hit_rate@10"]["verdict"] == "better"
    assert judged.paired("other", "one")["hit_rate@10"]["verdict"] == "worse"
    assert judged.paired("one", "one")["ndcg@10"]["verdict"] == "can't tell"
