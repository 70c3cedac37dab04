"""Files of a model (safetensors, JSON) and of a training under way (torch's weights-only format)."""

import errno
import json
import os
import re
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from models.encoder.embeddings import blank_content
from models.encoder.encoder import Encoder
from models.ranking.ranker import Ranker
from models.settings.encoder import EncoderSettings
from models.settings.ranker import RankerSettings

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
RANKER_WEIGHTS, RANKER_CONFIG = "ranker.safetensors", "ranker_config.json"
SPARE_BYTES = 2**20
"""Free bytes below which a failed write is put down to a full disk."""
FORMER_NAMES = {
    r"^items\.weight$": "items.ids.weight",
    r"^event_types\.": "events.types.",
    r"^blocks\.": "layers.",
    r"\.(widen|narrow)\.(weight|bias)$": r".feed_forward.\1.\2",
    r"\.feed_forward\.feed_forward\.": ".feed_forward.",
    r"^(layers\.\d+)\.distances\.": r"\1.attention.distances.",
    r"\.gru\.": ".onward.",
}
"""Patterns of weight names before 0.4, and their names since."""


def save_model(encoder: Encoder, folder: Path) -> None:
    """Write `model.safetensors` and `config.json` (settings and sizes) into an existing folder."""
    config = {
        "encoder": asdict(encoder.settings),
        "num_items": encoder.num_items,
        "num_event_types": encoder.num_event_types,
        "max_length": encoder.max_length,
        "content": encoder.items.content_shape,
    }
    weights = {name: weight.detach().cpu().contiguous() for name, weight in encoder.state_dict().items()}
    _write(folder / WEIGHTS, lambda path: save_file(weights, path))
    _write(
        folder / CONFIG, lambda path: path.write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    )


def load_model(folder: Path, device: str | torch.device = "cpu") -> Encoder:
    """What `save_model` wrote, in evaluation mode, its weights frozen; ValueError naming the file that is missing or damaged."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        settings = EncoderSettings(**_present_settings(config["encoder"]))
        sizes = config["num_items"], config["num_event_types"], config["max_length"]
        content = config.get("content")
        encoder = Encoder(settings, *sizes, content=None if content is None else blank_content(*content))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(folder / CONFIG, error) from error
    try:
        weights = load_file(folder / WEIGHTS)
        encoder.load_state_dict({_present_name(name): weight for name, weight in weights.items()})
    except (OSError, SafetensorError, RuntimeError) as error:
        raise _damaged(folder / WEIGHTS, error) from error
    return encoder.to(device).eval().requires_grad_(requires_grad=False)


def save_ranker(ranker: Ranker, folder: Path) -> None:
    """Write `ranker.safetensors` and `ranker_config.json` into an existing folder."""
    config = {
        "settings": asdict(ranker.settings),
        "vectors": list(ranker.vectors.shape),
        "num_event_types": ranker.num_event_types,
    }
    weights = {name: weight.detach().cpu().contiguous() for name, weight in ranker.state_dict().items()}
    _write(folder / RANKER_WEIGHTS, lambda path: save_file(weights, path))
    text = json.dumps(config, indent=1) + "\n"
    _write(folder / RANKER_CONFIG, lambda path: path.write_text(text, encoding="utf-8"))


def load_ranker(folder: Path, device: str | torch.device = "cpu") -> Ranker:
    """What `save_ranker` wrote, in evaluation mode; ValueError naming the file that is missing or damaged."""
    try:
        config = json.loads((folder / RANKER_CONFIG).read_text(encoding="utf-8"))
        settings = RankerSettings(**config["settings"])
        ranker = Ranker(settings, torch.zeros(*config["vectors"]), config["num_event_types"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(folder / RANKER_CONFIG, error) from error
    try:
        ranker.load_state_dict(load_file(folder / RANKER_WEIGHTS))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise _damaged(folder / RANKER_WEIGHTS, error) from error
    return ranker.to(device).eval()


def _present_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """What settings saved by version 0.3 or before mean: a gru was said to have positions, and took no notice; up to 0.2 there
    was no such setting, and a transformer had absolute ones.
    """
    if settings.get("block") == "gru":
        return {**settings, "positions": "none"}
    return {"positions": "absolute", **settings}


def _present_name(name: str) -> str:
    """What a weight is called that was saved under a name of version 0.3 or before."""
    for pattern, present in FORMER_NAMES.items():
        name = re.sub(pattern, present, name)
    return name


def save_training(state: dict[str, Any], path: Path) -> None:
    """Write the state of a training under way (tensors, numbers, strings, lists, dictionaries) to a file."""
    _write(path, lambda aside: torch.save(state, aside))


def load_training(path: Path) -> dict[str, Any]:
    """What `save_training` wrote, on the CPU; ValueError naming the file if it is missing or damaged."""
    try:
        with zipfile.ZipFile(path) as archive:  # what torch.save writes; it checks no sums on reading
            wrong = archive.testzip()
        state = None if wrong else torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise _damaged(path, error) from error
    if wrong:
        raise _damaged(path, f"checksum of {wrong}")
    if not isinstance(state, dict):
        raise _damaged(path, f"holds {type(state).__name__}")
    return state


def _damaged(path: Path, reason: object) -> ValueError:
    return ValueError(
        f"{path}: cannot be read ({reason}); expected the file as it was saved: run the stage again with --force"
    )


def _write(path: Path, write: Callable[[Path], object]) -> None:
    """Write aside, flush to the disk, rename: a reader sees the old file or the new one, whole.

    Raises OSError naming the file where it cannot be written, whatever the library that writes it raises.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(aside)
        with aside.open("rb") as written:
            os.fsync(written.fileno())
        aside.replace(path)
    except (RuntimeError, SafetensorError) as error:
        is_full = shutil.disk_usage(path.parent).free < SPARE_BYTES
        code = errno.ENOSPC if is_full else errno.EIO
        raise OSError(code, f"{os.strerror(code)}: {error}", str(path)) from error
    finally:
        aside.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
