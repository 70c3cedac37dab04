"""Items newer than the training, recommended by vectors from their content.

A model that reads content (`model.item_content`) computes the vectors itself; for others the bundle holds a map from content
to its vectors (content_map.safetensors). catalogue/ has the items unknown to the model at publication, and their features.
"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from features import content, schema
from features.content import FOLDER, Content, ContentEncoder
from features.events.ids import have_form_of
from features.histories.vocabulary import Vocabulary
from models.encoder.encoder import AttentionRecommender
from models.encoder.extend import with_items
from models.histories import Float32, Int64
from models.retrieval.build import extend_index
from models.retrieval.content_map import ContentMap, ContentMapAccuracy
from pipeline.dataset.item_features import (
    all_features,
    dense_features,
    has_content,
    padded_categories,
)
from pipeline.serving.catalogue import CATALOGUE, ITEMS, Added

if TYPE_CHECKING:
    from pipeline.serving.bundle import Bundle


def unknown_to(known: pl.Series, log_ids: pl.Series, items: Path) -> pl.DataFrame:
    """item_id and content of items of a log or an items' table that are not `known`, sorted by id.

    Of the table's items only those count whose ids look like the log's.
    """
    ids = [log_ids.rename(schema.ITEM_ID)]
    if items.exists():
        table = schema.read(items, schema.ITEMS, [schema.ITEM_ID])[schema.ITEM_ID].cast(log_ids.dtype)
        ids.append(table.filter(have_form_of(table, log_ids)))
    others = pl.concat(ids).unique().to_frame()
    is_new = Vocabulary(known, 1).encode_known(others[schema.ITEM_ID])[0] == 0
    return content.aligned(others[schema.ITEM_ID].filter(pl.Series(is_new)).sort(), items)


def num_new(ids: pl.Series, log_items: Path, items: Path) -> int:
    """Number of ids that neither a log's items nor an items' table has. Raises OSError where the log's are missing."""
    tables = [log_items, *([items] if items.exists() else [])]
    known = pl.concat(
        pl.read_parquet(table, columns=[schema.ITEM_ID])[schema.ITEM_ID].cast(pl.String) for table in tables
    )
    return int((~ids.cast(pl.String).is_in(known.implode())).sum())


def write(
    bundle: Path, vectors: Float32, table: pl.DataFrame, *, reads_content: bool
) -> ContentMapAccuracy | None:
    """Write catalogue/, and for a model that reads no content the map from the deployed items' content to `vectors` [n, d].

    table: `unknown_to` the bundle. Returns the validation of the map; None where there is no map.
    """
    (bundle / CATALOGUE).mkdir()
    added, features = _with_content(bundle, table)
    added.select(schema.ITEM_ID, _title(added)).write_parquet(bundle / CATALOGUE / ITEMS)
    features.save(bundle / CATALOGUE)
    if reads_content:
        return None
    own = Content.load(bundle / FOLDER)
    described = 1 + np.flatnonzero(has_content(own)[1:])
    fitted = ContentMap.fit(all_features(own, described), vectors[described - 1])
    if fitted is None:
        return None
    content_map, worth = fitted
    content_map.save(bundle)
    return worth


def with_catalogue(bundle: "Bundle") -> "Bundle":
    """Extend a bundle by its own catalogue of new items."""
    folder = bundle.folder / CATALOGUE
    if not folder.exists():
        return bundle
    return _extended(bundle, pl.read_parquet(folder / ITEMS), Content.load(folder))


def extended(bundle: "Bundle", table: pl.DataFrame) -> "Bundle":
    """Extend a bundle by the items of `table` (item_id and content) with usable content, numbered after its own.

    Unchanged where there is none, or where the bundle has no vectors from content.
    """
    return (
        _extended(bundle, *_with_content(bundle.folder, table))
        if (bundle.folder / FOLDER).exists()
        else bundle
    )


def with_counted(bundle: "Bundle", table: pl.DataFrame, num_events: Int64) -> "Bundle":
    """Extend a bundle by the items of `table` (item_id and content), which have `num_events` in the log.

    A counting baseline, or a model's second stage, recommends them by their events. Counts have to be taken anew afterwards
    (`Bundle.counting`).
    """
    if not len(table):
        return bundle
    features = ContentEncoder.load(bundle.folder / FOLDER / "encoder").transform(table)
    return replace(
        bundle,
        items=bundle.items.added(table[schema.ITEM_ID]),
        num_events=np.concatenate([bundle.num_events, num_events.astype(np.float32)]),
        added=(*bundle.added, Added(features, _title(table))),
    )


def _with_content(bundle: Path, table: pl.DataFrame) -> tuple[pl.DataFrame, Content]:
    """Rows of a table with content that the bundle's encoder can use, and their features."""
    encoder = ContentEncoder.load(bundle / FOLDER / "encoder")
    table = table.filter(pl.Series(has_content(encoder.transform(table))[1:]))
    return table, encoder.transform(table)


def _title(table: pl.DataFrame) -> pl.Series:
    nothing = pl.Series(schema.TITLE, [None], dtype=pl.String)
    return table[schema.TITLE] if schema.TITLE in table else nothing.new_from_index(0, len(table))


def _extended(bundle: "Bundle", table: pl.DataFrame, features: Content) -> "Bundle":
    """Extend a bundle by the items of a table with their content features; a baseline's stays as it is."""
    if bundle.index is None or not isinstance(bundle.recommender, AttentionRecommender):
        return bundle
    encoder = bundle.recommender.encoder
    content_map = None if encoder.settings.item_content else ContentMap.load(bundle.folder)
    if (not encoder.settings.item_content and content_map is None) or not len(table):
        return bundle
    new = np.arange(1, len(table) + 1)
    vectors = None if content_map is None else content_map(all_features(features, new))
    grown = with_items(encoder, vectors, dense_features(features, new), padded_categories(features, new))
    numbers = np.arange(len(bundle.items) + 1, len(bundle.items) + len(table) + 1, dtype=np.int32)
    searched = grown.item_vectors()[numbers].detach().float().numpy()
    # a rebuilt index is exact: there are no queries to tune another on
    index, is_rebuilt = extend_index(bundle.index, searched, numbers)
    return replace(
        bundle,
        items=bundle.items.added(table[schema.ITEM_ID]),
        num_events=np.concatenate([bundle.num_events, np.zeros(len(table), np.float32)]),
        recommender=AttentionRecommender(grown),
        index=index,
        added=(Added(features, _title(table), is_rebuilt),),
    )
