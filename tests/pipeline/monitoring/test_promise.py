"""The promise of an evaluation in a shorter window, worked out by hand."""

import datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from pipeline.evaluation.report import NightsTested
from pipeline.monitoring import promise
from tests.evaluation_reports import evaluation_report

NIGHT = datetime.datetime(2026, 3, 1, tzinfo=datetime.UTC)


def test_ndcg_of_each_night_counts_only_items_within_the_window(tmp_path: Path) -> None:
    """First night: one user with ranks 1 and 12 in a day (and 2 later); second: ranks 2 and 30 of two users."""
    tested = NightsTested(NIGHT.isoformat(), NIGHT.isoformat(), 2, 3.0, 3.0)
    evaluation_report({"lookback": {"ndcg@10": 0.1}}, nights=tested).save(tmp_path)
    hour = datetime.timedelta(hours=1)
    second = NIGHT + 72 * hour
    rows = [
        ("lookback", NIGHT, 1, NIGHT + hour, 1.0),
        ("lookback", NIGHT, 1, NIGHT + 2 * hour, 12.0),
        ("lookback", NIGHT, 1, NIGHT + 30 * hour, 2.0),
        ("lookback", second, 1, second + hour, 2.0),
        ("lookback", second, 2, second + hour, 30.0),
        ("popularity", second, 2, second + hour, 1.0),
    ]
    names = ["system", "night", "user_id", "timestamp", "rank"]
    pl.DataFrame(rows, schema=names, orient="row").write_parquet(tmp_path / "targets.parquet")
    made = promise.of_evaluation(tmp_path, "lookback", [1.0, 7.0], 10)
    assert list(made) == ["1"], "seven days are beyond the evaluation's horizon"
    ideal = 1 + 1 / np.log2(3)
    assert made["1"].metric == "ndcg@10"
    assert made["1"].nights == pytest.approx((1 / ideal, (1 / np.log2(3) + 0) / 2))
