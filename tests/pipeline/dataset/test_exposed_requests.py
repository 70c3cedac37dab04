"""What was shown after requests, by pencil: at nights by the horizon, at events by the list that they answer."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from models.ranking.shown_lists import ShownLists
from pipeline.dataset.dataset import Dataset, rows
from pipeline.dataset.exposed_requests import shown_after
from pipeline.dataset.targets import RankedTargets
from tests.pipeline.dataset.test_exposed_lists import DAY, HISTORIES, HOUR, dataset_in

EVERY_ITEM = np.arange(4, dtype=np.int32)


def requests(dataset: Dataset, user: list[int], moment: list[int], item: list[int]) -> RankedTargets:
    """A request of each user at a moment, with one target."""
    users, none = np.array(user), np.zeros(len(user), np.int64)
    before = replace(rows(dataset.histories, none, none), request_time=np.array(moment))
    return RankedTargets.one_each(
        before, np.array(item, np.int32), users, none, np.zeros(len(user), np.int8), {}
    )


def told(found: ShownLists | None) -> list[tuple[int, int, bool]]:
    assert found is not None
    parts = (found.request, found.item, found.is_taken)
    return list(zip(*(part.tolist() for part in parts), strict=True))


def test_nights_by_their_horizon(tmp_path: Path) -> None:
    dataset = dataset_in(tmp_path)
    asked = requests(dataset, [0, 1, 0], [5 * DAY, 16 * DAY, 12 * DAY], [0, 0, 0])
    found = told(shown_after(dataset, asked, EVERY_ITEM, 6 * DAY + HOUR))
    assert found[:3] == [(0, 1, True), (0, 2, True), (0, 3, False)]
    assert found[3:] == [(1, 1, False), (1, 2, False), (1, 3, False)]
    short = told(shown_after(dataset, asked, EVERY_ITEM, HOUR))
    assert short[0] == (0, 2, False), "item 1 was taken an hour later: neither taken nor ignored"
    assert shown_after(dataset, requests(dataset, [0], [12 * DAY], [0]), EVERY_ITEM, DAY) is None


def test_events_by_the_list_that_they_answer(tmp_path: Path) -> None:
    """Items are numbered anew, 3 -> 1, and 2 -> 2; what else was taken of the list is left out."""
    dataset, mapping = dataset_in(tmp_path), np.array([0, 0, 2, 1], np.int32)
    asked = requests(dataset, [0, 0, 1], [11 * DAY, 12 * DAY, 10 * DAY + HOUR], [2, 1, 2])
    found = told(shown_after(dataset, asked, mapping, 0))
    assert found == [(0, 1, False), (0, 2, True), (2, 2, True)]
    log = dataset.exposures
    assert log is not None
    delay = np.array(log.reaction_delay)
    delay[2] = DAY  # item 3 is taken too, a day later
    dataset.__dict__["exposures"] = replace(log, reaction_delay=delay)
    found = told(shown_after(dataset, asked, mapping, 0))
    assert found == [(0, 2, True), (1, 1, True), (2, 2, True)]


def test_dislikes_are_ignored_and_logs_without_exposures_show_nothing(tmp_path: Path) -> None:
    disliked = replace(HISTORIES, dislikes=np.array([0, 1], np.float32))
    dataset = dataset_in(tmp_path, disliked)
    asked = requests(dataset, [0], [5 * DAY], [0])
    found = told(shown_after(dataset, asked, EVERY_ITEM, 7 * DAY))
    assert [row[2] for row in found] == [False] * 3
    assert shown_after(Dataset(tmp_path / "none", HISTORIES, dataset.split), asked, EVERY_ITEM, DAY) is None
