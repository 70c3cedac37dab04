"""What the features stage writes and says of its log, on the first night and on the next."""

from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl
import pytest

from features.histories.jagged import JaggedHistories
from features.profiling.drift import Drift
from features.profiling.profile import Profile
from features.settings import EventSettings, SplitSettings
from pipeline.config import Config
from pipeline.orchestration.context import Context
from pipeline.stages import features
from pipeline.tracking.record import RunRecord


def context(stage_folder: Path, name: str, unit: str = "s") -> Context:
    columns: dict[str, str | int] = {"user_id": 1, "item_id": 2, "timestamp": 3}
    events = EventSettings(path="log.csv", columns=columns, timestamp_unit=unit)
    config = Config(name="tiny", events=events, split=SplitSettings(protocol="leave_one_out"))
    (stage_folder / name).mkdir()
    nothing = cast("Any", None)
    return Context(
        config, stage_folder / name, {}, {}, None, RunRecord(), nothing, stage_folder, show_progress=False
    )


def night(ctx: Context, counts: list[int], left_out: dict[str, int] | None = None) -> dict[str, float]:
    """One user with so many events on each item; the metrics that are tracked."""
    item = np.repeat(np.arange(1, len(counts) + 1), counts).astype(np.int32)
    time = np.arange(len(item), dtype=np.int64)
    offsets, value = np.array([0, len(item)]), np.full(len(item), np.nan, np.float32)
    histories = JaggedHistories(offsets, item, time, np.zeros(len(item), np.int16), value)
    items = pl.DataFrame({"item_id": [f"i{number}" for number in range(len(counts))], "num_events": counts})
    items.write_parquet(ctx.folder / "items.parquet")
    rows = None if left_out is None else {"rows_in": 2000, "rows_left_out": left_out}
    features._write_profile(ctx, histories, [], items, rows)
    return {point.name: point.value for point in ctx.track.points}


def test_two_nights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = context(tmp_path, "first")
    metrics = night(first, [500, 500])
    assert metrics["data/num_events"] == 1000
    assert "data/item_psi" not in metrics
    assert [path.name for path in first.folder.iterdir() if path.suffix == ".json"] == ["profile.json"]
    assert first.track.tags == {}
    (tmp_path / "latest").symlink_to("first")
    second = context(tmp_path, "second")
    metrics = night(second, [500, 700, 300])
    assert (metrics["data/num_new_events"], metrics["data/new_item_share"]) == (500, 0.6)
    assert Drift.load(second.folder / "drift.json").num_events_before == 1000
    assert second.track.artifacts == [("profile.json", ""), ("drift.json", "")]
    assert "60.0 % of them on items without events last time" in second.track.tags["drift"]
    assert capsys.readouterr().err == f"features: {second.track.tags['drift']}\n"


@pytest.mark.parametrize("damage", ["{}", None])
def test_a_last_artifact_that_cannot_be_read_is_none(tmp_path: Path, damage: str | None) -> None:
    (tmp_path / "latest").mkdir()
    if damage is not None:
        (tmp_path / "latest" / "profile.json").write_text(damage)
    ctx = context(tmp_path, "now")
    night(ctx, [1, 2])
    assert not (ctx.folder / "drift.json").exists()


def test_positions_are_no_times(tmp_path: Path) -> None:
    ctx = context(tmp_path, "now", unit="position")
    assert "data/tied_share" not in night(ctx, [1, 2])
    assert Profile.load(ctx.folder / "profile.json").times is None


def test_of_the_items_table_those_whose_ids_look_like_the_log_s_are_in_the_catalogue(tmp_path: Path) -> None:
    pl.DataFrame({"item_id": ["i1", "i9", "POST-1", "4006381333931"]}).write_parquet(
        tmp_path / "items.parquet"
    )
    log = pl.LazyFrame({"item_id": ["i1", "i2", "i2"]})
    assert features._catalogue(log, tmp_path).ids.to_list() == ["i1", "i2", "i9"]


def test_more_rows_left_out_than_last_time_are_said_by_reason(tmp_path: Path) -> None:
    night(context(tmp_path, "first"), [500, 500], {"impossible_time": 10, "where": 500})
    (tmp_path / "latest").symlink_to("first")
    second = context(tmp_path, "second")
    night(second, [500, 700], {"impossible_time": 100, "where": 510})
    assert Profile.load(second.folder / "profile.json").rows_left_out["where"] == 510
    said = "rows left out (impossible_time): 5.0% of all rows, last time 0.5%"
    assert second.track.tags["drift"].endswith(said)
