"""Events of outcomes within the horizon of each request, by pencil."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from features.histories.jagged import JaggedHistories
from models.ranking.outcomes import NO_TYPE, OutcomeEvents
from pipeline.dataset.dataset import Dataset
from pipeline.dataset.night_targets import night_targets
from pipeline.dataset.outcome_events import outcome_events
from pipeline.dataset.targets import RankedTargets
from pipeline.errors import LookbackError
from tests.pipeline.dataset.test_night_targets import EVERY_ITEM, HISTORIES, NIGHTS, TRAINED, split_of

A, B, C, D = 1, 2, 3, 4
VIEW, LIKE, BUY = 1, 2, 3


def log() -> Dataset:
    """Types and values of HISTORIES: user 0 views B, buys it twice, A has no type, D is liked; others view."""
    types = np.full(len(HISTORIES.time), VIEW, np.int16)
    types[[1, 2, 3, 5]] = BUY, BUY, 0, LIKE
    value = np.full(len(types), np.nan, np.float32)
    value[[1, 2]] = 3, 4
    histories: JaggedHistories = replace(HISTORIES, event_type=types, value=value)
    dataset = Dataset(Path(), histories, split_of(histories, 10))
    dataset.__dict__["event_types"] = ["view", "like", "buy"]
    return dataset


def requests(dataset: Dataset) -> RankedTargets:
    return night_targets(dataset, NIGHTS, EVERY_ITEM, exclude_seen=False, trained=TRAINED, with_idle=True)


def rows_of(events: OutcomeEvents) -> list[tuple[int, ...]]:
    return list(zip(events.request.tolist(), events.item.tolist(), events.kind.tolist(), strict=True))


def test_events_of_nights_by_pencil() -> None:
    dataset = log()
    targets = requests(dataset)
    # requests: night 10 of users 0, 1, 2, 3; night 20 of users 0, 1, 2, 3
    assert targets.user.tolist() == [0, 1, 2, 3] * 2
    mapping = np.array([0, 11, 12, 13, 0], np.int32)
    events = outcome_events(dataset, targets, ["buy", "view"], mapping, NIGHTS.horizon)
    expected = [
        *((0, 12, 0), (0, 12, 0), (0, 11, NO_TYPE)),  # the event at 15 is at the horizon's end
        *((2, 13, 1), (3, 11, 1), (6, 13, 1), (7, 12, 1)),  # user 2's view at 25 is not within 20 to 25
    ]
    assert rows_of(events) == expected
    assert events.value[:2].tolist() == [3, 4]
    assert np.isnan(events.value[2:]).all()


def test_without_a_horizon_an_event_is_the_target_alone() -> None:
    dataset = log()
    targets = requests(dataset)
    events = outcome_events(dataset, targets, ("buy",), EVERY_ITEM.new, 0)
    assert rows_of(events) == [(0, B, 0), (0, A, NO_TYPE)]


def test_a_type_that_the_log_lacks_is_an_error() -> None:
    dataset = log()
    with pytest.raises(
        LookbackError, match=r"outcomes\.types: received share, expected types of the log: view, like, buy"
    ):
        outcome_events(dataset, requests(dataset), ["buy", "share"], EVERY_ITEM.new, 5)
