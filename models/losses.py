"""What training minimises: cross-entropy of the next item over the whole catalogue.

Letters: n targets, d components of a state, items = num_items + 1 (row 0 is padding and never a candidate).
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from models.batching import rounded_up
from models.shapes import Float, Int

Implementation = Literal["chunked", "reference"]

CHUNK_SCORES = 2**22
"""Scores held at a time by the chunked softmax: 8 MB in bf16, near the caches of a few cores."""


def softmax_loss(
    states: Float[Tensor, "n d"],
    item_vectors: Float[Tensor, "items d"],
    target: Int[Tensor, " n"],
    weight: Float[Tensor, " n"],
    implementation: Implementation = "chunked",
) -> Float[Tensor, ""]:
    """Weighted mean over targets of `-log softmax(states @ item_vectors[1:].T)[target]`.

    target in 1..num_items; weight >= 0 with a positive sum. "chunked" never holds the n x items scores: it computes the
    gradients chunk by chunk in the forward pass, matrix products and probabilities at autocast's precision. A target
    less likely than e^-87 counts as e^-87 there, in the value of the loss only. "reference" is the plain torch line.
    Source: Hsu et al. 2024 (Liger, fused linear cross-entropy).
    """
    if implementation == "reference":
        losses = functional.cross_entropy(states @ item_vectors[1:].T, target.long() - 1, reduction="none")
        return (losses * weight).sum() / weight.sum()
    assert implementation == "chunked", implementation
    device = states.device.type
    lowered = torch.is_autocast_enabled(device)
    precision = torch.get_autocast_dtype(device) if lowered else item_vectors.dtype
    apply: Callable[..., Tensor] = _ChunkedSoftmaxLoss.apply
    return apply(states, item_vectors, target.long() - 1, weight / weight.sum(), precision)


class _ChunkedSoftmaxLoss(torch.autograd.Function):
    """`softmax_loss` with weights that sum to one and targets from 0."""

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, item_vectors: Tensor, target: Tensor, weight: Tensor, precision: torch.dtype
    ) -> Tensor:
        with torch.autocast(states.device.type, enabled=False):
            loss, grad_states, grad_items = _loss_and_gradients(
                states, item_vectors, target, weight, precision
            )
        ctx.save_for_backward(grad_states, grad_items)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        grad_states, grad_items = ctx.saved_tensors
        return (grad_states * grad_loss).to(grad_states.dtype), grad_items * grad_loss, None, None, None


def _loss_and_gradients(
    states: Tensor, item_vectors: Tensor, target: Tensor, weight: Tensor, precision: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss and its gradients with respect to states and item vectors, a slice of the targets at a time."""
    candidates = item_vectors[1:].to(precision)
    candidates_t = candidates.T.contiguous()
    behind = rounded_up(len(states)) - len(states)
    lowered = functional.pad(states.to(precision), (0, 0, 0, behind))
    target, weight = functional.pad(target, (0, behind)), functional.pad(weight, (0, behind))
    loss = weight.new_zeros(())
    grad_states = torch.empty_like(lowered, dtype=states.dtype)
    grad_items = torch.zeros_like(item_vectors)
    rows = max(1, CHUNK_SCORES // len(candidates))
    for start in range(0, len(lowered), rows):
        chunk = slice(start, start + rows)
        probabilities = (lowered[chunk] @ candidates_t).softmax(-1)
        at_target = torch.arange(len(probabilities), device=states.device), target[chunk]
        likelihood = probabilities[at_target].to(weight.dtype)
        loss -= likelihood.clamp_min(torch.finfo(torch.float32).tiny).log().dot(weight[chunk])
        probabilities[at_target] -= 1
        share = weight[chunk].unsqueeze(1)
        grad_states[chunk] = (probabilities @ candidates) * share
        grad_items[1:] += probabilities.T @ (lowered[chunk] * share).to(precision)
    return loss, grad_states[: len(states)], grad_items
