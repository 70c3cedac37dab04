"""Baselines for buying again on Ta-Feng, one night: hit rate, recall, NDCG at 10, by polars alone and by our classes.

python tests/benchmarks/bench_baskets.py [--night 2001-02-15] [--days 14] [--grid]; the data is looked for in
LOOKBACK_SHARED_DATA (../shared/data). Lists are made at the night's start from the events before it, for all users with one;
relevant is what a user takes in the days from then on, items already taken and items never seen before included. Prints a
JSON object per system. --grid: every point of every grid at that night (choose at an earlier one than you report).
"""

import argparse
import json
import os
import resource
import sys
import time
from datetime import date, timedelta
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import polars as pl  # noqa: E402

from models.baselines.own_items import OwnFrequent, OwnRecent  # noqa: E402
from models.baselines.popularity import Popularity, RecentPopularity  # noqa: E402
from models.baselines.tifu_knn import TIFUKNN  # noqa: E402
from models.histories import Histories  # noqa: E402

SHARED = Path(os.environ.get("LOOKBACK_SHARED_DATA", ROOT.parent / "shared" / "data"))
LOG = SHARED / "ta-feng" / "ta_feng_all_months_merged.csv.gz"
K = 10
FILL_DAYS = 30
"""Window of recent popularity, the classes' default, in days."""
CLASSES: dict[str, Any] = {
    "popularity": Popularity,
    "recent_popularity": RecentPopularity,
    "own_frequent": OwnFrequent,
    "own_recent": OwnRecent,
    "tifu_knn": TIFUKNN,
}
OWN_ORDERS = {
    "own_frequent": ("visits", "last", "recent"),
    "own_recent": ("last", "visits", "recent"),
    "own_frequent, ties by popularity": ("visits", "popular"),
}
"""Orders of a user's own items, each highest first."""


def read_log() -> pl.DataFrame:
    """`user`, `item` (numbered in the order of their ids, items from 1) and `day`, by user and day."""
    log = pl.read_csv(LOG, infer_schema_length=0)
    log = log.select(
        day=pl.col(log.columns[0]).str.to_date("%m/%d/%Y"),
        user=pl.col("CUSTOMER_ID").rank("dense").cast(pl.Int64) - 1,
        item=pl.col("PRODUCT_ID").rank("dense").cast(pl.Int32),
    )
    return log.sort("user", "day", maintain_order=True)


def measures(relevant: pl.DataFrame, lists: pl.DataFrame) -> dict[str, Any]:
    """Hit rate, recall and NDCG (ideal by min(k, relevant)) of lists (`user`, `item`, `rank` from 0), means over users."""
    hits = lists.join(relevant, on=["user", "item"])
    gained = hits.group_by("user").agg(hits=pl.len(), gain=(1 / (pl.col("rank") + 2).log(2)).sum())
    users = relevant.group_by("user").len("relevant").join(gained, on="user", how="left").fill_null(0)
    ideal = np.cumsum(1 / np.log2(np.arange(K) + 2))[np.minimum(users["relevant"].to_numpy(), K) - 1]
    found = users["hits"].to_numpy()
    return {
        "users": len(users),
        f"hit_rate@{K}": round(float((found > 0).mean()), 4),
        f"recall@{K}": round(float((found / users["relevant"].to_numpy()).mean()), 4),
        f"ndcg@{K}": round(float((users["gain"].to_numpy() / ideal).mean()), 4),
    }


def plain_lists(before: pl.DataFrame, users: pl.DataFrame, order: tuple[str, ...]) -> pl.DataFrame:
    """Own items by `order`, then the recently popular others, by polars: `user`, `item`, `rank`."""
    since = before["day"].max() - timedelta(days=FILL_DAYS)  # type: ignore[operator]
    recent = before.filter(pl.col("day") > since).group_by("item").len("recent")
    popular = before.group_by("item").len("popular").join(recent, on="item", how="left").fill_null(0)
    pairs = before.join(users, on="user").group_by("user", "item")
    own = pairs.agg(visits=pl.col("day").n_unique(), last=pl.col("day").max()).join(popular, on="item")
    own = own.sort(["user", *order, "item"], descending=[False, *(True for _ in order), False])
    own = own.select("user", "item", place=pl.int_range(pl.len()).over("user"))
    top = recent.sort(["recent", "item"], descending=[True, False]).head(K)
    others = users.join(top.select("item", place=1_000_000 + pl.int_range(pl.len())), how="cross")
    both = pl.concat([own, others.join(own, on=["user", "item"], how="anti").select(own.columns)])
    ranked = both.sort("user", "place").with_columns(rank=pl.int_range(pl.len()).over("user"))
    return ranked.filter(pl.col("rank") < K).select("user", "item", "rank")


def histories_of(events: pl.DataFrame) -> Histories:
    """Rows of users in ascending order."""
    lengths = events.group_by("user", maintain_order=True).len()["len"].to_numpy().astype(np.int64)
    ends = np.cumsum(lengths)
    times = events["day"].cast(pl.Datetime("us")).dt.timestamp("us").to_numpy()
    none = np.zeros(len(events), np.int16)
    return Histories(events["item"].to_numpy(), times, none, ends - lengths, ends)


def measure(
    kind: Any, settings: dict[str, Any], before: pl.DataFrame, relevant: pl.DataFrame, num_items: int
) -> dict[str, Any]:
    """Fit on the events before the night and list for the users with something relevant: measures, seconds, memory."""
    begin = time.perf_counter()
    model = kind.fit(histories_of(before), num_items, **settings)
    fitted = time.perf_counter()
    own = before.join(relevant.select("user").unique(), on="user", how="semi").sort(
        "user", maintain_order=True
    )
    users = own["user"].unique().sort().to_numpy()
    items, _ = model.recommend(histories_of(own), K, exclude_seen=False)
    lists = pl.DataFrame(
        {
            "user": np.repeat(users, K),
            "item": items.ravel(),
            "rank": np.tile(np.arange(K), len(users)),
        }
    )
    return measures(relevant, lists) | {
        "fit_seconds": round(fitted - begin, 2),
        "list_seconds": round(time.perf_counter() - fitted, 2),
        "peak_gigabytes": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
    }


def main() -> None:
    """Print a JSON object per system."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--night", type=date.fromisoformat, default=date(2001, 2, 15))
    parser.add_argument("--days", type=int, default=14)
    parser.add_argument("--grid", action="store_true", help="every point of every grid")
    parser.add_argument("--only", choices=[*CLASSES])
    arguments = parser.parse_args()
    if not LOG.exists():
        print(f"bench_baskets: skipped, no {LOG}; set LOOKBACK_SHARED_DATA")
        return
    log, night = read_log(), pl.lit(arguments.night)
    num_items = int(log["item"].max())  # type: ignore[arg-type]
    before = log.filter(pl.col("day") < night)
    after = log.filter((pl.col("day") >= night) & (pl.col("day") < night + timedelta(days=arguments.days)))
    relevant = after.select("user", "item").unique().join(before, on="user", how="semi")
    for name, order in OWN_ORDERS.items() if not arguments.only else ():
        lists = plain_lists(before, relevant.select("user").unique(), order)
        print(json.dumps({"system": name, "by": "polars"} | measures(relevant, lists)), flush=True)
    for name, kind in CLASSES.items():
        if arguments.only in (None, name):
            for point in kind.GRID if arguments.grid else kind.GRID[:1]:
                found = measure(kind, point, before, relevant, num_items)
                print(json.dumps({"system": name, "settings": point} | found), flush=True)


if __name__ == "__main__":
    main()
