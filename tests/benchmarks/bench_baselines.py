"""Every baseline tuned on MovieLens-1M, leave-one-out: NDCG and hit rate over the whole catalogue, seconds, peak memory.

python tests/benchmarks/bench_baselines.py [--only NAME] [--min-events 5]; the data is looked for in LOOKBACK_SHARED_DATA
(../shared/data). Each baseline runs in a process of its own and prints one JSON object: every point of its grid on validation,
then the best one, fitted on training and validation, on the test.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import polars as pl  # noqa: E402

from features.histories import splits  # noqa: E402
from features.histories.jagged import JaggedHistories  # noqa: E402
from features.histories.numbering import ItemNumbering  # noqa: E402
from models.baselines.als import ALS  # noqa: E402
from models.baselines.base import Baseline, Settings  # noqa: E402
from models.baselines.co_visitation import CoVisitation  # noqa: E402
from models.baselines.ease import EASE  # noqa: E402
from models.baselines.item_knn import ItemKNN  # noqa: E402
from models.baselines.popularity import Popularity, RecentPopularity  # noqa: E402
from models.evaluation import metrics  # noqa: E402
from models.evaluation.ranks import rank_targets  # noqa: E402
from pipeline.dataset.dataset import Dataset  # noqa: E402
from pipeline.dataset.targets import ranked_targets  # noqa: E402

SHARED = Path(os.environ.get("LOOKBACK_SHARED_DATA", ROOT.parent / "shared" / "data"))
BASELINES: dict[str, Any] = {
    "popularity": Popularity,
    "recent_popularity": RecentPopularity,
    "co_visitation": CoVisitation,
    "item_knn": ItemKNN,
    "ease": EASE,
    "als": ALS,
}


def read_ratings(path: Path) -> tuple[JaggedHistories, int]:
    """The log by (user, timestamp, row), every rating an event, and its number of items."""
    log = pl.read_csv(path, separator=":", has_header=False)  # "::": every second column is empty
    log = log.select(pl.nth(0).alias("user"), pl.nth(2).alias("item"), pl.nth(6).alias("time"))
    log = log.sort("user", "time", maintain_order=True).with_columns(pl.col("item").rank("dense"))
    lengths = log.group_by("user", maintain_order=True).len()["len"].to_numpy()
    histories = JaggedHistories(
        np.concatenate(([0], np.cumsum(lengths, dtype=np.int64))),
        log["item"].to_numpy().astype(np.int32),
        log["time"].to_numpy().astype(np.int64) * 1_000_000,
        np.zeros(len(log), np.int16),
        np.full(len(log), np.nan, np.float32),
    )
    return histories, int(histories.item_index.max())


def judge(
    baseline: Any, settings: Settings, log: JaggedHistories, split: splits.Split, part: str
) -> dict[str, Any]:
    """Fit on what precedes a part, rank its targets with the seen items masked: metrics and seconds."""
    dataset = Dataset(Path(), log, split)
    fitted_on = dataset.training_rows(with_validation=part == "test")
    numbering = ItemNumbering.of_known(dataset.occurring(fitted_on))
    targets = ranked_targets(dataset, part, numbering, ties="order", exclude_seen=True)
    targets = targets.select(targets.warm)
    begin = time.perf_counter(), time.process_time()
    system: Baseline = baseline.fit(fitted_on.translate(numbering.new), numbering.num_items, **settings)
    fitted = time.perf_counter(), time.process_time()
    ranked = rank_targets(system, targets.histories, targets.item, 1, exclude_seen=True)
    found = metrics.metrics_of_ranks(ranked.rank, (10,))
    return {
        "ndcg@10": round(float(found["ndcg@10"].mean()), 4),
        "hit_rate@10": round(float(found["hit_rate@10"].mean()), 4),
        "targets": len(targets),
        "fit_seconds": round(fitted[0] - begin[0], 2),
        "fit_cpu_seconds": round(fitted[1] - begin[1], 2),
        "rank_cpu_seconds": round(time.process_time() - fitted[1], 2),
    }


def measure(name: str, min_events: int) -> dict[str, Any]:
    """The grid on validation, its best point on the test."""
    log, num_items = read_ratings(SHARED / "ml-1m" / "ratings.dat")
    split = splits.leave_one_out(log, num_items, min_user_events=min_events, min_item_events=min_events)
    baseline, begin, cpu = BASELINES[name], time.perf_counter(), time.process_time()
    tried = [(point, judge(baseline, point, log, split, "validation")) for point in baseline.GRID]
    best, _ = max(tried, key=lambda pair: pair[1]["ndcg@10"])
    return {
        "baseline": name,
        "items": int(split.kept_item.sum()),
        "validation": [point | found for point, found in tried],
        "chosen": best,
        "test": judge(baseline, best, log, split, "test"),
        "seconds": round(time.perf_counter() - begin, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "peak_gigabytes": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
    }


def main() -> None:
    """Measure one baseline, or all, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=[*BASELINES])
    parser.add_argument(
        "--min-events", type=int, default=5, help="core filter of users and items (default 5)"
    )
    arguments = parser.parse_args()
    if not (SHARED / "ml-1m" / "ratings.dat").exists():
        print(f"bench_baselines: skipped, no {SHARED / 'ml-1m' / 'ratings.dat'}; set LOOKBACK_SHARED_DATA")
    elif arguments.only:
        print(json.dumps(measure(arguments.only, arguments.min_events)))
    else:
        for name in BASELINES:
            command = [sys.executable, __file__, "--only", name, "--min-events", str(arguments.min_events)]
            subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
