"""Positions, timestamps and attention masks of padded rows; biases by distance and time; rotary positions.

Letters: b rows, h heads, q query columns, l key columns, c components of a head.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from models.encoder.batching import Window
from models.settings.encoder import EncoderSettings
from models.shapes import Bool, Float, Int

EXACT_DISTANCES, NUM_DISTANCES = 16, 32
"""Distances with a bucket of their own in `DistanceBias`, and number of buckets."""
TIME_STEP, NUM_TIMES = 0.301, 128
"""Bucket width of `TimeBias` in natural logarithms of seconds, and number of buckets."""
MICROSECONDS = 1_000_000
ROTARY_BASE = 10_000.0


@dataclass(frozen=True)
class AttentionGeometry:
    """Columns, positions and times of queries and keys, and the key columns that a query sees.

    Mask and bias buckets, q x l numbers per row, follow from these when read; `part` is a block with its own.
    """

    shape: tuple[int, int]
    """b rows, l key columns."""
    lengths: Int[Tensor, " b"]
    """Real columns of each row."""
    settings: EncoderSettings
    """Direction, window and biases."""
    query_column: Int[Tensor, "#b #q"]
    key_column: Int[Tensor, " l"]
    num_visible: Int[Tensor, "#b q"]
    query_position: Int[Tensor, "#b #q"]
    """Position of each query column in the window."""
    key_position: Int[Tensor, "#b l"]
    query_time: Int[Tensor, "#b #q"] | None
    """Time from which `TimeBias` counts back, microseconds; None without a time bias."""
    key_time: Int[Tensor, "b l"] | None
    is_whole: bool
    """Whether every column is a query."""
    mask: Bool[Tensor, "#b 1 #q l"] | None = None
    """Visible key columns in place of those that the settings give."""
    _computed: dict[str, Tensor | None] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def is_triangle(self) -> bool:
        """Whether every column is a query and sees columns 0..i."""
        width, whole = self.settings.window, self.is_whole and self.mask is None
        return whole and self.settings.direction == "causal" and not 0 < width < self.shape[1]

    @property
    def visible(self) -> Bool[Tensor, "#b 1 #q l"] | None:
        """Visible key columns; None: `is_triangle`."""
        return self._once("visible", self._visible)

    @property
    def distance(self) -> Int[Tensor, "#b #q l"] | None:
        """Bucket of `DistanceBias`; None where positions are not relative."""
        return self._once("distance", self._distance)

    @property
    def elapsed(self) -> Int[Tensor, "#b #q l"] | None:
        """Bucket of `TimeBias`; None without a time bias."""
        return self._once("elapsed", self._elapsed)

    def _once(self, name: str, compute: Callable[[], Tensor | None]) -> Tensor | None:
        """A part that all layers share; torch.compile does not trace the lock of a cached property."""
        if name not in self._computed:
            self._computed[name] = compute()
        return self._computed[name]

    def _visible(self) -> Tensor | None:
        if self.mask is not None or self.is_triangle:
            return self.mask
        if self.settings.direction == "bidirectional":
            # rows of length 0, which pad a batch, see their first column, so that no mean is over nothing
            visible = self.key_column < self.lengths.clamp_min(1).view(-1, 1, 1, 1)
            return visible.expand(-1, 1, self.query_column.shape[1], -1)
        behind = (self.query_column.unsqueeze(2) - self.key_column).unsqueeze(1)
        visible = behind >= 0
        return visible & (behind < self.settings.window) if self.settings.window else visible

    def _distance(self) -> Tensor | None:
        if self.settings.resolved.positions != "relative":
            return None
        return distance_bucket(self.query_position.unsqueeze(2) - self.key_position.unsqueeze(1))

    def _elapsed(self) -> Tensor | None:
        if self.query_time is None or self.key_time is None:
            return None
        return elapsed_bucket(self.query_time.unsqueeze(2) - self.key_time.unsqueeze(1))

    def part(self, queries: slice, keys: slice) -> "AttentionGeometry":
        """Geometry of some of the query columns and some of the key columns."""
        return replace(
            self,
            query_column=self.query_column[:, queries],
            key_column=self.key_column[keys],
            num_visible=self.num_visible[:, queries],
            query_position=self.query_position[:, queries],
            key_position=self.key_position[:, keys],
            query_time=None if self.query_time is None else self.query_time[:, queries],
            key_time=None if self.key_time is None else self.key_time[:, keys],
            is_whole=False,
        )


def full_geometry(window: Window, settings: EncoderSettings) -> AttentionGeometry:
    """Geometry with a query in every column, which sees columns 0..i of its row, or in a bidirectional encoder all of it.

    Rows are padded on the right, so a causal column sees real columns only and needs no mask.
    """
    rows, columns = window.item_index.shape
    column = torch.arange(columns, device=window.item_index.device)
    num_visible = (column + 1).unsqueeze(0)
    if settings.direction == "bidirectional":
        num_visible = window.lengths.clamp_min(1).unsqueeze(1).expand(-1, columns)
    elif settings.window:
        num_visible = num_visible.clamp_max(settings.window)
    position, (time, key_time) = _position(window, column), _times(window, settings)
    places = column.unsqueeze(0), column, num_visible, position, position, time, key_time
    return AttentionGeometry((rows, columns), window.lengths, settings, *places, is_whole=True)


def last_geometry(window: Window, settings: EncoderSettings) -> AttentionGeometry:
    """Geometry with one query per row, its last column, which sees its row or local window; lengths >= 1."""
    rows, columns = window.item_index.shape
    lengths = window.lengths
    column = torch.arange(columns, device=lengths.device)
    num_visible = lengths.unsqueeze(1)
    if settings.window:
        num_visible = num_visible.clamp_max(settings.window)
    keys, at_last = _position(window, column), (lengths - 1).unsqueeze(1)
    query = keys.expand(rows, -1).gather(1, at_last)
    time, key_time = _times(window, settings)
    query_time = None if time is None else time.gather(1, at_last)
    places = at_last, column, num_visible, query, keys, query_time, key_time
    return AttentionGeometry((rows, columns), lengths, settings, *places, is_whole=False)


def _position(window: Window, column: Tensor) -> Tensor:
    return window.position if window.position is not None else column.unsqueeze(0)


def _times(window: Window, settings: EncoderSettings) -> tuple[Tensor | None, Tensor | None]:
    """[b, l] the time from which `TimeBias` counts back, and each event's own; None without a time bias."""
    if not settings.time_bias:
        return None, None
    time = window.request_time if settings.request_time else window.time
    assert time is not None, "a model with a time bias needs windows with times"
    assert window.time is not None
    return time, window.time


def windows_of(
    states: Float[Tensor, "n d"], geometry: Sequence[AttentionGeometry]
) -> list[Float[Tensor, "_ _ d"]]:
    """States of each window, cut from the concatenated states."""
    sizes = [math.prod(window.shape) for window in geometry]
    parts = torch.split(states[: sum(sizes)], sizes)
    return [part.view(*window.shape, -1) for part, window in zip(parts, geometry, strict=True)]


def joined(parts: Sequence[Float[Tensor, "_ _ d"]], num_states: int) -> Float[Tensor, "n d"]:
    """Concatenated states of all windows, padded with zeros."""
    flat = [part.flatten(0, 1) for part in parts]
    padding = num_states - sum(len(part) for part in flat)
    if not padding and len(flat) == 1:
        return flat[0]
    return torch.cat([*flat, flat[0].new_zeros(padding, flat[0].shape[1])])


def distance_bucket(distance: Int[Tensor, "b q l"]) -> Int[Tensor, "b q l"]:
    """Bucket of |distance|: itself up to 15, from 16 on `16 + floor(4 log2(distance / 16))`, from 256 on 31."""
    near = distance.abs()
    far = EXACT_DISTANCES + (4 * torch.log2(near.clamp_min(1) / EXACT_DISTANCES)).floor().long()
    return torch.where(near < EXACT_DISTANCES, near, far.clamp(EXACT_DISTANCES, NUM_DISTANCES - 1))


def elapsed_bucket(microseconds: Int[Tensor, "b q l"]) -> Int[Tensor, "b q l"]:
    """`min(127, floor(ln(max(1, |seconds|)) / .301))`. Source: Zhai et al. 2024 (HSTU), the public code's bucketisation."""
    seconds = microseconds.abs().float().mul_(1 / MICROSECONDS).clamp_min_(1)
    return seconds.log_().mul_(1 / TIME_STEP).clamp_max_(NUM_TIMES - 1).int()


class BucketBias(nn.Module):
    """Learned attention bias per head and bucket, zero at the start."""

    num_buckets: int

    def __init__(self, num_heads: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_heads, self.num_buckets))

    def forward(self, bucket: Int[Tensor, "b q l"]) -> Float[Tensor, "b h q l"]:
        """Bias of each bucket."""
        return look_up(self.weight, bucket)


class DistanceBias(BucketBias):
    """Attention bias by distance (`distance_bucket`). Source: Raffel et al. 2020 (T5), section 2.1, with other buckets."""

    num_buckets = NUM_DISTANCES


class TimeBias(BucketBias):
    """Attention bias by time since an event (`elapsed_bucket`). Source: Zhai et al. 2024 (HSTU), section 3.2, rab^t."""

    num_buckets = NUM_TIMES


def look_up(table: Float[Tensor, "h buckets"], index: Int[Tensor, "b q l"]) -> Float[Tensor, "b h q l"]:
    """`table[:, index]`, heads second; the gradient is a sum per bucket instead of a scattered add per element."""
    if torch.compiler.is_compiling() or table.device.type != "cpu":
        return table[:, index.long()].transpose(0, 1)
    apply: Callable[..., Tensor] = _LookUp.apply
    return apply(table, index)


class _LookUp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.num_buckets = table.shape[1]
        return torch.stack([row[index] for row in table], 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        return bucket_sums(grad, index, ctx.num_buckets).to(grad.dtype), None


def bucket_sums(
    grad: Float[Tensor, "b h q l"], index: Int[Tensor, "#b q l"], num_buckets: int
) -> Float[Tensor, "h buckets"]:
    """Sum of `grad` over the cells of each bucket: the gradient of `look_up`."""
    if len(index) < len(grad):
        grad = grad.sum(0, keepdim=True)
    flat = index.flatten()
    if grad.device.type != "cpu":  # bincount waits for the device
        sums = grad.new_zeros(grad.shape[1], num_buckets)
        return sums.index_add_(1, flat.long(), grad.transpose(0, 1).flatten(1))
    of_heads = [
        torch.bincount(flat, weights=grad[:, head].flatten(), minlength=num_buckets)
        for head in range(grad.shape[1])
    ]
    return torch.stack(of_heads)


def apply_rotary(heads: Float[Tensor, "b h l c"], position: Int[Tensor, "#b #l"]) -> Float[Tensor, "b h l c"]:
    """Rotary positions: components (i, i + c / 2) rotated by `position * 10000^(-2 i / c)`; c is even.

    Inner products of rotated queries and keys depend on the difference of their positions alone.
    Source: Su et al. 2021 (RoFormer), section 3.2.2, with halves instead of neighbours paired, as in GPT-NeoX.
    """
    half = heads.shape[-1] // 2
    exponent = torch.arange(half, device=heads.device, dtype=torch.float32) / half
    angle = position.unsqueeze(-1) * torch.exp(-math.log(ROTARY_BASE) * exponent)
    cosine, sine = (part.unsqueeze(1).to(heads.dtype) for part in (angle.cos(), angle.sin()))
    first, second = heads[..., :half], heads[..., half:]
    return torch.cat([first * cosine - second * sine, first * sine + second * cosine], -1)
