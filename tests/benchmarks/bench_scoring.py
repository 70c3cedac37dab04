"""Scoring many users against a large catalogue: time and memory, which must grow linearly in users, or not at all.

python tests/benchmarks/bench_scoring.py [--items 200000] [--users 100000 300000 1000000] [--threads 2]

A bundle of random weights (dim 64, one block) and short random histories are made in a temporary folder; each number of users is
scored in a process of its own, as the stage does it (top-10, no reasons), and prints one JSON object.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

DIM, LENGTH = 64, 20
"""Width of the vectors; events of a user on average, and the most that the model looks at."""


def make_bundle(folder: Path, num_items: int) -> None:
    """A bundle of random weights."""
    import polars as pl
    import torch

    from models import checkpoint
    from models.encoder.encoder import Encoder
    from models.retrieval.build import build_index
    from models.settings.encoder import EncoderSettings
    from pipeline.serving.bundle import seal

    for name in ("deployed", "index"):
        (folder / name).mkdir(parents=True)
    torch.manual_seed(0)
    encoder = Encoder(EncoderSettings(dim=DIM, num_blocks=1, num_heads=2), num_items, 0, LENGTH)
    checkpoint.save_model(encoder, folder / "deployed")
    numbers = np.arange(1, num_items + 1, dtype=np.int32)
    build_index(encoder.item_vectors().detach().numpy()[1:], numbers).save(folder / "index")
    table = {
        "item_index": numbers,
        "item_id": numbers.astype(np.int64),
        "num_events": np.ones(num_items, np.int64),
    }
    pl.DataFrame(table).write_parquet(folder / "items.parquet")
    seal(folder, {"name": "bench", "event_types": [], "newest": 0})


def make_features(folder: Path, num_users: int, num_items: int) -> None:
    """Histories of 1 to 2 LENGTH random items."""
    import polars as pl

    from features.histories.jagged import JaggedHistories

    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    offsets = np.concatenate(([0], np.cumsum(random.integers(1, 2 * LENGTH, num_users))))
    events = int(offsets[-1])
    JaggedHistories(
        offsets,
        random.integers(1, num_items + 1, events, dtype=np.int32),
        np.arange(events),
        np.zeros(events, np.int16),
        np.full(events, np.nan, np.float32),
    ).save(folder)
    pl.DataFrame({"user_id": np.arange(num_users)}).write_parquet(folder / "users.parquet")
    pl.DataFrame({"item_id": np.arange(1, num_items + 1)}).write_parquet(folder / "items.parquet")
    (folder / "event_types.json").write_text("[]")


def score(place: Path) -> dict[str, float]:
    """Score all users of a folder in this process."""
    from pipeline.artifacts.store import PeakMemory
    from pipeline.sections import ScoreConfig
    from pipeline.serving.batch import Job, Scorer

    memory = PeakMemory()
    out = place / "recommendations"
    out.mkdir()
    settings = ScoreConfig(because=False)
    scorer = Scorer.open(Job(place.parent / "bundle", place / "features", place, out, settings, 0))
    started, cpu = time.monotonic(), time.process_time()
    rows = sum(scorer.score(number, _nothing)["recommendations"] for number in range(scorer.num_shards))
    seconds = time.monotonic() - started
    return {
        "users": len(scorer.users),
        "rows": rows,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "users_per_second": round(len(scorer.users) / seconds),
        "peak_gb": round(memory.bytes() / 1e9, 2),
    }


def _nothing(_users: int) -> None:
    pass


def main() -> None:
    """Make everything, and score each number of users in its own process."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--items", type=int, default=200_000)
    asked.add_argument("--users", type=int, nargs="+", default=[100_000, 300_000, 1_000_000])
    asked.add_argument("--threads", type=int, default=2)
    asked.add_argument("--score", type=Path)
    arguments = asked.parse_args()
    if arguments.score is not None:
        print(json.dumps(score(arguments.score)), flush=True)
        return
    with tempfile.TemporaryDirectory() as folder:
        make_bundle(Path(folder) / "bundle", arguments.items)
        for users in arguments.users:
            place = Path(folder) / str(users)
            make_features(place / "features", users, arguments.items)
            environment = os.environ | {"OMP_NUM_THREADS": str(arguments.threads)}
            command = [sys.executable, __file__, "--score", str(place)]
            subprocess.run(command, env=environment, check=True)


if __name__ == "__main__":
    main()
