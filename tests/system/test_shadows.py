"""Shadow lists of a real scoring: what they hold, that they are entered and never delivered."""

import polars as pl
import pytest

from tests.workdir import Workdir


@pytest.mark.slow
def test_popularity_beside_the_delivered_lists(copied: Workdir) -> None:
    """Each user's ten most frequent items that are new to the user, by plain counts; `previous` has no model yet."""
    delivered = copied.folder / copied.run("score")["folder"]
    ended = copied("run", "score", "--set", 'score.shadows=["popularity", "previous"]')
    assert ended.code == 0, ended.err
    assert (
        "shadow previous: left out, registered models are scored beside score.model = champion" in ended.err
    )
    folder = copied.artifact("score", "--set", 'score.shadows=["popularity", "previous"]')
    assert [path.name for path in (folder / "shadows").iterdir()] == ["popularity"]
    own = pl.read_parquet(folder / "recommendations" / "*.parquet")
    assert own.equals(pl.read_parquet(delivered / "recommendations" / "*.parquet"))
    lists = pl.read_parquet(folder / "shadows" / "popularity" / "*.parquet")
    assert lists.columns == own.columns
    assert lists["probability"].null_count() == len(lists)
    log = pl.read_parquet(copied.artifact("ingest") / "events" / "*.parquet")
    counts = log.group_by("item_id").len("number").sort("number", descending=True)
    seen = log.select("user_id", "item_id").unique()
    for user in lists["user_id"].unique().sort().head(5):
        new = counts.join(seen.filter(pl.col("user_id") == user), on="item_id", how="anti")["number"].head(10)
        assert lists.filter(pl.col("user_id") == user)["score"].to_list() == new.to_list()
    ledger = pl.read_parquet(folder.parent / "deliveries.parquet")
    rows = ledger.filter(pl.col("folder") == folder.name).select("shadow", "model_version")
    assert rows.rows() == [(None, 1), ("popularity", None)]
    assert ledger["folder"].n_unique() == 2
