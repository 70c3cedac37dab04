"""Probabilities from scores: by pencil, and against what drew the labels."""

import numpy as np
import pytest

from models.ranking.calibration import Calibration, cross_fitted, quality


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
    found = cross_fitted(scores, wanted, np.arange(len(scores)) // 10, 0)
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


def test_each_half_of_the_users_is_judged_by_the_other() -> None:
    """Labels that only a function fitted on the same rows could know look like chance."""
    random = np.random.default_rng(2)
    scores = np.linspace(0, 1, 400).astype(np.float32)
    wanted = random.random(400) < 0.5
    found = quality(cross_fitted(scores, wanted, np.arange(400), 0), wanted)
    assert found.log_loss > quality(Calibration.fit(scores, wanted)(scores), wanted).log_loss
    assert found.log_loss > np.log(2) - 0.01
