"""What mixes the positions of a history by attention: blocks from states to states, one after the other.

Letters: b rows, l positions, d components of a state, h heads, c = d / h components of a head, n >= b * l states.
A block answers two calls: `forward` for every position, `last` for the final position of each row alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.encoder.attention import HistoryAttention, Implementation
from models.encoder.attention_bias import Places, joined, windows_of
from models.settings.encoder import EncoderSettings
from models.shapes import Float, Int

FEED_FORWARD_WIDTH = 4
"""Width of the feed-forward layer with GELU, in multiples of d."""
SWIGLU_WIDTH = 8 / 3
"""Width of the gated one, in multiples of d: as many weights (Shazeer 2020)."""


class Dropout(nn.Module):
    """Each component is zero with probability `share`, otherwise divided by `1 - share`; the identity outside training.

    On the CPU four components share a 64-bit random number (torch draws one for each, several times as slow): there the
    share is a multiple of 2^-16. `share` in [0, 1).
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, states: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
        """The states, thinned out."""
        if not self.training or self.share == 0:
            return states
        if states.device.type != "cpu" or torch.compiler.is_compiling():
            return functional.dropout(states, self.share)
        return states * random_mask(states.shape, self.share).to(states.dtype).mul_(1 / (1 - self.share))


def random_mask(shape: torch.Size, share: float) -> Int[Tensor, "*any"]:
    """A CPU mask: 0 with probability round(2^16 share) / 2^16, else 1, from torch's default generator."""
    num = shape.numel()
    numbers = torch.empty((num + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    return numbers.view(torch.int16)[:num].ge_(round(share * 2**16) - 2**15).view(shape)


@dataclass(frozen=True)
class Look:
    """What every column of a window looks with and at in a block, and what it finds there."""

    states: Float[Tensor, "b l d"]
    """Before the block."""
    queries: Float[Tensor, "b h l c"]
    keys: Float[Tensor, "b h l c"]
    values: Float[Tensor, "b h l c"]
    mixed: Float[Tensor, "b h l c"]
    """What attention gathered; where gradients are taken they can be asked of it."""


@dataclass(frozen=True)
class LastLook:
    """What the last position of each row, or q columns in its place, look with and at."""

    state: Float[Tensor, "b q d"]
    """Their states before the block."""
    keys: Float[Tensor, "b h l c"]
    values: Float[Tensor, "b h l c"]
    places: Places


class AttentionBlock(nn.Module):
    """`x + what attention finds`, and what follows: the part that transformer, HSTU and LiGR share.

    A subclass says in `_finish` how states and what attention gathered become new states. `project` makes queries, keys and
    values, its last three parts, and before them whatever a subclass wants as well (`num_more` parts).
    """

    num_more = 0

    def __init__(self, settings: EncoderSettings, implementation: Implementation = "auto") -> None:
        super().__init__()
        self.num_heads = settings.num_heads
        self.attention_norm = nn.LayerNorm(settings.dim)
        self.project = nn.Linear(settings.dim, (self.num_more + 3) * settings.dim)
        self.attention = HistoryAttention(settings, implementation)
        self.dropout = Dropout(settings.dropout)

    def forward(
        self, states: Float[Tensor, "n d"], places: Sequence[Places], kept: list[Look] | None = None
    ) -> Float[Tensor, "n d"]:
        """New states of windows of b rows of l positions, one window and row after the other; states behind them see none.

        `kept` is given what each window looked with and at.
        """
        normed = self.attention_norm(states)
        projected = self._projected(normed, self.num_more, self.num_more + 3)
        mixed = []
        for number, (part, each) in enumerate(zip(windows_of(projected, places), places, strict=True)):
            queries, keys, values = (self._heads(third) for third in part.chunk(3, -1))
            found = self.attention(queries, keys, values, each)
            if kept is not None:
                found = found if found.requires_grad else found.requires_grad_(torch.is_grad_enabled())
                before = windows_of(states, places)[number]
                kept.append(Look(before, queries, keys, values, found))
            mixed.append(_joined(found))
        return self._finish(states, normed, joined(mixed, len(states)))

    def last(
        self, states: Float[Tensor, "b l d"], lengths: Int[Tensor, " b"], places: Places
    ) -> Float[Tensor, "b 1 d"]:
        """The new state at position `lengths - 1` of each row, computed for that position alone; lengths >= 1."""
        return self.seen(self.last_look(states, lengths, places))

    def seen(self, look: LastLook) -> Float[Tensor, "b q d"]:
        """New states of what looks (any q columns), by itself."""
        mixed = self.attention(self.queries(look.state), look.keys, look.values, look.places)
        return self.finish(look.state, mixed)

    def last_look(
        self, states: Float[Tensor, "b l d"], lengths: Int[Tensor, " b"], places: Places
    ) -> LastLook:
        """What attention at position `lengths - 1` of each row works on."""
        state = states.gather(1, (lengths - 1).view(-1, 1, 1).expand(-1, 1, states.shape[-1]))
        keys, values = self._projected(
            self.attention_norm(states), self.num_more + 1, self.num_more + 3
        ).chunk(2, -1)
        return LastLook(state, self._heads(keys), self._heads(values), places)

    def queries(self, states: Float[Tensor, "b q d"]) -> Float[Tensor, "b h q c"]:
        """What the given states look for."""
        return self._heads(self._projected(self.attention_norm(states), self.num_more, self.num_more + 1))

    def finish(
        self, states: Float[Tensor, "b q d"], mixed: Float[Tensor, "b h q c"], *, alike: bool = False
    ) -> Float[Tensor, "b q d"]:
        """The new states, from those before the block and what attention gathered for them.

        `alike`: the q columns are copies of one, and the feed-forward layer works on their mean alone: the same value, with a
        gradient that is their mean.
        """
        return self._finish(states, self.attention_norm(states), _joined(mixed), alike=alike)

    def _projected(self, normed: Tensor, first: int, last: int) -> Tensor:
        """Some parts of what `project` makes of normed states, side by side."""
        outputs = slice(first * normed.shape[-1], last * normed.shape[-1])
        return functional.linear(normed, self.project.weight[outputs], self.project.bias[outputs])

    def _finish(self, states: Tensor, normed: Tensor, mixed: Tensor, *, alike: bool = False) -> Tensor:
        """New states from the old ones, their norm, and what attention gathered."""
        raise NotImplementedError

    def _heads(self, states: Float[Tensor, "b l d"]) -> Float[Tensor, "b h l c"]:
        rows, positions, dim = states.shape
        return states.view(rows, positions, self.num_heads, dim // self.num_heads).transpose(1, 2)


class TransformerBlock(AttentionBlock):
    """Pre-norm transformer: `x + merge(attention(norm(x)))`, then `x + feed_forward(norm(x))`, with dropout.

    Source: Kang and McAuley 2018 (SASRec), the norm first as in Xiong et al. 2020.
    """

    def __init__(self, settings: EncoderSettings, implementation: Implementation = "auto") -> None:
        super().__init__(settings, implementation)
        self.merge = nn.Linear(settings.dim, settings.dim)
        self.feed_forward_norm = nn.LayerNorm(settings.dim)
        self.feed_forward = feed_forward(settings)

    def _finish(self, states: Tensor, _normed: Tensor, mixed: Tensor, *, alike: bool = False) -> Tensor:
        states = states + self.dropout(self.merge(mixed))
        return states + self._fed_forward(states, alike)

    def _fed_forward(self, states: Tensor, alike: bool) -> Tensor:
        one = states.mean(-2, keepdim=True) if alike else states
        added: Tensor = self.dropout(self.feed_forward(self.feed_forward_norm(one)))
        return added


class LiGRBlock(TransformerBlock):
    """Gated residuals: `x + sigmoid(G x) * merge(attention(norm(x)))`, then `x + sigmoid(H x) * feed_forward(norm(x))`.

    Source: Borisyuk et al. 2024 (LiGR), section 3; as a next-item model Tikhonovich et al. 2025 (eSASRec).
    """

    def __init__(self, settings: EncoderSettings, implementation: Implementation = "auto") -> None:
        super().__init__(settings, implementation)
        self.attention_gate = nn.Linear(settings.dim, settings.dim)
        self.feed_forward_gate = nn.Linear(settings.dim, settings.dim)

    def _finish(self, states: Tensor, _normed: Tensor, mixed: Tensor, *, alike: bool = False) -> Tensor:
        states = states + self.dropout(self.merge(mixed)) * self.attention_gate(states).sigmoid()
        gated: Tensor = self._fed_forward(states, alike) * self.feed_forward_gate(states).sigmoid()
        return states + gated


class HSTUBlock(AttentionBlock):
    """`u, v, q, k = silu(W norm(x) + b)`, then `x + merge(dropout(norm(attention(q, k, v)) * u))`; no feed-forward layer.

    Source: Zhai et al. 2024 (HSTU), section 3, equations 1 to 3.
    """

    num_more = 1

    def __init__(self, settings: EncoderSettings, implementation: Implementation = "auto") -> None:
        super().__init__(settings, implementation)
        self.mixed_norm = nn.LayerNorm(settings.dim)
        self.merge = nn.Linear(settings.dim, settings.dim)

    def _projected(self, normed: Tensor, first: int, last: int) -> Tensor:
        return functional.silu(super()._projected(normed, first, last))

    def _finish(self, states: Tensor, normed: Tensor, mixed: Tensor, *, alike: bool = False) -> Tensor:
        del alike  # there is no feed-forward layer
        gate = self._projected(normed, 0, 1)
        added: Tensor = self.merge(self.dropout(self.mixed_norm(mixed) * gate))
        return states + added


BLOCKS: dict[str, type[AttentionBlock]] = {
    "transformer": TransformerBlock,
    "hstu": HSTUBlock,
    "ligr": LiGRBlock,
}


def feed_forward(settings: EncoderSettings) -> nn.Module:
    """The layer that follows attention, with the kind of gate that the settings ask for."""
    return SwiGLU(settings) if settings.resolved.feed_forward == "swiglu" else GELU(settings)


class GELU(nn.Module):
    """`narrow(dropout(gelu(widen(x))))`, four times as wide in between."""

    def __init__(self, settings: EncoderSettings) -> None:
        super().__init__()
        self.widen = nn.Linear(settings.dim, FEED_FORWARD_WIDTH * settings.dim)
        self.narrow = nn.Linear(FEED_FORWARD_WIDTH * settings.dim, settings.dim)
        self.dropout = Dropout(settings.dropout)

    def forward(self, states: Float[Tensor, "*any d"]) -> Float[Tensor, "*any d"]:
        """Each state by itself."""
        narrowed: Tensor = self.narrow(self.dropout(functional.gelu(self.widen(states))))
        return narrowed


class SwiGLU(nn.Module):
    """`narrow(dropout(silu(gate(x)) * widen(x)))`. Source: Shazeer 2020 (GLU variants), equation 6."""

    def __init__(self, settings: EncoderSettings) -> None:
        super().__init__()
        width = 8 * max(1, round(SWIGLU_WIDTH * settings.dim / 8))
        self.widen = nn.Linear(settings.dim, 2 * width)
        self.narrow = nn.Linear(width, settings.dim)
        self.dropout = Dropout(settings.dropout)

    def forward(self, states: Float[Tensor, "*any d"]) -> Float[Tensor, "*any d"]:
        """Each state by itself."""
        gate, wide = self.widen(states).chunk(2, -1)
        narrowed: Tensor = self.narrow(self.dropout(functional.silu(gate) * wide))
        return narrowed


def _joined(mixed: Float[Tensor, "b h q c"]) -> Float[Tensor, "b q d"]:
    return mixed.transpose(1, 2).flatten(-2)
