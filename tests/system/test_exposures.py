"""Exposures from the simulated log to the evaluation: estimates of what a system would have earned hold its true reactions."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from features import simulate
from features.histories.numbering import ItemNumbering
from features.simulated_exposures import LOOKS, Exposures
from features.simulation_settings import SimulationSettings
from pipeline.artifacts.store import read_manifest
from pipeline.config import load_config
from pipeline.dataset.dataset import Dataset
from pipeline.dataset.exposed_lists import ExposedLists
from pipeline.orchestration.runner import bring_up_to_date

pytestmark = pytest.mark.slow
PLACES = 2
SETTINGS = """
name = "shown"
data_dir = "{folder}/data"
[events]
path = "{folder}/raw/events.csv"
columns = {{ user_id = "user_id", item_id = "item_id", timestamp = "timestamp", event_type = "event_type" }}
timestamp_unit = "iso"
[exposures]
path = "{folder}/raw/exposures.csv"
columns = {{ user_id = "user_id", item_id = "item_id", timestamp = "timestamp", rank = "rank", propensity = "propensity", list_id = "list_id" }}
window_hours = 1.0
[split]
test_fraction = 0.3
[history]
max_length = 10
[model]
dim = 8
num_blocks = 1
[train]
epochs = 1
precision = "fp32"
compile = "off"
[ranker]
use = "never"
[evaluate]
k = [2, 10]
targets = "first"
resamples = 300
baselines = ["popularity", "item_knn"]
min_effective_sample = 20
[score]
exclude_seen = false
[tracking]
enabled = false
"""  # noqa: E501


class Chain:
    """The stages over a simulated log whose exposures lack some propensities, and what is true of it."""

    def __init__(self, folder: Path) -> None:
        settings = SimulationSettings(num_users=400, num_items=50, num_events=30_000, exposures=True)
        simulation = simulate.simulate(settings, seed=0)
        assert simulation.exposures is not None
        self.exposures: Exposures = simulation.exposures
        simulate.write(simulation, folder / "raw")
        shown = self.exposures.shown.with_columns(pl.col("propensity").cast(pl.String))
        newest = shown["list_id"].unique(maintain_order=True)[-300:-297].to_list()
        for listed, rank, value in zip(newest, (1, 2, 2), ("0", "1.5", ""), strict=True):
            is_row = (pl.col("list_id") == listed) & (pl.col("rank") == rank)
            shown = shown.with_columns(
                pl.when(is_row).then(pl.lit(value)).otherwise("propensity").alias("propensity")
            )
        time = pl.col("timestamp").dt.strftime("%Y-%m-%dT%H:%M:%SZ")
        shown.with_columns(time).write_csv(folder / "raw" / "exposures.csv")
        (folder / "shown.toml").write_text(SETTINGS.format(folder=folder))
        self.config = load_config(folder / "shown.toml")
        bring_up_to_date(self.config, ["evaluate"], force=False, show_progress=False, say=lambda _: None)
        self.metrics: Any = json.loads((self.artifact("evaluate") / "metrics.json").read_text())

    def artifact(self, stage: str) -> Path:
        return (self.config.folder / stage / "latest").resolve()

    def truth(self, system: str) -> float:
        """Mean reactions that a baseline's lists would have had: looks at each place times the rates of the users' tastes."""
        dataset, folder = Dataset.open(self.artifact("features")), self.artifact("baselines") / "exposures"
        exposed = ExposedLists.of(self.config, dataset)
        assert exposed is not None
        number = {name: index for index, name in enumerate(self.exposures.user_ids.tolist())}
        user = np.array([number[name] for name in dataset.users["user_id"]])[exposed.user]
        position = {name: index for index, name in enumerate(self.exposures.item_ids.tolist())}
        item = np.array([-1, *(position[name] for name in dataset.items["item_id"])])
        lists = np.load(folder / f"{system}.lists.npy")[exposed.request]
        assert (lists > 0).all()
        shown = item[ItemNumbering.load(folder / "items.npy").inverse().new[lists]]
        rates = self.exposures.readers.rate(user, np.zeros(len(user), np.int64))
        return float((np.take_along_axis(rates, shown, 1) * LOOKS[:PLACES]).sum(axis=1).mean())


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    return Chain(tmp_path_factory.mktemp("shown"))


def test_intervals_hold_the_true_reactions(chain: Chain) -> None:
    found = chain.metrics["off_policy"]
    assert set(found) == {"lookback", "popularity", "item_knn"}
    for system, names in (
        (
            "popularity",
            [f"{kind}_{by}" for by in ("list", "cascade", "place") for kind in ("ips", "snips", "dr")],
        ),
        ("item_knn", ["ips_place", "snips_place", "dr_place"]),
    ):
        truth = chain.truth(system)
        for name in names:
            own = found[system][name]
            assert own["low"] <= truth <= own["high"], (system, name, truth, own)
            assert own["low"] < own["value"] < own["high"]
            assert own["effective_sample"] >= 20
        assert found[system]["dm"]["value"] == pytest.approx(truth, abs=0.1)


def test_personal_lists_that_are_hardly_ever_drawn_are_refused(chain: Chain) -> None:
    refused = chain.metrics["off_policy"]["lookback"]["ips_list"]["refused"]
    assert "effective sample" in refused or "no common support" in refused


def test_broken_propensities_are_counted(chain: Chain) -> None:
    """0 and 1.5 are refused, and their lists lack a place; a missing one leaves its list out."""
    ingest = chain.artifact("ingest")
    bad = pl.read_parquet(ingest / "quarantine" / "*.parquet").filter(pl.col("reason") == "bad_propensity")
    assert len(bad) == 2
    assert read_manifest(chain.artifact("features"))["exposures"]["without_propensity"] == 1
    about = chain.metrics["off_policy_lists"]
    assert about["left_out"].pop("outside_test") > 1000
    assert about["left_out"] == {
        "without_rank": 2,
        "without_propensity": 1,
        "unfinished": 0,
        "not_sampled": 0,
    }
    assert (about["places"], about["clip"]) == (PLACES, None)
    assert about["lists"] > 1000


def test_targets_are_weighted_by_how_often_their_items_were_looked_at(chain: Chain) -> None:
    weighted = load_config(chain.config.folder.parents[1] / "shown.toml", ["train.exposure_weighting=ips"])
    bring_up_to_date(weighted, ["train"], force=False, show_progress=False, say=lambda _: None)
    facts = read_manifest(chain.artifact("train"))["exposure_weighting"]
    assert facts["looks_by_place"] == pytest.approx(LOOKS, abs=0.15)
    taken = chain.exposures.lists.is_taken.sum()
    assert 0.3 * taken < facts["reactions"] < taken
    assert 0 < facts["effective_share"] < 1


@pytest.mark.parametrize("targets", ["first", "nightly"])
def test_the_ranker_learns_from_what_was_shown(chain: Chain, targets: str) -> None:
    changes = [f"evaluate.targets={targets}", "train.exposure_weighting=ips"]
    small = ["ranker.use=auto", "ranker.epochs=1", "ranker.max_lists=500", "ranker.candidates=20"]
    config = load_config(chain.config.folder.parents[1] / "shown.toml", [*changes, *small])
    bring_up_to_date(config, ["rank"], force=False, show_progress=False, say=lambda _: None)
    facts = json.loads((chain.artifact("rank") / "ranker.json").read_text())
    assert facts["trained"]
    assert 50 < facts["shown_lists"] < facts["targets"]
    assert facts["held_out"]["calibration_error"] < 0.05
