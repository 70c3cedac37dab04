"""Item content as model input: dense features and categories in the model's numbering."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from features.content import Content
from features.histories.numbering import ItemNumbering
from models.encoder.embeddings import ItemContent
from models.histories import Float32, Int32
from pipeline.dataset.dataset import Dataset
from pipeline.errors import LookbackError

if TYPE_CHECKING:
    from pipeline.config import Config

MAX_ITEM_CATEGORIES = 64
"""Maximum number of categories of an item; the first ones count."""
MAX_COMPARED = 128
"""Maximum number of the catalogue's categories by which items are compared."""
MAX_SHARES = 1000
"""Maximum number of the catalogue's categories in the features of the content map."""


def known_by_content(config: "Config", dataset: Dataset) -> NDArray[np.bool_] | None:
    """Items known by content, trained or not, without those under the core filter: [num_items + 1].

    None for a model that reads no content. Raises LookbackError where no item has content.
    """
    if not config.model.item_content:
        return None
    return np.asarray(has_content(_required(dataset)) & ~dataset.under_core())


def of_model(dataset: Dataset, numbering: ItemNumbering, trained: NDArray[np.bool_]) -> ItemContent:
    """Content of a model's items. trained: [num_items + 1], dataset items that occur in training.

    Raises LookbackError where no item has content.
    """
    content, items = _required(dataset), numbering.inverse().new.astype(np.int64)
    return ItemContent(
        dense_features(content, items),
        padded_categories(content, items),
        len(content.categories),
        trained[items],
    )


def of_ranker(dataset: Dataset, numbering: ItemNumbering) -> Float32 | None:
    """Unit vectors by which the second stage compares a model's items: [items, c]; None without content."""
    content = dataset.content
    if content is None:
        return None
    return comparison_vectors(content, numbering.inverse().new.astype(np.int64))


def _required(dataset: Dataset) -> Content:
    if dataset.content is None:
        raise LookbackError(
            "model.item_content: received true, but no item has content; expected [items] with categories, title, text "
            "or embedding: add it, or set model.item_content = false"
        )
    return dataset.content


def has_content(content: Content) -> NDArray[np.bool_]:
    """Whether an item has a known category, text or an embedding: [items]."""
    has_category = np.diff(content.category_offsets) > 0
    return np.asarray(has_category | content.text.any(1) | content.has_embedding)


def dense_features(content: Content, items: NDArray[np.int64]) -> Float32:
    """Unit text vectors and unit given embeddings side by side: [items, f]."""
    return np.concatenate([content.text[items], _unit(content.embedding[items])], 1)


def all_features(content: Content, items: NDArray[np.int64]) -> Float32:
    """Dense features and shares of the first `MAX_SHARES` categories among an item's: [items, f + categories]."""
    categories = padded_categories(content, items)
    shares = np.zeros((len(items), min(len(content.categories), MAX_SHARES) + 1), np.float32)
    row, place = np.nonzero((categories > 0) & (categories < shares.shape[1]))
    share = 1 / np.maximum((categories > 0).sum(1), 1)
    shares[row, categories[row, place]] = share[row]
    return np.concatenate([dense_features(content, items), shares[:, 1:]], 1)


def comparison_vectors(content: Content, items: NDArray[np.int64]) -> Float32:
    """Unit vectors of text, embeddings and shares of up to `MAX_COMPARED` categories, zero without any: [items, f]."""
    dense = content.text.shape[1] + content.embedding.shape[1]
    return _unit(all_features(content, items)[:, : dense + MAX_COMPARED])


def _unit(vectors: Float32) -> Float32:
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: Float32 = np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 0)
    return unit


def padded_categories(content: Content, items: NDArray[np.int64]) -> Int32:
    """Category indices of each item, padded with 0: [items, k]."""
    starts, counts = content.category_offsets[items], np.diff(content.category_offsets)[items]
    column = np.arange(min(MAX_ITEM_CATEGORIES, int(counts.max(initial=0))))
    is_filled = column < counts[:, None]
    categories = np.zeros(is_filled.shape, np.int32)
    categories[is_filled] = content.category_index[(starts[:, None] + column)[is_filled]]
    return categories
