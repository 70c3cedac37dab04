"""Items that came after training are told from what is said about them, and recommended the same night."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from features import content
from features.histories.vocabulary import Vocabulary
from features.settings import ContentSettings
from models.encoder.embeddings import ItemContent
from models.encoder.encoder import AttentionRecommender, Encoder
from models.retrieval import build
from models.retrieval.build import build_index
from models.settings.encoder import EncoderSettings
from models.settings.index import IndexFacts
from pipeline.serving import new_item_catalogue
from pipeline.serving.bundle import Bundle
from tests.workdir import Workdir

TASTES = ("cold", "hot", "salt", "sour")
EACH = 10
"""Items of each taste: the item at position p is of taste p // 10."""


def planted(folder: Path, *, item_content: bool) -> Bundle:
    """A user is the mean of his items; an item's vector is its taste's, and a little of its own."""
    ids = [f"{taste}-{number}" for taste in TASTES for number in range(EACH)]
    tastes = np.repeat(np.arange(4), EACH)
    table = pl.DataFrame({"item_id": ids, "categories": [[TASTES[taste]] for taste in tastes]})
    content.build(folder, table, np.ones(len(ids), bool), ContentSettings())
    settings = EncoderSettings(
        dim=8, num_heads=1, block="pooling", num_blocks=0, readout="mean", item_content=item_content
    )
    said = None
    if item_content:
        categories = np.concatenate(([0], tastes + 1))[:, None].astype(np.int32)
        said = ItemContent(np.zeros((41, 0), np.float32), categories, 4, np.ones(41, bool))
    encoder = Encoder(settings, 40, 0, 20, content=said).eval()
    directions = 3 * np.eye(8, dtype=np.float32)[[0, 2, 4, 6]]
    noise = np.random.default_rng(0).normal(scale=0.1, size=(41, 8)).astype(np.float32)
    noise[0] = 0
    with torch.no_grad():
        own = noise if item_content else noise + np.concatenate((np.zeros((1, 8)), directions[tastes]))
        encoder.items.ids.weight[:] = torch.from_numpy(own.astype(np.float32))  # type: ignore[union-attr]
        if item_content:
            encoder.items.categories.weight[1:] = torch.from_numpy(directions)  # type: ignore[union-attr]
    vectors = encoder.item_vectors().detach().numpy()[1:]
    late = pl.DataFrame({"item_id": ["early-sour"], "categories": [["sour"]], "in_table": [True]})
    worth = new_item_catalogue.write(
        folder, encoder.items.all().detach().numpy()[1:], late, reads_content=item_content
    )
    assert (worth is None) is item_content
    assert worth is None or worth.r2 > 0.9
    table.select("item_id", title=pl.col("item_id")).write_parquet(folder / "items.parquet")
    exact = build_index(vectors, np.arange(1, 41, dtype=np.int32))
    counts = np.concatenate(([0], np.ones(40))).astype(np.float32)
    description = {"newest": 0, "event_types": []}
    return Bundle(
        description, Vocabulary(pl.Series(ids), 1), counts, AttentionRecommender(encoder), exact, folder
    )


@pytest.mark.parametrize("item_content", [False, True], ids=["by a map", "by the model"])
def test_who_likes_its_like_gets_a_new_item_the_same_night(tmp_path: Path, item_content: bool) -> None:
    bundle = planted(tmp_path, item_content=item_content)
    tonight = pl.DataFrame(
        {
            "item_id": ["new-hot", "new-mystery", "new-sour"],
            "title": ["H", "M", "S"],
            "categories": [["hot"], ["never heard of"], ["sour", "never heard of"]],
        }
    )
    night = new_item_catalogue.extended(bundle, tonight)
    assert night.num_added == 2
    assert night.items.ids.to_list()[-2:] == ["new-hot", "new-sour"], (
        "nothing known is said about the mystery"
    )
    likes_hot, likes_sour = ([f"{taste}-{number}" for number in range(8)] for taste in ("hot", "sour"))
    lists = [items for items, _ in night.recommend_item_lists([likes_hot, likes_sour], 3)]
    assert sorted(lists[0]) == ["hot-8", "hot-9", "new-hot"]
    assert sorted(lists[1]) == ["new-sour", "sour-8", "sour-9"]
    histories, unknown = night.from_ids([["new-hot", "new-mystery"]])
    assert (histories.lengths.tolist(), unknown) == ([1], 1), "it counts in histories too"
    ((found, _),) = night.recommend_item_lists([["new-hot"]], 5)
    assert all(item.startswith("hot") for item in found)
    assert night.titles.to_list()[-2:] == ["H", "S"]
    assert len(bundle.items) == 40, "the bundle itself stays as it was"
    everything = new_item_catalogue.extended(bundle, tonight).recommend_item_lists([likes_hot], 100)[0][0]
    assert len(everything) == 34


@pytest.mark.parametrize("length", [0.1, 10.0], ids=["too short a graph", "room in the graph"])
def test_an_index_that_cannot_take_a_new_item_is_built_anew_and_says_so(
    tmp_path: Path, length: float
) -> None:
    bundle = planted(tmp_path, item_content=False)
    assert bundle.index is not None
    vectors = length * bundle.index.vectors
    facts = IndexFacts("hnsw", {"num_refined": 0}, num_built=40)
    graph = replace(bundle.index, index=build._trained("hnsw", vectors), vectors=vectors, facts=facts)
    tonight = pl.DataFrame({"item_id": ["new-hot"], "categories": [["hot"]]})
    night = new_item_catalogue.extended(replace(bundle, index=graph), tonight)
    assert night.index is not None
    assert night.has_other_index is (length < 1)
    assert night.index.facts.type == ("exact" if length < 1 else "hnsw")
    assert night.index.num_items == 41
    assert not bundle.has_other_index


def test_what_was_new_when_the_bundle_was_made_is_served(tmp_path: Path) -> None:
    served = new_item_catalogue.with_catalogue(planted(tmp_path, item_content=False))
    assert served.items.ids[-1] == "early-sour"
    ((found, _),) = served.recommend_item_lists([[f"sour-{number}" for number in range(8)]], 3)
    assert sorted(found) == ["early-sour", "sour-8", "sour-9"]


def test_items_that_neither_log_nor_table_had_are_counted(tmp_path: Path) -> None:
    log, table = tmp_path / "log.parquet", tmp_path / "items.parquet"
    pl.DataFrame({"item_id": [1, 2]}).write_parquet(log)
    ids = pl.Series([2, 3, 4])
    assert new_item_catalogue.num_new(ids, log, table) == 2
    pl.DataFrame({"item_id": ["4"]}).write_parquet(table)
    assert new_item_catalogue.num_new(ids, log, table) == 1
    log.unlink()
    with pytest.raises(OSError, match=r"log\.parquet"):
        new_item_catalogue.num_new(ids, log, table)


@pytest.mark.slow
def test_tonight_s_items_of_the_table_and_the_log(copied: Workdir) -> None:
    """Two further rows of the items' table, one of which says nothing: the champion scores with the other."""
    raw = copied.folder / "data" / "tiny" / "raw" / "items.csv"
    with raw.open() as file:
        table = list(csv.DictReader(file))
    like = {**table[0], "item_id": "99991"}
    bare = dict.fromkeys(table[0], "") | {"item_id": "99992"}
    with (copied.folder / "more.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(table[0]))
        writer.writeheader()
        writer.writerows([*table, like, bare])
    settings = ("--set", "items.path=more.csv", "--set", "score.model=champion", "--set", "score.k=101")
    summary = copied.run("score", *settings)
    folder = copied.folder / summary["folder"]
    found = json.loads((folder / "manifest.json").read_text())
    given = pl.read_parquet(folder / "recommendations" / "*.parquet")
    numbers = given.filter(pl.col("item_id").cast(pl.String) == "99991")
    assert found["new_items"] == found["new_items_since_last_night"] == 1
    assert ", 1 new items since the last night, " in summary["summary"]
    assert found["new_item_recommendations"] == len(numbers) == found["users"]
    assert not given["item_id"].cast(pl.String).is_in(["99992"]).any()
    without = copied.run("score", *settings, "--set", "score.new_items=false")
    assert json.loads((copied.folder / without["folder"] / "manifest.json").read_text())["new_items"] == 0
