"""Tables of similar and popular items, worked out by hand."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from features.histories.vocabulary import Vocabulary
from models.recommendation.answer import Candidates
from pipeline.serving import item_tables
from pipeline.serving.item_tables import popular_items, write_similar
from pipeline.serving.popularity_fallback import Popularity

VOCABULARY = Vocabulary(pl.Series("item_id", ["a", "b", "c"]), 1)
ITEMS = np.array([1, 2, 3], np.int32)


def lists(*items: list[int]) -> Candidates:
    """Lists with scores that fall from 1."""
    found = np.array(items, np.int32)
    scores = np.where(found > 0, 1 - np.arange(found.shape[1]) / 4, -np.inf)
    return found, scores.astype(np.float32)


@pytest.mark.parametrize("items_per_group", [1, 2, 50_000])
def test_a_row_is_a_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, items_per_group: int) -> None:
    monkeypatch.setattr(item_tables, "_ROW_GROUP_ITEMS", items_per_group)
    of_kind = {"model": lists([2, 3], [0, 0], [1, 0]), "vectors": lists([3, 0], [3, 1], [2, 0])}
    counts = write_similar(tmp_path / "similar.parquet", VOCABULARY, ITEMS, of_kind.items())
    assert counts == {"model": 2, "vectors": 3}
    table = pl.read_parquet(tmp_path / "similar.parquet")
    types = {"item_id": pl.String, "similar_item_id": pl.String, "rank": pl.Int32, "score": pl.Float32}
    assert table.schema == types | {"kind": pl.String}
    assert table.rows() == [
        ("a", "b", 1, 1.0, "model"),
        ("a", "c", 2, 0.75, "model"),
        ("c", "a", 1, 1.0, "model"),
        ("a", "c", 1, 1.0, "vectors"),
        ("b", "c", 1, 1.0, "vectors"),
        ("b", "a", 2, 0.75, "vectors"),
        ("c", "b", 1, 1.0, "vectors"),
    ]


def test_an_empty_catalogue_has_an_empty_table(tmp_path: Path) -> None:
    nothing = Vocabulary(pl.Series("item_id", [], dtype=pl.Int64), 1)
    none = np.zeros((0, 2), np.int32), np.zeros((0, 2), np.float32)
    assert write_similar(tmp_path / "similar.parquet", nothing, ITEMS[:0], [("model", none)]) == {"model": 0}
    table = pl.read_parquet(tmp_path / "similar.parquet")
    assert table.is_empty()
    assert table["similar_item_id"].dtype == pl.Int64


def test_popular_items_of_each_segment_and_of_all_users() -> None:
    scores = np.array([[0, 0.5, 0.25, 0], [0, 0.1, 0.7, 0]], np.float32)
    popularity = Popularity(["young"], scores)
    assert popular_items(popularity, VOCABULARY, 3).rows() == [
        (None, "a", 1, 0.5),
        (None, "b", 2, 0.25),
        ("young", "b", 1, pytest.approx(0.7)),
        ("young", "a", 2, pytest.approx(0.1)),
    ]
    allowed = np.array([False, True, False, True])
    assert popular_items(popularity, VOCABULARY, 1, allowed)["item_id"].to_list() == ["a", "a"]
