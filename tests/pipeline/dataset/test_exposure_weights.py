"""Weights of events by exposures: which events are reactions, which exposures count, and what the trainer makes of them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from models.encoder.batching import BatchPlan
from models.training import exposure_weights
from models.training.exposure_weights import without_chance
from pipeline.dataset.exposure_weights import EventWeights
from tests.factories import jagged
from tests.pipeline.dataset.test_exposed_lists import DAY, HISTORIES, HOUR, dataset_in

WHOLE = jagged(
    [
        [(1 * DAY, 1), (5 * DAY + HOUR, 1), (11 * DAY, 2), (12 * DAY, 3)],
        [(2 * DAY, 1), (10 * DAY + HOUR, 2), (20 * DAY, 3)],
    ]
)


def test_reactions_weigh_the_inverse_of_their_items_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exposure_weights, "MIN_REACTIONS", 1)
    dataset = dataset_in(tmp_path, WHOLE)
    found = EventWeights.of(dataset, np.array([4, 7]), HOUR)
    assert found is not None
    looks = [*found.looks, 1.0]
    shown = {1: [0, 0, 0, 1, 0, -1, 0], 2: [1, 1, 0, 1, 1, 0, -1, 2]}
    shown[3] = [0, -1, 0]
    looked = np.zeros((2, 4))
    for item, places in shown.items():
        looked[:, item] = [sum(looks[place] ** power for place in places) for power in (1, 2)]
    raw = 1 / without_chance(looked)[[1, 2, 2]]
    assert found.weight[[1, 2, 5]] == pytest.approx(raw / raw.mean(), rel=1e-5)
    assert found.weight[[0, 3, 4, 6]].tolist() == [1] * 4
    assert (found.num_reactions, found.method) == (3, "items")


def test_exposures_of_held_out_days_do_not_count(tmp_path: Path) -> None:
    dataset = dataset_in(tmp_path, WHOLE)
    found = EventWeights.of(dataset, np.array([2, 5]), HOUR)
    assert found is not None
    assert (found.num_reactions, found.method) == (1, "none")
    assert "all places taken to be looked at alike" in found.sentence()
    assert EventWeights.of(dataset_in(tmp_path, HISTORIES), np.array([1, 4]), HOUR) is None


def test_weights_go_with_their_events_into_the_targets(tmp_path: Path) -> None:
    dataset = dataset_in(tmp_path, WHOLE)
    weight = np.arange(1, 8, dtype=np.float32)
    rows = dataset.all_rows(weight).translate(np.array([0, 1, 0, 2], np.int32))
    plan = BatchPlan(rows, 5, 2, np.array([1.0, 2.0], np.float32), seed=0)
    assert rows.weight is not None
    assert rows.weight.tolist() == [1, 2, 4, 5, 7]
    types = np.array([1.0, 2.0])[rows.event_type]
    assert plan.event_weight.tolist() == (types * rows.weight).tolist()
    alone = BatchPlan(replace(rows, weight=None), 5, 2, None, seed=0)
    assert set(alone.event_weight.tolist()) == {1.0}
