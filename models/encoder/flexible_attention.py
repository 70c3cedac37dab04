"""Softmax attention over whole rows by torch's `flex_attention`: on CUDA one kernel for scores, biases and mask.

Letters: b rows, h heads, q query columns, l key columns, c components of a head.
"""

import functools
import importlib.util
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from models.encoder.attention_bias import AttentionGeometry, distance_bucket, elapsed_bucket
from models.shapes import Float

LEAST_COMPONENTS = 16
"""Smallest head that the kernel takes, in components."""
HAS_TRITON = importlib.util.find_spec("triton") is not None
BLOCK = 128
"""Columns of a block."""


def flexible(
    queries: Float[Tensor, "b h l c"],
    keys: Float[Tensor, "b h l c"],
    values: Float[Tensor, "b h l c"],
    geometry: AttentionGeometry,
    distances: Float[Tensor, "h distances"] | None = None,
    times: Float[Tensor, "h times"] | None = None,
) -> Float[Tensor, "b h l c"]:
    """`softmax(queries @ keys.T + distances[:, geometry.distance] + times[:, geometry.elapsed]) @ values` over visible columns.

    Every column is a query. On CUDA the kernel computes mask and buckets from columns, positions and times. On the CPU, where
    torch has the forward pass alone, the same functions give the dense formula. The gradient, torch's own, exists on CUDA alone
    and has not run in our tests.
    Source: Dong et al. 2024 (FlexAttention).
    """
    rows = geometry.shape[0]
    query_position, key_position = (
        position.expand(rows, -1) for position in (geometry.query_position, geometry.key_position)
    )

    def with_biases(score: Tensor, row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        if distances is not None:
            distance = distance_bucket(query_position[row, query] - key_position[row, key])
            score = score + distances[head, distance]
        if times is not None:
            assert geometry.query_time is not None
            assert geometry.key_time is not None
            elapsed = elapsed_bucket(geometry.query_time[row, query] - geometry.key_time[row, key])
            score = score + times[head, elapsed]
        return score

    biases = None if distances is None and times is None else with_biases
    kernel: Any = _compiled() if queries.device.type == "cuda" else flex_attention
    mixed: Tensor = kernel(
        queries, keys, values, score_mod=biases, block_mask=block_mask(geometry), scale=1.0
    )
    return mixed


def block_mask(geometry: AttentionGeometry) -> BlockMask:
    """Blocks of columns some of which see each other, and `AttentionGeometry.visible` as a function of row and columns."""
    rows, columns = geometry.shape
    window, lengths = geometry.settings.window, geometry.lengths.clamp_min(1)
    num_blocks = -(-columns // BLOCK)
    block = torch.arange(num_blocks, dtype=torch.int32, device=lengths.device)

    def is_real(row: Tensor, _head: Tensor, _query: Tensor, key: Tensor) -> Tensor:
        return key < lengths[row]

    def is_before(_row: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        seen = query >= key
        return seen & (query - key < window) if window else seen

    is_causal = geometry.settings.direction == "causal"
    if is_causal:
        behind = block.unsqueeze(1) - block
        # nearest columns of two blocks: BLOCK * (behind - 1) + 1 apart
        near = BLOCK * (behind - 1) + 1 < window if window else behind >= 0
        blocks = ((behind >= 0) & near).view(1, 1, num_blocks, -1)
    else:
        blocks = (BLOCK * block < lengths.unsqueeze(1)).view(rows, 1, 1, -1).expand(-1, -1, num_blocks, -1)
    number = blocks.sum(-1, dtype=torch.int32)
    order = blocks.int().sort(dim=-1, descending=True, stable=True).indices.int()
    return BlockMask.from_kv_blocks(
        number,
        order,
        BLOCK_SIZE=BLOCK,
        mask_mod=is_before if is_causal else is_real,
        seq_lengths=(columns, columns),
    )


@functools.cache
def _compiled() -> Any:
    # not dynamic=True: constants of the buckets would be inputs, which the kernel does not take
    return torch.compile(flex_attention)


def runs_fused(values: Float[Tensor, "b h l c"]) -> bool:
    """Whether `flexible` is one kernel for these values: on CUDA with triton, in heads of enough components."""
    return values.device.type == "cuda" and values.shape[-1] >= LEAST_COMPONENTS and HAS_TRITON
