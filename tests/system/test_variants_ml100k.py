"""Every variant learns from MovieLens-100K, by the training engine, what popularity alone cannot tell."""

import tomllib
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.encoder.embeddings import ItemContent
from models.histories import Histories
from models.settings.encoder import EncoderSettings
from models.settings.training import TrainSettings
from models.training.loop import fit
from models.training.validation import Validation, validate
from tests.models.conftest import VARIANTS

CONFIGS = Path(__file__).parents[2] / "pipeline" / "configs"
pytestmark = pytest.mark.slow
USERS, MAX_LENGTH, EPOCHS = 16, 12, 10
LOSSES: list[dict[str, Any]] = [
    {
        "loss": "softmax",
        "targets": "random",
        "epochs": 400,
    },  # a target of each history in an epoch, not a dozen
    *({"loss": loss, "negatives": 64} for loss in ("sampled_softmax", "bpr")),
    *({"loss": loss, "negatives": 128, "learning_rate": 0.02, "epochs": 300} for loss in ("gbce", "bce")),
    {"loss": "sampled_softmax", "negatives": 64, "negative_sampling": "popularity"},
    {"loss": "sampled_softmax", "negatives": 64, "negative_sampling": "in_batch"},
    {"loss": "bpr", "negatives": 64, "item_optimizer": "rowwise_adagrad"},
]


@cache
def ratings(folder: Path) -> tuple[Histories, ItemContent]:
    """The last events of the first users, stars as types and values, genres as categories; items numbered anew."""
    user, item, stars, seconds = np.loadtxt(folder / "u.data", np.int64).T
    order = np.lexsort((seconds, user))
    order = np.concatenate(
        [order[user[order] == number][-MAX_LENGTH - 1 :] for number in range(1, USERS + 1)]
    )
    names, item_index = np.unique(item[order], return_inverse=True)
    ends = np.searchsorted(user[order], np.arange(1, USERS + 1), side="right")
    starts = np.concatenate(([0], ends[:-1]))
    histories = Histories(
        (item_index + 1).astype(np.int32), seconds[order] * 1_000_000, stars[order].astype(np.int16),
        starts, ends, stars[order].astype(np.float32), seconds[order][ends - 1] * 1_000_000,
    )  # fmt: skip
    lines = (folder / "u.item").read_text("latin-1").splitlines()
    genres = np.array([line.split("|")[5:] for line in lines], np.int32)[names - 1]
    categories = np.zeros((len(names) + 1, 19), np.int32)
    categories[1:] = genres * np.arange(1, 20)
    dense = np.random.default_rng(0).normal(size=(len(names) + 1, 8)).astype(np.float32)  # as an embedding
    return histories, ItemContent(dense, categories, 19, np.arange(len(names) + 1) > 0)


def entropy(targets: np.ndarray) -> float:
    """Nats: the least loss that a model blind to the history can have on these targets."""
    share = np.bincount(targets) / len(targets)
    share = share[share > 0]
    return float(-(share * np.log(share)).sum())


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_it_learns_from_histories(variant: dict[str, Any], public_data):
    histories, content = ratings(public_data("ml-100k"))
    settings = EncoderSettings(dim=16, num_heads=2, dropout=0.0, **variant)
    closed = settings.direction == "bidirectional"
    train = TrainSettings(
        loss="sampled_softmax" if settings.readout == "target" else "softmax",
        targets="last" if closed else "all",
        epochs=EPOCHS, batch_histories=8, learning_rate=0.04, precision="fp32", compile="off",
    )  # fmt: skip
    result = fit(
        histories, encoder=settings, train=train, num_items=int(histories.item_index.max()), num_event_types=5,
        max_length=MAX_LENGTH, content=content if settings.item_content else None,
    )  # fmt: skip
    behind_first = np.setdiff1d(np.arange(len(histories.item_index)), histories.starts)
    blind = entropy(histories.item_index[histories.ends - 1 if closed else behind_first])
    losses = [record.loss for record in result.history]
    assert losses[-1] < blind < losses[0]


@pytest.mark.parametrize("changes", LOSSES, ids=str)
def test_every_loss_tells_what_comes_next(changes: dict[str, Any], public_data):
    histories, _ = ratings(public_data("ml-100k"))
    num_items = int(histories.item_index.max())
    chosen: dict[str, Any] = {
        "epochs": 100,
        "batch_histories": 8,
        "learning_rate": 0.04,
        "precision": "fp32",
        "compile": "off",
        **changes,
    }
    train = TrainSettings(**chosen)
    result = fit(
        histories, encoder=EncoderSettings(dim=16, dropout=0.0), train=train, num_items=num_items, num_event_types=5,
        max_length=MAX_LENGTH,
    )  # fmt: skip
    last = histories.ends - 1
    asked = Validation(replace(histories, ends=last), histories.item_index[last], False)
    counts = np.bincount(histories.item_index, minlength=num_items + 1)
    behind = 1 + (counts > counts[histories.item_index[last]][:, None]).sum(1)
    by_popularity = float((1 / np.log2(behind + 1) * (behind <= 10)).mean())
    assert validate(result.model, asked)["validation_ndcg@10"] > 2 * by_popularity


@pytest.mark.parametrize("name", ["sasrec", "hstu", "ligr", "gru4rec", "din", "bigru"])
def test_every_preset_learns(name, public_data):
    histories, _ = ratings(public_data("ml-100k"))
    shipped = tomllib.loads((CONFIGS / f"{name}.toml").read_text(encoding="utf-8"))
    train = replace(
        TrainSettings(**shipped["train"]), batch_histories=8, learning_rate=0.01, precision="fp32"
    )
    train = replace(train, epochs=60 if train.targets == "all" else 300)  # else a target of each history
    result = fit(
        histories, encoder=EncoderSettings(**shipped["model"]), train=train,
        num_items=int(histories.item_index.max()), num_event_types=5, max_length=MAX_LENGTH,
    )  # fmt: skip
    losses = [record.loss for record in result.history]
    assert losses[-1] < 0.9 * losses[0]
