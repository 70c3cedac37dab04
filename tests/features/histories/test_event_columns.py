"""Further columns of a log as codes: values, rare ones, rounded numbers, and their order beside the histories."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from features.histories import buckets, event_columns
from features.histories.event_columns import OTHER, EventColumn
from features.histories.event_types import EventTypes
from features.histories.jagged import JaggedHistories
from features.histories.vocabulary import Vocabulary


def column(values: list[Any]) -> tuple[EventColumn, list[int]]:
    """A column of a log of these values, and their codes."""
    log = pl.DataFrame({"device": values}, schema={"device": pl.String})
    own = EventColumn.of(log.lazy(), "device")
    return own, own.codes(log).to_list()


def test_codes_are_places_among_the_values_and_none_is_0() -> None:
    own, codes = column(["tv", None, "phone", "tv", "car"])
    assert own.values.to_list() == ["car", "phone", "tv"]
    assert codes == [3, 0, 2, 3, 1]


def test_a_column_without_values_is_all_0() -> None:
    own, codes = column([None, None])
    assert own.values.to_list() == []
    assert codes == [0, 0]


def test_values_beyond_the_most_frequent_share_a_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_columns, "MAX_VALUES", 2)
    own, codes = column(["b", "c", "c", "a", "b", None, "d", OTHER])
    assert own.values.to_list() == ["b", "c", OTHER]
    assert codes == [1, 2, 2, 3, 1, 0, 3, 3]


def test_more_numbers_than_that_are_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_columns, "MAX_VALUES", 2)
    own, codes = column(["123456", "123455", None, "0.5000001"])
    assert own.values.to_list() == ["0.5", "123500.0"]
    assert codes == [2, 2, 0, 1]


@pytest.mark.parametrize("bucket_events", [1, 1000])
def test_codes_stand_in_the_order_of_the_histories(tmp_path: Path, bucket_events: int) -> None:
    seconds = [9, 1, 5, 7, 3]
    events = pl.DataFrame(
        {
            "user_id": ["b", "a", "b", "a", "b"],
            "item_id": [1, 1, 2, 2, 1],
            "timestamp": pl.Series([second * 1_000_000 for second in seconds]).cast(pl.Datetime("us", "UTC")),
            "event_type": pl.Series([None] * 5, dtype=pl.Categorical()),
            "value": pl.Series([None] * 5, dtype=pl.Float32),
            "source_file": ["f"] * 5,
            "source_row": [1, 2, 3, 4, 5],
            "second": [str(second) for second in seconds],
            "device": ["tv", None, "phone", "tv", "car"],
        }
    )
    events.write_parquet(tmp_path / "part.parquet")
    log = events.lazy()
    users, counts = Vocabulary.counted(log, "user_id", 0)
    items, _ = Vocabulary.counted(log, "item_id", 1)
    columns = event_columns.of_log(log, ["second", "device", "gone"])
    assert [each.name for each in columns] == ["second", "device"], "what the log lacks is left out"
    histories, _ = buckets.build(
        [tmp_path / "part.parquet"],
        tmp_path,
        users,
        counts,
        items,
        EventTypes.of(log),
        columns,
        bucket_events=bucket_events,
    )
    event_columns.save(columns, tmp_path)
    values = event_columns.load(tmp_path)
    assert list(values) == ["second", "device"]
    assert histories.event_columns is not None
    assert isinstance(histories.event_columns, np.memmap), "nothing is read until it is used"
    second, device = histories.event_columns.T
    assert [values["second"][code - 1] for code in second.tolist()] == ["1", "7", "3", "5", "9"]
    assert (np.asarray(histories.time) // 1_000_000).tolist() == [1, 7, 3, 5, 9]
    assert [code and values["device"][code - 1] for code in device.tolist()] == [
        0,
        "tv",
        "car",
        "phone",
        "tv",
    ]
    histories.save(tmp_path)
    again = JaggedHistories.load(tmp_path).event_columns
    assert again is not None
    assert again.tolist() == histories.event_columns.tolist()


def test_a_log_without_further_columns_has_no_files(tmp_path: Path) -> None:
    event_columns.save([], tmp_path)
    assert [*tmp_path.iterdir()] == []
    assert event_columns.load(tmp_path) == {}
