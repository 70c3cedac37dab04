"""Exact maximum inner product search by torch on any device, bit-identical however the rows are batched.

A matrix product finds candidates, but its last bits change with the number of rows. So each candidate's score is recomputed
alone (`inner_products`), and a row is done when nothing left out can reach its k-th score, however the product rounded. The
result is that of scoring every pair with `inner_products` (`nearest_by_sorting`).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from models.histories import Int64

# Letters in shapes: r rows (queries), n vectors, d their width, f candidates per row.

Hidden = Callable[[Int64], tuple[Int64, Int64]]
"""Row numbers [s] to the excluded pairs (place among them, vector position): two [pairs]."""

_TILE_VECTORS = 2**14
"""Vectors scored at once."""
_TILE_CELLS = 2**21
"""Approximate number of scores held at once (8 MiB)."""
_GPU_TILE_CELLS = 2**27
"""The same on a GPU (512 MiB), whose kernels are short there: each tile is a launch, and waits once."""
_PAIR_CELLS = 2**19
"""Components multiplied at once in pairwise scoring."""
_SPARE = 6
"""Candidates fetched beyond k; scores within rounding of the k-th are few."""


def inner_products(queries: Tensor, vectors: Tensor) -> Tensor:
    """[…]: `(queries * vectors).sum(-1)` of [… , d] in float32, summed as a binary tree.

    Operations are elementwise, so a pair's bits depend neither on the other rows nor on the device.
    """
    products = queries * vectors
    while (width := products.shape[-1]) > 1:
        half = width // 2
        folded = products[..., :half] + products[..., half : 2 * half]
        products = torch.cat((folded, products[..., 2 * half :]), -1) if width % 2 else folded
    return products[..., 0]


def nearest(queries: Tensor, vectors: Tensor, k: int, hidden: Hidden | None = None) -> tuple[Tensor, Tensor]:
    """Positions and scores [r, k] of the k `vectors` [n, d] of highest inner product with each of `queries` [r, d].

    Best first, the lower position of equal scores; -1 with score -inf beyond the last. Inputs: float32 on one device.
    """
    positions = torch.full((len(queries), k), -1, device=queries.device)
    scores = torch.full((len(queries), k), -torch.inf, device=queries.device)
    if not len(vectors):
        return positions, scores
    slack = _rounding(queries, vectors)
    cells = _TILE_CELLS if queries.device.type == "cpu" else _GPU_TILE_CELLS
    rows = max(1, cells // max(1, min(len(vectors), _TILE_VECTORS)))
    for chunk in torch.split(torch.arange(len(queries), device=queries.device), rows):
        open_rows, fetch = chunk, k + _SPARE
        while len(open_rows):
            excluded = None if hidden is None else hidden(open_rows.cpu().numpy())
            part, last = _candidates(queries[open_rows], vectors, min(fetch, len(vectors)), excluded)
            positions[open_rows], scores[open_rows] = best_of(queries[open_rows], vectors, part, k)
            open_rows = open_rows[(last > -torch.inf) & (scores[open_rows, -1] <= last + slack[open_rows])]
            fetch *= 4
    return positions, scores


def nearest_by_sorting(queries: Tensor, vectors: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Reference for `nearest`: score every pair and sort, k <= n."""
    scores = inner_products(queries[:, None], vectors)
    values, positions = scores.sort(dim=1, descending=True, stable=True)
    return positions[:, :k], values[:, :k]


def best_of(queries: Tensor, vectors: Tensor, candidates: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Positions and scores [r, k] of the k best `candidates` [r, f] (positions, -1: none), in the order of `nearest`."""
    candidates = candidates.sort(dim=1).values
    scores = torch.empty(candidates.shape, device=queries.device)
    step = max(1, _PAIR_CELLS // max(1, candidates.shape[1] * queries.shape[1]))
    for start in range(0, len(candidates), step):
        rows = slice(start, start + step)
        scores[rows] = inner_products(queries[rows, None], vectors[candidates[rows]])
    scores[candidates < 0] = -torch.inf
    values, order = scores.sort(dim=1, descending=True, stable=True)
    missing = max(0, k - candidates.shape[1])
    positions = candidates.gather(1, order)[:, :k].masked_fill(values[:, :k].isneginf(), -1)
    pad = torch.nn.functional.pad
    return pad(positions, (0, missing), value=-1), pad(values[:, :k], (0, missing), value=-torch.inf)


def _rounding(queries: Tensor, vectors: Tensor) -> Tensor:
    """[r], maximum difference of two float32 computations of an inner product.

    Each errs by at most d·2⁻²⁴/(1 - d·2⁻²⁴)·|q|·|v| in any order of summation (Higham, Accuracy and Stability, 3.1).
    """
    unit = queries.shape[1] * 2.0**-24
    longest = math.sqrt(float(vectors.square().sum(1).max())) if len(vectors) else 0.0
    lengths = queries.square().sum(1).sqrt()
    return lengths * (2.01 * unit / (1 - unit) * longest)


def _candidates(
    queries: Tensor, vectors: Tensor, fetch: int, hidden: tuple[Int64, Int64] | None
) -> tuple[Tensor, Tensor]:
    """Positions [r, fetch] of the highest scores by matrix product, and an upper bound [r] on the rest."""
    parts = []
    for start in range(0, len(vectors), _TILE_VECTORS):
        scores = queries @ vectors[start : start + _TILE_VECTORS].T
        if hidden is not None:
            rows, positions = hidden
            inside = (positions >= start) & (positions < start + scores.shape[1])
            here = (torch.from_numpy(pair[inside]) for pair in (rows, positions - start))
            scores[tuple(pair.to(scores.device) for pair in here)] = -torch.inf
        values, columns = _largest(scores, min(fetch, scores.shape[1]))
        parts.append((values, columns + start))
    values, best = (torch.cat(pieces, 1) for pieces in zip(*parts, strict=True))
    if best.shape[1] > fetch:
        values, order = values.topk(fetch, dim=1)
        best = best.gather(1, order)
    last = values.amin(1) if fetch < len(vectors) else torch.full_like(values[:, 0], -torch.inf)
    return best.masked_fill(values.isneginf(), -1), last


def _largest(scores: Tensor, fetch: int) -> tuple[Tensor, Tensor]:
    """Largest `fetch` values of each row of [r, n] and their columns, in any order.

    They lie in the `fetch` groups of columns with the largest maxima, and a maximum is cheaper than a top-k. A group holds
    every m-th column, with m such that both steps cost about the same.
    """
    num_columns = scores.shape[1]
    size = math.isqrt(num_columns // fetch)
    if size < 3:
        values, columns = scores.topk(fetch, dim=1, sorted=False)
        return values, columns
    groups = num_columns // size
    grouped = scores[:, : groups * size].view(len(scores), size, groups)
    chosen = grouped.amax(1).topk(fetch, dim=1, sorted=False).indices
    rest = torch.arange(groups * size, num_columns, device=scores.device).expand(len(scores), -1)
    inside = (chosen[:, None] + groups * torch.arange(size, device=scores.device)[:, None]).flatten(1)
    columns = torch.cat((inside, rest), 1)
    values, order = scores.gather(1, columns).topk(fetch, dim=1, sorted=False)
    return values, columns.gather(1, order)
