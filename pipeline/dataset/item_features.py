"""From a features folder's item content to what the encoder takes: dense features and categories in the model's numbering."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from features.content import FOLDER, Content
from features.histories.jagged import JaggedHistories
from features.histories.splits import Split
from models.encoder.embeddings import ItemContent
from models.histories import Float32, Int32
from pipeline.config import Config
from pipeline.dataset.content_features import compared_by, dense_features, padded_categories, says_something
from pipeline.dataset.targets import under_core
from pipeline.errors import LookbackError


def known_by_content(
    config: Config, folder: Path, histories: JaggedHistories, split: Split
) -> NDArray[np.bool_] | None:
    """[num_items + 1] of a features folder: items that a model knows by what is said about them, trained or not.

    None where the configuration's model does not read content. Items under the core filter are not among them.
    """
    if not config.model.item_content:
        return None
    return np.asarray(says_something(_load(folder)) & ~under_core(histories, split))


def of_model(folder: Path, mapping: Int32, trained: NDArray[np.bool_]) -> ItemContent:
    """The content of a model's items: `mapping` [num_items + 1] from the folder's items, 0 for those it has not.

    trained: [num_items + 1] of the folder, the items that occur in training.
    Raises LookbackError where nothing is known about items.
    """
    content = _load(folder)
    ours = np.concatenate(([0], np.flatnonzero(mapping)))
    return ItemContent(
        dense_features(content, ours),
        padded_categories(content, ours),
        len(content.categories),
        trained[ours],
    )


def of_ranker(folder: Path, mapping: Int32) -> Float32 | None:
    """[items, c] what the second stage compares a model's items by, of length 1; None where nothing is known about any.

    `mapping` [num_items + 1] from the folder's items, 0 for those that the model has not.
    """
    content = _found(folder)
    return None if content is None else compared_by(content, np.concatenate(([0], np.flatnonzero(mapping))))


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
