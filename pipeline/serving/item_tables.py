"""Tables of items without users: lists of similar items, popular items by segment."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
from numpy.typing import NDArray

from features.histories.vocabulary import Vocabulary
from models.histories import Int32
from models.recommendation.answer import Candidates
from models.topk import top_k
from pipeline.serving.popularity_fallback import Popularity

_ROW_GROUP_ITEMS = 50_000
"""Lists per row group."""


def write_similar(
    path: Path, vocabulary: Vocabulary, items: Int32, lists: Iterable[tuple[str, Candidates]]
) -> dict[str, int]:
    """Write item_id, similar_item_id, rank, score, kind of lists [q, k] by kind; returns each kind's number of lists.

    `items` [q]: the items that the lists are of. Sorted by kind as given, item and rank.
    """
    counts = {}
    schema = _similar(vocabulary, items[:0], _none(), "").to_arrow().schema
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for kind, (found, scores) in lists:
            counts[kind] = int((found > 0).any(axis=1).sum())
            for start in range(0, len(items), _ROW_GROUP_ITEMS):
                part = slice(start, start + _ROW_GROUP_ITEMS)
                table = _similar(vocabulary, items[part], (found[part], scores[part]), kind)
                writer.write_table(table.to_arrow().cast(schema))
    return counts


def _similar(vocabulary: Vocabulary, items: Int32, lists: Candidates, kind: str) -> pl.DataFrame:
    """A row per place of lists [q, k] of `items` [q]."""
    found, scores = lists
    given = found > 0
    row, place = np.nonzero(given)
    return pl.DataFrame(
        {
            "item_id": vocabulary.decode(items[row]),
            "similar_item_id": vocabulary.decode(found[given]),
            "rank": (place + 1).astype(np.int32),
            "score": scores[given],
        }
    ).with_columns(kind=pl.lit(kind, pl.String))


def _none() -> Candidates:
    return np.zeros((0, 1), np.int32), np.zeros((0, 1), np.float32)


def popular_items(
    popularity: Popularity, vocabulary: Vocabulary, k: int, allowed: NDArray[np.bool_] | None = None
) -> pl.DataFrame:
    """The k items that each segment's users without a history are recommended: segment (null: all users), item_id, rank, score.

    Items without an event are left out. allowed: [n + 1], mask of items that may be recommended; None: all.
    """
    scores = popularity.scores if allowed is None else np.where(allowed, popularity.scores, np.float32(0))
    found, values = top_k(np.where(scores > 0, scores, np.float32(-np.inf)), k)
    row, place = np.nonzero(found)
    segments = pl.Series("segment", [None, *popularity.segments], dtype=pl.String)
    return pl.DataFrame(
        {
            "segment": segments.gather(row),
            "item_id": vocabulary.decode(found[row, place]),
            "rank": (place + 1).astype(np.int32),
            "score": values[row, place],
        }
    )
