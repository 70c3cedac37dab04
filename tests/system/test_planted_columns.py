"""An effect of the device that was planted in a simulated log is found by `ranker.columns = "auto"`; noise is left out."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from pipeline.config import load_config
from pipeline.orchestration.runner import bring_up_to_date

USERS, EVENTS, ITEMS, DEVICES = 2000, 8, 80, 8
CONFIG = """
name = "log"
data_dir = "{folder}/data"
[events]
path = "{folder}/log.csv"
columns = {{ user_id = "user", item_id = "item", timestamp = "at", device = "device", noise = "noise" }}
[split]
protocol = "leave_one_out"
[model]
dim = 8
num_blocks = 1
num_heads = 1
[train]
epochs = 1
refit_validation = false
compile = "off"
[ranker]
candidates = 80
item_vectors = false
hidden = 0
epochs = 8
learning_rate = 0.02
[score]
exclude_seen = false
[tracking]
enabled = false
"""


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Users stay on a device for some events, and take every other item from that device's part of the catalogue."""
    folder = tmp_path_factory.mktemp("devices")
    random = np.random.default_rng(0)
    changes = np.where(random.random((USERS, EVENTS)) < 0.25, random.integers(0, DEVICES, (USERS, EVENTS)), 0)
    device = (random.integers(0, DEVICES, (USERS, 1)) + changes.cumsum(1)) % DEVICES
    item = random.integers(0, ITEMS, device.shape)
    item = np.where(random.random(device.shape) < 0.5, device + DEVICES * (item // DEVICES), item)
    at = 1_600_000_000 + np.sort(random.integers(0, 10**7, device.shape), axis=1)
    table = {
        "user": np.repeat(np.arange(USERS), EVENTS),
        "item": item.ravel(),
        "at": at.ravel(),
        "device": [f"device {each}" for each in device.ravel()],
        "noise": random.integers(0, 5, device.size),
    }
    pl.DataFrame(table).write_csv(folder / "log.csv")
    (folder / "log.toml").write_text(CONFIG.format(folder=folder))
    return folder


def chosen(folder: Path, columns: str) -> dict[str, Any]:
    """Figures of the choice of the ranker's columns."""
    config = load_config(folder / "log.toml", [f"ranker.columns={columns}"])
    done = bring_up_to_date(config, ["rank"], force=False, show_progress=False, say=lambda _: None)
    facts: dict[str, Any] = json.loads((Path(done[-1]["folder"]) / "ranker.json").read_text())["columns"]
    return facts


@pytest.mark.slow
def test_the_device_is_found_and_noise_is_harmless(log: Path) -> None:
    facts = chosen(log, '"auto"')
    assert "events.device" in facts["taken"]
    assert facts["gain"]["low"] > 0, "better than no columns, by a paired interval"
    assert facts["importance"]["events.device"] > 0.02 > abs(facts["importance"]["events.noise"])
    alone = chosen(log, '["device"]')
    assert facts["ndcg"] > alone["ndcg"] - 0.01, "as good as without the noise"
