"""Item content as the features that item vectors are made of, and that items are told apart by."""

import numpy as np
from numpy.typing import NDArray

from features.content import Content
from models.histories import Float32, Int32

MOST_CATEGORIES = 64
"""Categories of an item that are looked at, the first ones of more."""
MOST_COMPARED = 128
"""Categories of the catalogue that items are compared by."""
MOST_SHARES = 1000
"""Categories of the catalogue that a vector is told from."""


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
