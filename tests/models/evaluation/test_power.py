"""Power of an experiment by pencil, and by simulated A/A and A/B tests."""

import numpy as np
import pytest
from scipy.stats import norm

from models.evaluation.metrics import Float64
from models.evaluation.power import NightlyVariance

NIGHTS, USERS = 7, 300
BETWEEN, WITHIN = 0.04, 0.09


def test_components_by_pencil():
    """Users with 1, 3 and 5, 7 at two of two nights: means 2 and 6, mean 4; MSW = (2 + 2) / 2 = 2, MSB = 2 (4 + 4) / 1 = 16.

    n0 = (4 - 8 / 4) / 1 = 2: between (16 - 2) / 2 = 7. All come each night: activity 1.
    At two nights v = 7 (1 / 2 + 1 - 1 / 2) + 2 / 2 = 8, at one night 7 + 2.
    """
    found = NightlyVariance.of(np.array([1.0, 3, 5, 7]), np.array([0, 0, 1, 1]), 2)
    assert (found.mean, found.between, found.within) == (4, 7, 2)
    assert (found.rate, found.activity, found.users) == (1, 1, 2)
    assert (found.of_mean(2), found.of_mean(1)) == (8, 9)


def test_effect_and_users_by_pencil():
    """v = 8: (1.95996 + .84162) sqrt(8 (2 + 2) / 100) = 1.58482; by the rule of thumb 16 * 8 / 1.58482^2 = 51 users per arm."""
    found = NightlyVariance(4, 7, 2, 1, 1, 2, 2)
    effect = found.smallest_effect(100, 2)
    assert effect == pytest.approx(1.58482, abs=1e-5)
    assert found.users_needed(effect * 1.0001, 2) == 100
    assert found.users_needed(effect / 2, 2) == pytest.approx(400, abs=1)
    assert found.smallest_effect(100, 2, share=0.1) == pytest.approx(effect * (1 / 0.36) ** 0.5)


def test_one_night_of_independent_users_is_the_textbook_s_sample_size():
    """A difference of half a standard deviation: 63 users per arm at 80 %, 62.79 unrounded, by the normal distribution.

    The chance of a call by scipy, of that difference with arms of 63, is 80 % then.
    """
    found = NightlyVariance(0, 1, 0, 1, 1, 2, 1)
    assert found.users_needed(0.5, 1) == 126
    assert found.smallest_effect(2 * 62.79, 1) == pytest.approx(0.5, abs=5e-5)
    call = norm.sf(norm.isf(0.025) - 0.5 / (2 / 62.79) ** 0.5)
    assert call == pytest.approx(0.8, abs=1e-4)


def test_nights_by_pencil():
    """v = 7 + 2 / D at rate and activity 1, so that 100 users need D = 2 nights for 1.58482, as above.

    Its floor of 7 leaves sqrt(7 / 8) * 1.58482 = 1.48246 that no number of nights shows.
    """
    found = NightlyVariance(4, 7, 2, 1, 1, 2, 2)
    assert found.nights_needed(1.58483, 100) == 2
    assert found.nights_needed(1.5848, 100) == 3
    assert found.nights_needed(1.7, 100) == 1, "9 (2 + 2) / 100 and 2.80159 make 1.68095"
    assert found.nights_needed(1.4824, 100) is None
    assert found.nights_needed(1.4826, 100) == pytest.approx(1480, rel=0.1)
    assert found.nights_needed(1.58483 * 3.08302 / 2.80159, 100, comparisons=2) == 2, "2.24140 + .84162"
    effect = found.smallest_effect(100, 5, share=0.1)
    assert found.nights_needed(effect * 1.000001, 100, share=0.1) == 5


def test_one_value_per_user_promises_nothing_of_further_nights():
    found = NightlyVariance.of(np.array([1.0, 2, 3]), np.arange(3), 1)
    assert (found.between, found.within) == (1, 0)
    assert found.of_mean(100) == pytest.approx(1, rel=0.01)


def test_nonsense_is_refused():
    found = NightlyVariance(4, 7, 2, 1, 1, 2, 2)
    with pytest.raises(ValueError, match="values of 1 users"):
        NightlyVariance.of(np.ones(2), np.zeros(2, np.int64), 2)
    with pytest.raises(ValueError, match=r"0\.5 nights"):
        found.of_mean(0.5)
    with pytest.raises(ValueError, match="share of 1"):
        found.smallest_effect(10, 1, share=1.0)
    with pytest.raises(ValueError, match="effect of 0"):
        found.users_needed(0, 1)


def simulated(random: np.random.Generator, tests: int, users: int, nights: int) -> tuple[Float64, Float64]:
    """[tests, users] sums and numbers of values: users' own chances of a value, effects between and within users."""
    chance = random.beta(2, 3, (tests, users))
    count = random.binomial(nights, chance).astype(np.float64)
    own = random.normal(0.3, BETWEEN**0.5, (tests, users))
    return count * own + random.normal(0, 1, (tests, users)) * np.sqrt(count * WITHIN), count


def z_of(sums: Float64, counts: Float64) -> tuple[Float64, Float64]:
    """[tests] mean over user-nights and its variance, users as clusters."""
    mean = sums.sum(axis=1) / counts.sum(axis=1)
    residual = sums - mean[:, None] * counts
    return mean, (residual**2).sum(axis=1) / counts.sum(axis=1) ** 2


def test_the_variance_is_estimated_from_the_nights_before():
    """Users without a value are not seen: 1 - 12 / 110 of them are, as E[(1 - chance)^7] = B(2, 10) / B(2, 3)."""
    random, number = np.random.default_rng(1), 40_000
    chance, own = random.beta(2, 3, number), random.normal(0.3, BETWEEN**0.5, number)
    user, _ = np.nonzero(random.random((number, NIGHTS)) < chance[:, None])
    found = NightlyVariance.of(own[user] + random.normal(0, WITHIN**0.5, len(user)), user, NIGHTS)
    assert (found.between, found.within) == pytest.approx((BETWEEN, WITHIN), rel=0.05)
    seen = 1 - 12 / 110
    assert (found.users, found.rate) == pytest.approx((seen * number, 0.4 / seen), rel=0.02)
    # E[m^2] / E[m]^2 of those seen: (7 * 6 * E[chance^2] + 7 * .4) seen / (7 * .4)^2, E[chance^2] = .2
    squares = (7 * 6 * 0.2 + 7 * 0.4) * seen / (7 * 0.4) ** 2
    assert found.activity == pytest.approx((squares - seen / 2.8) * 7 / 6, rel=0.02)


@pytest.mark.parametrize("nights", [2, NIGHTS, 20])
def test_400_simulated_experiments(nights: int):
    """A/A tests call a difference in 5 %, A/B tests with the smallest effect in 80 %, each within three standard errors."""
    planned = NightlyVariance(0.3, BETWEEN, WITHIN, 0.4, 1.25, USERS, NIGHTS)
    effect = planned.smallest_effect(2 * USERS, nights)
    random = np.random.default_rng(nights)
    (one, of_one), (other, of_other) = (z_of(*simulated(random, 400, USERS, nights)) for _ in range(2))
    spread = np.sqrt(of_one + of_other)
    for true, expected in ((0.0, 0.05), (effect, 0.8)):
        called = np.mean(np.abs(one - other + true) > 1.959964 * spread)
        assert called == pytest.approx(expected, abs=3 * (expected * (1 - expected) / 400) ** 0.5)
