from collections.abc import Callable

import numpy as np
import pytest
import torch

from models.encoder.encoder import AttentionRecommender, Encoder
from models.encoder.extend import with_items
from models.histories import Histories, histories_from_lists

NOTHING = np.zeros((2, 0), np.float32), np.zeros((2, 0), np.int32)


def test_items_with_vectors_of_their_own(
    random_encoder: Callable[..., Encoder], random_histories: Callable[..., Histories]
) -> None:
    encoder = random_encoder()
    own = np.random.default_rng(0).normal(size=(2, 12)).astype(np.float32)
    grown = with_items(encoder, own, *NOTHING)
    assert grown.num_items == encoder.num_items + 2
    assert torch.equal(grown.item_vectors()[:-2], encoder.item_vectors())
    assert grown.item_vectors()[-2:].detach().numpy() == pytest.approx(own)
    assert encoder.num_items == 29, "the encoder stays as it was"
    histories = random_histories([5, 3])
    recommenders = [AttentionRecommender(each) for each in (encoder, grown)]
    states, same = (each.encode(histories) for each in recommenders)
    assert np.array_equal(states, same), "to the bit, as are the vectors"
    before, after = (each.score_items(histories) for each in recommenders)
    # a product's last bits may change with its number of columns: by 12 * 2^-24 * |state| |vector| at most
    np.testing.assert_allclose(after[:, 1:30], before[:, 1:], rtol=0, atol=1e-5)
    new = histories_from_lists([[30, 31, 1]])
    assert np.isfinite(AttentionRecommender(grown).score_items(new)[:, 1:]).all(), "they count in histories"


@pytest.mark.parametrize("item_id", [True, False])
def test_a_model_that_reads_content_gives_a_new_item_what_an_untrained_one_has(
    random_encoder: Callable[..., Encoder], item_id: bool
) -> None:
    """Item 7 is not in training: its vector is that of its content, which the new item shares."""
    encoder = random_encoder(item_content=True, item_id=item_id)
    dense = encoder.items.dense[7:8].numpy()
    categories = encoder.items.category_index[7:8].numpy()
    wider = np.pad(categories, ((0, 0), (0, 2)))
    for given in (categories, wider):
        grown = with_items(encoder, None, dense, given)
        vectors = grown.item_vectors().detach()
        assert torch.allclose(vectors[30], vectors[7])
        assert torch.equal(vectors[:30], encoder.item_vectors())
