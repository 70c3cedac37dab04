"""Shadow lists of a real scoring: what they hold, that they are entered and never delivered."""

import json
import shutil

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


@pytest.mark.slow
def test_a_registered_model_beside_the_champion(copied: Workdir) -> None:
    """The lists of models:/NAME/2 are those that it makes by itself; one that cannot be opened costs a line."""
    copied.run("publish", "--set", "publish.system=popularity", "--set", "evaluate.gate=true")
    own = copied.run("score", "--set", "score.model=models:/lookback-tiny/2")
    night = (
        *("run", "monitor", "score", "--set", "score.model=champion", "--set"),
        'score.shadows=["models:/lookback-tiny/2", "models:/lookback-tiny/7", "popularity"]',
    )
    ended = copied(*night)
    assert ended.code == 0, ended.err
    assert "shadow models:/lookback-tiny/7: left out, " in ended.err
    folder = copied.artifact("score", *night[3:])
    alone = pl.read_parquet(copied.folder / own["folder"] / "recommendations" / "*.parquet").drop("because")
    beside = pl.read_parquet(folder / "shadows" / "lookback-tiny-2" / "*.parquet").drop("because")
    assert beside.equals(alone)
    assert (
        pl.read_parquet(folder / "recommendations" / "*.parquet")["item_id"].to_list()
        != alone["item_id"].to_list()
    )
    ledger = pl.read_parquet(folder.parent / "deliveries.parquet")
    rows = ledger.filter(pl.col("folder") == folder.name).select("shadow", "model_version")
    assert rows.rows() == [(None, 1), ("lookback-tiny-2", 2), ("popularity", None)]

    digest = json.loads((folder / "manifest.json").read_text())["shadows"]["lookback-tiny-2"]["bundle_digest"]
    copies = [
        path
        for path in copied.folder.rglob("bundle.json")
        if json.loads(path.read_text())["digest"] == digest
    ]
    assert len(copies) == 3, "of the stage, of the registry, of the night before"
    for path in copies:
        shutil.rmtree(path.parent)
    ended = copied(*night, "--set", "score.k=5")
    assert ended.code == 0, ended.err
    assert "shadow models:/lookback-tiny/2: left out, " in ended.err
    folder = copied.artifact("score", *night[3:], "--set", "score.k=5")
    assert [path.name for path in (folder / "shadows").iterdir()] == ["popularity"]
