"""Attribution through attention: how a past interaction reaches the last state, in closed form and by slopes.

*Directly*: the last position looks at it, in every layer. *Indirectly*: other positions look at it, and the last position looks
at them in a later layer.

Letters: b rows, k items explained per row, l positions of the longest window, d components, h heads, c = d / h, q columns that
look.
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
    """A forward pass through layers that all attend, with the tensors that attention worked on in each layer."""

    encoder: Encoder
    window: Window
    vectors: Float[Tensor, "b d"]
    """Output of `encoder.last_states(window)`, the call that is traced."""
    geometry: AttentionGeometry
    """Of the last position."""
    states: list[Float[Tensor, "b l d"]]
    """Before each layer."""
    queries: list[Float[Tensor, "b h _ c"]]
    """Of every column; in the last layer of the last position."""
    keys: list[Float[Tensor, "b h l c"]]
    values: list[Float[Tensor, "b h l c"]]
    mixed: list[Float[Tensor, "b h _ c"]]
    """What the queries gathered; gradients can be taken of all but the last layer's where the trace has them."""

    @classmethod
    def of(cls, encoder: Encoder, window: Window, *, with_gradients: bool) -> "ForwardTrace":
        """Trace rows of at least one interaction; `with_gradients` for `leaving_out`."""
        layers = encoder.attention_layers
        with torch.set_grad_enabled(with_gradients and len(layers) > 1), _recorded(layers) as (states, calls):
            vectors = encoder.last_states(window).detach()
        states = [state.view(*window.item_index.shape, -1) for state in states]
        queries, keys, values, mixed = (list(parts) for parts in zip(*calls, strict=True))
        geometry = last_geometry(window, encoder.settings)
        return cls(encoder, window, vectors, geometry, states, queries, keys, values, mixed)

    def slopes(self, candidates: Float[Tensor, "b k d"]) -> Float[Tensor, "b k l"]:
        """The direct way to first order: sum over layers of `d score / d presence` in the attention of the last position.

        The last interaction is left out for good. A gradient through the last position alone, of which each item has a copy;
        through feed-forward layers all items of a row share that of their mean.
        """
        with torch.enable_grad():
            finished, weights, mixed = self._at_last(candidates.shape[1])
            gradients = torch.autograd.grad((finished * candidates).sum(), mixed)
        parts = zip(self.encoder.attention_layers, weights, self.values, mixed, gradients, strict=True)
        slopes = [_presence_slopes(block, self.geometry, *tensors) for block, *tensors in parts]
        drop = ((finished.detach() - self._shorter()) * candidates).sum(-1, keepdim=True)
        return _with_last(torch.stack(slopes).sum(0), drop, self.window.lengths)

    def leaving_out(self, candidates: Float[Tensor, "b k d"]) -> Float[Tensor, "b k l"]:
        """The direct way as it is; the indirect one to first order, and the same for all items of a row.

        Directly: the last position looks in every layer at all but the interaction, and its state is followed to the end, at
        about the cost of a pass whatever the number of items. With a single layer there is no other way: then this is leaving
        it out. Indirectly: slopes of the other positions' attention, by one gradient of the row's mean score.
        """
        others = self.mixed[:-1]
        with torch.set_grad_enabled(bool(others)):
            finished, _, _ = self._at_last()
            score = (finished.squeeze(1) * candidates.mean(1)).sum()
            gradients = torch.autograd.grad(score, others) if others else ()
        with torch.no_grad():
            whole = finished.detach()
            drops = candidates @ (whole - self._each_unseen()).transpose(1, 2)
            drop = candidates @ (whole - self._shorter()).transpose(1, 2)
            geometry = full_geometry(self.window, self.encoder.settings)
            looked = zip(self.encoder.attention_layers, self.queries, self.keys, self.values, strict=True)
            # the last layer has no gradient: nobody looks at the others after it
            for (block, queries, keys, values), mixed, gradient in zip(
                looked, others, gradients, strict=False
            ):
                weights = block.attention.weights(queries, keys, geometry).to(values.dtype)
                slopes = _presence_slopes(block, geometry, weights, values, mixed, gradient)
                drops += (slopes.sum(1) - slopes.diagonal(dim1=1, dim2=2)).unsqueeze(1)
        return _with_last(drops, drop, self.window.lengths)

    def _first_state(self) -> Float[Tensor, "b 1 d"]:
        """The last position's state before the first layer."""
        return last_of(self.states[0], self.window.lengths).detach()

    def _at_last(self, copies: int = 1) -> tuple[Float[Tensor, "b _ d"], list[Tensor], list[Tensor]]:
        """The finished state of the last position [b, copies, d]; weights and mixed values of each layer's attention.

        Copies differ in their gradients alone: their numbers are the same.
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

    def _each_unseen(self) -> Float[Tensor, "b l d"]:
        """The finished state of a last position that looks in every layer at all columns but one: in column i at all but i."""
        geometry, columns = self.geometry, self.keys[0].shape[2]
        assert geometry.visible is not None
        hidden = torch.eye(columns, dtype=torch.bool, device=geometry.visible.device) & geometry.visible
        visible = geometry.visible & ~hidden
        visible = visible | ~visible.any(-1, keepdim=True)  # a row of one; see `_shorter`
        num_visible = (geometry.num_visible - hidden.sum(-1).squeeze(1)).clamp_min(1)
        unseen = replace(geometry, visible=visible, num_visible=num_visible)
        state = self._first_state().expand(-1, columns, -1)
        for block, keys, values in zip(self.encoder.attention_layers, self.keys, self.values, strict=True):
            state = block.at(state, keys, values, unseen)
        return self.encoder.finished(state)

    @torch.no_grad()
    def _shorter(self) -> Float[Tensor, "b 1 d"]:
        """The finished state without the last interaction: that of the one before, looking from the time of the request.

        The other positions' states stay as they were. 0 for rows of one.
        """
        encoder, layers = self.encoder, self.encoder.attention_layers
        window = without_last(self.window)
        geometry, rows = last_geometry(window, encoder.settings), torch.arange(len(window.lengths))
        column = window.lengths - 1
        if not encoder.settings.request_time:  # nor did this one's state change
            state = self.states[-1][rows, column].unsqueeze(1)
            state = layers[-1].at(state, self.keys[-1], self.values[-1], geometry)
            return encoder.finished(state) * (self.window.lengths > 1)[:, None, None]
        state = encoder.embed(window)[rows, column].unsqueeze(1)
        for block, every_key, every_value in zip(layers, self.keys, self.values, strict=True):
            own_keys, own_values = block.keys_values(block.attention_norm(state))
            keys, values = every_key.clone(), every_value.clone()
            keys[rows, :, column], values[rows, :, column] = own_keys.squeeze(2), own_values.squeeze(2)
            state = block.at(state, keys, values, geometry)
        return encoder.finished(state) * (self.window.lengths > 1)[:, None, None]


@contextlib.contextmanager
def _recorded(layers: list[AttentionBlock]) -> Iterator[tuple[list[Tensor], list[tuple[Tensor, ...]]]]:
    """Record this thread's passes: the states before each layer, and queries, keys, values and result of its attention.

    Results of all layers but the last become leaves of the gradient where gradients are on.
    """
    states, calls, thread = list[Tensor](), list[tuple[Tensor, ...]](), threading.get_ident()

    def keep_states(_: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if threading.get_ident() == thread and len(states) == len(calls) < len(layers):
            states.append(inputs[0])  # a layer's first norm; further ones are of columns of the same states

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
    """`d score / d presence` of each column looked at, from `gradient = d score / d mixed`, `mixed = weights @ values`.

    `presence`, 1, is what a column's weight is multiplied by, the others then taking up the difference in proportion:
    `w_j (v_j - mixed) . g`. Where weights are a sum over the number of columns seen (silu) it is what the column counts in both.
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
    """The rows without their last interaction (those of one keep it), asked for at the same time."""
    lengths = (window.lengths - 1).clamp_min(1)
    asked = window.asked
    if asked is not None:
        request = asked.gather(1, (window.lengths - 1).unsqueeze(1))
        asked = asked.scatter(1, (lengths - 1).unsqueeze(1), request)
    return replace(window, lengths=lengths, asked=asked)


def _with_last(
    weights: Float[Tensor, "b k l"], drop: Float[Tensor, "b k 1"], lengths: Int[Tensor, " b"]
) -> Float[Tensor, "b k l"]:
    """The weights with the last interaction's drop in its column, and nothing behind."""
    last = (lengths - 1).view(-1, 1, 1)
    column = torch.arange(weights.shape[2], device=weights.device)
    return torch.where(column < last, weights, torch.where(column == last, drop, 0))
