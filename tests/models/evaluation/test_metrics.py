from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.evaluation.metrics import (
    average_precision,
    debias_weights,
    hit_rate,
    metrics_of_ranks,
    mrr,
    ndcg,
    precision,
    ranks,
    recall,
)

INF = np.inf
SHORT_ROWS = st.lists(st.lists(st.integers(-2, 2), min_size=7, max_size=7), min_size=1, max_size=5)
RANKS = st.lists(st.integers(2, 60).map(lambda half: half / 2), min_size=1, max_size=20)


def scores(*rows: Sequence[float]) -> np.ndarray:
    return np.array([[-INF, *row] for row in rows], np.float32)


def random_scores(rows: int, num_items: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores without ties of rows x items, and a target of each row."""
    random = np.random.default_rng(seed)
    table = random.permuted(np.tile(np.arange(num_items + 1, dtype=np.float32), (rows, 1)), axis=1)
    table[:, 0] = -INF
    return table, random.integers(1, num_items + 1, rows, dtype=np.int32)


def test_ranks_by_pencil():
    table = scores([9, 7, 5, 3], [9, 7, 5, 3], [4, 4, 4, 1], [4, 4, 4, 4], [2, 8, 8, 1])
    rank, pessimistic = ranks(table, np.array([1, 3, 2, 4, 1], np.int32))
    # best; third; one of three best: 1 + 2/2; constant: (4 + 1) / 2; behind two, alone
    assert rank.tolist() == [1.0, 3.0, 2.0, 2.5, 3.0]
    assert pessimistic.tolist() == [1.0, 3.0, 3.0, 4.0, 3.0]


def test_a_target_at_minus_infinity_is_behind_every_finite_score():
    rank, pessimistic = ranks(scores([1, -INF, 3, -INF, 2]), np.array([2], np.int32))
    assert (rank[0], pessimistic[0]) == (4.5, 5.0)  # three finite, one other at -inf


def test_nan_is_refused():
    with pytest.raises(ValueError, match="NaN"):
        ranks(scores([1, float("nan")]), np.array([1], np.int32))
    with pytest.raises(ValueError, match="NaN"):
        ranks(scores([1, 2], [INF, 3], [float("nan"), -INF]), np.array([1, 1, 2], np.int32))


def test_no_rows_have_no_ranks():
    assert [each.shape for each in ranks(np.zeros((0, 4), np.float32), np.zeros(0, np.int32))] == [(0,), (0,)]


@given(SHORT_ROWS, st.integers(1, 7))
def test_ranks_equal_their_definition(rows: list[list[int]], target: int):
    got = ranks(scores(*rows), np.full(len(rows), target, np.int32))
    for row, rank, pessimistic in zip(rows, *got, strict=True):
        own, others = row[target - 1], row[: target - 1] + row[target:]
        greater, equal = sum(other > own for other in others), sum(other == own for other in others)
        assert rank == 1 + greater + equal / 2
        assert pessimistic == 1 + greater + equal
        assert 7 >= pessimistic >= rank >= 1


def test_blocks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch):
    random = np.random.default_rng(0)
    table = random.integers(0, 9, (53, 14)).astype(np.float32)
    target = random.integers(1, 14, 53, dtype=np.int32)
    whole = ranks(table, target)
    monkeypatch.setattr("models.evaluation.metrics._BLOCK_CELLS", 3 * 14)
    assert all((one == other).all() for one, other in zip(whole, ranks(table, target), strict=True))


def test_metrics_by_pencil():
    rank = np.array([1.0, 3.0, 2.5, 10.0, 10.5, 11.0])
    assert hit_rate(rank, 10).tolist() == [1, 1, 1, 1, 0, 0]
    assert recall(rank, 10).tolist() == [1, 1, 1, 1, 0, 0]
    assert precision(rank, 10) == pytest.approx([0.1, 0.1, 0.1, 0.1, 0, 0])
    assert mrr(rank, 10) == pytest.approx([1, 1 / 3, 0.4, 0.1, 0, 0])
    assert average_precision(rank, 10) == pytest.approx([1, 1 / 3, 0.4, 0.1, 0, 0])
    assert ndcg(rank, 10) == pytest.approx([1, 0.5, 1 / np.log2(3.5), 1 / np.log2(11), 0, 0])
    names = ("ndcg", "hit_rate", "recall", "precision", "mrr", "map")
    assert list(metrics_of_ranks(rank, (1, 10))) == [f"{name}@{k}" for k in (1, 10) for name in names]


@pytest.mark.parametrize("k", [1, 5, 20])
def test_metrics_equal_torchmetrics(k: int):
    from torchmetrics.functional import retrieval

    references = {
        "ndcg": retrieval.retrieval_normalized_dcg,
        "hit_rate": retrieval.retrieval_hit_rate,
        "recall": retrieval.retrieval_recall,
        "precision": retrieval.retrieval_precision,
        "mrr": retrieval.retrieval_reciprocal_rank,
        "map": retrieval.retrieval_average_precision,
    }
    table, target = random_scores(40, 23, seed=k)
    got = metrics_of_ranks(ranks(table, target)[0], (k,))
    relevant = np.arange(1, 24) == target[:, None]
    for name, reference in references.items():
        expected = [
            float(reference(torch.from_numpy(row[1:]), torch.from_numpy(own), top_k=k))
            for row, own in zip(table, relevant, strict=True)
        ]
        assert got[f"{name}@{k}"] == pytest.approx(expected, abs=1e-6), name


@pytest.mark.parametrize("k", [1, 5, 23])
def test_ndcg_equals_scikit_learn(k: int):
    from sklearn.metrics import ndcg_score

    table, target = random_scores(60, 23, seed=9)
    relevant = (np.arange(1, 24) == target[:, None]).astype(int)
    assert ndcg(ranks(table, target)[0], k).mean() == pytest.approx(ndcg_score(relevant, table[:, 1:], k=k))


def test_with_ties_ndcg_is_between_the_worst_order_and_the_mean_over_orders():
    from sklearn.metrics import ndcg_score

    random = np.random.default_rng(3)
    table = random.integers(0, 9, (200, 12)).astype(np.float32)
    target = random.integers(1, 12, 200, dtype=np.int32)
    rank, pessimistic = ranks(table, target)
    own, worst = ndcg(rank, 11), ndcg(pessimistic, 11)
    relevant = (np.arange(1, 12) == target[:, None]).astype(int)
    mean = np.array([ndcg_score(relevant[[row]], table[[row], 1:]) for row in range(200)])
    assert (worst <= own).all()
    assert (own <= mean + 1e-9).all()  # the discount is convex: at the mean rank it is below its mean
    alone = rank == pessimistic
    assert 20 < alone.sum() < 180
    assert own[alone] == pytest.approx(mean[alone])
    assert (own[~alone] < mean[~alone]).all()


@given(RANKS, RANKS, st.integers(1, 30))
def test_no_metric_rises_with_the_rank(one: list[float], other: list[float], k: int):
    low, high = (np.array([each(pair) for pair in zip(one, other, strict=False)]) for each in (min, max))
    better, worse = metrics_of_ranks(low, (k,)), metrics_of_ranks(high, (k,))
    assert all((better[name] >= worse[name]).all() for name in better)
    assert all(((values >= 0) & (values <= 1)).all() for values in better.values())


def test_the_oracle_has_one_everywhere():
    targets = np.array([3, 1, 5], np.int32)
    table = np.zeros((3, 6), np.float32)
    table[np.arange(3), targets] = 1
    for rank in ranks(table, targets):
        found = metrics_of_ranks(rank, (1, 5))
        assert (found.pop("precision@5") == 1 / 5).all()  # one of five places is all that one target can fill
        assert all((values == 1).all() for values in found.values())


def test_a_constant_scorer_gets_the_middle_and_at_worst_the_end():
    rank, pessimistic = ranks(np.zeros((2, 12), np.float32), np.array([1, 11], np.int32))
    assert rank.tolist() == [6.0, 6.0]
    assert pessimistic.tolist() == [11.0, 11.0]


def test_random_scores_give_what_theory_says():
    n, rows, k = 50, 20_000, 10
    random = np.random.default_rng(1)
    table = random.random((rows, n + 1), np.float32)
    rank, pessimistic = ranks(table, random.integers(1, n + 1, rows, dtype=np.int32))
    assert (rank == pessimistic).mean() > 0.999
    places = np.arange(1, k + 1)
    expected = {
        "hit_rate@10": k / n,
        "recall@10": k / n,
        "precision@10": 1 / n,
        "ndcg@10": (1 / np.log2(places + 1)).sum() / n,
        "mrr@10": (1 / places).sum() / n,  # the harmonic number of k, over n
        "map@10": (1 / places).sum() / n,
    }
    found = metrics_of_ranks(rank, (k,))
    assert set(found) == set(expected)
    for name, values in found.items():
        assert abs(values.mean() - expected[name]) < 4 * values.std() / np.sqrt(rows), name


def test_debiasing_weighs_by_the_inverse_power_of_popularity():
    counts = np.array([99, 100, 4, 0, 1])
    target = np.array([1, 2, 3, 4, 0], np.int32)
    assert debias_weights(counts, target) == pytest.approx(
        [0.1, 0.5, 1, 1, 1]
    )  # never seen, or unknown: as one
    assert debias_weights(counts, target, power=1) == pytest.approx([0.01, 0.25, 1, 1, 1])
    assert debias_weights(counts, target, power=0).tolist() == [1] * 5


def test_debiasing_takes_back_what_popularity_added():
    # items are liked alike but seen in proportion to their count; the metric is 1 on the popular half only
    random = np.random.default_rng(0)
    counts = np.concatenate(([0], np.full(50, 90), np.full(50, 10)))
    target = random.choice(101, 40_000, p=counts / counts.sum()).astype(np.int32)
    value = (target <= 50).astype(float)
    weight = debias_weights(counts, target, power=1)
    assert value.mean() == pytest.approx(0.9, abs=0.01)
    assert (weight * value).sum() / weight.sum() == pytest.approx(0.5, abs=0.02)


def test_metrics_of_several_relevant_items_by_pencil():
    # request 0: relevant items at ranks 1, 3 and 12; request 1: one at 2; request 2: none
    rank = np.array([3.0, 1.0, 12.0, 2.0])
    found = metrics_of_ranks(rank, (3,), np.array([0, 0, 0, 1]), 3)
    ideal = 1 + 1 / np.log2(3) + 1 / 2
    assert found["ndcg@3"][:2] == pytest.approx([(1 + 1 / 2) / ideal, 1 / np.log2(3)])
    assert found["hit_rate@3"][:2].tolist() == [1, 1]
    assert found["recall@3"][:2] == pytest.approx([2 / 3, 1])
    assert found["precision@3"][:2] == pytest.approx([2 / 3, 1 / 3])
    assert found["mrr@3"][:2].tolist() == [1, 1 / 2]
    assert found["map@3"][:2] == pytest.approx([(1 / 1 + 2 / 3) / 3, 1 / 2])
    assert all(np.isnan(values[2]) for values in found.values())


def test_requests_of_one_relevant_item_have_the_bits_of_plain_targets():
    rank = np.random.default_rng(3).integers(2, 60, 200) / 2
    plain = metrics_of_ranks(rank, (1, 10))
    for name, values in metrics_of_ranks(rank, (1, 10), np.arange(200)).items():
        assert np.array_equal(values, plain[name]), name


def test_an_oracle_has_one_and_a_random_order_what_theory_says():
    random = np.random.default_rng(5)
    n, relevant, k, requests = 40, 4, 10, 4_000
    request = np.repeat(np.arange(requests), relevant)
    oracle = metrics_of_ranks(np.tile(np.arange(1.0, relevant + 1), requests), (k,), request)
    for name in ("ndcg", "hit_rate", "recall", "mrr", "map"):
        assert (oracle[f"{name}@{k}"] == 1).all(), name
    drawn = np.concatenate([random.permutation(n)[:relevant] + 1.0 for _ in range(requests)])
    found = metrics_of_ranks(drawn, (k,), request)
    assert found["recall@10"].mean() == pytest.approx(k / n, abs=0.01)
    assert found["precision@10"].mean() == pytest.approx(relevant / n, abs=0.005)
    missed = np.prod([(n - k - i) / (n - i) for i in range(relevant)])
    assert found["hit_rate@10"].mean() == pytest.approx(1 - missed, abs=0.02)
    ideal = sum(1 / np.log2(place + 1) for place in range(1, relevant + 1))
    gain = sum(1 / np.log2(place + 1) for place in range(1, k + 1)) * relevant / n
    assert found["ndcg@10"].mean() == pytest.approx(gain / ideal, abs=0.01)


def test_ranks_of_several_targets_of_a_row():
    scores = np.array([[-np.inf, 3, 1, 2], [-np.inf, 5, 5, 0]], np.float32)
    rank, pessimistic = ranks(scores, np.array([1, 3, 2], np.int32), np.array([0, 0, 1]))
    assert rank.tolist() == [1, 2, 1.5]
    assert pessimistic.tolist() == [1, 2, 2]
