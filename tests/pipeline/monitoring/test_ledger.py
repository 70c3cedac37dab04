"""The ledger: entered once, a table that outlives the lists, which lists `prune` keeps."""

import shutil
from pathlib import Path

import polars as pl
import pytest

from pipeline.artifacts.files import write_json
from pipeline.artifacts.store import Artifact
from pipeline.config import Config, load_config
from pipeline.monitoring import ledger

DAY = 86_400_000_000


@pytest.fixture
def config(tmp_path: Path) -> Config:
    columns = '{ user_id = "u", item_id = "i", timestamp = "t" }'
    (tmp_path / "log.toml").write_text(
        f'name = "log"\ndata_dir = "{tmp_path}"\n[events]\npath = "log.csv"\ncolumns = {columns}\n'
    )
    return load_config(tmp_path / "log.toml")


def scored(config: Config, number: int, day: float, at: str | None = None) -> Artifact:
    """A score artifact with a manifest alone."""
    artifact = Artifact(config.folder / "score", f"{number:016x}")
    artifact.folder.mkdir(parents=True)
    manifest = {
        "created_utc": f"2026-04-{number:02}T00:00:00+00:00",
        "request_time": round(day * DAY),
        "settings": {"score.k": 3, "score.at": at},
        "inputs": {"features": f"f{day}"},
        "model_version": number,
        "bundle_digest": f"d{number}",
        "exclude_seen": True,
        "users": 5,
        "cold_users": 1,
        "short_lists": 0,
        "shadows": {"popularity": {"model_version": None, "bundle_digest": ""}},
    }
    write_json(artifact.folder / "manifest.json", manifest)
    return artifact


def test_each_scoring_is_entered_once_and_outlives_its_lists(config: Config) -> None:
    first, second = scored(config, 1, 10), scored(config, 2, 11)
    for artifact in (first, second, first):
        ledger.enter(config, artifact)
    shutil.rmtree(first.folder)
    assert ledger.is_entered(first)
    table = pl.read_parquet(config.folder / "score" / "deliveries.parquet")
    assert table.columns[:2] == ["delivered_utc", "log_time"]
    assert table["log_time"].dt.timestamp("us").to_list() == [10 * DAY] * 2 + [11 * DAY] * 2
    assert table.select("folder", "model_version", "bundle_digest", "shadow").rows() == [
        (first.name, 1, "d1", None),
        (first.name, None, "", "popularity"),
        (second.name, 2, "d2", None),
        (second.name, None, "", "popularity"),
    ]
    assert [delivery.folder for delivery in ledger.deliveries(first.stage_folder)] == [
        first.name,
        second.name,
    ]


def test_a_log_judges_no_lists_made_at_its_end(config: Config) -> None:
    """A request set to the past is judged by the same log at once, from its very moment on."""
    for number, at in ((1, None), (2, "1970-01-11")):
        ledger.enter(config, scored(config, number, 10, at))
    score = config.folder / "score"
    assert [delivery.model_version for delivery in ledger.preceding(score, "f10")] == [2]
    assert [delivery.model_version for delivery in ledger.preceding(score, "f11")] == [1, 2]
    assert [delivery.before - 10 * DAY for delivery in ledger.deliveries(score)] == [1, 0]


def test_lists_with_an_open_window_are_the_last_of_each_night(config: Config) -> None:
    for number, day in ((1, 10), (2, 10), (3, 14), (4, 17.5)):
        ledger.enter(config, scored(config, number, day))
    score = config.folder / "score"
    assert [int(name, 16) for name in ledger.open_lists(score, 7)] == [3, 4]
    assert [int(name, 16) for name in ledger.open_lists(score, 7.5)] == [2, 3, 4]
