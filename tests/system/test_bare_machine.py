"""models/ trains, stops, resumes and ranks where torch and numpy are all there is, by tests/benchmarks/gpu_training.py."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from models.checkpoint import load_model
from models.encoder.encoder import Encoder
from models.histories import Histories
from models.settings.encoder import EncoderSettings
from models.training.validation import Validation
from tests.benchmarks import gpu as speed
from tests.benchmarks import gpu_training as gpu

ABSENT = (
    *(
        "safetensors",
        "tqdm",
        "polars",
        "pydantic",
        "pyarrow",
        "pandas",
        "scipy",
        "sklearn",
        "mlflow",
        "faiss",
    ),
    *("jaxtyping", "beartype", "implicit", "threadpoolctl", "optuna", "click", "features", "pipeline"),
)
NUM_USERS, NUM_EVENTS, NUM_ITEMS = 23, 11, 17


@pytest.fixture
def packed(tmp_path):
    """Each user's items count up from somewhere, 17 being followed by 1: what comes next can be learned."""
    starts = np.arange(NUM_USERS, dtype=np.int64) * NUM_EVENTS
    items = (np.arange(NUM_USERS)[:, None] * 5 + np.arange(NUM_EVENTS)) % NUM_ITEMS + 1
    flat = (
        items.ravel().astype(np.int32),
        np.arange(items.size) * 60_000_000,
        np.zeros(items.size, np.int16),
    )

    def held_out(place):
        ends = starts + place
        return Validation(
            Histories(*flat, starts, ends, None, flat[1][ends]), items[:, place].astype(np.int32)
        )

    folder = tmp_path / "packed"
    folder.mkdir()
    for name, events in {"selection": NUM_EVENTS - 2, "refit": NUM_EVENTS - 1}.items():
        training = Histories(*flat, starts, starts + events)
        sizes = NUM_ITEMS, 0, NUM_USERS
        data = gpu.Data(training, held_out(NUM_EVENTS - 2), held_out(NUM_EVENTS - 1), *sizes)
        gpu.save(data, folder / f"{name}.npz")
    return folder


BARE = f"""
import runpy, sys
for name in {ABSENT}:
    sys.modules[name] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
SETTINGS = {
    "model.dim": 8,
    "model.num_blocks": 1,
    "history.max_length": 10,
    "train.batch_histories": 6,
    "train.learning_rate": 0.01,
    "train.epochs": 8,
}


@pytest.mark.slow
def test_stopped_training_goes_on_and_its_weights_come_back(packed, tmp_path, monkeypatch, capsys):
    first, second = tmp_path / "first", tmp_path / "second"
    changes = [f"--set={key}={value}" for key, value in SETTINGS.items()]
    options = [gpu.__file__, "--train=hstu-large", f"--packed={packed}", *changes]

    def train_here(*more):
        monkeypatch.setattr(sys, "argv", [*options, *more])
        gpu.main()
        return json.loads(capsys.readouterr().out)

    bare = [sys.executable, "-c", BARE, *options, f"--out={first}", "--seconds=0"]
    begun = json.loads(subprocess.run(bare, stdout=subprocess.PIPE, check=True, cwd=tmp_path).stdout)
    assert (begun["is_whole"], begun["epochs"], begun["state_pieces"]) == (False, 1, 1)
    ended = train_here(f"--out={second}", f"--resume={first}")
    assert ended["is_whole"]
    assert ended["epochs"] > 1
    assert ended["validation"][0] == begun["validation"][0]
    assert ended["targets_per_epoch"] == NUM_USERS * (NUM_EVENTS - 3)
    assert ended["test"]["ndcg@10"] > max(0.9, begun["test"]["ndcg@10"])

    gpu.unpack(second, tmp_path / "model")
    model = load_model(tmp_path / "model")
    data = gpu.load(packed / "selection.npz")
    assert gpu.judge(model, data.test) == ended["test"]
    again = train_here(f"--out={tmp_path / 'third'}", "--steps=3")
    assert again["targets_per_epoch"] == NUM_USERS * (NUM_EVENTS - 2)
    assert "validation" not in again


@pytest.mark.slow
def test_the_speed_of_every_part_is_measured(packed, tmp_path):
    out = tmp_path / "gpu.json"
    command = [sys.executable, "-c", BARE, speed.__file__, "--small", f"--out={out}"]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, cwd=tmp_path)
    result = json.loads(out.read_text())
    assert json.loads(done.stdout) == result
    assert [*result["parts"]] == [*speed.PARTS, "scoring"]
    for name in speed.PARTS:
        assert result["parts"][name]["targets_per_second"] > 0, result["parts"][name]
    assert result["parts"]["scoring"]["users"] == 300


def test_operations_of_an_epoch_by_pencil():
    """Two rows of 3 and 2 inputs, one block of width 4 with 4 x 12, 4 x 4, 4 x 16 and 16 x 4 weights, 7 items, 5 targets."""
    model = Encoder(EncoderSettings(dim=4, num_blocks=1, num_heads=1), 7, 0, 3)
    flat = np.ones(9, np.int32), np.arange(9), np.zeros(9, np.int16)
    histories = Histories(*flat, np.array([0, 6]), np.array([6, 9]))  # of the first, 3 of 5 inputs
    matrices = 6 * 5 * (48 + 16 + 64 + 64)
    attention = 12 * 4 * (3 * 3 + 2 * 2)
    assert speed.epoch_flops(model, histories, 5) == matrices + attention + 6 * 5 * 4 * 7


def test_pieces_join_to_what_was_cut(monkeypatch, tmp_path):
    value = {"weights": torch.arange(1009.0), "step": 3}
    monkeypatch.setattr(gpu, "PIECE", 1000)
    for most in ((4000, 9), (10_000, 4)):
        assert gpu.write_pieces(value, tmp_path, "cut", most) == 0
    assert not list(tmp_path.iterdir())
    pieces = gpu.write_pieces(value, tmp_path, "cut", (10_000, 9))
    assert pieces == len(list(tmp_path.iterdir())) >= 5
    assert max(path.stat().st_size for path in tmp_path.iterdir()) == 1000
    found = gpu.read_pieces(tmp_path, "cut")
    assert found["step"] == 3
    torch.testing.assert_close(found["weights"], value["weights"], rtol=0, atol=0)
