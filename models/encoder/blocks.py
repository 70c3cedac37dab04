"""Attention blocks: transformer, HSTU and LiGR.

Letters: b rows, l positions, d components of a state, h heads, c = d / h components of a head, n >= b * l states.
A block has two calls: `forward` for every position of concatenated windows, whose padding states carry no meaning; `last` for
the final position of each row alone.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.encoder.attention import HistoryAttention, Implementation
from models.encoder.attention_bias import AttentionGeometry, joined, windows_of
from models.settings.encoder import EncoderSettings
from models.shapes import Float, Int

FEED_FORWARD_WIDTH = 4
"""Width of the feed-forward layer with GELU, in multiples of d."""
SWIGLU_WIDTH = 8 / 3
"""Width of the gated layer, in multiples of d: as many weights (Shazeer 2020)."""


class Dropout(nn.Module):
    """Dropout with probability `share` in [0, 1), on the CPU rounded to a multiple of 2^-16.

    There four components share a 64-bit random number; torch draws one for each, several times as slow.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, states: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
        """States with random components zero, the others divided by `1 - share`; unchanged outside training."""
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


class AttentionBlock(nn.Module):
    """Base of transformer, HSTU and LiGR: residual attention (`merged`), then a feed-forward layer (`fed_forward`), if any.

    `project` makes `num_more` parts of a subclass's own, then queries, keys and values.
    """

    num_more = 0
    merge: nn.Linear

    def __init__(self, settings: EncoderSettings, implementation: Implementation = "auto") -> None:
        super().__init__()
        self.num_heads = settings.num_heads
        self.attention_norm = nn.LayerNorm(settings.dim)
        self.project = nn.Linear(settings.dim, (self.num_more + 3) * settings.dim)
        self.attention = HistoryAttention(settings, implementation)
        self.dropout = Dropout(settings.dropout)

    def forward(
        self, states: Float[Tensor, "n d"], geometry: Sequence[AttentionGeometry]
    ) -> Float[Tensor, "n d"]:
        """New states of concatenated windows of b rows and l positions."""
        normed = self.attention_norm(states)
        projected = self._projected(normed, self.num_more, self.num_more + 3)
        mixed = []
        for part, window in zip(windows_of(projected, geometry), geometry, strict=True):
            heads = self.attention(*map(self._heads, part.chunk(3, -1)), window)
            mixed.append(join_heads(heads))
        return self._finish(states, normed, joined(mixed, len(states)))

    def last(
        self, states: Float[Tensor, "b l d"], lengths: Int[Tensor, " b"], geometry: AttentionGeometry
    ) -> Float[Tensor, "b 1 d"]:
        """New state at position `lengths - 1` of each row, computed for that position alone; lengths >= 1."""
        keys, values = self.keys_values(self.attention_norm(states))
        return self.at(last_of(states, lengths), keys, values, geometry)

    def at(
        self,
        states: Float[Tensor, "b q d"],
        keys: Float[Tensor, "b h l c"],
        values: Float[Tensor, "b h l c"],
        geometry: AttentionGeometry,
    ) -> Float[Tensor, "b q d"]:
        """New states of any q query columns over the given keys and values."""
        normed = self.attention_norm(states)
        mixed = self.attention(self.queries(normed), keys, values, geometry)
        return self._finish(states, normed, join_heads(mixed))

    def queries(self, normed: Float[Tensor, "b q d"]) -> Float[Tensor, "b h q c"]:
        """Queries of normed states."""
        return self._heads(self._projected(normed, self.num_more, self.num_more + 1))

    def keys_values(
        self, normed: Float[Tensor, "b l d"]
    ) -> tuple[Float[Tensor, "b h l c"], Float[Tensor, "b h l c"]]:
        """Keys and values of normed states."""
        keys, values = self._projected(normed, self.num_more + 1, self.num_more + 3).chunk(2, -1)
        return self._heads(keys), self._heads(values)

    def merged(self, states: Tensor, normed: Tensor, mixed: Tensor) -> Tensor:
        """States plus attention output, here `x + merge(mixed)`; `normed`: their norm before attention."""
        del normed
        added: Tensor = self.dropout(self.merge(mixed))
        return states + added

    def fed_forward(self, states: Tensor, source: Tensor) -> Tensor:
        """States plus the feed-forward layer's output of `source`; unchanged without such a layer."""
        del source
        return states

    def _finish(self, states: Tensor, normed: Tensor, mixed: Tensor) -> Tensor:
        merged = self.merged(states, normed, mixed)
        return self.fed_forward(merged, merged)

    def _projected(self, normed: Tensor, first: int, last: int) -> Tensor:
        """Parts `first` to `last - 1` of `project(normed)`, concatenated."""
        outputs = slice(first * normed.shape[-1], last * normed.shape[-1])
        return functional.linear(normed, self.project.weight[outputs], self.project.bias[outputs])

    def _heads(self, states: Float[Tensor, "b l d"]) -> Float[Tensor, "b h l c"]:
        heads = self.num_heads
        return states.view(*states.shape[:2], heads, states.shape[2] // heads).transpose(1, 2)


class TransformerBlock(AttentionBlock):
    """Pre-norm transformer: `x + merge(attention(norm(x)))`, then `x + feed_forward(norm(x))`, with dropout.

    Source: Kang and McAuley 2018 (SASRec), the norm first as in Xiong et al. 2020.
    """

    def __init__(self, settings: EncoderSettings, implementation: Implementation = "auto") -> None:
        super().__init__(settings, implementation)
        self.merge = nn.Linear(settings.dim, settings.dim)
        self.feed_forward_norm = nn.LayerNorm(settings.dim)
        self.feed_forward = SwiGLU(settings) if settings.resolved.feed_forward == "swiglu" else GELU(settings)

    def fed_forward(self, states: Tensor, source: Tensor) -> Tensor:
        """`x + feed_forward(norm(source))`."""
        added: Tensor = self.dropout(self.feed_forward(self.feed_forward_norm(source)))
        return states + added


class LiGRBlock(TransformerBlock):
    """Gated residuals: `x + sigmoid(G x) * merge(attention(norm(x)))`, then `x + sigmoid(H x) * feed_forward(norm(x))`.

    Source: Borisyuk et al. 2024 (LiGR), section 3; as a next-item model Tikhonovich et al. 2025 (eSASRec).
    """

    def __init__(self, settings: EncoderSettings, implementation: Implementation = "auto") -> None:
        super().__init__(settings, implementation)
        self.attention_gate = nn.Linear(settings.dim, settings.dim)
        self.feed_forward_gate = nn.Linear(settings.dim, settings.dim)

    def merged(self, states: Tensor, normed: Tensor, mixed: Tensor) -> Tensor:
        """`x + sigmoid(G x) * merge(mixed)`."""
        del normed
        added: Tensor = self.dropout(self.merge(mixed)) * self.attention_gate(states).sigmoid()
        return states + added

    def fed_forward(self, states: Tensor, source: Tensor) -> Tensor:
        """`x + sigmoid(H x) * feed_forward(norm(source))`."""
        fed: Tensor = self.dropout(self.feed_forward(self.feed_forward_norm(source)))
        gated: Tensor = fed * self.feed_forward_gate(states).sigmoid()
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

    def merged(self, states: Tensor, normed: Tensor, mixed: Tensor) -> Tensor:
        """`x + merge(norm(mixed) * u)`."""
        gate = self._projected(normed, 0, 1)
        added: Tensor = self.merge(self.dropout(self.mixed_norm(mixed) * gate))
        return states + added


BLOCKS: dict[str, type[AttentionBlock]] = {
    "transformer": TransformerBlock,
    "hstu": HSTUBlock,
    "ligr": LiGRBlock,
}


class GELU(nn.Module):
    """`narrow(dropout(gelu(widen(x))))`, four times as wide in between."""

    def __init__(self, settings: EncoderSettings) -> None:
        super().__init__()
        self.widen = nn.Linear(settings.dim, FEED_FORWARD_WIDTH * settings.dim)
        self.narrow = nn.Linear(FEED_FORWARD_WIDTH * settings.dim, settings.dim)
        self.dropout = Dropout(settings.dropout)

    def forward(self, states: Float[Tensor, "*any d"]) -> Float[Tensor, "*any d"]:
        """Output of each state."""
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
        """Output of each state."""
        gate, wide = self.widen(states).chunk(2, -1)
        narrowed: Tensor = self.narrow(self.dropout(functional.silu(gate) * wide))
        return narrowed


def join_heads(mixed: Float[Tensor, "b h q c"]) -> Float[Tensor, "b q d"]:
    """Concatenated components of all heads."""
    return mixed.transpose(1, 2).flatten(-2)


def last_of(states: Float[Tensor, "b l d"], lengths: Int[Tensor, " b"]) -> Float[Tensor, "b 1 d"]:
    """State at position `lengths - 1` of each row; lengths >= 1."""
    return states.gather(1, (lengths - 1).view(-1, 1, 1).expand(-1, 1, states.shape[-1]))
