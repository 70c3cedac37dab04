"""Exposed lists of the test period by pencil: which count, what was taken, and the histories before them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from features.histories.exposures import JaggedExposures
from features.histories.jagged import JaggedHistories
from features.histories.log_facts import LogFacts
from features.histories.numbering import ItemNumbering
from pipeline.config import Config
from pipeline.dataset import exposed_lists
from pipeline.dataset.dataset import Dataset
from pipeline.dataset.exposed_lists import ExposedLists, predicted_reactions
from tests.factories import jagged
from tests.pipeline.dataset.test_night_targets import split_of

DAY = 86_400_000_000
HOUR = DAY // 24
COLUMNS = {name: name for name in ("user_id", "item_id", "timestamp", "rank", "propensity", "list_id")}
HISTORIES = jagged(
    [
        [(1 * DAY, 1), (11 * DAY, 2), (12 * DAY, 3)],
        [(2 * DAY, 1), (10 * DAY + HOUR, 2), (20 * DAY, 3)],
    ]
)
NAN = float("nan")
Row = tuple[int, int, int, float, int, int]
"""Item, time, rank, propensity, position of the list's first row, delay of the reaction."""
ROWS: list[list[Row]] = [
    [
        (1, 5 * DAY, 1, 0.5, 0, HOUR),  # before the test
        (2, 5 * DAY, 2, 0.5, 0, -1),
        (3, 11 * DAY, 1, 0.5, 2, -1),
        (2, 11 * DAY, 2, 1.0, 2, 0),  # taken at the moment of the list
        (0, 11 * DAY, 3, 1.0, 2, -1),  # beyond two places
    ],
    [
        (2, 10 * DAY, 1, 0.25, 5, HOUR),  # a list of one place
        (1, 12 * DAY, 1, NAN, 6, -1),
        (2, 12 * DAY, 2, 0.5, 6, -1),
        (1, 13 * DAY, 1, 0.5, 8, -1),
        (2, 13 * DAY, 2, 0.5, 8, -1),
        (1, 14 * DAY, 2, 0.5, 10, -1),  # place 1 was refused
        (1, 15 * DAY, 1, 0.5, 11, -1),
        (2, 15 * DAY, 1, 0.5, 11, -1),  # place 1 twice
        (1, 16 * DAY, 0, 0.5, 13, -1),
        (2, 16 * DAY, 0, 0.5, 13, -1),  # two items without a rank
        (3, 17 * DAY, 0, 0.5, 15, -1),  # one item needs none
        (1, 18 * DAY, 1, 0.5, 16, -1),
        (2, 18 * DAY, 3, 0.5, 16, -1),  # place 2 was refused
        (3, 20 * DAY - HOUR // 2, 1, 0.5, 18, -1),  # its window ends after the log
    ],
]


def exposures(rows: list[list[Row]]) -> JaggedExposures:
    item, time, rank, propensity, start, delay = zip(*(row for own in rows for row in own), strict=True)
    return JaggedExposures(
        np.cumsum([0, *map(len, rows)]),
        np.array(item, np.int32),
        np.array(time),
        np.array(rank, np.int32),
        np.array(propensity, np.float32),
        np.array(start),
        np.array([1 if wait >= 0 else 0 for wait in delay], np.int16),
        np.array(delay),
    )


def dataset_in(folder: Path, histories: JaggedHistories = HISTORIES) -> Dataset:
    (folder / "exposures").mkdir(exist_ok=True)
    shown = exposures(ROWS)
    for name in JaggedExposures.__dataclass_fields__:
        np.save(folder / "exposures" / f"{name}.npy", getattr(shown, name))
    dataset = Dataset(folder, histories, split_of(histories, 10 * DAY))
    dataset.__dict__["facts"] = LogFacts.of(histories)
    return dataset


def config(**changes: Any) -> Config:
    columns = {name: COLUMNS[name] for name in ("user_id", "item_id", "timestamp")}
    content: dict[str, Any] = {
        "name": "shown",
        "events": {"path": "log.csv", "columns": columns},
        "exposures": {"path": "shown.csv", "columns": COLUMNS, "window_hours": 2.0},
        "evaluate": {"k": [2, 5], "gate_metric": "ndcg@5"},
    }
    return Config.model_validate(content | changes)


def test_lists_of_the_test_that_count(tmp_path: Path) -> None:
    found = ExposedLists.of(config(), dataset_in(tmp_path))
    assert found is not None
    assert found.left_out == {
        "without_rank": 4,
        "without_propensity": 1,
        "unfinished": 1,
        "not_sampled": 0,
        "outside_test": 1,
    }
    assert found.user.tolist() == [0, 1, 1, 1]
    assert (found.time // DAY).tolist() == [11, 10, 13, 17]
    assert found.item.tolist() == [[3, 2], [2, 0], [1, 2], [3, 0]]
    assert found.is_shown.tolist() == [[True, True], [True, False], [True, True], [True, False]]
    assert found.propensity.tolist() == [[0.5, 1], [0.25, 0], [0.5, 0.5], [0.5, 0]]
    assert found.is_taken.tolist() == [[False, True], [True, False], [False, False], [False, False]]


@pytest.mark.parametrize("most", [1, 2])
def test_slices_of_the_log_give_the_same_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    settings = config(evaluate={"k": [most], "gate": False})
    whole = ExposedLists.of(settings, dataset_in(tmp_path))
    monkeypatch.setattr(exposed_lists, "_BLOCK_ROWS", 1)
    sliced = ExposedLists.of(settings, dataset_in(tmp_path))
    assert whole is not None
    assert sliced is not None
    assert sliced.left_out == whole.left_out
    for name in exposed_lists._ARRAYS:
        assert np.array_equal(getattr(sliced, name), getattr(whole, name))


def test_histories_end_before_the_list(tmp_path: Path) -> None:
    """User 0's event at the moment of the list is not in its history; item 1 is unknown to the system."""
    dataset = dataset_in(tmp_path)
    found = ExposedLists.of(config(), dataset)
    assert found is not None
    requests = found.requests(dataset, ItemNumbering(np.array([0, 0, 1, 2], np.int32)))
    assert (len(requests), requests.num_requests) == (0, 4)
    assert requests.moment.tolist() == found.time.tolist()
    assert requests.histories.lengths.tolist() == [0, 0, 1, 1]
    assert requests.histories.item_index[requests.histories.gather()[1]].tolist() == [1, 1]


def test_lists_of_one_user_and_time_are_one_request(tmp_path: Path) -> None:
    dataset = dataset_in(tmp_path)
    found = ExposedLists.of(config(), dataset)
    assert found is not None
    rows = np.array([0, 1, 2, 2, 3, 2])
    arrays = {name: getattr(found, name)[rows] for name in ("user", "time", "item", "propensity", "is_taken")}
    several = replace(found, is_shown=found.is_shown[rows], **arrays)
    assert several.request.tolist() == [0, 1, 2, 2, 3, 2]
    numbering = ItemNumbering(np.arange(dataset.num_items + 1, dtype=np.int32))
    alone, together = (lists.requests(dataset, numbering) for lists in (found, several))
    assert together.moment.tolist() == alone.moment.tolist()
    assert together.histories.lengths.tolist() == alone.histories.lengths.tolist()


def test_a_long_test_is_that_of_some_users(tmp_path: Path) -> None:
    found = ExposedLists.of(
        config(evaluate={"k": [2], "gate": False, "max_requests": 1}), dataset_in(tmp_path)
    )
    assert found is not None
    assert len(np.unique(found.user)) == 1
    assert len(found) + found.left_out["not_sampled"] == 4


def test_dislikes_are_no_reactions(tmp_path: Path) -> None:
    disliked = replace(HISTORIES, dislikes=np.array([0, 1], np.float32))
    found = ExposedLists.of(config(), dataset_in(tmp_path, disliked))
    assert found is not None
    assert not found.is_taken.any()


def test_reactions_are_predicted_from_exposures_before_the_test(tmp_path: Path) -> None:
    predicted = predicted_reactions(dataset_in(tmp_path), 2, 2 * HOUR)
    assert predicted is not None
    assert predicted.by_place.tolist() == [1, 0]
    assert predicted.by_item.tolist() == pytest.approx([0, 1, 1, 1, 1])
    assert predicted_reactions(dataset_in(tmp_path), 2, 6 * DAY) is None


@pytest.mark.parametrize("left_out", ["propensity", "exposures"])
def test_without_propensities_there_is_nothing_to_judge_by(tmp_path: Path, left_out: str) -> None:
    shown = {"path": "shown.csv", "columns": {name: name for name in COLUMNS if name != left_out}}
    settings = config(exposures=None if left_out == "exposures" else shown)
    assert ExposedLists.of(settings, Dataset(tmp_path, HISTORIES, split_of(HISTORIES, 10 * DAY))) is None
