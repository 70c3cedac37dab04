"""Score × weighting, positions × time × block, blocks, readouts, losses: one training each, leave-one-out, as Markdown tables.

OMP_NUM_THREADS=1 python tests/benchmarks/ablation.py --out RESULTS.jsonl                    (MovieLens-100K, about 80 trainings)
OMP_NUM_THREADS=1 python tests/benchmarks/ablation.py --out RESULTS.jsonl --data ml-1m       (the main ones)
python tests/benchmarks/ablation.py --out RESULTS.jsonl --table                              (what is there so far)

Says first how long the trainings take at most. A training whose result is in the file is not run again, so that the run can be
stopped and started. Everything is one change from the base, a transformer with scaled dot products, softmax weights, relative
positions and the full softmax. As in the pipeline: validation NDCG@10 over all targets chooses the epoch, the test's history has
the validation event, the weights have not seen it; ranking over the whole catalogue, the history masked. Differences from the
base are paired by target, with 1.96 standard errors.
"""

import argparse
import itertools
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from models.evaluation.metrics import Float64, hit_rate, ndcg  # noqa: E402
from models.settings.encoder import ATTENTION_BLOCKS, Block, Positions, Readout, Score, Weighting  # noqa: E402
from tests.benchmarks.gpu_training import Data, Settings, configured, fitted, load, pack, ranks  # noqa: E402

BUDGETS: dict[str, Settings] = {
    "ml-100k": {
        "history.max_length": 50,
        "model.dim": 32,
        "train.batch_histories": 16,
        "train.learning_rate": 0.004,
        "train.epochs": 10,
        "train.patience": 4,
    },
    "ml-1m": {
        "history.max_length": 200,
        "model.dim": 64,
        "train.batch_histories": 64,
        "train.learning_rate": 0.002,
        "train.epochs": 15,
        "train.patience": 3,
    },
    "beauty": {
        "history.max_length": 50,
        "model.dim": 128,
        "model.dropout": 0.4,
        "train.batch_histories": 128,
        "train.learning_rate": 0.001,
        "train.epochs": 8,
        "train.patience": 4,
    },
}
BASE: Settings = {
    "model.block": "transformer",
    "model.score": "scaled_dot",
    "model.weighting": "softmax",
    "model.positions": "relative",
    "train.validation_targets": 10**9,
    "model.num_blocks": 2,
    "model.num_heads": 2,
    "model.dropout": 0.2,
}
SAMPLED = {"train.loss": "sampled_softmax", "train.negatives": 256}
CLOSED = {
    "model.direction": "bidirectional",
    "train.targets": "random",
    "train.epochs": 100,
    "train.patience": 30,
}
"""One target of each history an epoch: more epochs."""
MAIN = {
    *("base", "additive, softmax", "scaled_dot, silu", "scaled_dot, sparsemax", "transformer, absolute"),
    *("transformer, rotary", "transformer, relative, time", "transformer, relative, request time"),
    *(
        "hstu, relative",
        "hstu, relative, time",
        "hstu, relative, request time",
        "ligr, relative",
        "gru",
        "conv",
    ),
    *("attention", "sampled_softmax", "gbce", "bce", "cosine"),
}
"""What is also trained on the larger logs."""
HEAD = "| | validation NDCG@10 | test NDCG@10 | difference from base | test HR@10 | best epoch | targets/s |"


def groups() -> dict[str, dict[str, Settings]]:
    """Changes from the base by table and name."""
    grid = {
        f"{score}, {weighting}": {"model.score": score, "model.weighting": weighting}
        for score, weighting in itertools.product(get_args(Score), get_args(Weighting))
    }
    times: dict[str, Settings] = {
        "": {},
        ", time": {"model.time_bias": True},
        ", request time": {"model.time_bias": True, "model.request_time": True},
    }
    places = {
        f"{block}, {positions}{name}": of_block(block) | {"model.positions": positions} | time
        for block, positions, (name, time) in itertools.product(
            ATTENTION_BLOCKS, get_args(Positions), times.items()
        )
        if name != ", request time" or positions == "relative"
    }
    blocks: dict[str, Settings] = {block: of_block(block) for block in get_args(Block)}
    blocks["transformer, both ways"] = CLOSED
    blocks["gru, both ways"] = of_block("gru") | CLOSED | {"model.readout": "attention"}
    readouts: dict[str, Settings] = {readout: {"model.readout": readout} for readout in get_args(Readout)[:3]}
    readouts["target, sampled softmax"] = {"model.readout": "target"} | SAMPLED
    losses: dict[str, Settings] = {
        "softmax": {},
        "sampled_softmax": SAMPLED,
        "sampled_softmax, in batch": SAMPLED | {"train.negative_sampling": "in_batch"},
        "sampled_softmax, by popularity": SAMPLED | {"train.negative_sampling": "popularity"},
        "the same without logQ": SAMPLED
        | {"train.negative_sampling": "popularity", "train.logq_correction": False},
        **{loss: SAMPLED | {"train.loss": loss} for loss in ("gbce", "bce", "bpr")},
    }
    others: dict[str, Settings] = {
        "cosine": {"model.similarity": "cosine"},
        "cosine, temperature learned": {"model.similarity": "cosine", "model.learned_temperature": True},
        "gumbel_softmax, straight through": {"model.weighting": "gumbel_softmax", "model.gumbel_hard": True},
        "swiglu": {"model.feed_forward": "swiglu"},
        "window of 10": {"model.window": 10},
        "ratings": {"model.value": True},
        "calendar": {"model.calendar": True},
    }
    return {
        "base": {"base": {}},
        "score, weighting": grid,
        "block, positions, time": places,
        "block": blocks,
        "readout": readouts,
        "loss": losses,
        "what else": others,
    }


def of_block(block: str) -> Settings:
    """A block with the score and weights it is known for, positions relative where it attends."""
    attends = block in ATTENTION_BLOCKS
    changes: Settings = {"model.block": block, "model.score": "auto", "model.weighting": "auto"}
    return changes if attends else changes | {"model.positions": "none"}


def trainings(data: str) -> dict[str, Settings]:
    """Settings of every training by its key, which is those settings; the same ones are trained once."""
    found = {}
    for changes in (each for table in groups().values() for each in wanted(data, table).values()):
        settings = whole(data, changes)
        found[key_of(settings)] = settings
    return found


def wanted(data: str, table: dict[str, Settings]) -> dict[str, Settings]:
    """The rows of a table that are trained on a log: the main ones on the larger, none that looks at time where there is none."""
    timed = ("model.time_bias", "model.calendar")
    return {
        name: changes
        for name, changes in table.items()
        if (data == "ml-100k" or name in MAIN)
        and not (data == "beauty" and any(changes.get(key) for key in timed))
    }


def whole(data: str, changes: Settings) -> Settings:
    """All settings of a training, `auto` replaced."""
    settings = BASE | BUDGETS[data] | changes
    resolved = configured(settings)[1].resolved
    return settings | {f"model.{key}": getattr(resolved, key) for key in ("score", "weighting", "positions")}


def key_of(settings: Settings) -> str:
    """One line."""
    return json.dumps(settings, sort_keys=True)


# --- training ---


def measure(data: Data, settings: Settings) -> dict[str, Any]:
    """The figures of one training; ranks up to 10 by target, or why there are none."""
    started = time.monotonic()
    try:
        result = fitted(data, settings)
    except ValueError as error:
        return {"error": str(error)}
    rank = ranks(result.model, data.test)
    best = result.history[result.best_epoch - 1]
    hits = np.flatnonzero(rank <= 10)
    return {
        "validation_ndcg@10": best.validation["validation_ndcg@10"],
        "best_epoch": result.best_epoch,
        "epochs": len(result.history),
        "test_targets": len(rank),
        "test_ndcg@10": float(ndcg(rank, 10).mean()),
        "test_hit_rate@10": float(hit_rate(rank, 10).mean()),
        "targets_per_second": float(np.median([each.targets_per_second for each in result.history])),
        "parameters": result.resolved["parameters"],
        "seconds": round(time.monotonic() - started, 1),
        "hits": {str(target): float(rank[target]) for target in hits},
    }


def estimate(data: Data, settings: Settings) -> float:
    """Seconds that a training takes at most, from four steps."""
    result = fitted(data, settings, max_steps=4)
    per_step = result.history[0].seconds / 4
    return 1.1 * per_step * int(result.resolved["steps_per_epoch"]) * configured(settings)[2].epochs


def read(out: Path) -> dict[str, dict[str, Any]]:
    """What is there so far, by key."""
    lines = out.read_text(encoding="utf-8").splitlines() if out.exists() else []
    return {key_of(found["settings"]): found for found in map(json.loads, lines)}


def run(name: str, data: Data, out: Path, threads: int) -> None:
    """Train what is not in the file yet, a line each."""
    torch.set_num_threads(threads)
    done = read(out)
    todo = {key: settings for key, settings in trainings(name).items() if key not in done}
    seconds = sum(estimate(data, settings) for settings in todo.values())
    say(f"{len(todo)} trainings, at most {seconds / 60:.0f} minutes with {threads} thread(s)")
    for number, settings in enumerate(todo.values(), 1):
        found = measure(data, settings)
        with out.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"data": name, "settings": settings} | found) + "\n")
        shown = {key: value for key, value in found.items() if key != "hits"}
        changes = settings.items() - whole(name, {}).items()
        say(f"{number}/{len(todo)} {dict(sorted(changes))} {shown}")


def say(text: str) -> None:
    """To stderr."""
    print(text, file=sys.stderr, flush=True)


# --- tables ---


def tables(data: str, done: dict[str, dict[str, Any]]) -> str:
    """Markdown of what is there."""
    base = done.get(key_of(whole(data, {})))
    lines = []
    for title, table in groups().items():
        rows = {
            name: done[key]
            for name, changes in wanted(data, table).items()
            if (key := key_of(whole(data, changes))) in done
        }
        if title == "score, weighting" and data == "ml-100k":
            lines += ["", "## Test NDCG@10 by score and weighting", *grid(rows, "test_ndcg@10", ".4f")]
            lines += ["", "Targets/s:", *grid(rows, "targets_per_second", ",.0f")]
        elif rows:
            lines += ["", f"## By {title}" if title != "base" else "## Base", HEAD, "| --- |" + " --- |" * 6]
            lines += [f"| {name} | {' | '.join(cells(row, base))} |" for name, row in rows.items()]
    return "\n".join(lines).strip()


def grid(rows: dict[str, dict[str, Any]], figure: str, form: str) -> list[str]:
    """One figure by score and weighting."""
    weightings = get_args(Weighting)

    def cell(score: str, weighting: str) -> str:
        value = rows.get(f"{score}, {weighting}", {}).get(figure)
        return "–" if value is None else format(value, form)

    head = [f"| | {' | '.join(weightings)} |", "| --- |" + " --- |" * len(weightings)]
    rest = [
        f"| {score} | {' | '.join(cell(score, weighting) for weighting in weightings)} |"
        for score in get_args(Score)
    ]
    return head + rest


def cells(row: dict[str, Any], base: dict[str, Any] | None) -> list[str]:
    """The columns of HEAD."""
    if "error" in row:
        return [row["error"], *[""] * 5]
    return [
        f"{row['validation_ndcg@10']:.4f}",
        f"{row['test_ndcg@10']:.4f}",
        "" if base is None or base is row or "error" in base else difference(row, base),
        f"{row['test_hit_rate@10']:.4f}",
        f"{row['best_epoch']} of {row['epochs']}",
        f"{row['targets_per_second']:,.0f}",
    ]


def difference(row: dict[str, Any], base: dict[str, Any]) -> str:
    """Test NDCG@10 less the base's, target by target, ± 1.96 standard errors."""
    apart = by_target(row) - by_target(base)
    return f"{apart.mean():+.4f} ± {1.96 * apart.std() / np.sqrt(len(apart)):.4f}"


def by_target(row: dict[str, Any]) -> Float64:
    """[targets] NDCG@10."""
    rank = np.full(row["test_targets"], np.inf)
    for target, place in row["hits"].items():
        rank[int(target)] = place
    return ndcg(rank, 10)


def main() -> None:
    """Train, or print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="results, a JSON object a line")
    parser.add_argument("--data", choices=[*BUDGETS], default="ml-100k")
    parser.add_argument(
        "--packed", type=Path, help="a folder of gpu_training.py --pack; default: made from the raw data"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="print the tables and train nothing")
    arguments = parser.parse_args()
    if not arguments.table:
        with tempfile.TemporaryDirectory() as folder:
            packed = arguments.packed or Path(folder) / "packed"
            if arguments.packed is None:
                pack(arguments.data, packed)
            data = load(packed / "selection.npz")
        run(arguments.data, data, arguments.out, arguments.threads)
    print(tables(arguments.data, read(arguments.out)))


if __name__ == "__main__":
    main()
