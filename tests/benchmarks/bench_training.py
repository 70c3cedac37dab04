"""Training MovieLens-1M, leave-one-out: targets/s, memory, share of the machine's matrix product, quality after as many epochs.

python tests/benchmarks/bench_training.py        (an epoch of SASRec and of HSTU, two minutes or so)
python tests/benchmarks/bench_training.py --epochs 5 --repeats 3 --only sasrec --compile off on
python tests/benchmarks/bench_training.py --only sasrec --peer PYTHON [--peer-script rectools_sasrec.py]    (of RecTools)

SASRec: dim 64, 2 blocks, 2 heads, dropout .2, histories of up to 200, 128 a step, full softmax; hstu: the same sizes with biases
by distance and time and cosine similarity. Trained on all but each user's last event, which is the test: ranked over the whole
catalogue, the history masked, what training has not seen a miss, as the peer counts. Every figure is of a process of its own,
peer and ours in alternating order. `targets_per_second` is of optimiser steps alone, `fit_seconds` of all that `fit` does; the
floor is what the step's floating-point operations would take at the rate of [8192 x 64] @ [64 x 4096].
Prints one JSON object.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

Figures = dict[str, Any]


def machine() -> Figures:
    """GFLOP/s of matrix products, of a step's shapes and of a large square; bf16 where it is native; and the compiler."""
    import torch

    from models.device import compiler, computes_bf16
    from tests.benchmarks.gpu_training import product_flops, square_flops

    cpu = torch.device("cpu")

    return {
        "bf16": round(product_flops(torch.bfloat16) / 1e9, 1) if computes_bf16(cpu) else None,
        "fp32": round(product_flops(torch.float32) / 1e9, 1),
        "square": round(square_flops(cpu) / 1e9, 1),
        "compiler": compiler(cpu),
    }


def train(packed: Path, name: str, epochs: int, compiled: str) -> Figures:
    """One training and its test."""
    from tests.benchmarks.gpu_training import MODELS, configured, epoch_flops, fitted, judge, load

    data = load(packed / "refit.npz")
    settings = MODELS[name] | {"train.epochs": epochs, "train.compile": compiled}
    started = time.monotonic()
    result = fitted(data, settings, validates=False)
    seconds = time.monotonic() - started
    flops, targets = epoch_flops(data, result.model, configured(settings)[-1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    measured = judge(result.model, data.test)
    ranked = len(data.test.target) / data.num_held_out
    return {
        "targets_per_epoch": targets,
        "targets_per_second": [round(each.targets_per_second) for each in result.history],
        "epoch_seconds": [round(each.seconds, 2) for each in result.history],
        "fit_seconds": round(seconds, 2),
        "gigaflops_per_epoch": round(flops / 1e9, 1),
        "loss": round(result.history[-1].loss, 4),
        "peak_megabytes": round(peak / (2**20 if sys.platform == "darwin" else 2**10)),
        "test": {key: round(value * ranked, 4) for key, value in measured.items()},
        "resolved": {key: result.resolved[key] for key in ("precision", "compile", "threads")},
    }


def prepare(folder: Path, data: str) -> Figures:
    """`packed/` and, for the peer, `log.csv` with user, item and time in seconds, each user's events in our order."""
    import numpy as np

    from features.histories.jagged import JaggedHistories
    from tests.benchmarks.gpu_training import features, pack

    given = Path(data)
    found = given.absolute() if given.is_dir() else features(data, folder)
    pack(str(found), folder / "packed")
    log = JaggedHistories.load(found)
    table = np.stack([log.users(), log.item_index, log.time // 10**6], 1)
    np.savetxt(folder / "log.csv", table, "%d", ",", header="user_id,item_id,timestamp", comments="")
    return {"events": len(table)}


def task(*words: object) -> Figures:
    """The figures of this script's task in a process of its own."""
    return last_line([sys.executable, __file__, "--task", *map(str, words)])


def last_line(command: list[str]) -> Figures:
    """The JSON object that a process prints last."""
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT)
    figures: Figures = json.loads(done.stdout.splitlines()[-1])
    print(f"{' '.join(command[1:])}: {figures}", file=sys.stderr, flush=True)
    return figures


def measure(folder: Path, chosen: argparse.Namespace) -> Figures:
    """Everything that was asked for."""
    rates = task("machine")
    compiles = [each for each in chosen.compile if each != "on" or rates["compiler"]]
    runs: dict[str, list[Figures]] = {}
    for _ in range(chosen.repeats):
        for name in chosen.only:
            for compiled in compiles:
                key = name if len(compiles) == 1 else f"{name}, compile {compiled}"
                figures = task("train", folder / "packed", name, chosen.epochs, compiled)
                runs.setdefault(key, []).append(figures)
        if chosen.peer:
            words = f"--data={folder / 'log.csv'}", f"--epochs={chosen.epochs}"
            command = [str(chosen.peer.absolute()), str(chosen.peer_script.absolute()), *words]
            runs.setdefault("peer", []).append(last_line(command))
    ours = {name: summary(each, rates) for name, each in runs.items() if name != "peer"}
    if chosen.peer:
        seconds = statistics.median(each["epoch_s"] for each in runs["peer"])
        for each in ours.values():
            each["times_as_fast_as_peer"] = round(seconds / each["epoch_seconds"], 2)
            each["ndcg@10_less_peer's"] = round(each["ndcg@10"] - runs["peer"][0]["metrics"]["ndcg@10"], 4)
    return {"machine": rates, "runs": runs, "summary": ours}


def summary(runs: list[Figures], rates: Figures) -> Figures:
    """Medians of several runs, over all their epochs."""
    epoch = statistics.median(seconds for run in runs for seconds in run["epoch_seconds"])
    floor = runs[0]["gigaflops_per_epoch"] / rates[runs[0]["resolved"]["precision"]]
    return {
        "targets_per_second": round(runs[0]["targets_per_epoch"] / epoch),
        "epoch_seconds": round(epoch, 2),
        "fit_seconds": statistics.median(run["fit_seconds"] for run in runs),
        "floor_seconds": round(floor, 2),
        "share_of_floor": round(floor / epoch, 3),
        "peak_megabytes": max(run["peak_megabytes"] for run in runs),
        "ndcg@10": statistics.median(run["test"]["ndcg@10"] for run in runs),
        "hit_rate@10": statistics.median(run["test"]["hit_rate@10"] for run in runs),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=["sasrec", "hstu"], default=["sasrec", "hstu"])
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--compile", nargs="+", choices=["auto", "on", "off"], default=["auto"])
    parser.add_argument(
        "--data", default="ml-1m", help="a name in pipeline/configs, or a leave-one-out features folder"
    )
    parser.add_argument("--peer", type=Path, help="the interpreter of RecTools's environment")
    parser.add_argument(
        "--peer-script", type=Path, default=ROOT.parent / "shared" / "peers" / "rectools_sasrec.py"
    )
    parser.add_argument("--task", nargs="+", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.task:
        name, *words = chosen.task
        if name == "machine":
            figures = machine()
        elif name == "prepare":
            figures = prepare(Path(words[0]), words[1])
        else:
            figures = train(Path(words[0]), words[1], int(words[2]), words[3])
        print(json.dumps(figures))
        return
    raw = [
        Path(os.environ.get("LOOKBACK_SHARED_DATA", ROOT.parent / "shared" / "data")),
        ROOT / "data" / "raw",
    ]
    if not Path(chosen.data).is_dir() and not any(path.exists() for path in raw):
        print(f"bench_training: skipped, neither {raw[0]} nor {raw[1]}; set LOOKBACK_SHARED_DATA")
        return
    with tempfile.TemporaryDirectory() as folder:
        task("prepare", folder, chosen.data)
        print(json.dumps(measure(Path(folder), chosen), indent=1))


if __name__ == "__main__":
    main()
