"""Attention weights of the last position over the past interactions. Letters: b rows, l positions of the longest window."""

import numpy as np
import torch

from models.device import to_numpy
from models.encoder.attention_bias import full_geometry, last_geometry
from models.encoder.batching import cut_by_tokens
from models.encoder.blocks import AttentionBlock, last_of
from models.encoder.encoder import Encoder
from models.histories import Float32, Histories

BATCH_TOKENS = 2**13
"""Padded positions per batch."""


def has_attention(encoder: Encoder) -> bool:
    """Whether some layer is attention, not recurrence, convolution or pooling."""
    return bool(encoder.attention_layers)


@torch.inference_mode()
def attention_weights(encoder: Encoder, histories: Histories) -> Float32:
    """Share of the last position's attention per past interaction: Float32 [b, l].

    `mean over attention layers and heads of HistoryAttention.weights`, those of SiLU as absolute values normalised to sum 1.
    Column i is the row's i-th interaction among its `max_length` most recent ones; a row sums to 1, padding and empty rows are 0.
    Attention is no explanation of a score (Jain and Wallace 2019): for that see `contributions`.
    Raises ValueError for an encoder without attention: see `has_attention`.
    """
    if not has_attention(encoder):
        raise ValueError(
            f"attention_weights: received an encoder of {encoder.settings.block!r} blocks, expected blocks with attention "
            "(model.block = 'transformer'); check has_attention first"
        )
    windows = histories.last(encoder.max_length)
    weights = np.zeros((len(windows), int(windows.lengths.max(initial=0))), np.float32)
    for rows in cut_by_tokens(windows.lengths, BATCH_TOKENS):
        part = _batch_weights(encoder, windows.select(rows))
        weights[rows, : part.shape[1]] = part
    return weights


def _batch_weights(encoder: Encoder, windows: Histories) -> Float32:
    """`attention_weights` of non-empty rows of similar length."""
    window = encoder.pad(windows)
    full, at_last = full_geometry(window, encoder.settings), last_geometry(window, encoder.settings)
    states = encoder.embed(window)
    total = torch.zeros(full.shape, device=encoder.device)
    for layer in encoder.layer_list:
        if isinstance(layer, AttentionBlock):
            keys, _ = layer.keys_values(layer.attention_norm(states))
            queries = layer.queries(layer.attention_norm(last_of(states, window.lengths)))
            weights = layer.attention.weights(queries, keys, at_last).float().abs()
            shares = weights / weights.sum(-1, keepdim=True).clamp_min(torch.finfo(weights.dtype).tiny)
            total += shares.mean(1).squeeze(1)
        states = layer(states.flatten(0, 1), (full,)).view_as(states)
    return to_numpy(total / len(encoder.attention_layers))
