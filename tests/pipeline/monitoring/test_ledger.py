"""The ledger: entered once, a table that outlives the lists, which lists `prune` keeps."""

import shutil
from pathlib import Path

import polars as pl
import pytest

from pipeline.artifacts.files import read_json, write_json
from pipeline.artifacts.store import Artifact
from pipeline.config import Config, load_config
from pipeline.errors import ConfigError
from pipeline.experiment_section import ExperimentConfig
from pipeline.monitoring import ledger

DAY = 86_400_000_000


@pytest.fixture
def config(tmp_path: Path) -> Config:
    columns = '{ user_id = "u", item_id = "i", timestamp = "t" }'
    (tmp_path / "log.toml").write_text(
        f'name = "log"\ndata_dir = "{tmp_path}"\n[events]\npath = "log.csv"\ncolumns = {columns}\n'
    )
    return load_config(tmp_path / "log.toml")


def scored(config: Config, number: int, day: float, at: str | None = None, **more: object) -> Artifact:
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
    write_json(artifact.folder / "manifest.json", manifest | more)
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


EXPERIMENT = {
    "name": "ranker-2",
    "salt": "s",
    "arms": [
        {"name": "champion", "share": 0.9, "model_version": 1, "bundle_digest": "d1", "users": 4},
        {"name": "challenger", "share": 0.1, "model_version": 3, "bundle_digest": "d3", "users": 1},
    ],
}


def test_lists_by_arm_are_a_row_per_arm(config: Config) -> None:
    artifact = scored(config, 1, 10, experiment=EXPERIMENT)
    ledger.enter(config, artifact)
    table = pl.read_parquet(config.folder / "score" / "deliveries.parquet")
    assert table.select("arm", "shadow", "model_version", "bundle_digest").rows() == [
        ("champion", None, 1, "d1"),
        ("challenger", None, 3, "d3"),
        (None, "popularity", None, ""),
    ]
    (entered,) = ledger.deliveries(config.folder / "score")
    assert entered.experiment is not None
    assert entered.experiment.shares == {"champion": 0.9, "challenger": 0.1}
    assert entered.promised_arm == "champion"


def test_a_record_without_experiments_is_read(config: Config) -> None:
    artifact = scored(config, 1, 10)
    ledger.enter(config, artifact)
    path = config.folder / "score" / ".deliveries" / f"{artifact.name}.json"
    record = read_json(path)
    del record["experiment"]
    write_json(path, record | {"arm": None})
    (entered,) = ledger.deliveries(config.folder / "score")
    assert (entered.experiment, entered.promised_arm) == (None, None)


def test_salt_and_arms_stay_while_an_experiment_runs(config: Config) -> None:
    ledger.enter(config, scored(config, 1, 10, experiment=EXPERIMENT))
    ledger.enter(config, scored(config, 2, 11))
    entered = ledger.deliveries(config.folder / "score")
    arms = {"champion": 0.9, "challenger": 0.1}
    same = ExperimentConfig(name="ranker-2", arms=arms, salt="s", start="1970-01-01")
    ledger.check_unchanged(same, entered)
    ledger.check_unchanged(same.model_copy(update={"start": "1970-02-01", "smallest_effect": 0.2}), entered)
    ledger.check_unchanged(same.model_copy(update={"name": "ranker-3", "salt": "t"}), entered)
    with pytest.raises(ConfigError) as salted:
        ledger.check_unchanged(same.model_copy(update={"salt": "t"}), entered)
    assert str(salted.value) == (
        "experiment.salt: received 't', but 'ranker-2' has run with 's' since 1970-01-11T00:00:00+00:00: users would change "
        "their arms in the middle; set it back, or begin another experiment with another experiment.name"
    )
    for changed in ({"champion": 0.8, "challenger": 0.2}, dict(reversed(arms.items()))):
        with pytest.raises(ConfigError, match=r"has run with { champion = 0.9, challenger = 0.1 } since"):
            ledger.check_unchanged(same.model_copy(update={"arms": changed}), entered)
