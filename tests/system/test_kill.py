"""kill -9 at any moment of any stage: no half artifact is ever seen, and the next run ends in the same result."""

import json
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.orchestration.graph import ALL
from tests.workdir import Workdir

VOLATILE = {"manifest.json", "speed.json", "tracking.json", "history.parquet", "training.json", "report.html"}
"""Files in which clocks are written."""


def contents(folder: Path) -> dict[str, str]:
    """Digest of every file but those that hold times; what is in checkpoints may end earlier or later."""
    files: dict[str, list[Any]] = json.loads((folder / "manifest.json").read_text())["files"]
    return {
        name: digest
        for name, (_, digest) in files.items()
        if Path(name).name not in VOLATILE and not name.startswith(("checkpoints/", "figures/"))
    }


def visible_artifacts_are_whole(folder: Path) -> None:
    for stage in ALL:
        for each in (folder / "data" / "tiny" / stage).glob("*/"):
            if each.name.startswith("."):
                continue
            for name, (size, _) in json.loads((each / "manifest.json").read_text())["files"].items():
                assert (each / name).stat().st_size == size, each / name


def wait_until(happened: Callable[[], object]) -> None:
    """Look again and again, for two minutes at most."""
    deadline = time.monotonic() + 120
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ALL)
def test_killed_and_run_again(finished: Workdir, copied: Workdir, stage: str) -> None:
    """Everything from this stage on is removed; the stage is killed when it begins and at three moments, and then left to end."""
    names = list(ALL)
    for later in names[names.index(stage) :]:
        target = copied.folder / "data" / "tiny" / later
        subprocess.run(["rm", "-rf", str(target)], check=True)
    random.seed(stage)
    killed = 0
    for attempt in range(4):
        process = subprocess.Popen(
            copied.command("run", stage, "--config", copied.config),
            cwd=copied.folder,
            env=copied.environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        if attempt == 0:
            stage_folder = copied.folder / "data" / "tiny" / stage
            wait_until(lambda: list(stage_folder.glob(".building-*")) or process.poll() is not None)  # noqa: B023
        else:
            time.sleep(0.4 + attempt * 0.5 + random.random() * 0.5)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            killed += 1
        process.wait()
        visible_artifacts_are_whole(copied.folder)
    assert killed >= 1
    copied.run(stage)
    assert contents(copied.artifact(stage)) == contents(finished.artifact(stage))


@pytest.mark.slow
def test_training_killed_in_the_middle_goes_on(copied: Workdir) -> None:
    """The killed run's epochs are not trained again, and the weights are those of an undisturbed run."""
    settings = ("--set", "train.epochs=30", "--set", "train.patience=30")
    process = subprocess.Popen(
        copied.command("run", "train", *settings, "--config", copied.config),
        cwd=copied.folder,
        env=copied.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    stage = copied.folder / "data" / "tiny" / "train"
    wait_until(lambda: list(stage.glob(".building-*/checkpoints/selection.pt")))
    process.send_signal(signal.SIGKILL)
    process.wait()
    workspace = next(stage.glob(".building-*"))
    from models.checkpoint import load_training

    done = load_training(workspace / "checkpoints" / "selection.pt")["progress"]["epoch"]
    assert 0 < done < 30
    copied.run("train", *settings)
    resumed = copied.artifact("train", *settings)
    weights = (resumed / "model.safetensors").read_bytes()
    copied.run("train", *settings, "--force")
    assert (copied.artifact("train", *settings) / "model.safetensors").read_bytes() == weights


@pytest.mark.slow
def test_scoring_killed_in_the_middle_keeps_its_shards(copied: Workdir) -> None:
    stage = copied.folder / "data" / "tiny" / "score"
    settings = (
        "--set",
        "score.because_method=fast",
        "--set",
        "score.batch_users=1",
        "--set",
        "score.shard_users=5",
    )
    process = subprocess.Popen(
        copied.command("run", "score", *settings, "--config", copied.config),
        cwd=copied.folder,
        env=copied.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_until(lambda: list(stage.glob(".building-*/recommendations/part-00001.parquet")))
    process.send_signal(signal.SIGKILL)
    process.wait()
    workspace = next(stage.glob(".building-*"))
    assert not (workspace / "_SUCCESS").exists()
    first = workspace / "recommendations" / "part-00000.parquet"
    inode = first.stat().st_ino
    copied.run("score", *settings)
    artifact = copied.artifact("score", *settings)
    assert (artifact / "recommendations" / "part-00000.parquet").stat().st_ino == inode
    resumed = contents(artifact)
    copied.run("score", *settings, "--force")
    assert contents(copied.artifact("score", *settings)) == resumed
