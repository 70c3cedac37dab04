import math

import pytest
import torch
from torch import Tensor

from models.attention import Implementation, attend, attention_scores

FAST: list[Implementation] = ["auto", "sdpa", "dense"]


def heads(dtype: torch.dtype = torch.float32, looking: int = 7) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = (2, 3, looking, 5), (2, 3, 7, 5), (2, 3, 7, 5)
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def output_and_gradients(parts, visible, implementation):
    queries, keys, values, *bias = parts
    mixed = attend(queries, keys, values, visible, implementation, *bias)
    generator = torch.Generator().manual_seed(1)
    probe = torch.randn(mixed.shape, generator=generator).to(mixed.dtype)
    return [mixed, *torch.autograd.grad(mixed, parts, probe)]


def relative_error(found, expected):
    return max(
        ((a.double() - b.double()).norm() / b.double().norm()).item()
        for a, b in zip(found, expected, strict=True)
    )


def test_two_positions_by_pencil():
    # c = 1: the second query, 1, meets the keys 0 and log 3: weights 1/4 and 3/4 of the values 4 and 8
    queries, keys, values = (
        torch.tensor(row).view(1, 1, 2, 1) for row in ([9.0, 1.0], [0.0, math.log(3)], [4.0, 8.0])
    )
    every: list[Implementation] = ["reference", *FAST]
    for implementation in every:
        mixed = attend(queries, keys, values, implementation=implementation).flatten()
        assert mixed.tolist() == pytest.approx([4.0, 7.0], abs=1e-5)


@pytest.mark.parametrize("implementation", FAST)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("masked", [False, True])
def test_fast_forms_are_as_exact_as_the_reference_at_their_precision(implementation, dtype, masked):
    parts = heads(dtype, looking=1 if masked else 7)
    visible = (torch.arange(7) < torch.tensor([4, 7]).view(2, 1, 1, 1)) if masked else None
    exact = output_and_gradients(
        [part.detach().double().requires_grad_() for part in parts], visible, "reference"
    )
    reference_error = relative_error(output_and_gradients(parts, visible, "reference"), exact)
    assert relative_error(output_and_gradients(parts, visible, implementation), exact) <= 2 * reference_error


@pytest.mark.parametrize("implementation", FAST)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("masked", [False, True])
def test_a_bias_and_its_gradient_are_the_reference_s(implementation, dtype, masked):
    looking = 1 if masked else 7
    shape = (2, 3, 1, 7) if masked else (1, 3, 7, 7)
    bias = torch.randn(shape, generator=torch.Generator().manual_seed(2)).to(dtype).requires_grad_()
    parts = [*heads(dtype, looking), bias]
    visible = (torch.arange(7) < torch.tensor([4, 7]).view(2, 1, 1, 1)) if masked else None
    exact = output_and_gradients(
        [part.detach().double().requires_grad_() for part in parts], visible, "reference"
    )
    reference_error = relative_error(output_and_gradients(parts, visible, "reference"), exact)
    assert relative_error(output_and_gradients(parts, visible, implementation), exact) <= 2 * reference_error


def test_a_bias_by_pencil():
    # both keys score 0; the bias log 3 of the second makes its weight 3/4
    queries, keys, values = (
        torch.tensor(row).view(1, 1, 2, 1) for row in ([1.0, 1.0], [0.0, 0.0], [4.0, 8.0])
    )
    bias = torch.tensor([[0.0, 0.0], [0.0, math.log(3)]]).view(1, 1, 2, 2)
    every: list[Implementation] = ["reference", *FAST]
    for implementation in every:
        mixed = attend(queries, keys, values, implementation=implementation, bias=bias).flatten()
        assert mixed.tolist() == pytest.approx([4.0, 7.0], abs=1e-5)


def test_hidden_positions_score_minus_infinity():
    queries, keys, _ = heads()
    hidden = torch.isneginf(attention_scores(queries, keys))
    assert torch.equal(hidden[0, 0], torch.ones(7, 7, dtype=torch.bool).triu(1))
