from typing import Any

import numpy as np
import pytest
import torch

from models.encoder import AttentionRecommender, Encoder
from models.explain import contributions, strongest
from models.recommender import histories_from_lists
from models.settings import EncoderSettings, Positions

NUM_ITEMS = 29


def random_encoder(block="transformer"):
    torch.manual_seed(0)
    positions: Positions = "relative" if block == "relative" else "absolute"
    block = "transformer" if block == "relative" else block
    settings = EncoderSettings(block=block, dim=6, num_blocks=2, num_heads=3, positions=positions)
    model = Encoder(settings, NUM_ITEMS, 0, max_length=7).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture(params=["transformer", "relative", "gru"])
def block(request):
    return request.param


@pytest.fixture
def encoder(block):
    return random_encoder(block)


def score(encoder, row, item):
    return AttentionRecommender(encoder).score_items(histories_from_lists([row]))[0, item]


@pytest.mark.parametrize("method", ["fast", "exact"])
def test_leaving_out_the_last_interaction(encoder, method):
    # the ones before keep their positions, so scoring the shorter history is leaving it out
    weights = contributions(
        encoder, histories_from_lists([[3, 9, 4], [5]]), np.array([[7, 8], [7, 8]], np.int32), method
    )
    for place, item in enumerate([7, 8]):
        expected = score(encoder, [3, 9, 4], item) - score(encoder, [3, 9], item)
        assert weights[0, place, 2] == pytest.approx(expected, abs=1e-5)
        assert weights[1, place, 0] == pytest.approx(score(encoder, [5], item), abs=1e-5)
        assert not weights[1, place, 1:].any()


def test_exact_leaves_each_interaction_out_in_place():
    encoder = random_encoder()
    weights = contributions(encoder, histories_from_lists([[3, 9, 4]]), np.array([[7]], np.int32), "exact")
    with torch.no_grad():
        kept = (
            torch.tensor([[3, 4]]),
            torch.zeros(1, 2, dtype=torch.long),
            torch.tensor([2]),
            torch.tensor([[0, 2]]),
        )
        left = encoder.last_states(*kept)[0] @ encoder.item_vectors()[7]
    assert weights[0, 0, 1] == pytest.approx(score(encoder, [3, 9, 4], 7) - left.item(), abs=1e-5)


def test_fast_follows_exact(encoder, block):
    random = np.random.default_rng(0)
    histories = histories_from_lists([random.integers(1, NUM_ITEMS, 7).tolist() for _ in range(40)])
    items = random.integers(1, NUM_ITEMS, (40, 5)).astype(np.int32)
    fast, exact = (contributions(encoder, histories, items, method)[..., :-1] for method in ("fast", "exact"))
    assert (
        np.corrcoef(fast.ravel(), exact.ravel())[0, 1]
        > {"transformer": 0.7, "relative": 0.7, "gru": 0.9}[block]
    )


def test_a_gru_forgets_an_interaction_as_if_it_had_never_been():
    encoder, row, items = random_encoder("gru"), [3, 9, 4, 9], [7, 8, 0]
    histories = histories_from_lists([row, [5], []])
    weights = contributions(encoder, histories, np.array([items] * 3, np.int32), "exact")
    assert weights.shape == (3, 3, 4)
    for place, item in enumerate(items[:2]):
        shorter = [score(encoder, row[:column] + row[column + 1 :], item) for column in range(4)]
        np.testing.assert_allclose(
            weights[0, place], score(encoder, row, item) - shorter, rtol=1e-4, atol=1e-5
        )
        assert weights[1, place, 0] == pytest.approx(score(encoder, [5], item), abs=1e-5)
    assert not weights[:, 2].any()
    assert not weights[2].any()


def test_fast_is_the_slope_of_letting_hidden_states_pass():
    """Against finite differences: each h_i moved a little towards h_{i-1}, in every block, by a recurrence written out."""
    encoder = random_encoder("gru").double()
    row, item, small = [3, 9, 4, 9], 7, 1e-6

    def score_with(skipped, share):
        states = encoder.items.weight[row]
        for block in encoder.recurrent_layers:
            hidden, added = torch.zeros(1, 1, 6, dtype=torch.double), []
            for place, x in enumerate(block.norm(states)):
                new = block.gru(x.view(1, 1, 6), hidden)[1]
                hidden = new + (share * (hidden - new) if place == skipped else 0)
                added.append(hidden.view(6))
            states = states + torch.stack(added)
        return (encoder.norm(states[-1]) @ encoder.items.weight[item]).item()

    weights = contributions(encoder, histories_from_lists([row]), np.array([[item]], np.int32), "fast")[0, 0]
    for place in range(3):
        slope = (score_with(place, 0) - score_with(place, small)) / small
        assert weights[place] == pytest.approx(slope, rel=1e-4, abs=1e-6)


def test_a_row_alone_gets_the_same_weights(encoder):
    histories = histories_from_lists([[1, 2, 3, 4, 5, 6, 7, 8, 9], [4, 2], [], [8]])
    items = np.array([[11, 12], [13, 14], [15, 16], [17, 0]], np.int32)
    together = contributions(encoder, histories, items)
    assert together.shape == (4, 2, 7)
    assert not together[2].any()
    assert not together[3, 1].any()
    for row in range(4):
        alone = contributions(encoder, histories.select(slice(row, row + 1)), items[row : row + 1])[0]
        np.testing.assert_allclose(together[row, :, : alone.shape[-1]], alone, rtol=1e-4, atol=1e-6)


def test_an_unknown_method_is_refused():
    slow: Any = "slow"
    with pytest.raises(ValueError, match="'slow'"):
        contributions(random_encoder(), histories_from_lists([[1]]), np.array([[2]], np.int32), slow)


def test_strongest_by_pencil():
    histories = histories_from_lists([[5, 6, 5, 7], [8]])
    weights = np.array([[[1, 2, 3, -1], [0, -1, 0, 0]], [[4, 0, 0, 0], [5, 0, 0, 0]]], np.float32)
    items, found = strongest(weights, histories, 3)
    assert items.tolist() == [[[5, 6, 0], [0, 0, 0]], [[8, 0, 0], [8, 0, 0]]]
    assert found.tolist() == [[[3, 2, 0], [0, 0, 0]], [[4, 0, 0], [5, 0, 0]]]


def test_strongest_looks_at_the_same_window():
    items, _ = strongest(np.array([[[1, 2]]], np.float32), histories_from_lists([[9, 3, 4]]), 2)
    assert items.tolist() == [[[4, 3]]]


def test_strongest_of_nothing():
    items, found = strongest(np.zeros((2, 3, 0), np.float32), histories_from_lists([[], []]), 2)
    assert items.shape == found.shape == (2, 3, 2)
    assert not items.any()
