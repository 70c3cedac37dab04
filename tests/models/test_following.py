import io
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from models.following import _plain, _rebuilt, announce, release
from models.inputs import ItemContent
from models.recommender import Histories
from models.settings import EncoderSettings, TrainSettings


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
