"""Seconds and peak memory of ingest and features on a log of what was shown, by its size.

python tests/benchmarks/bench_exposures.py [ROWS …]      default: 5,000,000 10,000,000 20,000,000 exposures

A csv of lists of ten (user, item, time, rank, propensity, list) and one of events, a tenth as many: every twentieth exposure is
taken a minute later, and as many events follow no exposure. Prints a Markdown table, a row per size. Each size runs in a process
of its own, in a temporary folder.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

ROOT = Path(__file__).resolve().parents[2]
PLACES, ITEMS, EVENTS_PER_EXPOSURE, FIRST, SPAN = 10, 50_000, 0.05, 1_700_000_000, 60 * 86_400
CONFIG = """
name = "shown"
data_dir = "data"
[events]
path = "events.csv"
columns = { user_id = "user_id", item_id = "item_id", timestamp = "timestamp" }
timestamp_unit = "s"
[exposures]
path = "exposures.csv"
columns = { user_id = "user_id", item_id = "item_id", timestamp = "timestamp", rank = "rank", propensity = "propensity", list_id = "list_id" }
window_hours = 1.0
[tracking]
enabled = false
"""  # noqa: E501


def main() -> None:
    sizes = [int(text.replace("_", "")) for text in sys.argv[1:]] or [5_000_000, 10_000_000, 20_000_000]
    print("| exposures | events | stage | seconds | peak, GB | exposures with a reaction |")
    print("| --- | --- | --- | --- | --- | --- |")
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            events = write(Path(folder), size)
            for stage, found, reactions in run(Path(folder)):
                seconds, peak = found["seconds"], found["peak_bytes"] / 1e9
                print(
                    f"| {size:,} | {events:,} | {stage} | {seconds:.1f} | {peak:.2f} | {reactions} |",
                    flush=True,
                )


def write(folder: Path, num_exposures: int) -> int:
    """Write both logs; returns the number of events."""
    rng = np.random.default_rng(0)
    lists = num_exposures // PLACES
    user = np.repeat(rng.integers(0, max(lists // 20, 1), lists), PLACES)
    time = np.repeat(FIRST + rng.integers(0, SPAN, lists), PLACES)
    item = (ITEMS * rng.random(len(user)) ** 2).astype(np.int64)
    shown = pl.DataFrame(
        {
            "user_id": user,
            "item_id": item,
            "timestamp": time,
            "rank": np.tile(np.arange(1, PLACES + 1), lists),
            "propensity": np.full(len(user), 0.1),
            "list_id": np.repeat(np.arange(lists), PLACES),
        }
    )
    shown.write_csv(folder / "exposures.csv")
    taken = rng.random(len(user)) < EVENTS_PER_EXPOSURE
    others = rng.integers(0, len(user), int(taken.sum()))
    events = pl.DataFrame(
        {
            "user_id": np.concatenate([user[taken], user[others]]),
            "item_id": np.concatenate([item[taken], rng.integers(0, ITEMS, len(others))]),
            "timestamp": np.concatenate([time[taken] + 60, time[others] + 7_200]),
        }
    )
    events.write_csv(folder / "events.csv")
    (folder / "shown.toml").write_text(CONFIG)
    return len(events)


def run(folder: Path) -> list[tuple[str, dict[str, Any], str]]:
    """Run ingest and features, each in a process of its own: stage, its summary, and exposures with a reaction."""
    found = []
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for stage in ("ingest", "features"):
        command = [sys.executable, "-m", "pipeline", "run", stage, "--json", "--config", "shown.toml"]
        done = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, check=True, cwd=folder, env=environment
        )
        own = json.loads(done.stdout.splitlines()[-1])["stages"][-1]
        manifest = json.loads((folder / "data" / "shown" / stage / "latest" / "manifest.json").read_text())
        reactions = f"{manifest['exposures']['with_reaction']:,}" if stage == "features" else ""
        found.append((stage, own, reactions))
    return found


if __name__ == "__main__":
    main()
