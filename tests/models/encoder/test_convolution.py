"""Convolution and pooling by pencil: how far they reach, what they sum."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from models.encoder.attention_bias import AttentionGeometry, full_geometry
from models.encoder.batching import Window
from models.encoder.convolution import ConvBlock, PoolingBlock, causal_mean
from models.settings.encoder import EncoderSettings


def places(lengths, columns) -> AttentionGeometry:
    zeros = torch.zeros(len(lengths), columns, dtype=torch.int32)
    return full_geometry(Window(zeros, zeros, torch.tensor(lengths)), EncoderSettings())


def random_block(kind, number=0, kernel=3):
    torch.manual_seed(0)
    settings = EncoderSettings(block=kind, dim=5, dropout=0.5)
    block = ConvBlock(replace(settings, kernel=kernel), number) if kind == "conv" else PoolingBlock(settings)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    return block.double().eval()


def test_a_causal_mean_by_pencil():
    states = torch.tensor([[1.0, 3.0, 8.0], [-2.0, 0.0, 5.0]]).unsqueeze(2)
    assert causal_mean(states).squeeze(2).tolist() == [[1, 2, 4], [-2, -1, 1]]


def test_a_causal_mean_in_bf16_is_summed_in_fp32():
    states = torch.rand(1, 1000, 1).bfloat16()
    exact = states.double().cumsum(1) / torch.arange(1, 1001).view(1, -1, 1)
    assert torch.equal(causal_mean(states), exact.float().bfloat16())  # nothing but the last rounding


@pytest.mark.parametrize("number", [0, 1, 2, 3, 4])
def test_a_convolution_is_its_formula(number):
    block, states = random_block("conv", number), torch.randn(2, 23, 5, dtype=torch.float64)
    dilation = [1, 2, 4, 8, 1][number]
    with torch.no_grad():
        normed, w = block.norm(states), block.convolution.weight
        total = torch.zeros_like(states) + block.convolution.bias
        for i in range(23):
            for k in range(3):
                if i - k * dilation >= 0:
                    total[:, i] += normed[:, i - k * dilation] @ w[:, :, 2 - k].T
        expected = states + block.merge(functional.gelu(total))
        found = block(states.flatten(0, 1), (places([23, 23], 23),)).view(2, 23, 5)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("number", "kernel"), [(0, 1), (0, 3), (1, 2), (3, 3)])
def test_how_far_back_a_convolution_sees(number, kernel):
    block = random_block("conv", number, kernel)
    states = torch.randn(1, 29, 5, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(block.mixed(block.norm(states))[0, 28].sum(), states)
    reached = {28 - k * 2**number for k in range(kernel)}
    assert set(gradient.abs().sum((0, 2)).nonzero().flatten().tolist()) == reached


def test_pooling_is_its_formula():
    block, states = random_block("pooling"), torch.randn(2, 7, 5, dtype=torch.float64)
    with torch.no_grad():
        normed = block.norm(states).numpy()
        mean = np.stack([normed[:, : i + 1].mean(1) for i in range(7)], 1)
        expected = states + block.merge(torch.from_numpy(mean))
        found = block(states.flatten(0, 1), (places([7, 7], 7),)).view(2, 7, 5)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kind", ["conv", "pooling"])
def test_last_is_forward_at_the_last_position(kind):
    block, states, lengths = random_block(kind), torch.randn(4, 7, 5, dtype=torch.float64), [1, 3, 7, 5]
    whole = block(states.flatten(0, 1), (places(lengths, 7),)).view(4, 7, 5)
    last = block.last(states, torch.tensor(lengths), places(lengths, 7)).squeeze(1)
    torch.testing.assert_close(last, whole[torch.arange(4), torch.tensor(lengths) - 1])


@pytest.mark.parametrize("kind", ["conv", "pooling"])
def test_states_behind_the_rows_change_nothing(kind):
    block, states = random_block(kind), torch.randn(13, 5, dtype=torch.float64)
    found = block(states, (places([5, 5], 5),))
    torch.testing.assert_close(found[:10], block(states[:10], (places([5, 5], 5),)))
    assert found.shape == states.shape


@pytest.mark.parametrize("kind", ["conv", "pooling"])
def test_gradient_check_by_states_and_weights(kind):
    block = random_block(kind, 1, 2)
    names, weights = zip(*block.named_parameters(), strict=True)
    states = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)

    def new_states(before, *changed):
        parameters = dict(zip(names, changed, strict=True))
        return torch.func.functional_call(block, parameters, (before, (places([2, 3], 3),)))

    assert torch.autograd.gradcheck(new_states, (states, *weights), fast_mode=True)
