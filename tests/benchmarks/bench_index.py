"""The retrieval index over synthetic clustered vectors: recall, queries a second on one thread, build time, memory.

python tests/benchmarks/bench_index.py                      (a million vectors, what auto chooses and each type: half an hour)
python tests/benchmarks/bench_index.py --items 1e6 --types auto
python tests/benchmarks/bench_index.py --items 1e4 3e4 1e5 3e5 --types auto ivf hnsw --clusters 0

Vectors of 64 components around directions of length 1 (`--clusters`; 0: a centre for every 500 vectors), noise of length 0.35;
1,000 user vectors of the same kind, half to tune on. Exact search is ours by torch, beside FAISS's IndexFlatIP. Builds use all
threads (hnsw: one), queries one; rates are the best of five. Prints a Markdown table and one JSON object.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402

from models.histories import Float32  # noqa: E402
from models.retrieval.build import build_index  # noqa: E402
from models.retrieval.index import ItemIndex  # noqa: E402
from models.settings.index import IndexSettings  # noqa: E402

Figures = dict[str, Any]
DIM, NOISE, NUM_QUERIES, ITEMS_PER_CENTRE = 64, 0.35, 1_000, 500
COLUMNS = {
    "items": ",.0f",
    "type": "s",
    "parameters": "s",
    "build_seconds": ".1f",
    "build_cpu_seconds": ".1f",
    "megabytes": ",.0f",
    "recall@10": ".4f",
    "recall@100": ".4f",
    "scanned_share": ".3%",
    "queries_per_second": ",.0f",
    "exact_queries_per_second": ",.0f",
    "times_exact": ".1f",
}


def clustered(num_vectors: int, num_clusters: int) -> tuple[Float32, Float32]:
    """Item vectors and user vectors."""
    random = np.random.default_rng(0)
    centres = random.normal(size=(num_clusters, DIM)).astype(np.float32)
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)

    def draw(size: int) -> Float32:
        noise = random.normal(size=(size, DIM)).astype(np.float32) * np.float32(NOISE / DIM**0.5)
        return centres[random.integers(0, num_clusters, size)] + noise

    return draw(num_vectors), draw(NUM_QUERIES)


def best_rate(index: ItemIndex, queries: Float32, *, exactly: bool) -> float:
    """Lists of 100 a second, the best of five."""
    return max(index.queries_per_second(queries, 100, exactly=exactly) for _ in range(5))


def measure(vectors: Float32, queries: Float32, kind: Any, most_bytes: int) -> Figures:
    """Build one type and ask it."""
    items = np.arange(1, len(vectors) + 1, dtype=np.int32)
    started, cpu = time.monotonic(), time.process_time()
    index = build_index(vectors, items, IndexSettings(kind, max_bytes=most_bytes), queries)
    seconds, cpu = time.monotonic() - started, time.process_time() - cpu
    facts = index.facts
    rate = best_rate(index, queries, exactly=False)
    exact = best_rate(index, queries[: max(16, min(NUM_QUERIES, 200_000_000 // len(vectors)))], exactly=True)
    return {
        "items": len(vectors),
        "asked": kind,
        "type": facts.type if kind != "auto" else f"auto: {facts.type}",
        "parameters": ", ".join(f"{name} {value}" for name, value in facts.parameters.items() if value),
        "build_seconds": round(seconds, 1),
        "build_cpu_seconds": round(cpu, 1),
        "megabytes": round(facts.num_bytes / 2**20, 1),
        **facts.recall,
        "scanned_share": facts.scanned_share,
        "queries_per_second": round(rate),
        "exact_queries_per_second": round(exact, 1),
        "times_exact": round(rate / exact, 2),
    }


def flat_rate(vectors: Float32, queries: Float32) -> float:
    """FAISS's own exact search, lists of 100 a second on one thread."""
    index = build_index(vectors, np.arange(1, len(vectors) + 1, dtype=np.int32)).index
    some = queries[:64]
    started = time.perf_counter()
    index.search(some, 100)
    return len(some) / (time.perf_counter() - started)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    types = ["auto", "exact", "ivf", "hnsw", "sq", "ivf_pq"]
    parser.add_argument("--items", type=float, nargs="+", default=[1e6])
    parser.add_argument("--types", nargs="+", choices=types, default=types)
    parser.add_argument("--clusters", type=int, default=2_000)
    parser.add_argument("--max-bytes", type=int, default=0, help="index.max_bytes")
    chosen = parser.parse_args()
    print(f"{torch.get_num_threads()} threads to build")
    found = []
    for size in map(int, chosen.items):
        vectors, queries = clustered(size, chosen.clusters or max(1, size // ITEMS_PER_CENTRE))
        print(f"IndexFlatIP on {size:,}: {flat_rate(vectors, queries):.1f} queries/s", flush=True)
        for kind in chosen.types:
            try:
                found.append(measure(vectors, queries, kind, chosen.max_bytes))
            except ValueError as error:
                print(f"{size:,} {kind}: {error}", flush=True)
                continue
            print(json.dumps(found[-1]), flush=True)
    print(f"| {' | '.join(name.replace('_', ' ') for name in COLUMNS)} |\n|{' --- |' * len(COLUMNS)}")
    for each in found:
        print(f"| {' | '.join(format(each[name], form) for name, form in COLUMNS.items())} |")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
