"""Training losses: cross-entropy of the next item over the whole catalogue, or losses over sampled negatives.

Letters: n targets, s states that predict them, d components of a state, m negatives, items = num_items + 1 (row 0 is padding
and never a candidate); s+ and s- are the scores of a target and of a negative.
"""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from models.encoder.batching import rounded_up
from models.shapes import Float, Int
from models.training.negatives import Negatives

Implementation = Literal["chunked", "reference"]
SampledLoss = Literal["sampled_softmax", "gbce", "bce", "bpr"]

CHUNK_SCORES = 2**22
"""Scores per chunk of the chunked losses: 8 MB in bf16, near the caches of a few cores."""


def softmax_loss(
    states: Float[Tensor, "n d"],
    item_vectors: Float[Tensor, "items d"],
    target: Int[Tensor, " n"],
    weight: Float[Tensor, " n"],
    implementation: Implementation = "chunked",
) -> Float[Tensor, ""]:
    """Weighted mean over targets of `-log softmax(states @ item_vectors[1:].T)[target]`.

    target in 1..num_items; weight >= 0 with a positive sum. "chunked" never holds the n x items scores (only those of at least d
    targets, as large as the item vectors): it computes gradients chunk by chunk in the forward pass, matrix products and
    probabilities at autocast's precision, and raises likelihoods below e^-87 to it in the loss value alone. "reference" is the
    plain torch line. Source: Hsu et al. 2024 (Liger, fused linear cross-entropy).
    """
    if implementation == "reference":
        losses = functional.cross_entropy(states @ item_vectors[1:].T, target.long() - 1, reduction="none")
        return (losses * weight).sum() / weight.sum()
    assert implementation == "chunked", implementation
    share, precision = weight / weight.sum(), _precision(item_vectors)
    apply: Callable[..., Tensor] = _LossWithGradients.apply
    return apply(_softmax_gradients, states, item_vectors, target.long() - 1, share, precision)


def softmax_loss_of_sets(
    states: Float[Tensor, "s d"],
    item_vectors: Float[Tensor, "items d"],
    state: Int[Tensor, " n"],
    target: Int[Tensor, " n"],
    weight: Float[Tensor, " n"],
    implementation: Implementation = "chunked",
    readable_state: Int[Tensor, " n"] | None = None,
) -> Float[Tensor, ""]:
    """`softmax_loss` of `states[state]`: weighted mean of `-log softmax(states @ item_vectors[1:].T)[state, target]`.

    state: ascending, 0..s - 1, each with a target; pairs (state, target) are distinct, weight > 0. "chunked" computes the
    scores of a state once for all of its targets. readable_state: `state` on the CPU, which cuts the chunks without waiting for
    a device; None: read `state`.
    """
    if implementation == "reference":
        log_likelihood = functional.log_softmax(states @ item_vectors[1:].T, -1)[state, target.long() - 1]
        return -(log_likelihood * weight).sum() / weight.sum()
    assert implementation == "chunked", implementation
    share, precision = weight / weight.sum(), _precision(item_vectors)
    apply: Callable[..., Tensor] = _LossWithGradients.apply
    readable = (state if readable_state is None else readable_state).cpu()
    return apply(_sets_gradients, states, item_vectors, state, target.long() - 1, share, precision, readable)


def sampled_loss(
    loss: SampledLoss,
    states: Float[Tensor, "n d"],
    positive: Float[Tensor, "n d"],
    negative: Float[Tensor, "m d"],
    target: Int[Tensor, " n"],
    negatives: Negatives,
    weight: Float[Tensor, " n"],
    *,
    num_candidates: int,
    logq_correction: bool,
    gbce_calibration: float,
    implementation: Implementation = "chunked",
) -> Float[Tensor, ""]:
    """`sampled_loss_of_scores` of inner products: s+ = states · positive, s- = states @ negative.T.

    positive, negative: vectors of the targets and of `negatives.item_index`. "chunked" holds at most CHUNK_SCORES of the
    n x m scores: it computes gradients chunk by chunk in the forward pass, matrix products at autocast's precision, losses at
    that of `weight`. "reference" is the plain torch line.
    """
    if implementation == "reference":
        return sampled_loss_of_scores(
            loss,
            (states * positive).sum(-1),
            states @ negative.T,
            target,
            negatives,
            weight,
            num_candidates=num_candidates,
            logq_correction=logq_correction,
            gbce_calibration=gbce_calibration,
        )
    assert implementation == "chunked", implementation
    beta = _positive_weight(loss, len(negative), num_candidates, gbce_calibration)
    log_expected = negatives.log_expected if loss == "sampled_softmax" and logq_correction else None
    drawn = negatives.item_index, log_expected
    share, precision = weight / weight.sum(), _precision(negative)
    apply: Callable[..., Tensor] = _LossWithGradients.apply
    return apply(_sampled_gradients, states, positive, negative, target, drawn, share, loss, beta, precision)


def sampled_loss_of_scores(
    loss: SampledLoss,
    positive_scores: Float[Tensor, " n"],
    negative_scores: Float[Tensor, "n m"],
    target: Int[Tensor, " n"],
    negatives: Negatives,
    weight: Float[Tensor, " n"],
    *,
    num_candidates: int,
    logq_correction: bool,
    gbce_calibration: float,
) -> Float[Tensor, ""]:
    """Weighted mean over targets of a loss of positive scores s+ and negative scores s-.

    sampled_softmax: `-log(exp(s+) / (exp(s+) + sum exp(s- - log_expected)))`, with `logq_correction`. The expected divisor is
        that of the softmax over the whole catalogue; the target, always present, has no correction (Yi et al. correct its score
        too and keep its other copies). Without correction `exp(s-)`.
        Source: Bengio & Senécal 2008; Jean et al. 2015; Yi et al. 2019.
    bce: `-(log σ(s+) + sum log(1 - σ(s-))) / (m + 1)`, divided by the number of decisions so that steps do not grow with m.
        Source: Kang & McAuley 2018 (SASRec; there m = 1).
    gbce: the same with β log σ(s+), β = α (t (1 - 1/α) + 1/α) = 1 - t (1 - α), where α = min(1, m / (num_candidates - 1)) is the
        sampling rate of negatives and t `gbce_calibration`: 0 is bce, 1 removes the overconfidence of sampling few negatives.
        Source: Petrov & Macdonald 2023 (gSASRec).
    bpr: `mean over negatives of -log σ(s+ - s-)`. Source: Rendle et al. 2009.

    A negative equal to the target adds neither loss nor gradient. num_candidates: items that negatives are drawn from;
    weight >= 0 with a positive sum, in the precision of the losses.
    """
    hit = target.unsqueeze(1) == negatives.item_index
    negative = negative_scores.to(weight.dtype)
    if loss == "sampled_softmax" and logq_correction:
        negative = negative - negatives.log_expected
    negative = negative.masked_fill(hit, torch.finfo(negative.dtype).min)
    positive = positive_scores.to(weight.dtype)
    if loss == "sampled_softmax":
        losses = functional.softplus(negative.logsumexp(-1) - positive)
    elif loss == "bpr":
        losses = functional.softplus(negative - positive.unsqueeze(1)).mean(-1)
    else:
        beta = _positive_weight(loss, negative.shape[1], num_candidates, gbce_calibration)
        decisions = beta * functional.softplus(-positive) + functional.softplus(negative).sum(-1)
        losses = decisions / (negative.shape[1] + 1)
    return losses.dot(weight) / weight.sum()


def dislike_loss(
    states: Float[Tensor, "c d"],
    liked: Float[Tensor, "c d"],
    disliked: Float[Tensor, "c d"],
    weight: Float[Tensor, " c"],
) -> Float[Tensor, ""]:
    """Weighted sum over dislikes of `-log σ(s+ - s-)`, s- the disliked item's score and s+ that of the user's next target.

    states: of the history before each dislike; liked, disliked: item vectors; weight: sizes of the dislikes' negative weights.
    The softmax over these two alone: that a user met both items says nothing, that one was liked all. It fits every loss, and
    its derivative by s- is σ(s- - s+). That of `-log(1 - p)`, p the softmax over the catalogue, is about p: nothing at all where
    there are thousands of items. Source: Rendle et al. 2009 (BPR), with dislikes in place of unobserved items.
    """
    margins = (states * (disliked - liked)).sum(-1).to(weight.dtype)
    return functional.softplus(margins).dot(weight)


def _positive_weight(loss: SampledLoss, num_negatives: int, num_candidates: int, calibration: float) -> float:
    """β of gBCE, 1 for other losses."""
    drawn = min(1.0, num_negatives / max(1, num_candidates - 1))
    return 1 - calibration * (1 - drawn) if loss == "gbce" else 1.0


def _precision(vectors: Tensor) -> torch.dtype:
    """Precision of matrix products with the vectors."""
    device = vectors.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else vectors.dtype


class _LossWithGradients(torch.autograd.Function):
    """Loss whose gradients by its first arguments `function` computes in the forward pass, without autocast."""

    @staticmethod
    def forward(ctx: Any, function: Callable[..., tuple[Tensor, ...]], *arguments: Any) -> Tensor:
        with torch.autocast(arguments[0].device.type, enabled=False):
            loss, *gradients = function(*arguments)
        ctx.save_for_backward(*gradients)
        ctx.num_constants = len(arguments) - len(gradients)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        gradients = ((part * grad_loss).to(part.dtype) for part in ctx.saved_tensors)
        return None, *gradients, *(None,) * ctx.num_constants


def _softmax_gradients(
    states: Tensor, item_vectors: Tensor, target: Tensor, weight: Tensor, precision: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss and its gradients by states and item vectors, for weights of sum 1 and targets from 0, chunk by chunk.

    With p the likelihood of a target and r the sum of the other probabilities, the loss is log(1 + r / p) and its
    derivative by the target's score -r: near certainty 1 - p has few digits in bf16, r has all.
    """
    candidates = item_vectors[1:].to(precision)
    candidates_t = candidates.T.contiguous()
    behind = rounded_up(len(states)) - len(states)
    lowered = functional.pad(states.to(precision), (0, 0, 0, behind))
    target, weight = functional.pad(target, (0, behind)), functional.pad(weight, (0, behind))
    loss = weight.new_zeros(())
    grad_states = torch.empty_like(lowered, dtype=states.dtype)
    grad_items = torch.zeros_like(item_vectors)
    rows = max(states.shape[1], CHUNK_SCORES // len(candidates))
    scores = lowered.new_empty(min(rows, len(lowered)), len(candidates))
    for start in range(0, len(lowered), rows):
        chunk = slice(start, start + rows)
        part, share = lowered[chunk], weight[chunk].unsqueeze(1)
        probabilities = torch.mm(part, candidates_t, out=scores[: len(part)])
        torch.softmax(probabilities, -1, out=probabilities)
        at_target = torch.arange(len(part), device=states.device), target[chunk]
        likelihood = probabilities[at_target].to(weight.dtype).clamp_min(torch.finfo(torch.float32).tiny)
        probabilities[at_target] = 0
        rest = probabilities.sum(-1)
        probabilities[at_target] = -rest
        loss += (rest / likelihood).log1p().dot(weight[chunk])
        grad_states[chunk] = (probabilities @ candidates) * share
        grad_items[1:] += probabilities.T @ (part * share).to(precision)
    return loss, grad_states[: len(states)], grad_items


def _sets_gradients(
    states: Tensor,
    item_vectors: Tensor,
    state: Tensor,
    target: Tensor,
    weight: Tensor,
    precision: torch.dtype,
    readable_state: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss and its gradients by states and item vectors, for weights of sum 1 and targets from 0, chunk by chunk of states.

    With p the likelihood of a target, q its share of its state's weight, t the sum of p over the state's targets and r that of
    the other probabilities, t + r = 1 but for rounding: the loss is log(t / p) + log(1 + r / t), the derivative by the target's
    score p / (t + r) - q. With one target they are those of `_softmax_gradients`, and as exact near certainty.
    """
    candidates = item_vectors[1:].to(precision)
    candidates_t = candidates.T.contiguous()
    num_states = len(states)
    lowered = functional.pad(states.to(precision), (0, 0, 0, rounded_up(num_states) - num_states))
    of_state = weight.new_zeros(len(lowered)).index_add_(0, state, weight)
    rows = max(states.shape[1], CHUNK_SCORES // len(candidates))
    starts = range(0, len(lowered), rows)
    cuts = np.searchsorted(readable_state.numpy(), [*starts, len(lowered)]).tolist()
    loss = weight.new_zeros(())
    grad_states, grad_items = torch.empty_like(lowered, dtype=states.dtype), torch.zeros_like(item_vectors)
    scores = lowered.new_empty(min(rows, len(lowered)), len(candidates))
    for start, first, last in zip(starts, cuts[:-1], cuts[1:], strict=True):
        chunk = slice(start, start + rows)
        part, share = lowered[chunk], of_state[chunk].unsqueeze(1)
        probabilities = torch.mm(part, candidates_t, out=scores[: len(part)])
        torch.softmax(probabilities, -1, out=probabilities)
        row, own = state[first:last] - start, weight[first:last]
        at_target = row, target[first:last]
        likelihood = probabilities[at_target].to(weight.dtype).clamp_min(torch.finfo(torch.float32).tiny)
        probabilities[at_target] = 0
        rest = probabilities.sum(-1).to(weight.dtype)
        together = torch.zeros_like(rest).index_add_(0, row, likelihood)
        slope = likelihood / (together + rest)[row] - own / of_state[chunk][row]
        probabilities[at_target] = slope.to(precision)
        loss += ((together[row] / likelihood).log() + (rest / together)[row].log1p()).dot(own)
        grad_states[chunk] = (probabilities @ candidates) * share
        grad_items[1:] += probabilities.T @ (part * share).to(precision)
    return loss, grad_states[:num_states], grad_items


def _sampled_gradients(
    states: Tensor,
    positive: Tensor,
    negative: Tensor,
    target: Tensor,
    drawn: tuple[Tensor, Tensor | None],
    weight: Tensor,
    loss: SampledLoss,
    beta: float,
    precision: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss and its gradients by states, positive and negative vectors, for weights of sum 1, chunk by chunk.

    drawn: (item_index, log_expected to subtract from scores or None).
    """
    vectors = negative.to(precision)
    vectors_t = vectors.T.contiguous()
    (item_index, log_expected), num_targets = drawn, len(states)
    behind = rounded_up(num_targets) - num_targets
    states, positive = (functional.pad(part, (0, 0, 0, behind)) for part in (states, positive))
    target, weight = functional.pad(target, (0, behind)), functional.pad(weight, (0, behind))
    value = weight.new_zeros(())
    grad_states, grad_positive = torch.empty_like(states), torch.empty_like(positive)
    grad_negative = torch.zeros_like(negative)
    rows = max(1, CHUNK_SCORES // 4 // len(negative))  # several arrays of scores at a time, and not in bf16
    for start in range(0, len(states), rows):
        chunk = slice(start, start + rows)
        part = states[chunk]
        lowered = part.to(precision)
        scores = (lowered @ vectors_t).to(weight.dtype)
        if log_expected is not None:
            scores -= log_expected
        scores.masked_fill_(target[chunk].unsqueeze(1) == item_index, torch.finfo(scores.dtype).min)
        positive_scores = (part * positive[chunk]).sum(-1).to(weight.dtype)
        losses, by_positive, by_negative = _losses_and_derivatives(
            loss, positive_scores, scores, weight[chunk], beta
        )
        value += losses.dot(weight[chunk])
        by_positive, by_negative = by_positive.unsqueeze(1), by_negative.to(precision)
        grad_states[chunk] = by_negative @ vectors + by_positive * positive[chunk]
        grad_positive[chunk] = by_positive * part
        grad_negative += by_negative.T @ lowered
    return value, grad_states[:num_targets], grad_positive[:num_targets], grad_negative


def _losses_and_derivatives(
    loss: SampledLoss, positive: Tensor, negative: Tensor, weight: Tensor, beta: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses [n] of `sampled_loss_of_scores`; weighted derivatives by s+ [n] and s- [n, m], the last written over s-."""
    num_negatives = negative.shape[1]
    if loss == "sampled_softmax":
        highest = negative.amax(-1, keepdim=True)
        odds = negative.sub_(highest).exp_()
        total = odds.sum(-1, keepdim=True)
        margin = (total.log() + highest).squeeze(1) - positive
        wrong = margin.sigmoid() * weight
        return functional.softplus(margin), -wrong, odds.mul_(wrong.unsqueeze(1) / total)
    if loss == "bpr":
        margins = negative.sub_(positive.unsqueeze(1))
        losses = functional.softplus(margins).mean(-1)
        slopes = margins.sigmoid_().mul_(weight.unsqueeze(1) / num_negatives)
        return losses, -slopes.sum(-1), slopes
    losses = beta * functional.softplus(-positive) + functional.softplus(negative).sum(-1)
    losses = losses / (num_negatives + 1)
    share = weight / (num_negatives + 1)
    return losses, -beta * (-positive).sigmoid() * share, negative.sigmoid_().mul_(share.unsqueeze(1))
