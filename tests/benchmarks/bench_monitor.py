"""Stage monitor on many users: seconds and memory of a night on which two windows end.

python tests/benchmarks/bench_monitor.py [--users 1000000] [--events 2000000] [--shadows 1] [--further 0]

A log of ten events per user in 30 days, then days of so many events, each user with a list of ten items. The last night
judges the lists of the night before by one day of events and those of a week before by seven; its predecessor has judged a
window of each of two nights. Further nights show whether their cost grows. Prints a JSON object per stage and night; the log goes
to a temporary folder.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import polars as pl  # noqa: E402

from tests.pipeline.monitoring.nights import START, Nights  # noqa: E402

WARM_DAYS, K, RESAMPLES = 30, 10, 1000


def events(day: int, size: int, users: int, items: int) -> pl.DataFrame:
    """Events of a day: users alike, items with popularity falling as 1 / rank."""
    random = np.random.default_rng(day)
    seconds = np.sort(random.integers(0, 86_399, size))
    seconds[-1] = 86_399
    return pl.DataFrame(
        {
            "user": random.integers(1, users + 1, size),
            "item": np.floor(items ** random.random(size)).astype(np.int64),
            "at": int(START.timestamp()) + day * 86_400 + seconds,
            "type": random.choice(["view", "like"], size),
        }
    )


def lists(seed: int, users: int, items: int) -> pl.DataFrame:
    """Ten different items for every user, popular ones more often."""
    random = np.random.default_rng(seed)
    first = np.floor(items ** random.random(users)).astype(np.int64)
    step = 1 + np.arange(K) * 7
    return pl.DataFrame(
        {
            "user_id": np.repeat(np.arange(1, users + 1), K),
            "item_id": ((first[:, None] + step) % items + 1).ravel(),
            "rank": np.tile(np.arange(1, K + 1, dtype=np.int32), users),
        }
    )


def run(log: Nights, stage: str) -> dict[str, object]:
    """Bring a stage up to date in a process of its own; returns what its summary says."""
    log.config()
    command = [
        sys.executable,
        "-m",
        "pipeline",
        "run",
        stage,
        "--json",
        "--config",
        str(log.folder / "log.toml"),
        "--set",
        f"evaluate.resamples={RESAMPLES}",
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    last = json.loads(done.stdout.splitlines()[-1])["stages"][-1]
    return {
        "stage": stage,
        "seconds": round(last["seconds"], 1),
        "peak_gb": round(last["peak_bytes"] / 1e9, 2),
        "summary": last["summary"],
    }


def main() -> None:
    """Deliver, let days pass, and run the monitor each time."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--users", type=int, default=50_000)
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--shadows", type=int, default=1)
    parser.add_argument("--further", type=int, default=0, help="nights after these four")
    parser.add_argument("--folder", type=Path, help="where the temporary folder is made")
    arguments = parser.parse_args()
    users, items = arguments.users, max(arguments.users // 10, 100)
    warm = (10 * users) // WARM_DAYS
    days = [
        events(day, warm if day < WARM_DAYS else arguments.events, users, items)
        for day in range(WARM_DAYS + 7 + arguments.further)
    ]
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        log = Nights(Path(folder), days)
        for night, more in enumerate((WARM_DAYS, 5, 1, 1, *(1,) * arguments.further)):
            log.show(more)
            for stage in ("features", "monitor"):
                print(json.dumps(run(log, stage)), flush=True)
            shadows = {
                f"shadow-{number}": lists(100 * number + night, users, items)
                for number in range(arguments.shadows)
            }
            log.deliver(
                lists(night, users, items),
                name=f"{night:016x}",
                shadows=shadows,
                exclude_seen=True,
                settings={"score.k": K, "score.at": None},
                users=users,
            )


if __name__ == "__main__":
    main()
