import time
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.metrics import (
    UserSums,
    bootstrap,
    coverage,
    hit_rate,
    interval,
    metrics_of_ranks,
    mrr,
    ndcg,
    paired_difference,
    ranks,
    sum_by_user,
)

INF = np.inf


def scores(*rows: Sequence[float]) -> np.ndarray:
    return np.array([[-INF, *row] for row in rows], np.float32)


def test_ranks_by_pencil():
    table = scores([9, 7, 5, 3], [9, 7, 5, 3], [4, 4, 4, 1], [4, 4, 4, 4], [2, 8, 8, 1])
    # best; third; one of three best: 1 + 2/2; constant: (4 + 1) / 2; behind two, alone
    assert ranks(table, np.array([1, 3, 2, 4, 1], np.int32)).tolist() == [1.0, 3.0, 2.0, 2.5, 3.0]


def test_a_target_at_minus_infinity_is_behind_every_finite_score():
    table = scores([1, -INF, 3, -INF, 2])
    assert ranks(table, np.array([2], np.int32)).tolist() == [4.5]  # three finite, one other at -inf


def test_nan_is_refused():
    with pytest.raises(ValueError, match="NaN"):
        ranks(scores([1, float("nan")]), np.array([1], np.int32))


@given(
    st.lists(st.lists(st.integers(-2, 2), min_size=7, max_size=7), min_size=1, max_size=5), st.integers(1, 7)
)
def test_ranks_equal_their_definition(rows: list[list[int]], target: int):
    got = ranks(scores(*rows), np.full(len(rows), target, np.int32))
    for row, rank in zip(rows, got, strict=True):
        own, others = row[target - 1], row[: target - 1] + row[target:]
        assert rank == 1 + sum(other > own for other in others) + sum(other == own for other in others) / 2


def test_metrics_by_pencil():
    rank = np.array([1.0, 3.0, 2.5, 10.0, 10.5, 11.0])
    assert hit_rate(rank, 10).tolist() == [1, 1, 1, 1, 0, 0]
    assert mrr(rank, 10) == pytest.approx([1, 1 / 3, 0.4, 0.1, 0, 0])
    assert ndcg(rank, 10) == pytest.approx([1, 0.5, 1 / np.log2(3.5), 1 / np.log2(11), 0, 0])
    assert list(metrics_of_ranks(rank, (1, 10))) == [
        *("ndcg@1", "hit_rate@1", "mrr@1"),
        *("ndcg@10", "hit_rate@10", "mrr@10"),
    ]


def test_the_oracle_has_one_everywhere():
    targets = np.array([3, 1, 5], np.int32)
    table = np.zeros((3, 6), np.float32)
    table[np.arange(3), targets] = 1
    assert all((values == 1).all() for values in metrics_of_ranks(ranks(table, targets), (1, 5)).values())


def test_random_scores_give_what_theory_says():
    n, rows = 50, 20_000
    random = np.random.default_rng(1)
    rank = ranks(random.random((rows, n + 1), np.float32), random.integers(1, n + 1, rows, dtype=np.int32))
    places = np.arange(1, 11)
    expected = {
        "hit_rate@10": 10 / n,
        "ndcg@10": (1 / np.log2(places + 1)).sum() / n,
        "mrr@10": (1 / places).sum() / n,
    }
    for name, values in metrics_of_ranks(rank, (10,)).items():
        assert abs(values.mean() - expected[name]) < 5 * values.std() / np.sqrt(rows)


def test_coverage_counts_distinct_items_only():
    assert coverage(np.array([[1, 2, 0], [2, 5, 0]], np.int32), 10) == 0.3


def test_means_over_targets_and_over_users_by_pencil():
    # user 0 has targets 1, 0, 0; user 2 has one target 1; user 1 has none
    users = sum_by_user(np.array([0, 2, 0, 0]), 3, np.array([[1.0], [1.0], [0.0], [0.0]]))
    assert users.over_targets().tolist() == [0.5]
    assert users.of_users().over_targets() == pytest.approx([(1 / 3 + 1) / 2])


def test_nan_is_no_target_of_its_measure():
    users = sum_by_user(np.array([0, 1, 1]), 2, np.array([[1.0, np.nan], [0.0, 1.0], [1.0, 0.0]]))
    assert users.over_targets() == pytest.approx([2 / 3, 1 / 2])


def test_bootstrap_draws_whole_users():
    # ten users: user 0 owns 91 of 100 targets, all hits. Resamples without it have mean 0: (9/10)**10 of them.
    sums, counts = np.zeros((10, 1)), np.ones((10, 1))
    sums[0], counts[0] = 91, 91
    resampled = bootstrap(UserSums(sums, counts), 4000, seed=3)[:, 0]
    assert abs((resampled == 0).mean() - 0.9**10) < 0.04
    assert resampled.max() > 0.97


def test_the_bootstrap_of_a_mean_has_its_standard_error():
    values = np.random.default_rng(0).random((997, 1))
    resampled = bootstrap(UserSums(values, np.ones_like(values)), 3000, seed=0)
    assert resampled.std() == pytest.approx(values.std() / np.sqrt(997), rel=0.06)
    low, high = interval(resampled)
    assert low[0] < values.mean() < high[0]
    assert high[0] - low[0] == pytest.approx(2 * 1.96 * values.std() / np.sqrt(997), rel=0.1)


def test_the_same_seed_gives_the_same_bits_and_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch):
    users = UserSums(np.random.default_rng(0).random((53, 3)), np.ones((53, 3)))
    whole = bootstrap(users, 200, seed=5)
    assert (whole == bootstrap(users, 200, seed=5)).all()
    monkeypatch.setattr("models.metrics._CHUNK_CELLS", 7 * 53)
    assert bootstrap(users, 200, seed=5) == pytest.approx(whole)


def test_paired_difference_says_better_worse_or_cannot_tell():
    random = np.random.default_rng(2)
    base = random.random(499)
    both = np.stack(
        [base + 0.01, base, base + random.normal(0, 0.2, 499)], axis=1
    )  # a constant lead; noise around it
    resampled = bootstrap(UserSums(both, np.ones_like(both)), 1000)
    lead = paired_difference(0.01, resampled[:, 0] - resampled[:, 1])
    assert (lead.verdict, lead.share) == ("better", 1.0)
    assert lead.low == pytest.approx(0.01)
    assert paired_difference(-0.01, resampled[:, 1] - resampled[:, 0]).verdict == "worse"
    assert paired_difference(0.0, resampled[:, 2] - resampled[:, 1]).verdict == "can't tell"
    nothing = paired_difference(0.0, resampled[:, 1] - resampled[:, 1])
    assert (nothing.verdict, nothing.share) == ("can't tell", 0.5)


def test_a_thousand_resamples_of_all_movielens_users_take_seconds():
    values = np.random.default_rng(0).random((6040, 24))
    began = time.perf_counter()
    bootstrap(UserSums(values, np.ones_like(values)), 1000)
    assert time.perf_counter() - began < 5
