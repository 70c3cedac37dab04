"""Lists with few items of a category: how many stay short, and what the fullest choice costs a row that would.

python tests/benchmarks/bench_filters.py [--rows 2000] [--k 10] [--most 1]; MovieLens-1M is looked for in LOOKBACK_SHARED_DATA
(../shared/data). Every film is a candidate, with its genres; scores are normal numbers drawn for each row ("chance"), or
ItemKNN's for the first users, whose seen films are left out ("neighbours"). Prints a Markdown table.
"""

import argparse
import os
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from models.baselines.item_knn import ItemKNN  # noqa: E402
from models.histories import Float32, Int32, histories_from_lists  # noqa: E402
from models.recommendation.rules import Rules, Traits, choose  # noqa: E402

SHARED = Path(os.environ.get("LOOKBACK_SHARED_DATA", ROOT.parent / "shared" / "data"))


def films(folder: Path) -> tuple[dict[int, int], Int32]:
    """The number of each film's id, and [n + 1, c] its genres as in `Traits.categories`."""
    lines = (folder / "movies.dat").read_text(encoding="latin-1").splitlines()
    named = {int(line.split("::")[0]): line.split("::")[2].split("|") for line in lines}
    number = {
        name: place for place, name in enumerate(sorted({each for own in named.values() for each in own}), 1)
    }
    padded = np.zeros((len(named) + 1, max(map(len, named.values()))), np.int32)
    for row, own in enumerate(named.values(), 1):
        padded[row, : len(own)] = [number[name] for name in own]
    return {film: row for row, film in enumerate(named, 1)}, padded


def by_chance(num_rows: int, num_films: int) -> tuple[Int32, Float32]:
    """All films of each row, best first, and their scores."""
    drawn = np.random.default_rng(0).normal(size=(num_rows, num_films)).astype(np.float32)
    return np.argsort(-drawn, axis=1).astype(np.int32) + 1, -np.sort(-drawn, axis=1)


def by_neighbours(folder: Path, number: dict[int, int], num_rows: int) -> tuple[Int32, Float32]:
    """All films that each of the first users has not seen, best first, and their scores."""
    seen: dict[str, list[int]] = {}
    with (folder / "ratings.dat").open(encoding="latin-1") as lines:
        for line in lines:
            user, film, _ = line.split("::", 2)
            seen.setdefault(user, []).append(number[int(film)])
    histories = histories_from_lists(list(seen.values()))
    return ItemKNN.fit(histories, len(number)).recommend(histories.select(slice(num_rows)), len(number))


def report(name: str, categories: Int32, items: Int32, values: Float32, k: int, most: int) -> None:
    """Print a row of the table."""
    traits, rules = Traits(np.ones(len(categories), np.float32), categories), Rules(max_per_category=most)
    short = np.flatnonzero(choose(items, values, k, rules, traits)[0][:, -1] == 0)
    items, values, is_all = items[short], values[short], np.ones(len(short), bool)
    choose(items[:1], values[:1], k, rules, traits, is_all=is_all[:1])  # loads scipy
    begun = time.perf_counter(), time.process_time()
    before = choose(items, values, k, rules, traits)[0]
    between = time.perf_counter(), time.process_time()
    after = choose(items, values, k, rules, traits, is_all=is_all)[0]
    ended = time.perf_counter(), time.process_time()
    wall, cpu = (
        (end - middle - (middle - start)) / max(1, len(short)) * 1e3
        for start, middle, end in zip(begun, between, ended, strict=True)
    )
    lengths = [f"{(lists > 0).sum(1).mean():.2f}" if len(short) else "–" for lists in (before, after)]
    print(
        f"| {name} | {k} | {most} | {len(short):,} | {int((after[:, -1] == 0).sum()):,} | {lengths[0]} | {lengths[1]} "
        f"| {wall:.1f} | {cpu:.1f} |"
    )


def main() -> None:
    """See the top of the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", type=int, default=2000, help="lists of each kind")
    parser.add_argument("--k", type=int, default=10, help="places of a list")
    parser.add_argument("--most", type=int, default=1, help="films of a genre in a list")
    chosen = parser.parse_args()
    folder = SHARED / "ml-1m"
    if not folder.exists():
        parser.error(f"{folder} is not there; set LOOKBACK_SHARED_DATA to the folder that holds ml-1m")
    number, categories = films(folder)
    print(
        "| scores | k | at most | short one by one | short now | mean length of these, one by one | now "
        "| ms more each | CPU ms |\n| --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    )
    report("chance", categories, *by_chance(chosen.rows, len(number)), chosen.k, chosen.most)
    report("neighbours", categories, *by_neighbours(folder, number, chosen.rows), chosen.k, chosen.most)


if __name__ == "__main__":
    main()
