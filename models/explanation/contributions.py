"""Contributions of past interactions to the score of a recommendation.

Letters: b rows, k items explained per row, l positions of the longest window.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.device import to_numpy
from models.encoder.batching import Window, cut_by_tokens
from models.encoder.blocks import AttentionBlock
from models.encoder.encoder import AttentionRecommender, Encoder
from models.explanation.attribution import ForwardTrace
from models.explanation.hidden_states import is_gru, slopes_in_time
from models.histories import Float32, Histories, Int32, Int64

Bools = NDArray[np.bool_]
Method = Literal["fast", "balanced", "exact"]
Explain = Callable[..., Float32]
"""(items [b, k], less [b, d] or None) -> `contributions` [b, k, l], l the length of the longest row."""

BATCH_TOKENS = 2**13
"""Padded positions per batch."""
BATCH_CELLS = 2**20
"""Rows x items x dim per pass: each item has a copy of the last position's states and their gradients."""


def contributions(
    encoder: Encoder,
    histories: Histories,
    items: Int32,
    method: Method = "balanced",
    less: Float32 | None = None,
) -> Float32:
    """Drop of each item's score without a past interaction: [b, k, l].

    `items` [b, k], 0 for none. Column i is the row's i-th interaction among its `max_length` most recent ones; padding columns
    and the row of item 0 are 0.
    "exact" is leave-one-out, a pass per interaction: the others keep their positions, an empty history scores 0. The others leave
    the last interaction out exactly and estimate the rest. With attention layers alone, at a few passes' cost: "balanced" by
    `ForwardTrace.leaving_out`, "fast" by `ForwardTrace.slopes`. With `gru` blocks both are the sum over blocks of
    `d score / d h_i . (h_i - h_{i-1})`, h the hidden state, at a backward pass per item. In other and bidirectional encoders, and
    for "fast" with hard Gumbel weights both equal "exact", since gradients of normed inputs do not estimate leaving one out.
    `less` [b, d]: vector subtracted from the row's item vectors, for encoders that score by vectors.
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
    """Batches of non-empty rows of similar length, given all lengths, to encode and explain together."""
    step = most_rows(encoder, num_items)
    for batch in cut_by_tokens(lengths, BATCH_TOKENS):
        yield from (batch[start : start + step] for start in range(0, len(batch), step))


def most_rows(encoder: Encoder, num_items: int) -> int:
    """Number of rows to explain together."""
    if not encoder.scores_by_vector:
        return 1  # each row's candidates attend over its own history
    return max(1, BATCH_CELLS // (num_items * encoder.settings.dim))


def encode_to_explain(
    encoder: Encoder, histories: Histories, method: Method, columns: int | None = None
) -> tuple[Float32 | None, Explain]:
    """Vectors of rows as by `AttentionRecommender.encode_window`, and the function that explains items of these rows.

    The rows are one batch of `parts`, or a block of some `columns`. Vectors are None for encoders that do not score by vectors.
    With attention layers alone one traced pass serves both. Raises ValueError for an unknown method.
    """
    if method not in get_args(Method):
        names = ", ".join(map(repr, get_args(Method)))
        raise ValueError(f"because_method: received {method!r}, expected one of {names}")
    windows, vectors = histories.last(encoder.max_length), None
    window = encoder.pad(windows, columns)
    weigh: Callable[[Tensor], Float32]
    if _is_traced(encoder, method):
        trace = ForwardTrace.of(encoder, window, with_gradients=method == "balanced")
        by_trace = trace.leaving_out if method == "balanced" else trace.slopes
        vectors = to_numpy(trace.vectors)

        def weigh(candidates: Tensor) -> Float32:
            return to_numpy(by_trace(candidates))
    else:
        if encoder.scores_by_vector:
            vectors = AttentionRecommender(encoder).encode_window(window)
        if is_gru(encoder) and method != "exact":
            weigh = partial(slopes_in_time, encoder, window)
        else:
            weigh = partial(_leave_one_out, encoder, windows)

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
    layers, settings = encoder.layer_list, encoder.settings
    attends = bool(layers) and all(isinstance(layer, AttentionBlock) for layer in layers)
    is_traceable = settings.direction == "causal" and encoder.scores_by_vector and attends
    return is_traceable and (method == "balanced" or (method == "fast" and not settings.gumbel_hard))


def strongest(weights: Float32, histories: Histories, because_items: int) -> tuple[Int32, Float32]:
    """Past items with the largest positive weights for each (row, item): items and weights, [b, k, because_items].

    `weights` [b, k, l]: `contributions` for `histories`. Strongest first, then item 0 with weight 0; a repeated item counts once,
    with its strongest interaction. Equal weights: the older interaction first.
    """
    rows, explained, positions = weights.shape
    items = np.zeros((rows, explained, because_items), np.int32)
    strengths = np.zeros(items.shape, np.float32)
    past = _past_items(histories.last(positions), positions)
    left = weights.copy()
    for place in range(because_items if positions else 0):
        best = left.argmax(-1, keepdims=True)
        weight = np.take_along_axis(left, best, -1)
        item = np.where(weight > 0, np.take_along_axis(past[:, None, :], best, -1), 0)
        items[..., place], strengths[..., place] = item[..., 0], np.maximum(weight, 0)[..., 0]
        left[(past[:, None, :] == item) & (item > 0)] = 0
    return items, strengths


def events_to_try(weights: Float32, lengths: Int64, number: int) -> tuple[Int32, Float32]:
    """Columns of the strongest events for each (row, item), then of the row's newest, and their weights: two [b, k, 2 number].

    `weights` [b, k, l]: `contributions` for rows of `lengths` [b]. Strongest: of the largest positive weights, equal ones older
    first; unlike in `strongest` a repeated item counts with each of its events. Newest first, whatever their weight. Column -1
    with weight 0: none.
    """
    order = np.argsort(-weights, axis=-1, kind="stable")[..., :number]
    order = np.where(np.take_along_axis(weights, order, -1) > 0, order, -1)
    strongest = np.full((*weights.shape[:2], number), -1)
    strongest[..., : order.shape[-1]] = order
    newest = np.maximum(np.minimum(lengths, weights.shape[-1])[:, None] - 1 - np.arange(number), -1)
    newest = np.broadcast_to(newest[:, None], strongest.shape)
    columns = np.concatenate([strongest, newest], -1, dtype=np.int32)
    padded = np.pad(weights, [(0, 0), (0, 0), (0, 1)])  # column -1
    return columns, np.take_along_axis(padded, columns.astype(np.int64), -1)


def _past_items(windows: Histories, positions: int) -> Int32:
    """[b, positions] item of each column, 0 in padding."""
    rows, flat = windows.gather()
    past = np.zeros((len(windows), positions), np.int32)
    past[rows, flat - windows.starts[rows]] = windows.item_index[flat]
    return past


@torch.no_grad()
def _leave_one_out(encoder: Encoder, windows: Histories, candidates: Tensor) -> Float32:
    """`contributions` by leave-one-out, row by row."""
    weights = np.zeros((*candidates.shape[:2], int(windows.lengths.max())), np.float32)
    for row, length in enumerate(windows.lengths.tolist()):
        window = windows.select(slice(row, row + 1))
        whole = _last_scores(encoder, encoder.pad(window), candidates[row])
        left = _left_out(encoder, window, candidates[row])
        weights[row, :, :length] = to_numpy(whole - left).T
    return weights


@torch.no_grad()
def left_out_scores(encoder: Encoder, window: Histories, items: Int32) -> Float32:
    """[l, n] scores of `items` [n] for one row without each of its l >= 1 interactions in turn; 0 without the only one."""
    candidates = encoder.vectors_of(torch.from_numpy(items).to(encoder.device))
    return to_numpy(_left_out(encoder, window, candidates))


def _left_out(encoder: Encoder, window: Histories, candidates: Tensor) -> Tensor:
    """[l, k] scores of k candidates for one row without each of its interactions in turn."""
    length = int(window.lengths[0])
    if length == 1:
        return torch.zeros(1, len(candidates), device=encoder.device)
    copies = encoder.pad(window.select(np.zeros(length, np.int64)))
    kept = ~torch.eye(length, dtype=torch.bool, device=encoder.device)
    return _last_scores(encoder, _only(copies, kept), candidates)


@torch.inference_mode()
def kept_scores(encoder: Encoder, histories: Histories, items: Int32, kept: Bools) -> Float32:
    """[b] score of each row's item [b] with the kept interactions alone, the others left out as in "exact".

    `kept` [b, l]: columns as in `contributions`, more may follow. A row that keeps none scores 0.
    """
    windows = histories.last(encoder.max_length)
    kept = kept & (np.arange(kept.shape[1]) < windows.lengths[:, None])
    scores = np.zeros(len(items), np.float32)
    for rows in cut_by_tokens(kept.sum(1), BATCH_TOKENS):
        window = encoder.pad(windows.select(rows))
        chosen = torch.from_numpy(kept[rows, : window.item_index.shape[1]]).to(encoder.device)
        candidates = encoder.vectors_of(torch.from_numpy(items[rows]).to(encoder.device))
        scores[rows] = to_numpy(_own_scores(encoder, _only(window, chosen), candidates))
    return scores


def _own_scores(encoder: Encoder, window: Window, candidates: Tensor) -> Tensor:
    """[b] score of each row's own candidate [b, d]."""
    if encoder.target is None:
        return (encoder.last_states(window) * candidates).sum(1)
    return encoder.target.last_scores(encoder(window), window.lengths, candidates).diagonal()


def _last_scores(encoder: Encoder, window: Window, candidates: Tensor) -> Tensor:
    """[b, k] scores of k shared candidates."""
    if encoder.target is None:
        return encoder.last_states(window) @ candidates.T
    return encoder.target.last_scores(encoder(window), window.lengths, candidates)


def _only(window: Window, kept: Tensor) -> Window:
    """Rows with the kept interactions [b, l] alone, at least one, moved to the front but at their old positions."""
    lengths = kept.sum(1)
    position = (~kept).to(torch.uint8).argsort(dim=1, stable=True)[:, : int(lengths.max())]
    item_index, event_type = window.item_index.gather(1, position), window.event_type.gather(1, position)
    value, time = (None if part is None else part.gather(1, position) for part in (window.value, window.time))
    request_time = None
    if window.request_time is not None and time is not None:
        last = window.request_time.gather(1, (window.lengths - 1).unsqueeze(1))
        request_time = torch.cat([time[:, 1:], last], 1).scatter(1, (lengths - 1).unsqueeze(1), last)
    return Window(item_index, event_type, lengths, value, time, request_time, position)
