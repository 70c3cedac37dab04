import math
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.evaluation.bootstrap import (
    PairedDifference,
    UserMeans,
    bootstrap,
    bootstrap_p,
    draws,
    holm,
    interval,
    over_seeds,
    paired_difference,
    wilcoxon_p,
)

NAN = math.nan


def of_columns(table: np.ndarray) -> UserMeans:
    """Users with one target each; a metric per column."""
    return UserMeans.of(
        {str(column): table[:, column] for column in range(table.shape[1])}, np.arange(len(table)), len(table)
    )


def test_means_over_targets_and_over_users_by_pencil():
    # user 0 has targets 1, 0, 0; user 2 has one target 1; user 1 has none
    users = UserMeans.of({"m": np.array([1.0, 1.0, 0.0, 0.0])}, np.array([0, 2, 0, 0]), 3)
    assert users.over_targets.tolist() == [0.5]
    assert users.over_users == pytest.approx([(1 / 3 + 1) / 2])
    assert users.weights.tolist() == [[3, 0, 1]]
    assert users.means[0] == pytest.approx([1 / 3, NAN, 1], nan_ok=True)


def test_nan_is_no_target_of_its_metric():
    values = {"a": np.array([1.0, 0.0, 1.0]), "b": np.array([NAN, 1.0, 0.0]), "c": np.full(3, NAN)}
    users = UserMeans.of(values, np.array([0, 1, 1]), 2)
    assert users.over_targets == pytest.approx([2 / 3, 1 / 2, NAN], nan_ok=True)
    assert users.over_users == pytest.approx([3 / 4, 1 / 2, NAN], nan_ok=True)
    resampled = bootstrap(users, 50)
    assert not np.isnan(resampled[:, 0]).any()
    assert np.isnan(resampled[:, 1]).any()  # user 0 drawn twice has no target of b
    assert np.isnan(resampled[:, 2]).all()
    low, high = interval(resampled)
    assert (low[1], high[1]) == (0.5, 0.5)
    assert np.isnan([low[2], high[2]]).all()


def test_weights_by_pencil():
    values = {"plain": np.array([1.0, 0.0, 1.0]), "weighted": np.array([1.0, 0.0, 1.0])}
    users = UserMeans.of(values, np.array([0, 0, 1]), 2, {"weighted": np.array([0.5, 0.25, 0.25])})
    assert users.over_targets == pytest.approx([2 / 3, 0.75 / 1.0])
    assert users.over_users == pytest.approx([(1 / 2 + 1) / 2, (2 / 3 + 1) / 2])
    found = set(np.round(bootstrap(users, 200)[:, 1], 6))
    assert found == {round(2 / 3, 6), 0.75, 1.0}  # user 0 twice, both, user 1 twice


def test_draws_are_multinomial_counts():
    drawn = np.concatenate([times for _, times in draws(11, 5000, 1)])
    assert drawn.shape == (5000, 11)
    assert (drawn.sum(axis=1) == 11).all()
    assert drawn.mean(axis=0) == pytest.approx(np.ones(11), abs=0.06)
    assert drawn.var() == pytest.approx(11 * (1 / 11) * (10 / 11), rel=0.05)
    assert np.corrcoef(drawn[:, 0], drawn[:, 1])[0, 1] == pytest.approx(-1 / 10, abs=0.05)


def test_bootstrap_equals_drawing_users_one_by_one():
    random = np.random.default_rng(0)
    user, value, weight = random.integers(0, 7, 40), random.random(40), random.random(40)
    users = UserMeans.of({"a": value, "b": value}, user, 7, {"b": weight})
    got = bootstrap(users, 30, seed=4)
    for _, times in draws(7, 30, 4):
        for row, counts in zip(got, times, strict=True):
            chosen = [
                target
                for who, count in enumerate(counts)
                for target in np.flatnonzero(user == who).tolist() * int(count)
            ]
            own = [np.average(value[user == who]) for who, count in enumerate(counts) for _ in range(count)]
            assert row[0] == pytest.approx(value[chosen].mean())
            assert row[1] == pytest.approx(np.average(value[chosen], weights=weight[chosen]))
            assert row[2] == pytest.approx(np.mean(own))


def test_bootstrap_draws_whole_users():
    # ten users: user 0 owns 91 of 100 targets, all hits. Resamples without it have mean 0: (9/10)**10 of them.
    user = np.concatenate([np.zeros(91, int), np.arange(1, 10)])
    resampled = bootstrap(UserMeans.of({"hit": (user == 0).astype(float)}, user, 10), 4000, seed=3)[:, 0]
    assert abs((resampled == 0).mean() - 0.9**10) < 0.04
    assert resampled.max() > 0.97


def test_the_bootstrap_of_a_mean_has_its_standard_error():
    values = np.random.default_rng(0).random((997, 1))
    resampled = bootstrap(of_columns(values), 3000, seed=0)
    assert resampled[:, 0].std() == pytest.approx(values.std() / np.sqrt(997), rel=0.06)
    low, high = interval(resampled)
    assert low[0] < values.mean() < high[0]
    assert high[0] - low[0] == pytest.approx(2 * 1.96 * values.std() / np.sqrt(997), rel=0.1)


def test_intervals_are_close_to_scipys():
    from scipy.stats import bootstrap as reference

    values = np.random.default_rng(5).exponential(size=(400, 1))
    expected = reference(
        (values[:, 0],), np.mean, n_resamples=4000, method="percentile", rng=0
    ).confidence_interval
    low, high = interval(bootstrap(of_columns(values), 4000, seed=1))
    assert (low[0], high[0]) == pytest.approx((expected.low, expected.high), abs=0.01)


def test_95_percent_intervals_cover_the_truth_19_times_of_20():
    # each metric is a log of its own: users with 1 to 5 targets and a taste of their own; in truth half are hits
    random, simulations = np.random.default_rng(7), 2000
    user = np.repeat(np.arange(150), random.integers(1, 6, 150))
    taste = random.beta(2, 2, (simulations, 150))
    hits = (random.random((simulations, len(user))) < taste[:, user]).astype(float)
    logs = UserMeans.of({str(log): column for log, column in enumerate(hits)}, user, 150)
    low, high = interval(bootstrap(logs, 600))
    for ends in np.split(np.array([low, high]), 2, axis=1):  # over targets, over users
        covered = ((ends[0] <= 0.5) & (ends[1] >= 0.5)).mean()
        assert 0.93 <= covered <= 0.97  # the standard error of the share is .5 %


def test_the_same_seed_gives_the_same_bits_and_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch):
    users = of_columns(np.random.default_rng(0).random((53, 3)))
    whole = bootstrap(users, 200, seed=5)
    assert (whole == bootstrap(users, 200, seed=5)).all()
    assert not (whole == bootstrap(users, 200, seed=6)).any()
    for name, size in (("_CHUNK_DRAWS", 7 * 53), ("_DRAW_CELLS", 3 * 53), ("_BLOCK_CELLS", 256 * 10)):
        monkeypatch.setattr(f"models.evaluation.bootstrap.{name}", size)
        assert bootstrap(users, 200, seed=5) == pytest.approx(whole)
    monkeypatch.setattr("models.evaluation.bootstrap._EXACT_CELLS", 1)
    assert of_columns(np.zeros((2, 1))).means.dtype == np.float32


def test_paired_difference_says_better_worse_or_cannot_tell():
    random = np.random.default_rng(2)
    base = random.random(499)
    noisy = base + random.normal(0, 0.2, 499)
    resampled = bootstrap(of_columns(np.stack([base + 0.01, base, noisy], axis=1)), 1000)[:, :3]
    lead = paired_difference(0.01, resampled[:, 0] - resampled[:, 1])
    assert (lead.verdict, lead.share) == ("better", 1.0)
    assert lead.low == pytest.approx(0.01)
    assert paired_difference(-0.01, resampled[:, 1] - resampled[:, 0]).verdict == "worse"
    assert paired_difference(0.0, resampled[:, 2] - resampled[:, 1]).verdict == "no significant difference"
    nothing = paired_difference(0.0, resampled[:, 1] - resampled[:, 1])
    assert (nothing.verdict, nothing.share) == ("no significant difference", 0.5)
    less = paired_difference(0.01, resampled[:, 0] - resampled[:, 1], lower_is_better=True)
    assert (less.verdict, less.share, less.low) == ("worse", 0.0, lead.low)


def test_bootstrap_p_by_pencil():
    # moved by .2: -.3, -.1, 0, .1, .3; two of five are as far from 0 as .2 or farther
    five = np.array([-0.1, 0.1, 0.2, 0.3, 0.5])
    assert bootstrap_p(0.2, np.tile(five, 200)) == pytest.approx(401 / 1001)
    # below 1,000 the count has large steps: the tail of a normal distribution instead
    assert bootstrap_p(0.2, five) == pytest.approx(math.erfc(0.2 / five.std(ddof=1) / math.sqrt(2)))
    assert bootstrap_p(0.0, np.zeros(9)) == 1.0
    assert bootstrap_p(0.5, np.full(99, 0.5)) == pytest.approx(0.01)
    # none of the four is as far off as .2, 2 / sqrt(2 / 3) of their standard deviations away: the normal tail
    tail = bootstrap_p(0.2, np.array([0.1, 0.2, 0.2, 0.3]))
    assert tail == pytest.approx(math.erfc(0.2 / math.sqrt(0.02 / 3) / math.sqrt(2)))
    assert bootstrap_p(0.9, np.array([0.8, 0.9, 0.9, 1.0])) == 1e-4
    assert math.isnan(bootstrap_p(NAN, np.full(3, NAN)))


def test_wilcoxon_equals_scipy_and_bears_zeros_and_nan():
    from scipy.stats import wilcoxon

    random = np.random.default_rng(0)
    one = random.random(80)
    other = one + random.normal(0.02, 0.1, 80)
    assert wilcoxon_p(one, other) == pytest.approx(wilcoxon(one, other).pvalue, rel=1e-3)
    padded = [np.concatenate([each, [0.3, 0.4, NAN, 1]]) for each in (one, other)]
    padded[1][-1] = NAN  # two equal pairs, two of which one half is missing
    assert wilcoxon_p(*padded) == wilcoxon_p(one, other)
    assert wilcoxon_p(one, one) == 1.0
    assert wilcoxon_p(np.array([NAN]), np.array([1.0])) == 1.0


def test_wilcoxon_by_pencil():
    # five differences, all positive: of 2**5 assignments of signs the two extreme ones, 2 / 32
    assert wilcoxon_p(np.array([1.0, 2, 3, 4, 5]), np.zeros(5)) == pytest.approx(0.0625)


def test_holm_by_pencil():
    # .01 * 4, .02 * 3 = .06, .03 * 2 = .06, .5 * 1
    assert holm([0.02, 0.5, 0.01, 0.03]) == pytest.approx([0.06, 0.5, 0.04, 0.06])
    assert holm([0.6, 0.4]) == pytest.approx([0.8, 0.8])  # no adjusted p below one before it
    assert holm([0.01, NAN, 0.04]) == pytest.approx([0.02, NAN, 0.04], nan_ok=True)
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_between_no_correction_and_bonferroni(p_values: list[float]):
    for p, adjusted in zip(p_values, holm(p_values), strict=True):
        assert p <= adjusted <= min(1, p * len(p_values)) + 1e-12


def test_without_a_difference_one_paired_test_in_twenty_finds_one():
    random, simulations = np.random.default_rng(11), 400
    users = of_columns(random.random((120, 2 * simulations)))
    resampled = bootstrap(users, 400)
    found = np.zeros(3)
    for one in range(0, 2 * simulations, 2):
        difference = float(users.over_targets[one] - users.over_targets[one + 1])
        column = resampled[:, one] - resampled[:, one + 1]
        found += (
            bootstrap_p(difference, column) < 0.05,
            paired_difference(difference, column).verdict != "no significant difference",
            wilcoxon_p(users.means[one], users.means[one + 1]) < 0.05,
        )
    # the standard error of a share of 5 % over 400 simulations is 1.1 %
    assert (found / simulations > 0.02).all()
    assert (found / simulations < 0.08).all()


def test_holm_keeps_the_chance_of_any_wrong_finding_at_5_percent():
    random, simulations = np.random.default_rng(13), 1000
    users = of_columns(random.random((100, 6 * simulations)))
    resampled = bootstrap(users, 400)
    wrong = uncorrected = 0
    for first in range(0, 6 * simulations, 6):
        p_values = [
            bootstrap_p(
                float(users.over_targets[first] - users.over_targets[other]),
                resampled[:, first] - resampled[:, other],
            )
            for other in range(first + 1, first + 6)
        ]
        wrong += min(holm(p_values)) < 0.05
        uncorrected += min(p_values) < 0.05
    # five comparisons; the standard error of a share of 5 % over 1000 simulations is .7 %
    assert wrong / simulations < 0.05 + 2 * 0.007
    assert uncorrected / simulations > 0.12


def test_over_seeds_by_pencil():
    runs = [{"a": 1.0, "b": 2.0}, {"a": 3.0, "b": 2.0}, {"a": 5.0, "b": 2.0, "c": 1.0}]
    assert over_seeds(runs) == {"a": (3.0, 2.0), "b": (2.0, 0.0)}
    mean, spread = over_seeds(runs[:1])["a"]
    assert mean == 1.0
    assert math.isnan(spread)
    assert over_seeds([]) == {}


def test_ten_thousand_resamples_of_all_movielens_users_take_seconds():
    users = of_columns(np.random.default_rng(0).random((6040, 12)))
    began = time.process_time()
    bootstrap(users, 10_000)
    assert time.process_time() - began < 20  # about one


def test_a_reversed_difference_is_the_second_minus_the_first():
    """By pencil: ends change places and signs, the share is the other system's, better becomes worse."""
    one = PairedDifference(0.25, 0.125, 0.5, 1.0, "better", 0.01, 0.02, 0.03, 0.04)
    assert one.reversed() == PairedDifference(-0.25, -0.5, -0.125, 0.0, "worse", 0.01, 0.02, 0.03, 0.04)
    assert one.reversed().reversed() == one
    unsure = PairedDifference(0.25, -0.25, 0.5, 0.75, "no significant difference")
    assert unsure.reversed().verdict == "no significant difference"
