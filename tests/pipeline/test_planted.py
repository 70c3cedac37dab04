"""What was planted in the demo log is found: the model beats popularity and what looks at the last items; noise weighs less."""

import json

import numpy as np
import polars as pl
import pytest

from features.histories import JaggedHistories
from models import explain
from pipeline import histories as rows
from pipeline.bundle import Bundle
from tests.pipeline.conftest import ROOT, Workdir


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Workdir:
    """The demo as it is shipped, evaluated and published with the evaluated weights."""
    workdir = Workdir(tmp_path_factory.mktemp("demo"), str(ROOT / "pipeline" / "configs" / "demo.toml"))
    workdir.run("publish", *SETTINGS)
    return workdir


SETTINGS = ("--set", "train.refit=false", "--set", "tracking.enabled=false")


def test_the_model_beats_every_baseline_by_a_paired_bootstrap(demo: Workdir) -> None:
    metrics = json.loads((demo.artifact("evaluate", *SETTINGS) / "metrics.json").read_text())
    assert metrics["protocol"] == "temporal"
    for baseline in ("popularity", "recent_popularity", "co_visitation"):
        paired = metrics["paired"][baseline]["ndcg@10"]
        assert paired["low"] > 0, (baseline, paired)
        assert paired["verdict"] == "better"


def test_noise_clicks_carry_less_weight_than_real_ones(demo: Workdir) -> None:
    """By leave-one-out drops of the first recommendation's score, the last event apart: it is asked for what comes next."""
    bundle = Bundle.open(demo.artifact("publish", *SETTINGS) / "bundle")
    folder = demo.artifact("features", *SETTINGS)
    histories = JaggedHistories.load(folder)
    noise = _is_noise(demo, folder)
    users = np.flatnonzero(np.diff(histories.offsets) >= 20)[:400]
    whole = rows.rows(histories, histories.offsets[users], histories.offsets[users + 1]).last(30)
    items, _ = bundle.item_mapping(pl.read_parquet(folder / "items.parquet")["item_id"])
    row, position = whole.gather()
    known = items[histories.item_index[position]] > 0
    translated = whole.translate(items)
    first = bundle.recommend(translated, 1).item_index
    weights = explain.contributions(bundle.recommender.encoder, translated, first, "exact")[:, 0]
    column = np.concatenate([np.arange(length) for length in translated.lengths])
    drop = weights[row[known], column]
    is_last = column == translated.lengths[row[known]] - 1
    is_noise = noise[position[known]]
    real, noisy = drop[~is_last & ~is_noise], drop[~is_last & is_noise]
    assert len(noisy) > 500
    draws = np.random.default_rng(0)
    difference = [
        draws.choice(real, len(real)).mean() - draws.choice(noisy, len(noisy)).mean() for _ in range(1000)
    ]
    assert np.quantile(difference, 0.025) > 0


def _is_noise(demo: Workdir, folder: object) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """[events] of the features' order: whether the event was planted as noise."""
    truth = pl.read_parquet(demo.folder / "data" / "demo" / "raw" / "truth.parquet")
    events = pl.read_parquet(demo.artifact("ingest", *SETTINGS) / "events" / "*.parquet")
    planted = events.join(truth, left_on="source_row", right_on="row", how="left", maintain_order="left")
    assert (planted["item_id"] == planted["item_id_right"]).all()
    assert planted["is_noise"].null_count() == 0
    ordered = planted.sort("user_id", "timestamp", "source_file", "source_row")
    noise: np.ndarray[tuple[int], np.dtype[np.bool_]] = ordered["is_noise"].to_numpy()
    return noise
