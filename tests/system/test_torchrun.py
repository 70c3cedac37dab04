"""The command line in two processes that torchrun starts."""

import json
import subprocess
import sys

import numpy as np
import polars as pl
import pytest

from tests.workdir import Workdir

SETTINGS = (
    "model.dropout=0.0",
    "train.refit_validation=true",
    "train.refit_from=continue",
    'evaluate.baselines=["gru"]',
    "evaluate.gru_epochs=2",
)
SET = [word for setting in SETTINGS for word in ("--set", setting)]


def torchrun(workdir: Workdir, *arguments: str) -> subprocess.CompletedProcess[str]:
    started = workdir.command("run", *arguments, "--config", workdir.config)[1:]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    return subprocess.run(
        [*command, *started],
        cwd=workdir.folder,
        env=workdir.environment(),
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_two_processes_build_what_one_builds(workdir):
    done = torchrun(workdir, "publish", *SET, "--json")
    assert done.returncode == 0, done.stderr
    (said,) = done.stdout.splitlines()  # the first process alone speaks
    stages = {stage["stage"]: stage for stage in json.loads(said)["stages"]}
    train, publish = (workdir.folder / stages[name]["folder"] for name in ("train", "publish"))
    assert json.loads((train / "training.json").read_text())["processes"] == 2
    two = pl.read_parquet(train / "history.parquet")
    bundle = json.loads((publish / "manifest.json").read_text())["summary"]
    assert "refit on all events" in bundle
    # run again: all is up to date, and the other process is let go
    again = torchrun(workdir, "publish", *SET, "--json")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["up_to_date"]
    # one process: the same curve but for the order of sums
    result = workdir("run", "train", *SET, "--force", "--json")
    assert result.code == 0, result.err
    one = pl.read_parquet(train / "history.parquet")
    assert json.loads((train / "training.json").read_text())["processes"] == 1
    np.testing.assert_allclose(two["loss"], one["loss"], rtol=2e-6)
    np.testing.assert_allclose(two["grad_norm"], one["grad_norm"], rtol=1e-5)
    assert two["validation_ndcg@10"].to_list() == pytest.approx(one["validation_ndcg@10"].to_list(), rel=0.01)


@pytest.mark.slow
def test_what_goes_wrong_is_said_once(workdir):
    absurd = ("train.learning_rate=1e30", "train.max_grad_norm=0", "train.batch_histories=16")
    done = torchrun(workdir, "train", *(word for setting in absurd for word in ("--set", setting)))
    assert done.returncode == 1
    said = [line for line in done.stderr.splitlines() if line.startswith("lookback: ")]
    assert len(said) == 1, done.stderr
    assert "epoch 1, step 2 (training histories [" in said[0]
