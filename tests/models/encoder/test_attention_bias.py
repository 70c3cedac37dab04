"""Who sees whom and how far away: numbers of distances and times in exact arithmetic, masks written out, rotations."""

import math
from dataclasses import replace

import pytest
import torch

from models.encoder.attention_bias import (
    MICROSECONDS,
    NUM_DISTANCES,
    NUM_TIMES,
    DistanceBias,
    TimeBias,
    apply_rotary,
    distance_bucket,
    elapsed_bucket,
    full_geometry,
    last_geometry,
    look_up,
)
from models.encoder.batching import Window
from models.settings.encoder import EncoderSettings

SECOND = 1_000_000


def window(lengths, columns=None, **parts):
    shape = len(lengths), columns or max(lengths)
    zeros = torch.zeros(shape, dtype=torch.int32)
    return Window(zeros, zeros, torch.tensor(lengths), **parts)


def test_distances_by_integers_alone():
    # floor(4 log2(d / 16)) is the largest k with 2^k * 16^4 <= d^4
    def expected(distance):
        near = abs(distance)
        if near < 16:
            return near
        steps = next(k for k in range(70, -1, -1) if 2**k * 16**4 <= near**4)
        return min(16 + steps, NUM_DISTANCES - 1)

    distances = [*range(-300, 301), 1_000, 10_000]
    found = distance_bucket(torch.tensor(distances).view(1, 1, -1)).flatten().tolist()
    assert found == [expected(distance) for distance in distances]
    assert max(found) == 31


def test_times_on_both_sides_of_every_bucket_s_edge():
    """Edges e^(.301 n) seconds; a ten-thousandth off is a thousand times fp32's rounding of a logarithm below 40."""
    edges = [math.exp(0.301 * number) for number in range(1, 100)]
    below = [int(edge * MICROSECONDS * (1 - 1e-4)) for edge in edges]
    above = [int(edge * MICROSECONDS * (1 + 1e-4)) + 1 for edge in edges]
    for sign in (1, -1):
        found = elapsed_bucket(sign * torch.tensor([below, above]).view(1, 2, -1))
        assert found[0, 0].tolist() == list(range(99))
        assert found[0, 1].tolist() == list(range(1, 100))


def test_times_by_pencil():
    # ln 60 / .301 = 13.6; ln 86400 / .301 = 37.76; a million years, ln 3.15e13 / .301 = 103.2
    moments = [0, 1, SECOND, -SECOND, 60 * SECOND, 86_400 * SECOND, 9_200_000_000_000_000_000]
    found = elapsed_bucket(torch.tensor(moments).view(1, 1, -1)).flatten().tolist()
    assert found == [0, 0, 0, 0, 13, 37, int(math.log(9.2e12) / 0.301)]
    assert found[-1] < NUM_TIMES


@pytest.mark.parametrize(("kind", "numbers"), [(DistanceBias, NUM_DISTANCES), (TimeBias, NUM_TIMES)])
def test_biases_are_zero_at_the_start_and_their_table_after(kind, numbers):
    bias = kind(3)
    index = torch.randint(0, numbers, (2, 5, 7))
    assert not bias(index).any()
    torch.nn.init.normal_(bias.weight)
    assert torch.equal(bias(index)[1, 2], bias.weight[2][index[1]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_look_up_sums_its_gradient_as_exactly_as_indexing(dtype):
    table = torch.randn(3, 11).to(dtype).requires_grad_()
    index = torch.randint(0, 11, (2, 5, 7), dtype=torch.int32)
    probe = torch.randn(2, 3, 5, 7).to(dtype)
    found = look_up(table, index)
    assert torch.equal(found, table[:, index.long()].transpose(0, 1))
    exact = torch.zeros(3, 11, dtype=torch.float64)
    exact.index_add_(1, index.long().flatten(), probe.double().transpose(0, 1).flatten(1))
    (gradient,) = torch.autograd.grad(found, table, probe)
    (plain,) = torch.autograd.grad(table[:, index.long()].transpose(0, 1), table, probe)
    assert (gradient - exact).abs().max() <= 2 * (plain - exact).abs().max()


def test_look_up_s_gradient_check():
    table = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    index = torch.tensor([[[0, 3, 3], [4, 1, 3]]], dtype=torch.int32)
    assert torch.autograd.gradcheck(lambda numbers: look_up(numbers, index), (table,))


def test_a_turn_by_pencil():
    # c = 4: pairs (0, 2) and (1, 3), turned by place and place / 100
    heads = torch.tensor([1.0, 0.0, 0.0, 1.0]).view(1, 1, 1, 4)
    turned = apply_rotary(heads, torch.tensor([[3]])).flatten()
    expected = [math.cos(3), -math.sin(0.03), math.sin(3), math.cos(0.03)]
    assert turned.tolist() == pytest.approx(expected, abs=1e-6)
    assert torch.equal(apply_rotary(heads, torch.tensor([[0]])), heads)


def test_inner_products_of_turned_ones_depend_on_the_difference_of_places_alone():
    torch.manual_seed(0)
    queries, keys = torch.randn(2, 1, 3, 1, 6, dtype=torch.float64)

    def product(query_place, key_place):
        turned = (
            apply_rotary(queries, torch.tensor([[query_place]])),
            apply_rotary(keys, torch.tensor([[key_place]])),
        )
        return (turned[0] * turned[1]).sum(-1)

    for difference in (0, 1, 7):
        torch.testing.assert_close(product(difference, 0), product(difference + 90, 90), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(product(1, 0), product(0, 1))
    torch.testing.assert_close(
        apply_rotary(queries, torch.tensor([[50]])).norm(), queries.norm(), rtol=1e-6, atol=0
    )


def test_a_turn_s_gradient_check():
    heads = torch.randn(2, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    place = torch.tensor([[0, 1, 5]])
    assert torch.autograd.gradcheck(lambda states: apply_rotary(states, place), (heads,))


def test_causal_columns_need_no_mask():
    places = full_geometry(window([2, 5]), EncoderSettings(positions="absolute"))
    assert places.visible is None
    assert places.num_visible.tolist() == [[1, 2, 3, 4, 5]]
    assert places.distance is None
    assert places.elapsed is None


@pytest.mark.parametrize("width", [1, 2, 4])
def test_a_local_window_by_pencil(width):
    places = full_geometry(window([2, 5]), EncoderSettings(window=width))
    expected = [[0 <= looking - seen < width for seen in range(5)] for looking in range(5)]
    assert places.visible is not None
    assert places.visible[0, 0].tolist() == expected
    assert places.num_visible[0].tolist() == [sum(row) for row in expected]
    last = last_geometry(window([2, 5]), EncoderSettings(window=width))
    assert last.visible is not None
    assert last.visible[0, 0, 0].tolist() == [seen < 2 and expected[1][seen] for seen in range(5)]
    assert last.visible[1, 0, 0].tolist() == expected[4]
    assert last.num_visible.tolist() == [[min(2, width)], [width]]


def test_a_window_as_wide_as_the_row_is_none():
    assert full_geometry(window([5]), EncoderSettings(window=5)).visible is None


def test_a_bidirectional_row_is_seen_whole_and_no_further():
    places = full_geometry(window([2, 3, 0]), EncoderSettings(direction="bidirectional"))
    assert places.visible is not None
    assert places.visible[:, 0].tolist() == [
        [[True, True, False]] * 3,
        [[True] * 3] * 3,
        [[True, False, False]] * 3,
    ]
    assert places.num_visible.tolist() == [[2] * 3, [3] * 3, [1] * 3]


def test_distances_are_those_of_places_not_of_columns():
    settings = EncoderSettings(positions="relative")
    kept = torch.tensor([[0, 2, 30]])
    places = full_geometry(replace(window([3]), position=kept), settings)
    assert places.distance is not None
    # 30 - 2 = 28: 16 + floor(4 log2 1.75) = 19; 30: 16 + floor(3.63)
    assert places.distance[0].tolist() == [[0, 2, 19], [2, 0, 19], [19, 19, 0]]
    last = last_geometry(replace(window([2], 3), position=kept), settings)
    assert last.distance is not None
    assert last.distance[0].tolist() == [[2, 0, 19]]
    assert last.query_position.tolist() == [[2]]


def test_time_is_counted_from_the_event_or_from_what_is_asked_next():
    time, asked = torch.tensor([[0, 60, 3_660]]) * SECOND, torch.tensor([[60, 3_660, 90_060]]) * SECOND
    rows = window([3], time=time, request_time=asked)
    # ln 60 = 4.09: 13; ln 3600 = 8.19: 27; ln 3660: 27; ln 86400: 37, ln 90000 and 90060: 37
    own = full_geometry(rows, EncoderSettings(time_bias=True))
    assert own.elapsed is not None
    assert own.elapsed[0].tolist() == [[0, 13, 27], [13, 0, 27], [27, 27, 0]]
    requested = full_geometry(rows, EncoderSettings(time_bias=True, request_time=True))
    assert requested.elapsed is not None
    assert requested.elapsed[0].tolist() == [[13, 0, 27], [27, 27, 0], [37, 37, 37]]
    last = last_geometry(rows, EncoderSettings(time_bias=True, request_time=True))
    assert last.elapsed is not None
    assert last.elapsed[0].tolist() == [[37, 37, 37]]
