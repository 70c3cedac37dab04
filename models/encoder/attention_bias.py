"""Positions, timestamps and attention masks of padded rows; biases by distance and time; rotary positions.

Letters: b rows, h heads, q columns that look, l columns looked at, c components of a head.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from models.encoder.batching import Window
from models.settings.encoder import EncoderSettings
from models.shapes import Bool, Float, Int

EXACT_DISTANCES, NUM_DISTANCES = 16, 32
"""Distances with a number of their own in `DistanceBias`, and numbers in all."""
TIME_STEP, NUM_TIMES = 0.301, 128
"""Width of a bucket of `TimeBias` in natural logarithms of seconds, and number of buckets."""
MICROSECONDS = 1_000_000
ROTARY_BASE = 10_000.0


@dataclass(frozen=True)
class AttentionGeometry:
    """Positions, masks and bias numbers between the columns that look and the columns looked at."""

    shape: tuple[int, int]
    """b rows, l columns looked at."""
    lengths: Int[Tensor, " b"]
    """Columns of each row that are real."""
    visible: Bool[Tensor, "#b 1 q l"] | None
    """None: column i looks at columns 0..i, and every column looks."""
    num_visible: Int[Tensor, "#b q"]
    """Columns that each one sees."""
    looking: Int[Tensor, "#b #q"]
    """Place in the window of each column that looks."""
    seen: Int[Tensor, "#b l"]
    """Place in the window of each column looked at."""
    distance: Int[Tensor, "#b #q l"] | None
    """Number in `DistanceBias`; None where positions are not relative."""
    elapsed: Int[Tensor, "#b #q l"] | None
    """Number in `TimeBias`; None where there is no bias by time."""


def full_geometry(window: Window, settings: EncoderSettings) -> AttentionGeometry:
    """Every column looks: at itself and the ones before it, or in a bidirectional encoder at all of its row.

    Rows are padded on the right, so what a causal column sees is real, and needs no mask of its own.
    """
    columns = window.item_index.shape[1]
    column = torch.arange(columns, device=window.item_index.device)
    visible, num_visible = None, (column + 1).unsqueeze(0)
    if settings.direction == "bidirectional":
        # rows of length 0 are there to fill up a batch; they see their first column, so that no mean is over nothing
        lengths = window.lengths.clamp_min(1)
        visible = (column < lengths.view(-1, 1, 1, 1)).expand(-1, 1, columns, -1)
        num_visible = lengths.unsqueeze(1).expand(-1, columns)
    elif settings.window and settings.window < columns:
        behind = column.unsqueeze(1) - column
        visible = ((behind >= 0) & (behind < settings.window)).view(1, 1, columns, columns)
        num_visible = num_visible.clamp_max(settings.window)
    seen = _seen(window, column)
    numbers = _numbers(window, settings, seen, seen, _since(window, settings))
    return AttentionGeometry(shape_of(window), window.lengths, visible, num_visible, seen, seen, *numbers)


def last_geometry(window: Window, settings: EncoderSettings) -> AttentionGeometry:
    """The last column of each row looks, at all of its row or the columns of its local window; lengths >= 1."""
    rows, columns = window.item_index.shape
    lengths = window.lengths
    column = torch.arange(columns, device=lengths.device)
    visible = column < lengths.view(-1, 1, 1, 1)
    num_visible = lengths.unsqueeze(1)
    if settings.window:
        visible = visible & (column >= lengths.view(-1, 1, 1, 1) - settings.window)
        num_visible = num_visible.clamp_max(settings.window)
    seen, at_last = _seen(window, column), (lengths - 1).unsqueeze(1)
    looking = seen.expand(rows, -1).gather(1, at_last)
    since = _since(window, settings)
    since = None if since is None else since.gather(1, at_last)
    numbers = _numbers(window, settings, looking, seen, since)
    return AttentionGeometry(shape_of(window), lengths, visible, num_visible, looking, seen, *numbers)


def shape_of(window: Window) -> tuple[int, int]:
    """b, l."""
    rows, columns = window.item_index.shape
    return rows, columns


def _seen(window: Window, column: Tensor) -> Tensor:
    return window.position if window.position is not None else column.unsqueeze(0)


def _since(window: Window, settings: EncoderSettings) -> Tensor | None:
    """[b, l] the time that each column looks from."""
    return window.asked if settings.request_time else window.time


def _numbers(
    window: Window, settings: EncoderSettings, looking: Tensor, seen: Tensor, since: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """`distance` and `elapsed` of `AttentionGeometry`, where the settings ask for them."""
    distance = elapsed = None
    if settings.resolved.positions == "relative":
        distance = distance_number(looking.unsqueeze(2) - seen.unsqueeze(1))
    if settings.time_bias:
        assert since is not None, "a model that looks at time needs windows with times"
        assert window.time is not None
        elapsed = elapsed_number(since.unsqueeze(2) - window.time.unsqueeze(1))
    return distance, elapsed


def windows_of(
    states: Float[Tensor, "n d"], geometry: Sequence[AttentionGeometry]
) -> list[Float[Tensor, "_ _ d"]]:
    """The states of each window, which lie one after the other."""
    sizes = [rows * columns for rows, columns in (each.shape for each in geometry)]
    parts = torch.split(states[: sum(sizes)], sizes)
    return [part.view(*each.shape, -1) for part, each in zip(parts, geometry, strict=True)]


def joined(parts: Sequence[Float[Tensor, "_ _ d"]], num_states: int) -> Float[Tensor, "n d"]:
    """The states of all windows one after the other, zeros behind them."""
    flat = [part.flatten(0, 1) for part in parts]
    behind = num_states - sum(len(part) for part in flat)
    return (
        torch.cat([*flat, flat[0].new_zeros(behind, flat[0].shape[1])])
        if behind or len(flat) > 1
        else flat[0]
    )


def distance_number(distance: Int[Tensor, "b q l"]) -> Int[Tensor, "b q l"]:
    """0..15 for themselves, from 16 on `16 + floor(4 log2(distance / 16))`, from 256 on 31; negative ones, seen by a
    bidirectional encoder alone, count as their opposite.
    """
    near = distance.abs()
    far = EXACT_DISTANCES + (4 * torch.log2(near.clamp_min(1) / EXACT_DISTANCES)).floor().long()
    return torch.where(near < EXACT_DISTANCES, near, far.clamp(EXACT_DISTANCES, NUM_DISTANCES - 1))


def elapsed_number(microseconds: Int[Tensor, "b q l"]) -> Int[Tensor, "b q l"]:
    """`floor(ln(max(1, |seconds|)) / .301)`, 127 at most. Source: Zhai et al. 2024 (HSTU), the public code's bucketisation."""
    seconds = microseconds.abs().float().mul_(1 / MICROSECONDS).clamp_min_(1)
    return seconds.log_().mul_(1 / TIME_STEP).clamp_max_(NUM_TIMES - 1).int()


class DistanceBias(nn.Module):
    """A learned number per head and distance, added to attention's scores: near and far mean the same anywhere.

    Distances are numbered by `distance_number`. Zero at the start.
    Source: Raffel et al. 2020 (T5), section 2.1, whose buckets are as fine near and as coarse far.
    """

    def __init__(self, num_heads: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_heads, NUM_DISTANCES))

    def forward(self, distance: Int[Tensor, "b q l"]) -> Float[Tensor, "b h q l"]:
        """The number of each distance."""
        return look_up(self.weight, distance)


class TimeBias(nn.Module):
    """A learned number per head and time between two events (or an event and the request), added to attention's scores.

    Times are numbered by `elapsed_number`. Zero at the start. Source: Zhai et al. 2024 (HSTU), section 3.2, rab^t.
    """

    def __init__(self, num_heads: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_heads, NUM_TIMES))

    def forward(self, elapsed: Int[Tensor, "b q l"]) -> Float[Tensor, "b h q l"]:
        """The number of each time."""
        return look_up(self.weight, elapsed)


def look_up(table: Float[Tensor, "h numbers"], index: Int[Tensor, "b q l"]) -> Float[Tensor, "b h q l"]:
    """`table[:, index]`, heads second; the gradient is a sum per number instead of one scattered add per element."""
    if torch.compiler.is_compiling() or table.device.type != "cpu":
        return table[:, index.long()].transpose(0, 1)
    apply: Callable[..., Tensor] = _LookUp.apply
    return apply(table, index)


class _LookUp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.num_numbers = table.shape[1]
        return torch.stack([row[index] for row in table], 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        flat = index.flatten()
        sums = [
            torch.bincount(flat, weights=grad[:, head].flatten(), minlength=ctx.num_numbers)
            for head in range(grad.shape[1])
        ]
        return torch.stack(sums).to(grad.dtype), None


def apply_rotary(heads: Float[Tensor, "b h l c"], place: Int[Tensor, "#b #l"]) -> Float[Tensor, "b h l c"]:
    """Rotary positions: components (i, i + c / 2) turned by `place * 10000^(-2 i / c)`; c is even.

    Inner products of turned queries and keys depend on the difference of their places alone.
    Source: Su et al. 2021 (RoFormer), section 3.2.2, with halves instead of neighbours paired, as in GPT-NeoX.
    """
    half = heads.shape[-1] // 2
    exponent = torch.arange(half, device=heads.device, dtype=torch.float32) / half
    angle = place.unsqueeze(-1) * torch.exp(-math.log(ROTARY_BASE) * exponent)
    cosine, sine = (part.unsqueeze(1).to(heads.dtype) for part in (angle.cos(), angle.sin()))
    first, second = heads[..., :half], heads[..., half:]
    return torch.cat([first * cosine - second * sine, first * sine + second * cosine], -1)
