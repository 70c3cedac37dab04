"""Off-policy estimates against pencil, against the truth of enumerated lists, and refused where they would be guesses."""

from dataclasses import replace
from itertools import permutations
from typing import Any

import numpy as np
import pytest

from models.evaluation.off_policy import (
    WEIGHTINGS,
    Estimate,
    LoggedLists,
    Refused,
    effective_sample,
    estimates,
)

ESTIMATORS = ["dm", *(f"{kind}_{weighting}" for weighting in WEIGHTINGS for kind in ("ips", "snips", "dr"))]
FEW: Any = {"min_effective_sample": 0, "num_resamples": 10}


def pencil() -> LoggedLists:
    """Two lists of two places."""
    return LoggedLists(
        reward=np.array([[1.0, 0.0], [0.0, 1.0]]),
        logging=np.array([[0.5, 0.5], [0.5, 1.0]]),
        evaluated=np.array([[0.25, 0.5], [0.75, 1.0]]),
        logging_marginal=np.array([[0.5, 0.25], [0.5, 0.5]]),
        evaluated_marginal=np.array([[0.25, 0.25], [0.75, 0.5]]),
        predicted=np.array([[0.5, 0.25], [0.25, 0.5]]),
        expected=np.array([[0.375, 0.25], [0.375, 0.5]]),
        user=np.array([0, 1]),
    )


def test_weights_by_hand() -> None:
    lists = pencil()
    assert lists.weights("list").tolist() == [[0.5, 0.5], [1.5, 1.5]]
    assert lists.weights("cascade").tolist() == [[0.5, 0.5], [1.5, 1.5]]
    assert lists.weights("place").tolist() == [[0.5, 1], [1.5, 1]]
    assert lists.weights("place", clip=1.2).tolist() == [[0.5, 1], [1.2, 1]]
    deeper = replace(lists, evaluated=np.array([[0.25, 0.25], [0.75, 1.0]]))
    assert deeper.weights("cascade").tolist() == [[0.5, 0.25], [1.5, 1.5]]
    assert deeper.weights("list").tolist() == [[0.25, 0.25], [1.5, 1.5]]


def test_estimates_by_hand() -> None:
    found = estimates(pencil(), **FEW)
    assert list(found) == ESTIMATORS
    value = {name: estimate.value for name, estimate in found.items() if isinstance(estimate, Estimate)}
    assert value["dm"] == pytest.approx(0.375 + 0.375)
    assert value["ips_list"] == pytest.approx((0.5 * 1 + 1.5 * 1) / 2)
    assert value["ips_place"] == pytest.approx((0.5 * 1 + 1 * 1) / 2)
    assert value["snips_place"] == pytest.approx(0.5 / 2 + 1 / 2)
    assert value["snips_list"] == pytest.approx(0.5 / 2 + 1.5 / 2)
    # place 1: .375 + .5 (1 - .5) = .625, .375 + 1.5 (0 - .25) = 0; place 2: .25 - .25 = 0, .5 + (1 - .5) = 1
    assert value["dr_place"] == pytest.approx((0.625 + 0 + 0 + 1) / 2)
    assert found["ips_list"].effective_sample == pytest.approx(4 / 2.5)


def test_effective_sample_by_hand() -> None:
    assert effective_sample(np.ones((7, 2))) == 7
    assert effective_sample(np.array([[1.0, 1.0], [0.0, 1.0]])) == 1
    assert effective_sample(np.zeros((3, 1))) == 0


def probabilities(worth: np.ndarray) -> dict[tuple[int, ...], np.ndarray]:
    """Plackett and Luce's lists of two places, with the probability of each item given the places above."""
    share = np.exp(worth)
    return {
        (a, b): np.array([share[a] / share.sum(), share[b] / (share.sum() - share[a])])
        for a, b in permutations(range(len(worth)), 2)
    }


def marginals(lists: dict[tuple[int, ...], np.ndarray], num_items: int) -> np.ndarray:
    """[2, items], probability of each item at each place."""
    found = np.zeros((2, num_items))
    for shown, chances in lists.items():
        found[[0, 1], list(shown)] += chances.prod()
    return found


def simulated(num_lists: int, seed: int, error: float = 0.0) -> tuple[LoggedLists, float]:
    """Lists of a policy, rewards by item and place alone, predicted with an error; and the other policy's true reward."""
    rng = np.random.default_rng(seed)
    rate = np.array([[0.5, 0.4, 0.3, 0.2], [0.3, 0.25, 0.2, 0.1]])
    logging, evaluated = probabilities(np.zeros(4)), probabilities(np.array([1.0, 0.5, 0.0, -0.5]))
    kinds = list(logging)
    drawn = rng.choice(len(kinds), num_lists, p=[logging[kind].prod() for kind in kinds])
    shown = np.array(kinds)[drawn]
    places = np.array([0, 1])
    truth = sum(evaluated[kind].prod() * rate[places, kind].sum() for kind in kinds)
    own, other = marginals(logging, 4), marginals(evaluated, 4)
    guess = rate + error
    lists = LoggedLists(
        reward=(rng.random((num_lists, 2)) < rate[places, shown]).astype(np.float64),
        logging=np.array([logging[kind] for kind in kinds])[drawn],
        evaluated=np.array([evaluated[kind] for kind in kinds])[drawn],
        logging_marginal=own[places, shown],
        evaluated_marginal=other[places, shown],
        predicted=guess[places, shown],
        expected=np.tile((other * guess).sum(axis=1), (num_lists, 1)),
        user=np.arange(num_lists),
    )
    return lists, float(truth)


@pytest.mark.parametrize("error", [0.0, 0.2])
def test_estimates_meet_the_truth_and_a_wrong_prediction_misleads_the_direct_method_alone(
    error: float,
) -> None:
    lists, truth = simulated(40_000, seed=1, error=error)
    found = estimates(lists, num_resamples=200)
    for name, estimate in found.items():
        assert isinstance(estimate, Estimate), name
        assert estimate.low < estimate.value < estimate.high or name == "dm"
        expected = truth + 2 * error if name == "dm" else truth
        assert estimate.value == pytest.approx(expected, abs=0.02), name
    spread = {name: found[name].high - found[name].low for name in found}  # type: ignore[union-attr]
    assert spread["ips_place"] < spread["ips_cascade"] < spread["ips_list"]
    assert spread["dr_list"] < spread["ips_list"] or error


def test_a_number_is_refused_where_few_lists_count_or_others_are_missing() -> None:
    lists, _ = simulated(150, seed=2)
    found = estimates(lists, num_resamples=10)
    assert {name for name, estimate in found.items() if isinstance(estimate, Refused)} == {
        f"{kind}_{weighting}" for kind in ("ips", "snips", "dr") for weighting in ("list", "cascade")
    }
    assert isinstance(found["ips_list"], Refused)
    assert "effective sample" in found["ips_list"].reason
    nothing = np.zeros_like(lists.evaluated)
    found = estimates(replace(lists, evaluated=nothing, evaluated_marginal=nothing), num_resamples=10)
    assert isinstance(found["snips_place"], Refused)
    assert found["snips_place"].reason.startswith("no common support: the mean weight is 0 instead of 1")
    lists, _ = simulated(2000, seed=3)
    sure = np.ones_like(lists.logging)  # nothing was drawn, and half of the lists differ
    same = np.repeat((np.arange(2000) % 2 == 0)[:, None], 2, axis=1).astype(float)
    found = estimates(
        replace(lists, logging=sure, logging_marginal=sure, evaluated=same, evaluated_marginal=same),
        num_resamples=10,
    )
    assert isinstance(found["dm"], Estimate)
    for name in ESTIMATORS[1:]:
        refused = found[name]
        assert isinstance(refused, Refused)
        assert "no common support: the mean weight is 0.5" in refused.reason


@pytest.mark.parametrize(
    ("name", "wrong"),
    [("logging", 0.0), ("logging_marginal", 1.5), ("evaluated", -0.1), ("evaluated", np.nan)],
)
def test_what_is_no_probability_is_refused(name: str, wrong: float) -> None:
    values = getattr(pencil(), name).copy()
    values[1, 0] = wrong
    with pytest.raises(ValueError, match=rf"^{name}: received {wrong}.*\(1 of 4\)"):
        replace(pencil(), **{name: values})
