"""Files of a few kB that decode to gigabytes are read, or refused with a message, in bounded memory."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz import memory

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA bounds mapped memory on Linux alone")
@pytest.mark.parametrize("seed", [0])
@pytest.mark.parametrize("name", [*memory.TEXTS, *memory.TABLES])
def test_memory_is_bounded_by_decoded_size(tmp_path: Path, name: str, seed: int) -> None:
    path = memory.write(random.Random(f"{name}-{seed}"), name, tmp_path)
    roles = ["items"] if name.endswith(".json") else ["events", "items"][: 2 - (name == "ids.csv")]
    for role in roles:
        command = [sys.executable, "-m", "tests.fuzz.memory", str(path), role, str(tmp_path)]
        settings = {**os.environ, "POLARS_MAX_THREADS": str(memory.NUM_THREADS), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=settings)
        answer = done.stdout.strip().splitlines()
        assert done.returncode == 0, (role, done.stderr[-2000:])
        assert answer[-1].startswith(("read", "refused")), answer
