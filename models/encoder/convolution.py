"""Causal convolution and mean-pooling blocks, with the two calls of a block (see `blocks`).

Letters: b rows, l positions, d components of a state, n >= b * l states.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.encoder.attention_bias import AttentionGeometry, joined, windows_of
from models.encoder.blocks import Dropout, last_of
from models.settings.encoder import EncoderSettings
from models.shapes import Float, Int

DILATIONS = 4
"""Number of dilations 1, 2, 4, 8 through which successive blocks cycle."""


class MixingBlock(nn.Module):
    """Residual block `x + dropout(merge(mixed(norm(x))))`; a subclass mixes columns."""

    def __init__(self, settings: EncoderSettings) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(settings.dim)
        self.merge = nn.Linear(settings.dim, settings.dim)
        self.dropout = Dropout(settings.dropout)

    def forward(
        self, states: Float[Tensor, "n d"], geometry: Sequence[AttentionGeometry]
    ) -> Float[Tensor, "n d"]:
        """New states of concatenated windows of b rows and l positions."""
        mixed = [self.mixed(part) for part in windows_of(self.norm(states), geometry)]
        added: Tensor = self.dropout(self.merge(joined(mixed, len(states))))
        return states + added

    def last(
        self, states: Float[Tensor, "b l d"], lengths: Int[Tensor, " b"], geometry: AttentionGeometry
    ) -> Float[Tensor, "b 1 d"]:
        """New state at position `lengths - 1` of each row; lengths >= 1."""
        return last_of(self(states.flatten(0, 1), (geometry,)).view_as(states), lengths)

    def mixed(self, normed: Float[Tensor, "b l d"]) -> Float[Tensor, "b l d"]:
        """Mix of columns 0..i at column i."""
        raise NotImplementedError


class ConvBlock(MixingBlock):
    """Convolution `gelu(sum over k of W_k x_{i - k * dilation} + b)`, k = 0 .. kernel - 1, zeros before column 0.

    Source: Yuan et al. 2019 (NextItNet), section 3.2, with one convolution in a residual block.
    """

    def __init__(self, settings: EncoderSettings, number: int) -> None:
        super().__init__(settings)
        self.dilation = 2 ** (number % DILATIONS)
        self.convolution = nn.Conv1d(settings.dim, settings.dim, settings.kernel, dilation=self.dilation)

    def mixed(self, normed: Float[Tensor, "b l d"]) -> Float[Tensor, "b l d"]:
        """Mix of columns 0..i at column i."""
        padding = (self.convolution.kernel_size[0] - 1) * self.dilation
        convolved: Tensor = self.convolution(functional.pad(normed.transpose(1, 2), (padding, 0)))
        return functional.gelu(convolved).transpose(1, 2)


class PoolingBlock(MixingBlock):
    """Mean of columns 0..i. Source: Yu et al. 2022 (MetaFormer), section 3.2, whose pooling is bidirectional."""

    def mixed(self, normed: Float[Tensor, "b l d"]) -> Float[Tensor, "b l d"]:
        """Mix of columns 0..i at column i."""
        return causal_mean(normed)


def causal_mean(states: Float[Tensor, "b l d"]) -> Float[Tensor, "b l d"]:
    """Mean of columns 0..i at column i, summed in fp32 at least."""
    count = torch.arange(1, states.shape[1] + 1, device=states.device).unsqueeze(1)
    return (precise(states).cumsum(1) / count).to(states.dtype)


def precise(numbers: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """The numbers in fp32 for long sums; float64 stays."""
    return numbers if numbers.dtype == torch.float64 else numbers.float()
