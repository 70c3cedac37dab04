import json

import numpy as np
import pytest
import torch

from models.checkpoint import load_model, load_training, save_model, save_training
from models.encoder import AttentionRecommender, Encoder
from models.recommender import histories_from_lists
from models.settings import EncoderSettings


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return Encoder(
        EncoderSettings(dim=6, num_heads=2, dropout=0.3), num_items=11, num_event_types=2, max_length=5
    )


def test_save_and_load_change_nothing(encoder, tmp_path):
    save_model(encoder, tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.settings == encoder.settings
    assert not loaded.training
    histories = histories_from_lists([[1, 2, 3], [7]])
    before, after = (AttentionRecommender(model).score_items(histories) for model in (encoder, loaded))
    assert np.array_equal(before, after)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_a_damaged_model_is_named(encoder, tmp_path):
    save_model(encoder, tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        load_model(tmp_path)


def test_weights_of_another_shape_are_refused(encoder, tmp_path):
    save_model(encoder, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_items": 12}))
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        load_model(tmp_path)


@pytest.mark.parametrize("content", ["", "{", '{"encoder": {}}', '{"encoder": {"width": 3}}'])
def test_a_damaged_configuration_is_named(encoder, tmp_path, content):
    save_model(encoder, tmp_path)
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"config\.json"):
        load_model(tmp_path)


def test_a_missing_model_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"config\.json"):
        load_model(tmp_path)


def test_training_state_round_trip(tmp_path):
    weights = {"a": torch.arange(5.0)}
    save_training({"step": 3, "weights": weights, "history": [{"loss": 0.5}]}, tmp_path / "training.pt")
    loaded = load_training(tmp_path / "training.pt")
    assert torch.equal(loaded.pop("weights")["a"], weights["a"])
    assert loaded == {"step": 3, "history": [{"loss": 0.5}]}
    assert [path.name for path in tmp_path.iterdir()] == ["training.pt"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda old: b"",
        lambda old: old[: len(old) // 2],
        lambda old: old.replace(b"\x00\x00\x80?", b"\x00\x00\x81?"),
    ],
)
def test_a_damaged_training_state_is_named(tmp_path, damage):
    path = tmp_path / "training.pt"
    save_training({"weights": torch.arange(500.0)}, path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"training\.pt"):
        load_training(path)


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "training.pt"
    save_training({"step": 1}, path)
    with pytest.raises(Exception, match="pickle"):
        save_training({"step": lambda: 2}, path)
    assert load_training(path) == {"step": 1}
    assert [found.name for found in tmp_path.iterdir()] == ["training.pt"]
