from typing import Any

import numpy as np
import pytest
import torch

from models.checkpoint import load_model, save_model
from models.encoder import AttentionRecommender, Encoder
from models.recommender import histories_from_lists
from models.recurrent import GRUBlock
from models.settings import EncoderSettings, TrainSettings
from models.training import Validation, fit

SETTINGS = EncoderSettings(block="gru", dim=5, num_blocks=2, dropout=0.5)


@pytest.fixture
def block():
    torch.manual_seed(0)
    return GRUBlock(SETTINGS).eval()


def logistic(x):
    return 1 / (1 + np.exp(-x))


def test_the_formula_written_out(block):
    states = torch.randn(7, 5)
    weights = {name: weight.detach().double().numpy() for name, weight in block.gru.named_parameters()}
    w, u = (np.split(weights[f"weight_{side}_l0"], 3) for side in ("ih", "hh"))
    a, b = (np.split(weights[f"bias_{side}_l0"], 3) for side in ("ih", "hh"))
    hidden, expected = np.zeros(5), []
    for x in states.double().numpy():
        v = (x - x.mean()) / np.sqrt(x.var() + block.norm.eps)
        r = logistic(w[0] @ v + a[0] + u[0] @ hidden + b[0])
        z = logistic(w[1] @ v + a[1] + u[1] @ hidden + b[1])
        c = np.tanh(w[2] @ v + a[2] + r * (u[2] @ hidden + b[2]))
        hidden = (1 - z) * c + z * hidden
        expected.append(x + hidden)
    np.testing.assert_allclose(block(states, (1, 7)).detach().numpy(), expected, rtol=1e-5, atol=1e-5)


def test_last_is_forward_at_the_last_position(block):
    states, lengths = torch.randn(4, 7, 5), torch.tensor([1, 3, 7, 5])
    expected = block(states.flatten(0, 1), (4, 7)).view(4, 7, 5)[torch.arange(4), lengths - 1]
    torch.testing.assert_close(block.last(states, lengths).squeeze(1), expected)


def test_states_behind_the_rows_change_nothing(block):
    states = torch.randn(13, 5)
    found = block(states, (2, 5))
    torch.testing.assert_close(found[:10], block(states[:10], (2, 5)))
    assert not found[10:].any()


def test_each_row_starts_afresh(block):
    rows = torch.randn(3, 4, 5)
    together = block(rows.flatten(0, 1), (3, 4)).view(3, 4, 5)
    for row in range(3):
        torch.testing.assert_close(together[row], block(rows[row], (1, 4)))


def test_what_came_first_still_tells_at_the_end(block):
    states = torch.randn(1, 9, 5)
    changed = states.clone()
    changed[0, 0] += torch.randn(5)
    lengths = torch.tensor([9])
    assert not torch.equal(block.last(states, lengths), block.last(changed, lengths))


def test_dropout_thins_what_the_recurrence_adds(block):
    states = torch.randn(600, 5)
    added = block.train()(states, (100, 6)) - states
    assert (added == 0).double().mean().item() == pytest.approx(0.5, abs=0.06)  # 6 standard errors


def test_bf16_autocast_stays_near_fp32(block):
    states = torch.randn(200, 5)
    with torch.autocast("cpu", torch.bfloat16):
        lowered = block(states, (10, 20))
    assert lowered.dtype == torch.float32
    torch.testing.assert_close(lowered, block(states, (10, 20)), rtol=0, atol=0.03)


def test_a_checkpoint_is_the_same_model(tmp_path):
    torch.manual_seed(0)
    encoder = Encoder(SETTINGS, num_items=11, num_event_types=2, max_length=5).eval()
    save_model(encoder, tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.settings == SETTINGS
    items, types = torch.randint(1, 12, (3, 5)), torch.randint(1, 3, (3, 5))
    assert torch.equal(loaded(items, types), encoder(items, types))


def test_it_has_no_positions():
    assert not [name for name, _ in Encoder(SETTINGS, 11, 0, 5).named_parameters() if "position" in name]


def train(resume=None, epochs=4, on_checkpoint=None, **settings):
    random = np.random.default_rng(0)
    starts = random.integers(0, 20, 64)
    histories = histories_from_lists([[(start + 3 * step) % 20 + 1 for step in range(9)] for start in starts])
    return fit(
        histories,
        encoder=EncoderSettings(block="gru", dim=16, num_blocks=1, dropout=0.1),
        train=TrainSettings(epochs=epochs, batch_histories=8, learning_rate=0.02, **settings),
        num_items=20,
        num_event_types=0,
        max_length=8,
        validation=Validation(histories_from_lists([[1, 4, 7], [2, 5]]), np.array([10, 8], np.int32)),
        resume=resume,
        on_checkpoint=on_checkpoint,
    )


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_it_learns_what_follows(precision):
    result = train(precision=precision)
    assert result.history[-1].loss < result.history[0].loss / 2
    assert result.history[-1].validation["validation_ndcg@10"] == 1
    best, _ = AttentionRecommender(result.model).recommend(histories_from_lists([[15, 18]]), 1)
    assert best.tolist() == [[1]]


def test_a_resumed_training_ends_in_the_same_bits():
    saved: list[dict[str, Any]] = []
    whole = train(on_checkpoint=saved.append, epochs=3)
    resumed = train(resume=saved[0], epochs=3)
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name]), name


def test_heads_are_of_no_concern_to_a_gru():
    assert EncoderSettings(block="gru", dim=7, num_heads=2).dim == 7
    with pytest.raises(ValueError, match="multiple of num_heads"):
        EncoderSettings(dim=7, num_heads=2)


def test_an_unknown_block_is_told_which_there_are():
    with pytest.raises(ValueError, match="'lstm', expected 'transformer' or 'gru'"):
        EncoderSettings(block="lstm")
