"""Attention blocks against their formulas written out, number by number."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from models.encoder.attention_bias import full_geometry, last_geometry
from models.encoder.batching import Window
from models.encoder.blocks import BLOCKS, GELU, Dropout, SwiGLU, random_mask
from models.settings.encoder import EncoderSettings

LENGTHS = [1, 3, 7, 5]


def window(lengths, columns):
    zeros = torch.zeros(len(lengths), columns, dtype=torch.int32)
    return Window(zeros, zeros, torch.tensor(lengths))


def random_block(kind, dtype=torch.float64, **settings):
    """Six components in three heads, every weight telling; its settings."""
    torch.manual_seed(0)
    chosen = EncoderSettings(block=kind, dim=6, num_heads=3, positions="none", dropout=0.5, **settings)
    block = BLOCKS[kind](chosen)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    return block.to(dtype).eval(), chosen


def everywhere(lengths, columns, settings):
    return full_geometry(window(lengths, columns), settings)


def norm(x, weights, name):
    scaled = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def linear(x, weights, name):
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def logistic(x):
    return 1 / (1 + np.exp(-x))


def silu(x):
    return x * logistic(x)


def attended(queries, keys, values, weigh):
    """[l, 6], three heads of two components, each column seeing itself and the ones before."""
    mixed = np.zeros_like(values)
    for own in (slice(0, 2), slice(2, 4), slice(4, 6)):
        for i in range(len(queries)):
            weights = weigh(keys[: i + 1, own] @ queries[i, own])
            mixed[i, own] = weights @ values[: i + 1, own]
    return mixed


def softmax_of_scaled(scores):
    odds = np.exp(scores / math.sqrt(2))
    return odds / odds.sum()


def fed_forward(x, w):
    if "feed_forward.narrow.weight" in w and w["feed_forward.widen.weight"].shape[0] == 24:
        wide = linear(x, w, "feed_forward.widen")
        error_function = np.vectorize(math.erf)
        return linear(wide * (1 + error_function(wide / math.sqrt(2))) / 2, w, "feed_forward.narrow")
    gate, wide = np.split(linear(x, w, "feed_forward.widen"), 2, -1)
    return linear(silu(gate) * wide, w, "feed_forward.narrow")


def transformer(x, w):
    queries, keys, values = np.split(linear(norm(x, w, "attention_norm"), w, "project"), 3, -1)
    x = x + linear(attended(queries, keys, values, softmax_of_scaled), w, "merge")
    return x + fed_forward(norm(x, w, "feed_forward_norm"), w)


def ligr(x, w):
    queries, keys, values = np.split(linear(norm(x, w, "attention_norm"), w, "project"), 3, -1)
    mixed = attended(queries, keys, values, softmax_of_scaled)
    x = x + linear(mixed, w, "merge") * logistic(linear(x, w, "attention_gate"))
    return x + fed_forward(norm(x, w, "feed_forward_norm"), w) * logistic(linear(x, w, "feed_forward_gate"))


def hstu(x, w):
    parts = silu(linear(norm(x, w, "attention_norm"), w, "project"))
    gate, queries, keys, values = np.split(parts, 4, -1)
    mixed = attended(queries, keys, values, lambda scores: silu(scores) / len(scores))
    return x + linear(norm(mixed, w, "mixed_norm") * gate, w, "merge")


@pytest.mark.parametrize(
    ("kind", "formula", "settings"),
    [
        ("transformer", transformer, {}),
        ("transformer", transformer, {"feed_forward": "swiglu"}),
        ("ligr", ligr, {}),
        ("ligr", ligr, {"feed_forward": "gelu"}),
        ("hstu", hstu, {}),
    ],
)
def test_a_block_is_its_formula(kind, formula, settings):
    block, chosen = random_block(kind, **settings)
    states = torch.randn(7, 6, dtype=torch.float64)
    weights = {name: weight.detach().numpy() for name, weight in block.state_dict().items()}
    found = block(states, (everywhere([7], 7, chosen),)).detach().numpy()
    np.testing.assert_allclose(found, formula(states.numpy(), weights), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", BLOCKS)
@pytest.mark.parametrize("settings", [{}, {"window": 3}, {"direction": "bidirectional"}], ids=str)
def test_last_is_forward_at_the_last_position(kind, settings):
    block, chosen = random_block(kind, **settings)
    states, lengths = torch.randn(4, 7, 6, dtype=torch.float64), torch.tensor(LENGTHS)
    whole = block(states.flatten(0, 1), (everywhere(LENGTHS, 7, chosen),)).view(4, 7, 6)
    last = block.last(states, lengths, last_geometry(window(LENGTHS, 7), chosen))
    torch.testing.assert_close(last.squeeze(1), whole[torch.arange(4), lengths - 1])


@pytest.mark.parametrize("kind", BLOCKS)
def test_a_block_of_zero_weights_changes_nothing(kind):
    block, chosen = random_block(kind, torch.float32)
    for parameter in block.parameters():
        torch.nn.init.zeros_(parameter)
    states = torch.randn(11, 6)
    assert torch.equal(block(states, (everywhere([5, 5], 5, chosen),)), states)


@pytest.mark.parametrize("kind", BLOCKS)
def test_states_behind_the_rows_change_nothing(kind):
    block, chosen = random_block(kind)
    states, places = torch.randn(13, 6, dtype=torch.float64), everywhere([5, 5], 5, chosen)
    torch.testing.assert_close(block(states, (places,))[:10], block(states[:10], (places,)))


@pytest.mark.parametrize("kind", BLOCKS)
def test_gradient_check_by_states_and_weights(kind):
    block, chosen = random_block(kind)
    places = everywhere([2, 3], 3, chosen)
    names, weights = zip(*block.named_parameters(), strict=True)
    states = torch.randn(6, 6, dtype=torch.float64, requires_grad=True)

    def new_states(before, *changed):
        parameters = dict(zip(names, changed, strict=True))
        return torch.func.functional_call(block, parameters, (before, (places,)))

    assert torch.autograd.gradcheck(new_states, (states, *weights), fast_mode=True)


@pytest.mark.parametrize("kind", BLOCKS)
def test_bf16_autocast_stays_near_fp32(kind):
    block, chosen = random_block(kind, torch.float32)
    states, places = torch.randn(200, 6), everywhere([20] * 10, 20, chosen)
    plain = block(states, (places,))
    with torch.autocast("cpu", torch.bfloat16):
        lowered = block(states, (places,))
    # eight bits of mantissa through four or five products: 2^-8 each, of numbers of the states' size
    assert ((lowered - plain).norm() / plain.norm()).item() < 5 * 2**-8


def test_a_gated_layer_has_about_as_many_weights():
    for dim in (48, 64, 256):
        sizes = [
            sum(weight.numel() for weight in kind(EncoderSettings(dim=dim)).parameters())
            for kind in (GELU, SwiGLU)
        ]
        assert sizes[1] / sizes[0] == pytest.approx(1, abs=0.03)


def test_dropout_keeps_the_mean_and_the_share():
    torch.manual_seed(0)
    thinned = Dropout(0.2)(torch.ones(1000, 101))
    assert set(thinned.unique().tolist()) == {0.0, 1.25}
    assert thinned.mean().item() == pytest.approx(1, abs=0.01)  # 0.01 is 6 standard errors


def test_dropout_outside_training_is_the_identity():
    states = torch.randn(3, 5)
    assert Dropout(0.2).eval()(states) is states


@pytest.mark.parametrize("share", [0.0, 0.999])
def test_masks_at_the_ends(share):
    torch.manual_seed(0)
    kept = random_mask(torch.Size([13, 101]), share).double().mean().item()
    assert kept == pytest.approx(1 - share, abs=0.01)


def test_the_feed_forward_layers_thin_out_what_is_wide():
    torch.manual_seed(0)
    layer = GELU(EncoderSettings(dim=6, num_heads=3, dropout=0.5)).train()
    states = torch.ones(3000, 6)
    wide = functional.gelu(layer.widen(states[:1]))
    mean = layer.narrow(wide)
    spread = (
        layer.narrow.weight.square() @ wide.square().T
    ).T.sqrt()  # of one thinned row: variance 1 per component
    assert ((layer(states).mean(0) - mean).abs() < 6 * spread / math.sqrt(3000)).all()
