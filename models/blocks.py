"""What mixes the positions of a history: blocks from states to states, one after the other.

Letters: b rows, l positions, d components of a state, h heads, c = d / h components of a head, n >= b * l states.
A block answers two calls: `forward` for every position, `last` for the final position of each row alone.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.attention import Implementation, attend
from models.settings import EncoderSettings
from models.shapes import Bool, Float, Int

FEED_FORWARD_WIDTH = 4
"""Width of the feed-forward layer, in multiples of d."""


EXACT_DISTANCES, NUM_DISTANCES = 16, 32
"""Distances with a number of their own in `DistanceBias`, and numbers in all."""


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
class LastLook:
    """What the last position of each row looks with and at."""

    state: Float[Tensor, "b 1 d"]
    """Its state before the block."""
    queries: Float[Tensor, "b h 1 c"]
    keys: Float[Tensor, "b h l c"]
    values: Float[Tensor, "b h l c"]
    visible: Bool[Tensor, "b 1 1 l"]
    """False at padding."""
    bias: Float[Tensor, "b h 1 l"] | None
    """By distance, where there is one."""


class DistanceBias(nn.Module):
    """A learned number per head and distance, added to attention's scores: near and far mean the same anywhere.

    Distances 0..15 have a number each, those from 16 on share one with the others of
    `floor(4 log2(distance / 16))`, and from 256 on there is one for all. Zero at the start.
    Source: Raffel et al. 2020 (T5), section 2.1, whose buckets are as fine near and as coarse far.
    """

    def __init__(self, num_heads: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_heads, NUM_DISTANCES))

    def forward(self, distance: Int[Tensor, "b q l"]) -> Float[Tensor, "b h q l"]:
        """The number of each distance; negative ones, which nothing sees, count as 0."""
        near = distance.clamp_min(0)
        far = EXACT_DISTANCES + (4 * torch.log2(near.clamp_min(1) / EXACT_DISTANCES)).floor().long()
        row = torch.where(near < EXACT_DISTANCES, near, far.clamp(EXACT_DISTANCES, NUM_DISTANCES - 1))
        return self.weight[:, row].transpose(0, 1)


class TransformerBlock(nn.Module):
    """Pre-norm transformer: `x + attention(norm(x))`, then `x + narrow(gelu(widen(norm(x))))`, with dropout.

    Position i sees positions 0..i only. Source: Kang and McAuley 2018 (SASRec), the norm first as in Xiong et al. 2020.
    """

    def __init__(self, settings: EncoderSettings, implementation: Implementation = "auto") -> None:
        super().__init__()
        dim = settings.dim
        self.num_heads = settings.num_heads
        self.implementation: Implementation = implementation
        self.attention_norm = nn.LayerNorm(dim)
        self.project = nn.Linear(dim, 3 * dim)
        self.merge = nn.Linear(dim, dim)
        self.feed_forward_norm = nn.LayerNorm(dim)
        self.widen = nn.Linear(dim, FEED_FORWARD_WIDTH * dim)
        self.narrow = nn.Linear(FEED_FORWARD_WIDTH * dim, dim)
        self.dropout = Dropout(settings.dropout)
        self.distances = DistanceBias(settings.num_heads) if settings.positions == "relative" else None

    def forward(
        self,
        states: Float[Tensor, "n d"],
        shape: tuple[int, int],
        position: Int[Tensor, "b l"] | None = None,
    ) -> Float[Tensor, "n d"]:
        """New states of b rows of l positions, one row after the other (`shape` is b, l); states behind them see none.

        `position` says where in the window each column stands; default: where it is.
        """
        real = shape[0] * shape[1]
        parts = self.project(self.attention_norm(states))[:real].unflatten(0, shape).chunk(3, -1)
        queries, keys, values = (self._heads(part) for part in parts)
        bias = None
        if self.distances is not None:
            place = (
                position
                if position is not None
                else torch.arange(shape[1], device=states.device).unsqueeze(0)
            )
            bias = self.distances(place.unsqueeze(2) - place.unsqueeze(1))
        mixed = attend(queries, keys, values, implementation=self.implementation, bias=bias)
        mixed = self._joined(mixed).flatten(0, 1)
        return self._finish(states, functional.pad(mixed, (0, 0, 0, len(states) - real)))

    def last(
        self,
        states: Float[Tensor, "b l d"],
        lengths: Int[Tensor, " b"],
        position: Int[Tensor, "b l"] | None = None,
    ) -> Float[Tensor, "b 1 d"]:
        """The new state at position `lengths - 1` of each row, computed for that position alone; lengths >= 1."""
        look = self.last_look(states, lengths, position)
        mixed = attend(look.queries, look.keys, look.values, look.visible, self.implementation, look.bias)
        return self.finish(look.state, mixed)

    def last_look(
        self,
        states: Float[Tensor, "b l d"],
        lengths: Int[Tensor, " b"],
        position: Int[Tensor, "b l"] | None = None,
    ) -> LastLook:
        """What attention at position `lengths - 1` of each row works on, `position` as in `forward`."""
        dim = states.shape[-1]
        keys, values = self._project(self.attention_norm(states), slice(dim, None)).chunk(2, -1)
        at_last = (lengths - 1).view(-1, 1, 1).expand(-1, 1, dim).long()
        state = states.gather(1, at_last)
        visible = torch.arange(states.shape[1], device=states.device) < lengths.view(-1, 1, 1, 1)
        bias = None
        if self.distances is not None:
            place = position
            if place is None:
                place = torch.arange(states.shape[1], device=states.device).expand(len(states), -1)
            own = place.gather(1, (lengths - 1).view(-1, 1).long())
            bias = self.distances((own - place).unsqueeze(1))
        return LastLook(state, self.queries(state), self._heads(keys), self._heads(values), visible, bias)

    def queries(self, states: Float[Tensor, "b q d"]) -> Float[Tensor, "b h q c"]:
        """What the given states look for."""
        return self._heads(self._project(self.attention_norm(states), slice(states.shape[-1])))

    def finish(
        self, states: Float[Tensor, "b q d"], mixed: Float[Tensor, "b h q c"]
    ) -> Float[Tensor, "b q d"]:
        """The new states, from those before the block and what attention gathered for them."""
        return self._finish(states, self._joined(mixed))

    def _finish(self, states: Tensor, mixed: Tensor) -> Tensor:
        """Attention's residual sum, then the feed-forward layer and its own."""
        states = states + self.dropout(self.merge(mixed))
        wide = self.dropout(functional.gelu(self.widen(self.feed_forward_norm(states))))
        thinned: Tensor = self.dropout(self.narrow(wide))
        return states + thinned

    def _project(self, normed: Tensor, outputs: slice) -> Tensor:
        """Part of the outputs of `project`, whose order is queries, keys, values."""
        return functional.linear(normed, self.project.weight[outputs], self.project.bias[outputs])

    def _heads(self, states: Float[Tensor, "b l d"]) -> Float[Tensor, "b h l c"]:
        rows, positions, dim = states.shape
        return states.view(rows, positions, self.num_heads, dim // self.num_heads).transpose(1, 2)

    @staticmethod
    def _joined(mixed: Tensor) -> Tensor:
        """[b, h, q, c] to [b, q, d]."""
        return mixed.transpose(1, 2).flatten(-2)
