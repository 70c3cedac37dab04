import math
from functools import partial
from typing import get_args

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from models.training import losses
from models.training.losses import (
    SampledLoss,
    dislike_loss,
    sampled_loss,
    sampled_loss_of_scores,
    softmax_loss,
    softmax_loss_of_sets,
)
from models.training.negatives import Negatives

IMPLEMENTATIONS = ("chunked", "reference")
SAMPLED = get_args(SampledLoss)


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation returns."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        sizes = (part.numel() for part in tree_leaves(found) if isinstance(part, Tensor))
        self.elements = max(self.elements, *sizes, 0)
        return found


def distance(found: Tensor, exact: Tensor) -> float:
    return float((found.detach().double() - exact.detach()).norm() / exact.detach().norm())


def problem(
    dtype: torch.dtype = torch.float32, targets: int = 13, items: int = 31, dim: int = 5
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(targets, dim, generator=generator).to(dtype).requires_grad_()
    vectors = torch.randn(items + 1, dim, generator=generator).to(dtype).requires_grad_()
    target = torch.randint(1, items + 1, (targets,), generator=generator)
    weight = torch.rand(targets, generator=generator).to(dtype)
    return states, vectors, target, weight


def loss_and_gradients(implementation, dtype=torch.float32, **sizes):
    states, vectors, target, weight = problem(dtype, **sizes)
    loss = softmax_loss(states, vectors, target, weight, implementation)
    return [loss, *torch.autograd.grad(loss, (states, vectors))]


def drawn(items: int, num_negatives: int, dtype: torch.dtype = torch.float32) -> Negatives:
    generator = torch.Generator().manual_seed(1)
    item_index = torch.randint(1, items + 1, (num_negatives,), generator=generator)
    return Negatives(item_index, torch.randn(num_negatives, generator=generator).to(dtype))


def sampled(loss, implementation, negatives, num_candidates=31, logq=True, calibration=0.75):
    """The loss as a function of states, positive and negative vectors, target and weight."""

    def function(states, positive, negative, target, weight):
        return sampled_loss(
            loss,
            states,
            positive,
            negative,
            target,
            negatives,
            weight,
            num_candidates=num_candidates,
            logq_correction=logq,
            gbce_calibration=calibration,
            implementation=implementation,
        )

    return function


def sampled_and_gradients(loss, implementation, dtype=torch.float32, targets=13, num_negatives=7, scale=1.0):
    states, vectors, target, weight = problem(dtype, targets)
    negatives = drawn(31, num_negatives, dtype)
    leaves = [
        part.detach().requires_grad_()
        for part in (states * scale, vectors[target], vectors[negatives.item_index])
    ]
    value = sampled(loss, implementation, negatives)(*leaves, target, weight)
    return [value, *torch.autograd.grad(value, leaves)]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_by_pencil(implementation):
    # two items with scores 0 and log 3; probabilities 1/4 and 3/4; weights 1 and 3
    states, vectors = torch.ones(2, 1), torch.tensor([[100.0], [0.0], [math.log(3)]])
    loss = softmax_loss(states, vectors, torch.tensor([1, 2]), torch.tensor([1.0, 3.0]), implementation)
    assert loss.item() == pytest.approx((math.log(4) + 3 * math.log(4 / 3)) / 4)


@pytest.mark.parametrize("chunk_scores", [1, 31 * 6, 2**22])
def test_chunks_equal_the_whole(monkeypatch, chunk_scores):
    monkeypatch.setattr(losses, "CHUNK_SCORES", chunk_scores)
    found = loss_and_gradients("chunked")
    torch.testing.assert_close(found, loss_and_gradients("reference"))


def test_gradients_in_double_precision():
    states, vectors, target, weight = problem(torch.float64)
    assert torch.autograd.gradcheck(lambda s, v: softmax_loss(s, v, target, weight), (states, vectors))


def test_padding_gets_no_gradient():
    assert not loss_and_gradients("chunked")[2][0].any()


def test_bf16_is_as_exact_as_the_reference_in_bf16():
    exact = loss_and_gradients("reference", torch.float64)

    def error(implementation):
        with torch.autocast("cpu", torch.bfloat16):
            found = loss_and_gradients(implementation)
        return max(map(distance, found, exact))

    assert error("chunked") <= 2 * error("reference")


@pytest.mark.parametrize("fit", [0.3, 0.7, 0.95])
def test_bf16_is_as_exact_as_the_reference_with_cosines_over_a_temperature(fit):
    # states that point to their targets with this cosine: the likelihoods go from almost none to almost one
    generator = torch.Generator().manual_seed(0)
    vectors = torch.nn.functional.normalize(torch.randn(1010, 31, generator=generator, dtype=torch.float64))
    target = torch.randint(1, 1010, (499,), generator=generator)
    noise = torch.nn.functional.normalize(torch.randn(499, 31, generator=generator, dtype=torch.float64))
    states = torch.nn.functional.normalize(fit * vectors[target] + math.sqrt(1 - fit**2) * noise) / 0.05

    def found(implementation, dtype):
        at, table = states.to(dtype).requires_grad_(), vectors.to(dtype).requires_grad_()
        loss = softmax_loss(at, table, target, torch.ones(499, dtype=dtype), implementation)
        return [loss, *torch.autograd.grad(loss, (at, table))]

    exact = found("reference", torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        chunked, reference = found("chunked", torch.float32), found("reference", torch.float32)
    for part, plain, truth in zip(chunked[1:], reference[1:], exact[1:], strict=True):
        assert distance(part, truth) <= 1.1 * distance(plain, truth)
    # every loss is rounded on its own, by at most a score's half step in bf16, and they add up in all directions
    assert abs(chunked[0] - exact[0]) <= abs(reference[0] - exact[0]) + 2**-8 * exact[0]


def test_a_hopeless_target_has_a_finite_loss():
    states, vectors = torch.tensor([[1.0]], requires_grad=True), torch.tensor([[0.0], [0.0], [500.0]])
    loss = softmax_loss(states, vectors, torch.tensor([1]), torch.ones(1))
    assert 87 < loss.item() < 88


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_catalogue_of_one_item_has_nothing_to_learn(implementation):
    found = loss_and_gradients(implementation, items=1)
    assert not any(part.any() for part in found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_scores_of_a_large_catalogue_are_never_held(monkeypatch, dtype):
    monkeypatch.setattr(losses, "CHUNK_SCORES", 2**14)
    sizes = {"targets": 499, "items": 2003, "dim": 7}
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        with Largest() as largest:
            found = loss_and_gradients("chunked", **sizes)
        reference = loss_and_gradients("reference", **sizes)
    assert largest.elements <= 2**14
    exact = loss_and_gradients("reference", torch.float64, **sizes)
    for part, plain, truth in zip(found, reference, exact, strict=True):
        assert distance(part, truth) <= 2 * distance(plain, truth) + torch.finfo(torch.float32).eps


def sets_and_gradients(implementation, dtype=torch.float32, sizes=(1, 3, 2, 7, 1, 5), items=31, scale=1.0):
    """The loss of sets of these sizes, the distinct targets of each state."""
    states, vectors, _, _ = problem(dtype, len(sizes), items)
    states = (states * scale).detach().requires_grad_()
    generator = torch.Generator().manual_seed(3)
    target = torch.cat([torch.randperm(items, generator=generator)[:size] + 1 for size in sizes])
    weight = torch.rand(len(target), generator=generator).to(dtype) + 0.1
    state = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    loss = softmax_loss_of_sets(states, vectors, state, target, weight, implementation)
    repeated = softmax_loss(states[state], vectors, target, weight, "reference")
    return [loss, *torch.autograd.grad(loss, (states, vectors))], [
        repeated,
        *torch.autograd.grad(repeated, (states, vectors)),
    ]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_set_by_pencil(implementation):
    # two items with scores 0 and log 3, both targets of the first state, the second alone of the other
    states, vectors = torch.ones(2, 1), torch.tensor([[100.0], [0.0], [math.log(3)]])
    state, target = torch.tensor([0, 0, 1]), torch.tensor([1, 2, 2])
    loss = softmax_loss_of_sets(states, vectors, state, target, torch.tensor([0.5, 0.5, 2.0]), implementation)
    assert loss.item() == pytest.approx((0.5 * math.log(4) + 2.5 * math.log(4 / 3)) / 3)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("chunk_scores", [1, 31 * 5, 2**22])
def test_sets_are_states_repeated(monkeypatch, chunk_scores, implementation):
    monkeypatch.setattr(losses, "CHUNK_SCORES", chunk_scores)
    torch.testing.assert_close(*sets_and_gradients(implementation))
    torch.testing.assert_close(*sets_and_gradients(implementation, sizes=(2,) * 40))


def test_gradients_of_sets_in_double_precision():
    states, vectors, _, _ = problem(torch.float64, 3)
    state, target = torch.tensor([0, 0, 1, 2, 2, 2]), torch.tensor([3, 9, 9, 1, 2, 31])
    weight = torch.tensor([0.5, 2, 1, 1, 0.25, 3], dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda s, v: softmax_loss_of_sets(s, v, state, target, weight), (states, vectors)
    )


@pytest.mark.parametrize("scale", [0.3, 1.0, 4.0])
def test_sets_in_bf16_are_as_exact_as_the_reference_in_bf16(monkeypatch, scale):
    monkeypatch.setattr(losses, "CHUNK_SCORES", 2**14)
    options = {"sizes": tuple(1 + number % 5 for number in range(499)), "items": 203, "scale": scale}
    exact, _ = sets_and_gradients("reference", torch.float64, **options)
    with torch.autocast("cpu", torch.bfloat16):
        chunked, reference = (sets_and_gradients(kind, **options)[0] for kind in IMPLEMENTATIONS)
    for part, plain, truth in zip(chunked[1:], reference[1:], exact[1:], strict=True):
        assert distance(part, truth) <= 2 * distance(plain, truth) + torch.finfo(torch.float32).eps
    assert abs(chunked[0] - exact[0]) <= abs(reference[0] - exact[0]) + 2**-8 * exact[0]


def test_the_scores_of_sets_are_never_held(monkeypatch):
    monkeypatch.setattr(losses, "CHUNK_SCORES", 2**14)
    with Largest() as largest:
        states, vectors, target, weight = problem(targets=998, items=2003, dim=7)
        state = torch.arange(499).repeat_interleave(2)
        loss = softmax_loss_of_sets(states[:499], vectors, state, target, weight)
        torch.autograd.grad(loss, (states, vectors))
    assert largest.elements <= 2**14


# s+ = log 3; s- = 0, log 2 and, for the target itself, log 5; expected draws 1/4 and 2
PENCIL = {
    "sampled_softmax": math.log((3 + 1 + 2) / 3),
    "logq": math.log((3 + 4 + 1) / 3),
    "bce": (math.log(4 / 3) + math.log(2) + math.log(3)) / 4,
    "gbce": (0.8 * math.log(4 / 3) + math.log(2) + math.log(3)) / 4,  # α = 3/5, t = 1/2
    "bpr": (math.log(4 / 3) + math.log(5 / 3)) / 3,
}


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("case", PENCIL)
def test_sampled_losses_by_pencil(case, implementation):
    loss = "sampled_softmax" if case == "logq" else case
    states, positive = torch.ones(2, 1), torch.tensor([[math.log(3)], [7.0]])
    negative = torch.tensor([[0.0], [math.log(5)], [math.log(2)]])
    negatives = Negatives(torch.tensor([4, 2, 9]), torch.tensor([0.25, 1.0, 2.0]).log())
    function = sampled(loss, implementation, negatives, 6, case == "logq", 0.5)
    target = torch.tensor([2, 1])
    assert function(states, positive, negative, target, torch.tensor([1.0, 0.0])).item() == pytest.approx(
        PENCIL[case]
    )
    other = function(states, positive, negative, target, torch.tensor([0.0, 1.0]))
    both = function(states, positive, negative, target, torch.tensor([1.0, 3.0]))
    assert both.item() == pytest.approx((PENCIL[case] + 3 * other.item()) / 4)


@pytest.mark.parametrize("loss", SAMPLED)
def test_sampled_losses_of_scores_are_those_of_vectors(loss):
    states, vectors, target, weight = problem()
    negatives = drawn(31, 7)
    negative = vectors[negatives.item_index]
    scores = (states * vectors[target]).sum(-1), states @ negative.T
    of_scores = sampled_loss_of_scores(
        loss,
        *scores,
        target,
        negatives,
        weight,
        num_candidates=31,
        logq_correction=True,
        gbce_calibration=0.75,
    )
    of_vectors = sampled(loss, "chunked", negatives)(states, vectors[target], negative, target, weight)
    torch.testing.assert_close(of_scores, of_vectors)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("loss", SAMPLED)
def test_sampled_gradients_in_double_precision(monkeypatch, loss, implementation):
    monkeypatch.setattr(losses, "CHUNK_SCORES", 4 * 3 * 7)
    states, vectors, target, weight = problem(torch.float64, targets=11)
    negatives = drawn(31, 7, torch.float64)
    target[3] = negatives.item_index[2]
    leaves = states, *(vectors[index].detach().requires_grad_() for index in (target, negatives.item_index))
    function = sampled(loss, implementation, negatives)
    assert torch.autograd.gradcheck(lambda *parts: function(*parts, target, weight), leaves)


@pytest.mark.parametrize("chunk_scores", [1, 4 * 7 * 5, 2**22])
@pytest.mark.parametrize("loss", SAMPLED)
def test_sampled_chunks_equal_the_whole(monkeypatch, loss, chunk_scores):
    monkeypatch.setattr(losses, "CHUNK_SCORES", chunk_scores)
    found = sampled_and_gradients(loss, "chunked")
    torch.testing.assert_close(found, sampled_and_gradients(loss, "reference"))


@pytest.mark.parametrize("scale", [0.3, 10.0])
@pytest.mark.parametrize("loss", SAMPLED)
def test_sampled_losses_in_bf16_are_as_exact_as_the_reference_in_bf16(monkeypatch, loss, scale):
    monkeypatch.setattr(losses, "CHUNK_SCORES", 4 * 67 * 101)
    sizes = {"targets": 499, "num_negatives": 67, "scale": scale}
    exact = sampled_and_gradients(loss, "reference", torch.float64, **sizes)
    with torch.autocast("cpu", torch.bfloat16):
        chunked, reference = (sampled_and_gradients(loss, kind, **sizes) for kind in IMPLEMENTATIONS)
    for part, plain, truth in zip(chunked, reference, exact, strict=True):
        assert part.dtype == torch.float32
        assert distance(part, truth) <= 1.1 * distance(plain, truth) + torch.finfo(torch.float32).eps


@pytest.mark.parametrize("loss", SAMPLED)
def test_the_scores_of_many_negatives_are_never_held(monkeypatch, loss):
    monkeypatch.setattr(losses, "CHUNK_SCORES", 2**13)
    with Largest() as largest:
        sampled_and_gradients(loss, "chunked", targets=499, num_negatives=307)
    assert largest.elements <= 2**13


@pytest.mark.parametrize("logq", [False, True])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_all_items_as_negatives_make_the_full_softmax(implementation, logq):
    states, vectors, target, weight = problem(torch.float64)
    negatives = Negatives(torch.arange(1, 32), torch.zeros(31))  # each is expected once
    function = sampled("sampled_softmax", implementation, negatives, logq=logq)
    found = function(states, vectors[target], vectors[1:], target, weight)
    full = softmax_loss(states, vectors, target, weight, "reference")
    torch.testing.assert_close(
        [found, *torch.autograd.grad(found, (states, vectors))],
        [full, *torch.autograd.grad(full, (states, vectors))],
    )


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_gbce_is_bce_without_calibration_and_where_every_negative_is_drawn(implementation):
    states, vectors, target, weight = problem()
    negatives = drawn(31, 7)
    parts = states, vectors[target], vectors[negatives.item_index], target, weight
    bce = sampled("bce", implementation, negatives)(*parts)
    gbce = partial(sampled, "gbce", implementation, negatives)
    assert gbce(calibration=0.0)(*parts) == bce
    assert gbce(num_candidates=8, calibration=1.0)(*parts) == bce
    assert gbce(num_candidates=1, calibration=1.0)(*parts) == bce
    assert gbce(num_candidates=31, calibration=1.0)(*parts) < bce


def test_gbce_weighs_the_positive_as_its_paper_says():
    share, calibration = 7 / 30, 0.75
    paper = share * (calibration * (1 - 1 / share) + 1 / share)
    assert losses._positive_weight("gbce", 7, 31, calibration) == pytest.approx(paper)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("loss", SAMPLED)
def test_a_negative_that_is_the_target_carries_no_gradient(loss, implementation):
    states, vectors, _, weight = problem()
    target, negatives = torch.full((13,), 5), Negatives(torch.tensor([5, 9, 5]), torch.zeros(3))
    negative = vectors[negatives.item_index].detach().requires_grad_()
    value = sampled(loss, implementation, negatives)(states, vectors[target], negative, target, weight)
    (gradient,) = torch.autograd.grad(value, negative)
    assert not gradient[[0, 2]].any()
    assert gradient[1].all()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("loss", SAMPLED)
def test_targets_with_no_other_item_drawn_are_finite(loss, implementation):
    states, vectors, _, weight = problem()
    target, negatives = torch.full((13,), 5), Negatives(torch.tensor([5, 5]), torch.zeros(2))
    leaves = states, *(vectors[index].detach().requires_grad_() for index in (target, negatives.item_index))
    value = sampled(loss, implementation, negatives)(*leaves, target, weight)
    gradients = torch.autograd.grad(value, leaves)
    assert all(part.isfinite().all() for part in (value, *gradients))
    assert not gradients[2].any()
    if loss in {"sampled_softmax", "bpr"}:
        assert value == 0


def test_dislikes_by_pencil():
    states = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    liked, disliked = torch.tensor([[3.0, 9.0], [9.0, 0.0]]), torch.tensor([[3.0, -9.0], [-9.0, 0.5]])
    # scores 3 and 3: log 2; 0 and 1: log(1 + e), three times
    loss = dislike_loss(states, liked, disliked, torch.tensor([1.0, 3.0]))
    assert float(loss) == pytest.approx(math.log(2) + 3 * math.log(1 + math.e), rel=1e-6)


def test_gradients_of_dislikes_are_those_of_the_plain_line():
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(7, 3, generator=generator, dtype=torch.float64) for _ in range(3)]
    weight = torch.rand(7, generator=generator, dtype=torch.float64)
    states, liked, disliked = (part.requires_grad_() for part in parts)
    plain = -(((states * liked).sum(-1) - (states * disliked).sum(-1)).sigmoid().log() * weight).sum()
    loss = dislike_loss(states, liked, disliked, weight)
    assert torch.allclose(loss, plain)
    for own, expected in zip(
        torch.autograd.grad(loss, parts), torch.autograd.grad(plain, parts), strict=True
    ):
        assert torch.allclose(own, expected)
    assert torch.autograd.gradcheck(partial(dislike_loss, weight=weight), parts)
