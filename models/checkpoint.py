"""Files of a model (safetensors, JSON) and of an unfinished training (torch's weights-only format)."""

import errno
import json
import os
import re
import secrets
import shutil
import socket
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from models.encoder.embeddings import blank_content
from models.encoder.encoder import Encoder
from models.ranking.calibration import Calibration
from models.ranking.columns import ColumnEmbeddings
from models.ranking.features import FORMER_FEATURES
from models.ranking.ranker import Ranker
from models.settings.encoder import EncoderSettings
from models.settings.ranker import RankerSettings

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
RANKER_WEIGHTS, RANKER_CONFIG = "ranker.safetensors", "ranker_config.json"
SPARE_BYTES = 2**20
"""Free bytes below which a failed write is reported as a full disk."""
_HOST = re.sub(r"[^\w-]", "-", socket.gethostname())
FORMER_NAMES = {
    r"^items\.weight$": "items.ids.weight",
    r"^event_types\.": "events.types.",
    r"^blocks\.": "layers.",
    r"\.(widen|narrow)\.(weight|bias)$": r".feed_forward.\1.\2",
    r"\.feed_forward\.feed_forward\.": ".feed_forward.",
    r"^(layers\.\d+)\.distances\.": r"\1.attention.distances.",
    r"\.gru\.": ".onward.",
}
"""Patterns of weight names before 0.4, and their present names."""


def save_model(encoder: Encoder, folder: Path) -> None:
    """Write `model.safetensors` and `config.json` (settings and sizes) into an existing folder.

    How attention is computed depends on the machine and is not kept.
    """
    config = {
        "encoder": {key: value for key, value in asdict(encoder.settings).items() if key != "attention"},
        "num_items": encoder.num_items,
        "num_event_types": encoder.num_event_types,
        "max_length": encoder.max_length,
        "content": encoder.items.content_shape,
    }
    _save(encoder, config, folder / WEIGHTS, folder / CONFIG)


def load_model(folder: Path, device: str | torch.device = "cpu") -> Encoder:
    """Load an encoder in evaluation mode, its weights frozen; ValueError naming a missing or damaged file."""
    with _damage_named(folder / CONFIG):
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        settings = EncoderSettings(**_present_settings(config["encoder"]))
        sizes = config["num_items"], config["num_event_types"], config["max_length"]
        content = config.get("content")
        encoder = Encoder(settings, *sizes, content=None if content is None else blank_content(*content))
    with _damage_named(folder / WEIGHTS):
        weights = load_file(folder / WEIGHTS)
        encoder.load_state_dict({_present_name(name): weight for name, weight in weights.items()})
    return encoder.to(device).eval().requires_grad_(requires_grad=False)


def save_ranker(ranker: Ranker, folder: Path) -> None:
    """Write `ranker.safetensors` and `ranker_config.json` into an existing folder.

    What its columns mean is kept by whoever made their tables.
    """
    config = {
        "settings": {key: value for key, value in asdict(ranker.settings).items() if key != "columns"},
        "vectors": list(ranker.vectors.shape),
        "num_event_types": ranker.num_event_types,
        "features": list(ranker.features),
    }
    if (heads := ranker.heads) is not None:
        calibrations = [calibration.as_dict() for calibration in heads.calibrations]
        config["outcomes"] = {
            "types": list(heads.types),
            "valued": list(heads.valued),
            "calibrations": calibrations,
        }
    if ranker.columns is not None:
        config["columns"] = [len(ranker.columns.unseen_user), len(ranker.columns.unseen_item)]
        if ranker.columns.num_of_events:
            config["event_columns"] = ranker.columns.num_of_events
    _save(ranker, config, folder / RANKER_WEIGHTS, folder / RANKER_CONFIG)


def load_ranker(folder: Path, device: str | torch.device = "cpu") -> Ranker:
    """Load a ranker in evaluation mode; ValueError naming a missing or damaged file.

    Rankers of version 0.7 or before read `FORMER_FEATURES` of retrieved candidates alone.
    """
    with _damage_named(folder / RANKER_CONFIG):
        config = json.loads((folder / RANKER_CONFIG).read_text(encoding="utf-8"))
        settings = RankerSettings(**{"favourites": 0, "popular": 0, **config["settings"]})
        features = tuple(config.get("features", FORMER_FEATURES))
        columns = None
        if "columns" in config:
            users, items = (torch.zeros(size, dtype=torch.int32) for size in config["columns"])
            columns = ColumnEmbeddings(users, items, len(features), config.get("event_columns", 0))
        vectors = torch.zeros(*config["vectors"])
        ranker = Ranker(settings, vectors, config["num_event_types"], features, columns)
        if (outcomes := config.get("outcomes")) is not None:
            calibrations = tuple(map(Calibration.of_dict, outcomes["calibrations"]))
            ranker.add_outcomes(outcomes["types"], outcomes["valued"], calibrations)
    with _damage_named(folder / RANKER_WEIGHTS):
        ranker.load_state_dict(load_file(folder / RANKER_WEIGHTS))
    return ranker.to(device).eval()


def _save(module: nn.Module, config: dict[str, Any], weights_path: Path, config_path: Path) -> None:
    weights = {name: weight.detach().cpu().contiguous() for name, weight in module.state_dict().items()}
    _write(weights_path, lambda path: save_file(weights, path))
    text = json.dumps(config, indent=1) + "\n"
    _write(config_path, lambda path: path.write_text(text, encoding="utf-8"))


def _present_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of version 0.3 or before: a gru ignored its positions; up to 0.2 a transformer always had absolute ones."""
    if settings.get("block") == "gru":
        return {**settings, "positions": "none"}
    return {"positions": "absolute", **settings}


def _present_name(name: str) -> str:
    """Present name of a weight saved by version 0.3 or before."""
    for pattern, present in FORMER_NAMES.items():
        name = re.sub(pattern, present, name)
    return name


def save_training(state: dict[str, Any], path: Path) -> None:
    """Write the state of an unfinished training (tensors, numbers, strings, lists, dictionaries) to a file."""
    _write(path, lambda temporary: torch.save(state, temporary))


def load_training(path: Path) -> dict[str, Any]:
    """Load a training state on the CPU; ValueError naming a missing or damaged file."""
    with _damage_named(path):
        with zipfile.ZipFile(path) as archive:  # torch.load verifies no checksums of its archive
            if damaged := archive.testzip():
                raise ValueError(f"checksum of {damaged}")
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict):
            raise TypeError(f"holds {type(state).__name__}")
    return state


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """Turn errors in reading a file into a ValueError that names it."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError, BadZipFile) as error:
        raise ValueError(
            f"{path}: cannot be read ({error}); expected the file as it was saved: run the stage again with --force"
        ) from error


def _write(path: Path, write: Callable[[Path], object]) -> None:
    """Write a temporary file, flush it to the disk, and rename it: a reader sees the whole old or new file.

    Raises OSError naming the file for any library's error.
    """
    temporary = path.with_name(f".{path.name}.{_HOST}-{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        write(temporary)
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    except (RuntimeError, SafetensorError) as error:
        is_full = shutil.disk_usage(path.parent).free < SPARE_BYTES
        code = errno.ENOSPC if is_full else errno.EIO
        raise OSError(code, f"{os.strerror(code)}: {error}", str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
