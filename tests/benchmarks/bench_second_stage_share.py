"""Second stage for a share of the users: NDCG@10 of the test's nights and seconds of a scoring, by share.

python tests/benchmarks/bench_second_stage_share.py --config demo [--set key=value]…

Each night the users with a history are ordered as in scoring, by the gain on validation by history length. Their lists of that
night are those of both stages, the others' those of retrieval (an evaluation with ranker.use = never). With an interval over
users of the difference from both stages for all; the ranker has to be in use. Beside it the same shares of random users. Lists
are then scored with each share. Prints a table, then one JSON object. Artifacts go where the configuration says.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import polars as pl  # noqa: E402

from models.evaluation.comparison import SystemComparison  # noqa: E402
from models.evaluation.metrics import metrics_of_ranks  # noqa: E402
from pipeline.modelling.history_gain import HistoryGain  # noqa: E402
from pipeline.serving.assignment import keys_of  # noqa: E402
from pipeline.serving.partly_ranked import SALT  # noqa: E402

SHARES = (0.0, 0.1, 0.3, 0.5, 1.0)
METRIC = "ndcg@10"
Json = dict[str, Any]


def run(config: str, settings: list[str], *words: str) -> Json:
    """Run `lookback run`; returns its summary."""
    chosen = [part for setting in settings for part in ("--set", setting)]
    command = [sys.executable, "-m", "pipeline", "run", *words, "--json", "--config", config, *chosen]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    summary: Json = json.loads(done.stdout.splitlines()[-1])
    return summary


def of_requests(evaluate: Path) -> pl.DataFrame:
    """night, user_id and NDCG@10 of every user-night of the model."""
    table = pl.read_parquet(evaluate / "targets.parquet").filter(pl.col("system") == "lookback")
    table = table.sort("night", "user_id")
    requests = table.select("night", "user_id").unique(maintain_order=True).with_row_index("request")
    number = table.join(requests, on=["night", "user_id"], maintain_order="left")["request"].to_numpy()
    values = metrics_of_ranks(table["rank"].to_numpy(), (10,), number.astype(np.int64), len(requests))[METRIC]
    return requests.select("night", "user_id", pl.Series(METRIC, values))


def chosen_users(
    events: pl.DataFrame, nights: pl.Series, gain: HistoryGain | None, share: float
) -> pl.DataFrame:
    """night and user_id of the users whose lists the second stage ranks; gain None: random ones."""
    parts = []
    for night in nights:
        known = events.filter(pl.col("timestamp") < night).group_by("user_id").len("events").sort("user_id")
        lengths = known["events"].to_numpy().astype(np.int64)
        keys = keys_of(known["user_id"], SALT)
        own = gain or HistoryGain(np.array([1]), np.array([1]), np.array([0.0]))
        users = known["user_id"].filter(pl.Series(own.chosen(lengths, keys, share)))
        parts.append(pl.DataFrame({"user_id": users}).with_columns(night=pl.lit(night, nights.dtype)))
    return pl.concat(parts)


def curve(
    both: pl.DataFrame, retrieval: pl.DataFrame, events: pl.DataFrame, gain: HistoryGain | None
) -> Json:
    """NDCG@10 by share, with the difference from both stages for all."""
    pairs = both.join(
        retrieval, on=["night", "user_id"], suffix="_retrieval", validate="1:1", maintain_order="left"
    )
    values = {}
    for share in SHARES:
        ranked = chosen_users(events, pairs["night"].unique().sort(), gain, share).with_columns(ranked=True)
        own = pairs.join(ranked, on=["night", "user_id"], how="left", maintain_order="left")
        value = pl.when(pl.col("ranked").is_not_null()).then(METRIC).otherwise(f"{METRIC}_retrieval")
        values[str(share)] = {METRIC: own.select(value).to_series().to_numpy()}
    systems = SystemComparison.of(values.items(), pairs["user_id"].to_numpy(), 1000, 0)
    rows = {}
    for name in values:
        paired = systems.paired(name, "1.0")[METRIC]
        rows[name] = [systems.values(name)[METRIC], paired.difference, paired.low, paired.high]
    return rows


def main() -> None:
    """Print the curve and the seconds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True)
    parser.add_argument("--set", action="append", default=[])
    arguments = parser.parse_args()
    config, settings = arguments.config, arguments.set
    folders = {done["stage"]: Path(done["folder"]) for done in run(config, settings, "publish")["stages"]}
    without = {
        done["stage"]: Path(done["folder"])
        for done in run(config, [*settings, "ranker.use=never"], "publish")["stages"]
    }
    gain = HistoryGain.of_description(json.loads((folders["rank"] / "ranker.json").read_text()))
    assert gain is not None
    both, retrieval = of_requests(folders["evaluate"]), of_requests(without["evaluate"])
    events = pl.read_parquet(sorted((folders["ingest"] / "events").glob("*.parquet")))
    curves = {
        name: curve(both, retrieval, events, own) for name, own in (("by gain", gain), ("random", None))
    }
    seconds = {}
    for share in SHARES:
        summary = run(config, [*settings, f"score.second_stage_share={share}"], "score", "--force")
        manifest = json.loads((Path(summary["folder"]) / "manifest.json").read_text())
        predicted = manifest.get("second_stage", {}).get("predicted_seconds", {})
        seconds[str(share)] = {
            "scoring": manifest["users"] / manifest["users_per_second"],
            "stage": manifest["seconds"],
            "predicted": predicted,
        }
    for name in map(str, SHARES):
        value, difference, low, high = curves["by gain"][name]
        print(
            f"{name:>4} {value:.4f} {difference:+.4f} [{low:+.4f}, {high:+.4f}]  random {curves['random'][name][0]:.4f}  "
            f"{seconds[name]['scoring']:6.1f} s, predicted {seconds[name]['predicted']}"
        )
    print(json.dumps({"gain": gain.as_rows(), "curves": curves, "seconds": seconds}))


if __name__ == "__main__":
    main()
