"""Figures of logs of every shape; the same numbers give the same bytes."""

from pathlib import Path

import numpy as np
import pytest

from features.histories.jagged import JaggedHistories
from features.profiling import profile
from features.profiling.profile import Days, Profile
from pipeline.reporting import log_figures, style

DAY = 86_400_000_000
FAR = 9_000 * 365 * DAY


def log(*times: int, num_users: int = 1) -> Profile:
    """Of users who all have events of type "a" on item 1 at these times."""
    flat = np.tile(np.array(times, np.int64), num_users)
    offsets = np.arange(num_users + 1, dtype=np.int64) * len(times)
    one, nothing = np.ones(len(flat)), np.full(len(flat), np.nan, np.float32)
    histories = JaggedHistories(offsets, one.astype(np.int32), flat, one.astype(np.int16), nothing)
    return profile.profile(histories, ["a"], 1, timed=True)


@pytest.mark.parametrize(
    ("times", "names"),
    [
        ((0,), {"distributions", "events"}),
        ((0, 0), {"distributions", "events"}),
        ((0, 1), {"distributions", "events", "gaps"}),
        ((-1900 * 365 * DAY, FAR - 1000 * 365 * DAY), {"distributions", "events", "gaps"}),
        ((0, FAR), {"distributions", "gaps"}),
        ((-FAR, 0), {"distributions", "gaps"}),
        (tuple(DAY * day * day for day in range(100)), {"distributions", "events", "gaps"}),
    ],
)
def test_a_log_of_any_shape_can_be_drawn(tmp_path: Path, times: tuple[int, ...], names: set[str]):
    for folder in (tmp_path / "one", tmp_path / "two"):
        folder.mkdir()
        found = log_figures.of_log(log(*times, num_users=3), {"validation": times[-1], "test": None})
        for name, figure in found.items():
            style.save(figure, folder / name)
    drawn = sorted((tmp_path / "one").iterdir())
    assert {path.stem for path in drawn} == names
    for path in drawn:
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
        assert path.stat().st_size < 100_000


def test_rare_types_are_drawn_together():
    by_type = {f"type {number}": [10 - number, 1] for number in range(9)}
    days = Days(1, ["2026-01-01", "2026-01-02"], [100, 9], by_type)
    shown = log_figures._most_frequent(days)
    assert list(shown) == ["type 0", "type 1", "type 2", "type 3", "type 4", "other types"]
    assert np.sum([*shown.values()], axis=0).tolist() == days.events


def test_days_are_averaged_where_there_are_many():
    figure = log_figures.events_over_time(log(*(DAY * day for day in range(240))).times.days, {})  # type: ignore[union-attr]
    (steps,) = figure.axes[0].patches
    values, edges, _ = steps.get_data()  # type: ignore[attr-defined]
    assert values.tolist() == [1] * 120
    assert (edges[0], edges[-1]) == (0, 240)
