"""The search: seeded, pruned, resumed, refused combinations counted (training replaced by a known function); then for real."""

import json
import math
import os
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from features.settings import EventSettings
from pipeline.commands import tune
from pipeline.config import Config, load_config
from pipeline.errors import ConfigError
from pipeline.orchestration.graph import resolve
from pipeline.orchestration.runner import ended_by_sigterm
from pipeline.sections import TrackingConfig, TuneConfig
from pipeline.tracking.client import client_at
from pipeline.tracking.live import LiveRun, StopEarly, observed
from pipeline.tracking.record import RunRecord
from pipeline.tracking.tracker import Tracker
from tests.workdir import TINY

SPACE = {"train.learning_rate": {"low": 1e-4, "high": 1e-1, "log": True}, "model.num_blocks": [1, 2, 3]}
EPOCHS = 3


class Trained:
    """Stands for `train`: NDCG is best at a learning rate of 1e-2 and 2 blocks; remembers what it was asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[Config] = []
        self.epochs = 0
        self.die_at_epoch: int | None = None

    def __call__(self, config: Config, names: Sequence[str], **_: Any) -> list[dict[str, Any]]:
        if names == ["features"]:
            return [{"folder": ""}]
        assert names == ["train"]
        self.asked.append(config)
        rate, blocks = settings_of(config)
        score = 0.2 - 0.02 * abs(math.log10(rate) + 2) - 0.01 * abs(blocks - 2)
        live = LiveRun(None, lambda _: None, lambda _: None)
        for epoch in range(1, EPOCHS + 1):
            if self.epochs == self.die_at_epoch:
                raise KeyboardInterrupt
            self.epochs += 1
            live.metrics({"loss": 1.0, tune.OBJECTIVE: score * epoch / EPOCHS}, epoch)
        values = [score * epoch / EPOCHS for epoch in range(1, EPOCHS + 1)]
        history = pl.DataFrame({"epoch": [*range(1, EPOCHS + 2)], tune.OBJECTIVE: [*values, None]})
        history.write_parquet(self.folder / "history.parquet")
        return [{"stage": "train", "folder": str(self.folder)}]


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trained:
    stand_in = Trained(tmp_path)
    monkeypatch.setattr(tune, "bring_up_to_date", stand_in)
    return stand_in


def configuration(folder: Path, space: dict[str, Any] | None = None, **settings: Any) -> Config:
    folder.mkdir(exist_ok=True)
    log = folder.parent / "log.csv"
    log.write_text("1,1,1\n")
    events = EventSettings(path=str(log), columns={"user_id": 1, "item_id": 2, "timestamp": 3}, header=False)
    return Config(
        name="tiny",
        data_dir=str(folder),
        events=events,
        tracking=TrackingConfig(enabled=False),
        tune=TuneConfig(space=space or SPACE, **settings),
    )


def settings_of(config: Config) -> tuple[float, int]:
    return config.train.learning_rate, config.model.num_blocks


def table(best: Path) -> list[list[Any]]:
    """The rows of a search's trials.json."""
    rows: list[list[Any]] = json.loads((best.parent / "trials.json").read_text())["data"]
    return rows


def test_finds_the_planted_best_and_writes_a_configuration(trained: Trained, tmp_path: Path) -> None:
    lines: list[str] = []
    path = tune.tune(configuration(tmp_path / "data", pruner="none"), 25, lines.append)
    best = load_config(path)
    assert best.model.num_blocks == 2
    assert 10**-2.5 < best.train.learning_rate < 10**-1.5
    assert best.events.columns == {"user_id": 1, "item_id": 2, "timestamp": 3}
    assert len(trained.asked) == 25
    assert str(path) in lines[-1]
    points = RunRecord.load(path.parent).points
    shares = {point.name: point.value for point in points if point.name.startswith("importance/")}
    assert shares.keys() == {f"importance/{key}" for key in SPACE}
    assert sum(shares.values()) == pytest.approx(1)
    curve = [point.value for point in points if point.name == "best_validation_ndcg_at_10"]
    assert curve == sorted(curve)
    assert len(curve) == 25


@pytest.mark.parametrize(
    ("pruner", "die_at_epoch"),
    [
        ("median", 9),
        *(
            pytest.param(*each, marks=pytest.mark.slow)
            for each in (("median", 11), ("halving", 8), ("none", 10))
        ),
    ],
)
def test_killed_search_goes_on_with_the_same_trials(
    trained: Trained, tmp_path: Path, pruner: str, die_at_epoch: int
) -> None:
    """Between two trials or in the middle of one: the trials, their epochs and their ends are those of an undisturbed search."""
    settings: dict[str, Any] = {"pruner": pruner, "warmup_epochs": 1, "warmup_trials": 2}
    expected = table(tune.tune(configuration(tmp_path / "whole", **settings), 6, lambda _: None))

    killed = configuration(tmp_path / "killed", **settings)
    trained.epochs, trained.die_at_epoch = 0, die_at_epoch
    with pytest.raises(KeyboardInterrupt):
        tune.tune(killed, 6, lambda _: None)
    trained.die_at_epoch = None
    assert table(tune.tune(killed, 6, lambda _: None)) == expected

    trained.asked = []
    assert table(tune.tune(killed, 6, lambda _: None)) == expected
    assert not trained.asked, "all six are there: nothing to do"


@pytest.mark.parametrize(("pruner", "at_epoch"), [("median", 2), ("halving", 2)])
def test_what_falls_behind_is_pruned(trained: Trained, tmp_path: Path, pruner: str, at_epoch: int) -> None:
    """No trial gets fewer epochs than `warmup_epochs`; what is pruned is worse there than what was not."""
    config = configuration(tmp_path / "data", pruner=pruner, warmup_epochs=at_epoch, warmup_trials=3)
    lines: list[str] = []
    rows = table(tune.tune(config, 15, lines.append))
    pruned = [row for row in rows if row[1] == "PRUNED"]
    assert 0 < len(pruned) == sum("pruned: after epoch 2" in line for line in lines)
    assert {row[3] for row in pruned} == {at_epoch}
    complete = [row for row in rows if row[1] == "COMPLETE"]
    assert {row[3] for row in complete} == {EPOCHS}
    assert max(row[2] for row in pruned) < max(row[2] for row in complete) * at_epoch / EPOCHS
    assert trained.epochs == at_epoch * len(pruned) + EPOCHS * len(complete)


def test_another_log_is_another_study(trained: Trained, tmp_path: Path) -> None:
    config = configuration(tmp_path / "data")
    first = tune.tune(config, 1, lambda _: None)
    (tmp_path / "log.csv").write_text("1,1,1\n1,2,2\n")
    assert tune.tune(config, 1, lambda _: None) != first
    assert len(trained.asked) == 2


def test_combinations_that_do_not_fit_are_counted(trained: Trained, tmp_path: Path) -> None:
    lines: list[str] = []
    tune.tune(configuration(tmp_path / "data", {"model.num_heads": [2, 3]}), 8, lines.append)
    refused = [line for line in lines if "refused: model.dim" in line and "multiple of num_heads" in line]
    assert 0 < len(refused) == 8 - len(trained.asked)


def test_a_value_out_of_range_is_refused_by_its_key(trained: Trained, tmp_path: Path) -> None:
    space = {"history.max_length": {"low": -5, "high": 5}}
    rows = table(tune.tune(configuration(tmp_path / "data", space), 6, lambda _: None))
    refused = [row for row in rows if row[1] == "REFUSED"]
    assert {row[4] > 0 for row in refused} == {False}
    assert all(row[-1].startswith("history.max_length: ") for row in refused)


def test_nothing_that_can_be_trained(trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="multiple of num_heads"):
        tune.tune(configuration(tmp_path / "data", {"model.num_heads": [3]}), 2, lambda _: None)
    assert not trained.asked


def test_what_cannot_be_trained_is_counted(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverging(config: Config, names: Sequence[str], **settings: Any) -> list[dict[str, Any]]:
        if config.model.num_blocks == 3 and names == ["train"]:
            raise ValueError("training: received loss nan")
        return trained(config, names, **settings)

    monkeypatch.setattr(tune, "bring_up_to_date", diverging)
    rows = table(tune.tune(configuration(tmp_path / "data"), 8, lambda _: None))
    assert {row[5] for row in rows if row[1] == "FAILED"} == {3}
    assert {row[6] for row in rows if row[1] == "FAILED"} == {"training: received loss nan"}


def test_no_trial_begins_after_max_seconds(trained: Trained, tmp_path: Path) -> None:
    config = configuration(tmp_path / "data", max_seconds=1e-9)
    assert len(table(tune.tune(config, 3, lambda _: None))) == 1
    assert len(table(tune.tune(configuration(tmp_path / "data"), 3, lambda _: None))) == 3, "the same study"


def test_a_server_that_was_away_is_given_the_runs(
    trained: Trained, tmp_path: Path, empty_database: Path
) -> None:
    config = configuration(tmp_path / "data")
    tune.tune(config, 3, lambda _: None)
    shutil.copyfile(empty_database, tmp_path / "mlflow.db")
    there = TrackingConfig(uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    for _ in range(2):
        tune.tune(config.model_copy(update={"tracking": there}), 3, lambda _: None)
    client = client_at(str(there.uri))
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    (parent,) = [run for run in runs if run.data.tags["lookback.stage"] == "tune"]
    assert {run.data.tags.get("mlflow.parentRunId") for run in runs} == {None, parent.info.run_id}
    assert [run.info.status for run in runs] == ["FINISHED"] * 4
    assert len(trained.asked) == 3


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"train.learing_rate": [1e-3]}, "received key 'train.learing_rate'"),
        ({"split.protocol": ["temporal"]}, "received key 'split.protocol'"),
        ({"split": {"ties": ["order"]}}, "received key 'split.ties'"),
        ({"train.refit": [True, False]}, "received key 'train.refit'"),
        ({"train.learning_rate": {"low": 1.0}}, "low and high are required"),
        ({"train.learning_rate": {"low": 0.1, "high": 0.01}}, "low not above high"),
        ({"train.learning_rate": {"low": 0.0, "high": 0.1, "log": True}}, "train.learning_rate: received"),
        ({"model.request_time": {"low": 0, "high": 1}}, "False is no number"),
        ({"model.block": {"low": 0, "high": 1}}, "'transformer' is no number"),
        ({"model.block": ["hstu", "transfomer"]}, "'transfomer': Input should be"),
        ({"model.dim": [32, "wide"]}, "'wide': Input should be"),
        ({"model.dim": []}, "model.dim: received"),
    ],
)
def test_space_that_cannot_be_searched(tmp_path: Path, space: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tune.tune(configuration(tmp_path / "data", space), 1, lambda _: None)


def test_every_key_that_training_reads_can_be_searched(tmp_path: Path) -> None:
    config = configuration(tmp_path / "data")
    keys = [f"{section}.{key}" for section in ("model", "train") for key in config.get(section)]
    of_updates = {"train.start", "train.replay", "train.full_every_days"}  # a search trains from scratch
    for key in set(keys) - {"train.refit", "train.checkpoint_seconds"} - of_updates:
        tune._distribution(config, key, [config.get(key)])


def test_observer_sees_what_begins_within_and_ends_it() -> None:
    seen: list[tuple[Any, int]] = []
    ends: list[str] = []

    def observer(values: Any, step: int) -> None:
        seen.append((dict(values), step))
        raise StopEarly

    before = LiveRun(None, lambda _: None, ends.append)
    with observed(observer):
        before.metrics({"a": 1.0}, 1)
        with pytest.raises(StopEarly), LiveRun(None, lambda _: None, ends.append) as live:
            live.metrics({"a": 2.0}, 7)
    LiveRun(None, lambda _: None, ends.append).metrics({"a": 3.0}, 3)
    assert seen == [({"a": 2.0}, 7)]
    assert ends == ["KILLED"]


def test_sigterm_ends_the_runs_too() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as exit_, ended_by_sigterm():
        os.kill(os.getpid(), signal.SIGTERM)
    assert exit_.value.code == 143
    assert signal.getsignal(signal.SIGTERM) == before


REAL = """
[tune]
warmup_epochs = 1
warmup_trials = 1
[tune.space]
train.learning_rate = [0.003, 1e-9]
"model.num_heads" = [2, 3]
"""


def real(folder: Path, database: Path) -> Config:
    """The tiny pipeline with a space of a good, a hopeless and an impossible part, and a tracking store of its own."""
    folder.mkdir()
    shutil.copyfile(database, folder / "mlflow.db")
    (folder / "tiny.toml").write_text(TINY + REAL)
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    return load_config(folder / "tiny.toml", ["seed=6", f"data_dir={folder / 'data'}", f"tracking.uri={uri}"])


@pytest.mark.slow
def test_nested_runs_of_a_search_that_was_killed_twice(
    tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    expected = table(tune.tune(real(tmp_path / "whole", empty_database), 3, lambda _: None))
    assert [row[1] for row in expected] == ["COMPLETE", "REFUSED", "PRUNED"]

    config = real(tmp_path / "killed", empty_database)
    tracker = Tracker.from_config(config)
    client = client_at(tracker.uri)

    def runs(stage: str) -> list[Any]:
        experiment = client.get_experiment_by_name("tiny")
        assert experiment is not None
        found = client.search_runs(
            [experiment.experiment_id],
            f"tags.`lookback.stage` = '{stage}'",
            order_by=["attributes.start_time ASC"],
        )
        return list(found)

    epochs: list[int] = []

    def killed_at_the_second_epoch(values: Any, step: int) -> None:
        if tune.OBJECTIVE in values:
            epochs.append(step)
            if epochs == [1, 2]:
                raise KeyboardInterrupt

    monkeypatch.setattr(tune, "observed", observed_too(killed_at_the_second_epoch))
    with pytest.raises(KeyboardInterrupt):
        tune.tune(config, 3, lambda _: None)
    (parent,) = runs("tune")
    assert [run.info.status for run in [parent, *runs("trial"), *runs("train")]].count("RUNNING") == 0
    assert parent.info.status == "KILLED"

    def killed_after_a_trial(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune.tune(config, 3, killed_after_a_trial)
    best = tune.tune(config, 3, lambda _: None)
    assert table(best) == expected
    assert epochs.count(1) == 2, "the first trial went on from its checkpoint; the third is another one"

    again = runs("tune")
    assert [run.info.run_id for run in again] == [parent.info.run_id], "the parent was found again"
    assert_runs_show_the_search(client, again[0], runs("trial"), expected)
    finished = again[0].info.end_time
    tune.tune(config, 3, lambda _: None)
    assert runs("tune")[0].info.end_time == finished, "nothing was left to do"

    pruned = next(run for run in runs("trial") if run.data.tags["lookback.state"] == "PRUNED")
    tried = tune.with_settings(
        config, {"train.learning_rate": float(pruned.data.params["train.learning_rate"])}
    )
    node = resolve(tried, ["train"]).nodes["train"]
    assert not node.artifact.folder.exists(), "what was pruned is not an artifact"
    assert (node.artifact.workspace / "checkpoints").exists(), "it can go on"


def observed_too(other: Any) -> Any:
    """`observed` whose observer also calls another one, first."""

    def both(observer: Any) -> Any:
        def observe(values: Any, step: int) -> None:
            other(values, step)
            observer(values, step)

        return observed(observe)

    return both


def assert_runs_show_the_search(client: Any, parent: Any, trials: list[Any], rows: list[list[Any]]) -> None:
    """One nested run per trial with its settings, epochs, state and training; the best in the parent."""
    assert parent.info.status == "FINISHED"
    best = max((row for row in rows if row[1] == "COMPLETE"), key=lambda row: row[2])
    assert parent.data.metrics["best_validation_ndcg_at_10"] == pytest.approx(best[2], abs=0)
    assert parent.data.metrics["trials"] == len(rows) == len(trials)
    number = parent.data.tags["lookback.best_trial"]
    files = {file.path for file in client.list_artifacts(parent.info.run_id, f"best/trial {number}")}
    assert files == {f"best/trial {number}/best.toml"}
    for run, row in zip(trials, rows, strict=True):
        tags, params = run.data.tags, run.data.params
        assert run.info.status == "FINISHED"
        assert tags["mlflow.parentRunId"] == parent.info.run_id
        assert tags["lookback.state"] == row[1]
        assert (float(params["train.learning_rate"]), int(params["model.num_heads"])) == (row[4], row[5])
        history = client.get_metric_history(run.info.run_id, "validation_ndcg_at_10") if row[3] else []
        assert [point.step for point in history] == list(range(1, row[3] + 1))
        assert ("lookback.train_run" in tags) == (row[1] != "REFUSED")
        if row[1] != "REFUSED":
            training = client.get_run(tags["lookback.train_run"])
            assert training.info.status == ("FINISHED" if row[1] == "COMPLETE" else "KILLED")
