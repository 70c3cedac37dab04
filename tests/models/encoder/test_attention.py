"""Scores and weightings against formulas written out; fast forms against the reference at its own rounding."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from models.encoder import attention
from models.encoder.attention import (
    HiddenLayerScore,
    HistoryAttention,
    Implementation,
    attend,
    entmax,
    pointwise,
    sparsemax,
    weigh,
)
from models.encoder.attention_bias import full_geometry, last_geometry
from models.encoder.batching import Window
from models.settings.encoder import INNER_PRODUCTS, EncoderSettings

FAST: list[Implementation] = ["auto", "sdpa", "dense"]
SCORES = ["dot", "scaled_dot", "cosine", "general", "additive", "concat"]
WEIGHTINGS = ["softmax", "silu", "gumbel_softmax", "sparsemax", "entmax"]
PRECISIONS = [torch.float32, torch.bfloat16]


def heads(dtype: torch.dtype = torch.float32, looking: int = 7) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = (2, 3, looking, 5), (2, 3, 7, 5), (2, 3, 7, 5)
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def some_bias(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(2)).to(dtype).requires_grad_()


def mask(masked: bool) -> Tensor | None:
    return (torch.arange(7) < torch.tensor([4, 7]).view(2, 1, 1, 1)) if masked else None


def exactly(parts: list[Tensor]) -> list[Tensor]:
    return [part.detach().double().requires_grad_() for part in parts]


def with_gradients(found: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    probe = torch.randn(found.shape, generator=torch.Generator().manual_seed(1)).to(found.dtype)
    return [found, *torch.autograd.grad(found, inputs, probe)]


def relative_error(found: list[Tensor], expected: list[Tensor]) -> float:
    pairs = [(a.detach().double(), b.detach()) for a, b in zip(found, expected, strict=True)]
    return max(float((a - b).norm() / b.norm()) for a, b in pairs)


def some_settings(**settings: Any) -> EncoderSettings:
    return EncoderSettings(**{"dim": 8, "num_heads": 2, "positions": "none", **settings})


def module(
    dtype: torch.dtype = torch.float64, implementation: Any = "auto", **settings: Any
) -> HistoryAttention:
    """Two heads of 4 components whose every weight tells, in evaluation mode."""
    torch.manual_seed(3)
    found = HistoryAttention(some_settings(**settings), implementation)
    for parameter in found.parameters():
        torch.nn.init.normal_(parameter)
    return found.to(dtype).eval()


def looks(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(4)
    return [torch.randn(3, 2, 5, 4, generator=generator).to(dtype).requires_grad_() for _ in range(3)]


def rows(lengths: tuple[int, ...] = (2, 5, 4)) -> Window:
    zeros = torch.zeros(3, 5, dtype=torch.int32)
    time = torch.tensor([[0, 5, 100, 101, 10_000]] * 3) * 1_000_000
    return Window(zeros, zeros, torch.tensor(lengths), time=time, request_time=time + 7_000_000)


def places(**settings: Any) -> Any:
    return full_geometry(rows(), some_settings(**settings))


# attend: softmax of inner products


def test_two_positions_by_pencil():
    # c = 1: the second query, 1, meets the keys 0 and log 3: weights 1/4 and 3/4 of the values 4 and 8
    queries, keys, values = (
        torch.tensor(row).view(1, 1, 2, 1) for row in ([9.0, 1.0], [0.0, math.log(3)], [4.0, 8.0])
    )
    every: list[Implementation] = ["reference", *FAST]
    for implementation in every:
        mixed = attend(queries, keys, values, implementation=implementation).flatten()
        assert mixed.tolist() == pytest.approx([4.0, 7.0], abs=1e-5)


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


@pytest.mark.parametrize("implementation", FAST)
@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_fast_forms_are_as_exact_as_the_reference_at_their_precision(implementation, dtype, masked, biased):
    looking = 1 if masked else 7
    parts = heads(dtype, looking)
    if biased:
        parts.append(some_bias((2, 3, 1, 7) if masked else (1, 3, 7, 7), dtype))

    def mixed(inputs: list[Tensor], how: Implementation) -> list[Tensor]:
        queries, keys, values, *bias = inputs
        found = attend(queries, keys, values, mask(masked), how, bias[0] if bias else None)
        return with_gradients(found, inputs)

    exact = mixed(exactly(parts), "reference")
    reference_error = relative_error(mixed(parts, "reference"), exact)
    assert relative_error(mixed(parts, implementation), exact) <= 2 * reference_error


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_pointwise_is_as_exact_as_its_formula_at_its_precision(dtype, masked, biased):
    looking = 1 if masked else 7
    parts = heads(dtype, looking)
    if biased:
        parts.append(some_bias((2, 3, 1, 7) if masked else (1, 3, 7, 7), dtype))
    visible = mask(masked) if masked else torch.ones(7, 7, dtype=torch.bool).tril().view(1, 1, 7, 7)
    assert visible is not None
    num_visible = visible.sum(-1).view(-1, looking)

    def plain(inputs):
        queries, keys, values, *bias = inputs
        scores = queries @ keys.transpose(-2, -1) + (bias[0] if bias else 0)
        weights = functional.silu(scores) * visible / num_visible[:, None, :, None]
        return with_gradients(weights.to(values.dtype) @ values, inputs)

    exact = plain(exactly(parts))
    queries, keys, values, *bias = parts
    found = pointwise(queries, keys, values, mask(masked), num_visible, bias[0] if bias else None)
    assert relative_error(with_gradients(found, parts), exact) <= 2 * relative_error(plain(parts), exact)


@pytest.mark.parametrize("masked", [False, True])
def test_pointwise_s_gradient_check(masked):
    parts = exactly([*(part[:, :2, :3, :2] for part in heads()), some_bias((1, 2, 3, 3))])
    visible = (torch.arange(3) < torch.tensor([1, 3]).view(2, 1, 1, 1)).expand(2, 1, 3, 3) if masked else None
    num_visible = torch.tensor([[1, 2, 3], [3, 2, 1]])
    assert torch.autograd.gradcheck(
        lambda q, k, v, bias: pointwise(q, k, v, visible, num_visible, bias), tuple(parts)
    )


# scores


def score_by_pencil(
    score: str, q: np.ndarray, k: np.ndarray, weights: dict[str, np.ndarray], head: int
) -> float:
    """Of one query and one key, 4 components each; `weights` of all heads by name."""
    own = {name: weight[head] for name, weight in weights.items()}
    if score == "dot":
        return float(q @ k)
    if score == "scaled_dot":
        return float(q @ k) / 2
    if score == "cosine":
        return float(own["scale"][0, 0] * (q @ k) / np.linalg.norm(q) / np.linalg.norm(k))
    if score == "general":
        return float(q @ own["general"] @ k)
    if score == "additive":
        return float(own["hidden.weight"] @ np.tanh(q @ own["hidden.of_query"] + k @ own["hidden.of_key"]))
    w = np.vstack([own["hidden.of_query"], own["hidden.of_key"]])
    return float(own["hidden.weight"] @ np.tanh(np.concatenate([q, k]) @ w + own["hidden.bias"][0]))


@pytest.mark.parametrize("score", SCORES)
def test_a_score_is_its_formula(score):
    attending, (queries, keys, _) = module(score=score), looks()
    found = attending.scores(queries, keys, places(score=score))
    weights = {name: weight.detach().numpy() for name, weight in attending.state_dict().items()}
    for row, head, i, j in ((0, 0, 0, 0), (1, 1, 4, 2), (2, 0, 3, 4)):
        q, k = queries[row, head, i].detach().numpy(), keys[row, head, j].detach().numpy()
        expected = score_by_pencil(score, q, k, weights, head)
        assert found[row, head, i, j].item() == pytest.approx(expected, rel=1e-9)


def test_scores_at_the_start():
    """general begins as scaled_dot, cosine as ten times the cosine."""
    queries, keys, _ = looks(torch.float32)
    plain = HistoryAttention(some_settings()).scores(queries, keys, places())
    general = HistoryAttention(some_settings(score="general"))
    torch.testing.assert_close(general.scores(queries, keys, places()), plain)
    cosine = HistoryAttention(some_settings(score="cosine"))
    expected = 10 * functional.cosine_similarity(queries.unsqueeze(3), keys.unsqueeze(2), dim=-1)
    torch.testing.assert_close(cosine.scores(queries, keys, places()), expected)


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("with_bias", [False, True])
def test_scores_a_few_columns_at_a_time_are_the_same(dtype, with_bias, monkeypatch):
    torch.manual_seed(0)
    score = HiddenLayerScore(3, 5, with_bias=with_bias).to(dtype)
    parts = heads(dtype)[:2]
    inputs = [*parts, *score.parameters()]
    whole = with_gradients(score(*parts), inputs)
    plain = with_gradients(score(*parts, "reference"), inputs)
    monkeypatch.setattr(attention, "HIDDEN_CELLS", parts[1].numel() * 3)  # three of seven columns at a time
    chunked = with_gradients(score(*parts), inputs)
    exact_score = HiddenLayerScore(3, 5, with_bias=with_bias).double()
    exact_score.load_state_dict(score.state_dict())
    exact_parts = exactly(parts)
    exact = with_gradients(exact_score(*exact_parts, "reference"), [*exact_parts, *exact_score.parameters()])
    for found in (whole, chunked):
        assert relative_error(found, exact) <= 2 * relative_error(plain, exact)
    assert torch.equal(chunked[0], plain[0])


# weightings


def simplex_point(scores: Any, power: float) -> Any:
    """`max(0, z - t)^power` with t found by bisection: sparsemax at power 1 of z, entmax at power 2 of z / 2."""
    low, high = scores.max() - 1, scores.max()
    for _ in range(200):
        middle = (low + high) / 2
        above = np.maximum(scores - middle, 0) ** power
        low, high = (middle, high) if above.sum() > 1 else (low, middle)
    return np.maximum(scores - low, 0) ** power


@pytest.mark.parametrize("kind", ["sparsemax", "entmax"])
@pytest.mark.parametrize("spread", [0.01, 1.0, 30.0])
def test_sparse_weights_by_bisection(kind, spread):
    scores = torch.randn(11, 13, dtype=torch.float64) * spread
    scores[:, 9:] = scores[:, 9:].masked_fill(torch.rand(11, 4) < 0.5, -math.inf)
    found = (sparsemax if kind == "sparsemax" else entmax)(scores)
    for row in range(11):
        z = scores[row].numpy()
        expected = simplex_point(z, 1) if kind == "sparsemax" else simplex_point(z / 2, 2)
        np.testing.assert_allclose(found[row].numpy(), expected, atol=1e-9)
    torch.testing.assert_close(found.sum(-1), torch.ones(11, dtype=torch.float64))


def test_sparse_weights_by_pencil():
    # sparsemax: z - t with t = (1 + 0.5 - 1) / 2; entmax of (2, 0): z / 2 = (1, 0), u^2 + (u - 1)^2 = 1 at u = 1
    assert sparsemax(torch.tensor([1.0, 0.5, -1.0, -math.inf])).tolist() == pytest.approx([0.75, 0.25, 0, 0])
    assert entmax(torch.tensor([2.0, 0.0, -math.inf])).tolist() == pytest.approx([1, 0, 0], abs=1e-6)
    assert sparsemax(torch.tensor([5.0, -math.inf])).tolist() == [1, 0]
    assert entmax(torch.tensor([5.0])).tolist() == [1]
    for even in (sparsemax, entmax):
        assert even(torch.zeros(4)).tolist() == pytest.approx([0.25] * 4, abs=1e-6)


@pytest.mark.parametrize("kind", [sparsemax, entmax])
def test_sparse_weights_s_gradient_check(kind):
    torch.manual_seed(0)
    scores = (torch.randn(5, 7, dtype=torch.float64) * 0.7).requires_grad_()
    hidden = torch.zeros(5, 7).index_fill(1, torch.tensor([5, 6]), -math.inf)
    assert (kind(scores + hidden) > 0).sum() > 7  # the check moves within the support
    assert torch.autograd.gradcheck(lambda z: kind(z + hidden), (scores,))


@pytest.mark.parametrize("kind", [sparsemax, entmax])
@pytest.mark.parametrize("dtype", PRECISIONS)
def test_sparse_weights_add_up_to_one_at_low_precision(kind, dtype):
    scores = (torch.randn(13, 200) * 3).to(dtype)
    found = kind(scores)
    assert (found >= 0).all()
    torch.testing.assert_close(
        found.float().sum(-1), torch.ones(13), rtol=0, atol=200 * torch.finfo(dtype).eps / 8
    )


def test_silu_is_divided_by_what_is_seen():
    scores = torch.tensor([[1.0, -math.inf], [2.0, -3.0]]).view(1, 1, 2, 2)
    settings = EncoderSettings(weighting="silu")
    found = weigh(scores, settings, torch.tensor([[1, 2]])).flatten().tolist()
    assert found == pytest.approx(
        [1 / (1 + math.exp(-1)), 0, 1 / (1 + math.exp(-2)), -3 / (1 + math.exp(3)) / 2], rel=1e-6
    )


def test_gumbel_without_noise_is_softmax_at_its_temperature():
    scores = torch.randn(2, 3, 5, 5)
    settings = EncoderSettings(weighting="gumbel_softmax")
    found = weigh(scores, settings, torch.ones(1, 5, dtype=torch.long), torch.tensor(0.5))
    torch.testing.assert_close(found, (2 * scores).softmax(-1))


def test_gumbel_noise_draws_columns_as_often_as_softmax_says():
    torch.manual_seed(0)
    scores = torch.tensor([0.0, math.log(2), math.log(5), -math.inf]).expand(1, 1, 40_000, 4)
    settings = EncoderSettings(weighting="gumbel_softmax", gumbel_hard=True)
    drawn = weigh(scores, settings, torch.full((1, 40_000), 3), torch.tensor(0.3), noisy=True)
    assert set(drawn.flatten().tolist()) <= {0.0, 1.0}
    # a share p has a standard error of sqrt(p (1 - p) / 40000), .0025 at most: six of them
    assert drawn.mean(2).flatten().tolist() == pytest.approx([1 / 8, 2 / 8, 5 / 8, 0], abs=0.015)


def test_straight_through_has_the_gradient_of_the_soft_weights():
    gradients = []
    for hard in (False, True):
        scores = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
        torch.manual_seed(1)
        settings = EncoderSettings(weighting="gumbel_softmax", gumbel_hard=hard)
        found = weigh(scores, settings, torch.ones(1, 5, dtype=torch.long), torch.tensor(0.7), noisy=True)
        assert (found.amax(-1) == 1).all() == hard
        gradients.append(torch.autograd.grad((found * torch.arange(5)).sum(), scores)[0])
    torch.testing.assert_close(*gradients)


def test_gumbel_s_gradient_check_with_its_noise_held():
    def noisy(scores):
        torch.manual_seed(0)
        settings = EncoderSettings(weighting="gumbel_softmax")
        return weigh(scores, settings, torch.ones(1, 3, dtype=torch.long), torch.tensor(0.7), noisy=True)

    assert torch.autograd.gradcheck(
        noisy, (torch.randn(1, 2, 3, 3, dtype=torch.float64, requires_grad=True),)
    )


# the whole


@pytest.mark.parametrize("direction", ["causal", "bidirectional"])
@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("score", SCORES)
def test_gathered_is_weights_times_values_and_hidden_columns_weigh_nothing(score, weighting, direction):
    settings: dict[str, Any] = {
        "score": score, "weighting": weighting, "direction": direction,
        "positions": "relative", "time_bias": True, "window": 0 if direction == "bidirectional" else 3,
    }  # fmt: skip
    attending, (queries, keys, values) = module(**settings), looks()
    seen = places(**settings)
    weights = attending.weights(queries, keys, seen)
    assert seen.visible is not None
    hidden = ~seen.visible.expand(3, 2, 5, 5)
    assert not weights[hidden].any()
    if weighting != "silu":
        torch.testing.assert_close(weights.sum(-1), torch.ones(3, 2, 5, dtype=torch.float64))
    found = attending(queries, keys, values, seen)
    torch.testing.assert_close(found, weights @ values)
    plain = module(implementation="reference", **settings)(queries, keys, values, seen)
    torch.testing.assert_close(found, plain)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("score", SCORES)
def test_every_score_with_every_weighting_has_a_gradient_check(score, weighting):
    settings: dict[str, Any] = {
        "score": score, "weighting": weighting, "positions": "relative", "time_bias": True, "request_time": True,
    }  # fmt: skip
    attending, parts = module(**settings), tuple(looks())
    names, weights = zip(*attending.named_parameters(), strict=True)

    def gathered(queries, keys, values, *changed):
        parameters = dict(zip(names, changed, strict=True))
        inputs = (queries, keys, values, places(**settings))
        return torch.func.functional_call(attending, parameters, inputs)

    assert torch.autograd.gradcheck(gathered, (*parts, *weights), fast_mode=True)


def test_biases_by_distance_and_time_are_added():
    settings: dict[str, Any] = {"positions": "relative", "time_bias": True, "request_time": True}
    attending, (queries, keys, _) = module(**settings), looks()
    seen = places(**settings)
    bias = attending.scores(queries, keys, seen) - module().scores(queries, keys, places())
    assert attending.distances is not None
    assert attending.times is not None
    assert seen.distance is not None
    assert seen.elapsed is not None
    by_distance, by_time = attending.distances.weight, attending.times.weight
    expected = by_distance[1][seen.distance[0, 4, 2]] + by_time[1][seen.elapsed[2, 4, 2]]
    torch.testing.assert_close(bias[2, 1, 4, 2], expected)


@pytest.mark.parametrize("score", INNER_PRODUCTS)
def test_rotary_turns_queries_and_keys_by_their_places(score):
    """Equal queries and equal keys everywhere: what meets depends on the distance alone."""
    attending = module(positions="rotary", score=score)
    queries, keys = (part[:, :, :1].expand(-1, -1, 5, -1) for part in looks()[:2])
    scores = attending.scores(queries, keys, places(positions="rotary"))
    for distance in range(-4, 5):
        diagonal = scores.diagonal(-distance, -2, -1)
        torch.testing.assert_close(diagonal, diagonal[..., :1].expand_as(diagonal), rtol=1e-5, atol=1e-5)
    at_one_place = module(score=score).scores(queries, keys, places())
    torch.testing.assert_close(scores.diagonal(0, -2, -1), at_one_place.diagonal(0, -2, -1))
    last = last_geometry(rows(), some_settings(positions="rotary"))
    at_last = attending.scores(queries[:, :, :1], keys, last)
    torch.testing.assert_close(at_last[1, :, 0], scores[1, :, 4])
    torch.testing.assert_close(at_last[2, :, 0], scores[2, :, 3])


@pytest.mark.parametrize("weighting", ["softmax", "silu"])
def test_cosine_keeps_its_type_where_norms_are_taken_in_fp32(weighting, monkeypatch):
    # as autocast does on CUDA
    whole = functional.normalize
    monkeypatch.setattr(functional, "normalize", lambda part, dim: whole(part.float(), dim=dim))
    settings = {"score": "cosine", "weighting": weighting}
    parts = looks(torch.bfloat16)
    gathered = module(torch.bfloat16, **settings)(*parts, places(**settings))
    assert gathered.dtype == torch.bfloat16
    gathered.sum().backward()
    assert all(part.grad is not None and part.grad.dtype == torch.bfloat16 for part in parts)
