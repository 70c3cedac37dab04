"""The search: seeded, resumed, refused combinations counted; training itself is replaced by a known function."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipeline import tune
from pipeline.config import Config, EventsConfig, TuneConfig, load_config
from pipeline.errors import ConfigError

SPACE = {"train.learning_rate": {"low": 1e-4, "high": 1e-1, "log": True}, "model.num_blocks": [1, 2, 3]}


class Trained:
    """Stands for `train`: NDCG is best at a learning rate of 1e-2 and 2 blocks; remembers what it was asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[Config] = []
        self.die_at: int | None = None

    def __call__(self, config: Config, names: Sequence[str], **_: Any) -> list[dict[str, Any]]:
        assert names == ["train"]
        if len(self.asked) == self.die_at:
            raise KeyboardInterrupt
        self.asked.append(config)
        score = (
            0.2
            - 0.02 * abs(math.log10(config.train.learning_rate) + 2)
            - 0.01 * abs(config.model.num_blocks - 2)
        )
        frame = pl.DataFrame({"epoch": [1, 2, 3], tune.OBJECTIVE: [score / 2, score, None]})
        frame.write_parquet(self.folder / "history.parquet")
        return [{"stage": "train", "folder": str(self.folder)}]


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trained:
    stand_in = Trained(tmp_path)
    monkeypatch.setattr(tune, "bring_up_to_date", stand_in)
    return stand_in


def configuration(folder: Path, space: dict[str, Any] | None = None) -> Config:
    events = EventsConfig(path="log.csv", columns={"user_id": 1, "item_id": 2, "timestamp": 3}, header=False)
    return Config(name="tiny", data_dir=str(folder), events=events, tune=TuneConfig(space=space or SPACE))


def settings_of(config: Config) -> tuple[float, int]:
    return config.train.learning_rate, config.model.num_blocks


def test_finds_the_planted_best_and_writes_a_configuration(trained: Trained, tmp_path: Path) -> None:
    lines: list[str] = []
    path = tune.tune(configuration(tmp_path), 25, lines.append)
    best = load_config(path)
    assert best.model.num_blocks == 2
    assert 10**-2.5 < best.train.learning_rate < 10**-1.5
    assert best.events.columns == {"user_id": 1, "item_id": 2, "timestamp": 3}
    assert len(trained.asked) == 25
    assert str(path) in lines[-1]


def test_killed_search_goes_on_with_the_same_trials(trained: Trained, tmp_path: Path) -> None:
    whole = configuration(tmp_path / "whole")
    tune.tune(whole, 6, lambda _: None)
    expected, trained.asked = [settings_of(each) for each in trained.asked], []

    killed = configuration(tmp_path / "killed")
    trained.die_at = 3
    with pytest.raises(KeyboardInterrupt):
        tune.tune(killed, 6, lambda _: None)
    trained.die_at = None
    tune.tune(killed, 6, lambda _: None)
    assert [settings_of(each) for each in trained.asked] == expected

    tune.tune(killed, 6, lambda _: None)
    assert len(trained.asked) == 6, "all six are there: nothing to do"


def test_combinations_that_do_not_fit_are_counted(trained: Trained, tmp_path: Path) -> None:
    space = {"model.num_heads": [2, 3]}
    lines: list[str] = []
    tune.tune(configuration(tmp_path, space), 8, lines.append)
    refused = [line for line in lines if "refused" in line and "multiple of num_heads" in line]
    assert 0 < len(refused) == 8 - len(trained.asked)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"train.learing_rate": [1e-3]}, "received key 'train.learing_rate'"),
        ({"split.protocol": ["temporal"]}, "received key 'split.protocol'"),
        ({"train.learning_rate": {"low": 1.0}}, "low and high are needed"),
        ({"train.learning_rate": {"low": 0.1, "high": 0.01}}, "low not above high"),
        ({"train.learning_rate": {"low": 0.0, "high": 0.1, "log": True}}, "train.learning_rate: received"),
        ({"model.dim": []}, "model.dim: received"),
    ],
)
def test_space_that_cannot_be_searched(tmp_path: Path, space: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tune.tune(configuration(tmp_path, space), 1, lambda _: None)
