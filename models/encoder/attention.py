"""Attention over the positions of a history: scores, weights, and weighted values.

Every score and weighting has its plain formula here; where an inner product meets a softmax or SiLU, fast forms of the whole
stand beside it, chosen by `Implementation` and equal to the formula within its own rounding.

Letters: b rows, h heads, q columns that look, l columns looked at, c components of a head.
"""

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from models.encoder.attention_bias import AttentionGeometry, DistanceBias, TimeBias, apply_rotary
from models.settings.encoder import EncoderSettings
from models.shapes import Bool, Float, Int

Implementation = Literal["auto", "sdpa", "dense", "reference"]

DENSE_POSITIONS = 256
"""Longest rows for which `auto` takes the dense form."""
HIDDEN_CELLS = 2**24
"""Numbers that additive scores hold at a time: looking x looked at x components."""
COSINE_SCALE = 10.0
"""Initial factor of a head's cosine scores."""


class HistoryAttention(nn.Module):
    """`weights(score(queries, keys) + biases) @ values`: the values of visible columns, weighted.

    Scores, with k and q of one head:
    dot `q . k`; scaled_dot `q . k / sqrt(c)` (Vaswani et al. 2017, 3.2.1); cosine `s q . k / (|q| |k|)` with a learned s per
    head, 10 at the start (Henry et al. 2020); general `q^T W k` with a W per head, `I / sqrt(c)` at the start (Luong et al.
    2015, 3.1); additive `w . tanh(W q + U k)` (Bahdanau et al. 2015, A.1.2); concat `w . tanh(W [q; k] + b)` (Luong et al.
    2015, 3.1, with a bias). Added to them: biases by distance and time (`attention_bias`); or queries (of general: `W^T q`)
    and keys are turned by their places first (rotary), so that the difference of these alone counts. Weights: see `weigh`.
    `implementation` "reference" is the formula everywhere.
    """

    temperature: Tensor | None
    """gumbel_softmax: see `models.encoder.encoder.Encoder.anneal`."""

    def __init__(self, settings: EncoderSettings, implementation: Implementation = "auto") -> None:
        super().__init__()
        settings = settings.resolved
        heads, components = settings.num_heads, settings.dim // settings.num_heads
        self.settings = settings
        self.implementation: Implementation = implementation
        self.distances = DistanceBias(heads) if settings.positions == "relative" else None
        self.times = TimeBias(heads) if settings.time_bias else None
        self.rotary = settings.positions == "rotary"
        self.scale = (
            nn.Parameter(torch.full((heads, 1, 1), COSINE_SCALE)) if settings.score == "cosine" else None
        )
        self.general = None
        if settings.score == "general":
            start = torch.eye(components) / math.sqrt(components)
            self.general = nn.Parameter(start.repeat(heads, 1, 1))
        self.hidden = None
        if settings.score in ("additive", "concat"):
            self.hidden = HiddenLayerScore(heads, components, with_bias=settings.score == "concat")
        annealed = torch.tensor(settings.gumbel_start) if settings.weighting == "gumbel_softmax" else None
        self.register_buffer("temperature", annealed)

    def forward(
        self,
        queries: Float[Tensor, "b h q c"],
        keys: Float[Tensor, "b h l c"],
        values: Float[Tensor, "b h l c"],
        geometry: AttentionGeometry,
    ) -> Float[Tensor, "b h q c"]:
        """Weighted values of the columns that look."""
        weighting, fast = self.settings.weighting, self.implementation != "reference"
        if fast and self.hidden is None and weighting == "softmax":
            queries, keys = self._met(queries, keys, geometry)
            return attend(
                queries,
                keys,
                values,
                geometry.visible,
                self.implementation,
                self._bias(geometry),
                scaled=False,
            )
        if fast and self.hidden is None and weighting == "silu":
            queries, keys = self._met(queries, keys, geometry)
            return pointwise(
                queries, keys, values, geometry.visible, geometry.num_visible, self._bias(geometry)
            )
        gathered: Tensor = self.weights(queries, keys, geometry).to(values.dtype) @ values
        return gathered

    def weights(
        self, queries: Float[Tensor, "b h q c"], keys: Float[Tensor, "b h l c"], geometry: AttentionGeometry
    ) -> Float[Tensor, "b h q l"]:
        """The weight of each column looked at, 0 where it is hidden."""
        scores = _masked(self.scores(queries, keys, geometry), geometry.visible)
        return weigh(scores, self.settings, geometry.num_visible, self.temperature, noisy=self.training)

    def scores(
        self,
        queries: Float[Tensor, "#b h q c"],
        keys: Float[Tensor, "b h l c"],
        geometry: AttentionGeometry | None = None,
    ) -> Float[Tensor, "b h q l"]:
        """Score and biases, hidden columns like the others; without `geometry` no biases, and nothing is turned."""
        if self.hidden is not None:
            scores: Tensor = self.hidden(queries, keys, self.implementation)
        else:
            queries, keys = self._met(queries, keys, geometry)
            scores = queries @ keys.transpose(-2, -1)
        bias = self._bias(geometry)
        return scores if bias is None else scores + bias

    def _met(
        self, queries: Tensor, keys: Tensor, geometry: AttentionGeometry | None
    ) -> tuple[Tensor, Tensor]:
        """Queries and keys whose inner product is the score."""
        if self.general is not None:
            queries = queries @ self.general
        if self.rotary and geometry is not None:
            queries, keys = apply_rotary(queries, geometry.looking), apply_rotary(keys, geometry.seen)
        if self.scale is not None:
            kind = queries.dtype  # autocast on CUDA takes norms in fp32
            queries, keys = (functional.normalize(part, dim=-1).to(kind) for part in (queries, keys))
            return queries * self.scale.to(kind), keys
        if self.settings.score == "scaled_dot":
            return queries * (1 / math.sqrt(queries.shape[-1])), keys
        return queries, keys

    def _bias(self, geometry: AttentionGeometry | None) -> Float[Tensor, "#b h q l"] | None:
        if geometry is None:
            return None
        bias = None
        if self.distances is not None and geometry.distance is not None:
            bias = self.distances(geometry.distance)
        if self.times is not None and geometry.elapsed is not None:
            by_time: Tensor = self.times(geometry.elapsed)
            bias = by_time if bias is None else by_time + bias
        return bias


class HiddenLayerScore(nn.Module):
    """`w . tanh(W q + U k [+ b])` per head: a hidden layer over query and key.

    "reference" holds all looking x looked at x components numbers; otherwise columns that look come a few at a time, and are
    computed again for the gradient.
    """

    def __init__(self, num_heads: int, components: int, *, with_bias: bool) -> None:
        super().__init__()
        spread = 1 / math.sqrt(components)
        self.of_query = nn.Parameter(torch.randn(num_heads, components, components) * spread)
        self.of_key = nn.Parameter(torch.randn(num_heads, components, components) * spread)
        self.bias = nn.Parameter(torch.zeros(num_heads, 1, components)) if with_bias else None
        self.weight = nn.Parameter(torch.randn(num_heads, components) * spread)

    def forward(
        self,
        queries: Float[Tensor, "#b h q c"],
        keys: Float[Tensor, "b h l c"],
        implementation: Implementation = "auto",
    ) -> Float[Tensor, "b h q l"]:
        """[b, h, q, l] scores."""
        from_queries = queries @ self.of_query
        from_keys = keys @ self.of_key
        if self.bias is not None:
            from_keys = from_keys + self.bias
        columns = from_queries.shape[2]
        cells = from_keys.numel() * columns
        if implementation == "reference" or cells <= HIDDEN_CELLS:
            return self._meet(from_queries, from_keys)
        parts = torch.split(from_queries, max(1, columns * HIDDEN_CELLS // cells), 2)
        return torch.cat([checkpoint(self._meet, part, from_keys, use_reentrant=False) for part in parts], 2)

    def _meet(self, from_queries: Tensor, from_keys: Tensor) -> Tensor:
        hidden = (from_queries.unsqueeze(3) + from_keys.unsqueeze(2)).tanh()
        return (hidden * self.weight[:, None, None, :].to(hidden.dtype)).sum(-1)


def weigh(
    scores: Float[Tensor, "b h q l"],
    settings: EncoderSettings,
    num_visible: Int[Tensor, "#b #q"],
    temperature: Float[Tensor, ""] | None = None,
    *,
    noisy: bool = False,
) -> Float[Tensor, "b h q l"]:
    """Weights from scores that are -inf at hidden columns; 0 there.

    softmax; silu `silu(score) / number of visible columns` (Zhai et al. 2024, HSTU, 3.2, who divide by the longest length; by
    the true one as NetEase's version), which need not add up to 1; gumbel_softmax `softmax((score + g) / temperature)` with g
    from Gumbel(0, 1) where `noisy`, and with `settings.gumbel_hard` all weight on the largest, the gradient that of the soft
    ones (Jang et al. 2017, section 2); sparsemax (Martins and Astudillo 2016), entmax with alpha 1.5 (Peters et al. 2019).
    """
    if settings.weighting == "silu":
        return functional.silu(scores).masked_fill(torch.isneginf(scores), 0) / num_visible[:, None, :, None]
    if settings.weighting == "sparsemax":
        return sparsemax(scores)
    if settings.weighting == "entmax":
        return entmax(scores)
    if settings.weighting == "softmax":
        return scores.softmax(-1)
    assert settings.weighting == "gumbel_softmax", settings.weighting
    assert temperature is not None
    if noisy:
        scores = scores - torch.empty_like(scores).exponential_().log()
    soft = (scores / temperature).softmax(-1)
    if not settings.gumbel_hard:
        return soft
    hard = torch.zeros_like(soft).scatter_(-1, soft.argmax(-1, keepdim=True), 1.0)
    return hard + (soft - soft.detach())


def sparsemax(scores: Float[Tensor, "*any l"]) -> Float[Tensor, "*any l"]:
    """`max(0, z - t)` with t such that a row adds up to 1: the nearest point of the simplex. Some score must be finite.

    Source: Martins and Astudillo 2016, algorithm 1.
    """
    shifted = (scores - scores.amax(-1, keepdim=True).detach()).clamp_min(
        -2
    )  # more than 1 below the best weighs nothing
    ordered = shifted.sort(-1, descending=True).values
    total, rank = ordered.cumsum(-1), _ranks(ordered)
    support = (1 + rank * ordered > total).sum(-1, keepdim=True)
    threshold = (total.gather(-1, support - 1) - 1) / support
    return (shifted - threshold).clamp_min(0)


def entmax(scores: Float[Tensor, "*any l"]) -> Float[Tensor, "*any l"]:
    """`max(0, z / 2 - t)^2` with t such that a row adds up to 1: between softmax and sparsemax. Some score must be finite.

    Source: Peters, Niculae and Martins 2019, algorithm 2 (alpha = 1.5).
    """
    halved = scores / 2
    halved = (halved - halved.amax(-1, keepdim=True).detach()).clamp_min(-2)
    ordered = halved.sort(-1, descending=True).values
    rank = _ranks(ordered)
    mean, mean_of_squares = ordered.cumsum(-1) / rank, ordered.square().cumsum(-1) / rank
    spread = rank * (mean_of_squares - mean.square())
    threshold = mean - ((1 - spread) / rank).clamp_min(torch.finfo(scores.dtype).tiny).sqrt()
    support = (threshold <= ordered).sum(-1, keepdim=True)
    return (halved - threshold.gather(-1, support - 1)).clamp_min(0).square()


def _ranks(ordered: Tensor) -> Tensor:
    return torch.arange(1, ordered.shape[-1] + 1, device=ordered.device, dtype=ordered.dtype)


def attend(
    queries: Float[Tensor, "b h q c"],
    keys: Float[Tensor, "b h l c"],
    values: Float[Tensor, "b h l c"],
    visible: Bool[Tensor, "#b 1 #q l"] | None = None,
    implementation: Implementation = "auto",
    bias: Float[Tensor, "#b h #q l"] | None = None,
    *,
    scaled: bool = True,
) -> Float[Tensor, "b h q c"]:
    """Mean of the values weighted by `softmax(queries @ keys.T / sqrt(c) + bias)` over the visible columns.

    Without `visible` column i sees columns 0..i (then q = l); rows padded on the right therefore need no mask:
    what real columns see is real. With it, every query must see at least one column. `scaled` False: not divided by sqrt(c).
    "sdpa" is torch's fused kernel (on CUDA flash attention, but with `visible` or a bias, which that does not take, the
    memory-efficient kernel), "dense" batched matrix products that keep the q x l weights for the gradient, "reference" the
    formula; "auto" is "sdpa" but for training in bf16 on the CPU, where the gradient of the fused kernel is several times slower
    than the dense one.
    Source: Vaswani et al. 2017, section 3.2.1 (their d_k is our c).
    """
    scale = 1 / math.sqrt(queries.shape[-1]) if scaled else 1.0
    if implementation == "auto":
        implementation = _fastest(queries, keys)
    if implementation == "sdpa":
        mask = visible if bias is None else _masked(bias.to(queries.dtype), visible)
        return functional.scaled_dot_product_attention(
            queries, keys, values, mask, is_causal=mask is None, scale=scale
        )
    if implementation == "dense":
        return _dense(queries, keys, values, visible, bias, scale)
    assert implementation == "reference", implementation
    scores = queries @ keys.transpose(-2, -1) * scale
    return _masked(scores if bias is None else scores + bias, visible).softmax(-1) @ values


def _masked(scores: Float[Tensor, "#b h #q l"], visible: Tensor | None) -> Float[Tensor, "_ h _ l"]:
    """The scores, -inf at columns that are not visible; None: column i sees columns 0..i."""
    if visible is None:
        visible = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    return scores.masked_fill(~visible, -math.inf)


def _fastest(queries: Tensor, keys: Tensor) -> Literal["sdpa", "dense"]:
    slow_gradient = queries.device.type == "cpu" and queries.dtype == torch.bfloat16 and queries.requires_grad
    return "dense" if slow_gradient and keys.shape[-2] <= DENSE_POSITIONS else "sdpa"


def _dense(
    queries: Tensor, keys: Tensor, values: Tensor, visible: Tensor | None, bias: Tensor | None, scale: float
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
    scores = torch.baddbmm(hidden, flat_queries, transposed, alpha=scale)
    mixed = scores.softmax(-1) @ values.reshape(batch, positions, components)
    return mixed.view(rows, heads, looking, components)


def pointwise(
    queries: Float[Tensor, "b h q c"],
    keys: Float[Tensor, "b h l c"],
    values: Float[Tensor, "b h l c"],
    visible: Bool[Tensor, "#b 1 #q l"] | None,
    num_visible: Int[Tensor, "#b #q"],
    bias: Float[Tensor, "#b h #q l"] | None = None,
) -> Float[Tensor, "b h q c"]:
    """Sum of the values weighted by `silu(queries @ keys.T + bias) / num_visible` over the visible columns, as in `weigh`.

    Keeps one q x l array, the scores, for the gradient. Source: Zhai et al. 2024 (HSTU), section 3.2.
    """
    if visible is None:
        visible = torch.ones(queries.shape[2], keys.shape[2], dtype=torch.bool, device=queries.device).tril()
        visible = visible[None, None]
    apply: Callable[..., Tensor] = _Pointwise.apply
    return apply(queries, keys, values, visible, num_visible, bias)


class _Pointwise(torch.autograd.Function):
    """`pointwise`, element-wise passes done in place."""

    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        visible: Tensor,
        num_visible: Tensor,
        bias: Tensor | None,
    ) -> Tensor:
        scores = queries @ keys.transpose(-2, -1)
        if bias is not None:
            scores += bias
        scores.masked_fill_(~visible, 0)  # silu(0) = 0
        divisor = num_visible[:, None, :, None].to(values.dtype)
        mixed = (functional.silu(scores).to(values.dtype) @ values) / divisor
        ctx.save_for_backward(queries, keys, values, visible, divisor, scores)
        ctx.bias_shape = None if bias is None else bias.shape
        ctx.bias_type = None if bias is None else bias.dtype
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        queries, keys, values, visible, divisor, scores = ctx.saved_tensors
        grad = grad / divisor
        weights = functional.silu(scores).to(values.dtype)
        grad_values = weights.transpose(-2, -1) @ grad
        grad_scores = torch.ops.aten.silu_backward(grad @ values.transpose(-2, -1), scores)
        grad_scores.masked_fill_(~visible, 0)
        grad_bias = None
        if ctx.bias_shape is not None:
            grad_bias = grad_scores.sum_to_size(ctx.bias_shape).to(ctx.bias_type)
        return grad_scores @ keys, grad_scores.transpose(-2, -1) @ queries, grad_values, None, None, grad_bias
