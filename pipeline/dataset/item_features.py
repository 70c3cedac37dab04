"""From a features folder's item content to what the encoder takes: dense features and categories in the model's numbering."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from features.content import Content
from features.histories.numbering import ItemNumbering
from features.settings import ContentSettings
from models.encoder.embeddings import ItemContent
from models.histories import Float32, Int32
from pipeline.dataset.dataset import Dataset
from pipeline.errors import LookbackError

if TYPE_CHECKING:
    from pipeline.config import Config

MOST_CATEGORIES = 64
"""Categories of an item that are looked at, the first ones of more."""
MOST_COMPARED = 128
"""Categories of the catalogue that items are compared by."""
MOST_SHARES = 1000
"""Categories of the catalogue that a vector is told from."""


def known_by_content(config: "Config", dataset: Dataset) -> NDArray[np.bool_] | None:
    """[num_items + 1] items that a model knows by their content, trained or not; None where it does not read content.

    Items under the core filter are not among them. Raises LookbackError where no item has content.
    """
    if not config.model.item_content:
        return None
    return np.asarray(says_something(_required(dataset)) & ~dataset.under_core())


def of_model(dataset: Dataset, numbering: ItemNumbering, trained: NDArray[np.bool_]) -> ItemContent:
    """Content of a model's items. trained: [num_items + 1] of the dataset, the items that occur in training.

    Raises LookbackError where no item has content.
    """
    content, ours = _required(dataset), numbering.inverse().new.astype(np.int64)
    return ItemContent(
        dense_features(content, ours),
        padded_categories(content, ours),
        len(content.categories),
        trained[ours],
    )


def of_ranker(dataset: Dataset, numbering: ItemNumbering) -> Float32 | None:
    """[items, c] unit vectors by which the second stage compares a model's items; None where no item has content."""
    content = dataset.content
    return None if content is None else compared_by(content, numbering.inverse().new.astype(np.int64))


def _required(dataset: Dataset) -> Content:
    if dataset.content is None:
        raise LookbackError(
            "model.item_content: received true, but nothing is known about items; expected [items] with categories, title, text "
            "or embedding: add it, or set model.item_content = false"
        )
    return dataset.content


def content_settings(config: "Config") -> ContentSettings:
    """How item content becomes features."""
    items = config.items
    if items is None:
        return ContentSettings()
    return ContentSettings(items.text_dim, items.text_max_words, items.text_min_items)


def says_something(content: Content) -> NDArray[np.bool_]:
    """[items] whether anything that was learned from is said about an item."""
    known = np.diff(content.category_offsets) > 0
    return np.asarray(known | content.text.any(1) | content.has_embedding)


def dense_features(content: Content, ours: NDArray[np.int64]) -> Float32:
    """[items, f] text and given embeddings side by side, both at length 1."""
    return np.concatenate([content.text[ours], _unit(content.embedding[ours])], 1)


def all_features(content: Content, ours: NDArray[np.int64]) -> Float32:
    """[items, f + categories] dense features and the share of each category among an item's; of a catalogue with more, the
    first `MOST_SHARES` categories.
    """
    categories = padded_categories(content, ours)
    shares = np.zeros((len(ours), min(len(content.categories), MOST_SHARES) + 1), np.float32)
    row, place = np.nonzero((categories > 0) & (categories < shares.shape[1]))
    share = 1 / np.maximum((categories > 0).sum(1), 1)
    shares[row, categories[row, place]] = share[row]
    return np.concatenate([dense_features(content, ours), shares[:, 1:]], 1)


def compared_by(content: Content, ours: NDArray[np.int64]) -> Float32:
    """[items, f] text, embeddings and the shares of up to `MOST_COMPARED` categories, of length 1; zero where nothing is."""
    dense = content.text.shape[1] + content.embedding.shape[1]
    return _unit(all_features(content, ours)[:, : dense + MOST_COMPARED])


def _unit(vectors: Float32) -> Float32:
    """Given embeddings at length 1, on the scale of the text's."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: Float32 = np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 0)
    return unit


def padded_categories(content: Content, ours: NDArray[np.int64]) -> Int32:
    """[items, k] categories of each, 0 where there are fewer."""
    starts, counts = content.category_offsets[ours], np.diff(content.category_offsets)[ours]
    width = min(MOST_CATEGORIES, int(counts.max(initial=0)))
    place = np.arange(width)
    there = place < counts[:, None]
    found = np.zeros((len(ours), width), np.int32)
    found[there] = content.category_index[(starts[:, None] + place)[there]]
    return found
