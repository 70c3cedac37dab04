"""Recurrent blocks, GRU and LSTM, with the two calls of a block (see `blocks`).

Letters: b rows, l positions, d components of a state, n >= b * l states.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.device import computes_bf16
from models.encoder.attention_bias import AttentionGeometry, joined, windows_of
from models.encoder.blocks import Dropout, last_of
from models.settings.encoder import EncoderSettings
from models.shapes import Float, Int


class RecurrentBlock(nn.Module):
    """Residual recurrence `x + dropout(cell(norm(x)))` from a zero hidden state at column 0.

    A bidirectional block also reads each row backwards from its last event, for half of the components. The residual sum and the
    norm are this project's, as in its transformer.
    """

    cell: type[nn.GRU] | type[nn.LSTM]

    def __init__(self, settings: EncoderSettings) -> None:
        super().__init__()
        both = settings.direction == "bidirectional"
        width = settings.dim // 2 if both else settings.dim
        self.norm = nn.LayerNorm(settings.dim)
        self.onward = self.cell(settings.dim, settings.dim - width if both else width, batch_first=True)
        self.back = self.cell(settings.dim, width, batch_first=True) if both else None
        self.dropout = Dropout(settings.dropout)

    def forward(
        self, states: Float[Tensor, "n d"], geometry: Sequence[AttentionGeometry]
    ) -> Float[Tensor, "n d"]:
        """New states of concatenated windows of b rows and l positions."""
        parts = zip(windows_of(states, geometry), geometry, strict=True)
        return joined([self._mixed(part, window.lengths) for part, window in parts], len(states))

    def last(
        self, states: Float[Tensor, "b l d"], lengths: Int[Tensor, " b"], _geometry: AttentionGeometry
    ) -> Float[Tensor, "b 1 d"]:
        """New state at position `lengths - 1` of each row; lengths >= 1."""
        return last_of(self._mixed(states, lengths), lengths)

    def _mixed(self, states: Float[Tensor, "b l d"], lengths: Int[Tensor, " b"]) -> Float[Tensor, "b l d"]:
        normed = self.norm(states)
        read = self._read(self.onward, normed)
        if self.back is not None:
            order = _reversed_columns(lengths, states.shape[1])
            read_back = self._read(self.back, normed.gather(1, order.expand_as(normed)))
            read = torch.cat([read, read_back.gather(1, order.expand_as(read_back))], -1)
        dropped: Tensor = self.dropout(read)
        return states + dropped

    def _read(self, cell: nn.RNNBase, normed: Float[Tensor, "b l d"]) -> Float[Tensor, "b l _"]:
        """Hidden states of one direction."""
        if self._lacks_bf16(normed.device):
            with torch.autocast(normed.device.type, enabled=False):
                precise: Tensor = cell(normed.to(next(cell.parameters()).dtype))[0]
                return precise
        hidden: Tensor = cell(normed)[0]
        return hidden

    def _lacks_bf16(self, device: torch.device) -> bool:
        """Whether autocast must be off: on CUDA it takes fp16 for cuDNN's cells, where small gradients become zero."""
        return device.type == "cuda"


def _reversed_columns(lengths: Int[Tensor, " b"], columns: int) -> Int[Tensor, "b l 1"]:
    """Columns of each row in reverse order; padding stays in place."""
    column = torch.arange(columns, device=lengths.device)
    mirrored = lengths.unsqueeze(1) - 1 - column
    return torch.where(mirrored >= 0, mirrored, column).unsqueeze(2)


class LSTMBlock(RecurrentBlock):
    """Long short-term memory, with u = norm(x_i), sigma the logistic function and * by component.

    i, f, o = sigma(W u + U h + b) each with its own, g = tanh(W_g u + U_g h + b_g), c_i = f * c_{i-1} + i * g,
    h_i = o * tanh(c_i). Source: Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000.
    Under bf16 autocast it stays fp32 on CUDA, and on a CPU without native bf16, where torch has no such kernel and raises.
    """

    cell = nn.LSTM

    def _lacks_bf16(self, device: torch.device) -> bool:
        return super()._lacks_bf16(device) or (device.type == "cpu" and not computes_bf16(device))


class GRUBlock(RecurrentBlock):
    """Gated recurrent units, with u = norm(x_i), sigma the logistic function and * by component.

    r = sigma(W_r u + U_r h + b_r), z = sigma(W_z u + U_z h + b_z), c = tanh(W_c u + a_c + r * (U_c h + b_c)),
    h_i = (1 - z) * c + z * h_{i-1}.
    Under bf16 autocast the matrix products are bf16, the hidden state stays fp32; on CUDA all of it does. Source: Cho et al.
    2014; for recommendation Hidasi et al. 2016 (GRU4Rec).
    """

    cell = nn.GRU
