"""Budgets over a night: certified gap, what the budgets cost, seconds and memory of the allocation.

python tests/benchmarks/bench_budgets.py [--users 5000] [--candidates 200] [--items 20000] [--scale 1.0]

Simulated lists of 10 places: candidates by popularity (Zipf, exponent .8), values a softmax of scores with noise. 1,000
budgets: the 700 most popular items may have 60 % of the places that they have without budgets; 200 items of the tail need half
as many again and one more; of 100 providers every other one needs 5 % more, the others may have 2 % less. `--scale`: strength of
the 700 caps, 0: none binds. Prints one JSON object; memory is the peak of this process, arrays included.
"""

import argparse
import json
import resource
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from models.allocation.allocate import allocate  # noqa: E402
from models.allocation.night import NO_CAP, UNIT, Budgets, Night  # noqa: E402
from models.histories import Float32, Int32  # noqa: E402

K, NUM_CAPS, NUM_FLOORS, NUM_PROVIDERS = 10, 700, 200, 100
BLOCK = 10_000


def candidates(users: int, width: int, num_items: int) -> tuple[Int32, Float32]:
    """Items [u, w] and values [u, w], best first."""
    random = np.random.default_rng(0)
    popularity = np.arange(1, num_items + 1) ** -0.8
    cumulative = np.cumsum(popularity / popularity.sum())
    item, value = np.zeros((users, width), np.int32), np.zeros((users, width), np.float32)
    for start in range(0, users, BLOCK):
        rows = slice(start, min(start + BLOCK, users))
        drawn = (
            np.sort(np.searchsorted(cumulative, random.random((rows.stop - start, 3 * width))), axis=1) + 1
        )
        drawn = np.minimum(drawn, num_items)
        is_new = np.pad(drawn[:, 1:] != drawn[:, :-1], ((0, 0), (1, 0)), constant_values=True)
        order = np.argsort(random.random(drawn.shape) + ~is_new, axis=1)[:, :width]
        own = np.where(np.take_along_axis(is_new, order, 1), np.take_along_axis(drawn, order, 1), 0)
        score = random.gumbel(size=own.shape) + np.log(popularity[np.maximum(own, 1) - 1] * num_items) / 2
        share = np.where(own > 0, np.exp(score), 0)
        share /= share.sum(axis=1, keepdims=True)
        order = np.argsort(-share, axis=1, kind="stable")
        item[rows], value[rows] = np.take_along_axis(own, order, 1), np.take_along_axis(share, order, 1)
    return item, value


def budgets(item: Int32, num_items: int, scale: float) -> Budgets:
    """The 1,000 budgets, relative to the places of the lists without any."""
    provider = np.random.default_rng(1).integers(0, NUM_PROVIDERS, num_items + 1)
    places = np.bincount(item[:, :K].ravel(), minlength=num_items + 1)
    capped = np.arange(1, NUM_CAPS + 1)
    floored = NUM_CAPS + np.arange(1, NUM_FLOORS + 1) * ((num_items - NUM_CAPS) // (2 * NUM_FLOORS))
    groups = [capped[[number]] for number in range(NUM_CAPS)] + [
        floored[[number]] for number in range(NUM_FLOORS)
    ]
    groups += [
        np.flatnonzero((provider == own) & (np.arange(num_items + 1) > 0)) for own in range(NUM_PROVIDERS)
    ]
    low, high = np.zeros(len(groups)), np.full(len(groups), np.inf)
    high[:NUM_CAPS] = np.floor(places[capped] * (1 - 0.4 * scale))
    low[NUM_CAPS : NUM_CAPS + NUM_FLOORS] = np.floor(places[floored] * 1.5) + 1
    of_providers = np.array([places[group].sum() for group in groups[-NUM_PROVIDERS:]])
    low[-NUM_PROVIDERS::2] = np.floor(of_providers[::2] * 1.05)
    high[-NUM_PROVIDERS + 1 :: 2] = np.floor(of_providers[1::2] * 0.98)
    return Budgets(
        np.concatenate(groups),
        np.repeat(np.arange(len(groups)), [len(group) for group in groups]),
        (low * UNIT).astype(np.int64),
        np.where(np.isinf(high), NO_CAP, np.where(np.isinf(high), 0, high) * UNIT).astype(np.int64),
        num_items,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, default=5_000)
    parser.add_argument("--candidates", type=int, default=200)
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--scale", type=float, default=1.0)
    sizes = parser.parse_args()
    item, value = candidates(sizes.users, sizes.candidates, sizes.items)
    own = budgets(item, sizes.items, sizes.scale)
    night = Night(item, value, np.full(sizes.users, K), np.full(K, UNIT), own)
    started, used = time.perf_counter(), time.process_time()
    found = allocate(night, 0)
    seconds, processor_seconds = time.perf_counter() - started, time.process_time() - used
    result = {
        "users": sizes.users,
        "gap": found.gap,
        "value_lost_share": 1 - found.value / found.unlimited,
        "caps_exceeded": int((found.usage > own.high).sum()),
        "floors_missed": int((found.missing > 0).sum()),
        "places_missing": int(found.missing.sum()) // UNIT,
        "empty_places": int((found.column < 0).sum()),
        "binding": int(np.count_nonzero(found.price)),
        "seconds": round(seconds, 1),
        "processor_seconds": round(processor_seconds, 1),
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
