"""Differences of the delivered lists from those of shadows, paired by user and night."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from models.evaluation.comparison import SystemComparison
from pipeline.monitoring.outcome_files import OutcomeFiles
from pipeline.monitoring.series import COMPARED, Bootstrap, metrics_of
from pipeline.sections import DELIVERED


@dataclass(frozen=True)
class ShadowDifference:
    """Delivered lists minus those of a shadow, over the same active users of the nights with both."""

    shadow: str
    window_days: float
    metric: str
    nights: int
    users: int
    difference: float
    low: float
    high: float
    p_holm: float | None
    """Paired bootstrap, adjusted for the number of shadows (Holm 1979)"""
    verdict: str


def of_files(files: OutcomeFiles, bootstrap: Bootstrap) -> Iterator[ShadowDifference]:
    """Differences from every shadow of the newest night, over the recent nights that have them all, for each window.

    Paired by user and night, at the newest night's list length; whole users are resampled. Of each night only sums by user are
    kept.
    """
    recent = files.recent()
    for days in sorted({days for _, days in recent}):
        keys = [key for key in recent if key[1] == days]
        newest = files.read(keys[-1]).select("k", "system").unique()
        k = int(newest["k"].max())  # type: ignore[arg-type]
        shadows = sorted({*newest["system"]} - {DELIVERED})
        if not shadows:
            continue
        nights, total = 0, None
        for key in keys:
            sums = _sums(files.read(key), shadows, k)
            if sums is not None:
                nights += 1
                total = sums if total is None else _added(total, sums)
        if total is not None:
            yield from _compared(total.sort("user_id"), shadows, days, k, nights, bootstrap)


def _sums(outcomes: pl.DataFrame, shadows: Sequence[str], k: int) -> pl.DataFrame | None:
    """Metrics of one night: user_id, nights, and SYSTEM/METRIC, of users with lists by all systems; None without any."""
    own = outcomes.filter((pl.col("k") == k) & (pl.col("list_length") > 0)).sort("user_id")
    systems = {name: own.filter(pl.col("system") == name) for name in (DELIVERED, *shadows)}
    users = systems[DELIVERED].select("user_id")
    for name in shadows:
        users = users.join(systems[name], on="user_id", how="semi", maintain_order="left")
    if not len(users):
        return None
    columns = {"nights": np.ones(len(users))}
    for name, rows in systems.items():
        values = metrics_of(rows.join(users, on="user_id", how="semi", maintain_order="left"), by_place=False)
        columns |= {f"{name}/{metric}": values[f"{metric}@{k}"] for metric in COMPARED}
    return users.with_columns(pl.Series(name, column) for name, column in columns.items())


def _added(one: pl.DataFrame, other: pl.DataFrame) -> pl.DataFrame:
    """Sums of two tables by user."""
    return pl.concat([one, other]).group_by("user_id").sum()


def _compared(
    total: pl.DataFrame, shadows: Sequence[str], days: float, k: int, nights: int, bootstrap: Bootstrap
) -> Iterator[ShadowDifference]:
    """Differences from sums by user; a user's mean weighs as many nights as it is of."""
    weight = total["nights"].to_numpy()
    systems = (
        (name, {metric: total[f"{name}/{metric}"].to_numpy() / weight for metric in COMPARED})
        for name in (DELIVERED, *shadows)
    )
    units, weights = bootstrap.units(np.arange(len(total))), dict.fromkeys(COMPARED, weight)
    compared = SystemComparison.of(systems, units, bootstrap.resamples, bootstrap.seed, weights)
    for shadow, paired in compared.compared(DELIVERED).items():
        for metric in COMPARED:
            one = paired[metric]
            numbers = (one.difference, one.low, one.high, one.p_bootstrap_holm, one.verdict)
            yield ShadowDifference(shadow, days, f"{metric}@{k}", nights, len(total), *numbers)
