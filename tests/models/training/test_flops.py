import numpy as np

from models.encoder.encoder import Encoder
from models.settings.encoder import EncoderSettings
from models.training.flops import matrix_entries, num_pairs, step_flops


def pairs(**settings):
    lengths = np.array([3, 5], np.int64)
    return num_pairs(lengths, EncoderSettings(**settings))


def test_pairs_by_pencil():
    assert pairs() == 6 + 15
    assert pairs(window=2) == (1 + 2 + 2) + (1 + 2 + 2 + 2 + 2)
    assert pairs(window=9) == 6 + 15
    assert pairs(direction="bidirectional") == 9 + 25
    assert pairs(block="gru") == 0


def test_entries_by_pencil():
    # projection 3 x 8 x 8, merge 8 x 8, feed-forward 2 x 8 x 32
    transformer = Encoder(EncoderSettings(dim=8, num_blocks=3), 7, 2, 5)
    assert matrix_entries(transformer) == 3 * (3 * 64 + 64 + 2 * 8 * 32)
    # 3 gates of input and of hidden state
    gru = Encoder(EncoderSettings(block="gru", dim=8, num_blocks=1), 7, 2, 5)
    assert matrix_entries(gru) == 2 * 3 * 64


def test_operations_of_a_step_by_pencil():
    settings = EncoderSettings(dim=8, num_blocks=2)
    counted = step_flops(
        settings, entries=100, lengths=np.array([3, 5], np.int64), num_targets=7, num_candidates=11
    )
    # tokens 8 x 100, pairs 21 x 8 x 2 blocks x (scores and values), scores 7 x 11 x 8: a multiply and an add, three passes
    assert counted == 6 * (800 + 21 * 8 * 2 * 2 + 7 * 11 * 8)
