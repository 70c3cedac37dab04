"""Realised metrics by night, window, system and segment, from the outcomes per user."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl

from features import schema
from models.evaluation.comparison import SystemComparison
from models.evaluation.metrics import Float64, metrics_of_ranks
from models.histories import Int64

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
OF_LISTS = pl.col("metric").str.contains("^(coverage|dislike_rate|utility)@")
"""Rows of metrics that are about all lists of a system, with or without an active user: never by segment or arm."""
MAX_UNITS = 10_000
"""Units of a bootstrap; their spread is known within 1 %, however many users there are."""
_BLOCK_ROWS = 2**16
METRICS = ("hit_rate", "ndcg", "recall", "mrr")
COMPARED = ("hit_rate", "ndcg")
"""Metrics in which delivered lists are compared with shadows, and arms with each other."""


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


def metrics_of(outcomes: pl.DataFrame, *, by_place: bool = True) -> dict[str, Float64]:
    """Metrics of each row [n] of outcomes of one list length k; NaN for users without a list, but for `reached`.

    hit_rate@k, ndcg@k, recall@k, mrr@k; place@p: whether the item at place p was taken; reached: whether there is a list.
    """
    k = int(outcomes["k"].max() or 1)  # type: ignore[arg-type]
    blocks = [_of_block(rows, k, by_place=by_place) for rows in outcomes.iter_slices(_BLOCK_ROWS)]
    blocks = blocks or [_of_block(outcomes, k, by_place=by_place)]
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def _of_block(outcomes: pl.DataFrame, k: int, *, by_place: bool) -> dict[str, Float64]:
    """`metrics_of` some rows [n]; each taken item is a number for a while."""
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
    """Rows of nights.parquet for outcomes: all users of each system and night, then every segment and arm; none of `OF_LISTS`."""
    parts = [pl.DataFrame(schema=COLUMNS)]
    for (log_time, days), night in outcomes.group_by(["log_time", "window_days"], maintain_order=True):
        facts = {"log_time": log_time, "window_days": days}
        parts += [frame(facts, rows) for rows in _systems(night, bootstrap)]
        for column in ("segment", "arm"):
            for (value,), own in (
                night.drop_nulls(column).sort(column).group_by([column], maintain_order=True)
            ):
                parts += [frame(facts | {column: value}, rows) for rows in _systems(own, bootstrap)]
    return pl.concat(parts)


def of_lists(facts: Mapping[str, object], name: str, values: Float64, bootstrap: Bootstrap) -> pl.DataFrame:
    """Row of a metric of lists [users with a list]: its mean over them.

    facts: log_time, window_days and system of the row.
    """
    own = SystemComparison.of(
        [("own", {name: values})],
        bootstrap.units(np.arange(len(values))),
        bootstrap.resamples,
        bootstrap.seed,
    )
    low, high = own.intervals("own")[name]
    figures = {"value": own.values("own")[name], "low": low, "high": high}
    row = {key: _finite(value) for key, value in figures.items()}
    return frame(facts, [{"metric": name, "users": len(values), **row}])


def frame(facts: Mapping[str, object], rows: list[dict[str, object]]) -> pl.DataFrame:
    """Rows of nights.parquet with the same facts; log_time as a time or in microseconds since the epoch."""
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
