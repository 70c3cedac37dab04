"""Resolution of settings left at auto, and the nights of a part, by pencil."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from features.histories import splits
from features.histories.log_facts import LogFacts
from pipeline.config import Config
from pipeline.dataset.dataset import Dataset
from pipeline.dataset.protocol import DAY, Protocol, first_at
from pipeline.errors import LookbackError
from tests.factories import jagged

EVENTS = {"path": "log.csv", "columns": {"user_id": "u", "item_id": "i", "timestamp": "t"}}


def config(**sections: Any) -> Config:
    return Config.model_validate({"name": "test", "events": EVENTS} | sections)


def dataset(
    folder: Path, *, users: int = 60, days: int = 100, every_hours: int = 24, items: int = 90
) -> Dataset:
    """Users with an event every so many hours, each on the next item."""
    step = every_hours * DAY // 24
    count = days * DAY // step
    rows = [
        [(number * step + user, 1 + (user + number) % items) for number in range(count)]
        for user in range(users)
    ]
    histories = jagged(rows)
    LogFacts.of(histories).save(folder)
    return Dataset(
        folder, histories, splits.temporal(histories, items, test_fraction=0.4, validation_fraction=0.2)
    )


def resolved(data: Dataset, **evaluate: Any) -> Protocol:
    return Protocol.of(config(evaluate={"targets": "auto", **evaluate}), data)


def test_nights_where_the_test_holds_enough(tmp_path: Path) -> None:
    data = dataset(tmp_path)  # the test lasts 40 days: an eighth is 5
    protocol = resolved(data)
    assert protocol.headline == "nightly"
    assert (protocol.horizon_days, protocol.every_days) == (4, 4), "39 days and some microseconds: whole days"
    nights = protocol.nights(data, "test")
    assert len(nights) == 9
    assert nights.moments[0] == data.split.test_from
    assert (np.diff(nights.moments) == 4 * DAY).all()
    assert nights.moments[-1] + nights.horizon <= data.facts.now + data.facts.resolution
    before = protocol.nights(data, "validation")
    assert before.moments[0] == data.split.validation_from
    assert before.moments[-1] + before.horizon <= nights.moments[0]


@pytest.mark.parametrize(("users", "days"), [(10, 100), (60, 4)])
def test_else_successive(tmp_path: Path, users: int, days: int) -> None:
    """Nine nights of ten users are too few; a test of 1.6 days has one night."""
    protocol = resolved(dataset(tmp_path, users=users, days=days))
    assert protocol.kinds == ("successive",)
    assert (protocol.horizon, protocol.every) == (0, 0)


def test_days_as_configured(tmp_path: Path) -> None:
    protocol = resolved(dataset(tmp_path), horizon_days=3, every_days=1.5)
    assert (protocol.horizon_days, protocol.every_days) == (3, 1.5)


def test_several_kinds_keep_their_order(tmp_path: Path) -> None:
    data = dataset(tmp_path)
    assert resolved(data, targets=["successive", "nightly"]).kinds == ("successive", "nightly")
    assert resolved(data, targets=["auto", "nightly", "first"]).kinds == ("nightly", "first")


def test_a_horizon_longer_than_the_test_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        LookbackError, match=r"horizon_days: received 50, but the test lasts 4e\+01 days|received 50.*39"
    ):
        resolved(dataset(tmp_path), targets="nightly", horizon_days=50)


def test_nights_need_a_temporal_split(tmp_path: Path) -> None:
    data = dataset(tmp_path)
    alone = Dataset(tmp_path, data.histories, splits.leave_one_out(data.histories, 90))
    with pytest.raises(LookbackError, match="expected 'temporal'"):
        resolved(alone, targets="nightly")
    assert resolved(alone).headline == "successive"


def test_a_validation_shorter_than_the_horizon_has_one_night_within_it(tmp_path: Path) -> None:
    data = dataset(tmp_path)
    protocol = resolved(data, targets="nightly", horizon_days=30)
    night = protocol.nights(data, "validation")
    assert len(night) == 1
    assert night.moments[0] + night.horizon == data.split.test_from


def test_ties_and_seen_items_follow_the_log(tmp_path: Path) -> None:
    data = dataset(tmp_path)
    settings = config(split={"ties": "auto"}, score={"exclude_seen": "auto"})
    assert data.facts.repeated_share > 0.05
    protocol = Protocol.of(settings, data)
    assert (protocol.ties, protocol.exclude_seen) == ("order", False)
    LogFacts(0.21, 0.05, data.facts.now, 1).save(tmp_path)
    other = Protocol.of(settings, Dataset(tmp_path, data.histories, data.split))
    assert (other.ties, other.exclude_seen) == ("strict", True)


def test_first_event_at_a_moment() -> None:
    histories = jagged([[(1, 1), (4, 2), (4, 3), (9, 1)], [], [(4, 1)]])
    data = Dataset(Path(), histories, splits.leave_one_out(histories, 3))
    expected = {0: [0, 4, 4], 2: [1, 4, 4], 4: [1, 4, 4], 5: [3, 4, 5], 10: [4, 4, 5]}
    for moment, positions in expected.items():
        assert first_at(data, moment).tolist() == positions


def test_nights_of_ages_lie_within_the_test(tmp_path: Path) -> None:
    data = dataset(tmp_path)  # the test lasts 39 days and some microseconds, the horizon 4
    protocol = resolved(data, stale_days=[1, 35, 36])
    nights = protocol.nights_of_ages(data, [0, 1, 35, 36])
    assert data.split.test_from is not None
    assert ((nights.moments - data.split.test_from) / DAY).tolist() == [0, 1, 35]
    assert nights.horizon == 4 * DAY


def test_ages_without_nights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        LookbackError, match=r"evaluate.stale_days: received \[0.0, 7.0\], but the targets are successive"
    ):
        resolved(dataset(tmp_path), targets="successive", stale_days=[7])
