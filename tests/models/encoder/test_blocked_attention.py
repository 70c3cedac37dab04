"""Attention in blocks against its formula over all scores, in double precision and at the formula's own rounding."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from models.encoder import blocked_attention
from models.encoder.attention import HistoryAttention
from models.encoder.attention_bias import NUM_DISTANCES, NUM_TIMES, AttentionGeometry, full_geometry
from models.encoder.batching import Window
from models.encoder.blocked_attention import blocked
from models.settings.encoder import EncoderSettings

HEADS, COMPONENTS = 2, 5
SECOND = 1_000_000
SIGHTS: list[dict[str, Any]] = [{}, {"window": 3}, {"direction": "bidirectional"}]


def window_of(lengths: list[int], columns: int) -> Window:
    """Rows of events seconds to years apart, in which 1 of 7 columns is left out of the positions."""
    torch.manual_seed(5)
    shape = len(lengths), columns
    zeros = torch.zeros(shape, dtype=torch.int32)
    gaps = torch.rand(shape).mul(18).exp().mul(SECOND).long()
    position = (torch.arange(columns) * 7 // 6).expand(shape)
    time = gaps.cumsum(1)
    return Window(
        zeros, zeros, torch.tensor(lengths), time=time, request_time=time + gaps.roll(1, 1), position=position
    )


def places(lengths: list[int], columns: int, **settings: Any) -> AttentionGeometry:
    chosen = EncoderSettings(**{"positions": "relative", "time_bias": True, "request_time": True, **settings})
    return full_geometry(window_of(lengths, columns), chosen)


def inputs(rows: int, columns: int, dtype: torch.dtype, components: int = COMPONENTS) -> list[Tensor]:
    """Queries, keys, values, and both tables of biases, in fp32 or finer as under autocast."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(rows, HEADS, columns, components)] * 3 + [(HEADS, NUM_DISTANCES), (HEADS, NUM_TIMES)]
    parts = [torch.randn(shape, generator=generator) for shape in shapes]
    dtypes = [dtype] * 3 + [torch.promote_types(dtype, torch.float32)] * 2
    return [part.to(own).requires_grad_() for part, own in zip(parts, dtypes, strict=True)]


def formula(parts: list[Tensor], geometry: AttentionGeometry, weighting: str) -> Tensor:
    queries, keys, values, distances, times = parts
    assert geometry.distance is not None
    assert geometry.elapsed is not None
    scores = queries @ keys.transpose(-2, -1)
    scores = scores + distances[:, geometry.distance].transpose(0, 1)
    scores = scores + times[:, geometry.elapsed.long()].transpose(0, 1)
    visible = geometry.visible
    if visible is None:
        visible = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    if weighting == "softmax":
        return scores.masked_fill(~visible, -math.inf).softmax(-1).to(values.dtype) @ values
    weights = functional.silu(scores) * visible / geometry.num_visible[:, None, :, None]
    return weights.to(values.dtype) @ values


def in_blocks(parts: list[Tensor], geometry: AttentionGeometry, weighting: Any) -> Tensor:
    queries, keys, values, *tables = parts
    return blocked(queries, keys, values, geometry, weighting, *tables)


def with_gradients(found: Tensor, parts: list[Tensor]) -> list[Tensor]:
    probe = torch.randn(found.shape, generator=torch.Generator().manual_seed(1)).to(found.dtype)
    return [found, *torch.autograd.grad(found, parts, probe)]


def errors(found: list[Tensor], expected: list[Tensor]) -> list[float]:
    pairs = [(a.detach().double(), b.detach()) for a, b in zip(found, expected, strict=True)]
    return [float((a - b).norm() / (b.norm() or 1)) for a, b in pairs]  # one column's weight has no slope


def check(lengths: list[int], columns: int, dtype: torch.dtype, weighting: str, **settings: Any) -> None:
    """Output and gradients are at most twice as far from the exact ones as the formula's."""
    geometry, parts = places(lengths, columns, **settings), inputs(len(lengths), columns, dtype)
    exactly = [part.detach().double().requires_grad_() for part in parts]
    exact = with_gradients(formula(exactly, geometry, weighting), exactly)
    plain = errors(with_gradients(formula(parts, geometry, weighting), parts), exact)
    found = errors(with_gradients(in_blocks(parts, geometry, weighting), parts), exact)
    assert max(found) <= 2 * max(plain), (found, plain)


@pytest.fixture
def few_at_a_time(monkeypatch):
    """Blocks of 4 queries."""
    monkeypatch.setattr(blocked_attention, "BLOCK_CELLS", 1)
    monkeypatch.setattr(blocked_attention, "LEAST_QUERIES", 4)


@pytest.mark.parametrize("sight", SIGHTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weighting", ["softmax", "silu"])
@pytest.mark.usefixtures("few_at_a_time")
def test_blocks_are_as_exact_as_the_formula_at_its_precision(weighting, dtype, sight):
    for lengths in ([1], [2, 1], [11, 4, 0, 7], [29, 13]):
        if sight.get("direction") or 0 not in lengths:
            check(lengths, max(lengths), dtype, weighting, **sight)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lengths", "dtype", "sight"),
    [
        ([700, 512], torch.float32, {}),
        ([700, 512], torch.bfloat16, {}),
        ([700, 512], torch.float32, {"window": 100}),
        ([700, 512], torch.float32, {"direction": "bidirectional"}),
        ([4096], torch.float32, {}),
    ],
)
@pytest.mark.parametrize("weighting", ["softmax", "silu"])
def test_long_rows_are_as_exact_as_the_formula(weighting, lengths, dtype, sight):
    check(lengths, max(lengths), dtype, weighting, **sight)


@pytest.mark.parametrize("sight", SIGHTS)
@pytest.mark.parametrize("weighting", ["softmax", "silu"])
@pytest.mark.usefixtures("few_at_a_time")
def test_a_gradient_check(weighting, sight):
    geometry = places([5, 3], 5, **sight)
    parts = inputs(2, 5, torch.float64, components=2)
    assert torch.autograd.gradcheck(
        lambda *changed: in_blocks(list(changed), geometry, weighting), tuple(parts), fast_mode=True
    )


def test_two_positions_by_pencil():
    # c = 1: the second query, 1, meets the keys 0 and log 3, weights 1/4 and 3/4 of the values 4 and 8; with silu
    # (0 / 2 * 4 + log 3 * 3/4 * 8) / 2, since sigmoid(log 3) = 3/4
    queries, keys, values = (
        torch.tensor(row).view(1, 1, 2, 1) for row in ([9.0, 1.0], [0.0, math.log(3)], [4.0, 8.0])
    )
    geometry = full_geometry(window_of([2], 2), EncoderSettings(positions="none"))
    assert blocked(queries, keys, values, geometry, "softmax").flatten().tolist() == pytest.approx([4, 7])
    found = blocked(queries, keys, values, geometry, "silu").flatten().tolist()
    assert found == pytest.approx([0, 3 * math.log(3)])


@pytest.mark.parametrize("sight", SIGHTS)
@pytest.mark.parametrize(
    "settings",
    [
        {"positions": "none"},
        {"positions": "rotary", "time_bias": True},
        {"score": "cosine"},
        {"score": "general", "time_bias": True, "request_time": True},
        {"weighting": "silu", "score": "dot", "time_bias": True},
    ],
)
@pytest.mark.usefixtures("few_at_a_time")
def test_a_layer_in_blocks_is_the_layer_with_all_scores(settings, sight):
    found = []
    for form in ("dense", "blocked"):
        chosen = EncoderSettings(**{"dim": 8, "attention": form, **settings, **sight})
        torch.manual_seed(0)
        layer = HistoryAttention(chosen)
        for parameter in layer.parameters():
            torch.nn.init.normal_(parameter)
        parts = [torch.randn(2, 2, 9, 4, dtype=torch.float64).requires_grad_() for _ in range(3)]
        mixed = layer.double()(*parts, full_geometry(window_of([9, 6], 9), chosen))
        found.append(with_gradients(mixed, [*parts, *layer.parameters()]))
    for dense, in_parts in zip(*found, strict=True):
        torch.testing.assert_close(in_parts, dense)


class LargestResult(TorchDispatchMode):
    """Elements of the largest tensor that an operation makes."""

    elements = 0

    def __torch_dispatch__(self, function, _types, arguments=(), named=None):
        result = function(*arguments, **(named or {}))
        if isinstance(result, Tensor):
            self.elements = max(self.elements, result.untyped_storage().nbytes() // result.element_size())
        return result


@pytest.mark.parametrize("sight", SIGHTS)
@pytest.mark.parametrize("weighting", ["softmax", "silu"])
@pytest.mark.usefixtures("few_at_a_time")
def test_no_tensor_grows_with_the_square_of_the_length(weighting, sight):
    sizes = []
    for columns in (40, 80):
        parts = inputs(1, columns, torch.float32)
        with LargestResult() as largest:
            in_blocks(parts, places([columns], columns, **sight), weighting).sum().backward()
        sizes.append(largest.elements)
    assert sizes[1] <= 2 * sizes[0]
    assert sizes[1] < 80 * 80
