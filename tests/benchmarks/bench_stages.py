"""Seconds and peak memory of every stage on a configuration, from nothing: one JSON object, to be kept in results/.

python tests/benchmarks/bench_stages.py [CONFIG] [key=value …] > tests/benchmarks/results/2026-11-21-stages-demo.json
"""

import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def measure(config: str, settings: list[str]) -> dict[str, Any]:
    """Run all stages in a folder of their own and collect what their summaries say."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pipeline", "run", "all", "--json", "--config", config]
        for setting in (f"data_dir={folder}", *settings):
            command += ["--set", setting]
        environment = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
        done = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT, env=environment
        )
    stages = json.loads(done.stdout.splitlines()[-1])["stages"]
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": _commit(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}",
        "config": config,
        "settings": settings,
        "seconds": round(sum(stage["seconds"] for stage in stages), 1),
        "stages": {
            stage["stage"]: {
                "seconds": stage["seconds"],
                "peak_gigabytes": round(stage["peak_bytes"] / 1e9, 2),
                "rows_out": stage["rows_out"],
                "summary": stage["summary"],
            }
            for stage in stages
        },
    }


def _commit() -> str:
    answer = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False, cwd=ROOT
    )
    return answer.stdout.strip() or "unknown"


if __name__ == "__main__":
    named, *rest = sys.argv[1:] or ["pipeline/configs/demo.toml"]
    print(json.dumps(measure(named, rest), indent=2))
