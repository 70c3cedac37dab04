"""Item index of an encoder, tuned on held-out user vectors."""

import numpy as np

from features.histories.numbering import ItemNumbering
from models.device import pick_device
from models.encoder.encoder import AttentionRecommender, Encoder, with_request_time
from models.histories import Float32, Histories
from models.retrieval.build import build_index
from models.retrieval.index import ItemIndex
from models.settings.index import IndexSettings
from pipeline.dataset.dataset import Dataset, rows


def encoder_index(settings: IndexSettings, encoder: Encoder, queries: Float32) -> ItemIndex:
    """Index of an encoder's item vectors by `[index]`, tuned and measured on `queries` [q, d].

    Exact without queries (no user has a known item). Raises ValueError where an explicit type stays below `target_recall`.
    """
    vectors: Float32 = encoder.item_vectors().detach().float().cpu().numpy()[1:]
    items = np.arange(1, encoder.num_items + 1, dtype=np.int32)
    return build_index(vectors, items, settings, queries if len(queries) else None, str(pick_device()))


def user_vectors(
    settings: IndexSettings, dataset: Dataset, encoder: Encoder, numbering: ItemNumbering
) -> Float32:
    """Query vectors of evenly spread users: [at most index.recall_queries, d].

    Histories end with validation events, unseen by the evaluated weights; without any, with training events.
    `numbering`: items of the dataset -> the encoder's.
    """
    users = _held_out(dataset).translate(numbering.new)
    users = users.select(users.lengths > 0)
    if not len(users):
        users = dataset.training_rows(with_validation=False).translate(numbering.new)
        users = users.select(users.lengths > 0)
    number = min(len(users), settings.recall_queries)
    chosen = np.unique(np.linspace(0, len(users) - 1, number).astype(np.int64))
    return AttentionRecommender(encoder).encode(with_request_time(users.select(chosen), dataset.facts.now))


def _held_out(dataset: Dataset) -> Histories:
    """Histories of users with validation events, up to the last of them."""
    histories = dataset.histories
    starts, ends = (np.asarray(edge) for edge in dataset.split.stretch(histories, "validation"))
    return rows(histories, histories.offsets[:-1], ends).select(ends > starts)
