"""New items of a bundle: content, titles, categories."""

from dataclasses import dataclass

import numpy as np
import polars as pl

from features.content import Content
from models.histories import Float32, Int32
from pipeline.dataset.item_features import comparison_vectors, padded_categories

CATALOGUE, ITEMS = "catalogue", "items.parquet"


@dataclass(frozen=True)
class Added:
    """Content and titles of a bundle's new items."""

    content: Content
    titles: pl.Series
    needs_other_index: bool = False
    """Whether the bundle's own index could not take their vectors, so that an exact one replaces it."""


def categories_of(contents: list[Content]) -> Int32 | None:
    """[n + 1, c] categories of a bundle's own items, then of its new ones; None where there are none."""
    if not contents or not contents[0].categories:
        return None
    own, *added = contents
    parts = [padded_categories(own, np.arange(own.num_items + 1))]
    parts += [padded_categories(content, np.arange(1, content.num_items + 1)) for content in added]
    width = max(part.shape[1] for part in parts)
    return np.concatenate([np.pad(part, ((0, 0), (0, width - part.shape[1]))) for part in parts])


def compared_by_content(contents: list[Content], num_items: int) -> Float32:
    """[num_items + 1, c] unit vectors of a bundle's own items, then of its new ones, by content; zeros without any."""
    if not contents:
        return np.zeros((num_items + 1, 1), np.float32)
    own, *added = contents
    parts = [comparison_vectors(own, np.arange(own.num_items + 1))]
    parts += [comparison_vectors(content, np.arange(1, content.num_items + 1)) for content in added]
    return np.concatenate(parts)
