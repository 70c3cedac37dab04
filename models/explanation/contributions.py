"""Contributions: a weight for every past interaction in the score of a recommendation.

Letters: b rows, k items explained per row, l positions of the longest window.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.encoder.batching import Window, cut_by_tokens
from models.encoder.blocks import AttentionBlock
from models.encoder.encoder import AttentionRecommender, Encoder
from models.explanation.attribution import ForwardTrace
from models.explanation.hidden_states import is_gru, slopes_in_time
from models.histories import Float32, Histories, Int32, Int64

Bools = NDArray[np.bool_]
Method = Literal["fast", "balanced", "exact"]
Explain = Callable[..., Float32]
"""(items [b, k], less [b, d] or None) -> `contributions` [b, k, l], with columns as far as the longest row has."""

BATCH_TOKENS = 2**13
"""Padded positions explained at a time."""
BATCH_CELLS = 2**20
"""Rows x items x dim of one pass: each item has a copy of the last position's states with their gradients."""


def contributions(
    encoder: Encoder,
    histories: Histories,
    items: Int32,
    method: Method = "balanced",
    less: Float32 | None = None,
) -> Float32:
    """How much lower each item would score if a past interaction had not been seen: [b, k, l].

    `items` [b, k], 0 for none. Column i is the row's i-th interaction among its `max_length` most recent ones; the
    columns behind the last are 0, and so is the row of item 0.
    "exact" leaves each interaction out, the others keeping their positions where there are positions, and scores again (an empty
    history scores 0): a pass for each interaction. The others leave the last interaction out so and estimate what the rest do,
    where every layer attends, at a few passes' cost: "balanced" by `ForwardTrace.leaving_out`, "fast" by its
    `slopes`. With `gru` blocks both are the sum over blocks of `d score / d h_i . (h_i - h_{i-1})`, h the
    hidden state, at a backward pass per item. Elsewhere, in bidirectional encoders, and for "fast" with hard Gumbel weights both
    are as "exact": what a slope says of a layer that norms its input has nothing to do with leaving it out.
    `less` [b, d]: a vector to take from each of the row's item vectors, for how much higher an item scores than that; for
    encoders that score by vectors.
    Raises ValueError for an unknown method.
    """
    windows = histories.last(encoder.max_length)
    weights = np.zeros((*items.shape, int(windows.lengths.max(initial=0))), np.float32)
    for rows in parts(encoder, windows.lengths, items.shape[1]):
        _, explain = encode_to_explain(encoder, windows.select(rows), method)
        part = explain(items[rows], None if less is None else less[rows])
        weights[rows, :, : part.shape[-1]] = part
    return weights


def parts(encoder: Encoder, lengths: Int64, num_items: int) -> Iterator[Int64]:
    """Rows, of the given lengths, to encode and explain together: of similar length, and none that is empty."""
    step = max(1, BATCH_CELLS // (num_items * encoder.settings.dim))
    if not encoder.scores_by_vector:
        step = 1  # each row's candidates look at its own history
    for batch in cut_by_tokens(lengths, BATCH_TOKENS):
        yield from (batch[start : start + step] for start in range(0, len(batch), step))


def encode_to_explain(
    encoder: Encoder, histories: Histories, method: Method
) -> tuple[Float32 | None, Explain]:
    """Vectors of rows as `AttentionRecommender.encode` computes them, and the function that explains items of these rows.

    The rows are one of `parts`, none is empty. Vectors are None for encoders that do not score by vectors. Where every layer
    attends one pass serves both: that of `encode`, traced. Raises ValueError for an unknown method.
    """
    if method not in get_args(Method):
        names = ", ".join(map(repr, get_args(Method)))
        raise ValueError(f"because_method: received {method!r}, expected one of {names}")
    windows, vectors = histories.last(encoder.max_length), None
    weigh: Callable[[Tensor], Float32]
    if _is_traced(encoder, method):
        trace = ForwardTrace.of(encoder, encoder.pad(windows), with_gradients=method == "balanced")
        by_trace = trace.leaving_out if method == "balanced" else trace.slopes
        vectors = _numbers(trace.vectors)

        def weigh(candidates: Tensor) -> Float32:
            return _numbers(by_trace(candidates))
    else:
        if encoder.scores_by_vector:
            vectors = AttentionRecommender(encoder).encode(windows)
        by_pass = slopes_in_time if is_gru(encoder) and method != "exact" else _leave_one_out
        weigh = partial(by_pass, encoder, windows)

    def explain(items: Int32, less: Float32 | None = None) -> Float32:
        candidates = encoder.vectors_of(torch.from_numpy(items).to(encoder.device)).detach()
        if less is not None:
            candidates = candidates - torch.from_numpy(less).to(candidates)[:, None]
        weights = weigh(candidates)
        weights[items == 0] = 0
        return weights

    return vectors, explain


def _is_traced(encoder: Encoder, method: Method) -> bool:
    """Whether a `ForwardTrace` explains this encoder by this method."""
    layers = encoder.layer_list
    attends = bool(layers) and all(isinstance(layer, AttentionBlock) for layer in layers)
    follows = encoder.settings.direction == "causal" and encoder.scores_by_vector and attends
    return follows and (method == "balanced" or (method == "fast" and not encoder.settings.gumbel_hard))


def _numbers(values: Tensor) -> Float32:
    numbers: Float32 = values.detach().float().cpu().numpy()
    return numbers


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
def _leave_one_out(encoder: Encoder, windows: Histories, candidates: Tensor) -> Float32:
    """`contributions` of rows of any lengths, one row after the other."""
    weights = np.zeros((*candidates.shape[:2], int(windows.lengths.max())), np.float32)
    for row, length in enumerate(windows.lengths.tolist()):
        window = windows.select(slice(row, row + 1))
        whole = _last_scores(encoder, encoder.pad(window), candidates[row])
        left = _left_out(encoder, window, candidates[row])
        weights[row, :, :length] = (whole - left).T.float().cpu().numpy()
    return weights


@torch.no_grad()
def left_out_scores(encoder: Encoder, window: Histories, items: Int32) -> Float32:
    """[l, n] scores of `items` [n] for one row of l >= 1 interactions without each of them in turn; without the only one 0."""
    candidates = encoder.vectors_of(torch.from_numpy(items).to(encoder.device))
    found: Float32 = _left_out(encoder, window, candidates).float().cpu().numpy()
    return found


def _left_out(encoder: Encoder, window: Histories, candidates: Tensor) -> Tensor:
    """[l, k] scores of k candidates for one row without each of its interactions in turn."""
    length = int(window.lengths[0])
    if length == 1:
        return torch.zeros(1, len(candidates), device=encoder.device)
    every = encoder.pad(window.select(np.zeros(length, np.int64)))
    others = ~torch.eye(length, dtype=torch.bool, device=encoder.device)
    return _last_scores(encoder, _only(every, others), candidates)


@torch.inference_mode()
def kept_scores(encoder: Encoder, histories: Histories, items: Int32, kept: Bools) -> Float32:
    """[b] the score of each row's item [b] when only some of its interactions had been seen, left out as in "exact".

    `kept` [b, l]: of the row's `max_length` most recent interactions, in columns as in `contributions`; more columns than the
    longest row has may follow. A row that keeps none scores 0.
    """
    windows = histories.last(encoder.max_length)
    kept = kept & (np.arange(kept.shape[1]) < windows.lengths[:, None])
    scores = np.zeros(len(items), np.float32)
    for rows in cut_by_tokens(kept.sum(1), BATCH_TOKENS):
        window = encoder.pad(windows.select(rows))
        there = torch.from_numpy(kept[rows, : window.item_index.shape[1]]).to(encoder.device)
        candidates = encoder.vectors_of(torch.from_numpy(items[rows]).to(encoder.device))
        scores[rows] = _own_scores(encoder, _only(window, there), candidates).float().cpu().numpy()
    return scores


def _own_scores(encoder: Encoder, window: Window, candidates: Tensor) -> Tensor:
    """[b] the score of each row's own candidate [b, d]."""
    if encoder.target is None:
        return (encoder.last_states(window) * candidates).sum(1)
    return encoder.target.last_scores(encoder(window), window.lengths, candidates).diagonal()


def _last_scores(encoder: Encoder, window: Window, candidates: Tensor) -> Tensor:
    """[b, k] scores of k candidates that all rows share."""
    if encoder.target is None:
        return encoder.last_states(window) @ candidates.T
    return encoder.target.last_scores(encoder(window), window.lengths, candidates)


def _only(window: Window, kept: Tensor) -> Window:
    """The rows with the kept interactions [b, l] alone, moved to the front but at their old places; each keeps at least one."""
    lengths = kept.sum(1)
    place = (~kept).to(torch.uint8).argsort(dim=1, stable=True)[:, : int(lengths.max())]
    parts = (window.item_index, window.event_type, window.value, window.time)
    item_index, event_type, value, time = (None if part is None else part.gather(1, place) for part in parts)
    assert item_index is not None
    assert event_type is not None
    asked = None
    if window.asked is not None and time is not None:
        request = window.asked.gather(1, (window.lengths - 1).unsqueeze(1))
        asked = torch.cat([time[:, 1:], request], 1).scatter(1, (lengths - 1).unsqueeze(1), request)
    return Window(item_index, event_type, lengths, value, time, asked, place)
