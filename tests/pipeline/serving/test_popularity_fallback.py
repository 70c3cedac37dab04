"""What is popular of late, as a whole and by segment of users, worked out by hand."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from features.histories.jagged import JaggedHistories
from features.settings import EventSettings
from pipeline.config import Config
from pipeline.errors import LookbackError
from pipeline.sections import ScoreConfig
from pipeline.serving import popularity_fallback
from pipeline.serving.popularity_fallback import Popularity, recent_events
from pipeline.serving.request import Request

DAY = popularity_fallback.DAY


def config(segment: str) -> Config:
    columns: dict[str, str | int] = {"user_id": 1, "item_id": 2, "timestamp": 3}
    return Config(
        name="x", events=EventSettings(path="log.csv", columns=columns), score=ScoreConfig(segment=segment)
    )


def test_recent_events_by_segment(tmp_path: Path) -> None:
    """Items 1 2 3 of the log are 2 0 1 of the bundle. Ten days back only the first two events of user 0 do not count."""
    histories = JaggedHistories(
        np.array([0, 4, 6, 7]),
        np.array([1, 1, 1, 3, 3, 2, 3], np.int32),
        DAY * np.array([1, 2, 15, 16, 14, 20, 19]),
        np.zeros(7, np.int16),
        np.zeros(7, np.float32),
    )
    mapping = np.array([0, 2, 0, 1], np.int32)
    segment = pl.Series(["b", "a", None])
    newest = Request.of(None, 20 * DAY, timed=True)
    table = recent_events(histories, mapping, segment, newest, 10.0)
    columns = table.select("segment", "item_index", "num_events").sort(
        "segment", "item_index", nulls_last=True
    )
    assert columns.rows() == [("a", 1, 1), ("b", 1, 1), ("b", 2, 1), (None, 1, 3), (None, 2, 1)]
    num_events = np.array([0, 3, 3, 2], np.float32)  # item 3 of the bundle was not had of late
    table.write_parquet(tmp_path / popularity_fallback.FILE)
    popularity = Popularity.of_bundle(tmp_path, num_events)
    assert popularity.segments == ["a", "b"]
    found = popularity.scores
    assert found.shape == (3, 4)
    assert found[1] == pytest.approx([0, 1 + 0.75e-3, 0.25e-3 + 3 / 8 * 1e-6, 2 / 8 * 1e-6], rel=1e-4)
    assert found[2, 1:3] == pytest.approx([0.5 + 0.75e-3, 0.5 + 0.25e-3], rel=1e-3)
    assert np.argsort(-found[0, 1:]).tolist() == [0, 1, 2]
    assert popularity.codes(pl.Series(["b", "c", None, "a"])).tolist() == [2, 0, 0, 1]
    at = Request.of("1970-01-20", 20 * DAY, timed=True)  # the event of day 19 is no longer known
    earlier = recent_events(histories, mapping, segment, at, 10.0).sort(
        "segment", "item_index", nulls_last=True
    )
    assert earlier.select("segment", "item_index", "num_events").rows() == [
        *[("a", 1, 1), ("b", 1, 1), ("b", 2, 1)],
        *[(None, 1, 2), (None, 2, 1)],
    ]


def test_a_bundle_that_knows_no_recent_events_answers_by_all(tmp_path: Path) -> None:
    counts = np.array([0, 5, 9], np.float32)
    popularity = Popularity.of_bundle(tmp_path, counts)
    assert (popularity.scores.tolist(), popularity.segments) == ([[0, 5, 9]], [])


def test_the_column_of_segments(tmp_path: Path) -> None:
    path = tmp_path / "users.parquet"
    ids = list(range(30))
    table = {
        "user_id": ids,
        "name": [f"n{each}" for each in ids],
        "same": ["x"] * 30,
        "age": [each % 7 for each in ids],
    }
    pl.DataFrame(table).write_parquet(path)
    assert popularity_fallback.segment_column(config("auto"), path) == "age"
    assert popularity_fallback.segment_column(config("none"), path) is None
    assert popularity_fallback.segment_column(config("name"), path) == "name"
    assert popularity_fallback.segment_column(config("auto"), tmp_path / "absent.parquet") is None
    with pytest.raises(LookbackError, match=r"score\.segment: received 'country'.*name, same, age"):
        popularity_fallback.segment_column(config("country"), path)
    with pytest.raises(LookbackError, match="no table of users"):
        popularity_fallback.segment_column(config("age"), tmp_path / "absent.parquet")
    assert popularity_fallback.segment_of(path, "age", pl.Series([8, 99, 0])).to_list() == ["1", None, "0"]
