"""Items that came after training: those about which something is said get a vector from it, and are recommended the same night.

A model that reads content (`model.item_content`) has vectors for them by itself. For others the bundle holds a map from content
to its vectors (content_map.safetensors). catalogue/ has the items unknown to it when it was made, and their features.
"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from features import content, schema
from features.content import FOLDER, Content, ContentEncoder
from models.encoder.encoder import AttentionRecommender
from models.encoder.extend import with_items
from models.histories import Float32
from models.retrieval.build import extend_index
from models.retrieval.content_map import ContentMap, ContentMapAccuracy
from pipeline.dataset.item_features import all_features, dense_features, padded_categories, says_something
from models.retrieval.content_map import ContentMap, Worth
from pipeline.dataset.item_features import all_features, dense_features, has_content, padded_categories
from pipeline.serving.catalogue import CATALOGUE, ITEMS, Added

if TYPE_CHECKING:
    from pipeline.serving.bundle import Bundle


def unknown_to(known: pl.Series, log_ids: pl.Series, items: Path) -> pl.DataFrame:
    """item_id and content of the items of a log or of an items' table that are not `known`, sorted by id."""
    ids = [log_ids.rename(schema.ITEM_ID)]
    if items.exists():
        ids.append(schema.read(items, schema.ITEMS, [schema.ITEM_ID])[schema.ITEM_ID].cast(log_ids.dtype))
    others = pl.concat(ids).unique().to_frame()
    own = known.rename(schema.ITEM_ID).cast(log_ids.dtype).to_frame()
    return content.aligned(others.join(own, on=schema.ITEM_ID, how="anti")[schema.ITEM_ID].sort(), items)


def write(
    bundle: Path, vectors: Float32, table: pl.DataFrame, *, reads_content: bool
) -> ContentMapAccuracy | None:
    """catalogue/, and for a model that reads no content the map from the deployed items' content to `vectors` [n, d].

    table: `unknown_to` the bundle. Returns what the map is worth; None where there is none.
    """
    (bundle / CATALOGUE).mkdir()
    added, found = _said(bundle, table)
    added.select(schema.ITEM_ID, _title(added)).write_parquet(bundle / CATALOGUE / ITEMS)
    found.save(bundle / CATALOGUE)
    if reads_content:
        return None
    own = Content.load(bundle / FOLDER)
    positions = np.arange(1, own.num_items + 1)
    said = positions[has_content(own)[1:]]
    fitted = ContentMap.fit(all_features(own, said), vectors[said - 1])
    if fitted is None:
        return None
    fitted[0].save(bundle)
    return fitted[1]


def with_catalogue(bundle: "Bundle") -> "Bundle":
    """The bundle with the items that were new when it was made."""
    folder = bundle.folder / CATALOGUE
    return (
        _extended(bundle, pl.read_parquet(folder / ITEMS), Content.load(folder))
        if folder.exists()
        else bundle
    )


def extended(bundle: "Bundle", table: pl.DataFrame) -> "Bundle":
    """The bundle with those items of `table` (item_id and content) about which something is said, numbered behind its own.

    The same bundle where there is none, or where it cannot tell vectors from content.
    """
    return _extended(bundle, *_said(bundle.folder, table)) if (bundle.folder / FOLDER).exists() else bundle


def _said(bundle: Path, table: pl.DataFrame) -> tuple[pl.DataFrame, Content]:
    """The rows of a table about which something is said that the bundle's items know, and their features."""
    reader = ContentEncoder.load(bundle / FOLDER / "encoder")
    table = table.filter(pl.Series(has_content(reader.transform(table))[1:]))
    return table, reader.transform(table)


def _title(table: pl.DataFrame) -> pl.Series:
    nothing = pl.Series(schema.TITLE, [None], dtype=pl.String)
    return table[schema.TITLE] if schema.TITLE in table else nothing.new_from_index(0, len(table))


def _extended(bundle: "Bundle", table: pl.DataFrame, found: Content) -> "Bundle":
    """The bundle with the items of a table, of which `found` are the features."""
    encoder = bundle.recommender.encoder
    by_content = encoder.settings.item_content
    told_by = None if by_content else ContentMap.load(bundle.folder)
    if (not by_content and told_by is None) or not len(table):
        return bundle
    new = np.arange(1, len(table) + 1)
    vectors = None if told_by is None else told_by(all_features(found, new))
    grown = with_items(encoder, vectors, dense_features(found, new), padded_categories(found, new))
    numbers = np.arange(len(bundle.items) + 1, len(bundle.items) + len(table) + 1, dtype=np.int32)
    searched = grown.item_vectors()[numbers].detach().float().numpy()
    index, is_built_anew = extend_index(
        bundle.index, searched, numbers
    )  # exact then: nobody to tune another on
    return replace(
        bundle,
        items=bundle.items.added(table[schema.ITEM_ID]),
        num_events=np.concatenate([bundle.num_events, np.zeros(len(table), np.float32)]),
        recommender=AttentionRecommender(grown),
        index=index,
        added=Added(found, _title(table), is_built_anew),
    )
