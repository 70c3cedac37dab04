import math
from collections.abc import Iterator

import numpy as np
import pytest

from models.evaluation.bootstrap import NO_DIFFERENCE, PairedDifference
from models.evaluation.comparison import SystemComparison
from models.evaluation.metrics import metrics_of_ranks

USER = np.array([7, 7, 7, 3])
RANKS = {"one": np.array([1.0, 3.0, 11.0, 1.0]), "other": np.array([2.0, 11.0, 11.0, 11.0])}
OF_TARGETS = tuple(
    f"{name}@{k}" for k in (1, 10) for name in ("ndcg", "hit_rate", "recall", "precision", "mrr", "map")
)


@pytest.fixture(scope="module")
def judged() -> SystemComparison:
    values = ((name, metrics_of_ranks(rank, (1, 10))) for name, rank in RANKS.items())
    return SystemComparison.of(values, USER, resamples=400, seed=0)


def of_columns(
    columns: dict[str, np.ndarray], resamples: int = 300, seed: int = 0, name: str = "m"
) -> SystemComparison:
    """Systems with one metric, a target per user."""
    num = len(next(iter(columns.values())))
    return SystemComparison.of(
        ((system, {name: column}) for system, column in columns.items()), np.arange(num), resamples, seed
    )


def test_values_by_pencil(judged: SystemComparison):
    assert (judged.num_users, judged.num_targets) == (2, 4)
    values = judged.values("one")
    assert values["hit_rate@1"] == 0.5
    assert values["hit_rate@10"] == values["recall@10"] == 0.75
    assert values["precision@10"] == pytest.approx(0.075)
    assert values["ndcg@10"] == pytest.approx((1 + 0.5 + 0 + 1) / 4)
    assert values["mrr@10"] == values["map@10"] == pytest.approx((1 + 1 / 3 + 0 + 1) / 4)
    assert values["user_ndcg@10"] == pytest.approx((1 + 1.5 / 3) / 2)
    assert values["user_hit_rate@1"] == pytest.approx((1 + 1 / 3) / 2)
    assert tuple(values) == judged.names == OF_TARGETS + tuple(f"user_{name}" for name in OF_TARGETS)


def test_users_by_pencil(judged: SystemComparison):
    own = judged.of_users("other")
    assert judged.users.tolist() == [3, 7]
    assert own["targets"].tolist() == [1, 3]
    assert own["hit_rate@10"] == pytest.approx([0, 1 / 3])
    assert tuple(own) == ("targets", *OF_TARGETS)


def test_intervals_are_the_extremes_of_two_users(judged: SystemComparison):
    # a resample has user 3 twice (hit rate 1), user 7 twice (1/3), or both ((1 + 1) / 4 targets)
    assert judged.intervals("one")["hit_rate@1"] == pytest.approx([1 / 3, 1])
    assert set(np.round(judged.resampled[:, 0, judged.names.index("hit_rate@1")], 6)) == {0.333333, 0.5, 1.0}


def test_differences_are_paired(judged: SystemComparison):
    found = judged.paired("one", "other")
    assert found["hit_rate@10"].difference == pytest.approx(0.5)
    assert found["hit_rate@10"].low == pytest.approx(1 / 3)  # user 7 alone: 2/3 - 1/3
    assert found["hit_rate@10"].high == pytest.approx(1)
    assert found["hit_rate@10"].verdict == "better"
    assert judged.paired("other", "one")["hit_rate@10"].verdict == "worse"
    assert judged.paired("one", "one")["ndcg@10"].verdict == NO_DIFFERENCE


def test_a_metric_may_weigh_targets_and_be_undefined_for_some():
    values = {
        "plain": np.array([1.0, 0, 1, 0]),
        "weighted": np.array([1.0, 0, 1, 0]),
        "rare": np.array([2.0, *[np.nan] * 3]),
    }
    judged = SystemComparison.of([("s", values)], USER, 50, 0, {"weighted": np.array([4.0, 1, 2, 1])})
    assert judged.values("s")["weighted"] == pytest.approx(6 / 8)
    assert judged.values("s")["user_weighted"] == pytest.approx((6 / 7 + 0) / 2)
    assert judged.values("s")["rare"] == judged.values("s")["user_rare"] == 2.0
    assert judged.intervals("s")["rare"] == [2.0, 2.0]
    assert judged.of_users("s")["rare"] == pytest.approx([np.nan, 2.0], nan_ok=True)


def test_users_may_be_any_ids():
    judged = SystemComparison.of(
        [("s", {"m": np.arange(4.0)})], np.array(["b", "a", "b", "b"], object), 10, 0
    )
    assert judged.users.tolist() == ["a", "b"]
    assert judged.of_users("s")["m"] == pytest.approx([1, 5 / 3])


def test_only_one_systems_values_are_asked_for_at_a_time():
    alive: list[str] = []

    class Values(dict[str, np.ndarray]):
        def __init__(self, name: str) -> None:
            super().__init__(m=np.arange(4.0))
            self.name = name
            alive.append(name)

        def __del__(self) -> None:
            alive.remove(self.name)

    def systems() -> Iterator[tuple[str, Values]]:
        for name in ("a", "b", "c"):
            assert len(alive) <= 1  # the one before is let go of when the next is there
            yield name, Values(name)

    assert SystemComparison.of(systems(), USER, 10, 0).systems == ("a", "b", "c")


def test_a_system_with_the_same_values_never_differs():
    column = np.random.default_rng(0).random(37)
    judged = of_columns({"a": column, "b": column.copy()})
    assert (judged.resampled[:, 0] == judged.resampled[:, 1]).all()
    found = judged.compared("a")["b"]["m"]
    assert (found.difference, found.verdict, found.share) == (0, NO_DIFFERENCE, 0.5)
    assert (found.p_value, found.p_holm, found.p_bootstrap, found.p_bootstrap_holm) == (
        1,
        1,
        1,
        1,
    )


def p_values(paired: PairedDifference) -> dict[str, float]:
    return {name: value for name, value in vars(paired).items() if name.startswith("p_")}


def test_compared_adds_p_values_to_paired():
    random = np.random.default_rng(4)
    base = random.random(200)
    judged = of_columns({"a": base + 0.1, "b": base, "c": base + random.normal(0.1, 0.5, 200)})
    table = judged.compared("a")
    assert list(table) == ["b", "c"]
    assert table["b"]["m"].verdict == "better"
    p = p_values(table["b"]["m"])
    assert p["p_bootstrap"] <= 1 / 301  # no resample is as far off
    assert p["p_bootstrap_holm"] == pytest.approx(2 * p["p_bootstrap"])
    assert p["p_value"] < 1e-10
    assert table["c"]["m"].verdict == NO_DIFFERENCE
    for other in ("b", "c"):
        for name, row in judged.paired("a", other).items():
            assert {**vars(table[other][name]), **vars(row)} == vars(table[other][name])
    alone = judged.compared("b", ["a"])["a"]["user_m"]
    assert (alone.verdict, alone.p_value) == ("worse", alone.p_holm)


def test_a_doubtful_difference_among_many_is_not_told():
    random = np.random.default_rng(8)
    base = random.random(150)
    doubtful = base - random.normal(0, 0.3, 150)
    doubtful += (base - doubtful).mean() - 0.058  # a lead of 2.4 standard errors
    others = {f"null {number}": base + random.normal(0, 0.3, 150) for number in range(6)}
    judged = of_columns({"a": base, "b": doubtful, **others}, resamples=2000)
    alone, among = judged.compared("a", ["b"])["b"]["m"], judged.compared("a")["b"]["m"]
    assert alone.verdict == "better"
    assert among.low > 0
    p = p_values(among)
    assert 0.05 < p["p_bootstrap_holm"] <= 7 * p["p_bootstrap"]
    assert among.verdict == NO_DIFFERENCE


def test_less_is_better_of_some_metrics():
    low, high = np.linspace(0, 1, 50), np.linspace(1, 2, 50)
    for name, verdict in (("calibration@10", "worse"), ("novelty@10", "better")):
        found = of_columns({"a": high, "b": low}, name=name).compared("a")["b"]
        assert found[name].verdict == found[f"user_{name}"].verdict == verdict
        assert found[name].difference == pytest.approx(1)


def test_of_one_user_nothing_can_be_told():
    judged = SystemComparison.of(
        [("a", {"m": np.ones(3)}), ("b", {"m": np.zeros(3)})], np.zeros(3, int), 20, 0
    )
    assert judged.paired("a", "b")["m"].verdict == NO_DIFFERENCE


def test_what_does_not_fit_is_refused(judged: SystemComparison):
    with pytest.raises(ValueError, match="expected those of 'a': m"):
        SystemComparison.of([("a", {"m": np.ones(4)}), ("b", {"n": np.ones(4)})], USER, 10, 0)
    with pytest.raises(ValueError, match="no system"):
        SystemComparison.of([], USER, 10, 0)
    with pytest.raises(ValueError, match="expected one of one, other"):
        judged.values("third")
    assert math.isfinite(judged.values("one")["ndcg@10"])
