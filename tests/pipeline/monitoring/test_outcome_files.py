"""Outcomes by night and window, and the links of a later monitor to them."""

from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet

from pipeline.artifacts.store import Artifact
from pipeline.monitoring.ledger import DAY
from pipeline.monitoring.outcome_files import RECENT_NIGHTS, OutcomeFiles
from pipeline.monitoring.outcomes import columns
from pipeline.sections import DELIVERED
from tests.pipeline.monitoring.simulated_outcomes import FIRST, outcomes

NIGHTS = RECENT_NIGHTS + 2


def monitor(folder: Path) -> OutcomeFiles:
    """A committed artifact with outcomes of thirty nights in windows of a day and half a day."""
    artifact = Artifact(folder, "a" * 16)
    artifact.prepare(resume=False)
    files = OutcomeFiles(artifact.workspace)
    for night in range(NIGHTS):
        rows = outcomes(np.random.default_rng(night), 20, range(night, night + 1))
        files.write((FIRST + night * DAY, 1.0), rows)
        files.write((FIRST + night * DAY, 0.5), rows.with_columns(window_days=0.5))
    artifact.commit({})
    return OutcomeFiles(artifact.folder)


def test_files_are_read_as_one_table_and_one_by_one(tmp_path: Path) -> None:
    files = monitor(tmp_path)
    keys = files.all_keys()
    assert keys == [(FIRST + night * DAY, days) for night in range(NIGHTS) for days in (0.5, 1.0)]
    whole = pl.read_parquet(files.folder)
    assert len(whole) == files.num_rows() == len(pyarrow.parquet.read_table(files.folder))
    one = files.read(keys[3])
    assert one.equals(whole.filter(pl.col("log_time").dt.timestamp("us") == keys[3][0], window_days=1.0))
    assert files.rows_of(DELIVERED, keys[:3]).equals(pl.concat([files.read(key) for key in keys[:3]]))
    assert files.rows_of("popularity", keys).is_empty()
    assert files.read_if_any((FIRST - DAY, 1.0)) == []


def test_without_nights_there_is_an_empty_table(tmp_path: Path) -> None:
    files = OutcomeFiles(tmp_path)
    files.write_none(columns(pl.Int64()))
    assert pl.read_parquet(files.folder).schema == columns(pl.Int64())
    assert (files.all_keys(), files.num_rows()) == ([], 0)


def test_recent_nights_are_counted_by_window(tmp_path: Path) -> None:
    files = monitor(tmp_path)
    assert files.recent() == files.all_keys()[4:]
    assert files.recent(before=FIRST + 2 * DAY) == files.all_keys()[:4]


def test_a_later_monitor_links_and_changes_only_its_own(tmp_path: Path) -> None:
    before = monitor(tmp_path / "before")
    later = OutcomeFiles(tmp_path / "later")
    later.artifact.mkdir()
    assert later.link_from(before) == set()
    assert later.all_keys() == before.all_keys()
    assert all(later.path(key).samefile(before.path(key)) for key in before.all_keys())
    first, *_ = before.all_keys()
    rows = before.read(first)
    later.write(first, rows.head(1))
    assert before.read(first).equals(rows)
    assert len(later.read(first)) == 1
    assert len(later.linked) == len(before.all_keys()) - 1
    later.write(first, rows.clear())
    assert first not in later.all_keys()


def test_damaged_files_are_left_out_and_named(tmp_path: Path) -> None:
    """A changed byte is found in recent nights, a lost one in all."""
    before = monitor(tmp_path / "before")
    old, *_, recent = before.all_keys()
    before.path(old).write_bytes(before.path(old).read_bytes()[:-1])
    content = bytearray(before.path(recent).read_bytes())
    content[len(content) // 2] ^= 1
    before.path(recent).write_bytes(content)
    later = OutcomeFiles(tmp_path / "later")
    later.artifact.mkdir()
    assert later.link_from(before) == {old, recent}
    assert later.all_keys() == before.all_keys()[1:-1]
