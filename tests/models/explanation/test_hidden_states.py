"""A GRU with its gates laid open is the same GRU, and the slope of its gates is that of the recurrence."""

import torch

from models.encoder.attention_bias import full_geometry
from models.encoder.batching import Window
from models.encoder.recurrent import GRUBlock
from models.explanation.hidden_states import _skippable, is_gru
from models.settings.encoder import EncoderSettings


def test_a_gru_with_open_gates_is_the_same_gru():
    """z = 1 lets a hidden state pass."""
    torch.manual_seed(0)
    settings = EncoderSettings(block="gru", dim=5, num_heads=1)
    block, states = GRUBlock(settings).double().eval(), torch.randn(2, 6, 5, dtype=torch.float64)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    skipped, pushes, z = _skippable(block, states)
    zeros = torch.zeros(2, 6, dtype=torch.int32)
    geometry = full_geometry(Window(zeros, zeros, torch.tensor([6, 6])), settings)
    expected = block(states.flatten(0, 1), (geometry,)).view(2, 6, 5)
    torch.testing.assert_close(skipped, expected)
    assert not pushes.any()
    hidden = expected - states
    before = torch.cat([torch.zeros(2, 1, 5), hidden[:, :-1]], 1)
    # h_i = (1 - z) c + z h_{i-1}: more of z moves h_i by z (1 - z) (h_{i-1} - c)
    candidate = (hidden - z * before) / (1 - z)
    (slope,) = torch.autograd.grad(skipped[:, -1].sum(), pushes)
    torch.testing.assert_close(slope[:, -1], (z * (1 - z) * (before - candidate))[:, -1])


def test_only_encoders_of_gru_blocks_alone_are_explained_so(random_encoder):
    assert is_gru(random_encoder(block="gru"))
    assert not is_gru(random_encoder(block="lstm"))
    assert not is_gru(random_encoder(block="gru", readout="attention"))
    assert not is_gru(random_encoder(block="gru", readout="target"))
