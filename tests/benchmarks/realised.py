"""What became of the lists of the last days of a log, beside what the evaluation promised.

python tests/benchmarks/realised.py FOLDER [--log CSV] [--days 30] [--every 3] [--set key=value]…

Deskdrop, cut so many days before its end: `run all` on what was there, then, every few days, the events since as a new file and a
night (ingest, features, monitor, score with the champion; shadows popularity and recent_popularity). FOLDER keeps logs, artifacts
and a mark per finished command, so that the same command resumes. Prints a table of nights, and one of systems.
"""

import argparse
import datetime
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import polars as pl  # noqa: E402

from pipeline.config import Config, load_config  # noqa: E402
from pipeline.monitoring import promise  # noqa: E402
from pipeline.sections import DELIVERED  # noqa: E402

SHADOWS = ("popularity", "recent_popularity")
NIGHT = ("ingest", "features", "monitor", "score")
DAY = 86_400


def write_config(folder: Path) -> Path:
    """Configuration of the nights."""
    path = folder / "nights.toml"
    path.write_text(
        f'extends = "{ROOT}/pipeline/configs/deskdrop.toml"\nname = "deskdrop-nights"\ndata_dir = "{folder}/data"\n'
        f'[events]\npath = "{folder}/logs"\nformat = "csv"\n[split]\nprotocol = "temporal"\n'
        "[train]\nepochs = 5\n[evaluate]\ntraining_fractions = []\nhorizon_days = 7\n"
        f'baselines = ["popularity", "recent_popularity", "item_knn"]\n[score]\nshadows = {json.dumps(SHADOWS)}\n'
    )
    return path


def lookback(folder: Path, mark: str, *words: str) -> None:
    """Run a command in FOLDER, unless its mark is there."""
    done = folder / f"{mark}.done"
    if done.exists():
        return
    print(f"{datetime.datetime.now(datetime.UTC):%H:%M:%S} {mark}", file=sys.stderr, flush=True)
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
    }
    subprocess.run(
        [sys.executable, "-m", "pipeline", *words], check=True, cwd=folder, env=environment, stdout=sys.stderr
    )
    done.touch()


def run_nights(arguments: argparse.Namespace, config: Path) -> None:
    """Everything before the cut, then the nights."""
    folder: Path = arguments.folder
    log = pl.read_csv(arguments.log, infer_schema=False)
    time = pl.col("timestamp").cast(pl.Int64)
    end = int(log.select(time.max()).item())
    cuts = [end - DAY * days for days in range(arguments.days, -1, -arguments.every)]
    parts = [log.filter(time <= cuts[0])]
    parts += [log.filter((time > since) & (time <= until)) for since, until in itertools.pairwise(cuts)]
    settings = [word for pair in arguments.set for word in ("--set", pair)]
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    for number, part in enumerate(parts):
        path = folder / "logs" / f"part-{number:02}.csv"
        if not path.exists():
            part.write_csv(path)
        stages = ("all",) if number == 0 else (*NIGHT, "--set", "score.model=champion")
        lookback(folder, f"night-{number:02}", "run", *stages, "--config", str(config), *settings)


def newest(config: Config, stage: str) -> Path:
    return config.folder / stage / "latest"


def table(config: Config) -> str:
    """Markdown: realised NDCG of every night, window and system, then each system's mean beside its promise."""
    monitor = newest(config, "monitor")
    nights = pl.read_parquet(monitor / "nights.parquet").filter(pl.col("segment").is_null())
    ndcg = nights.filter(pl.col("metric").str.starts_with("ndcg@")).drop_nulls("value")
    bands = {
        (row["night"], row["window_days"]): (row["low"], row["high"])
        for row in json.loads((monitor / "monitor.json").read_text())["promised"]
    }
    lines = [
        "| night | days | users | delivered | 95 % interval | promised | popularity | recent popularity |"
    ]
    lines.append("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for (days, moment), own in ndcg.sort("window_days", "log_time").group_by(
        ["window_days", "log_time"], maintain_order=True
    ):
        rows: dict[str, dict[str, Any]] = {row["system"]: row for row in own.iter_rows(named=True)}
        low, high = bands.get((moment.isoformat(timespec="seconds"), days), (None, None))
        band = "–" if low is None or high is None else f"{max(low, 0):.3f}–{high:.3f}"
        row = rows[DELIVERED]
        others = " | ".join(f"{rows[name]['value']:.3f}" if name in rows else "–" for name in SHADOWS)
        lines.append(
            f"| {moment:%Y-%m-%d} | {days:g} | {row['users']} | {row['value']:.3f} | {row['low']:.3f}–{row['high']:.3f} | "
            f"{band} | {others} |"
        )
    return "\n".join([*lines, "", *_systems(config, ndcg)])


def _systems(config: Config, ndcg: pl.DataFrame) -> list[str]:
    """Mean over nights of each system: promised by its evaluation, and realised."""
    published = json.loads((newest(config, "publish") / "manifest.json").read_text())["system"]
    lines = [
        "| lists | days | promised: mean of nights (standard deviation) | realised | nights | difference |"
    ]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    for system in (DELIVERED, *SHADOWS):
        name = published if system == DELIVERED else system
        promises = promise.of_evaluation(
            newest(config, "evaluate"), name, config.monitor.days, config.score.k
        )
        for days, own in promises.items():
            before = pl.Series(own.nights)
            after = ndcg.filter((pl.col("system") == system) & (pl.col("window_days") == float(days)))[
                "value"
            ]
            mean, realised = float(before.mean()), float(after.mean())  # type: ignore[arg-type]
            spread = f"{before.std():.3f}, {len(before)} nights"
            shown = f"delivered ({published})" if system == DELIVERED else system.replace("_", " ")
            lines.append(
                f"| {shown} | {days} | {mean:.3f} ({spread}) | {realised:.3f} ({after.std():.3f}) | {len(after)} | "
                f"{realised - mean:+.3f} |"
            )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    data = Path(os.environ.get("LOOKBACK_SHARED_DATA", ROOT / "data" / "raw"))
    parser.add_argument("--log", type=Path, default=data / "deskdrop" / "users_interactions.csv")
    parser.add_argument("--days", type=int, default=30)
    parser.add_argument("--every", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], metavar="key=value")
    arguments = parser.parse_args()
    arguments.folder = arguments.folder.resolve()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    config = write_config(arguments.folder)
    run_nights(arguments, config)
    print(table(load_config(config, arguments.set)))


if __name__ == "__main__":
    main()
