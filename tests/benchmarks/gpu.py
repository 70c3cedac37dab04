"""Speed on one GPU, by torch and numpy alone: SASRec and HSTU trained at MovieLens-1M's shapes, users scored against many items.

    python tests/benchmarks/gpu.py [--packed PACKED] [--seconds 420] [--out gpu.json]     PACKED: of gpu_training.py --pack
    python tests/benchmarks/gpu.py --small                                                seconds, on the CPU too

Without PACKED the histories are drawn, as many and as long as MovieLens-1M's. Rows of 2,048 are its events cut anew. Each part
has an equal share of the seconds, after some untimed steps. Figures of a part: targets/s, seconds of an epoch, the share of
bf16 peak (`--peak`, the data sheet's TFLOP/s; without it that of a large square product, measured here), peak memory.
Operations are those of the matrix products for real events, backward twice forward, attention as the full square.
"""

import argparse
import functools
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from models.device import fall_back, peak_bytes, pick_device, resolved_precision  # noqa: E402
from models.encoder.encoder import AttentionRecommender, Encoder  # noqa: E402
from models.histories import Histories, Int64  # noqa: E402
from models.retrieval.exact import nearest  # noqa: E402
from models.training.loop import fit  # noqa: E402
from models.training.result import FitResult  # noqa: E402
from tests.benchmarks.gpu_training import HSTU, SASREC, Settings, configured, load, square_flops  # noqa: E402

USERS, ITEMS, EVENTS, SHORTEST, LONGEST = 6_040, 3_416, 999_611, 20, 2_314
"""Of MovieLens-1M, with at least five events of every user and item."""
LONG = {"history.max_length": 2_048, "train.batch_histories": 16}
WIDE = {"model.dim": 512, "model.num_blocks": 8, "model.num_heads": 8}
LARGE = {"model.dim": 50, "model.num_blocks": 8, "model.request_time": True}
PARTS: dict[str, Settings] = {
    "sasrec, length 200": SASREC,
    "hstu-large, length 200": HSTU | LARGE,
    "sasrec, length 2048": SASREC | LONG,
    "hstu, length 2048": HSTU | LONG,
    "sasrec 512 x 8, length 2048": SASREC | LONG | WIDE,
    "hstu 512 x 8, length 2048": HSTU | LONG | WIDE,
}
SMALL: Settings = {"train.batch_histories": 16, "model.dim": 8, "model.num_blocks": 1, "model.num_heads": 2}
SMALLER = 20
"""Divisor of lengths where all is small."""
FIRST_STEPS = 4
"""Untimed steps of a part, from which the number of timed ones follows."""
SCORED_USERS, SCORED_ITEMS, SCORED_LENGTH, SCORED_DIM = 1_000_000, 200_000, 100, 64
FIRST_USERS = 2_048
K = 10


@dataclass(frozen=True)
class Log:
    """Histories to train on."""

    histories: Histories
    num_items: int
    num_event_types: int


def drawn(users: int, items: int, events: int) -> Log:
    """Histories of log-normal lengths, items by a power law of their number, times in order."""
    random = np.random.default_rng(0)
    lengths = np.exp(random.normal(0, 1, users))
    lengths = np.clip(lengths * events / lengths.sum(), SHORTEST, LONGEST).astype(np.int64)
    ends = np.cumsum(lengths)
    item = (items * random.random(ends[-1]) ** 2).astype(np.int32) + 1
    clock = np.sort(random.integers(0, 10**15, ends[-1]))
    return Log(Histories(item, clock, np.zeros(ends[-1], np.int16), ends - lengths, ends), items, 0)


def cut_anew(histories: Histories, length: int) -> Histories:
    """The same events in rows of `length` and one more, their last target."""
    starts: Int64 = np.arange(0, len(histories.item_index) - length, length + 1, dtype=np.int64)
    return replace(histories, starts=starts, ends=starts + length + 1, request_time=None)


def epoch_flops(model: Encoder, histories: Histories, targets: int) -> float:
    """Floating-point operations of an epoch, see the top."""
    matrices = sum(
        layer.weight.numel() for layer in model.layers.modules() if isinstance(layer, torch.nn.Linear)
    )
    settings, inputs = model.settings, np.minimum(histories.lengths - 1, model.max_length).astype(np.float64)
    attention = 12 * settings.num_blocks * settings.dim * np.square(inputs).sum()
    return float(6 * matrices * inputs.sum() + attention + 6 * targets * settings.dim * model.num_items)


def reduced(settings: Settings) -> Settings:
    """Small model, short histories."""
    return settings | SMALL | {"history.max_length": settings["history.max_length"] // SMALLER}


def trained(log: Log, settings: Settings, seconds: float, peak: float, *, is_cut: bool) -> dict[str, Any]:
    """Train for about so many seconds, `is_cut`: on the events cut anew; the figures of a part."""
    max_length, encoder, train = configured(settings | {"train.epochs": 1_000, "train.compile": "off"})
    device = pick_device()
    histories = cut_anew(log.histories, max_length) if is_cut else log.histories
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()

    def steps(number: int) -> FitResult:
        return fit(
            histories,
            encoder=encoder,
            train=train,
            num_items=log.num_items,
            num_event_types=log.num_event_types,
            max_length=max_length,
            max_steps=number,
        )

    steps(1)  # with what the first step alone needs
    first = steps(FIRST_STEPS)
    of_step = sum(record.seconds for record in first.history) / FIRST_STEPS
    of_epoch = first.resolved["steps_per_epoch"]
    number = max(FIRST_STEPS, round(seconds / of_step))
    number = max(1, round(number / of_epoch)) * of_epoch if number > of_epoch / 2 else number
    result = steps(number)
    rate = sum(record.targets for record in result.history) / sum(record.seconds for record in result.history)
    targets = result.resolved["targets_per_epoch"]
    flops = epoch_flops(result.model, histories, targets) / targets * rate
    return {
        "targets_per_second": round(rate),
        "epoch_seconds": round(targets / rate, 3),
        "steps": number,
        "steps_per_epoch": of_epoch,
        "teraflops_per_second": round(flops / 1e12, 3),
        "share_of_peak": round(flops / peak, 4),
        "peak_megabytes": round(peak_bytes(device) / 2**20),
        "parameters": result.resolved["parameters"],
        "precision": result.resolved["precision"],
    }


def scored(users: int, items: int, seconds: float) -> dict[str, Any]:
    """Encode users by SASRec and search their best items exactly: users/s of each, for as many users as the seconds allow."""
    device = pick_device()
    _, encoder, _ = configured(SASREC | {"model.dim": SCORED_DIM})
    model = Encoder(encoder, items, 0, SCORED_LENGTH).to(device)
    recommender, vectors = AttentionRecommender(model), model.item_vectors().detach()[1:]
    log = drawn(users, items, users * SCORED_LENGTH // 2).histories

    def timed(number: int) -> tuple[float, float]:
        started = time.perf_counter()
        encoded = recommender.encode(log.select(slice(0, number)))
        encoded_at = time.perf_counter()
        nearest(torch.from_numpy(encoded).to(device), vectors, K)[0].cpu()  # waits for it
        return encoded_at - started, time.perf_counter() - encoded_at

    first = min(FIRST_USERS, users)
    timed(first)
    number = min(users, max(first, round(first * seconds / sum(timed(first)))))
    encoding, searching = timed(number)
    return {
        "users": number,
        "items": items,
        "users_per_second": round(number / (encoding + searching)),
        "encoded_users_per_second": round(number / encoding),
        "searched_users_per_second": round(number / searching),
        "seconds_for_a_million_users": round(1e6 * (encoding + searching) / number, 1),
    }


def measured(arguments: argparse.Namespace) -> dict[str, Any]:
    """All parts, written after each; a part that fails is named, the others go on."""
    device, small = pick_device(), arguments.small
    if message := fall_back():
        print(message, file=sys.stderr)
    size = (60, 300, 6_000) if small else (USERS, ITEMS, EVENTS)
    log = drawn(*size)
    if arguments.packed is not None:
        data = load(arguments.packed / "selection.npz")
        log = Log(data.training, data.num_items, data.num_event_types)
    peak = arguments.peak * 1e12 if arguments.peak else square_flops(device)
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else device.type,
        "torch": torch.__version__,
        "precision": resolved_precision("auto", device),
        "peak_teraflops_per_second": round(peak / 1e12, 3),
        "data": str(arguments.packed.name) if arguments.packed is not None else "drawn",
        "parts": {},
    }
    share = arguments.seconds / (len(PARTS) + 1)
    to_score = (300, 2_000) if small else (SCORED_USERS, SCORED_ITEMS)
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        name: functools.partial(
            trained,
            log,
            reduced(settings) if small else settings,
            share * 0.7,
            peak,
            is_cut=settings["history.max_length"] == LONG["history.max_length"],
        )
        for name, settings in PARTS.items()
    }
    parts["scoring"] = functools.partial(scored, *to_score, share * 0.5)
    for name, part in parts.items():
        started = time.monotonic()
        try:
            figures = part()
        except (MemoryError, RuntimeError) as error:
            figures = {"error": str(error).partition("\n")[0]}
        figures["wall_seconds"] = round(time.monotonic() - started, 1)
        result["parts"][name] = figures
        print(f"{name}: {json.dumps(figures)}", file=sys.stderr, flush=True)
        arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


def main() -> None:
    """Measure, print, write JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--packed", type=Path, help="a folder of gpu_training.py --pack")
    parser.add_argument("--seconds", type=float, help="of all parts together (420, with --small 3)")
    parser.add_argument("--peak", type=float, help="the data sheet's bf16 TFLOP/s, dense")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    parser.add_argument("--small", action="store_true", help="small models and data, to try the command")
    arguments = parser.parse_args()
    arguments.seconds = arguments.seconds or (3.0 if arguments.small else 420.0)
    print(json.dumps(measured(arguments)))


if __name__ == "__main__":
    main()
