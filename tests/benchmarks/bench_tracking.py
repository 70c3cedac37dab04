"""What logging costs a training: the same `lookback run train` with and without tracking, in turn.

python tests/benchmarks/bench_tracking.py [CONFIG] [--pairs 8] [--set key=value …]

Processor seconds of the whole command (user and system, all its threads), which other work on the machine changes little, and
wall seconds. Each pair is one run with and one without, whichever comes first in turn; the share that logging adds is the mean
of the pairs' differences over the mean without, with a 95 % bootstrap interval over the pairs.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap

ROOT = Path(__file__).resolve().parents[2]


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


def share(on: list[float], off: list[float]) -> dict[str, float]:
    """What is added to the seconds without, as a share of them, with its 95 % interval over the pairs."""

    def added(with_logging: NDArray[np.float64], without: NDArray[np.float64], axis: int = -1) -> Any:
        return with_logging.mean(axis) / without.mean(axis) - 1

    found = bootstrap((on, off), added, paired=True, rng=0)
    return {
        "share": float(added(np.array(on), np.array(off))),
        "low": float(found.confidence_interval.low),
        "high": float(found.confidence_interval.high),
    }


def measure(config: str, settings: list[str], pairs: int) -> dict[str, object]:
    """The seconds of every run, and the share that logging adds."""
    runs: dict[str, list[tuple[float, float]]] = {"on": [], "off": []}
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            command(config, folder, settings, "features"), check=True, cwd=ROOT, stdout=subprocess.DEVNULL
        )
        for pair in range(pairs):
            for name in ("on", "off") if pair % 2 else ("off", "on"):
                enabled = f"tracking.enabled={'true' if name == 'on' else 'false'}"
                runs[name].append(seconds(command(config, folder, [*settings, enabled], "train", "--force")))
    (cpu_on, wall_on), (cpu_off, wall_off) = (tuple(zip(*runs[name], strict=True)) for name in ("on", "off"))
    return {
        "config": config,
        "settings": settings,
        "cores": os.cpu_count(),
        "runs": runs,
        "cpu": share(list(cpu_on), list(cpu_off)),
        "wall": share(list(wall_on), list(wall_off)),
    }


if __name__ == "__main__":
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("config", nargs="?", default="pipeline/configs/demo.toml")
    asked.add_argument("--pairs", type=int, default=8)
    asked.add_argument("--set", nargs="*", default=[], dest="settings")
    arguments = asked.parse_args()
    print(json.dumps(measure(arguments.config, arguments.settings, arguments.pairs), indent=2))
