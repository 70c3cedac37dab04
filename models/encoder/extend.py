"""Extension of a trained encoder by new items."""

import copy

import numpy as np
import torch

from models.encoder.encoder import Encoder
from models.histories import Float32, Int32


def with_items(encoder: Encoder, vectors: Float32 | None, dense: Float32, categories: Int32) -> Encoder:
    """Copy of the encoder with m more items, numbered after the others.

    `vectors` [m, d] are those of the new items where the model reads no content. Otherwise (None) they follow from `dense` [m, f]
    and `categories` [m, c], cut to the model's number of slots.
    """
    assert (vectors is None) == encoder.settings.item_content, "content or vectors, as the model reads them"
    grown, num_new = copy.deepcopy(encoder), len(dense)
    items = grown.items
    if items.ids is not None:
        added = np.zeros((num_new, encoder.settings.dim), np.float32) if vectors is None else vectors
        weight = torch.cat([items.ids.weight.detach(), torch.from_numpy(added).to(items.device)])
        items.ids = torch.nn.Embedding(weight.shape[0], weight.shape[1], _weight=weight)
    if vectors is None:
        slots = np.zeros((num_new, items.category_index.shape[1]), np.int32)
        num_slots = min(slots.shape[1], categories.shape[1])
        slots[:, :num_slots] = categories[:, :num_slots]
        items.dense = torch.cat([items.dense, torch.from_numpy(dense).to(items.device)])
        items.category_index = torch.cat([items.category_index, torch.from_numpy(slots).to(items.device)])
    grown.num_items += num_new
    return grown
