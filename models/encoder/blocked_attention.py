"""Attention over whole rows in blocks of queries, memory linear in their length.

Letters: b rows, h heads, q query columns, l key columns, c components of a head.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from models.encoder.attention_bias import AttentionGeometry, bucket_sums
from models.shapes import Float

BLOCK_CELLS = 2**19
"""Scores of a block, rows x heads x queries x keys."""
LEAST_QUERIES = 16
"""Smallest block, in query columns, where rows are many or long."""

BlockedWeighting = Literal["softmax", "silu"]


def blocked(
    queries: Float[Tensor, "b h l c"],
    keys: Float[Tensor, "b h l c"],
    values: Float[Tensor, "b h l c"],
    geometry: AttentionGeometry,
    weighting: BlockedWeighting,
    distances: Float[Tensor, "h distances"] | None = None,
    times: Float[Tensor, "h times"] | None = None,
) -> Float[Tensor, "b h l c"]:
    """Values weighted by `softmax(scores)` or `silu(scores) / num_visible` over the visible columns.

    `scores = queries @ keys.T + distances[:, geometry.distance] + times[:, geometry.elapsed]`; every column is a query.
    A block holds the scores of some queries and all keys that they see, computed once more for the gradient, so no sums of
    exponentials are carried from block to block and nothing but the arguments is kept. In 16 bits products are rounded, the
    rest is computed in fp32. Source: Rabe and Staats 2021 (Self-attention does not need O(n^2) memory), whose keys come in
    blocks too.
    """
    apply: Callable[..., Tensor] = _Blocked.apply
    return apply(queries, keys, values, distances, times, geometry, weighting)


@dataclass(frozen=True)
class _Block:
    """Query columns, and the key columns that some of them see."""

    queries: slice
    keys: slice
    geometry: AttentionGeometry

    def scores(
        self, queries: Tensor, keys: Tensor, tables: Sequence[Tensor | None]
    ) -> Float[Tensor, "b h _ _"]:
        """Scores with biases, in fp32 or finer; hidden columns have the lowest number: weight 0 and no slope."""
        scores = queries[:, :, self.queries] @ keys[:, :, self.keys].transpose(-2, -1)
        scores = scores.to(_precise(scores.dtype))
        for table, index in zip(tables, self.buckets, strict=True):
            if table is not None and index is not None:
                bucket = index if index.device.type == "cpu" else index.long()
                for head, row in enumerate(table.to(scores.dtype)):
                    scores[:, head] += row[bucket]
        visible = self.geometry.visible
        assert visible is not None
        return scores.masked_fill_(~visible, torch.finfo(scores.dtype).min)

    def divisor(self, dtype: torch.dtype) -> Float[Tensor, "_ 1 _ 1"]:
        """Number of key columns that each query sees."""
        return self.geometry.num_visible[:, None, :, None].to(dtype)

    @property
    def buckets(self) -> tuple[Tensor | None, Tensor | None]:
        """[b q l] buckets of distance and of time."""
        return self.geometry.distance, self.geometry.elapsed


def _blocks(geometry: AttentionGeometry, heads: int) -> Iterator[_Block]:
    rows, columns = geometry.shape
    window, is_causal = geometry.settings.window, geometry.settings.direction == "causal"
    reach = min(columns, window) if window else columns
    step = max(LEAST_QUERIES, BLOCK_CELLS // max(1, rows * heads * reach))
    for first in range(0, columns, step):
        queries = slice(first, min(first + step, columns))
        oldest = max(0, first - window + 1) if window else 0
        keys = slice(oldest, queries.stop if is_causal else columns)
        yield _Block(queries, keys, geometry.part(queries, keys))


def _precise(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


class _Blocked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        distances: Tensor | None,
        times: Tensor | None,
        geometry: AttentionGeometry,
        weighting: BlockedWeighting,
    ) -> Tensor:
        assert geometry.is_whole, "every column is a query"
        assert geometry.mask is None
        ctx.save_for_backward(queries, keys, values, distances, times)
        ctx.geometry, ctx.weighting = geometry, weighting
        keys, values = keys.contiguous(), values.contiguous()
        mixed = torch.empty_like(values)
        with torch.autocast(queries.device.type, enabled=False):  # as in the gradient
            for block in _blocks(geometry, queries.shape[1]):
                scores = block.scores(queries, keys, (distances, times))
                weights = (
                    scores.softmax(-1) if weighting == "softmax" else functional.silu(scores, inplace=True)
                )
                part = weights.to(values.dtype) @ values[:, :, block.keys]
                mixed[:, :, block.queries] = (
                    part if weighting == "softmax" else part / block.divisor(part.dtype)
                )
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        queries, keys, values, *tables = ctx.saved_tensors
        keys, values, is_softmax = keys.contiguous(), values.contiguous(), ctx.weighting == "softmax"
        precise = _precise(queries.dtype)
        of_queries = torch.empty_like(queries)
        of_keys, of_values = (torch.zeros_like(part, dtype=precise) for part in (keys, values))
        of_tables = [None if table is None else torch.zeros_like(table, dtype=precise) for table in tables]
        for block in _blocks(ctx.geometry, queries.shape[1]):
            own, seen, grad_mixed = block.queries, block.keys, grad[:, :, block.queries]
            if not is_softmax:
                grad_mixed = grad_mixed / block.divisor(grad.dtype)
            scores = block.scores(queries, keys, tables)
            grad_weights = (grad_mixed @ values[:, :, seen].transpose(-2, -1)).to(precise)
            if is_softmax:
                weights = scores.softmax(-1)
                grad_scores = torch.ops.aten._softmax_backward_data(grad_weights, weights, -1, precise)  # noqa: SLF001  (one pass)
            else:
                weights = functional.silu(scores)
                grad_scores = torch.ops.aten.silu_backward(grad_weights, scores)
            of_values[:, :, seen] += weights.to(grad.dtype).transpose(-2, -1) @ grad_mixed
            rounded = grad_scores.to(queries.dtype)
            of_queries[:, :, own] = rounded @ keys[:, :, seen]
            of_keys[:, :, seen] += rounded.transpose(-2, -1) @ queries[:, :, own]
            for sums, index in zip(of_tables, block.buckets, strict=True):
                if sums is not None and index is not None:
                    sums.add_(bucket_sums(grad_scores, index, sums.shape[1]))
        parts = of_queries, of_keys, of_values, *of_tables
        given = queries, keys, values, *tables
        return *(_as(part, like) for part, like in zip(parts, given, strict=True)), None, None


def _as(part: Tensor | None, like: Tensor | None) -> Tensor | None:
    return None if part is None or like is None else part.to(like.dtype)
