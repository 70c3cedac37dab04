import io
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.encoder.embeddings import ItemContent
from models.histories import Histories, histories_from_lists
from models.settings.encoder import EncoderSettings
from models.settings.training import TrainSettings
from models.training import distributed, workers
from models.training.loop import fit
from models.training.workers import _plain, _rebuilt, announce, follow, release

ROOT = Path(__file__).parents[3]


def frozen(array):
    array.flags.writeable = False  # as of a memory map
    return array


ARGUMENTS: dict[str, Any] = {
    "histories": Histories(
        frozen(np.array([3, 1, 2], np.int32)),
        np.array([10, 20, 30], np.int64),
        np.zeros(3, np.int16),
        np.array([0, 1], np.int64),
        np.array([1, 3], np.int64),
        np.array([0.5, np.nan, 2], np.float32),
    ),
    "encoder": EncoderSettings(block="gru", dim=6),
    "train": TrainSettings(loss="bce"),
    "content": ItemContent(
        np.ones((4, 2), np.float32), np.zeros((4, 1), np.int32), 3, np.array([False, True, True, True])
    ),
    "type_weights": np.array([1, 2], np.float32),
    "num_items": 3,
    "max_steps": None,
}


def test_arguments_arrive_as_they_were_sent():
    sent = io.BytesIO()
    torch.save({name: _plain(value) for name, value in ARGUMENTS.items()}, sent)
    sent.seek(0)
    told = torch.load(sent, weights_only=True)
    heard = {name: _rebuilt(name, value) for name, value in told.items()}
    assert heard.keys() == ARGUMENTS.keys()
    assert (heard["encoder"], heard["train"]) == (ARGUMENTS["encoder"], ARGUMENTS["train"])
    assert (heard["num_items"], heard["max_steps"]) == (3, None)
    np.testing.assert_array_equal(heard["type_weights"], ARGUMENTS["type_weights"], strict=True)
    for name in ("histories", "content"):
        for field, value in asdict(ARGUMENTS[name]).items():
            if isinstance(value, np.ndarray):
                np.testing.assert_array_equal(getattr(heard[name], field), value, strict=True)
            else:
                assert getattr(heard[name], field) == value


def test_alone_there_is_nobody_to_tell():
    announce(ARGUMENTS)
    release()


def in_each_process(folder: Path) -> None:
    """Process 0 ends within a training, by itself; the other one writes down what it learns of that."""
    with distributed.group():
        if distributed.rank():
            try:
                follow()
            except ConnectionError as error:
                (folder / "said").write_text(f"{error}, {type(error.__cause__).__name__}")
            os._exit(0)
        train = TrainSettings(batch_histories=2, checkpoint_seconds=0, precision="fp32", compile="off")
        arguments: dict[str, Any] = {
            "histories": histories_from_lists([[1, 2, 3]] * 10),
            "encoder": EncoderSettings(dim=4, num_blocks=1),
            "train": train,
            "num_items": 3,
            "num_event_types": 0,
            "max_length": 5,
        }
        announce(arguments)
        fit(arguments.pop("histories"), **arguments, on_checkpoint=lambda _: os._exit(0))


@pytest.mark.slow
def test_process_0_ends_within_a_training(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, __file__, str(tmp_path)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "said").read_text() == "process 0 has ended, RuntimeError"


def test_an_error_of_the_process_s_own_is_no_lost_connection(monkeypatch):
    def out_of_memory(*_: object, **_named: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(workers, "fit", out_of_memory)
    monkeypatch.setattr(distributed, "broadcast", lambda _: {"histories": _plain(ARGUMENTS["histories"])})
    with pytest.raises(RuntimeError, match="out of memory"):
        follow()


if __name__ == "__main__":
    in_each_process(Path(sys.argv[1]))
