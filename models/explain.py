"""What in a history a recommendation is based on: a weight for every past interaction.

Letters: b rows, k items explained per row, l positions of the longest window.
"""

import itertools
from typing import Literal

import numpy as np
import torch

from models.attention import attention_scores
from models.batching import cut_by_tokens, pad
from models.encoder import Encoder
from models.recommender import Float32, Histories, Int32

Method = Literal["fast", "exact"]

BATCH_TOKENS = 2**13
"""Padded positions explained at a time."""
BATCH_CELLS = 2**20
"""Rows x items x dim of one pass: each item has a copy of the last position's states with their gradients."""


def contributions(encoder: Encoder, histories: Histories, items: Int32, method: Method = "fast") -> Float32:
    """How much lower each item would score if a past interaction had not been seen: [b, k, l].

    `items` [b, k], 0 for none. Column i is the row's i-th interaction among its `max_length` most recent ones; the
    columns behind the last are 0, and so is the row of item 0. "exact" leaves each interaction out, the others keeping
    their positions where there are positions, and scores again (an empty history scores 0).
    "fast": the last interaction as in "exact", each other one to first order. With attention that is the sum over blocks
    and heads of `d score / d log-attention` that the last position pays to it, at about the cost of one more pass; with a
    `gru` the sum over blocks of `d score / d h_i . (h_i - h_{i-1})`, h the hidden state, at a backward pass per item.
    Raises ValueError for an unknown method.
    """
    if method not in ("fast", "exact"):
        raise ValueError(f"because_method: received {method!r}, expected 'fast' or 'exact'")
    explain = _leave_one_out
    if method == "fast":
        explain = _first_order if encoder.attention_layers else _first_order_in_time
    windows = histories.last(encoder.max_length)
    weights = np.zeros((*items.shape, int(windows.lengths.max(initial=0))), np.float32)
    step = max(1, BATCH_CELLS // (items.shape[1] * encoder.settings.dim))
    for batch in cut_by_tokens(windows.lengths, BATCH_TOKENS):
        for rows in (batch[start : start + step] for start in range(0, len(batch), step)):
            part = explain(encoder, windows.select(rows), items[rows])
            weights[rows, :, : part.shape[-1]] = part
    weights[items == 0] = 0
    return weights


def strongest(weights: Float32, histories: Histories, because_items: int) -> tuple[Int32, Float32]:
    """The `because_items` past items that weigh most for each (row, item): items and weights, [b, k, because_items].

    `weights` [b, k, l] as `contributions` returns them for `histories`. Strongest first, positive ones only, the rest
    item 0 with weight 0; an item met several times counts once, with its strongest interaction.
    Equal weights: the older interaction first.
    """
    rows, explained, positions = weights.shape
    items = np.zeros((rows, explained, because_items), np.int32)
    found = np.zeros((rows, explained, because_items), np.float32)
    past = _past_items(histories.last(positions), positions)
    left = weights.copy()
    for place in range(because_items if positions else 0):
        best = left.argmax(-1, keepdims=True)
        weight = np.take_along_axis(left, best, -1)
        item = np.where(weight > 0, np.take_along_axis(past[:, None, :], best, -1), 0)
        items[..., place], found[..., place] = item[..., 0], np.maximum(weight, 0)[..., 0]
        left[(past[:, None, :] == item) & (item > 0)] = 0
    return items, found


def _past_items(windows: Histories, positions: int) -> Int32:
    """[b, positions]: the item of each column, 0 behind the last."""
    rows, flat = windows.gather()
    past = np.zeros((len(windows), positions), np.int32)
    past[rows, flat - windows.starts[rows]] = windows.item_index[flat]
    return past


@torch.no_grad()
def _leave_one_out(encoder: Encoder, windows: Histories, items: Int32) -> Float32:
    """`contributions` of rows of any lengths, one row after the other."""
    weights = np.zeros((*items.shape, int(windows.lengths.max())), np.float32)
    device = encoder.items.weight.device
    for row, length in enumerate(windows.lengths.tolist()):
        item_index, event_type = (part.to(device) for part in pad(windows.select(slice(row, row + 1))))
        candidates = encoder.item_vectors()[torch.from_numpy(items[row]).to(device)]
        whole = encoder.last_states(item_index, event_type, torch.tensor([length], device=device))
        left = torch.zeros(length, encoder.settings.dim, device=device)
        if length > 1:
            kept = torch.arange(length - 1, device=device).expand(length, -1)
            kept = kept + (kept >= torch.arange(length, device=device)[:, None])
            lengths = torch.full((length,), length - 1, device=device)
            left = encoder.last_states(item_index[0][kept], event_type[0][kept], lengths, kept)
        weights[row, :, :length] = (candidates @ (whole - left).T).float().cpu().numpy()
    return weights


def _first_order(encoder: Encoder, windows: Histories, items: Int32) -> Float32:
    """`contributions` along the last position's own way through the blocks, one copy of it per item."""
    device, layers = encoder.items.weight.device, encoder.attention_layers
    item_index, event_type = (part.to(device) for part in pad(windows))
    lengths = torch.from_numpy(windows.lengths).to(device)
    candidates = encoder.item_vectors()[torch.from_numpy(items).to(device)].detach()
    with torch.no_grad():
        states = encoder.embed(item_index, event_type)
        looks = [layers[0].last_look(states, lengths)]
        for before, block in itertools.pairwise(layers):
            states = before(states.flatten(0, 1), tuple(item_index.shape)).view_as(states)
            looks.append(block.last_look(states, lengths))
        shorter = encoder.norm(layers[-1].last(states, (lengths - 1).clamp_min(1)))
        shorter = shorter * (lengths > 1)[:, None, None]
    with torch.enable_grad():
        state = looks[0].state.expand(-1, items.shape[1], -1).clone().requires_grad_()
        logits = []
        for block, look in zip(layers, looks, strict=True):
            scores = attention_scores(block.queries(state), look.keys, look.visible, look.bias)
            logits.append(scores)
            state = block.finish(state, scores.softmax(-1) @ look.values)
        score = (encoder.norm(state) * candidates).sum(-1)
        gradients = torch.autograd.grad(score.sum(), logits)
    weights = torch.stack([gradient.sum(1) for gradient in gradients]).sum(0)
    last = (lengths - 1).view(-1, 1, 1).expand(-1, items.shape[1], 1)
    weights.scatter_(2, last, (score.detach() - (shorter * candidates).sum(-1)).unsqueeze(-1))
    found: Float32 = weights.float().cpu().numpy()
    return found


def _first_order_in_time(encoder: Encoder, windows: Histories, items: Int32) -> Float32:
    """`contributions` through recurrences: what letting each hidden state pass unchanged would do to first order."""
    device, layers = encoder.items.weight.device, encoder.recurrent_layers
    item_index, event_type = (part.to(device) for part in pad(windows))
    lengths = torch.from_numpy(windows.lengths).to(device)
    rows = torch.arange(len(windows), device=device)
    candidates = encoder.item_vectors()[torch.from_numpy(items).to(device)].detach()
    with torch.enable_grad():
        states, skips = encoder.embed(item_index, event_type).detach(), []
        for block in layers:
            states, *skip = block.skippable(states)
            skips.append(skip)
        normed = encoder.norm(states)
        scores = (candidates * normed[rows, lengths - 1].unsqueeze(1)).sum(-1)
    pushed, gates = zip(*skips, strict=True)
    weights = candidates.new_zeros(*items.shape, item_index.shape[1])
    for place in range(items.shape[1]):
        gradients = torch.autograd.grad(scores[:, place].sum(), pushed, retain_graph=True)
        for gradient, gate in zip(gradients, gates, strict=True):
            weights[:, place] -= (gradient / gate).sum(-1)
    shorter = normed.detach()[rows, (lengths - 2).clamp_min(0)] * (lengths > 1).unsqueeze(1)
    weights[rows, :, lengths - 1] = scores.detach() - (candidates * shorter.unsqueeze(1)).sum(-1)
    found: Float32 = weights.cpu().numpy()
    return found
