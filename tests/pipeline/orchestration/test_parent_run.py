"""The run of a whole invocation: ended whatever happens, side by side with others, on a server that comes and goes."""

import contextlib
import json
import re
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pipeline.config import load_config
from pipeline.orchestration import parent_run
from pipeline.tracking.client import client_at
from tests.pipeline.tracking.test_tracker import free_port, running, server
from tests.workdir import Workdir

if TYPE_CHECKING:  # MLflow is imported by client_at, which makes it quiet first
    from mlflow.entities import Run

LONG = ("--set", "train.epochs=400", "--set", "train.patience=400")
MODEL = "transformer-2x16 tiny temporal"


def started(workdir: Workdir, *arguments: str) -> "subprocess.Popen[str]":
    """A command that runs beside the test."""
    command = workdir.command(*arguments, "--config", workdir.config)
    return subprocess.Popen(
        command,
        cwd=workdir.folder,
        env=workdir.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def runs(uri: str) -> "dict[str, list[Run]]":
    """Every run by its name, oldest first."""
    client = client_at(uri)
    experiment = client.get_experiment_by_name("tiny")
    found: dict[str, list[Run]] = {}
    if experiment is not None:
        for run in client.search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"]):
            found.setdefault(run.info.run_name, []).append(run)
    return found


def training_with_metrics(uri: str, *, besides: int = 0) -> "Run":
    """The newest training, as soon as there is one more than `besides` and it shows a loss."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        found = runs(uri).get(f"train {MODEL}", [])
        if len(found) > besides and "loss" in found[-1].data.metrics:
            return found[-1]
        time.sleep(0.2)
    raise AssertionError("no training has shown a loss")


@pytest.fixture
def uri(copied: Workdir) -> str:
    return f"sqlite:///{copied.folder}/mlruns/mlflow.db"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_killed_run_does_not_stay_running(copied: Workdir, uri: str, number: signal.Signals) -> None:
    process = started(copied, "run", "train", *LONG)
    training = training_with_metrics(uri, besides=1)
    process.send_signal(number)
    process.communicate()
    assert process.returncode != 0
    if number == signal.SIGKILL:
        assert client_at(uri).get_run(training.info.run_id).info.status == "RUNNING"
        copied.run("ingest")  # the next run, whatever it does, finds out
    whole = runs(uri)[MODEL][-1]
    assert client_at(uri).get_run(training.info.run_id).info.status == "KILLED"
    assert whole.info.status == "KILLED"
    assert "KILLED" in whole.data.tags["mlflow.note.content"]


SEARCH = """
[tune]
pruner = "none"
[tune.space]
train.learning_rate = [0.003, 0.001]
"""


@pytest.mark.slow
def test_a_killed_search_does_not_stay_running_and_goes_on(copied: Workdir, uri: str) -> None:
    with (copied.folder / "tiny.toml").open("a") as file:
        file.write(SEARCH)
    tune = ("tune", "--trials", "2", "--set", "train.epochs=60", "--set", "train.patience=60")
    client, process = client_at(uri), started(copied, *tune)
    training_with_metrics(uri, besides=1)
    found = runs(uri)
    (search,), (trial,), training = found["tune learning_rate"], found["trial 1"], found[f"train {MODEL}"][-1]
    ids = [run.info.run_id for run in (search, trial, training)]
    copied.run("ingest")
    assert [client.get_run(each).info.status for each in ids] == ["RUNNING"] * 3, "it is under way"
    assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert [client.get_run(each).info.status for each in ids] == ["RUNNING"] * 3
    copied.run("ingest")  # the next run, whatever it does, finds out
    assert [client.get_run(each).info.status for each in ids] == ["KILLED"] * 3
    assert "its process ended" in client.get_run(search.info.run_id).data.tags["mlflow.note.content"]

    again = copied(*tune)
    assert again.code == 0, again.err
    found = runs(uri)
    assert [run.info.run_id for run in found["tune learning_rate"]] == ids[:1], "the search went on"
    assert [run.info.run_id for run in found["trial 1"]] == ids[1:2], "and so did its trial"
    ended = [found[name][0].info.status for name in ("tune learning_rate", "trial 1", "trial 2")]
    assert ended == ["FINISHED"] * 3
    said = client.get_run(search.info.run_id).data.tags["mlflow.note.content"]
    assert said.startswith("**Validation NDCG@10 0.")
    assert "the best of 2 (2 complete)" in said


def test_a_failed_run_says_why(copied: Workdir, uri: str) -> None:
    assert copied("run", "features", "--set", "split.test_from=1971-01-01").code == 1
    whole = next(found[-1] for name, found in runs(uri).items() if name == "ingest features tiny temporal")
    assert whole.info.status == "FAILED"
    assert whole.data.tags["mlflow.note.content"].startswith("**FAILED**: ")


@pytest.mark.slow
def test_what_is_up_to_date_is_linked_and_a_run_that_builds_nothing_leaves_nothing(
    copied: Workdir, uri: str
) -> None:
    before = sum(map(len, runs(uri).values()))
    copied.run("all")
    assert sum(map(len, runs(uri).values())) == before
    copied.run("evaluate", "--set", "model.dim=8", "--set", "train.epochs=1")
    found = runs(uri)
    (first,), (second,) = found[MODEL], found["transformer-2x8 tiny temporal"]
    (features,) = found["features tiny temporal"]
    tags = second.data.tags
    assert tags["lookback.run.features"] == features.info.run_id
    assert tags["lookback.changed_settings"] == "model.dim 16 → 8, train.epochs 3 → 1"
    assert first.data.tags["lookback.changed_settings"] == "the first run"
    assert tags["lookback.target_set"] == first.data.tags["lookback.target_set"]
    assert re.fullmatch(r"0\.\d{4} \(0\.\d{4} to 0\.\d{4}\)", tags["lookback.ndcg_at_10"])
    assert features.data.tags["mlflow.parentRunId"] == first.info.run_id
    note = tags["mlflow.note.content"]
    assert (
        f"| features | [up to date](#/experiments/{first.info.experiment_id}/runs/{features.info.run_id}"
        in note
    )
    assert "Earlier runs on the same targets: " in note
    under = {
        run.data.tags["lookback.stage"]
        for each in found.values()
        for run in each
        if run.data.tags.get("mlflow.parentRunId") == second.info.run_id
    }
    assert under == {"train", "index", "rank", "evaluate"}
    report = json.loads((copied.artifact("evaluate") / "metrics.json").read_text())
    assert (
        f"**NDCG@10 {report['metrics']['lookback']['ndcg@10']:.4f}**"
        in first.data.tags["mlflow.note.content"]
    )


@pytest.mark.slow
def test_two_trainings_at_once_under_the_eyes_of_the_ui(copied: Workdir, uri: str) -> None:
    copied.run("features")  # the log is known in its new place
    port = free_port()
    command = [sys.executable, "-m", "pipeline", "ui", "--config", "tiny.toml", "--port", str(port)]
    with running(command, port, copied.folder):
        processes = [
            started(
                copied,
                "run",
                "train",
                "--set",
                f"train.learning_rate={rate}",
                "--set",
                "train.epochs=20",
                "--set",
                "train.patience=20",
            )
            for rate in (0.001, 0.002)
        ]
        while any(process.poll() is None for process in processes):
            address = f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/get-by-name?experiment_name=tiny"
            with urllib.request.urlopen(address, timeout=60) as answer:
                assert answer.status == 200
            time.sleep(0.2)
    assert [(process.returncode, process.communicate()[1]) for process in processes] == [(0, ""), (0, "")]
    client, trainings = client_at(uri), runs(uri)[f"train {MODEL}"][1:]
    assert [run.info.status for run in trainings] == ["FINISHED", "FINISHED"]
    for run in trainings:
        assert [point.step for point in client.get_metric_history(run.info.run_id, "loss")] == list(
            range(1, 21)
        )
    with contextlib.closing(sqlite3.connect(copied.folder / "mlruns" / "mlflow.db")) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)


@pytest.fixture
def kept(empty_database: Path, tmp_path: Path) -> Path:
    """The folder of a tracking server of its own."""
    folder = tmp_path / "server"
    folder.mkdir()
    (folder / "mlflow.db").write_bytes(empty_database.read_bytes())
    return folder


@pytest.mark.slow
def test_a_server_that_goes_away_costs_the_training_nothing(copied: Workdir, kept: Path) -> None:
    port = free_port()
    with server(kept, port) as address:
        process = started(
            copied,
            "run",
            "train",
            *LONG[:2],
            "--set",
            "train.patience=30",
            "--set",
            f"tracking.uri={address}",
        )
        training = training_with_metrics(address)
    _, said = process.communicate()
    assert (process.returncode, said.count("the work goes on, and the next run logs what is missing")) == (
        0,
        1,
    ), said
    settings = (*LONG[:2], "--set", "train.patience=30")
    epochs: int = json.loads((copied.artifact("train", *settings) / "training.json").read_text())["epochs"]
    with server(kept, port) as address:
        summary: Any = copied.run("train", *settings, "--set", f"tracking.uri={address}")
        assert all(stage["up_to_date"] for stage in summary["stages"])
        found, client = runs(address), client_at(address)
        assert {run.info.status for each in found.values() for run in each} == {"FINISHED"}
        assert set(found) == {"ingest tiny", "features tiny temporal", f"train {MODEL}", MODEL}
        assert len(found[MODEL]) == 2, "the one that built the features, and this one"
        history = client.get_metric_history(training.info.run_id, "loss")
        assert sorted(point.step for point in history) == list(range(1, epochs + 1))


def test_text_of_a_summary_stays_in_its_cell_of_the_table_of_stages() -> None:
    summary = "types a|b, ![x](http://host/x.png)\n# 2\x1b[31m"
    entry: parent_run.StageEntry = {"stage": "ingest", "fingerprint": "f", "built": True, "summary": summary}
    assert parent_run.stage_line("ingest", entry, "#/runs/1") == (
        r"| ingest | [built](#/runs/1) | types a\|b, \!\[x\]\(http\://host/x.png\)\\n\# 2\\x1b\[31m |"
    )


def test_a_damaged_record_is_passed_over(copied: Workdir) -> None:
    config = load_config(copied.folder / "tiny.toml", [f"data_dir={copied.folder}/data"])
    (record,) = parent_run.records(config)
    (record.folder / "record.json").write_text("{")
    assert parent_run.records(config) == []
    copied.run("all")
