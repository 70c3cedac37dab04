"""Variance over the nights of delivered lists: by pencil, and on nights whose windows do not overlap."""

import numpy as np
import polars as pl
import pytest

from models.evaluation.power import NightlyVariance
from pipeline.monitoring.ledger import DAY
from pipeline.monitoring.past_nights import of_outcomes, spaced
from pipeline.monitoring.series import metrics_of
from tests.pipeline.monitoring.simulated_outcomes import outcomes


def test_nights_whose_windows_touch_count_as_apart() -> None:
    """The last event of a day is at 23:50, then at 22:30: 22 hours and 40 minutes are a day, 20 hours are none."""
    minutes = [1430, 1430 + 1360, 1430 + 1360 + 1200, 1430 + 3 * 1440]
    times = [minute * DAY // 1440 for minute in minutes]
    assert spaced(times[::-1], 1.0) == [times[0], times[1], times[3]]
    assert spaced([day * DAY for day in range(20)], 7) == [0, 7 * DAY, 14 * DAY]
    assert spaced([], 7) == []


def test_the_variance_is_that_of_the_users_values() -> None:
    table = outcomes(np.random.default_rng(0), 300, range(4))
    found = of_outcomes(table, "ndcg")
    assert found is not None
    assert (found.metric, found.source, found.every_days) == (
        "ndcg@10",
        "nights of delivered lists, within 1 day",
        1.0,
    )
    values, users = metrics_of(table)["ndcg@10"], table["user_id"].to_numpy()
    assert found.variance == NightlyVariance.of(values, users, 4)


def test_users_without_a_list_count_as_missed_and_shadows_not_at_all() -> None:
    table = outcomes(np.random.default_rng(1), 300, range(3))
    without = pl.col("user_id") % 2 == 0
    unserved = table.with_columns(
        list_length=pl.when(without).then(0).otherwise("list_length").cast(pl.Int32),
        places=pl.when(without).then(pl.lit([], pl.List(pl.Int32))).otherwise("places"),
    )
    shadow = table.with_columns(system=pl.lit("popularity"), log_time=pl.col("log_time").dt.offset_by("9d"))
    found = of_outcomes(pl.concat([unserved, shadow]), "hit_rate")
    assert found is not None
    hits = table.filter(~without)["places"].list.len().sum()
    assert found.variance.mean == pytest.approx(hits / len(table))
    assert found.variance.nights == 3


def test_the_shortest_window_and_the_length_asked_for() -> None:
    table = outcomes(np.random.default_rng(2), 300, range(4))
    long = table.with_columns(window_days=7.0, taken=pl.lit(3, pl.Int32))
    newest = pl.col("log_time") == table["log_time"].max()
    shorter = table.with_columns(k=pl.when(newest).then(5).otherwise("k").cast(pl.Int32))
    own, other = of_outcomes(table, "ndcg"), of_outcomes(pl.concat([table, long]), "ndcg")
    assert own == other
    assert of_outcomes(shorter, "ndcg") is None, "a single night has lists of five"
    found = of_outcomes(shorter, "ndcg", 10)
    assert found is not None
    assert found.variance.nights == 3
    assert of_outcomes(table.clear(), "ndcg") is None
