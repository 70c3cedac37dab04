"""From a features folder's item content to what the encoder takes: dense features and categories in the model's numbering."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from features.content import FOLDER, Content
from features.histories import JaggedHistories
from features.splits import Split
from models.inputs import ItemContent
from models.recommender import Float32, Int32
from pipeline.config import Config
from pipeline.errors import LookbackError
from pipeline.targets import under_core

MOST_CATEGORIES = 64
"""Categories of an item that the encoder takes, the first ones of more."""


def known_by_content(
    config: Config, folder: Path, histories: JaggedHistories, split: Split
) -> NDArray[np.bool_] | None:
    """[num_items + 1] of a features folder: items that a model knows by what is said about them, trained or not.

    None where the configuration's model does not read content. Items under the core filter are not among them.
    """
    if not config.model.item_content:
        return None
    content = _load(folder)
    known = np.diff(content.category_offsets) > 0
    known |= content.text.any(1) | content.has_embedding
    return np.asarray(known & ~under_core(histories, split))


def of_model(folder: Path, mapping: Int32, trained: NDArray[np.bool_]) -> ItemContent:
    """The content of a model's items: `mapping` [num_items + 1] from the folder's items, 0 for those it has not.

    trained: [num_items + 1] of the folder, the items that occur in training.
    Raises LookbackError where nothing is known about items.
    """
    content = _load(folder)
    ours = np.concatenate(([0], np.flatnonzero(mapping)))
    return ItemContent(
        np.concatenate([content.text[ours], _unit(content.embedding[ours])], 1),
        _categories(content, ours),
        len(content.categories),
        trained[ours],
    )


def dense(folder: Path, mapping: Int32) -> Float32 | None:
    """[items, c] text, given embedding and most frequent categories of a model's items, each part and the whole of length 1.

    `mapping` [num_items + 1] from the folder's items, 0 for those it has not. None where nothing is known about any.
    """
    content = _found(folder)
    if content is None:
        return None
    ours = np.concatenate(([0], np.flatnonzero(mapping)))
    times = np.bincount(content.category_index, minlength=len(content.categories) + 1)
    frequent = np.argsort(-times[1:], kind="stable")[:MOST_CATEGORIES] + 1
    column = np.full(len(times), -1)
    column[frequent] = np.arange(len(frequent))
    table = np.zeros((content.num_items + 1, len(frequent)), np.float32)
    item = np.repeat(np.arange(content.num_items + 1), np.diff(content.category_offsets))
    known = column[content.category_index] >= 0
    table[item[known], column[content.category_index[known]]] = 1
    return _unit(np.hstack([content.text[ours], _unit(content.embedding[ours]), _unit(table[ours])]))


def _load(folder: Path) -> Content:
    content = _found(folder)
    if content is None:
        raise LookbackError(
            "model.item_content: received true, but nothing is known about items; expected [items] with categories, title, text "
            "or embedding: add it, or set model.item_content = false"
        )
    return content


def _found(folder: Path) -> Content | None:
    """The content of a features folder, None where nothing is known."""
    path = folder / FOLDER
    content = Content.load(path) if path.exists() else None
    if content is None or not (content.categories or content.text.size or content.embedding.size):
        return None
    return content


def _unit(vectors: Float32) -> Float32:
    """Given embeddings at length 1, on the scale of the text's."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: Float32 = np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 0)
    return unit


def _categories(content: Content, ours: NDArray[np.int64]) -> Int32:
    """[items, k] categories of each, 0 where there are fewer."""
    starts, counts = content.category_offsets[ours], np.diff(content.category_offsets)[ours]
    width = min(MOST_CATEGORIES, int(counts.max(initial=0)))
    place = np.arange(width)
    there = place < counts[:, None]
    found = np.zeros((len(ours), width), np.int32)
    found[there] = content.category_index[(starts[:, None] + place)[there]]
    return found
