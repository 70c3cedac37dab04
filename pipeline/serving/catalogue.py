"""The items that a bundle was extended by: their ids, categories and vectors."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from features.content import Content
from models.histories import Int32
from pipeline.dataset.item_features import padded_categories

if TYPE_CHECKING:
    pass


CATALOGUE, ITEMS = "catalogue", "items.parquet"


@dataclass(frozen=True)
class Added:
    """What is known about the items behind a bundle's own."""

    content: Content
    titles: pl.Series
    needs_other_index: bool = False
    """Whether the bundle's own index could not take their vectors, so that all are searched exactly."""


def categories_of(contents: list[Content]) -> Int32 | None:
    """[n + 1, c] categories of a bundle's own items and of those added; None where there are none."""
    if not contents or not contents[0].categories:
        return None
    own, *added = contents
    parts = [padded_categories(own, np.arange(own.num_items + 1))]
    parts += [padded_categories(each, np.arange(1, each.num_items + 1)) for each in added]
    width = max(part.shape[1] for part in parts)
    return np.concatenate([np.pad(part, ((0, 0), (0, width - part.shape[1]))) for part in parts])
