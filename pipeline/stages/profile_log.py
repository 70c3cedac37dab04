"""The profile of a features artifact, and how it differs from the last one: written, tracked, warned of."""

import sys
from pathlib import Path

import polars as pl

from features.histories.jagged import JaggedHistories
from features.profiling import drift, profile
from features.profiling.drift import Drift
from features.profiling.profile import DRIFT, PROFILE, Profile
from features.schema import ITEM_ID
from pipeline.orchestration.graph import Context


def write(ctx: Context, histories: JaggedHistories, event_types: list[str], items: pl.DataFrame) -> Profile:
    """Write profile.json, and drift.json where there is an artifact to compare with; tell MLflow, and warn of large drifts.

    items: item_id and num_events of the whole catalogue. Neither file shapes any result, and so neither is fingerprinted.
    """
    timed = ctx.config.events.timestamp_unit != "position"
    now = profile.profile(histories, event_types, len(items), timed=timed)
    now.save(ctx.folder / PROFILE)
    ctx.track.artifact(PROFILE)
    metrics = now.metrics()
    if (found := _drift(ctx.stage_folder / "latest", items, now)) is not None:
        found.save(ctx.folder / DRIFT)
        ctx.track.artifact(DRIFT)
        metrics |= found.metrics()
        for warning in found.warnings:
            print(f"features: {warning}", file=sys.stderr, flush=True)
        if found.warnings:
            ctx.track.tag("drift", "; ".join(found.warnings))
    for name, value in metrics.items():
        ctx.track.metric(f"data/{name}", value)
    return now


def _drift(last: Path, items: pl.DataFrame, now: Profile) -> Drift | None:
    """How the log differs from the last artifact's; None where there is none that can be read."""
    try:
        before = Profile.load(last / PROFILE)
        before_items = pl.read_parquet(last / "items.parquet", columns=[ITEM_ID, "num_events"])
    except (OSError, ValueError, pl.exceptions.PolarsError):
        return None
    return drift.compare(before_items, before, items, now)
