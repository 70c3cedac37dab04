"""Differences of the delivered lists from shadows, from sums by user over nights."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from models.evaluation.comparison import SystemComparison
from pipeline.monitoring.ledger import DAY
from pipeline.monitoring.outcome_files import Key, OutcomeFiles
from pipeline.monitoring.series import Bootstrap, metrics_of
from pipeline.monitoring.shadow_differences import PairedSums, ShadowDifference
from tests.pipeline.monitoring.simulated_outcomes import FIRST, outcomes

BOOTSTRAP = Bootstrap(1000, 0)


def with_shadows(files: OutcomeFiles, night: int, *shadows: str) -> pl.DataFrame:
    """Write a night whose delivered lists hit more often than those of the shadows; returns its rows."""
    own = outcomes(np.random.default_rng(night), 60, range(night, night + 1))
    missed = pl.lit([], pl.List(pl.Int32))
    weak = own.with_columns(places=pl.when(pl.col("user_id") % 2 == 0).then("places").otherwise(missed))
    rows = pl.concat([own, *(weak.with_columns(system=pl.lit(name)) for name in shadows)])
    files.write((FIRST + night * DAY, 1.0), rows)
    return rows


def differences(files: OutcomeFiles) -> list[ShadowDifference]:
    """Differences from all files at once."""
    return [row for own in PairedSums.of_files(files, set(), ()) for row in own.differences(BOOTSTRAP)]


def test_user_nights_weigh_alike_and_users_are_resampled(tmp_path: Path) -> None:
    """As a comparison of all user-nights at once."""
    files = OutcomeFiles(tmp_path)
    rows = pl.concat([with_shadows(files, night, "popularity") for night in range(4)])
    found = {row.metric: row for row in differences(files)}
    systems = {
        name: rows.filter(system=name).sort("log_time", "user_id") for name in ("delivered", "popularity")
    }
    user = systems["delivered"]["user_id"].rank("dense").to_numpy().astype(np.int64)
    values = ((name, metrics_of(own, by_place=False)) for name, own in systems.items())
    compared = SystemComparison.of(values, user, BOOTSTRAP.resamples, BOOTSTRAP.seed).compared("delivered")
    for metric in ("hit_rate@10", "ndcg@10"):
        own, expected = found[metric], compared["popularity"][metric]
        assert (own.nights, own.users, own.verdict) == (4, user.max(), "better")
        assert own.difference == pytest.approx(expected.difference)
        assert (own.low, own.high) == pytest.approx((expected.low, expected.high))
        assert own.p_holm == pytest.approx(expected.p_bootstrap_holm)


def test_only_nights_with_every_shadow_of_the_newest_count(tmp_path: Path) -> None:
    files = OutcomeFiles(tmp_path)
    for night, shadows in enumerate((("a",), ("a", "b"), ("b",), ("a", "b"))):
        with_shadows(files, night, *shadows)
    rows = differences(files)
    assert {(row.shadow, row.nights) for row in rows} == {("a", 2), ("b", 2)}
    with_shadows(files, 4)
    assert differences(files) == []


def test_a_night_adds_to_the_sums_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only new and changed nights are read; a changed one, or other shadows, begin anew."""
    (tmp_path / "saved").mkdir()
    files = OutcomeFiles(tmp_path)
    for night in range(3):
        with_shadows(files, night, "popularity")
    PairedSums.save(tmp_path / "saved", PairedSums.of_files(files, set(), ()))
    before = PairedSums.load(tmp_path / "saved")
    with_shadows(files, 3, "popularity")
    keys, own_read, read = files.all_keys(), files.read, []
    (whole,) = PairedSums.of_files(files, set(), ())

    def reading(key: Key) -> pl.DataFrame:
        read.append(key)
        return own_read(key)

    monkeypatch.setattr(files, "read", reading)
    (added,) = PairedSums.of_files(files, {keys[3]}, before)
    assert set(read) == {keys[3]}
    assert added.nights == whole.nights
    assert added.num_compared == whole.num_compared == 4
    assert_frame_equal(added.table, whole.table)
    read.clear()
    (anew,) = PairedSums.of_files(files, {keys[0]}, before)
    assert set(read) == set(keys)
    assert_frame_equal(anew.table, whole.table)
    with_shadows(files, 4, "popularity", "other")
    (other,) = PairedSums.of_files(files, {files.all_keys()[4]}, before)
    assert (other.shadows, other.num_compared) == (("other", "popularity"), 1)
