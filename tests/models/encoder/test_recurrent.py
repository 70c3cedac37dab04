"""Recurrent blocks against their formulas written out, one direction and both."""

import numpy as np
import pytest
import torch

from models.encoder.attention_bias import AttentionGeometry, full_geometry
from models.encoder.batching import Window
from models.encoder.recurrent import GRUBlock, LSTMBlock
from models.settings.encoder import EncoderSettings

KINDS = {"gru": GRUBlock, "lstm": LSTMBlock}
DIRECTIONS = ["causal", "bidirectional"]
LENGTHS = [1, 3, 7, 5]


def random_block(kind, direction="causal", dtype=torch.float64):
    torch.manual_seed(0)
    settings = EncoderSettings(
        block=kind, dim=5, num_blocks=2, dropout=0.5, direction=direction, readout="mean"
    )
    block = KINDS[kind](settings)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    return block.to(dtype).eval()


def places(lengths, columns=None) -> AttentionGeometry:
    zeros = torch.zeros(len(lengths), columns or max(lengths), dtype=torch.int32)
    return full_geometry(Window(zeros, zeros, torch.tensor(lengths)), EncoderSettings())


def logistic(x):
    return 1 / (1 + np.exp(-x))


def gru(rows, weights):
    w, u = (np.split(weights[f"weight_{side}_l0"], 3) for side in ("ih", "hh"))
    a, b = (np.split(weights[f"bias_{side}_l0"], 3) for side in ("ih", "hh"))
    hidden, found = np.zeros(len(u[0])), []
    for v in rows:
        r = logistic(w[0] @ v + a[0] + u[0] @ hidden + b[0])
        z = logistic(w[1] @ v + a[1] + u[1] @ hidden + b[1])
        c = np.tanh(w[2] @ v + a[2] + r * (u[2] @ hidden + b[2]))
        hidden = (1 - z) * c + z * hidden
        found.append(hidden)
    return np.stack(found)


def lstm(rows, weights):
    w, u = (np.split(weights[f"weight_{side}_l0"], 4) for side in ("ih", "hh"))
    bias = np.split(weights["bias_ih_l0"] + weights["bias_hh_l0"], 4)
    hidden, cell, found = np.zeros(len(u[0])), np.zeros(len(u[0])), []
    for v in rows:
        i, f, g, o = (w[gate] @ v + u[gate] @ hidden + bias[gate] for gate in range(4))
        cell = logistic(f) * cell + logistic(i) * np.tanh(g)
        hidden = logistic(o) * np.tanh(cell)
        found.append(hidden)
    return np.stack(found)


def numbers(module):
    return {name: weight.detach().double().numpy() for name, weight in module.named_parameters()}


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(("kind", "formula"), [("gru", gru), ("lstm", lstm)])
def test_the_formula_written_out(kind, formula, direction):
    """Both directions: half of the components read the row from its own last event back, whatever is behind that."""
    block = random_block(kind, direction)
    states = torch.randn(2, 7, 5, dtype=torch.float64)
    found = block(states.flatten(0, 1), (places([7, 4]),)).view(2, 7, 5).detach().numpy()
    norm = numbers(block.norm)
    for row, length in enumerate([7, 4]):
        x = states[row, :length].numpy()
        v = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + block.norm.eps)
        v = v * norm["weight"] + norm["bias"]
        expected = formula(v, numbers(block.onward))
        if direction == "bidirectional":
            expected = np.concatenate([expected, formula(v[::-1], numbers(block.back))[::-1]], 1)
        np.testing.assert_allclose(found[row, :length], x + expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_last_is_forward_at_the_last_position(kind, direction):
    block = random_block(kind, direction)
    states, lengths = torch.randn(4, 7, 5, dtype=torch.float64), torch.tensor(LENGTHS)
    whole = block(states.flatten(0, 1), (places(LENGTHS),)).view(4, 7, 5)
    expected = whole[torch.arange(4), lengths - 1]
    torch.testing.assert_close(block.last(states, lengths, places(LENGTHS)).squeeze(1), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_states_behind_the_rows_change_nothing(kind):
    block, states = random_block(kind), torch.randn(13, 5, dtype=torch.float64)
    found = block(states, (places([5, 5]),))
    torch.testing.assert_close(found[:10], block(states[:10], (places([5, 5]),)))
    assert not found[10:].any()


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_each_row_starts_afresh(kind, direction):
    block, rows = random_block(kind, direction), torch.randn(3, 4, 5, dtype=torch.float64)
    together = block(rows.flatten(0, 1), (places([4, 2, 3], 4),)).view(3, 4, 5)
    for row, length in enumerate([4, 2, 3]):
        alone = block(rows[row, :length], (places([length]),))
        torch.testing.assert_close(together[row, :length], alone)


@pytest.mark.parametrize("kind", KINDS)
def test_what_came_first_still_tells_at_the_end(kind):
    block, states = random_block(kind), torch.randn(1, 9, 5, dtype=torch.float64)
    changed = states.clone()
    changed[0, 0] += 1 + torch.arange(5)
    lengths = torch.tensor([9])
    assert not torch.equal(
        block.last(states, lengths, places([9])), block.last(changed, lengths, places([9]))
    )


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_gradient_check_by_states_and_weights(kind, direction):
    block = random_block(kind, direction)
    names, weights = zip(*block.named_parameters(), strict=True)
    states = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)

    def new_states(before, *changed):
        parameters = dict(zip(names, changed, strict=True))
        return torch.func.functional_call(block, parameters, (before, (places([2, 3]),)))

    assert torch.autograd.gradcheck(new_states, (states, *weights), fast_mode=True)


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_thins_what_the_recurrence_adds(kind):
    states = torch.randn(600, 5, dtype=torch.float64)
    added = random_block(kind).train()(states, (places([6] * 100),)) - states
    assert (added == 0).double().mean().item() == pytest.approx(0.5, abs=0.06)  # 6 standard errors


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_bf16_autocast_stays_near_fp32(kind, direction):
    block, states = random_block(kind, direction, torch.float32), torch.randn(200, 5)
    with torch.autocast("cpu", torch.bfloat16):
        lowered = block(states, (places([20] * 10),))
    assert lowered.dtype == torch.float32
    plain = block(states, (places([20] * 10),))
    assert ((lowered - plain).norm() / plain.norm()).item() < 5 * 2**-8
