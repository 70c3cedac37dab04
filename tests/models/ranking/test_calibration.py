"""Probabilities from scores: by pencil, and against what drew the labels."""

import numpy as np
import pytest
from numpy.typing import NDArray

from models.evaluation.metrics import Float64
from models.histories import Float32, Int64
from models.ranking.calibration import Calibration, Delivered, cross_fitted, level_weights
from models.ranking.calibration_quality import quality


def without_level(scores: Float32, taken: NDArray[np.bool_], user: Int64) -> Delivered:
    return Delivered(scores, taken, user, np.zeros((len(scores), 0), np.float32))


def test_pools_adjacent_violators_by_pencil() -> None:
    scores = np.array([0, 1, 2, 3], np.float32)
    wanted = np.array([False, True, False, True])
    found = Calibration.fit(scores, wanted)(scores)
    assert found == pytest.approx([0, 0.5, 0.5, 1]), (
        "the two in the middle are out of order: they share their mean"
    )


def test_order_is_kept_and_what_lies_beyond_takes_the_nearest() -> None:
    random = np.random.default_rng(0)
    scores = random.normal(size=500).astype(np.float32)
    calibration = Calibration.fit(scores, random.random(500) < 1 / (1 + np.exp(-scores)))
    found = calibration(np.sort(scores))
    assert (np.diff(found) >= 0).all()
    assert calibration(np.array([-99, 99], np.float32)).tolist() == [found[0], found[-1]]


def test_it_finds_the_probability_that_drew_the_labels() -> None:
    random = np.random.default_rng(1)
    scores = random.normal(size=40_000).astype(np.float32)
    truth = 1 / (1 + np.exp(-2 * scores))
    wanted = random.random(len(scores)) < truth
    found = cross_fitted(without_level(scores, wanted, np.arange(len(scores)) // 10), 0)
    assert np.abs(found - truth).mean() < 0.02
    measured = quality(found, wanted)
    assert measured.calibration_error < 0.01
    assert measured.log_loss == pytest.approx(quality(truth.astype(np.float32), wanted).log_loss, abs=0.005)


def test_quality_by_pencil() -> None:
    measured = quality(np.array([0.25, 0.5, 0.75], np.float32), np.array([False, True, True]))
    assert measured.log_loss == pytest.approx(-(np.log(0.75) + np.log(0.5) + np.log(0.75)) / 3)
    assert measured.auc == 1
    assert measured.calibration_error == pytest.approx((0.25 + 0.5 + 0.25) / 3)
    assert [row.candidates for row in measured.reliability] == [1, 1, 1]
    assert measured.mean_probability == pytest.approx(0.5)
    assert measured.expected_per_hit == pytest.approx(1.5 / 2)


def test_each_half_of_the_users_is_judged_by_the_other() -> None:
    """Labels that only a function fitted on the same rows could know look like chance."""
    random = np.random.default_rng(2)
    scores = np.linspace(0, 1, 400).astype(np.float32)
    wanted = random.random(400) < 0.5
    found = quality(cross_fitted(without_level(scores, wanted, np.arange(400)), 0), wanted)
    assert found.log_loss > quality(Calibration.fit(scores, wanted)(scores), wanted).log_loss
    assert found.log_loss > np.log(2) - 0.01


def lists_of(users: int, seed: int) -> tuple[Delivered, Float64]:
    """Lists of 10 whose scores have a level of their own that says nothing, and the true probabilities.

    Users differ a hundredfold in how much they take; their one feature says how much, with an error.
    """
    random = np.random.default_rng(seed)
    active = random.normal(-4, 1.2, users)
    score = random.normal(0, 1, (users, 10))
    truth = 1 / (1 + np.exp(-(active[:, None] + 1.5 * score)))
    shift = 0.8 * active + random.normal(0, 0.1, users)
    feature = np.repeat(active + 4 + random.normal(0, 0.1, users), 10)[:, None].astype(np.float32)
    scores = (score - shift[:, None]).astype(np.float32).ravel()
    taken = random.random((users, 10)) < truth
    return Delivered(scores, taken.ravel(), np.repeat(np.arange(users), 10), feature), truth.ravel()


def test_probabilities_hold_for_users_who_differ_and_are_new() -> None:
    seen, _ = lists_of(20_000, 0)
    new, truth = lists_of(20_000, 1)
    weights = level_weights(seen)
    found = Calibration.fit(seen.scores(weights), seen.taken)(new.scores(weights))
    measured = quality(found, new.taken)
    assert measured.calibration_error <= min(0.01, measured.mean_probability / 10)
    assert measured.expected_per_hit == pytest.approx(1, abs=0.1)
    third = np.digitize(new.level[:, 0], np.quantile(new.level[:, 0], [1 / 3, 2 / 3]))
    for part in range(3):
        assert found[third == part].sum() == pytest.approx(truth[third == part].sum(), rel=0.1)
    plain = Calibration.fit(seen.score, seen.taken)(new.score)
    assert measured.log_loss < quality(plain, new.taken).log_loss - 0.01
    assert plain[third == 0].sum() > 2 * truth[third == 0].sum(), "scores alone promise too much to the idle"
    crossed = quality(cross_fitted(seen, 0), seen.taken)
    assert crossed.calibration_error <= min(0.01, crossed.mean_probability / 10)


def test_lists_that_say_nothing_keep_their_scores() -> None:
    seen, _ = lists_of(50, 0)
    nothing = Delivered(seen.score, np.zeros(500, bool), seen.user, seen.level)
    assert level_weights(nothing).tolist() == [0]
    upside_down = Delivered(seen.score, seen.score < np.median(seen.score), seen.user, 0 * seen.level)
    assert level_weights(upside_down).tolist() == [0]
