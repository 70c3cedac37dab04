"""The learned effect of the times shown, of a ranker whose weights say what it is."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from models.histories import histories_from_lists
from models.ranking.calibration import Calibration
from models.ranking.features import FEATURES, ItemStatistics
from models.ranking.partial_dependence import by_times_shown
from models.ranking.ranker import Ranker, SecondStage
from models.ranking.shown import SHOWN_FEATURES
from models.ranking.training import Retrieved
from models.settings.ranker import RankerSettings

DAY = 86_400_000_000


def test_the_effect_is_that_of_the_weights() -> None:
    """score = retrieval score - ln(1 + times) / 2 + ln(1 + days since) / 4, probability = (10 + score) / 20."""
    rows = histories_from_lists([[1], [2, 3], [4]], [[0], [0, 1], [0]])
    rows = replace(rows, request_time=np.full(3, 2 * DAY))
    ranker = Ranker(
        RankerSettings(dim=4, num_heads=1, max_length=3), torch.randn(10, 3), 0, (*FEATURES, *SHOWN_FEATURES)
    )
    with torch.no_grad():
        ranker.linear[-2:] = torch.tensor([-0.5, 0.25])
    stage = SecondStage(ranker, ItemStatistics.of(rows, 9), np.arange(10, dtype=np.int32))
    items = np.array([[5, 3, 9, 0], [8, 1, 0, 0], [7, 6, 5, 4]], np.int32)
    scores = np.where(items > 0, np.float32(1), np.float32(-np.inf))
    none = np.zeros((3, 4), bool)
    retrieved = Retrieved(rows, items, scores, none, np.zeros(3, np.int64), np.arange(3))
    effect = by_times_shown(stage, retrieved, Calibration(np.array([-10.0, 10.0]), np.array([0.0, 1.0])))
    softmax = (3 * np.log(1 / 3) + 2 * np.log(1 / 2) + 4 * np.log(1 / 4)) / 9
    days = np.log([15, 2, 2, 2, 2, 2]) / 4
    expected = (10 + softmax - np.log1p(np.arange(6)) / 2 + days) / 20
    assert effect == pytest.approx(expected, abs=1e-6)
