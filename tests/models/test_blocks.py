import pytest
import torch

from models.blocks import DistanceBias, Dropout, TransformerBlock, random_mask
from models.settings import EncoderSettings


@pytest.fixture
def block():
    torch.manual_seed(0)
    return TransformerBlock(EncoderSettings(dim=6, num_heads=3, dropout=0.5)).eval()


def test_last_is_forward_at_the_last_position(block):
    states, lengths = torch.randn(4, 7, 6), torch.tensor([1, 3, 7, 5])
    expected = block(states.flatten(0, 1), (4, 7)).view(4, 7, 6)[torch.arange(4), lengths - 1]
    torch.testing.assert_close(block.last(states, lengths).squeeze(1), expected)


def test_a_block_of_zero_weights_changes_nothing(block):
    for parameter in block.parameters():
        torch.nn.init.zeros_(parameter)
    states = torch.randn(11, 6)
    assert torch.equal(block(states, (2, 5)), states)


def test_implementations_agree():
    blocks = []
    for implementation in ("sdpa", "reference"):
        torch.manual_seed(0)
        blocks.append(TransformerBlock(EncoderSettings(dim=6, num_heads=2), implementation).eval())
    states = torch.randn(10, 6)
    torch.testing.assert_close(blocks[0](states, (2, 5)), blocks[1](states, (2, 5)))


def test_states_behind_the_rows_change_nothing(block):
    states = torch.randn(13, 6)
    torch.testing.assert_close(block(states, (2, 5))[:10], block(states[:10], (2, 5)))


def test_dropout_keeps_the_mean_and_the_share():
    torch.manual_seed(0)
    thinned = Dropout(0.2)(torch.ones(1000, 101))
    assert set(thinned.unique().tolist()) == {0.0, 1.25}
    assert thinned.mean().item() == pytest.approx(1, abs=0.01)  # 0.01 is 6 standard errors


def test_dropout_outside_training_is_the_identity():
    states = torch.randn(3, 5)
    assert Dropout(0.2).eval()(states) is states


@pytest.mark.parametrize("share", [0.0, 0.999])
def test_masks_at_the_ends(share):
    torch.manual_seed(0)
    kept = random_mask(torch.Size([13, 101]), share).double().mean().item()
    assert kept == pytest.approx(1 - share, abs=0.01)


def test_distances_have_a_number_each_up_to_15_and_then_share_one():
    bias = DistanceBias(2)
    torch.nn.init.normal_(bias.weight)
    distance = torch.tensor([-3, 0, 1, 15, 16, 18, 19, 32, 255, 10_000]).view(1, 1, -1)
    # floor(4 log2(d / 16)): 0 for 16 and 18, 0.99 for 19 still 0, 4 for 32, 15 for 255 and beyond
    column = [0, 0, 1, 15, 16, 16, 16, 20, 31, 31]
    assert torch.equal(bias(distance)[0, :, 0], bias.weight[:, column])
