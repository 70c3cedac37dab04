"""What columns of users, items and events are worth to the ranker: MovieLens-1M, Ta-Feng and Deskdrop, with and without them.

python tests/benchmarks/bench_columns.py DATASET [--folder DIR] [--epochs 3] [--seed S] [--set key=value]…

DATASET: ml-1m (gender, age, occupation; genres, year), ta-feng (age group, area; subclass, price) or deskdrop (of events: agent,
region, country). One encoder of a few epochs for all; behind it the ranker without columns, with all columns, and with
`ranker.columns = "auto"`. All are evaluated on the same test targets by NDCG@10: prints a Markdown table with 95 % bootstrap
intervals over users and paired differences from the ranker without columns, then one JSON object with the figures of the choice.
Artifacts go to `--folder` (default: a temporary one), the data is looked for in LOOKBACK_SHARED_DATA.

The tables hold what the log's first row of a user or item says, so they know nothing of later days.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import polars as pl  # noqa: E402

from features.attribute_settings import attribute_columns  # noqa: E402
from features.histories.numbering import ItemNumbering  # noqa: E402
from models import checkpoint  # noqa: E402
from models.encoder.encoder import AttentionRecommender  # noqa: E402
from models.evaluation.comparison import SystemComparison  # noqa: E402
from models.evaluation.metrics import metrics_of_ranks  # noqa: E402
from models.evaluation.ranks import rank_targets  # noqa: E402
from models.ranking.two_stage import TwoStage  # noqa: E402
from pipeline.artifacts.files import read_json  # noqa: E402
from pipeline.config import Config, load_config  # noqa: E402
from pipeline.dataset.dataset import Dataset  # noqa: E402
from pipeline.dataset.evaluation_targets import targets_of  # noqa: E402
from pipeline.dataset.protocol import Protocol  # noqa: E402
from pipeline.dataset.targets import RankedTargets, counted  # noqa: E402
from pipeline.modelling import second_stage  # noqa: E402
from pipeline.orchestration.graph import resolve  # noqa: E402

SHARED = Path(os.environ.get("LOOKBACK_SHARED_DATA", ROOT.parent / "shared" / "data"))
NONE, ALL, AUTO = "no columns", "all columns", "auto"
ML_1M = """
extends = "{configs}/ml-1m.toml"
name = "columns"
data_dir = "{folder}/artifacts"
[events]
path = "{shared}/ml-1m/ratings.dat"
[items]
path = "{folder}/items.csv"
separator = ","
header = true
encoding = "utf-8"
columns = {{ item_id = "item_id", title = "title", categories = "categories", year = "year" }}
[users]
path = "{shared}/ml-1m/users.dat"
columns = {{ user_id = 1, gender = 2, age = 3, occupation = 4 }}
[evaluate]
targets = "successive"
max_requests = 10000
[ranker]
max_lists = 8000
"""
TA_FENG = """
extends = "{configs}/ta-feng.toml"
name = "columns"
data_dir = "{folder}/artifacts"
[events]
path = "{shared}/ta-feng/ta_feng_all_months_merged.csv.gz"
[items]
path = "{folder}/items.csv"
columns = {{ item_id = "item_id", subclass = "subclass", price = "price" }}
[users]
path = "{folder}/users.csv"
columns = {{ user_id = "user_id", age_group = "age_group", area = "area" }}
[evaluate]
max_requests = 10000
"""
DESKDROP = """
extends = "{configs}/deskdrop.toml"
name = "columns"
data_dir = "{folder}/artifacts"
[events]
path = "{shared}/deskdrop/users_interactions.csv"
[events.columns]
agent = "userAgent"
region = "userRegion"
country = "userCountry"
"""


def deskdrop(_: Path) -> str:
    """The configuration; the columns are those of the log."""
    return DESKDROP


def ml_1m(folder: Path) -> str:
    """Write the items with their years; returns the configuration."""
    text = (SHARED / "ml-1m" / "movies.dat").read_text(encoding="latin-1")
    table = pl.DataFrame(
        [line.split("::") for line in text.splitlines()],
        schema=["item_id", "title", "categories"],
        orient="row",
    )
    table.with_columns(year=pl.col("title").str.extract(r"\((\d{4})\)$")).write_csv(folder / "items.csv")
    return ML_1M


def ta_feng(folder: Path) -> str:
    """Write users and items as the first row of each says; returns the configuration."""
    log = pl.read_csv(SHARED / "ta-feng" / "ta_feng_all_months_merged.csv.gz", infer_schema_length=0)
    log = log.with_columns(day=pl.col("TRANSACTION_DT").str.to_date("%m/%d/%Y")).sort(
        "day", maintain_order=True
    )
    price = pl.col("SALES_PRICE").cast(pl.Float64) / pl.col("AMOUNT").cast(pl.Float64)
    items = log.unique("PRODUCT_ID", keep="first", maintain_order=True)
    items.select(item_id="PRODUCT_ID", subclass="PRODUCT_SUBCLASS", price=price).write_csv(
        folder / "items.csv"
    )
    users = log.unique("CUSTOMER_ID", keep="first", maintain_order=True)
    users.select(user_id="CUSTOMER_ID", age_group="AGE_GROUP", area="PIN_CODE").write_csv(
        folder / "users.csv"
    )
    return TA_FENG


def artifacts(config: Path, settings: list[str]) -> tuple[Config, dict[str, Path]]:
    """Run stage rank; returns the configuration and the folders of the stages up to it."""
    options = [part for setting in settings for part in ("--set", setting)]
    run = [sys.executable, "-m", "pipeline", "run", "rank", "--config", str(config), *options]
    subprocess.run(run, check=True, stdout=sys.stderr)
    loaded = load_config(str(config), settings)
    stages = resolve(loaded, ["rank"]).nodes
    return loaded, {name: node.artifact.folder for name, node in stages.items()}


def tested(config: Config, folders: dict[str, Path]) -> tuple[RankedTargets, np.ndarray]:
    """Test targets and the rank of each by both stages of the artifacts."""
    dataset = Dataset.open(folders["features"])
    nightly = Protocol.of(config, dataset).headline == "nightly"
    encoder = checkpoint.load_model(folders["train"])
    numbering = ItemNumbering.load(folders["train"] / "items.npy")
    training = dataset.training_rows(with_validation=config.train.refit_validation)
    targets = targets_of(config, dataset, "test", numbering, trained=dataset.occurring(training))
    targets = targets.select(counted(targets, cold_users=False, cold_items=False))
    stage = second_stage.opened(config, dataset, folders, training.translate(numbering.new), numbering)
    assert stage is not None
    if nightly:
        stage = stage.counting(dataset.all_rows().translate(numbering.new))
    exclude_seen = Protocol.of(config, dataset).exclude_seen
    system = TwoStage(AttentionRecommender(encoder), stage, exclude_seen=exclude_seen)
    ranked = rank_targets(
        system, targets.histories, targets.item, 1, exclude_seen=exclude_seen, request=targets.request
    )
    return targets, ranked.rank


def main_() -> None:
    """Train, evaluate, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset", choices=("ml-1m", "ta-feng", "deskdrop"))
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], dest="settings")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        write = {"ml-1m": ml_1m, "ta-feng": ta_feng, "deskdrop": deskdrop}[options.dataset]
        text = write(folder).format(
            configs=ROOT / "pipeline" / "configs", folder=folder, shared=SHARED.resolve()
        )
        (folder / "columns.toml").write_text(text)
        os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        common = [f"train.epochs={options.epochs}", f"seed={options.seed}", *options.settings]
        measure(folder / "columns.toml", common)


def measure(path: Path, common: list[str]) -> None:
    """Train and evaluate the ranker with each choice of columns; print table and figures."""
    values, facts, targets = {}, {}, None
    config = load_config(str(path), common)
    known = attribute_columns(config.users, config.items, config.events, "auto")
    every = [f"{table}.{name}" for table, name in known]
    for name, columns in ((NONE, "[]"), (ALL, json.dumps(every)), (AUTO, '"auto"')):
        began = time.monotonic()
        own, folders = artifacts(path, [*common, f"ranker.columns={columns}"])
        facts[name] = read_json(folders["rank"] / "ranker.json").get("columns", {}) | {
            "seconds": round(time.monotonic() - began)
        }
        targets, rank = tested(own, folders)
        values[name] = metrics_of_ranks(rank, (10,), targets.request, targets.num_requests)
        print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    assert targets is not None
    systems = SystemComparison.of(values.items(), targets.user, 1000, 0)
    print("| ranker | NDCG@10 | against no columns |\n| --- | --- | --- |")
    for name in values:
        low, high = systems.intervals(name)["ndcg@10"]
        gain = None if name == NONE else systems.paired(name, NONE)["ndcg@10"]
        said = "" if gain is None else f"{gain.difference:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}]"
        print(f"| {name} | {systems.values(name)['ndcg@10']:.4f} [{low:.4f}, {high:.4f}] | {said} |")
    requests: dict[str, Any] = {"requests": targets.num_requests, "targets": len(targets)}
    print(json.dumps(requests | facts, indent=1))


if __name__ == "__main__":
    main_()
