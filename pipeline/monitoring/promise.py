"""Promise of an evaluation: its nightly metric, measured again in the windows in which outcomes count."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl

from models.evaluation.metrics import metrics_of_ranks
from pipeline.artifacts.store import Artifact, read_manifest
from pipeline.config import Config
from pipeline.errors import DamagedArtifact
from pipeline.monitoring.ledger import Promise

DAY = 86_400_000_000
"""Microseconds."""


def of_lists(config: Config, lists: Artifact) -> dict[str, Promise]:
    """Promises by window (days as text) for lists, from the evaluation of the bundle they were made with.

    Empty where that evaluation is gone or not of nights; windows longer than its horizon have none.
    """
    manifest = read_manifest(lists.folder)
    publish = _published(config, manifest["bundle_digest"])
    if publish is None:
        return {}
    made = read_manifest(publish)
    if "evaluate" not in made["inputs"]:
        return {}  # an update, which was not evaluated
    evaluate = config.folder / "evaluate" / made["inputs"]["evaluate"]
    if not (evaluate / "targets.parquet").exists():
        return {}
    return of_evaluation(evaluate, made["system"], config.monitor.days, manifest["settings"]["score.k"])


def of_evaluation(evaluate: Path, system: str, days: Sequence[float], k: int) -> dict[str, Promise]:
    """Promises of NDCG@k by window, for a system of an evaluation's folder."""
    from pipeline.evaluation.report import EvaluationReport

    nights = EvaluationReport.load(evaluate).nights
    targets = pl.scan_parquet(evaluate / "targets.parquet")
    if nights is None or "night" not in targets.collect_schema():
        return {}
    own = targets.filter(pl.col("system") == system)
    rows = own.select("night", "user_id", "timestamp", "rank").collect(engine="streaming")
    return {
        f"{window:g}": Promise(f"ndcg@{k}", _by_night(rows, window, k))
        for window in days
        if window <= nights.horizon_days
    }


def _by_night(targets: pl.DataFrame, days: float, k: int) -> tuple[float, ...]:
    """Mean NDCG@k of each night over the users who took something within the window."""
    within = targets.filter(
        pl.col("timestamp") < pl.col("night") + pl.duration(microseconds=round(days * DAY))
    )
    means = []
    for _, night in within.sort("night").group_by(["night"], maintain_order=True):
        user = night["user_id"].rank("dense").to_numpy().astype(np.int64) - 1
        ndcg = metrics_of_ranks(night["rank"].to_numpy().astype(np.float64), (k,), user)[f"ndcg@{k}"]
        means.append(float(np.mean(ndcg)))
    return tuple(means)


def band(promise: Promise, level: float) -> tuple[float, float] | None:
    """Promised interval of one further night; None for under two nights."""
    return None if len(promise.nights) < 2 else prediction_interval(promise.nights, level)


def prediction_interval(nights: Sequence[float], level: float) -> tuple[float, float]:
    """Interval of one further night, by Student's t: mean ± t * s * sqrt(1 + 1/n), of two nights or more.

    The nights' standard deviation s holds both the variance between nights and the sampling of users within one.
    """
    from scipy.stats import t

    values = np.array(nights)
    half = t.ppf((1 + level) / 2, len(values) - 1) * values.std(ddof=1) * math.sqrt(1 + 1 / len(values))
    return float(values.mean() - half), float(values.mean() + half)


def _published(config: Config, digest: str) -> Path | None:
    """Publish artifact of a bundle; None where it is gone."""
    for folder in sorted((config.folder / "publish").glob("[0-9a-f]*/")):
        try:
            manifest: Mapping[str, object] = read_manifest(folder)
        except (OSError, DamagedArtifact):
            continue
        if manifest.get("bundle_digest") == digest and manifest.get("system"):
            return folder
    return None
