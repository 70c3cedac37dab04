"""Readouts against their formulas: means, attention over states, candidates that look for themselves."""

import math
from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from models.encoder.attention_bias import AttentionGeometry, full_geometry, last_geometry
from models.encoder.batching import Window
from models.encoder.readout import AttentionReadout, MeanReadout, TargetReadout
from models.settings.encoder import EncoderSettings, Score

LENGTHS = [1, 3, 7, 5]


def window(lengths, columns) -> Window:
    zeros = torch.zeros(len(lengths), columns, dtype=torch.int32)
    return Window(zeros, zeros, torch.tensor(lengths))


def places(lengths, columns) -> AttentionGeometry:
    return full_geometry(window(lengths, columns), EncoderSettings(positions="none"))


def test_a_mean_by_pencil():
    states = torch.tensor([[1.0, 3.0, 8.0], [-2.0, 0.0, 5.0]]).unsqueeze(2)
    found = MeanReadout()(torch.cat([states.flatten(0, 1), torch.ones(2, 1)]), (places([3, 2], 3),))
    assert found.flatten().tolist() == [1, 2, 4, -2, -1, 1, 0, 0]
    last = MeanReadout().last(states, torch.tensor([3, 2]), places([3, 2], 3))
    assert last.flatten().tolist() == [4, -1]


def attention_readout() -> tuple[AttentionReadout, EncoderSettings]:
    torch.manual_seed(0)
    settings = EncoderSettings(block="gru", dim=6, num_heads=3, readout="attention")
    readout = AttentionReadout(settings)
    for parameter in readout.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    return readout.double().eval(), settings


def test_attention_over_states_is_its_formula():
    readout, settings = attention_readout()
    states = torch.randn(1, 7, 6, dtype=torch.float64)
    with torch.no_grad():
        found = readout(states[0], (full_geometry(window([7], 7), settings),))
        queries, keys, values = readout.project(readout.attention_norm(states[0])).chunk(3, -1)
        for i in range(7):
            mixed = torch.zeros(6, dtype=torch.float64)
            for own in (slice(0, 2), slice(2, 4), slice(4, 6)):
                odds = [math.exp(float(queries[i, own] @ keys[j, own]) / math.sqrt(2)) for j in range(i + 1)]
                for j, odd in enumerate(odds):
                    mixed[own] += odd / sum(odds) * values[j, own]
            torch.testing.assert_close(found[i], states[0, i] + readout.merge(mixed))


def test_attention_over_states_at_the_last_position():
    readout, settings = attention_readout()
    states, lengths = torch.randn(4, 7, 6, dtype=torch.float64), torch.tensor(LENGTHS)
    whole = readout(states.flatten(0, 1), (full_geometry(window(LENGTHS, 7), settings),)).view(4, 7, 6)
    last = readout.last(states, lengths, last_geometry(window(LENGTHS, 7), settings))
    torch.testing.assert_close(last.squeeze(1), whole[torch.arange(4), lengths - 1])


def target_readout(weighting="softmax", dtype=torch.float64, score="scaled_dot") -> TargetReadout:
    torch.manual_seed(0)
    readout = TargetReadout(
        EncoderSettings(dim=6, num_heads=3, score=score, weighting=weighting, readout="target")
    )
    for parameter in readout.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    return readout.to(dtype).eval()


def problem(dtype=torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """States [4, 7, 6], flat positions of 11 targets, 13 candidates."""
    generator = torch.Generator().manual_seed(1)
    states = torch.randn(4, 7, 6, generator=generator).to(dtype).requires_grad_()
    position = torch.tensor([0, 7, 8, 9, 14, 17, 20, 21, 22, 25, 15])
    return states, position, torch.randn(13, 6, generator=generator).to(dtype).requires_grad_()


def fit_of(readout: TargetReadout, looking: Tensor, keys: Tensor) -> Tensor:
    """[m, h, l] scores of [m, h, c] and [l, h, c], as the docstring of HistoryAttention has them."""
    score, attention = readout.settings.score, readout.attention
    if score in ("additive", "concat"):
        hidden = attention.hidden
        assert hidden is not None
        mixed = torch.einsum("mhc,hcd->mhd", looking, hidden.of_query)[:, :, None]
        mixed = mixed + torch.einsum("lhc,hcd->hld", keys, hidden.of_key)
        if hidden.bias is not None:
            mixed = mixed + hidden.bias
        return torch.einsum("mhld,hd->mhl", mixed.tanh(), hidden.weight)
    if score == "general":
        assert attention.general is not None
        looking = torch.einsum("mhc,hcd->mhd", looking, attention.general)
    if score == "cosine":
        assert attention.scale is not None
        looking, keys = (part / part.norm(dim=-1, keepdim=True) for part in (looking, keys))
        looking = looking * attention.scale.view(1, -1, 1)
    found = torch.einsum("mhc,lhc->mhl", looking, keys)
    return found / math.sqrt(keys.shape[-1]) if score == "scaled_dot" else found


def plain(readout: TargetReadout, states: Tensor, position: Tensor, candidates: Tensor) -> Tensor:
    """[n, m], one position after the other, each over its own columns."""
    keys, values = readout.seen(readout.norm(states)).unflatten(-1, (2, 3, 2)).unbind(-3)
    looking, worth = readout.looking(candidates).view(-1, 3, 2), candidates.view(-1, 3, 2)
    scores = []
    for at in position.tolist():
        row, i = divmod(at, states.shape[1])
        found = fit_of(readout, looking, keys[row, : i + 1])
        silu = readout.settings.weighting == "silu"
        weight = functional.silu(found) / (i + 1) if silu else found.softmax(-1)
        of_each = torch.einsum("mhc,lhc->mhl", worth, values[row, : i + 1])
        scores.append((weight * of_each).sum((1, 2)) + candidates @ states[row, i])
    return torch.stack(scores)


def test_the_formula_number_by_number():
    readout = target_readout()
    states, _, candidates = (part.detach() for part in problem())
    with torch.no_grad():
        found = readout.scores(states, torch.tensor([2 * 7 + 3]), candidates)[0, 5].item()
        u, s = candidates[5], states[2, :4]
        seen = readout.seen(readout.norm(s)).numpy()
        keys, values, looking = seen[:, :6], seen[:, 6:], readout.looking(u).numpy()
    expected = float(u @ s[3])
    for own in (slice(0, 2), slice(2, 4), slice(4, 6)):
        odds = np.exp(keys[:, own] @ looking[own] / math.sqrt(2))
        expected += odds / odds.sum() @ (values[:, own] @ u.numpy()[own])
    assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("score", get_args(Score))
@pytest.mark.parametrize("weighting", ["softmax", "silu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_running_sums_are_as_exact_as_each_position_by_itself(weighting, dtype, score):
    exact_readout, readout = (target_readout(weighting, kind, score) for kind in (torch.float64, dtype))
    exact_readout.load_state_dict(readout.state_dict())
    states, position, candidates = problem(dtype)
    lengths = torch.tensor(LENGTHS)
    at_last = torch.arange(4) * 7 + lengths - 1
    forms = {
        "scores": (lambda: readout.scores(states, position, candidates), position, candidates),
        "last_scores": (lambda: readout.last_scores(states, lengths, candidates), at_last, candidates),
        "own_scores": (
            lambda: readout.own_scores(states, position, candidates[:11]),
            position,
            candidates[:11],
        ),
    }

    def worked_out(scores: Tensor, inputs: list[Tensor]) -> list[Tensor]:
        probe = torch.randn(scores.shape, generator=torch.Generator().manual_seed(2)).to(scores.dtype)
        return [scores, *torch.autograd.grad(scores, inputs, probe)]

    def relative_error(found: list[Tensor], expected: list[Tensor]) -> float:
        pairs = [(a.detach().double(), b.detach()) for a, b in zip(found, expected, strict=True)]
        return max(float((a - b).norm() / b.norm()) for a, b in pairs)

    exact_inputs = [states.detach().double().requires_grad_(), candidates.detach().double().requires_grad_()]
    for name, (form, at, items) in forms.items():
        expected_all = plain(exact_readout, exact_inputs[0], at, exact_inputs[1][: len(items)])
        rounded_all = plain(readout, states, at, items)
        if name == "own_scores":
            expected_all, rounded_all = expected_all.diagonal(), rounded_all.diagonal()
        expected = worked_out(expected_all, exact_inputs)
        rounded = relative_error(worked_out(rounded_all, [states, candidates]), expected)
        assert relative_error(worked_out(form(), [states, candidates]), expected) <= 2 * rounded, name


@pytest.mark.parametrize("score", get_args(Score))
@pytest.mark.parametrize("weighting", ["softmax", "silu"])
def test_gradient_check(weighting, score):
    readout, (states, _, candidates) = target_readout(weighting, score=score), problem()
    inputs = [part.detach().requires_grad_() for part in (states[:2, :3], candidates[:4])]
    lengths, position = torch.tensor([2, 3]), torch.tensor([0, 2, 4, 5])
    for form in (
        lambda s, c: readout.scores(s, position, c),
        lambda s, c: readout.last_scores(s, lengths, c),
        lambda s, c: readout.own_scores(s, position, c),
    ):
        assert torch.autograd.gradcheck(form, inputs)


@pytest.mark.parametrize("weighting", ["softmax", "silu"])
def test_own_scores_of_repeated_positions(weighting):
    readout, (states, position, candidates) = target_readout(weighting), problem()
    repeated, items = (
        position.repeat_interleave(2),
        candidates[torch.arange(2 * len(position)) % len(candidates)],
    )
    found = readout.own_scores(states, repeated, items)
    for first in (0, 1):
        alone = readout.own_scores(states, position, items[first::2])
        torch.testing.assert_close(found[first::2], alone)


def test_a_score_beyond_what_exp_holds_is_kept_within():
    readout, (states, position, candidates) = target_readout(), problem()
    for large in (readout, target_readout(dtype=torch.float32)):
        dtype = next(large.parameters()).dtype
        scores = large.scores(1e4 * states.to(dtype), position, 1e4 * candidates.to(dtype))
        assert scores.isfinite().all()
