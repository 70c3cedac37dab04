"""Each stage's result on the tiny log, held with its version number: a result that changes needs a new number.

After a wanted change: raise the stage's version in pipeline/orchestration/graph.py, then
LOOKBACK_UPDATE_GOLDEN=1 pytest this file.
"""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from pipeline.orchestration.graph import ALL, STAGES
from tests.workdir import Workdir

GOLDEN = Path(__file__).with_name("golden.json")
TOLERANCE = 0.02
"""Of losses and metrics, which depend on the processor's arithmetic; what holds no trained weight is exact."""


def digest(*parts: bytes) -> str:
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]


def of_frame(frame: pl.DataFrame) -> str:
    return digest(frame.write_csv().encode())


def ingest(folder: Path) -> dict[str, Any]:
    events = pl.read_parquet(folder / "events" / "*.parquet").sort("source_file", "source_row")
    refused = pl.read_parquet(folder / "quarantine" / "*.parquet").sort("source_file", "source_row")
    return {
        "events": of_frame(events.with_columns(pl.col("event_type").cast(pl.String))),
        "quarantine": of_frame(refused.drop("source_path")),
        "items": of_frame(
            pl.read_parquet(folder / "items.parquet").with_columns(pl.col("categories").list.join("|"))
        ),
    }


def features(folder: Path) -> dict[str, Any]:
    arrays = {path.name: np.load(path) for path in sorted(folder.rglob("*.npy"))}
    learned = ("idf.npy", "text.npy", "word_vectors.npy")  # the last bits are the linear algebra's
    exact = {name: digest(array.tobytes()) for name, array in arrays.items() if name not in learned}
    rough = {name: [*arrays[name].shape, float(np.abs(arrays[name]).mean())] for name in learned}
    return exact | rough | {"items": of_frame(pl.read_parquet(folder / "items.parquet").drop("categories"))}


def train(folder: Path) -> dict[str, Any]:
    history = pl.read_parquet(folder / "history.parquet")
    return {
        "loss": history["loss"].to_list(),
        "steps": history["steps"].to_list(),
        "items": digest(np.load(folder / "items.npy")),
    }


def index(folder: Path) -> dict[str, Any]:
    return {
        "recall": json.loads((folder / "recall.json").read_text())["recall@100"],
        "shape": list(np.load(folder / "item_vectors.npy").shape),
    }


def rank(folder: Path) -> dict[str, Any]:
    said = json.loads((folder / "ranker.json").read_text())
    held_out = {name: said["held_out"][name] for name in ("targets", "two_stage_ndcg@10", "log_loss")}
    return {name: said[name] for name in ("trained", "targets", "candidates")} | held_out


def baselines(folder: Path) -> dict[str, Any]:
    found = json.loads((folder / "baselines.json").read_text())
    tables = {path.stem: pl.read_parquet(path) for path in sorted((folder / "successive").glob("*.parquet"))}
    hits = {name: float(np.mean(table["rank"].to_numpy() <= 10)) for name, table in tables.items()}
    fitted = {name: facts["fitted_on"]["num_events"] for name, facts in found["systems"].items()}
    return {
        "hit_rate": hits,
        "fitted_on": fitted,
        "items": digest(np.load(folder / "successive" / "items.npy")),
    }


def evaluate(folder: Path) -> dict[str, Any]:
    metrics = json.loads((folder / "metrics.json").read_text())
    exact = {
        "targets": metrics["targets"],
        "users": metrics["users"],
        "left_out": metrics["targets_left_out"],
    }
    return exact | {name: values["ndcg@10"] for name, values in metrics["metrics"].items()}


def publish(folder: Path) -> dict[str, Any]:
    description = json.loads((folder / "bundle" / "bundle.json").read_text())
    return {
        "files": sorted(description["files"]),
        "items": description["files"]["items.parquet"][:16],
        "users": description["files"]["users.parquet"][:16],
        "steps": description["refit_steps"],
    }


def monitor(folder: Path) -> dict[str, Any]:
    tables = {name: pl.read_parquet(folder / f"{name}.parquet") for name in ("outcomes", "nights")}
    shapes = {name: [len(table), table.columns] for name, table in tables.items()}
    return shapes | {"judged": json.loads((folder / "monitor.json").read_text())["judged"]}


def score(folder: Path) -> dict[str, Any]:
    scored = pl.read_parquet(folder / "recommendations" / "*.parquet")
    return {
        "users": of_frame(scored.select("user_id", "rank")),
        "files": len(list((folder / "recommendations").iterdir())),
    }


def report(folder: Path) -> dict[str, Any]:
    text = (folder / "report.html").read_text()
    return {
        "headings": [
            line.split(">")[1].split("<")[0] for line in text.splitlines() if line.strip().startswith("<h2")
        ]
    }


def similar(folder: Path) -> dict[str, Any]:
    table, popular = (pl.read_parquet(folder / f"{name}.parquet") for name in ("similar", "popular"))
    counted = table.filter(pl.col("kind") == "co_visitation").drop("score")
    measured = json.loads((folder / "manifest.json").read_text())["next_items"]
    ndcg = {f"{kind}_ndcg": metrics["ndcg@20"]["value"] for kind, metrics in measured["metrics"].items()}
    facts = {
        "rows": len(table),
        "co_visitation": of_frame(counted),
        "popular": of_frame(popular.drop("score")),
    }
    return facts | ndcg | {name: measured[name] for name in ("pairs", "users", "left_out")}


SUMMARIES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "ingest": ingest, "features": features, "train": train, "index": index, "rank": rank,
    "baselines": baselines, "evaluate": evaluate, "publish": publish, "monitor": monitor, "score": score,
    "report": report, "similar": similar,
}  # fmt: skip


def alike(found: Any, held: Any) -> bool:
    """Equal, but for numbers with a fraction, which may differ by the tolerance."""
    if isinstance(held, float):
        return bool(found == pytest.approx(held, abs=TOLERANCE))
    if isinstance(held, dict):
        return set(found) == set(held) and all(alike(found[key], held[key]) for key in held)
    if isinstance(held, list):
        return len(found) == len(held) and all(alike(*pair) for pair in zip(found, held, strict=True))
    return bool(found == held)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_s_result_is_that_of_its_version(request: pytest.FixtureRequest, stage: str) -> None:
    workdir: Workdir = request.getfixturevalue("finished" if stage in ALL else "copied")
    if stage not in ALL:
        workdir.run(stage)
    found = {"version": STAGES[stage].version} | SUMMARIES[stage](workdir.artifact(stage))
    if os.environ.get("LOOKBACK_UPDATE_GOLDEN"):
        golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
        GOLDEN.write_text(json.dumps(golden | {stage: found}, indent=1, sort_keys=True) + "\n")
    held = json.loads(GOLDEN.read_text())[stage]
    different = {
        key: (found.get(key), value) for key, value in held.items() if not alike(found.get(key), value)
    }
    assert not different, (
        f"{stage} gives another result: raise its version in pipeline/orchestration/graph.py"
    )
    assert set(found) == set(held)
