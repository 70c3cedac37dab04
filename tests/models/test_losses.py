import math

import pytest
import torch
from torch import Tensor

from models import losses
from models.losses import softmax_loss


def problem(
    dtype: torch.dtype = torch.float32, targets: int = 13, items: int = 31, dim: int = 5
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(targets, dim, generator=generator).to(dtype).requires_grad_()
    vectors = torch.randn(items + 1, dim, generator=generator).to(dtype).requires_grad_()
    target = torch.randint(1, items + 1, (targets,), generator=generator)
    weight = torch.rand(targets, generator=generator).to(dtype)
    return states, vectors, target, weight


def loss_and_gradients(implementation, dtype=torch.float32):
    states, vectors, target, weight = problem(dtype)
    loss = softmax_loss(states, vectors, target, weight, implementation)
    return [loss, *torch.autograd.grad(loss, (states, vectors))]


@pytest.mark.parametrize("implementation", ["chunked", "reference"])
def test_by_pencil(implementation):
    # two items with scores 0 and log 3; probabilities 1/4 and 3/4; weights 1 and 3
    states, vectors = torch.ones(2, 1), torch.tensor([[100.0], [0.0], [math.log(3)]])
    loss = softmax_loss(states, vectors, torch.tensor([1, 2]), torch.tensor([1.0, 3.0]), implementation)
    assert loss.item() == pytest.approx((math.log(4) + 3 * math.log(4 / 3)) / 4)


@pytest.mark.parametrize("chunk_scores", [1, 31 * 4, 2**22])
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
        return max((a.double() - b).norm() / b.norm() for a, b in zip(found, exact, strict=True))

    assert error("chunked") <= 2 * error("reference")


def test_a_hopeless_target_has_a_finite_loss():
    states, vectors = torch.tensor([[1.0]], requires_grad=True), torch.tensor([[0.0], [0.0], [500.0]])
    loss = softmax_loss(states, vectors, torch.tensor([1]), torch.ones(1))
    assert 87 < loss.item() < 88
