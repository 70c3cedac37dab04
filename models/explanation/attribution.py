"""Attribution through attention of a score to past interactions, in closed form and by gradients.

The *direct* path of an interaction: the last position attends to it, in every layer. The *indirect* path: other positions attend
to it, and the last position attends to them in a later layer.

Letters: b rows, k items explained per row, l positions of the longest window, d components, h heads, c = d / h, q query columns.
"""

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from models.encoder.attention_bias import AttentionGeometry, full_geometry, last_geometry
from models.encoder.batching import Window
from models.encoder.blocks import AttentionBlock, join_heads, last_of
from models.encoder.encoder import Encoder
from models.shapes import Float, Int


@dataclass(frozen=True)
class ForwardTrace:
    """Recorded forward pass of an encoder of attention layers only."""

    encoder: Encoder
    window: Window
    vectors: Float[Tensor, "b d"]
    """Output of the traced call, `encoder.last_states(window)`."""
    geometry: AttentionGeometry
    """Geometry of the last position."""
    states: list[Float[Tensor, "b l d"]]
    """Input of each layer."""
    queries: list[Float[Tensor, "b h _ c"]]
    """Queries of every column; in the last layer of the last position alone."""
    keys: list[Float[Tensor, "b h l c"]]
    values: list[Float[Tensor, "b h l c"]]
    mixed: list[Float[Tensor, "b h _ c"]]
    """Attention outputs; leaves of the gradient in all layers but the last, where the trace has gradients."""

    @classmethod
    def of(cls, encoder: Encoder, window: Window, *, with_gradients: bool) -> "ForwardTrace":
        """Trace non-empty rows; `with_gradients` for `leaving_out`."""
        layers = encoder.attention_layers
        with torch.set_grad_enabled(with_gradients and len(layers) > 1), _recorded(layers) as (states, calls):
            vectors = encoder.last_states(window).detach()
        states = [state.view(*window.item_index.shape, -1) for state in states]
        queries, keys, values, mixed = (list(parts) for parts in zip(*calls, strict=True))
        geometry = last_geometry(window, encoder.settings)
        return cls(encoder, window, vectors, geometry, states, queries, keys, values, mixed)

    def slopes(self, candidates: Float[Tensor, "b k d"]) -> Float[Tensor, "b k l"]:
        """Direct path to first order: sum over layers of `d score / d presence` in the attention of the last position.

        The last interaction's drop is exact. The gradient passes through a copy of the last position per item; in feed-forward
        layers all items of a row share that of their mean.
        """
        with torch.enable_grad():
            finished, weights, mixed = self._at_last(candidates.shape[1])
            gradients = torch.autograd.grad((finished * candidates).sum(), mixed)
        parts = zip(self.encoder.attention_layers, weights, self.values, mixed, gradients, strict=True)
        slopes = [_presence_slopes(block, self.geometry, *tensors) for block, *tensors in parts]
        drop = ((finished.detach() - self._without_last()) * candidates).sum(-1, keepdim=True)
        return _with_last(torch.stack(slopes).sum(0), drop, self.window.lengths)

    def leaving_out(self, candidates: Float[Tensor, "b k d"]) -> Float[Tensor, "b k l"]:
        """Direct path exactly; indirect path to first order, shared by all items of a row.

        Direct: a pass of the last position with the interaction masked in every layer, at about the cost of a forward pass for
        any number of items; with a single layer this is leave-one-out. Indirect: slopes of the other positions' attention, by
        one gradient of the row's mean score.
        """
        others = self.mixed[:-1]
        with torch.set_grad_enabled(bool(others)):
            finished, _, _ = self._at_last()
            score = (finished.squeeze(1) * candidates.mean(1)).sum()
            # retained: items beyond the ranker are explained by a second call
            gradients = torch.autograd.grad(score, others, retain_graph=True) if others else ()
        with torch.no_grad():
            whole = finished.detach()
            drops = candidates @ (whole - self._each_masked()).transpose(1, 2)
            drop = candidates @ (whole - self._without_last()).transpose(1, 2)
            geometry = full_geometry(self.window, self.encoder.settings)
            layers = self.encoder.attention_layers, self.queries, self.keys, self.values
            # others and gradients lack the last layer: no later one attends to its other positions
            for block, queries, keys, values, mixed, gradient in zip(
                *layers, others, gradients, strict=False
            ):
                weights = block.attention.weights(queries, keys, geometry).to(values.dtype)
                slopes = _presence_slopes(block, geometry, weights, values, mixed, gradient)
                drops += (slopes.sum(1) - slopes.diagonal(dim1=1, dim2=2)).unsqueeze(1)
        return _with_last(drops, drop, self.window.lengths)

    def _first_state(self) -> Float[Tensor, "b 1 d"]:
        """Last position's input of the first layer."""
        return last_of(self.states[0], self.window.lengths).detach()

    def _at_last(self, copies: int = 1) -> tuple[Float[Tensor, "b _ d"], list[Tensor], list[Tensor]]:
        """Finished state of the last position [b, copies, d]; attention weights and outputs of each layer.

        Copies have equal values and differ in their gradients alone.
        """
        state, every_weights, every_mixed = self._first_state(), list[Tensor](), list[Tensor]()
        for block, keys, values in zip(self.encoder.attention_layers, self.keys, self.values, strict=True):
            queries = block.queries(block.attention_norm(state))
            weights = block.attention.weights(queries, keys, self.geometry).to(values.dtype)
            mixed = (weights @ values).repeat(1, 1, copies // state.shape[1], 1)
            if not mixed.requires_grad:
                mixed.requires_grad_()
            state = state.expand(-1, copies, -1)
            state = block.merged(state, block.attention_norm(state), join_heads(mixed))
            state = block.fed_forward(state, state.mean(-2, keepdim=True) if copies > 1 else state)
            every_weights.append(weights)
            every_mixed.append(mixed)
        return self.encoder.finished(state), every_weights, every_mixed

    def _each_masked(self) -> Float[Tensor, "b l d"]:
        """Finished state of the last position with column i masked in every layer, for each i."""
        geometry, columns = self.geometry, self.keys[0].shape[2]
        assert geometry.visible is not None
        hidden = torch.eye(columns, dtype=torch.bool, device=geometry.visible.device) & geometry.visible
        visible = geometry.visible & ~hidden
        visible = visible | ~visible.any(-1, keepdim=True)  # a row of one; see `_without_last`
        num_visible = (geometry.num_visible - hidden.sum(-1).squeeze(1)).clamp_min(1)
        masked = replace(geometry, mask=visible, num_visible=num_visible)
        state = self._first_state().expand(-1, columns, -1)
        for block, keys, values in zip(self.encoder.attention_layers, self.keys, self.values, strict=True):
            state = block.at(state, keys, values, masked)
        return self.encoder.finished(state)

    @torch.no_grad()
    def _without_last(self) -> Float[Tensor, "b 1 d"]:
        """Finished state of the last but one position at the request time, other positions unchanged; 0 for rows of one."""
        encoder, layers = self.encoder, self.encoder.attention_layers
        window = without_last(self.window)
        geometry, column = last_geometry(window, encoder.settings), window.lengths - 1
        rows = torch.arange(len(column), device=column.device)
        if not encoder.settings.request_time:  # without it this position's state is unchanged too
            state = layers[-1].at(
                last_of(self.states[-1], window.lengths), self.keys[-1], self.values[-1], geometry
            )
        else:
            state = last_of(encoder.embed(window), window.lengths)
            for block, layer_keys, layer_values in zip(layers, self.keys, self.values, strict=True):
                own_keys, own_values = block.keys_values(block.attention_norm(state))
                keys, values = layer_keys.clone(), layer_values.clone()
                keys[rows, :, column], values[rows, :, column] = own_keys.squeeze(2), own_values.squeeze(2)
                state = block.at(state, keys, values, geometry)
        return encoder.finished(state) * (self.window.lengths > 1)[:, None, None]


@contextlib.contextmanager
def _recorded(layers: list[AttentionBlock]) -> Iterator[tuple[list[Tensor], list[tuple[Tensor, ...]]]]:
    """Record this thread's forward passes: input of each layer; queries, keys, values and output of its attention.

    Outputs of all layers but the last become leaves of the gradient where gradients are on.
    """
    states, calls, thread = list[Tensor](), list[tuple[Tensor, ...]](), threading.get_ident()

    def keep_states(_: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if threading.get_ident() == thread and len(states) == len(calls) < len(layers):
            states.append(inputs[0])  # a layer's first norm; further norms are of columns of the same states

    def keep_call(_: torch.nn.Module, inputs: tuple[Any, ...], mixed: Tensor) -> None:
        if threading.get_ident() == thread:
            if torch.is_grad_enabled() and len(calls) < len(layers) - 1 and not mixed.requires_grad:
                mixed.requires_grad_()
            calls.append((*inputs[:3], mixed))

    hooks = [layer.attention_norm.register_forward_pre_hook(keep_states) for layer in layers]
    hooks += [layer.attention.register_forward_hook(keep_call) for layer in layers]
    try:
        yield states, calls
    finally:
        for hook in hooks:
            hook.remove()


def _presence_slopes(
    block: AttentionBlock,
    geometry: AttentionGeometry,
    weights: Float[Tensor, "b h _ l"],
    values: Float[Tensor, "b h l c"],
    mixed: Float[Tensor, "b h q c"],
    gradient: Float[Tensor, "b h q c"],
) -> Float[Tensor, "b q l"]:
    """`d score / d presence` of each key column, from `gradient = d score / d mixed`, `mixed = weights @ values`.

    `presence` (1) multiplies a column's weight before normalisation: `w_j (v_j - mixed) . g`. With silu, whose weights are
    divided by the number of visible columns, it multiplies the column's weight and its count.
    """
    worth, whole = gradient @ values.transpose(-2, -1), (gradient * mixed).sum(-1, keepdim=True)
    if block.attention.settings.weighting != "silu":
        return (weights * (worth - whole)).sum(1).detach()
    visible = geometry.visible
    if visible is None:
        visible = torch.ones_like(worth[0, 0], dtype=torch.bool).tril()
    share = visible / geometry.num_visible[:, None, :, None]
    return (weights * worth - share * whole).sum(1).detach()


def without_last(window: Window) -> Window:
    """Rows without their last interaction (rows of one keep it), with the same request time."""
    lengths = (window.lengths - 1).clamp_min(1)
    request_time = window.request_time
    if request_time is not None:
        last = request_time.gather(1, (window.lengths - 1).unsqueeze(1))
        request_time = request_time.scatter(1, (lengths - 1).unsqueeze(1), last)
    return replace(window, lengths=lengths, request_time=request_time)


def _with_last(
    weights: Float[Tensor, "b k l"], drop: Float[Tensor, "b k 1"], lengths: Int[Tensor, " b"]
) -> Float[Tensor, "b k l"]:
    """Weights with the last interaction's drop in its column, 0 behind it."""
    last = (lengths - 1).view(-1, 1, 1)
    column = torch.arange(weights.shape[2], device=weights.device)
    return torch.where(column < last, weights, torch.where(column == last, drop, 0))
