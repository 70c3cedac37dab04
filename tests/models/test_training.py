import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.checkpoint import load_training, save_training
from models.encoder import AttentionRecommender
from models.recommender import Histories, histories_from_lists
from models.settings import EncoderSettings, TrainSettings
from models.training import EpochRecord, Validation, fit, validate

ROOT = Path(__file__).parents[2]
NUM_ITEMS = 23
SETTINGS: dict[str, Any] = {
    "encoder": EncoderSettings(dim=16, num_blocks=1, num_heads=2, dropout=0.1),
    "train": TrainSettings(epochs=3, batch_histories=16, learning_rate=0.01, precision="fp32", compile="off"),
    "num_items": NUM_ITEMS,
    "num_event_types": 0,
    "max_length": 8,
}


def planted(rows=150, seed=0):
    """The next item is always 5 times the present one, modulo 23."""
    random = np.random.default_rng(seed)
    sequences = []
    for start, length in zip(random.integers(1, NUM_ITEMS, rows), random.integers(3, 9, rows), strict=True):
        row = [int(start)]
        while len(row) < length:
            row.append(row[-1] * 5 % NUM_ITEMS)
        sequences.append(row)
    return histories_from_lists(sequences)


def held_out(rows=40):
    histories = planted(rows, seed=1)
    target = histories.item_index[histories.ends - 1]
    shorter = Histories(
        histories.item_index, histories.time, histories.event_type, histories.starts, histories.ends - 1
    )
    return Validation(shorter, target, exclude_seen=False)


def train(**changes):
    settings = {**SETTINGS, **changes}
    return fit(planted(), **settings)


def same_bits(one, other):
    weights = [result.model.state_dict() for result in (one, other)]
    return all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def with_train(**changes):
    return dataclasses.replace(SETTINGS["train"], **changes)


COMPILED = """
import dataclasses, functools, torch
from models.settings import EncoderSettings, TrainSettings
from models.recommender import histories_from_lists
from models.training import fit
torch.compile = functools.partial(torch.compile, backend="aot_eager")  # needs no C++ compiler
rows = histories_from_lists([[row % 9 + 1] * (2 + row % 13) for row in range(120)])
train = TrainSettings(epochs=2, batch_histories=16, precision="fp32", compile="off")
losses = []
for settings in (train, dataclasses.replace(train, compile="on")):
    encoder = EncoderSettings(dim=8, num_blocks=1, dropout=0.0)
    result = fit(rows, encoder=encoder, train=settings, num_items=9, num_event_types=0, max_length=16)
    assert result.resolved["compile"] == settings.compile
    losses.append([record.loss for record in result.history])
torch.testing.assert_close(*map(torch.tensor, losses))
assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
"""


def test_one_compiled_graph_serves_all_shapes():
    # in a process of its own: what checks shapes at every call cannot be traced
    done = subprocess.run(
        [sys.executable, "-c", COMPILED], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_planted_pattern_is_learned(precision):
    result = train(train=with_train(epochs=12, precision=precision), validation=held_out())
    items, _ = AttentionRecommender(result.model).recommend(
        histories_from_lists([[2], [3, 15]]), 1, exclude_seen=False
    )
    assert items.tolist() == [[10], [6]]
    best = result.history[result.best_epoch - 1]
    assert best.validation["validation_ndcg@10"] > 0.95
    assert best.loss < result.history[0].loss
    assert result.resolved["precision"] == precision


def test_the_same_seed_gives_the_same_bits():
    first = train(validation=held_out())
    assert same_bits(first, train(validation=held_out()))
    assert not same_bits(first, train(seed=1, validation=held_out()))


def test_training_leaves_torch_s_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(max_steps=1)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("at", [0, 1, 4, 12, 20])
def test_resumed_at_any_step_equals_undisturbed(tmp_path, at):
    settings = {"train": with_train(checkpoint_seconds=0), "validation": held_out()}
    states: list[dict[str, Any]] = []
    undisturbed = train(**settings, on_checkpoint=states.append)
    save_training(states[at], tmp_path / "state")
    resumed = train(**settings, resume=load_training(tmp_path / "state"))
    assert same_bits(undisturbed, resumed)
    assert (resumed.best_epoch, resumed.best_step) == (undisturbed.best_epoch, undisturbed.best_step)
    assert [record.loss for record in resumed.history] == [record.loss for record in undisturbed.history]


def test_a_checkpoint_is_a_snapshot():
    states: list[dict[str, Any]] = []
    train(train=with_train(checkpoint_seconds=0), max_steps=2, on_checkpoint=states.append)
    assert not torch.equal(states[0]["model"]["items.weight"], states[1]["model"]["items.weight"])


def test_the_state_of_another_training_is_refused():
    states: list[dict[str, Any]] = []
    train(max_steps=1, on_checkpoint=states.append)
    with pytest.raises(ValueError, match="of another training"):
        train(seed=1, resume=states[-1])


def test_max_steps_is_exact_and_without_validation():
    result = train(max_steps=13, validation=held_out())
    assert result.best_step == 13
    assert result.history[-1].steps == 13
    assert not result.history[-1].validation
    assert result.history[0].steps == result.resolved["steps_per_epoch"] == 9
    assert [record.epoch for record in result.history] == [1, 2]


def test_early_stopping_keeps_the_best_weights():
    result = train(train=with_train(epochs=60, patience=2), validation=held_out())
    scores = [record.validation["validation_ndcg@10"] for record in result.history]
    assert len(scores) < 60
    assert result.best_epoch == int(np.argmax(scores)) + 1 == len(scores) - 2
    assert validate(result.model, held_out())["validation_ndcg@10"] == max(scores)
    assert result.best_step == result.history[result.best_epoch - 1].steps


def test_records():
    seen: list[EpochRecord] = []
    result = train(on_epoch=seen.append)
    assert seen == result.history
    targets = int((planted().lengths - 1).sum())
    assert [record.targets for record in seen] == [targets] * 3
    row = seen[0].row()
    assert row["targets_per_second"] == pytest.approx(targets / row["seconds"])
    assert row["learning_rate"] == 0.01
    assert set(train(validation=held_out()).history[0].row()) >= {
        "validation_ndcg@10",
        "validation_hit_rate@10",
    }


def test_a_type_of_weight_zero_is_not_learned():
    # every other history ends in item 22 by an event of type 2
    rows = histories_from_lists([[1, 2, 3], [1, 2, 22]] * 20)
    types = np.where(rows.item_index == 22, 2, 1).astype(np.int16)
    histories = Histories(rows.item_index, rows.time, types, rows.starts, rows.ends)
    weights = np.array([1, 1, 0], np.float32)
    settings = {**SETTINGS, "num_event_types": 2, "train": with_train(epochs=15)}
    result = fit(histories, **settings, type_weights=weights)
    part = Histories(rows.item_index, rows.time, types, np.array([0]), np.array([2]))
    assert AttentionRecommender(result.model).recommend(part, 1)[0].tolist() == [[3]]


def test_validation_by_pencil():
    result = train(max_steps=1)
    histories = histories_from_lists([[1, 2], [3]])
    scores = AttentionRecommender(result.model).score_items(histories)
    best = scores.argmax(1).astype(np.int32)
    assert validate(result.model, Validation(histories, best, False))["validation_ndcg@10"] == 1
    scores[0, [1, 2]], scores[1, 3] = -np.inf, -np.inf
    best = scores.argmax(1).astype(np.int32)
    assert validate(result.model, Validation(histories, best))["validation_hit_rate@10"] == 1


def test_histories_without_a_target_are_refused():
    with pytest.raises(ValueError, match="two events"):
        fit(histories_from_lists([[1], [2]]), **SETTINGS)


def test_a_loss_that_is_not_finite_stops_the_training(monkeypatch):
    monkeypatch.setattr(
        "models.training.softmax_loss", lambda *_: torch.tensor(torch.nan, requires_grad=True)
    )
    with pytest.raises(ValueError, match="epoch 1, step 1"):
        train()
