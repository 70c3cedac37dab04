"""`lookback power` on a fabricated evaluation of nights."""

import datetime
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from pipeline.commands import power as command
from pipeline.commands.power import power, variance_of
from pipeline.config import Config
from pipeline.errors import ConfigError, LookbackError
from pipeline.evaluation.report import NightsTested
from pipeline.monitoring import past_nights
from tests.evaluation_reports import evaluation_report
from tests.pipeline.monitoring.simulated_outcomes import outcomes

NIGHTS = [datetime.datetime(2020, 1, day, tzinfo=datetime.UTC) for day in (1, 8)]
METRICS = {"lookback": {"ndcg@10": 0.5}}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two nights, weekly: a takes two items on the first and one on the second, b one at each, c one on the second."""
    monkeypatch.setattr(command, "finished_folder", lambda *_: tmp_path)
    nights = NightsTested(NIGHTS[0].isoformat(), NIGHTS[1].isoformat(), 2, 7.0, 7.0)
    evaluation_report(METRICS, nights=nights).save(tmp_path)
    table: dict[str, Any] = {
        "system": "lookback",
        "night": [NIGHTS[0], NIGHTS[0], NIGHTS[1], NIGHTS[0], NIGHTS[1], NIGHTS[1]],
        "user_id": ["a", "a", "a", "b", "b", "c"],
        "rank": [1.0, 30.0, 30.0, 1.0, 1.0, 40.0],
    }
    own = pl.DataFrame(table)
    pl.concat([own, own.with_columns(system=pl.lit("ease"), rank=1.0)]).write_parquet(
        tmp_path / "targets.parquet"
    )
    return tmp_path


@pytest.fixture
def config() -> Config:
    columns = {"user_id": "u", "item_id": "i", "timestamp": "t"}
    return Config.model_validate({"name": "small", "events": {"path": "no.csv", "columns": columns}})


def test_the_variance_of_an_evaluation_by_pencil(folder: Path):
    """Hit rates: a 1 and 0, b 1 and 1, c 0: within .5 / (5 - 3), mean .6, between squares 2 * .01 + 2 * .16 + .36 over 2.

    n0 = (5 - 9 / 5) / 2 = 1.6: between (.35 - .25) / 1.6.
    """
    found = variance_of(folder, "hit_rate@10", 2)
    assert (found.users, found.nights) == (3, 2)
    assert (found.rate, found.mean, found.within, found.between) == pytest.approx((5 / 6, 0.6, 0.25, 0.0625))


def test_the_plan_as_json(folder: Path, config: Config, capsys: pytest.CaptureFixture[str]):
    power(config, users=1000, days=14, effect=0.05, as_json=True)
    tree = json.loads(capsys.readouterr().out)
    variance = variance_of(folder, "ndcg@10", 2)
    assert tree["smallest_effect"] == pytest.approx(variance.smallest_effect(1000, 2))
    assert tree["users_needed"][0] == {"effect": 0.05, "users": variance.users_needed(0.05, 2)}
    assert [own["effect"] for own in tree["users_needed"][1:]] == pytest.approx(
        [part * variance.mean for part in command.RELATIVE]
    )


def test_past_nights_of_delivered_lists_come_before_the_evaluation(
    folder: Path, config: Config, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """Of three nights judged; the evaluation tells where one is, or the lists have another length than the gate's metric."""
    monitor = folder / "monitor"
    monkeypatch.setattr(command, "linked", lambda _: {"latest": monitor})
    monitor.mkdir()
    judged = outcomes(np.random.default_rng(0), 200, range(3))
    judged.write_parquet(monitor / "outcomes.parquet")
    power(config, users=1000, days=2, as_json=True)
    tree = json.loads(capsys.readouterr().out)
    past = past_nights.of_outcomes(judged, "ndcg")
    assert past is not None
    assert tree["source"] == "nights of delivered lists, within 1 day"
    assert tree["smallest_effect"] == past.variance.smallest_effect(1000, 2)
    power(config)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("at 3 nights, every 1 days (nights of delivered lists, within 1 day)")
    evaluated = "test nights of the evaluation, within 7 days"
    for fewer in (judged.head(1), judged.with_columns(k=pl.lit(5, pl.Int32))):
        fewer.write_parquet(monitor / "outcomes.parquet")
        power(config, as_json=True)
        assert json.loads(capsys.readouterr().out)["source"] == evaluated
    (monitor / "outcomes.parquet").write_bytes(b"no table")
    power(config, as_json=True)
    assert json.loads(capsys.readouterr().out)["source"] == evaluated


def test_the_plan_as_text(folder: Path, config: Config, capsys: pytest.CaptureFixture[str]):
    power(config)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("at 2 nights, every 7 days (test nights of the evaluation, within 7 days)")
    assert lines[1].startswith("3 users, each with a value at 83% of the nights; standard deviation ")
    assert lines[2].startswith("3 such users for 14 days, 50% of them in one of two arms: effects from ")
    assert lines[4].split() == ["effect", "users", "needed"]


def test_other_targets_and_impossible_plans_are_refused(folder: Path, config: Config):
    with pytest.raises(ConfigError, match=r"received --days 3 and --share 0.5, expected at least 7 days"):
        power(config, days=3)
    with pytest.raises(ConfigError, match="--share 1"):
        power(config, share=1)
    evaluation_report(METRICS).save(folder)
    with pytest.raises(LookbackError, match=r"no two nights of delivered lists.*evaluate.targets=nightly"):
        power(config)
