"""Files of a few kB that decode to gigabytes are read, or refused with a message, in bounded memory."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz import memory

ROOT = Path(__file__).resolve().parents[2]
EVENTS = [
    *(
        "line-feeds.csv",
        "wide-rows.csv",
        "one-line.csv",
        "wide-header.csv",
        "ids.csv",
        "long-ids.csv",
        "long-types.csv",
    ),
    *("open-quotes.csv", "objects.jsonl", "nested.jsonl", "dictionary.parquet", "large-page.parquet"),
]
ITEMS = [
    *("ids.csv", "long-types.csv", "categories.csv", "numbers.csv", "numbers.jsonl", "long-ids.jsonl"),
    *("dictionary.parquet", "large-page.parquet"),
]
"""Kinds of `memory.TEXTS` and `memory.TABLES` that the slow tests have time for, as events and as items."""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA bounds mapped memory on Linux alone")
@pytest.mark.parametrize(
    ("role", "name"), [("events", name) for name in EVENTS] + [("items", name) for name in ITEMS]
)
def test_memory_is_bounded_by_decoded_size(tmp_path: Path, role: str, name: str) -> None:
    path = memory.write(random.Random(name), name, tmp_path)
    command = [sys.executable, "-m", "tests.fuzz.memory", str(path), role, str(tmp_path)]
    settings = {**os.environ, "POLARS_MAX_THREADS": str(memory.NUM_THREADS), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=settings)
    answer = done.stdout.strip().splitlines()
    assert done.returncode == 0, done.stderr[-2000:]
    assert any(line.startswith(("read", "refused")) for line in answer), answer
