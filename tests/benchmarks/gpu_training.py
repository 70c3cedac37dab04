"""A leave-one-out training on a bare machine, torch and numpy alone: targets/s, share of peak, time to the best validation.

Where the pipeline is:      python tests/benchmarks/gpu_training.py --pack ml-1m PACKED        (or a features folder; see --help)
On the bare machine:        python tests/benchmarks/gpu_training.py --train hstu-large --packed PACKED --out OUT --seconds 540
  and on, from what it left: … --resume OUT; any setting: … --set model.dim=64 --set train.epochs=50
Trained again with the validation events, for the steps that the first training names: … --steps N
Back where the pipeline is: python tests/benchmarks/gpu_training.py --unpack OUT MODEL           (model.safetensors, config.json)

Prints one JSON object, which is also OUT/result.json. Weights, and the state to resume from where it fits, come in pieces under
16 MiB. Ranking is exact, over the whole catalogue, the history masked; validation NDCG@10 chooses the epoch; the test's history
has the validation event. The time to the best validation is that of steps and validations.
"""

import argparse
import io
import json
import math
import os
import subprocess
import sys
import tempfile
import time
import timeit
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from models.device import computes_bf16, pick_device  # noqa: E402
from models.encoder.batching import BatchPlan  # noqa: E402
from models.encoder.encoder import AttentionRecommender, Encoder  # noqa: E402
from models.evaluation.metrics import Float64, hit_rate, ndcg  # noqa: E402
from models.evaluation.ranks import rank_targets  # noqa: E402
from models.histories import Histories  # noqa: E402
from models.settings.encoder import EncoderSettings  # noqa: E402
from models.settings.training import SAMPLED_LOSSES, TrainSettings  # noqa: E402
from models.training.loop import fit  # noqa: E402
from models.training.negatives import NegativeSampler  # noqa: E402
from models.training.objective import Objective  # noqa: E402
from models.training.result import EpochRecord, FitResult  # noqa: E402
from models.training.steps import steps  # noqa: E402
from models.training.validation import Validation  # noqa: E402

SHARED = Path(os.environ.get("LOOKBACK_SHARED_DATA", ROOT.parent / "shared" / "data"))
FLAT = ("item_index", "time", "event_type", "value")
PIECE = 15 * 2**20
MOST_BACK = 60 * 2**20, 7
COUNTED_STEPS = 8
"""Steps of an epoch whose operations are counted."""
"""Bytes and files that come back from a borrowed machine, result.json apart."""
SAVE_SECONDS = 60.0

Settings = dict[str, Any]
"""By dotted keys of the configuration: history.max_length, model.*, train.*."""

SASREC: Settings = {
    "history.max_length": 200,
    "model.dim": 64,
    "model.num_blocks": 2,
    "model.num_heads": 2,
    "model.dropout": 0.2,
    "train.batch_histories": 128,
    "train.validation_targets": 10**9,
}
HSTU = SASREC | {"model.block": "hstu", "model.time_bias": True, "model.similarity": "cosine"}
MODELS: dict[str, Settings] = {
    "sasrec": SASREC,
    "hstu": HSTU,
    "hstu-large": HSTU | {"model.dim": 50, "model.num_blocks": 8, "model.request_time": True},
    "ligr": SASREC | {"model.block": "ligr", "model.num_blocks": 4},
    "wide": SASREC
    | {"history.max_length": 128, "model.dim": 256, "model.num_blocks": 3, "model.num_heads": 1}
    | {"model.dropout": 0.3, "train.batch_histories": 256},
}
"""hstu-large: Zhai et al. 2024, with the full softmax; wide: the best of a 108-point grid on ML-1M and Beauty (time-to-split)."""


class OutOfTimeError(Exception):
    """The time is up; what was learned so far is kept."""


@dataclass(frozen=True)
class Data:
    """What a model learns from and is judged by, in its own numbering of items; all rows over the same flat arrays."""

    training: Histories
    validation: Validation
    test: Validation
    num_items: int
    num_event_types: int
    num_held_out: int
    """Test events, those that are no ordinary targets (seen before, unknown in training) included."""


# --- where the pipeline is ---


def features(name: str, folder: Path) -> Path:
    """The leave-one-out features folder of a shipped configuration, made in `folder` from the shared raw data."""
    (folder / "data").mkdir()
    (folder / "data" / "raw").symlink_to(SHARED if SHARED.exists() else ROOT / "data" / "raw")
    options = [f"--config={ROOT / 'pipeline' / 'configs' / name}.toml"]
    options += ["--set=split.protocol=leave_one_out", "--set=tracking.enabled=false"]

    def lookback(*words: str) -> str:
        command = [sys.executable, "-m", "pipeline", *words, "features", *options]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=True
        )
        return done.stdout

    lookback("run")
    return folder / lookback("path").splitlines()[-1]


def of_features(folder: Path, *, with_validation: bool) -> Data:
    """What a model learns from a features folder, its training events with those of validation or without, and its targets."""
    from features.histories.numbering import ItemNumbering
    from pipeline.dataset.dataset import Dataset
    from pipeline.dataset.targets import RankedTargets, ranked_targets

    dataset = Dataset.open(folder)
    training = dataset.training_rows(with_validation=with_validation)
    numbering = ItemNumbering.of_known(dataset.occurring(training))
    training = training.translate(numbering.new)

    def judged(targets: RankedTargets) -> Validation:
        chosen = targets.select(targets.warm)
        assert np.array_equal(chosen.histories.item_index, training.item_index), "one numbering, one log"
        return Validation(chosen.histories, chosen.item)

    validation, test = (
        ranked_targets(dataset, part, numbering, ties="order", exclude_seen=True)
        for part in ("validation", "test")
    )
    num_held_out = len(test) + test.left_out["already_seen"]
    sizes = numbering.num_items, len(dataset.event_types), num_held_out
    return Data(training, judged(validation), judged(test), *sizes)


def pack(name: str, out: Path) -> None:
    """`selection.npz` and, trained with validation, `refit.npz` of a shipped configuration or a features folder."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        found = Path(name) if (Path(name) / "offsets.npy").exists() else features(name, Path(folder))
        save(of_features(found, with_validation=False), out / "selection.npz")
        save(of_features(found, with_validation=True), out / "refit.npz")
    size = sum(path.stat().st_size for path in out.glob("*.npz"))
    print(f"{out}: {size / 2**20:.1f} MiB", file=sys.stderr)


def unpack(out: Path, folder: Path) -> None:
    """The trained model that a bare machine left, as the pipeline reads it."""
    from models.checkpoint import save_model

    folder.mkdir(parents=True, exist_ok=True)
    save_model(trained(read_pieces(out, "weights.pt")), folder)


# --- arrays in, pieces out ---


def save(data: Data, path: Path) -> None:
    """One file of plain arrays."""
    arrays: dict[str, Any] = {
        name: value for name in FLAT if (value := getattr(data.training, name)) is not None
    }
    rows = {"training": data.training, "validation": data.validation.histories, "test": data.test.histories}
    for name, each in rows.items():
        arrays |= {f"{name}_starts": each.starts, f"{name}_ends": each.ends}
    for name, held_out in {"validation": data.validation, "test": data.test}.items():
        arrays[f"{name}_target"] = held_out.target
        arrays[f"{name}_request_time"] = held_out.histories.request_time
    arrays["sizes"] = np.array([data.num_items, data.num_event_types, data.num_held_out])
    np.savez_compressed(path, **arrays)


def load(path: Path) -> Data:
    """What `save` wrote."""
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    flat = {name: arrays[name] for name in FLAT if name in arrays}

    def rows(name: str) -> Histories:
        times = arrays.get(f"{name}_request_time")
        return Histories(
            **flat, starts=arrays[f"{name}_starts"], ends=arrays[f"{name}_ends"], request_time=times
        )

    validation, test = (Validation(rows(name), arrays[f"{name}_target"]) for name in ("validation", "test"))
    return Data(rows("training"), validation, test, *arrays["sizes"].tolist())


def write_pieces(value: dict[str, Any], folder: Path, name: str, most: tuple[int, int] = MOST_BACK) -> int:
    """Tensors and plain values as `name.00`, `name.01` …; how many pieces: 0 where they are more than `most` bytes or files."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    content = buffer.getvalue()
    pieces = [content[start : start + PIECE] for start in range(0, len(content), PIECE)]
    if len(content) > most[0] or len(pieces) > most[1]:
        return 0
    for number, piece in enumerate(pieces):
        (folder / f"{name}.{number:02d}").write_bytes(piece)
    return len(pieces)


def read_pieces(folder: Path, name: str) -> dict[str, Any]:
    """What `write_pieces` wrote."""
    content = b"".join(path.read_bytes() for path in sorted(folder.glob(f"{name}.[0-9][0-9]")))
    value: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return value


# --- training ---


def parsed(changes: Sequence[str]) -> Settings:
    """Changes such as `model.dim=64`, values as in JSON or else text."""
    settings = {}
    for key, _, text in (change.partition("=") for change in changes):
        try:
            settings[key] = json.loads(text)
        except ValueError:
            settings[key] = text
    return settings


def configured(settings: Settings) -> tuple[int, EncoderSettings, TrainSettings]:
    """Longest history, encoder and training."""
    model, train = (
        {key.removeprefix(prefix): value for key, value in settings.items() if key.startswith(prefix)}
        for prefix in ("model.", "train.")
    )
    return settings["history.max_length"], EncoderSettings(**model), TrainSettings(**train)


def fitted(
    data: Data, settings: Settings, *, validates: bool = True, max_steps: int | None = None
) -> FitResult:
    """One training, undisturbed; for all of its epochs unless it `validates`."""
    max_length, encoder, training = configured(settings)
    return fit(
        data.training,
        encoder=encoder,
        train=training,
        num_items=data.num_items,
        num_event_types=data.num_event_types,
        max_length=max_length,
        validation=data.validation if validates else None,
        max_steps=max_steps,
    )


def ranks(model: Encoder, test: Validation) -> Float64:
    """[targets] rank of each target over the whole catalogue, the history masked."""
    return rank_targets(AttentionRecommender(model), test.histories, test.target, 1, exclude_seen=True).rank


def judge(model: Encoder, test: Validation) -> dict[str, float]:
    """NDCG@10 and hit rate@10 of the test's targets."""
    rank = ranks(model, test)
    return {
        "ndcg@10": round(float(ndcg(rank, 10).mean()), 5),
        "hit_rate@10": round(float(hit_rate(rank, 10).mean()), 5),
    }


def epoch_flops(data: Data, model: Encoder, train: TrainSettings) -> tuple[int, int]:
    """(floating-point operations of an epoch's matrix products, its targets), from every so many of its steps.

    Padding within a step's windows is counted, attention as the full square. Recurrent blocks are not: their kernels are opaque.
    """
    plan = BatchPlan(
        data.training,
        model.max_length,
        train.batch_histories,
        None,
        0,
        targets=train.targets,
        with_time=model.settings.uses_time,
        with_value=model.settings.value,
    )
    sizes = data.num_items, model.num_event_types, model.max_length
    dense = Encoder(model.settings, *sizes, "dense")  # torch counts no fused attention on the CPU
    objective, sampler = Objective(dense, train), None
    if train.loss in SAMPLED_LOSSES:
        known = np.arange(1, data.num_items + 1)
        sampler = NegativeSampler(train, plan.item_counts(data.num_items), known, 0)
    place: dict[str, Any] = {"accumulate": 1, "rank": 0, "size": 1, "device": torch.device("cpu")}
    flops = targets = 0
    for first in range(0, plan.steps_per_epoch, max(1, plan.steps_per_epoch // COUNTED_STEPS)):
        step = next(steps(plan, 0, first, sampler=sampler, **place))
        with FlopCounterMode(display=False) as counter:
            torch.autograd.backward(objective(step.parts[0][0], step.negatives))
        flops += counter.get_total_flops()
        targets += step.num_targets
    return round(flops * plan.num_targets / targets), plan.num_targets


def product_flops(precision: torch.dtype) -> float:
    """Floating-point operations per second of `[8192, 64] @ [64, 4096]` on the CPU, memory for the result included."""
    left, right = torch.ones(8192, 64, dtype=precision), torch.ones(64, 4096, dtype=precision)
    seconds = min(timeit.repeat(lambda: left @ right, number=1, repeat=100))
    return 2 * 8192 * 64 * 4096 / seconds


def square_flops(device: torch.device) -> float:
    """Floating-point operations per second of a large square product of random numbers: bf16 where it is native, else fp32."""
    size = 8192 if device.type == "cuda" else 2048
    dtype = torch.bfloat16 if computes_bf16(device) else torch.float32
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = math.inf
    for _ in range(20 if device.type == "cuda" else 3):
        started = time.perf_counter()
        product = left @ right
        product[0, 0].item()  # waits for it
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def trained(weights: dict[str, Any]) -> Encoder:
    """The encoder of what a training left, in evaluation mode."""
    model = Encoder(EncoderSettings(**weights["encoder"]), *weights["sizes"])
    model.load_state_dict(weights["model"])
    return model.to(pick_device()).eval()


class Keeper:
    """Keeps a training's last state, on disk too, and ends the training when its time is up."""

    def __init__(
        self, out: Path, facts: dict[str, Any], seconds: float, state: dict[str, Any] | None
    ) -> None:
        self.out, self.facts, self.state = out, facts, state or {}
        self.deadline = time.monotonic() + seconds
        self.written_at = time.monotonic()
        self.notes: dict[str, Any] = {}

    def __call__(self, state: dict[str, Any]) -> None:
        """Take in a checkpoint."""
        self.state = state
        now = time.monotonic()
        if now - self.written_at >= SAVE_SECONDS:
            self.write()
        if now > self.deadline:
            raise OutOfTimeError

    def weights(self) -> dict[str, Any]:
        """The weights to judge: the best so far, or without validation the last, averaged where they are."""
        state = self.state
        return self.facts | {"model": state["best"] or state["model"] | state["average"]}

    def write(self) -> None:
        """Weights, and the state to resume from if what is left of the room holds it."""
        pieces = write_pieces(self.weights(), self.out, "weights.pt")
        room = MOST_BACK[0] - pieces * PIECE, MOST_BACK[1] - pieces
        self.notes = {
            "weights_pieces": pieces,
            "state_pieces": write_pieces(self.state, self.out, "state.pt", room),
        }
        self.written_at = time.monotonic()


def show(record: EpochRecord) -> None:
    """A line per epoch."""
    validation = record.validation.get("validation_ndcg@10", math.nan)
    print(
        f"epoch {record.epoch}: loss {record.loss:.4f}, {record.targets_per_second:,.0f} targets/s, "
        f"{record.seconds:.1f} s, validation {validation:.4f}",
        file=sys.stderr,
        flush=True,
    )


def timing(history: list[dict[str, Any]], reach: float | None) -> dict[str, Any]:
    """Seconds of steps and validations up to the best validation, and up to the first that reaches `reach`."""
    ends = np.cumsum(
        [each["seconds"] + each["validation"].get("validation_seconds", 0.0) for each in history]
    )
    scores = np.array([each["validation"].get("validation_ndcg@10", math.nan) for each in history])
    found: dict[str, Any] = {"seconds": round(float(ends[-1]), 1)}
    if not np.isnan(scores).any():
        best = int(scores.argmax())
        found |= {
            "best_epoch": history[best]["epoch"],
            "best_step": history[best]["steps"],
            "validation_ndcg@10": round(float(scores[best]), 5),
            "seconds_to_best": round(float(ends[best]), 1),
            "validation": [round(float(score), 4) for score in scores],
        }
        if reach is not None:
            after = np.flatnonzero(scores >= reach)
            found[f"seconds_to_{reach}"] = round(float(ends[after[0]]), 1) if len(after) else None
    return found


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train, judge, and leave everything in the output folder."""
    max_length, encoder, train = configured(MODELS[arguments.train] | parsed(arguments.set))
    data = load(arguments.packed / ("refit.npz" if arguments.steps else "selection.npz"))
    device = pick_device()
    sizes = [data.num_items, data.num_event_types, max_length]
    arguments.out.mkdir(parents=True, exist_ok=True)
    state = read_pieces(arguments.resume, "state.pt") if arguments.resume else None
    keeper = Keeper(arguments.out, {"encoder": asdict(encoder), "sizes": sizes}, arguments.seconds, state)
    started, is_whole = time.monotonic(), True
    try:
        fit(
            data.training,
            encoder=encoder,
            train=replace(train, checkpoint_seconds=min(train.checkpoint_seconds, SAVE_SECONDS)),
            num_items=data.num_items,
            num_event_types=data.num_event_types,
            max_length=max_length,
            seed=arguments.seed,
            validation=data.validation,
            max_steps=arguments.steps,
            resume=state,
            on_checkpoint=keeper,
            on_epoch=show,
        )
    except OutOfTimeError:
        is_whole = False
    trained_at = time.monotonic()
    keeper.write()
    model = trained(keeper.weights())
    history = keeper.state["history"]
    flops, targets = epoch_flops(data, model, train)
    result = {
        "model": arguments.train,
        "changes": arguments.set,
        "seed": arguments.seed,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else device.type,
        "torch": torch.__version__,
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "is_whole": is_whole,
        "wall_seconds": round(trained_at - started, 1),
        "epochs": len(history),
        "targets_per_epoch": targets,
        "test_targets": len(data.test.target),
        "test": judge(model, data.test),
    } | keeper.notes
    if history:
        result |= timing(history, arguments.reach) | speed(history, flops / targets, device)
    if not arguments.steps and "best_step" in result:
        after = epoch_flops(load(arguments.packed / "refit.npz"), model, train)[1]
        result["refit_steps"] = max(1, round(result["best_step"] * after / targets))
    (arguments.out / "result.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


def speed(history: list[dict[str, Any]], flops_per_target: float, device: torch.device) -> dict[str, Any]:
    """Targets/s, the median epoch's, and what share that is of a large square product measured here."""
    rate = float(np.median([each["targets"] / each["seconds"] for each in history]))
    peak = square_flops(device)
    return {
        "targets_per_second": round(rate),
        "gigaflops_per_second": round(rate * flops_per_target / 1e9, 1),
        "square_product_gigaflops_per_second": round(peak / 1e9, 1),
        "share_of_peak": round(rate * flops_per_target / peak, 4),
        "peak_megabytes": round(max(each["peak_bytes"] for each in history) / 2**20),
    }


def main() -> None:
    """Pack, train or unpack."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--pack",
        nargs=2,
        metavar=("DATA", "PACKED"),
        help="DATA: a name in pipeline/configs, or a features folder",
    )
    parser.add_argument("--unpack", nargs=2, type=Path, metavar=("OUT", "MODEL"))
    parser.add_argument("--train", choices=[*MODELS])
    parser.add_argument("--packed", type=Path)
    parser.add_argument("--out", type=Path, default=Path("out"))
    parser.add_argument("--resume", type=Path, help="a folder with state.pt.00 …")
    parser.add_argument(
        "--seconds", type=float, default=math.inf, help="stop at the first checkpoint after this"
    )
    parser.add_argument(
        "--steps", type=int, help="train with the validation events, exactly so many steps, on refit.npz"
    )
    parser.add_argument("--reach", type=float, help="say when validation NDCG@10 reached this")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--set", action="append", default=[], help="KEY=VALUE of history.max_length, model.*, train.*"
    )
    arguments = parser.parse_args()
    if arguments.pack:
        pack(arguments.pack[0], Path(arguments.pack[1]))
    elif arguments.unpack:
        unpack(*arguments.unpack)
    elif arguments.train and arguments.packed:
        print(json.dumps(run(arguments)))
    else:
        parser.error("one of --pack, --unpack, or --train with --packed")


if __name__ == "__main__":
    main()
