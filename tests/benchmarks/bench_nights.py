"""Does the nightly number hold? Systems evaluated at an earlier boundary against what their lists of later nights earned.

python tests/benchmarks/bench_nights.py --config demo [--set key=value]… [--leave-one-out] [--users SHARE] [--test-fraction F]

With --users, of a random share of the users.
1. Promise: the log as it was a test period ago (`split.held_back`), evaluated by nightly and by successive targets; with
   --leave-one-out also by each user's last event of the log cut at the later boundary.
2. Earned: the same systems at the later boundary; their lists of every night, judged by plain polars on the events after it.
3. Rank correlation (Spearman) over systems of each promise with what was earned. Prints a table, then one JSON object.
Artifacts go to a temporary folder.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import polars as pl  # noqa: E402
from scipy.stats import spearmanr  # noqa: E402

K = 10


def run(config: str, settings: list[str], stage: str) -> Path:
    """Bring a stage up to date; returns its folder."""
    chosen = [part for setting in settings for part in ("--set", setting)]
    command = [sys.executable, "-m", "pipeline", "run", stage, "--config", config, *chosen]
    subprocess.run(command, check=True, stdout=sys.stderr)
    command = [sys.executable, "-m", "pipeline", "path", stage, "--config", config, *chosen]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return Path(done.stdout.splitlines()[-1])


def earned(evaluate: Path, events: pl.DataFrame) -> dict[str, float]:
    """System -> NDCG@10 of its lists, from the lists and the log alone: mean over user-nights."""
    report = json.loads((evaluate / "metrics.json").read_text())
    horizon = pl.duration(days=report["nights"]["horizon_days"])
    table = pl.read_parquet(evaluate / "targets.parquet")
    asked = table.select("night", "user_id").unique()
    log = events.join(asked.select("user_id").unique(), on="user_id", how="semi")
    pairs = asked.join(log, on="user_id")
    taken = pairs.filter(
        pl.col("timestamp").is_between(pl.col("night"), pl.col("night") + horizon, closed="left")
    )
    taken = taken.select("night", "user_id", "item_id").unique()
    if report["exclude_seen"]:
        seen = (
            pairs.filter(pl.col("timestamp") < pl.col("night")).select("night", "user_id", "item_id").unique()
        )
        taken = taken.join(seen, on=["night", "user_id", "item_id"], how="anti")
    ideal = np.cumsum(1 / np.log2(np.arange(2, K + 2)))
    relevant = (
        taken.group_by("night", "user_id")
        .len("relevant")
        .with_columns(
            ideal=pl.col("relevant")
            .clip(1, K)
            .map_elements(lambda number: float(ideal[number - 1]), pl.Float64)
        )
    )
    values = {}
    for (system,), own in table.group_by("system", maintain_order=True):
        lists = own.filter(pl.col("recommended").list.len() > 0).select(
            "night", "user_id", pl.col("recommended").list.head(K)
        )
        places = lists.with_columns(rank=pl.int_ranges(1, pl.col("recommended").list.len() + 1)).explode(
            "recommended", "rank"
        )
        hits = places.rename({"recommended": "item_id"}).join(taken, on=["night", "user_id", "item_id"])
        gain = hits.group_by("night", "user_id").agg(gain=(1 / (pl.col("rank") + 1).log(2)).sum())
        scored = relevant.join(asked, on=["night", "user_id"]).join(gain, on=["night", "user_id"], how="left")
        values[str(system)] = float((scored["gain"].fill_null(0) / scored["ideal"]).mean())  # type: ignore[arg-type]
    return values


def of_kind(evaluate: Path, kind: str) -> dict[str, float]:
    """System -> NDCG@10 by one kind of targets."""
    report = json.loads((evaluate / "metrics.json").read_text())
    return {name: values["ndcg@10"] for name, values in report["by_targets"][kind].items()}


def log_of(ingest: Path) -> pl.DataFrame:
    """Events of an ingested log."""
    return pl.read_parquet(sorted((ingest / "events").glob("*.parquet")))


def rewritten(events: pl.DataFrame, path: Path) -> list[str]:
    """Settings that read these events from a new file."""
    columns = ("user_id", "item_id", "timestamp", "event_type")
    plain = events.select(pl.col(columns)).with_columns(pl.col("event_type").cast(pl.String))
    plain.write_parquet(path)
    named = ", ".join(f'{name} = "{name}"' for name in columns)
    return [
        f"events.path={path}",
        "events.format=parquet",
        f"events.columns={{ {named} }}",
        "events.timestamp_unit=iso",
    ]


def sample(events: pl.DataFrame, share: float) -> pl.DataFrame:
    """Events of a share of the users, drawn with seed 0."""
    users = events["user_id"].unique().sort()
    return events.filter(pl.col("user_id").is_in(users.sample(fraction=share, seed=0).implode()))


def main() -> None:
    """Run the study for one configuration."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--leave-one-out", action="store_true")
    parser.add_argument("--users", type=float, default=1.0)
    parser.add_argument("--test-fraction", type=float, default=0.1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        settings = [*arguments.set, f"data_dir={folder / 'data'}", "tracking.enabled=false"]
        if arguments.users < 1:
            part = sample(log_of(run(arguments.config, settings, "ingest")), arguments.users)
            settings += rewritten(part, folder / "sample.parquet")
        fraction = arguments.test_fraction
        settings.append(f"split.test_fraction={fraction}")
        kinds = 'evaluate.targets=["nightly", "successive"]'
        later = run(arguments.config, [*settings, kinds], "evaluate")
        ingest = run(arguments.config, settings, "ingest")
        events = log_of(ingest).select("user_id", "item_id", "timestamp")
        report = json.loads((later / "metrics.json").read_text())
        got = earned(later, events)
        for name, value in got.items():
            assert abs(value - report["metrics"][name]["ndcg@10"]) < 0.01, (
                name,
                value,
                report["metrics"][name]["ndcg@10"],
            )
        earlier = run(arguments.config, [*settings, kinds, f"split.held_back={fraction}"], "evaluate")
        promises = {kind: of_kind(earlier, kind) for kind in ("nightly", "successive")}
        if arguments.leave_one_out:
            boundary = pl.lit(report["test_from"]).str.to_datetime(time_zone="UTC")
            before = log_of(ingest).filter(pl.col("timestamp") < boundary)
            cut = [*rewritten(before, folder / "cut.parquet"), "split.protocol=leave_one_out"]
            last = run(arguments.config, [*settings, *cut, "evaluate.targets=successive"], "evaluate")
            metrics = json.loads((last / "metrics.json").read_text())["metrics"]
            promises["leave_one_out"] = {name: values["ndcg@10"] for name, values in metrics.items()}
    show(arguments.config, got, promises, report)


def show(
    config: str, got: dict[str, float], promises: dict[str, dict[str, float]], report: dict[str, Any]
) -> None:
    """Print a Markdown table and one JSON object."""
    names = [name for name in got if all(name in values for values in promises.values())]
    correlation = {
        kind: float(spearmanr([got[name] for name in names], [values[name] for name in names]).statistic)
        for kind, values in promises.items()
    }
    print(f"| system | earned at {report['nights']['number']} later nights | {' | '.join(promises)} |")
    print(f"| --- |{' --- |' * (len(promises) + 1)}")
    for name in sorted(names, key=lambda name: -got[name]):
        print(
            f"| {name} | {got[name]:.4f} | {' | '.join(f'{values[name]:.4f}' for values in promises.values())} |"
        )
    print(
        json.dumps(
            {
                "config": config,
                "user_nights": report["targets"],
                "earned": got,
                "promises": promises,
                "spearman": correlation,
            }
        )
    )


if __name__ == "__main__":
    main()
