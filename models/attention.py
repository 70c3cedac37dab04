"""Attention over the positions of a history: a plain reference and two fast forms behind one door.

Letters: b rows, h heads, q positions that look, l positions looked at, c components of a head.
"""

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from models.shapes import Bool, Float

Implementation = Literal["auto", "sdpa", "dense", "reference"]

DENSE_POSITIONS = 256
"""Longest rows for which `auto` takes the dense form."""


def attend(
    queries: Float[Tensor, "b h q c"],
    keys: Float[Tensor, "b h l c"],
    values: Float[Tensor, "b h l c"],
    visible: Bool[Tensor, "b 1 #q l"] | None = None,
    implementation: Implementation = "auto",
    bias: Float[Tensor, "#b h #q l"] | None = None,
) -> Float[Tensor, "b h q c"]:
    """Mean of the values weighted by `softmax(queries @ keys.T / sqrt(c) + bias)` over the visible positions.

    Without `visible` position i sees positions 0..i (then q = l); rows padded on the right therefore need no mask:
    what real positions see is real. With it, every query must see at least one position.
    "sdpa" is torch's fused kernel, "dense" batched matrix products that keep the q x l weights for the gradient,
    "reference" the formula; "auto" is "sdpa" but for training in bf16 on the CPU, where the gradient of the fused
    kernel is several times slower than the dense one.
    Source: Vaswani et al. 2017, section 3.2.1 (their d_k is our c).
    """
    if implementation == "auto":
        implementation = _fastest(queries, keys)
    if implementation == "sdpa":
        mask = visible if bias is None else _masked(bias.to(queries.dtype), visible)
        return functional.scaled_dot_product_attention(queries, keys, values, mask, is_causal=mask is None)
    if implementation == "dense":
        return _dense(queries, keys, values, visible, bias)
    assert implementation == "reference", implementation
    return attention_scores(queries, keys, visible, bias).softmax(-1) @ values


def attention_scores(
    queries: Float[Tensor, "b h q c"],
    keys: Float[Tensor, "b h l c"],
    visible: Bool[Tensor, "b 1 #q l"] | None = None,
    bias: Float[Tensor, "#b h #q l"] | None = None,
) -> Float[Tensor, "b h q l"]:
    """`queries @ keys.T / sqrt(c) + bias`, -inf at positions that are not visible, `visible` as in `attend`."""
    scores = queries @ keys.transpose(-2, -1) / math.sqrt(queries.shape[-1])
    return _masked(scores if bias is None else scores + bias, visible)


def _masked(scores: Float[Tensor, "b h q l"], visible: Tensor | None) -> Float[Tensor, "b h q l"]:
    """The scores, -inf at positions that are not visible; None: position i sees positions 0..i."""
    if visible is None:
        visible = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    return scores.masked_fill(~visible, -math.inf)


def _fastest(queries: Tensor, keys: Tensor) -> Literal["sdpa", "dense"]:
    slow_gradient = queries.device.type == "cpu" and queries.dtype == torch.bfloat16 and queries.requires_grad
    return "dense" if slow_gradient and keys.shape[-2] <= DENSE_POSITIONS else "sdpa"


def _dense(
    queries: Tensor, keys: Tensor, values: Tensor, visible: Tensor | None, bias: Tensor | None
) -> Tensor:
    """Attention as batched matrix products, bias and mask added within the first."""
    rows, heads, looking, components = queries.shape
    batch, positions = rows * heads, keys.shape[-2]
    hidden = queries.new_full((looking, positions), -math.inf).triu(1).expand(batch, -1, -1)
    if bias is not None:
        hidden = _masked(bias.to(queries.dtype), visible).expand(rows, heads, looking, positions)
        hidden = hidden.reshape(batch, looking, positions)
    elif visible is not None:
        hidden = queries.new_zeros(visible.shape).masked_fill(~visible, -math.inf)
        hidden = hidden.expand(rows, heads, looking, positions).reshape(batch, looking, positions)
    transposed = keys.reshape(batch, positions, components).transpose(1, 2)
    flat_queries = queries.reshape(batch, looking, components)
    scores = torch.baddbmm(hidden, flat_queries, transposed, alpha=1 / math.sqrt(components))
    mixed = scores.softmax(-1) @ values.reshape(batch, positions, components)
    return mixed.view(rows, heads, looking, components)
