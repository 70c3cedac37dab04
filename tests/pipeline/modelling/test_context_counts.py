"""Further columns of a log for the ranker, by pencil: what they are fitted on, what is counted, and logs with other codes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from features.attributes import FIRST, MISSING, RARE, Attribute, Unusable
from features.histories import event_columns
from features.histories.event_columns import OTHER, EventColumn
from features.histories.numbering import ItemNumbering
from features.histories.splits import Split
from pipeline.dataset.dataset import Dataset, rows
from pipeline.modelling import context_counts
from pipeline.modelling.ranker_columns import RankerColumns
from tests.factories import jagged

A, B, C = 1, 2, 3
COLUMNS = RankerColumns(
    (
        Attribute("users", "country", ("fr", "de")),
        Attribute("events", "device", ("phone", "tv"), has_missing=True),
        Attribute("events", "hour", edges=(6.0, 12.0)),
    )
)
BEFORE = 4
"""Values of the users' column, before those of the device."""
OF_HOURS = BEFORE + 4


def a_dataset(folder: Path, codes: list[list[int]] | None = None) -> Dataset:
    """Two users with four and two events, the last one of each held out; columns hour and device."""
    values = {"hour": ["13", "5", "7"], "device": ["car", "phone", "tv", OTHER]}
    event_columns.save([EventColumn(name, pl.Series(own)) for name, own in values.items()], folder)
    histories = jagged([[(1, A), (2, B), (3, A), (9, C)], [(4, A), (9, B)]])
    codes = [[2, 2], [3, 0], [2, 3], [1, 1], [1, 2], [0, 4]] if codes is None else codes
    histories = replace(histories, event_columns=np.array(codes, np.int32))
    ends, everyone = np.array([3, 5]), np.ones(2, bool)
    items = np.arange(4) > 0
    split = Split("temporal", ends, ends, np.asarray(histories.offsets[1:]), everyone, everyone, items, 9, 9)
    return Dataset(folder, histories, split)


def test_rows_have_the_context_of_their_last_event(tmp_path: Path) -> None:
    histories = a_dataset(tmp_path).histories
    context = rows(histories, np.array([0, 0, 4, 4]), np.array([3, 1, 4, 6])).context
    assert context is not None
    assert context.tolist() == [[2, 3], [2, 2], [0, 0], [0, 4]], "none of a row without events"
    earlier = a_dataset(tmp_path).without_held_back().all_rows().context
    assert earlier is not None
    assert earlier.tolist() == [[1, 1], [0, 4]]


def test_events_are_counted_up_to_the_ends(tmp_path: Path) -> None:
    dataset = a_dataset(tmp_path)
    ends = context_counts.training_ends(dataset, with_validation=False)
    own = COLUMNS.event_tables(dataset, ItemNumbering(np.array([0, 2, 1, 0], np.int32)), ends)
    assert own is not None
    assert own.place.tolist() == [1, 0], "columns of the log, in the ranker's order"
    device, hour = own.value.tolist()
    assert device == [BEFORE + each for each in (MISSING, RARE, FIRST, FIRST + 1, RARE)]
    assert hour[:4] == [OF_HOURS + each for each in (RARE, FIRST + 2, FIRST, FIRST + 1)]
    item, value = np.divmod(own.pair, len(own.of_value))
    found = dict(zip(zip(item.tolist(), value.tolist(), strict=True), own.number.tolist(), strict=True))
    phone, tv, none = BEFORE + FIRST, BEFORE + FIRST + 1, BEFORE + MISSING
    night, morning, later = (OF_HOURS + FIRST + place for place in range(3))
    assert found == {
        (2, phone): 2,
        (2, tv): 1,
        (2, night): 2,
        (2, later): 1,
        (1, none): 1,
        (1, morning): 1,
    }, "three events of A, item 2, and one of B; the held-out ones are not counted"
    assert own.of_item.tolist() == [0, 1, 3, 0]
    assert (
        RankerColumns(COLUMNS.attributes[:1]).event_tables(
            dataset, ItemNumbering(np.arange(4, dtype=np.int32)), ends
        )
        is None
    )


def test_a_log_with_other_codes_and_without_a_column(tmp_path: Path) -> None:
    dataset = a_dataset(tmp_path)
    ends = context_counts.training_ends(dataset, with_validation=True)
    own = COLUMNS.event_tables(dataset, ItemNumbering(np.arange(4, dtype=np.int32)), ends)
    event_columns.save([EventColumn("device", pl.Series(["tv", "watch"]))], tmp_path)
    later = COLUMNS.of_log(own, replace(dataset))
    assert later is not None
    assert later.place.tolist() == [0, -1]
    assert later.value[0].tolist() == [BEFORE + MISSING, BEFORE + FIRST + 1, BEFORE + RARE]
    assert later.value[1, 0] == OF_HOURS + RARE


def test_embeddings_of_events_follow_those_of_users() -> None:
    embeddings = COLUMNS.embeddings(3)
    assert embeddings.unseen_user.tolist() == [0, *[1] * 4, *[BEFORE + 1] * 4, *[OF_HOURS + 1] * 5]
    assert embeddings.num_of_events == 2
    assert [(each.label, each.places.start) for each in COLUMNS.places] == [
        ("users.country", 0),
        ("events.device", 0),
        ("events.hour", 1),
    ]


def test_values_are_fitted_on_training_events(tmp_path: Path) -> None:
    codes = [[2, 2]] * 12 + [[1, 3]] * 11 + [[3, 1]] * 9 + [[0, 4]] * 20 + [[1, 1]] * 30
    dataset = a_dataset(tmp_path)
    log = jagged([[(second, A) for second in range(len(codes))]])
    dataset = replace(dataset, histories=replace(log, event_columns=np.array(codes, np.int32)))
    ends = np.array([52])
    device = context_counts.fitted(dataset, "device", ends)
    assert device.label == "events.device"
    assert device.values == ("phone", "tv"), "car is rare before the end, and … is of many values"
    assert not device.has_missing
    assert context_counts.fitted(dataset, "hour", ends).has_missing


def test_a_column_of_nulls_says_nothing(tmp_path: Path) -> None:
    dataset = a_dataset(tmp_path, [[0, 2]] * 6)
    with pytest.raises(Unusable, match="no value"):
        context_counts.fitted(dataset, "hour", np.array([3, 5]))
    with pytest.raises(Unusable, match="no value of 10 events or more"):
        context_counts.fitted(dataset, "device", np.array([3, 5]))


def test_unseen_values_are_those_of_the_requests(tmp_path: Path) -> None:
    dataset = a_dataset(tmp_path)
    ends = context_counts.training_ends(dataset, with_validation=False)
    events = COLUMNS.event_tables(dataset, ItemNumbering(np.arange(4, dtype=np.int32)), ends)
    tables = COLUMNS.tables(tmp_path, pl.Series([1]), pl.Series([7]))
    unseen = COLUMNS.unseen(replace(tables, events=events), dataset.all_rows())
    assert unseen["events.device"] == (2, 2), "car and …"
    assert unseen["events.hour"] == (1, 2)
