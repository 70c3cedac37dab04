"""A catalogue of millions trains in bounded memory: sampled softmax over synthetic items, sparse gradients, Adagrad by rows.

python tests/benchmarks/bench_catalogue.py        (100,000, a million and 5 million items, 5,000 users, two minutes or so)
python tests/benchmarks/bench_catalogue.py --items 5e6 --users 2e5 --checkpoint

Users with 20 events each, an item of popularity rank r drawn about as often as 1 / r; a transformer of two blocks, dim 64, one
epoch of sampled softmax with 512 uniform negatives a step, then validation, exactly ranked over the whole catalogue. What the
optimiser of the item vectors is follows from the catalogue's size (`train.item_optimizer` auto), or is asked for. Every row is of
a process of its own; "after imports" is what that process held before it made anything. --checkpoint saves the training, as the
pipeline does.
Prints a Markdown table and one JSON object.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

Figures = dict[str, Any]
DIM, LENGTH, NEGATIVES = 64, 20, 512
COLUMNS = {
    "items": ",.0f",
    "item_optimizer": "s",
    "vectors_megabytes": ",.0f",
    "peak_megabytes": ",.0f",
    "times_the_vectors": ".1f",
    "targets_per_second": ",.0f",
    "fit_seconds": ".0f",
    "validation_seconds": ".0f",
    "validation_ndcg@10": ".4f",
}


def peak_megabytes() -> float:
    """The largest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def train(num_items: int, num_users: int, num_targets: int, optimizer: Any, checkpoint: str) -> Figures:
    """One epoch and its validation."""
    import numpy as np

    from models.checkpoint import save_training
    from models.histories import Histories
    from models.settings.encoder import EncoderSettings
    from models.settings.training import TrainSettings
    from models.training.loop import fit
    from models.training.validation import Validation

    after_imports = peak_megabytes()
    random = np.random.default_rng(0)
    events = num_users * LENGTH
    rank = np.exp(random.random(events) * np.log(num_items)).astype(np.int32)  # P(rank) ~ 1 / rank
    ends = np.arange(LENGTH, events + 1, LENGTH)
    log = Histories(rank, np.arange(events), np.zeros(events, np.int16), ends - LENGTH, ends)
    training = Histories(log.item_index, log.time, log.event_type, log.starts, ends - 1)
    chosen = random.choice(num_users, min(num_targets, num_users), replace=False)
    validation = Validation(training.select(chosen), rank[ends[chosen] - 1], exclude_seen=False)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "training.pt"
        started = time.monotonic()
        result = fit(
            training,
            encoder=EncoderSettings(dim=DIM),
            train=TrainSettings(
                loss="sampled_softmax", negatives=NEGATIVES, epochs=1, item_optimizer=optimizer
            ),
            num_items=num_items,
            num_event_types=0,
            max_length=LENGTH,
            validation=validation,
            on_checkpoint=(lambda state: save_training(state, path)) if checkpoint == "yes" else None,
        )
        seconds = time.monotonic() - started
    record, vectors = result.history[0], (num_items + 1) * DIM * 4 / 2**20
    return {
        "items": num_items,
        "item_optimizer": result.resolved["item_optimizer"],
        "vectors_megabytes": round(vectors),
        "peak_megabytes": round(peak_megabytes()),
        "after_imports_megabytes": round(after_imports),
        "times_the_vectors": round((peak_megabytes() - after_imports) / vectors, 2),
        "steps": record.steps,
        "targets": record.targets,
        "targets_per_second": round(record.targets_per_second),
        "loss": round(record.loss, 4),
        "fit_seconds": round(seconds, 1),
        "validation_targets": len(chosen),
        **{key: round(value, 4) for key, value in record.validation.items()},
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--items", type=float, nargs="+", default=[1e5, 1e6, 5e6])
    parser.add_argument("--users", type=float, default=5_000)
    parser.add_argument("--validation", type=int, default=200, help="targets ranked among all items")
    parser.add_argument(
        "--optimizer", nargs="+", choices=["auto", "adamw", "rowwise_adagrad"], default=["auto"]
    )
    parser.add_argument("--checkpoint", action="store_true")
    parser.add_argument("--task", nargs=5, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.task:
        items, users, validation, optimizer, checkpoint = chosen.task
        print(json.dumps(train(int(items), int(users), int(validation), optimizer, checkpoint)))
        return
    found = []
    for items in map(int, chosen.items):
        for optimizer in chosen.optimizer:
            sizes = [items, int(chosen.users), chosen.validation]
            words = [*map(str, sizes), optimizer, "yes" if chosen.checkpoint else "no"]
            command = [sys.executable, __file__, "--task", *words]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT)
            found.append(json.loads(done.stdout.splitlines()[-1]))
    print(f"| {' | '.join(name.replace('_', ' ') for name in COLUMNS)} |\n|{' --- |' * len(COLUMNS)}")
    for each in found:
        print(f"| {' | '.join(format(each[name], form) for name, form in COLUMNS.items())} |")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
