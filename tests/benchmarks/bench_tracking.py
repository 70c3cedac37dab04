"""What logging costs a training: the same `lookback run train` with and without tracking, in turn.

python tests/benchmarks/bench_tracking.py [CONFIG] [key=value …]

Processor seconds of the whole command (user and system, all its threads), which other work on the machine changes little, and
wall seconds; medians over the repetitions.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
REPETITIONS = 3


def command(config: str, folder: str, settings: list[str], *words: str) -> list[str]:
    """`lookback run train` in a folder of its own."""
    found = [sys.executable, "-m", "pipeline", "run", *words, "--config", config]
    for setting in (f"data_dir={folder}/data", f"tracking.uri=sqlite:///{folder}/mlflow.db", *settings):
        found += ["--set", setting]
    return found


def seconds(words: list[str]) -> tuple[float, float]:
    """Processor and wall seconds of a command."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run(words, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return used, time.monotonic() - started


def measure(config: str, settings: list[str]) -> dict[str, object]:
    """Medians with and without, and the share that logging adds."""
    found: dict[str, list[tuple[float, float]]] = {"on": [], "off": []}
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            command(config, folder, settings, "features"), check=True, cwd=ROOT, stdout=subprocess.DEVNULL
        )
        for _ in range(REPETITIONS):
            for name, each in found.items():
                enabled = f"tracking.enabled={'true' if name == 'on' else 'false'}"
                each.append(seconds(command(config, folder, [*settings, enabled], "train", "--force")))
    used = {name: statistics.median(cpu for cpu, _ in each) for name, each in found.items()}
    wall = {name: statistics.median(wall for _, wall in each) for name, each in found.items()}
    return {
        "config": config,
        "settings": settings,
        "cores": os.cpu_count(),
        "runs": found,
        "cpu_seconds": used,
        "wall_seconds": wall,
        "cpu_share": used["on"] / used["off"] - 1,
        "wall_share": wall["on"] / wall["off"] - 1,
    }


if __name__ == "__main__":
    named, *rest = sys.argv[1:] or ["pipeline/configs/demo.toml"]
    print(json.dumps(measure(named, rest), indent=2))
