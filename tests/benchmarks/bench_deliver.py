"""Delivery of lists to a table: seconds and memory, first, the same again, and the next ones.

python tests/benchmarks/bench_deliver.py [--users 100000] [--k 10] [--mode replace] [--database ADDRESS]

By default to SQLite in a temporary folder; `--database postgresql://…` with PGPASSWORD and the like in the environment. Prints
one JSON object: seconds, processor seconds of this process (not of a server), its peak resident memory above that before, and the
size of the lists.
"""

import argparse
import datetime
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import polars as pl  # noqa: E402

from pipeline.artifacts.store import PeakMemory, give_back_memory  # noqa: E402
from pipeline.deliver_section import DeliverConfig  # noqa: E402
from pipeline.release.list_table import Lists, write  # noqa: E402

SHARD_USERS = 50_000


def shards(folder: Path, users: int, k: int) -> list[Path]:
    """Lists with three reasons for each recommendation, as the stage score writes them."""
    folder.mkdir()
    random = np.random.default_rng(0)
    paths = []
    for number, start in enumerate(range(0, users, SHARD_USERS)):
        size = min(SHARD_USERS, users - start)
        reasons = pl.DataFrame(
            {
                "item_id": random.integers(1, 100_000, size * k * 3),
                "weight": random.random(size * k * 3, np.float32),
            }
        )
        because = reasons.select(pl.struct(pl.all()).reshape((size * k, 3)).arr.to_list()).to_series()
        frame = pl.DataFrame(
            {
                "user_id": np.repeat(np.arange(start, start + size), k),
                "item_id": random.integers(1, 100_000, size * k),
                "rank": np.tile(np.arange(1, k + 1, dtype=np.int32), size),
                "score": random.random(size * k, np.float32),
                "because": because,
                "probability": random.random(size * k, np.float32),
            }
        )
        paths.append(folder / f"part-{number:05}.parquet")
        frame.write_parquet(paths[-1], compression="zstd")
    return paths


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--mode", choices=["replace", "append"], default="replace")
    parser.add_argument("--database")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        paths = shards(folder / "lists", arguments.users, arguments.k)
        address = arguments.database or f"sqlite:///{folder}/shop.db"
        settings = DeliverConfig(database=address, table="bench_deliver", mode=arguments.mode)
        result: dict[str, Any] = {"users": arguments.users, "k": arguments.k, "mode": arguments.mode}
        result["list_bytes"] = sum(path.stat().st_size for path in paths)
        for step, name in (("first", "a"), ("the same again", "a"), ("the next lists", "b")):
            moment = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
            time_type = pl.Datetime("us", "UTC")
            facts = {name: pl.lit(moment).cast(time_type) for name in ("delivered_utc", "log_time")}
            facts["model_version"] = pl.lit(3, pl.Int32)
            give_back_memory()
            memory, started, worked = PeakMemory(), time.perf_counter(), time.process_time()
            before = memory.bytes()
            rows = write(settings, Lists(paths, name, facts))
            seconds = time.perf_counter() - started
            processor = round(time.process_time() - worked, 1)
            result[step] = {"rows": rows, "seconds": round(seconds, 1), "processor_seconds": processor}
            result[step] |= {"bytes": memory.bytes() - before}
        print(json.dumps(result))


if __name__ == "__main__":
    main()
