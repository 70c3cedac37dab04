"""Probabilities from scores: by pencil, and against what drew the labels."""

import numpy as np
import pytest
from numpy.typing import NDArray

from models.evaluation.metrics import Float64
from models.histories import Float32, Int64
from models.ranking.calibration import Calibration, Delivered, calibrated, cross_fitted, level_weights
from models.ranking.calibration_quality import quality


def without_level(scores: Float32, taken: NDArray[np.bool_], user: Int64) -> Delivered:
    return Delivered(scores, taken, user, np.zeros((len(scores), 0), np.float32), np.zeros(len(scores)))


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


def test_odds_follow_the_activity_by_pencil() -> None:
    """At twice the activity of the calibrating nights odds of 1 : 3 are 2 : 3; four times either way is the most."""
    points = np.array([0.0, 1.0]), np.array([0.0, 0.5])
    calibration = Calibration(*points, activity=0.5, days=7.0)
    scores = np.full(6, 0.5, np.float32)
    activity = np.array([0.5, 1.0, 0.25, 50.0, 0.01, 0.0])
    expected = [1 / 4, 2 / 5, 1 / 7, 4 / 7, 1 / 13, 1 / 4]
    assert calibration(scores, activity) == pytest.approx(expected), (
        "none known: as at the calibrating nights"
    )
    assert calibration(scores[:2], 1.0) == pytest.approx([2 / 5, 2 / 5])
    assert Calibration(*points)(scores, activity) == pytest.approx(np.full(6, 1 / 4))
    assert Calibration.of_dict(calibration.as_dict())(scores, activity) == pytest.approx(expected)
    assert Calibration.of_dict({"score": [0, 1], "probability": [0, 0.5]}).activity == 0


def test_probabilities_hold_at_nights_when_users_take_more() -> None:
    """Odds rise with the activity before a night, from 0.02 of the calibrating nights to twice as much."""
    random = np.random.default_rng(3)
    night = random.uniform(0.4, 1.2, 400)
    score, activity = random.normal(0, 1, 200_000).astype(np.float32), np.repeat(night, 500)
    odds = 0.04 * activity * np.exp(score)
    taken = random.random(200_000) < odds / (1 + odds)
    user, level = np.arange(200_000) // 10, np.zeros((200_000, 0), np.float32)
    delivered = Delivered(score, taken, user, level, activity)
    seen, later = delivered.select(activity < 0.6), delivered.select(activity > 1)
    fitted = calibrated(seen, np.zeros(0), 7.0)
    measured = quality(fitted(later.score, later.activity), later.taken)
    assert measured.expected_per_hit == pytest.approx(1, abs=0.1)
    assert measured.calibration_error <= measured.mean_probability / 10
    assert quality(fitted(later.score), later.taken).expected_per_hit == pytest.approx(0.5, abs=0.1)


def test_few_items_promise_no_certainty() -> None:
    """The only item of the highest score was taken: isotonic regression alone promises that all such items are."""
    random = np.random.default_rng(4)
    scores = np.append(random.normal(size=199), 3).astype(np.float32)
    taken = np.append(random.random(199) < 0.03, True)
    assert Calibration.fit(scores, taken)(np.array([3], np.float32)) == [1]
    found = Calibration.smoothed(scores, taken)(np.sort(scores))
    assert (np.diff(found) >= 0).all()
    assert 0 < found[0] < found[-1] < 0.5
    many = random.normal(size=40_000).astype(np.float32)
    drawn = random.random(40_000) < 1 / (1 + np.exp(3 - many))
    both = Calibration.fit(many, drawn)(many), Calibration.smoothed(many, drawn)(many)
    assert np.abs(both[0] - both[1]).mean() < 0.001, "many items need no help"
    nobody = Calibration.smoothed(scores, np.zeros(200, bool))
    assert nobody(scores).tolist() == [0] * 200


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
    user, activity = np.repeat(np.arange(users), 10), np.zeros(10 * users)
    return Delivered(scores, taken.ravel(), user, feature, activity), truth.ravel()


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
    nothing = Delivered(seen.score, np.zeros(500, bool), seen.user, seen.level, seen.activity)
    assert level_weights(nothing).tolist() == [0]
    is_low = seen.score < np.median(seen.score)
    upside_down = Delivered(seen.score, is_low, seen.user, 0 * seen.level, seen.activity)
    assert level_weights(upside_down).tolist() == [0]
