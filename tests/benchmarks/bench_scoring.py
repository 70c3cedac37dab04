"""Scoring many users against a large catalogue: time and memory, which must grow linearly in users, or not at all.

python tests/benchmarks/bench_scoring.py [--items 200000] [--users 100000 300000 1000000] [--threads 2] [--changed .02] [--anew]
python tests/benchmarks/bench_scoring.py --movielens --users 6040

A bundle of random weights and random histories are made in a temporary folder: dim 64, one block and 1 to 39 events per user;
with --movielens two blocks, 200 positions, 3,700 items and 20 to 2,314 events as MovieLens-1M has them (median 96). Each
number of users is scored in a process of its own, as the stage does it (top-10, no reasons; --because: with them), and prints
one JSON object. With --changed the next night follows: that share of the users has one event more, and the lists of the others
are kept. --anew makes that night's lists once more without the first ones, and compares their bytes.
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

DIM, LENGTH, LONGEST = 64, 20, 200
"""Width of the vectors; events of a user on average, and the most that the model looks at; the same with --movielens."""
MOVIES = 3_700


def make_bundle(folder: Path, num_items: int, *, movielens: bool) -> None:
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
    settings = EncoderSettings(dim=DIM, num_blocks=2 if movielens else 1, num_heads=2)
    encoder = Encoder(settings, num_items, 0, LONGEST if movielens else LENGTH)
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


def make_features(folder: Path, num_users: int, num_items: int, changed: float, *, movielens: bool) -> None:
    """Histories of random items; a share of the users has one event more than without `changed`."""
    import polars as pl

    from features.histories.jagged import JaggedHistories
    from features.histories.log_facts import LogFacts
    from features.histories.splits import Split

    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    if movielens:
        lengths = np.clip(np.exp(random.normal(np.log(96), 0.95, num_users)), 20, 2314).astype(np.int64)
    else:
        lengths = random.integers(1, 2 * LENGTH, num_users)
    items = random.integers(1, num_items + 1, int(lengths.sum()), dtype=np.int32)
    time_of = np.arange(len(items))
    if changed:
        grown = np.sort(random.choice(num_users, int(changed * num_users), replace=False))
        at = np.cumsum(lengths)[grown]
        items = np.insert(items, at, random.integers(1, num_items + 1, len(grown), dtype=np.int32))
        time_of = np.insert(time_of, at, len(items))
        lengths[grown] += 1
    none = np.zeros(len(items), np.int16), np.full(len(items), np.nan, np.float32)
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    JaggedHistories(offsets, items, time_of, *none).save(folder)
    ends, everyone, every_item = offsets[1:], np.ones(num_users, bool), np.arange(num_items + 1) > 0
    Split("temporal", ends, ends, ends, everyone, everyone, every_item, None, None).save(folder / "split")
    LogFacts(tied_share=0.0, repeated_share=0.0, now=int(time_of.max()), resolution=1).save(folder)
    pl.DataFrame({"user_id": np.arange(num_users)}).write_parquet(folder / "users.parquet")
    pl.DataFrame({"item_id": np.arange(1, num_items + 1)}).write_parquet(folder / "items.parquet")
    (folder / "event_types.json").write_text("[]")


def score(place: Path, night: str, previous: str, *, because: bool) -> dict[str, object]:
    """Score all users of a night in this process, and seal their lists as the stage does."""
    from pipeline.artifacts.store import Artifact, PeakMemory
    from pipeline.sections import ScoreConfig
    from pipeline.serving.batch import Job, Scorer
    from pipeline.serving.previous_lists import Reuse

    memory = PeakMemory()
    artifact = Artifact(place / "score", night)
    out = artifact.workspace / "recommendations"
    out.mkdir(parents=True)
    features = place / ("features" if night == "first" else "changed")
    reuse = Reuse(artifact.workspace / "histories", place / "score" / previous if previous else None)
    job = Job(place.parent / "bundle", features, place, out, ScoreConfig(because=because), 0, reuse=reuse)
    started, cpu = time.monotonic(), time.process_time()
    scorer = Scorer.open(job)
    opened, opened_cpu = time.monotonic() - started, time.process_time() - cpu
    counts = [scorer.score(number, _nothing) for number in range(scorer.num_shards)]
    seconds, cpu_seconds = time.monotonic() - started, time.process_time() - cpu
    for record in out.glob(".*"):
        record.unlink()
    artifact.commit({})
    return {
        "night": night,
        "users": len(scorer.users),
        "rows": sum(own["recommendations"] for own in counts),
        "kept": sum(own.get("reused_lists", 0) for own in counts),
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu_seconds, 1),
        "of_it_opening": [round(opened, 1), round(opened_cpu, 1)],
        "users_per_second": round(len(scorer.users) / (seconds - opened)),
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
    asked.add_argument("--changed", type=float, default=0.0)
    asked.add_argument("--anew", action="store_true")
    asked.add_argument("--movielens", action="store_true")
    asked.add_argument("--because", action="store_true")
    asked.add_argument("--score", type=Path)
    asked.add_argument("--night", default="first")
    asked.add_argument("--previous", default="")
    arguments = asked.parse_args()
    if arguments.score is not None:
        own = score(arguments.score, arguments.night, arguments.previous, because=arguments.because)
        print(json.dumps(own), flush=True)
        return
    with tempfile.TemporaryDirectory() as folder:
        items = MOVIES if arguments.movielens else arguments.items
        make_bundle(Path(folder) / "bundle", items, movielens=arguments.movielens)
        for users in arguments.users:
            place = Path(folder) / str(users)
            make_features(place / "features", users, items, 0.0, movielens=arguments.movielens)
            nights = [("first", "")]
            if arguments.changed:
                changed = arguments.changed
                make_features(place / "changed", users, items, changed, movielens=arguments.movielens)
                nights += [("second", "first"), *([("anew", "")] if arguments.anew else [])]
            environment = os.environ | {"OMP_NUM_THREADS": str(arguments.threads)}
            for night, previous in nights:
                command = [
                    sys.executable,
                    __file__,
                    "--score",
                    str(place),
                    "--night",
                    night,
                    "--previous",
                    previous,
                ]
                command += ["--because"] if arguments.because else []
                subprocess.run(command, env=environment, check=True)
            if arguments.changed and arguments.anew:
                of_second, of_anew = (_contents(place / "score" / night) for night in ("second", "anew"))
                print(json.dumps({"users": users, "same_bytes": of_second == of_anew}), flush=True)


def _contents(artifact: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (artifact / "recommendations").iterdir()}


if __name__ == "__main__":
    main()
