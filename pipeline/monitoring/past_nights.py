"""Variance of a metric over the nights of delivered lists, from which an experiment is planned."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import polars as pl

from models.evaluation.metrics import Float64
from models.evaluation.power import NightlyVariance
from pipeline.monitoring.ledger import DAY
from pipeline.monitoring.series import metrics_of
from pipeline.sections import DELIVERED

MIN_NIGHTS = 2
_TOUCHING = 0.9
"""Distance of nights whose windows count as disjoint, in windows: the last event of a day comes now earlier, now later."""


@dataclass(frozen=True)
class PastNights:
    """Variance of a metric over nights whose windows do not overlap."""

    metric: str
    source: str
    """Nights and window in words"""
    every_days: float
    """Mean distance of the nights, to hundredths"""
    variance: NightlyVariance


def values_of(outcomes: pl.DataFrame, metric: str) -> Float64:
    """[n] metric of each row of outcomes; 0 for active users without a list, whom no list served."""
    return np.nan_to_num(metrics_of(outcomes)[metric], nan=0.0)


def spaced(times: Iterable[int], days: float) -> list[int]:
    """Nights (microseconds), oldest first, so far apart that their windows do not overlap, beginning with the oldest."""
    kept: list[int] = []
    for time in sorted(set(times)):
        if not kept or time - kept[-1] >= _TOUCHING * days * DAY:
            kept.append(time)
    return kept


def night_times(outcomes: pl.DataFrame) -> list[int]:
    """Distinct nights of outcomes, microseconds since the epoch."""
    return outcomes["log_time"].unique().dt.timestamp("us").to_list()


def of_outcomes(outcomes: pl.DataFrame, name: str, k: int | None = None) -> PastNights | None:
    """Variance of a metric (`ndcg`, of lists of k, by default the newest night's) over the delivered lists' nights.

    In the shortest window, whose nights overlap least. None for under two nights, or fewer than two users.
    """
    own = outcomes.filter(pl.col("system") == DELIVERED)
    own = own.filter(pl.col("window_days") == pl.col("window_days").min())
    if own.is_empty():
        return None
    k = int(own.sort("log_time")["k"][-1]) if k is None else k
    own, days = own.filter(pl.col("k") == k), float(own["window_days"][0])
    nights = spaced(night_times(own), days)
    own = own.filter(pl.col("log_time").dt.timestamp("us").is_in(nights))
    if len(nights) < MIN_NIGHTS or own["user_id"].n_unique() < 2:
        return None
    metric = f"{name}@{k}"
    user = own["user_id"].rank("dense").to_numpy().astype(np.int64)
    variance = NightlyVariance.of(values_of(own, metric), user, len(nights))
    every_days = round((nights[-1] - nights[0]) / DAY / (len(nights) - 1), 2)
    source = f"nights of delivered lists, within {days:g} day{'s' * (days != 1)}"
    return PastNights(metric, source, every_days, variance)
