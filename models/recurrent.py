"""Blocks that read a history from the oldest event to the newest: the order is in the recurrence, no position is needed.

Letters: b rows, l positions, d components of a state, n >= b * l states. The two calls of a block: see `models.blocks`.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.blocks import Dropout
from models.settings import EncoderSettings
from models.shapes import Float, Int


class GRUBlock(nn.Module):
    """`x + dropout(gru(norm(x)))` with `d` gated recurrent units, from a zero hidden state at column 0.

    With u = norm(x_i), sigma the logistic function and * by component:
    r = sigma(W_r u + U_r h + b_r), z = sigma(W_z u + U_z h + b_z), c = tanh(W_c u + a_c + r * (U_c h + b_c)),
    h_i = (1 - z) * c + z * h_{i-1}.
    Under bf16 autocast the matrix products are bf16, the hidden state stays fp32. Source: Cho et al. 2014; for
    recommendation Hidasi et al. 2016 (GRU4Rec). The residual sum and the norm are this project's, as in its transformer.
    """

    def __init__(self, settings: EncoderSettings) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(settings.dim)
        self.gru = nn.GRU(settings.dim, settings.dim, batch_first=True)
        self.dropout = Dropout(settings.dropout)

    def forward(
        self,
        states: Float[Tensor, "n d"],
        shape: tuple[int, int],
        _position: Int[Tensor, "b l"] | None = None,
    ) -> Float[Tensor, "n d"]:
        """New states of b rows of l positions, one row after the other (`shape` is b, l); states behind them become 0."""
        real = shape[0] * shape[1]
        mixed = self._mixed(states[:real].view(*shape, -1)).flatten(0, 1)
        return functional.pad(mixed, (0, 0, 0, len(states) - real))

    def last(
        self,
        states: Float[Tensor, "b l d"],
        lengths: Int[Tensor, " b"],
        _position: Int[Tensor, "b l"] | None = None,
    ) -> Float[Tensor, "b 1 d"]:
        """The new state at position `lengths - 1` of each row, from the positions up to it; lengths >= 1."""
        at_last = (lengths - 1).view(-1, 1, 1).expand(-1, 1, states.shape[-1]).long()
        return self._mixed(states).gather(1, at_last)

    def skippable(self, states: Float[Tensor, "b l d"]) -> tuple[Tensor, Tensor, Float[Tensor, "b l d"]]:
        """(new states, zeros e, update gates z), all [b, l, d]: what it takes to leave an interaction out to first order.

        e is added to what z is the logistic function of. Leaving out position i makes its z equal 1, so that
        h_i = h_{i-1}; since dh_i / de_i = z (1 - z) (h_{i-1} - c), that changes a score by d score / d e_i / z_i, summed over
        components, to first order in h_i. Without dropout.
        """
        dim = states.shape[-1]
        normed = self.norm(states)
        from_input, from_hidden, *biases = (weight.detach() for weight in self.gru.parameters())
        pushes = torch.zeros_like(states, requires_grad=True)
        onto_z = functional.pad(torch.eye(dim, device=states.device), (0, 0, dim, dim))
        weights = [torch.cat([from_input, onto_z], 1), from_hidden, *biases]
        steps = (
            torch.cat([normed, pushes], -1).transpose(0, 1).contiguous()
        )  # in this layout torch multiplies fast
        start = states.new_zeros(1, len(states), dim)
        hidden = torch.gru(steps, start, weights, True, 1, 0.0, True, False, False)[0].transpose(0, 1)
        before = functional.pad(hidden.detach()[:, :-1], (0, 0, 1, 0))
        middle = slice(dim, 2 * dim)
        z = functional.linear(normed.detach(), from_input[middle], biases[0][middle])
        z = (z + functional.linear(before, from_hidden[middle], biases[1][middle])).sigmoid()
        return states + hidden, pushes, z.clamp_min(torch.finfo(z.dtype).tiny)

    def _mixed(self, states: Float[Tensor, "b l d"]) -> Float[Tensor, "b l d"]:
        thinned: Tensor = self.dropout(self.gru(self.norm(states))[0])
        return states + thinned
