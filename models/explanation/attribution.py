"""How a past interaction reaches the state that recommends, through layers that attend: in closed form and by slopes.

It does so in two ways. *Directly*: the last position looks at it, in every layer. *Indirectly*: other positions look at it, and
the last position looks at them in a later layer.

Letters: b rows, k items explained per row, l positions of the longest window, d components, h heads, c = d / h, q columns that
look.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from models.encoder.attention_bias import Places, all_places, last_places
from models.encoder.batching import Window
from models.encoder.blocks import AttentionBlock, LastLook, Look
from models.encoder.encoder import Encoder
from models.shapes import Float, Int


@dataclass(frozen=True)
class _Attended:
    """What the columns that look in one layer drew on."""

    weights: Float[Tensor, "b h #q l"]
    """Of one column, where the others are copies of it."""
    values: Float[Tensor, "b h l c"]
    mixed: Float[Tensor, "b h q c"]
    """`weights @ values`, of which gradients are asked."""
    places: Places
    is_sum: bool
    """Weights that need not add up to 1 (silu), divided by the number of columns seen."""

    @classmethod
    def of(cls, block: AttentionBlock, look: LastLook, copies: int = 1) -> "_Attended":
        """By the states that look; `copies` of what a single one finds."""
        weights = block.attention.weights(block.queries(look.state), look.keys, look.places)
        weights = weights.to(look.values.dtype)
        mixed = (weights @ look.values).repeat(1, 1, copies, 1)
        if not mixed.requires_grad:
            mixed.requires_grad_()
        return cls(weights, look.values, mixed, look.places, _is_sum(block))

    @classmethod
    @torch.no_grad()
    def by(cls, block: AttentionBlock, look: Look, places: Places) -> "_Attended":
        """By every column, as they did on their way."""
        weights = block.attention.weights(look.queries, look.keys, places).to(look.values.dtype)
        return cls(weights, look.values, look.mixed, places, _is_sum(block))

    def slopes(self, gradient: Float[Tensor, "b h q c"]) -> Float[Tensor, "b q l"]:
        """`d score / d presence` of each column looked at, from `d score / d mixed`.

        `presence`, 1, is what a column's weight is multiplied by, the others then taking up the difference in proportion:
        `w_j (v_j - mixed) . g`. Where weights are a sum over the number of columns seen it is what the column counts in both.
        """
        worth, whole = gradient @ self.values.transpose(-2, -1), (gradient * self.mixed).sum(-1, keepdim=True)
        if not self.is_sum:
            return (self.weights * (worth - whole)).sum(1).detach()
        visible = self.places.visible
        if visible is None:
            visible = torch.ones_like(worth[0, 0], dtype=torch.bool).tril()
        share = visible / self.places.num_visible[:, None, :, None]
        return (self.weights * worth - share * whole).sum(1).detach()


def _is_sum(block: AttentionBlock) -> bool:
    return block.attention.settings.weighting == "silu"


@dataclass(frozen=True)
class Way:
    """Rows on their way through the layers of an encoder: made once, for their vectors and for what these are based on."""

    encoder: Encoder
    window: Window
    vectors: Float[Tensor, "b d"]
    """`encoder.last_states(window)`, to the bit."""
    looks: list[LastLook]
    """What the last position looks at in each layer."""
    others: list[Look]
    """What every column looked at in each layer but the last."""
    shorter: Float[Tensor, "b 1 d"]
    """The finished state without the last interaction; 0 for rows of one."""

    @classmethod
    def of(cls, encoder: Encoder, window: Window, *, with_gradients: bool) -> "Way":
        """Of rows of at least one interaction; `with_gradients` for `leaving_out`."""
        layers, lengths = encoder.attention_layers, window.lengths
        at_last, others = last_places(window, encoder.settings), list[Look]()
        with torch.set_grad_enabled(with_gradients and len(layers) > 1):
            states = encoder.before_last_layer(window, others)
            look = layers[-1].last_look(states, lengths, at_last)
        column = (lengths - 1).view(-1, 1, 1).expand(-1, 1, states.shape[-1])
        looks = [
            LastLook(each.states.gather(1, column).detach(), each.keys, each.values, at_last)
            for each in others
        ]
        looks.append(look)
        with torch.no_grad():
            vectors = encoder.finished(layers[-1].seen(look)).squeeze(1)
            return cls(encoder, window, vectors, looks, others, _shorter(encoder, window, states, looks))

    def slopes(self, candidates: Float[Tensor, "b k d"]) -> Float[Tensor, "b k l"]:
        """The direct way to first order: sum over layers of `d score / d presence` in the attention of the last position.

        The last interaction is left out for good. A gradient through the last position alone, of which each item has a copy;
        through feed-forward layers all items of a row share that of their mean.
        """
        with torch.enable_grad():
            finished, attended = _at_last(self.encoder, self.looks, candidates.shape[1])
            score = (finished * candidates).sum()
            gradients = torch.autograd.grad(score, [each.mixed for each in attended])
        parts = [each.slopes(gradient) for each, gradient in zip(attended, gradients, strict=True)]
        drop = ((finished.detach() - self.shorter) * candidates).sum(-1, keepdim=True)
        return _with_last(torch.stack(parts).sum(0), drop, self.window.lengths)

    def leaving_out(self, candidates: Float[Tensor, "b k d"]) -> Float[Tensor, "b k l"]:
        """The direct way as it is; the indirect one to first order, and the same for all items of a row.

        Directly: the last position looks in every layer at all but the interaction, and what becomes of its state is followed to
        the end, at about the cost of a pass whatever the number of items. With a single layer there is no other way: then this is
        leaving it out. Indirectly: slopes of what the other positions look at, by one gradient of the row's mean score.
        """
        with torch.set_grad_enabled(bool(self.others)):
            finished, _ = _at_last(self.encoder, self.looks)
            score = (finished.squeeze(1) * candidates.mean(1)).sum()
            kept = [each.mixed for each in self.others]
            gradients = torch.autograd.grad(score, kept) if kept else ()
        with torch.no_grad():
            whole = finished.detach()
            drops = candidates @ (whole - _each_unseen(self.encoder, self.looks)).transpose(1, 2)
            drop = candidates @ (whole - self.shorter).transpose(1, 2)
            everywhere = all_places(self.window, self.encoder.settings)
            layers = self.encoder.attention_layers
            for block, look, gradient in zip(layers, self.others, gradients, strict=False):
                to_each = _Attended.by(block, look, everywhere).slopes(gradient)
                drops += (to_each.sum(1) - to_each.diagonal(dim1=1, dim2=2)).unsqueeze(1)
        return _with_last(drops, drop, self.window.lengths)


def without_last(window: Window) -> Window:
    """The rows without their last interaction (those of one keep it), asked for at the same time."""
    lengths = (window.lengths - 1).clamp_min(1)
    asked = window.asked
    if asked is not None:
        request = asked.gather(1, (window.lengths - 1).unsqueeze(1))
        asked = asked.scatter(1, (lengths - 1).unsqueeze(1), request)
    return replace(window, lengths=lengths, asked=asked)


def _shorter(
    encoder: Encoder, window: Window, states: Float[Tensor, "b l d"], looks: list[LastLook]
) -> Tensor:
    """The finished state without the last interaction: that of the one before, which now looks from the time of the request.

    What earlier positions made of the others is as it was; `states` are those that the last layer works on.
    """
    without = without_last(window)
    places, rows = last_places(without, encoder.settings), torch.arange(len(without.lengths))
    at, layers = without.lengths - 1, encoder.attention_layers
    if not encoder.settings.request_time:  # nor did this one's state change
        state = layers[-1].seen(replace(looks[-1], state=states[rows, at].unsqueeze(1), places=places))
        return encoder.finished(state) * (window.lengths > 1)[:, None, None]
    state = encoder.embed(without)[rows, at].unsqueeze(1)
    for block, look in zip(layers, looks, strict=True):
        own = block.last_look(state, torch.ones_like(at), places)
        keys, values = look.keys.clone(), look.values.clone()
        keys[rows, :, at], values[rows, :, at] = own.keys.squeeze(2), own.values.squeeze(2)
        state = block.seen(LastLook(state, keys, values, places))
    return encoder.finished(state) * (window.lengths > 1)[:, None, None]


def _at_last(encoder: Encoder, looks: Sequence[LastLook], copies: int = 1) -> tuple[Tensor, list[_Attended]]:
    """The finished state of the last position [b, copies, d], and what it looked at in each layer.

    Copies differ in their gradients alone: what they are made of is the same.
    """
    state, attended = looks[0].state, list[_Attended]()
    for block, look in zip(encoder.attention_layers, looks, strict=True):
        attended.append(_Attended.of(block, replace(look, state=state), copies // state.shape[1]))
        state = block.finish(state.expand(-1, copies, -1), attended[-1].mixed, alike=copies > 1)
    return encoder.finished(state), attended


def _each_unseen(encoder: Encoder, looks: Sequence[LastLook]) -> Float[Tensor, "b l d"]:
    """The finished state of a last position that looks in every layer at all columns but one: in column i at all but i."""
    places, columns = looks[0].places, looks[0].keys.shape[2]
    assert places.visible is not None
    hidden = torch.eye(columns, dtype=torch.bool, device=places.visible.device) & places.visible
    visible = places.visible & ~hidden
    visible = visible | ~visible.any(-1, keepdim=True)  # a row of one; `shorter` has what becomes of it
    num_visible = (places.num_visible - hidden.sum(-1).squeeze(1)).clamp_min(1)
    unseen = replace(places, visible=visible, num_visible=num_visible)
    state = looks[0].state.expand(-1, columns, -1)
    for block, look in zip(encoder.attention_layers, looks, strict=True):
        state = block.seen(replace(look, state=state, places=unseen))
    return encoder.finished(state)


def _with_last(
    weights: Float[Tensor, "b k l"], drop: Float[Tensor, "b k 1"], lengths: Int[Tensor, " b"]
) -> Float[Tensor, "b k l"]:
    """The weights with the last interaction's drop in its column, and nothing behind."""
    last = (lengths - 1).view(-1, 1, 1)
    column = torch.arange(weights.shape[2], device=weights.device)
    return torch.where(column < last, weights, torch.where(column == last, drop, 0))
