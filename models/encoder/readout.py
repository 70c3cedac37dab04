"""Readouts: last layers of an encoder, with the two calls of a block (see `blocks`).

Letters: b rows, l positions, d components of a state, n >= b * l states, h heads, c = d / h, m candidates.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.device import moved
from models.encoder.attention import HistoryAttention, Implementation
from models.encoder.attention_bias import AttentionGeometry, joined, windows_of
from models.encoder.blocks import AttentionBlock
from models.encoder.convolution import causal_mean, precise
from models.settings.encoder import EncoderSettings
from models.shapes import Float, Int


class MeanReadout(nn.Module):
    """Mean of the states of columns 0..i, in a bidirectional encoder too.

    Source: Covington et al. 2016, section 3.2, who average the vectors of watched videos.
    """

    def forward(
        self, states: Float[Tensor, "n d"], geometry: Sequence[AttentionGeometry]
    ) -> Float[Tensor, "n d"]:
        """Means in concatenated windows of b rows and l positions."""
        return joined([causal_mean(part) for part in windows_of(states, geometry)], len(states))

    def last(
        self, states: Float[Tensor, "b l d"], lengths: Int[Tensor, " b"], _geometry: AttentionGeometry
    ) -> Float[Tensor, "b 1 d"]:
        """Mean of the first `lengths` columns of each row; lengths >= 1."""
        real = torch.arange(states.shape[1], device=states.device) < lengths.unsqueeze(1)
        return (states * real.unsqueeze(2)).sum(1, keepdim=True) / lengths.view(-1, 1, 1)


class AttentionReadout(AttentionBlock):
    """Attention readout `x + merge(attention(norm(x)))`: each state attends over the states up to it.

    Source: Li et al. 2017 (NARM), section 3.2, whose query is the last state too.
    """

    def __init__(self, settings: EncoderSettings, implementation: Implementation = "auto") -> None:
        super().__init__(settings, implementation)
        self.merge = nn.Linear(settings.dim, settings.dim)


class TargetReadout(nn.Module):
    """Target attention: each candidate attends over the history and is scored by the result.

    With candidate vector u, states s_0..s_i and heads h: `score = u . s_i + sum over h and j <= i of w_hj (u_h . (V s_j)_h)`,
    `w_h` the weights over j of `score((Q u)_h, (K s_j)_h)` (of `HistoryAttention`, no biases), kept within +-30: softmax,
    or silu divided by i + 1.
    A candidate's query does not depend on i, so running sums over j serve all i at once.
    Source: Zhou et al. 2018 (DIN), section 4.3, whose activation unit is closest to the score concat.
    """

    LARGEST = 30.0

    def __init__(self, settings: EncoderSettings, implementation: Implementation = "auto") -> None:
        super().__init__()
        self.settings = settings.resolved
        unbiased = replace(self.settings, positions="none", time_bias=False, request_time=False)
        self.attention = HistoryAttention(unbiased, implementation)
        self.norm = nn.LayerNorm(settings.dim)
        self.looking = nn.Linear(settings.dim, settings.dim)
        self.seen = nn.Linear(settings.dim, 2 * settings.dim)

    def scores(
        self, states: Float[Tensor, "b l d"], position: Int[Tensor, " n"], candidates: Float[Tensor, "m d"]
    ) -> Float[Tensor, "n m"]:
        """Score of each candidate at flat position row * l + column, from the states up to there."""
        attention, worth = self._attention_and_worth(states, candidates)
        weight = self._weight(attention)
        mixed = (weight * worth).cumsum(-1) / self._divisor(weight.cumsum(-1))
        added = mixed.sum(1).transpose(1, 2).flatten(0, 1)[position]
        return added + precise(states.flatten(0, 1)[position] @ candidates.T)

    def last_scores(
        self, states: Float[Tensor, "b l d"], lengths: Int[Tensor, " b"], candidates: Float[Tensor, "m d"]
    ) -> Float[Tensor, "b m"]:
        """Score of each candidate at column `lengths - 1` of each row; lengths >= 1."""
        attention, worth = self._attention_and_worth(states, candidates)
        weight = self._weight_up_to((lengths - 1).view(-1, 1, 1, 1), attention)
        last = states[torch.arange(len(states), device=states.device), lengths - 1]
        return (weight * worth).sum((1, 3)) + precise(last @ candidates.T)

    def own_scores(
        self, states: Float[Tensor, "b l d"], position: Int[Tensor, " n"], candidates: Float[Tensor, "n d"]
    ) -> Float[Tensor, " n"]:
        """Score of one candidate at each of the flat positions, which may repeat; positions are on the CPU."""
        rows, columns = states.shape[:2]
        slot, slots = _slots(position, columns)
        slot, position = moved(slot, states.device), moved(position, states.device)
        queries = states.new_zeros(rows * slots, states.shape[2])
        queries = queries.index_copy(0, slot, candidates.to(states.dtype)).view(rows, slots, -1)
        column = position.new_zeros(rows * slots).index_copy(0, slot, position % columns)
        column = column.view(rows, 1, slots, 1)
        keys, values = self._keys_and_values(states)
        heads = self._heads(self.looking(queries))
        weight = self._weight_up_to(column, self._clamped(self.attention.scores(heads, keys)))
        worth = precise(self._heads(queries) @ values.transpose(-2, -1))
        added = (weight * worth).sum((1, 3)).flatten()[slot]
        return added + precise((states.flatten(0, 1)[position] * candidates).sum(-1))

    def _attention_and_worth(self, states: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
        """(attention score, worth) of each column for each candidate: two [b, h, m, l]."""
        keys, values = self._keys_and_values(states)
        queries = self._heads(self.looking(candidates).unsqueeze(0))
        worth = self._heads(candidates.unsqueeze(0)) @ values.transpose(-2, -1)
        return self._clamped(self.attention.scores(queries, keys)), precise(worth)

    def _weight_up_to(
        self, column: Int[Tensor, "b 1 #m 1"], scores: Float[Tensor, "b h m l"]
    ) -> Float[Tensor, "b h m l"]:
        """Weights of columns 0..column, divided by their sum or number; 0 in later columns.

        `softmax` rather than a quotient of sums, which rounds its gradients up to twice as much.
        """
        is_visible = torch.arange(scores.shape[-1], device=scores.device) <= column
        if self.settings.weighting == "softmax":
            return scores.masked_fill(~is_visible, -torch.inf).softmax(-1)
        return functional.silu(scores) * is_visible / (column + 1)

    def _clamped(self, scores: Tensor) -> Tensor:
        return precise(scores).clamp(-self.LARGEST, self.LARGEST)

    def _weight(self, scores: Tensor) -> Tensor:
        """Weights before division by `_divisor`."""
        return scores.exp() if self.settings.weighting == "softmax" else functional.silu(scores)

    def _divisor(self, total: Float[Tensor, "*any l"]) -> Tensor:
        """Divisor of the weights up to each column."""
        if self.settings.weighting == "softmax":
            return total
        return torch.arange(1, total.shape[-1] + 1, device=total.device)

    def _keys_and_values(self, states: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = self.seen(self.norm(states)).chunk(2, -1)
        return self._heads(keys), self._heads(values)

    def _heads(self, states: Float[Tensor, "b l d"]) -> Float[Tensor, "b h l c"]:
        heads = self.settings.num_heads
        return states.view(*states.shape[:2], heads, states.shape[2] // heads).transpose(1, 2)


def _slots(position: Int[Tensor, " n"], columns: int) -> tuple[Int[Tensor, " n"], int]:
    """Slot of each flat position and the number of slots per row: its own column, or its place in the row where some repeat."""
    if len(position) == len(torch.unique(position)):
        return position, columns
    row = position // columns
    order = row.argsort(stable=True)
    place = torch.empty_like(position)
    place[order] = torch.arange(len(row), device=row.device) - torch.searchsorted(row[order], row[order])
    slots = int(place.max()) + 1
    return row * slots + place, slots
