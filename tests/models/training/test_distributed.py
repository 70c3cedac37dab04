import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.checkpoint import load_training
from models.encoder.encoder import Encoder
from models.histories import histories_from_lists
from models.settings.encoder import EncoderSettings
from models.settings.training import TrainSettings
from models.training import distributed
from models.training.loop import fit
from models.training.result import Initial

ROOT = Path(__file__).parents[3]
TRAIN = TrainSettings(epochs=3, batch_histories=12, learning_rate=0.01, precision="fp32", compile="off")
CASES: dict[str, Any] = {
    "softmax": {},
    "accumulated": {"train": {"accumulate": 3}},
    "more processes than histories": {"train": {"batch_histories": 1, "epochs": 1, "learning_rate": 0.001}},
    "sampled, a row at a time": {
        "train": {"loss": "sampled_softmax", "negatives": 7, "item_optimizer": "rowwise_adagrad"}
    },
    "average, cosine": {"train": {"ema_decay": 0.9, "schedule": "cosine", "warmup_steps": 3}},
    "going on": {"train": {"schedule": "cosine", "warmup_steps": 3}},
    "with dropout": {"encoder": {"dropout": 0.5}, "train": {"checkpoint_seconds": 0.0}},
}


def rows(number=53):
    random = np.random.default_rng(0)
    return histories_from_lists(
        [random.integers(1, 30, length).tolist() for length in random.integers(2, 12, number)]
    )


def trained(case, **further):
    encoder = EncoderSettings(**{"dim": 16, "num_blocks": 1, "dropout": 0.0} | CASES[case].get("encoder", {}))
    train = dataclasses.replace(TRAIN, **CASES[case].get("train", {}))
    sizes: dict[str, Any] = {"num_items": 29, "num_event_types": 0, "max_length": 11}
    return fit(rows(), encoder=encoder, train=train, **sizes, **further)


def going_on():
    """Weights to train on from."""
    torch.manual_seed(5)
    encoder = Encoder(EncoderSettings(dim=16, num_blocks=1), num_items=29, num_event_types=0, max_length=11)
    return Initial(encoder, np.arange(30, dtype=np.int32))


def curve(result):
    return {
        "loss": [record.loss for record in result.history],
        "grad_norm": [record.grad_norm for record in result.history],
        "targets": [record.targets for record in result.history],
        "weights": {name: weight.tolist() for name, weight in result.model.state_dict().items()},
        "processes": result.resolved["processes"],
    }


def torchrun(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def threads() -> list[Path]:
    return sorted(Path("/proc/self/task").iterdir())


def in_each_process(folder: Path) -> None:
    """What two processes do in these tests; process 0 writes down how it went."""
    from models.checkpoint import save_training

    found = {}
    before = threads()
    with distributed.group():
        leads = distributed.rank() == 0
        for case in CASES:
            states: list[dict[str, Any]] = []
            initial = going_on() if case == "going on" else None
            result = trained(case, on_checkpoint=states.append, initial=initial)
            found[case] = curve(result)
            assert leads or not states
            if case == "with dropout":
                if leads:
                    save_training(states[7], folder / "state.pt")
                distributed.broadcast(None)  # the file is there
                resume = load_training(folder / "state.pt")
                found["resumed"] = curve(trained(case, resume=resume, on_checkpoint=states.append))
        assert distributed.broadcast({"a": [5, "täxt"]} if leads else None) == {"a": [5, "täxt"]}
        assert distributed.broadcast(None) is None
        assert distributed.total([1.0 + distributed.rank(), 5.0]) == [3.0, 10.0]
        assert distributed.broadcast_floats([7.0 + distributed.rank()]) == [7.0]
        number = torch.tensor([distributed.rank()], dtype=torch.uint8)
        assert [each.item() for each in distributed.gathered(number)] == [0, 1]
        if leads:
            (folder / "found.json").write_text(json.dumps(found))
    # one left over may still need the interpreter while it closes, and then aborts the process
    assert threads() == before


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    done = torchrun(folder, __file__, str(folder))
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "found.json").read_text()), folder


def assert_same_curve(two, one):
    """Up to the order of sums: sixteen eps of fp32 in a loss, some more where Adam has divided by small roots before."""
    assert (two["processes"], one["processes"]) == (2, 1)
    assert two["targets"] == one["targets"]
    np.testing.assert_allclose(two["loss"], one["loss"], rtol=2e-6)
    np.testing.assert_allclose(two["grad_norm"], one["grad_norm"], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in CASES if case != "with dropout"])
def test_two_processes_train_as_one(found, case):
    initial = going_on() if case == "going on" else None
    assert_same_curve(found[0][case], curve(trained(case, initial=initial)))


@pytest.mark.slow
def test_two_processes_resumed_give_the_same_bits(found):
    assert found[0]["resumed"] == found[0]["with dropout"]


@pytest.mark.slow
def test_what_two_processes_began_one_can_end(found):
    one = curve(trained("with dropout", resume=load_training(found[1] / "state.pt")))
    # another dropout, so other numbers, but not another training
    np.testing.assert_allclose(one["loss"], found[0]["with dropout"]["loss"], rtol=0.1)


def test_without_a_group_there_is_one_process():
    assert (distributed.size(), distributed.rank(), distributed.launched()) == (1, 0, 1)
    assert distributed.total([2.0]) == distributed.broadcast_floats([2.0]) == [2.0]
    assert distributed.broadcast({"a": 1}) == {"a": 1}


def test_importing_it_imports_no_torch():
    code = "import sys; import models.training.distributed; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


if __name__ == "__main__":
    in_each_process(Path(sys.argv[1]))
