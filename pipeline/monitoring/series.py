"""Realised metrics by night, window, system and segment, from the outcomes per user."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl

from features import schema
from models.evaluation.comparison import SystemComparison
from models.evaluation.metrics import Float64, metrics_of_ranks
from models.histories import Int64
from pipeline.sections import DELIVERED

FILE = "nights.parquet"
COLUMNS = {
    "log_time": schema.TIME,
    "window_days": pl.Float64(),
    "system": pl.String(),
    "arm": pl.String(),
    "segment": pl.String(),
    "metric": pl.String(),
    "value": pl.Float64(),
    "low": pl.Float64(),
    "high": pl.Float64(),
    "users": pl.Int64(),
}
"""Columns of nights.parquet. arm null: all arms; segment null: all users; low, high: 95 % bootstrap interval over users, null
for coverage."""
MAX_UNITS = 10_000
"""Units of a bootstrap; their spread is known within 1 %, however many users there are."""
METRICS = ("hit_rate", "ndcg", "recall", "mrr")
COMPARED = ("hit_rate", "ndcg")
"""Metrics in which delivered lists are compared with shadows."""


@dataclass(frozen=True)
class Bootstrap:
    """Size and seed of the bootstrap over users."""

    resamples: int
    seed: int

    def units(self, user: Int64) -> Int64:
        """[n] what is resampled for rows of users 0.. [n]: users, of more than MAX_UNITS random groups of equal size.

        Totals of random groups have the variance of their users' values, so intervals stay what they are.
        """
        num_users = int(user.max(initial=-1)) + 1
        if num_users <= MAX_UNITS:
            return user
        group: Int64 = np.random.default_rng(self.seed).permutation(num_users) % MAX_UNITS
        return group[user]


@dataclass(frozen=True)
class ShadowDifference:
    """Delivered lists minus those of a shadow, over the same active users of all nights with both."""

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


def metrics_of(outcomes: pl.DataFrame, *, by_place: bool = True) -> dict[str, Float64]:
    """Metrics of each row [n] of outcomes of one list length k; NaN for users without a list, but for `reached`.

    hit_rate@k, ndcg@k, recall@k, mrr@k; place@p: whether the item at place p was taken; reached: whether there is a list.
    """
    k = int(outcomes["k"].max() or 1)  # type: ignore[arg-type]
    num = len(outcomes)
    row = np.repeat(np.arange(num), outcomes["places"].list.len().to_numpy())
    place = outcomes["places"].explode(empty_as_null=False).to_numpy().astype(np.float64)
    missed = np.maximum(outcomes["taken"].to_numpy().astype(np.int64) - np.bincount(row, minlength=num), 0)
    rank = np.concatenate((place, np.full(int(missed.sum()), np.inf)))
    request = np.concatenate((row, np.repeat(np.arange(num), missed)))
    of_ranks = metrics_of_ranks(rank, (k,), request, num)
    values = {f"{name}@{k}": np.asarray(of_ranks[f"{name}@{k}"], np.float64) for name in METRICS}
    for number in range(1, k + 1) if by_place else ():
        own = np.zeros(num)
        own[row[place == number]] = 1.0
        values[f"place@{number}"] = own
    is_reached = outcomes["list_length"].to_numpy() > 0
    values = {name: np.where(is_reached, value, np.nan) for name, value in values.items()}
    return {"reached": is_reached.astype(np.float64), **values}


def figures(outcomes: pl.DataFrame, bootstrap: Bootstrap) -> pl.DataFrame:
    """Rows of nights.parquet for outcomes: all users of each system and night, then every segment and arm; without coverage."""
    parts = [pl.DataFrame(schema=COLUMNS)]
    for (log_time, days), night in outcomes.group_by(["log_time", "window_days"], maintain_order=True):
        facts = {"log_time": log_time, "window_days": days}
        parts += [_frame(facts, rows) for rows in _systems(night, bootstrap)]
        for column in ("segment", "arm"):
            for (value,), own in (
                night.drop_nulls(column).sort(column).group_by([column], maintain_order=True)
            ):
                parts += [_frame(facts | {column: value}, rows) for rows in _systems(own, bootstrap)]
    return pl.concat(parts)


def _frame(facts: Mapping[str, object], rows: list[dict[str, object]]) -> pl.DataFrame:
    return pl.DataFrame([{**facts, **row} for row in rows], schema=COLUMNS)


def _systems(night: pl.DataFrame, bootstrap: Bootstrap) -> Iterator[list[dict[str, object]]]:
    """Metrics of each system of one night, resampled by the same draws of users."""
    for (system,), own in night.sort("user_id").group_by(["system"], maintain_order=True):
        values, units = metrics_of(own), bootstrap.units(np.arange(len(own)))
        compared = SystemComparison.of([("own", values)], units, bootstrap.resamples, bootstrap.seed)
        means, intervals = compared.values("own"), compared.intervals("own")
        yield [
            {
                "system": system,
                "metric": name,
                "value": _finite(means[name]),
                "low": _finite(intervals[name][0]),
                "high": _finite(intervals[name][1]),
                "users": int(np.count_nonzero(~np.isnan(values[name]))),
            }
            for name in values
        ]


def _finite(value: float) -> float | None:
    return None if np.isnan(value) else value


def differences(outcomes: pl.DataFrame, bootstrap: Bootstrap) -> Iterator[ShadowDifference]:
    """Differences of the delivered lists from every shadow of the newest night, over all nights with them, for each window.

    Paired by user and night, at the newest night's list length; whole users are resampled.
    """
    pairs = ["log_time", "window_days", "user_id"]
    for days in outcomes["window_days"].unique().sort():
        window = outcomes.filter(pl.col("window_days") == days)
        newest = window.filter(pl.col("log_time") == pl.col("log_time").max())
        k = int(newest["k"].max())  # type: ignore[arg-type]
        own = window.filter((pl.col("k") == k) & (pl.col("list_length") > 0))
        names = newest.filter(pl.col("system") != DELIVERED)["system"].unique().sort()
        shadows = {name: own.filter(pl.col("system") == name) for name in names}
        yield from _of_window(own, shadows, pairs, float(days), k, bootstrap)


def _of_window(
    own: pl.DataFrame,
    shadows: Mapping[str, pl.DataFrame],
    pairs: list[str],
    days: float,
    k: int,
    bootstrap: Bootstrap,
) -> Iterator[ShadowDifference]:
    """Differences in one window on the user-nights that the delivered lists and all shadows have."""
    common = own.filter(pl.col("system") == DELIVERED)
    for rows in shadows.values():
        common = common.join(rows.select(pairs), on=pairs, how="semi")
    if not shadows or not len(common):
        return
    common = common.sort(pairs)
    systems = {DELIVERED: common} | {
        name: rows.join(common.select(pairs), on=pairs, how="semi").sort(pairs)
        for name, rows in shadows.items()
    }
    names = [f"{name}@{k}" for name in COMPARED]
    metrics = ((name, metrics_of(rows, by_place=False)) for name, rows in systems.items())
    values = ((name, {key: own[key] for key in names}) for name, own in metrics)
    user = common["user_id"].rank("dense").to_numpy().astype(np.int64)
    compared = SystemComparison.of(values, bootstrap.units(user), bootstrap.resamples, bootstrap.seed)
    nights, users = common["log_time"].n_unique(), common["user_id"].n_unique()
    for shadow, paired in compared.compared(DELIVERED).items():
        for name in names:
            one = paired[name]
            numbers = (one.difference, one.low, one.high, one.p_bootstrap_holm, one.verdict)
            yield ShadowDifference(shadow, days, name, nights, users, *numbers)
