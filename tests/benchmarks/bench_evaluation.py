"""Evaluation on random vectors: seconds for a log of MovieLens-1M's size, memory at a million items, the bootstrap alone.

python tests/benchmarks/bench_evaluation.py        (one system and two, a minute or so)
python tests/benchmarks/bench_evaluation.py --systems 1 8 --users 200 400 --catalogue 1e6 --resamples 10000

Every figure is of a process of its own; peak memory is its largest resident set less what it had after its imports. A system
is a random vector per item and per user (dim 64, float32); scoring is their product, and stands for the decoder that every
system has, not for the encoder. The log: a history of about 165 random events and one target per user; 18 categories. All
metrics: those of ranks, debiased NDCG, those of lists, coverage and Gini at 10 and 200, with intervals, then each system against
the first.
Prints Markdown tables.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from models.evaluation.beyond_accuracy import Catalogue, catalogue_metrics, list_metrics  # noqa: E402
from models.evaluation.bootstrap import UserMeans, bootstrap, interval  # noqa: E402
from models.evaluation.comparison import SystemComparison  # noqa: E402
from models.evaluation.metrics import Float64, debias_weights, metrics_of_ranks, ranks  # noqa: E402
from models.histories import Float32, Histories, Int32  # noqa: E402
from models.topk import mask_seen, row_chunks, top_k  # noqa: E402

DIM = 64
KS = (10, 200)
Figures = dict[str, float]


class Clock:
    """Seconds by what they were spent on."""

    def __init__(self) -> None:
        self.seconds: Figures = {}
        self.last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Add the time since the last call to `name`."""
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self.last
        self.last = now


def make_log(num_users: int, num_items: int, length: int, seed: int = 0) -> tuple[Histories, Int32]:
    """A random history of about `length` events and a target for every user."""
    random = np.random.default_rng(seed)
    lengths = random.integers(length // 2, length * 3 // 2 + 1, num_users)
    ends = np.cumsum(lengths)
    items = random.integers(1, num_items + 1, ends[-1], dtype=np.int32)
    histories = Histories(items, np.arange(ends[-1]), np.zeros(ends[-1], np.int16), ends - lengths, ends)
    return histories, random.integers(1, num_items + 1, num_users, dtype=np.int32)


def vectors(num_rows: int, seed: int) -> Float32:
    """[rows, DIM], normal."""
    return np.random.default_rng(seed).standard_normal((num_rows, DIM), dtype=np.float32)


def rank_all(
    histories: Histories, target: Int32, items: Float32, users: Float32, clock: Clock
) -> tuple[Float64, Int32]:
    """Rank every target and make every list, in chunks: (rank [t], lists [t, 200])."""
    rank, lists = np.empty(len(target)), np.zeros((len(target), max(KS)), np.int32)
    for rows in row_chunks(len(target), len(items) - 1):
        part, chosen = histories.select(rows), target[rows]
        scores = users[rows] @ items.T
        scores[:, 0] = -np.inf
        clock.lap("scores")
        own = scores[np.arange(len(chosen)), chosen]
        mask_seen(scores, part)
        scores[np.arange(len(chosen)), chosen] = own
        clock.lap("masking")
        rank[rows] = ranks(scores, chosen)[0]
        clock.lap("ranks")
        lists[rows] = top_k(scores, max(KS))[0]
        clock.lap("top 200")
    return rank, lists


def evaluate(num_users: int, num_items: int, num_systems: int, resamples: int) -> Figures:
    """Seconds of evaluating systems one after the other, as the pipeline does."""
    from scipy.sparse import csr_array

    histories, target = make_log(num_users, num_items, 165)
    table = np.random.default_rng(1).random((num_items + 1, 18)) < 0.1
    table[0] = False
    counts = np.bincount(histories.item_index, minlength=num_items + 1)
    catalogue = Catalogue(num_items, counts, csr_array(table.astype(np.int8)))
    debias = debias_weights(counts, target)
    clock = Clock()

    def systems() -> Iterator[tuple[str, dict[str, Float64]]]:
        for system in range(num_systems):
            items, users = vectors(num_items + 1, 10 + system), vectors(num_users, 50 + system)
            clock.lap("random vectors (left out)")
            rank, lists = rank_all(histories, target, items, users, clock)
            values = metrics_of_ranks(rank, KS)
            for k in KS:
                values[f"debiased_ndcg@{k}"] = values[f"ndcg@{k}"]
                values |= list_metrics(lists, histories, target, catalogue, k)
                clock.lap("metrics of lists")
                catalogue_metrics(lists, np.arange(num_users), num_users, num_items, k, resamples, seed=0)
                clock.lap("coverage and Gini, resampled")
            yield str(system), values
            clock.lap("means and bootstrap")

    judged = SystemComparison.of(
        systems(), np.arange(num_users), resamples, 0, {f"debiased_ndcg@{k}": debias for k in KS}
    )
    for system in judged.systems:
        judged.intervals(system)
    clock.lap("intervals")
    judged.compared("0")
    clock.lap("comparison with the first")
    clock.seconds.pop("random vectors (left out)")
    return clock.seconds | {"in all": sum(clock.seconds.values())}


def resample(num_users: int, resamples: int, num_metrics: int) -> Figures:
    """Seconds of the bootstrap alone, of metrics over targets and over users."""
    random, user = np.random.default_rng(0), np.arange(num_users)
    clock = Clock()
    users = UserMeans.of(
        {str(each): random.random(num_users) for each in range(num_metrics)}, user, num_users
    )
    clock.lap("means")
    interval(bootstrap(users, resamples))
    clock.lap("bootstrap")
    return clock.seconds


def judge_many(num_users: int, num_systems: int, resamples: int, num_metrics: int) -> Figures:
    """Seconds of judging systems whose per-target values are made when they are asked for."""

    def systems() -> Iterator[tuple[str, dict[str, Float64]]]:
        for system in range(num_systems):
            random = np.random.default_rng(system)
            values = {
                str(each): random.integers(0, 2, num_users).astype(np.float64) for each in range(num_metrics)
            }
            yield str(system), values
            values.clear()

    clock = Clock()
    SystemComparison.of(systems(), np.arange(num_users), resamples, 0)
    clock.lap("judged")
    return clock.seconds


TASKS: dict[str, Callable[..., Figures]] = {
    "evaluate": evaluate,
    "resample": resample,
    "judge_many": judge_many,
}


def measure(task: str, *sizes: int) -> Figures:
    """The figures of a task in a process of its own, with `peak_megabytes`."""
    command = [sys.executable, __file__, "--task", task, *map(str, sizes)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT)
    figures: Figures = json.loads(done.stdout.splitlines()[-1])
    return figures


def run_task(task: str, sizes: list[int]) -> None:
    """What the process of `measure` does."""
    import scipy.sparse
    import scipy.stats  # noqa: F401  (what the task would import is no memory of its own)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    figures = TASKS[task](*sizes)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps(figures | {"peak_megabytes": (peak - before) / 1024}))


def table(title: str, columns: dict[str, Figures]) -> None:
    """Print figures, a row for each name."""
    print(f"\n**{title}**\n\n| | {' | '.join(columns)} |\n| --- |{' --- |' * len(columns)}")
    for name in next(iter(columns.values())):
        form = ",.0f" if name == "peak_megabytes" else ".2f"
        print(
            f"| {name.replace('_', ' ')} | {' | '.join(format(each[name], form) for each in columns.values())} |"
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--systems", type=int, nargs="+", default=[1, 2], help="systems on the log of MovieLens-1M's size"
    )
    parser.add_argument(
        "--users", type=int, nargs="+", default=[50, 100], help="users before the large catalogue"
    )
    parser.add_argument("--catalogue", type=float, default=1e6, help="items of the large catalogue")
    parser.add_argument("--resamples", type=int, default=10_000, help="of the bootstrap alone")
    parser.add_argument(
        "--judge", type=float, nargs="*", default=[], help="users of 8 systems with 30 metrics each"
    )
    parser.add_argument("--task", nargs="+", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.task:
        run_task(chosen.task[0], [int(size) for size in chosen.task[1:]])
        return
    found = {f"{num} systems": measure("evaluate", 6040, 3706, num, 1000) for num in chosen.systems}
    table("6,040 users x 3,706 items, all metrics at 10 and 200, 1,000 resamples: seconds", found)
    items = int(chosen.catalogue)
    found = {f"{num:,} users": measure("evaluate", num, items, 1, 100) for num in chosen.users}
    table(f"{items:,} items, one system, 100 resamples: seconds", found)
    first, last = chosen.users[0], chosen.users[-1]
    one, other = (found[f"{num:,} users"]["in all"] for num in (first, last))
    hours = 1e6 * (other - one) / max(1, last - first) / 3600
    print(f"\nA million users before {items:,} items, from the difference: {hours:.1f} hours for one system.")
    found = {f"{num} metrics": measure("resample", 6040, chosen.resamples, num) for num in (1, 30)}
    table(f"{chosen.resamples:,} resamples of 6,040 users: seconds", found)
    for num in map(int, chosen.judge):
        table(
            f"8 systems, 30 metrics, {num:,} users, 100 resamples: seconds",
            {"": measure("judge_many", num, 8, 100, 30)},
        )


if __name__ == "__main__":
    main()
