"""Attention weights of the last position against a softmax worked out by hand."""

import math

import numpy as np
import pytest
import torch

from models.encoder.attention_bias import full_geometry
from models.encoder.blocks import AttentionBlock
from models.encoder.encoder import Encoder
from models.explanation.attention_weights import attention_weights, has_attention
from models.histories import histories_from_lists
from models.settings.encoder import EncoderSettings

NUM_ITEMS = 29


def fresh(num_blocks: int = 2, **settings) -> Encoder:
    torch.manual_seed(0)
    chosen = EncoderSettings(
        **{"positions": "absolute", **settings}, dim=6, num_blocks=num_blocks, num_heads=3
    )
    model = Encoder(chosen, NUM_ITEMS, 2, max_length=7).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model


def plain(block: AttentionBlock, states: torch.Tensor) -> np.ndarray:
    """Softmax of the last state's products with all, head by head, number by number; states [l, 6], 3 heads."""
    with torch.no_grad():
        queries, keys, _ = block.project(block.attention_norm(states)).chunk(3, -1)
    weights = np.zeros(len(states))
    for own in (slice(0, 2), slice(2, 4), slice(4, 6)):
        scores = [math.exp(float(queries[-1, own] @ key) / math.sqrt(2)) for key in keys[:, own]]
        weights += np.array(scores) / sum(scores) / 3
    return weights


def embedded(encoder: Encoder, row: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return encoder.embed(encoder.pad(histories_from_lists([row])))[0]


def test_one_block_by_a_plain_softmax():
    encoder, row = fresh(num_blocks=1), [3, 9, 4, 11, 2]
    weights = attention_weights(encoder, histories_from_lists([row]))
    np.testing.assert_allclose(
        weights[0], plain(encoder.attention_layers[0], embedded(encoder, row)), rtol=1e-5
    )


def test_blocks_are_averaged_each_over_the_states_that_it_works_on():
    encoder, row = fresh(num_blocks=2), [3, 9, 4, 11, 2]
    first, second = encoder.attention_layers
    states = embedded(encoder, row)
    with torch.no_grad():
        window = encoder.pad(histories_from_lists([row]))
        after = first(states, (full_geometry(window, encoder.settings),))
    expected = (plain(first, states) + plain(second, after)) / 2
    np.testing.assert_allclose(
        attention_weights(encoder, histories_from_lists([row]))[0], expected, rtol=1e-5
    )


def test_rows_add_up_to_one_and_padding_gets_nothing():
    random = np.random.default_rng(0)
    rows = [random.integers(1, NUM_ITEMS, length).tolist() for length in (1, 7, 3, 0, 12, 2)]
    weights = attention_weights(fresh(), histories_from_lists(rows))
    assert weights.shape == (6, 7)
    np.testing.assert_allclose(weights.sum(1), [1, 1, 1, 0, 1, 1], rtol=1e-5)
    for row, length in zip(weights, (1, 7, 3, 0, 7, 2), strict=True):
        assert (row[:length] > 0).all()
        assert not row[length:].any()


def test_a_row_alone_gets_the_same_weights():
    encoder, histories = fresh(), histories_from_lists([[1, 2, 3, 4, 5, 6, 7, 8, 9], [4, 2], [8]])
    together = attention_weights(encoder, histories)
    for row in range(3):
        alone = attention_weights(encoder, histories.select(slice(row, row + 1)))[0]
        np.testing.assert_allclose(together[row, : len(alone)], alone, rtol=1e-5)


def test_equal_keys_are_looked_at_evenly():
    encoder = fresh(num_blocks=1)
    with torch.no_grad():
        encoder.attention_layers[0].project.weight[6:12] = 0
    np.testing.assert_allclose(
        attention_weights(encoder, histories_from_lists([[5, 6, 7, 8]])), 0.25, rtol=1e-6
    )


def test_no_rows():
    assert attention_weights(fresh(), histories_from_lists([])).shape == (0, 0)
    assert attention_weights(fresh(), histories_from_lists([[], []])).shape == (2, 0)


def test_silu_s_weights_are_shares_of_their_sizes():
    encoder, row = fresh(num_blocks=1, block="hstu", positions="none"), [3, 9, 4, 11, 2]
    states = embedded(encoder, row)
    block = encoder.attention_layers[0]
    with torch.no_grad():
        parts = torch.nn.functional.silu(block.project(block.attention_norm(states)))
        _, queries, keys, _ = parts.chunk(4, -1)
    expected = np.zeros(5)
    for own in (slice(0, 2), slice(2, 4), slice(4, 6)):
        sizes = torch.nn.functional.silu(keys[:, own] @ queries[-1, own]).abs().numpy()
        expected += sizes / sizes.sum() / 3
    weights = attention_weights(encoder, histories_from_lists([row]))
    np.testing.assert_allclose(weights[0], expected, rtol=1e-5)


def test_of_a_recurrent_encoder_s_layers_the_readout_looks():
    encoder, row = fresh(block="gru", positions="none", readout="attention"), [3, 9, 4, 11, 2]
    states = embedded(encoder, row)
    window = encoder.pad(histories_from_lists([row]))
    with torch.no_grad():
        for layer in encoder.layer_list[:-1]:
            states = layer(states, (full_geometry(window, encoder.settings),))
    weights = attention_weights(encoder, histories_from_lists([row]))
    np.testing.assert_allclose(weights[0], plain(encoder.attention_layers[0], states), rtol=1e-5)


def test_a_local_window_hides_what_came_before():
    weights = attention_weights(fresh(num_blocks=1, window=2), histories_from_lists([[3, 9, 4, 11], [5]]))
    assert (weights > 0).tolist() == [[False, False, True, True], [True, False, False, False]]


def test_every_variant_that_looks_gives_shares(variant, random_encoder, random_histories):
    encoder, histories = random_encoder(**variant), random_histories([1, 9, 0, 4])
    if not has_attention(encoder):
        with pytest.raises(ValueError, match="expected blocks with attention"):
            attention_weights(encoder, histories)
        return
    weights = attention_weights(encoder, histories)
    assert (weights >= 0).all()
    np.testing.assert_allclose(weights.sum(1), [1, 1, 0, 1], rtol=1e-5)
    for row in range(4):
        alone = attention_weights(encoder, histories.select(slice(row, row + 1)))[0]
        np.testing.assert_allclose(weights[row, : len(alone)], alone, rtol=1e-3, atol=1e-5)


def test_a_recurrent_encoder_pays_no_attention():
    encoder = fresh(block="gru", positions="none")
    assert has_attention(fresh())
    assert not has_attention(encoder)
    with pytest.raises(ValueError, match="'gru' blocks, expected blocks with attention"):
        attention_weights(encoder, histories_from_lists([[1, 2]]))
