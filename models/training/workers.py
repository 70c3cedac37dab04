"""What process 0 trains, the processes that torchrun started beside it train with it.

Process 0 announces each training before it begins it; the others know of nothing else, neither files nor configuration.
"""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch

from models.encoder.embeddings import ItemContent
from models.histories import Histories
from models.settings.encoder import EncoderSettings
from models.settings.training import TrainSettings
from models.training import distributed
from models.training.loop import fit

_KINDS = {
    "histories": Histories,
    "encoder": EncoderSettings,
    "train": TrainSettings,
    "content": ItemContent,
}


def announce(arguments: Mapping[str, Any]) -> None:
    """Tell the others to call `fit` with these arguments, as process 0 is about to.

    `validation`, `initial`, `resume` and what `fit` calls back are process 0's own and left out.
    """
    if distributed.size() > 1:
        own = {"histories": arguments["histories"].compact()}
        distributed.broadcast({name: _plain(value) for name, value in (dict(arguments) | own).items()})


def release() -> None:
    """Tell the others that there is no more to train."""
    distributed.broadcast(None)


def follow() -> None:
    """Take part in every training that process 0 announces, until it releases.

    Raises ConnectionError where process 0 ends without that, between trainings or within one, and what `fit` raises.
    """
    try:
        while (told := distributed.broadcast(None)) is not None:
            arguments = {name: _rebuilt(name, value) for name, value in told.items()}
            fit(arguments.pop("histories"), **arguments)
    except RuntimeError as error:
        if not distributed.is_lost(error):
            raise
        raise ConnectionError("process 0 has ended") from error


def _plain(value: Any) -> Any:
    """Arrays as tensors, settings and the like as dictionaries."""
    if isinstance(value, np.ndarray):
        return torch.from_numpy(np.array(value))  # a copy: it may be a read-only memory map
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    return value


def _rebuilt(name: str, value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.numpy()
    if isinstance(value, dict):
        return _KINDS[name](**{field: _rebuilt(field, each) for field, each in value.items()})
    return value
