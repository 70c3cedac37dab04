"""Intervals of many users, whose groups are resampled."""

import numpy as np
import polars as pl
import pytest

from pipeline.monitoring import series
from pipeline.monitoring.outcomes import columns
from pipeline.monitoring.series import Bootstrap

USERS = 40_000


def outcomes() -> pl.DataFrame:
    """Lists of two places for 40,000 users, a fifth of whom took the item at a random place."""
    drawn = np.random.default_rng(0).random(USERS)
    places = [[1 + int(number < 0.1)] if number < 0.2 else [] for number in drawn]
    facts = {
        "log_time": 0,
        "window_days": 1.0,
        "system": "delivered",
        "arm": None,
        "segment": None,
        "folder": "",
    }
    rows = pl.DataFrame({"user_id": np.arange(USERS), "k": 2, "list_length": 2, "taken": 1, "places": places})
    named = rows.with_columns(pl.lit(value).alias(name) for name, value in facts.items())
    return named.select(pl.col(name).cast(kind) for name, kind in columns(pl.Int64()).items())


def test_the_interval_of_many_users_is_that_of_a_share() -> None:
    """p +- 1.96 sqrt(p (1 - p) / n): 0.2 +- 0.0039."""
    table = series.figures(outcomes(), Bootstrap(1000, 0))
    row = table.filter(pl.col("metric") == "hit_rate@2").row(0, named=True)
    share, half = row["value"], 1.96 * np.sqrt(0.2 * 0.8 / USERS)
    assert (row["users"], share) == (USERS, pytest.approx(0.2, abs=3 * half))
    assert row["low"] == pytest.approx(share - half, abs=0.1 * half)
    assert row["high"] == pytest.approx(share + half, abs=0.1 * half)


def test_few_users_are_resampled_one_by_one() -> None:
    user = np.repeat(np.arange(series.MAX_UNITS), 2)
    assert Bootstrap(10, 0).units(user) is user
    units = Bootstrap(10, 0).units(np.arange(3 * series.MAX_UNITS))
    assert (np.bincount(units) == 3).all()
