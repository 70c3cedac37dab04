"""Causal convolution and mean-pooling blocks.

Letters: b rows, l positions, d components of a state, n >= b * l states. The two calls of a block: see `blocks`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.encoder.attention_bias import AttentionGeometry, joined, windows_of
from models.encoder.blocks import Dropout
from models.settings.encoder import EncoderSettings
from models.shapes import Float, Int

DILATIONS = 4
"""Dilations 1, 2, 4, 8 take turns from block to block."""


class MixingBlock(nn.Module):
    """`x + dropout(merge(mixed(norm(x))))`, mixed by a subclass from column 0 on."""

    def __init__(self, settings: EncoderSettings) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(settings.dim)
        self.merge = nn.Linear(settings.dim, settings.dim)
        self.dropout = Dropout(settings.dropout)

    def forward(
        self, states: Float[Tensor, "n d"], geometry: Sequence[AttentionGeometry]
    ) -> Float[Tensor, "n d"]:
        """New states of windows of b rows of l positions, one window and row after the other; those behind them are of no use."""
        mixed = [self.mixed(part) for part in windows_of(self.norm(states), geometry)]
        added: Tensor = self.dropout(self.merge(joined(mixed, len(states))))
        return states + added

    def last(
        self, states: Float[Tensor, "b l d"], lengths: Int[Tensor, " b"], geometry: AttentionGeometry
    ) -> Float[Tensor, "b 1 d"]:
        """The new state at position `lengths - 1` of each row; lengths >= 1."""
        whole: Tensor = self(states.flatten(0, 1), (geometry,)).view_as(states)
        return whole.gather(1, (lengths - 1).view(-1, 1, 1).expand(-1, 1, states.shape[-1]))

    def mixed(self, normed: Float[Tensor, "b l d"]) -> Float[Tensor, "b l d"]:
        """Mix of each column and the ones before it."""
        raise NotImplementedError


class ConvBlock(MixingBlock):
    """Mixed: `gelu(sum over k of W_k x_{i - k * dilation} + b)`, k = 0 .. kernel - 1, zeros before column 0.

    Source: Yuan et al. 2019 (NextItNet), section 3.2, with one convolution in a residual block.
    """

    def __init__(self, settings: EncoderSettings, number: int) -> None:
        super().__init__(settings)
        self.dilation = 2 ** (number % DILATIONS)
        self.convolution = nn.Conv1d(settings.dim, settings.dim, settings.kernel, dilation=self.dilation)

    def mixed(self, normed: Float[Tensor, "b l d"]) -> Float[Tensor, "b l d"]:
        """Mix of each column and the ones before it."""
        behind = (self.convolution.kernel_size[0] - 1) * self.dilation
        padded = functional.pad(normed.transpose(1, 2), (behind, 0))
        convolved: Tensor = self.convolution(padded)
        return functional.gelu(convolved).transpose(1, 2)


class PoolingBlock(MixingBlock):
    """Mixed: the mean of columns 0..i.

    Source: Yu et al. 2022 (MetaFormer), section 3.2, whose pooling looks both ways.
    """

    def mixed(self, normed: Float[Tensor, "b l d"]) -> Float[Tensor, "b l d"]:
        """Mix of each column and the ones before it."""
        return causal_mean(normed)


def causal_mean(states: Float[Tensor, "b l d"]) -> Float[Tensor, "b l d"]:
    """The mean of columns 0..i at column i, summed in fp32 at least."""
    count = torch.arange(1, states.shape[1] + 1, device=states.device).unsqueeze(1)
    return (precise(states).cumsum(1) / count).to(states.dtype)


def precise(numbers: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """The numbers in fp32, or as they are in float64, for long sums."""
    return numbers if numbers.dtype == torch.float64 else numbers.float()
