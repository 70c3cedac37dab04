"""An encoder that knows more items than it was trained on."""

import copy

import numpy as np
import torch

from models.encoder.encoder import Encoder
from models.histories import Float32, Int32


def with_items(encoder: Encoder, vectors: Float32 | None, dense: Float32, categories: Int32) -> Encoder:
    """A copy of the encoder with m more items, numbered behind the others.

    `vectors` [m, d] are their own where the model reads no content. Where it does (None here), an item's vector is that of its
    content, as for any item that training did not know: `dense` [m, f] and `categories` [m, c], of which the model takes as many
    as it was made for.
    """
    assert (vectors is None) == encoder.settings.item_content, "content or vectors, as the model reads them"
    grown, num_new = copy.deepcopy(encoder), len(dense)
    items = grown.items
    if items.ids is not None:
        own = np.zeros((num_new, encoder.settings.dim), np.float32) if vectors is None else vectors
        weight = torch.cat([items.ids.weight.detach(), torch.from_numpy(own).to(items.device)])
        items.ids = torch.nn.Embedding(weight.shape[0], weight.shape[1], _weight=weight)
    if vectors is None:
        fitted = np.zeros((num_new, items.category_index.shape[1]), np.int32)
        taken = min(fitted.shape[1], categories.shape[1])
        fitted[:, :taken] = categories[:, :taken]
        items.dense = torch.cat([items.dense, torch.from_numpy(dense).to(items.device)])
        items.category_index = torch.cat([items.category_index, torch.from_numpy(fitted).to(items.device)])
    grown.num_items += num_new
    return grown
