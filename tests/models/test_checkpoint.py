import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from models.checkpoint import load_model, load_training, save_model, save_training
from models.encoder.encoder import AttentionRecommender, Encoder
from models.histories import histories_from_lists
from models.settings.encoder import EncoderSettings

ROOT = Path(__file__).parents[2]


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


def test_every_variant_is_the_same_after_loading(variant, random_encoder, random_histories, tmp_path):
    saved, histories = random_encoder(**variant), random_histories([3, 9, 1, 0])
    saved.requires_grad_(requires_grad=False)  # as loaded: torch has other kernels for GRUs that learn
    saved.anneal(0.3)
    save_model(saved, tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.settings == saved.settings
    before, after = (AttentionRecommender(model).score_items(histories) for model in (saved, loaded))
    assert np.array_equal(before, after)
    known = [None if found is None else found.tolist() for found in (saved.candidates(), loaded.candidates())]
    assert known[0] == known[1]


def test_how_attention_was_computed_is_not_kept(tmp_path):
    save_model(Encoder(EncoderSettings(dim=6, attention="blocked"), 11, 2, 5), tmp_path)
    assert "attention" not in json.loads((tmp_path / "config.json").read_text())["encoder"]
    assert load_model(tmp_path).settings.attention == "auto"


TRANSFORMER_03 = {
    "attention_norm.bias": (4,), "attention_norm.weight": (4,),
    "feed_forward_norm.bias": (4,), "feed_forward_norm.weight": (4,),
    "merge.bias": (4,), "merge.weight": (4, 4),
    "narrow.bias": (4,), "narrow.weight": (4, 16),
    "project.bias": (12,), "project.weight": (12, 4),
    "widen.bias": (16,), "widen.weight": (16, 4),
}  # fmt: skip
GRU_03 = {
    "gru.bias_hh_l0": (12,), "gru.bias_ih_l0": (12,), "gru.weight_hh_l0": (12, 4), "gru.weight_ih_l0": (12, 4),
    "norm.bias": (4,), "norm.weight": (4,),
}  # fmt: skip
AROUND_03 = {"event_types.weight": (3, 4), "items.weight": (6, 4), "norm.bias": (4,), "norm.weight": (4,)}


@pytest.mark.parametrize(
    ("settings", "block", "around", "expected"),
    [
        (
            {"block": "transformer", "positions": "absolute"},
            TRANSFORMER_03,
            {**AROUND_03, "positions.weight": (3, 4)},
            [[-0.11695, 0.03915, 0.04316, -0.12049, 0.1839], [-0.10591, 0.02853, 0.05215, -0.12681, 0.18681]],
        ),
        (
            {"block": "transformer", "positions": "relative"},
            {**TRANSFORMER_03, "distances.weight": (2, 32)},
            AROUND_03,
            [[-0.31716, 0.07402, 0.17767, -0.40882, 0.59274], [-0.31731, 0.07748, 0.17131, -0.4003, 0.58303]],
        ),
        (
            {"block": "transformer"},  # of 0.2, which had no such setting
            TRANSFORMER_03,
            {**AROUND_03, "positions.weight": (3, 4)},
            [[-0.11695, 0.03915, 0.04316, -0.12049, 0.1839], [-0.10591, 0.02853, 0.05215, -0.12681, 0.18681]],
        ),
        (
            {"block": "gru", "positions": "absolute"},
            GRU_03,
            AROUND_03,
            [[0.04682, -0.13963, 0.21631, -0.268, 0.28871], [-0.02249, -0.06215, 0.13961, -0.20094, 0.23904]],
        ),
        (
            {"block": "gru"},
            GRU_03,
            AROUND_03,
            [[0.04682, -0.13963, 0.21631, -0.268, 0.28871], [-0.02249, -0.06215, 0.13961, -0.20094, 0.23904]],
        ),
    ],
    ids=["absolute", "relative", "absolute, unsaid", "gru", "gru, unsaid"],
)
def test_a_model_of_version_03_or_02_scores_as_it_did(settings, block, around, expected, tmp_path):
    """Names of weights and settings of then; weights `sin(.7 i + n) / 2` of the n-th name, scores as commit 025447c gave."""
    shapes = {**around, **{f"blocks.{n}.{name}": shape for n in range(2) for name, shape in block.items()}}
    weights = {
        name: torch.sin(0.7 * torch.arange(math.prod(shapes[name])) + n).mul(0.5).view(shapes[name])
        for n, name in enumerate(sorted(shapes))
    }
    save_file(weights, tmp_path / "model.safetensors")
    then = {**settings, "dim": 4, "num_blocks": 2, "num_heads": 2, "dropout": 0.2, "request_time": False}
    sizes = {"num_items": 5, "num_event_types": 2, "max_length": 3}
    (tmp_path / "config.json").write_text(json.dumps({"encoder": then, **sizes}))
    histories = replace(histories_from_lists([[3, 1, 5], [2]]), event_type=np.array([1, 2, 0, 1], np.int16))
    scores = AttentionRecommender(load_model(tmp_path)).score_items(histories)
    np.testing.assert_allclose(scores[:, 1:], expected, atol=2e-5)


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


LIMITED = """
import resource, sys
from pathlib import Path
import torch
from models.checkpoint import save_model, save_training
from models.encoder.encoder import Encoder
from models.settings.encoder import EncoderSettings
folder = Path(sys.argv[1])
save_training({"weights": torch.zeros(8)}, folder / "state.pt")
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
encoder = Encoder(EncoderSettings(dim=64), num_items=1000, num_event_types=0, max_length=5)
writes = {
    "state.pt": lambda: save_training({"weights": torch.zeros(100_000)}, folder / "state.pt"),
    "model.safetensors": lambda: save_model(encoder, folder),
}
for name, write in writes.items():
    try:
        write()
    except OSError as error:
        assert error.filename == str(folder / name), error
    else:
        raise AssertionError(name)
"""


def test_what_cannot_be_written_is_named_and_the_old_file_stays(tmp_path):
    # in a process of its own, which may write no more than 50,000 bytes to a file
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["state.pt"]
    assert load_training(tmp_path / "state.pt")["weights"].tolist() == [0.0] * 8
