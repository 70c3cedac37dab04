"""What was planted in the demo log is found: the model beats popularity and what looks at the last items; noise weighs less."""

import json
from typing import get_args

import numpy as np
import polars as pl
import pytest

from features.histories.numbering import ItemNumbering
from models import checkpoint
from models.explanation import contributions
from pipeline.dataset.dataset import Dataset
from pipeline.dataset.targets import ranked_targets
from pipeline.sections import BASELINES
from tests.workdir import ROOT, Workdir


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Workdir:
    """The demo as it is shipped, up to its evaluation."""
    workdir = Workdir(tmp_path_factory.mktemp("demo"), str(ROOT / "pipeline" / "configs" / "demo.toml"))
    workdir.run("evaluate", *SETTINGS)
    return workdir


SETTINGS = ("--set", "tracking.enabled=false")
pytestmark = pytest.mark.slow


def test_the_model_beats_every_baseline_by_a_paired_bootstrap(demo: Workdir) -> None:
    metrics = json.loads((demo.artifact("evaluate", *SETTINGS) / "metrics.json").read_text())
    assert metrics["protocol"] == "temporal"
    assert set(BASELINES) == {*metrics["paired"], *metrics["not_applicable"]}
    for baseline in metrics["paired"]:
        paired = metrics["paired"][baseline]["ndcg@10"]
        assert paired["low"] > 0, (baseline, paired)
        assert paired["verdict"] == "better"


@pytest.mark.parametrize("method", get_args(contributions.Method))
def test_noise_clicks_carry_less_weight_than_real_ones(demo: Workdir, method: contributions.Method) -> None:
    """Weights in the score of what the user really did next, over 1,500 held-out real events."""
    folder, train = demo.artifact("features", *SETTINGS), demo.artifact("train", *SETTINGS)
    dataset = Dataset.open(folder)
    histories = dataset.histories
    encoder, numbering = checkpoint.load_model(train), ItemNumbering.load(train / "items.npy")
    is_noise = _is_noise(demo)
    targets = ranked_targets(dataset, "test", numbering, ties="order", exclude_seen=True)
    targets = targets.select(targets.warm)
    real_targets = np.flatnonzero(~is_noise[targets.position])
    chosen = np.random.default_rng(0).choice(real_targets, 1500, replace=False)
    looked_at = targets.histories.select(chosen).last(30)
    drops = contributions.contributions(encoder, looked_at, targets.item[chosen][:, None], method)[:, 0]
    row, position = looked_at.gather()
    column = position - looked_at.starts[row]
    drop, noisy = drops[row, column], is_noise[numbering.known[histories.item_index]][position]
    for among in (
        column >= 0,
        column < looked_at.lengths[row] - 1,
    ):  # all of them; all but each history's last
        assert _difference_low(drop[among & ~noisy], drop[among & noisy]) > 0


def _difference_low(
    real: np.ndarray[tuple[int], np.dtype[np.float32]], noise: np.ndarray[tuple[int], np.dtype[np.float32]]
) -> float:
    """The lower end of the 95 % bootstrap interval of the difference of means."""
    assert len(noise) > 1000
    draws = np.random.default_rng(0)
    differences = [
        draws.choice(real, len(real)).mean() - draws.choice(noise, len(noise)).mean() for _ in range(500)
    ]
    return float(np.quantile(differences, 0.025))


def _is_noise(demo: Workdir) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """[events] of the features' order: whether the event was planted as noise."""
    truth = pl.read_parquet(demo.folder / "data" / "demo" / "raw" / "truth.parquet")
    events = pl.read_parquet(demo.artifact("ingest", *SETTINGS) / "events" / "*.parquet")
    planted = events.join(truth, left_on="source_row", right_on="row", how="left", maintain_order="left")
    assert (planted["item_id"] == planted["item_id_right"]).all()
    assert planted["is_noise"].null_count() == 0
    ordered = planted.sort("user_id", "timestamp", "source_file", "source_row")
    noise: np.ndarray[tuple[int], np.dtype[np.bool_]] = ordered["is_noise"].to_numpy()
    return noise
