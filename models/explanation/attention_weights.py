"""Attention weights of the last position over the past interactions.

Letters: b rows, l positions of the longest window.
"""

import numpy as np
import torch

from models.encoder.attention_bias import full_geometry, last_geometry
from models.encoder.batching import cut_by_tokens
from models.encoder.blocks import AttentionBlock, last_of
from models.encoder.encoder import Encoder
from models.histories import Float32, Histories

BATCH_TOKENS = 2**13
"""Padded positions looked at a time."""


def has_attention(encoder: Encoder) -> bool:
    """Whether some layer pays attention to positions; recurrent ones, convolution and pooling pay none."""
    return bool(encoder.attention_layers)


@torch.inference_mode()
def attention_weights(encoder: Encoder, histories: Histories) -> Float32:
    """Share of the last position's attention that each past interaction gets: Float32 [b, l].

    `mean over layers that attend and over heads of HistoryAttention.weights`; those of SiLU are taken at their size and made to
    add up to 1. Column i is the row's i-th interaction among its
    `max_length` most recent ones, the last position's own included; a row adds up to 1, columns behind the last are 0, and so
    is an empty row. These are the weights of Vaswani et al. 2017, section 3.2.1, averaged as they stand. They say where a
    block looks, not what a score is made of (Jain and Wallace 2019): for that see `contributions`.
    Raises ValueError for an encoder whose blocks pay no attention: see `has_attention`.
    """
    if not has_attention(encoder):
        raise ValueError(
            f"attention_weights: received an encoder of {encoder.settings.block!r} blocks, expected blocks with attention "
            "(model.block = 'transformer'); check has_attention first"
        )
    windows = histories.last(encoder.max_length)
    weights = np.zeros((len(windows), int(windows.lengths.max(initial=0))), np.float32)
    for rows in cut_by_tokens(windows.lengths, BATCH_TOKENS):
        part = _of_batch(encoder, windows.select(rows))
        weights[rows, : part.shape[1]] = part
    return weights


def _of_batch(encoder: Encoder, windows: Histories) -> Float32:
    """`attention_weights` of rows of similar length, none of them empty."""
    window = encoder.pad(windows)
    shape = tuple(window.item_index.shape)
    everywhere, at_last = full_geometry(window, encoder.settings), last_geometry(window, encoder.settings)
    states = encoder.embed(window)
    total = torch.zeros(shape, device=encoder.device)
    for layer in encoder.layer_list:
        if isinstance(layer, AttentionBlock):
            keys, _ = layer.keys_values(layer.attention_norm(states))
            queries = layer.queries(layer.attention_norm(last_of(states, window.lengths)))
            weights = layer.attention.weights(queries, keys, at_last).float().abs()
            shares = weights / weights.sum(-1, keepdim=True).clamp_min(torch.finfo(weights.dtype).tiny)
            total += shares.mean(1).squeeze(1)
        states = layer(states.flatten(0, 1), (everywhere,)).view_as(states)
    found: Float32 = (total / len(encoder.attention_layers)).cpu().numpy()
    return found
