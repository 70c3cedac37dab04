"""What the encoder looks at when it recommends: the attention that the last position pays to each past interaction.

Letters: b rows, l positions of the longest window.
"""

import numpy as np
import torch

from models.attention import attention_scores
from models.batching import cut_by_tokens, pad
from models.encoder import Encoder
from models.recommender import Float32, Histories

BATCH_TOKENS = 2**13
"""Padded positions looked at a time."""


def has_attention(encoder: Encoder) -> bool:
    """Whether every block pays attention as a softmax over positions; recurrent ones pay none."""
    return bool(encoder.attention_layers)


@torch.inference_mode()
def attention_weights(encoder: Encoder, histories: Histories) -> Float32:
    """Share of the last position's attention that each past interaction gets: Float32 [b, l].

    `mean over blocks and heads of softmax(q_last K^T / sqrt(c))`. Column i is the row's i-th interaction among its
    `max_length` most recent ones, the last position's own included; a row adds up to 1, columns behind the last are 0, and so
    is an empty row. These are the weights of Vaswani et al. 2017, section 3.2.1, averaged as they stand. They say where a
    block looks, not what a score is made of (Jain and Wallace 2019): for that see `models.explain.contributions`.
    Raises ValueError for an encoder whose blocks pay no attention: see `has_attention`.
    """
    if not has_attention(encoder):
        raise ValueError(
            f"attention_weights: received an encoder of {encoder.settings.block!r} blocks, expected blocks with attention "
            "(model.block = 'transformer'); ask has_attention first"
        )
    windows = histories.last(encoder.max_length)
    weights = np.zeros((len(windows), int(windows.lengths.max(initial=0))), np.float32)
    for rows in cut_by_tokens(windows.lengths, BATCH_TOKENS):
        part = _of_batch(encoder, windows.select(rows))
        weights[rows, : part.shape[1]] = part
    return weights


def _of_batch(encoder: Encoder, windows: Histories) -> Float32:
    """`attention_weights` of rows of similar length, none of them empty."""
    device, layers = encoder.items.weight.device, encoder.attention_layers
    item_index, event_type = (part.to(device) for part in pad(windows))
    lengths = torch.from_numpy(windows.lengths).to(device)
    states = encoder.embed(item_index, event_type)
    total = torch.zeros(item_index.shape, device=device)
    for number, block in enumerate(layers, start=1):
        look = block.last_look(states, lengths)
        scores = attention_scores(look.queries, look.keys, look.visible, look.bias)
        total += scores.float().softmax(-1).mean(1).squeeze(1)
        if number < len(layers):
            states = block(states.flatten(0, 1), tuple(item_index.shape)).view_as(states)
    shares: Float32 = (total / len(layers)).cpu().numpy()
    return shares
