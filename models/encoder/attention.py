"""Attention over the positions of a history: scores, weights, and weighted values.

Every score and weighting has its plain formula here; fast forms for inner products with softmax or SiLU stand beside it,
chosen by `Implementation` and equal to the formula within its own rounding.

Letters: b rows, h heads, q query columns, l key columns, c components of a head.
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
from models.encoder.blocked_attention import blocked
from models.encoder.flexible_attention import flexible, runs_fused
from models.settings.encoder import EncoderSettings
from models.shapes import Bool, Float, Int

Implementation = Literal["auto", "sdpa", "dense", "reference"]

DENSE_POSITIONS = 256
"""Longest rows for which `attend` trains with the dense form in bf16."""
DENSE_COLUMNS = 512
"""Longest rows whose scores `model.attention = "auto"` computes all at a time."""
HIDDEN_CELLS = 2**24
"""Numbers that additive scores hold at a time: queries x keys x components."""
COSINE_SCALE = 10.0
"""Initial factor of cosine scores, per head."""


class HistoryAttention(nn.Module):
    """`weights(score(queries, keys) + biases) @ values` over the visible columns.

    Scores, with k and q of one head: dot `q . k`;
    scaled_dot `q . k / sqrt(c)` (Vaswani et al. 2017, 3.2.1); cosine `s q . k / (|q| |k|)` with a learned s per
    head, 10 at the start (Henry et al. 2020); general `q^T W k` with a W per head, `I / sqrt(c)` at the start (Luong et al.
    2015, 3.1); additive `w . tanh(W q + U k)` (Bahdanau et al. 2015, A.1.2); concat `w . tanh(W [q; k] + b)` (Luong et al.
    2015, 3.1, with a bias). Biases by distance and time (`attention_bias`) are added; or queries (general: `W^T q`) and keys
    are rotated by their positions first. Weights: see `weigh`. `implementation` "reference" is the formula everywhere.
    """

    temperature: Tensor | None
    """Temperature of gumbel_softmax: see `models.encoder.encoder.Encoder.anneal`."""
    blocked: Callable[..., Tensor]
    flexible: Callable[..., Tensor]
    """Functions of these names, which torch.compile leaves alone: see `models.training.objective`."""

    def __init__(self, settings: EncoderSettings, implementation: Implementation = "auto") -> None:
        super().__init__()
        settings = settings.resolved
        heads, components = settings.num_heads, settings.dim // settings.num_heads
        self.settings = settings
        self.implementation: Implementation = implementation
        self.blocked, self.flexible = blocked, flexible
        self.distances = DistanceBias(heads) if settings.positions == "relative" else None
        self.times = TimeBias(heads) if settings.time_bias else None
        self.rotary = settings.positions == "rotary"
        self.scale = self.general = self.hidden = None
        if settings.score == "cosine":
            self.scale = nn.Parameter(torch.full((heads, 1, 1), COSINE_SCALE))
        elif settings.score == "general":
            start = torch.eye(components) / math.sqrt(components)
            self.general = nn.Parameter(start.repeat(heads, 1, 1))
        elif settings.score in ("additive", "concat"):
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
        """Weighted values of each query column."""
        weighting = self.settings.weighting
        if weighting in ("softmax", "silu") and self.hidden is None and self.implementation != "reference":
            queries, keys = self._transformed(queries, keys, geometry)
            form = self.form(values, geometry)
            if form == "blocked":
                return self.blocked(queries, keys, values, geometry, weighting, *self._tables)
            if form == "flex":
                return self.flexible(queries, keys, values, geometry, *self._tables)
            bias, visible = self._bias(geometry), geometry.visible
            if weighting == "silu":
                return pointwise(queries, keys, values, visible, geometry.num_visible, bias)
            return attend(queries, keys, values, visible, self.implementation, bias, scaled=False)
        mixed: Tensor = self.weights(queries, keys, geometry).to(values.dtype) @ values
        return mixed

    def weights(
        self, queries: Float[Tensor, "b h q c"], keys: Float[Tensor, "b h l c"], geometry: AttentionGeometry
    ) -> Float[Tensor, "b h q l"]:
        """Weight of each key column, 0 where hidden."""
        scores = _masked(self.scores(queries, keys, geometry), geometry.visible)
        return weigh(scores, self.settings, geometry.num_visible, self.temperature, noisy=self.training)

    def scores(
        self,
        queries: Float[Tensor, "#b h q c"],
        keys: Float[Tensor, "b h l c"],
        geometry: AttentionGeometry | None = None,
    ) -> Float[Tensor, "b h q l"]:
        """Score plus biases, hidden columns included; without `geometry` no biases and no rotation."""
        if self.hidden is not None:
            scores: Tensor = self.hidden(queries, keys, self.implementation)
        else:
            queries, keys = self._transformed(queries, keys, geometry)
            scores = queries @ keys.transpose(-2, -1)
        bias = self._bias(geometry)
        return scores if bias is None else scores + bias

    def form(
        self, values: Float[Tensor, "b h l c"], geometry: AttentionGeometry
    ) -> Literal["flex", "blocked", "dense"]:
        """`model.attention` with auto resolved; single queries, whose scores are few, are dense.

        The gradient of flex on CUDA has not run in our tests, so short histories stay dense there too.
        """
        if not geometry.is_whole or geometry.mask is not None or self.implementation != "auto":
            return "dense"
        chosen, weighting = self.settings.attention, self.settings.weighting
        if chosen == "auto":
            # the fused kernel keeps no scores where no bias and no mask enter
            is_fused = weighting == "softmax" and geometry.is_triangle and self._tables == (None, None)
            if is_fused or geometry.shape[1] <= DENSE_COLUMNS:
                return "dense"
        if chosen in ("blocked", "dense"):
            return chosen
        return "flex" if weighting == "softmax" and runs_fused(values) else "blocked"

    @property
    def _tables(self) -> tuple[Tensor | None, Tensor | None]:
        """Biases by bucket of distance and of time."""
        distances = None if self.distances is None else self.distances.weight
        return distances, None if self.times is None else self.times.weight

    def _transformed(
        self, queries: Tensor, keys: Tensor, geometry: AttentionGeometry | None
    ) -> tuple[Tensor, Tensor]:
        """Queries and keys whose inner product is the score."""
        if self.general is not None:
            queries = queries @ self.general
        if self.rotary and geometry is not None:
            queries = apply_rotary(queries, geometry.query_position)
            keys = apply_rotary(keys, geometry.key_position)
        if self.scale is not None:
            dtype = queries.dtype  # autocast on CUDA takes norms in fp32
            queries, keys = (functional.normalize(part, dim=-1).to(dtype) for part in (queries, keys))
            return queries * self.scale.to(dtype), keys
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

    "reference" holds all q x l x c numbers; otherwise query columns come in chunks, recomputed for the gradient.
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
        """Score of each query and key."""
        from_queries = queries @ self.of_query
        from_keys = keys @ self.of_key
        if self.bias is not None:
            from_keys = from_keys + self.bias
        columns = from_queries.shape[2]
        cells = from_keys.numel() * columns
        if implementation == "reference" or cells <= HIDDEN_CELLS:
            return self._score(from_queries, from_keys)
        chunks = torch.split(from_queries, max(1, columns * HIDDEN_CELLS // cells), 2)
        return torch.cat(
            [checkpoint(self._score, chunk, from_keys, use_reentrant=False) for chunk in chunks], 2
        )

    def _score(self, from_queries: Tensor, from_keys: Tensor) -> Tensor:
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
    """Attention weights from scores that are -inf at hidden columns; 0 there.

    softmax; silu `silu(score) / number of visible columns` (Zhai et al. 2024, HSTU, 3.2, who divide by the longest length;
    NetEase's version by the true one), whose sum need not be 1; gumbel_softmax `softmax((score + g) / temperature)` with g from
    Gumbel(0, 1) where `noisy`, and with `settings.gumbel_hard` all weight on the largest, straight-through (Jang et al. 2017,
    section 2); sparsemax (Martins and Astudillo 2016), entmax with alpha 1.5 (Peters et al. 2019).
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
    """`max(0, z - t)` with t such that a row sums to 1: projection onto the simplex. Some score must be finite.

    Source: Martins and Astudillo 2016, algorithm 1.
    """
    # scores more than 1 below the best have no weight
    shifted = (scores - scores.amax(-1, keepdim=True).detach()).clamp_min(-2)
    ordered = shifted.sort(-1, descending=True).values
    total, rank = ordered.cumsum(-1), _ranks(ordered)
    support = (1 + rank * ordered > total).sum(-1, keepdim=True)
    threshold = (total.gather(-1, support - 1) - 1) / support
    return (shifted - threshold).clamp_min(0)


def entmax(scores: Float[Tensor, "*any l"]) -> Float[Tensor, "*any l"]:
    """`max(0, z / 2 - t)^2` with t such that a row sums to 1: between softmax and sparsemax. Some score must be finite.

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

    Without `visible` column i sees columns 0..i (then q = l), so rows padded on the right need no mask; with it, every query
    must see at least one column. `scaled` False: no division by sqrt(c).
    "sdpa" is torch's fused kernel (on CUDA flash attention, with `visible` or a bias the memory-efficient kernel), "dense"
    batched matrix products that keep the q x l weights for the gradient, "reference" the formula; "auto" is "sdpa" except for
    training in bf16 on the CPU, where the fused kernel's gradient is several times slower than the dense one.
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
    """Scores with -inf at hidden columns; `visible` None: column i sees columns 0..i."""
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
    rows, heads, columns, components = queries.shape
    batch, positions = rows * heads, keys.shape[-2]
    added = queries.new_zeros(1, 1, columns, positions) if bias is None else bias.to(queries.dtype)
    added = _masked(added, visible).expand(rows, heads, columns, positions).reshape(batch, columns, positions)
    transposed = keys.reshape(batch, positions, components).transpose(1, 2)
    flat_queries = queries.reshape(batch, columns, components)
    scores = torch.baddbmm(added, flat_queries, transposed, alpha=scale)
    mixed = scores.softmax(-1) @ values.reshape(batch, positions, components)
    return mixed.view(rows, heads, columns, components)


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
