"""Nights whose item ids are text where the champion learned from integers; and nights whose report fails."""

import polars as pl
import pytest

from pipeline.artifacts.files import files_below, read_json
from tests.workdir import Workdir

NIGHTLY = ("run", "ingest", "features", "score", "--set", "score.model=champion")
AS_TEXT = ("--set", 'events.id_types="string"')


def lists(workdir: Workdir, *settings: str) -> pl.DataFrame:
    folder = workdir.artifact("score", "--set", "score.model=champion", *settings)
    table = pl.read_parquet(folder / "recommendations" / "*.parquet")
    return table.select("user_id", pl.col("item_id").cast(pl.String), "rank", "score").sort("user_id", "rank")


@pytest.mark.slow
def test_known_ids_are_the_same_as_text(copied: Workdir) -> None:
    assert copied(*NIGHTLY).code == 0
    night = copied(*NIGHTLY, *AS_TEXT)
    assert night.code == 0
    assert "drift: not compared: item_id was Int64 and is String" in night.err
    assert lists(copied, *AS_TEXT).equals(lists(copied))
    folder = copied.artifact("score", "--set", "score.model=champion", *AS_TEXT)
    manifest = read_json(folder / "manifest.json")
    assert manifest["unknown_items"] == manifest["new_items"] == 0
    assert "not compared" in manifest["drift"]["not_compared"]
    assert copied(*NIGHTLY, *AS_TEXT, "--set", "score.k=5").code == 0, "the night after"


def test_a_report_that_fails_leaves_the_lists(copied: Workdir) -> None:
    damaged = next(path for path in files_below(copied.artifact("evaluate")) if path.suffix == ".parquet")
    damaged.write_bytes(bytes(damaged.stat().st_size))
    night = copied("run", "score", "report", "--set", "score.k=4", "--set", "report.num_users=2")
    assert night.code == 0
    assert "report: left out" in night.err
    assert "lookback run evaluate --force" in night.err
    alone = copied("run", "report", "--set", "score.k=4", "--set", "report.num_users=2")
    assert alone.code == 1
