import numpy as np
import pytest
import torch

from models.encoder import AttentionRecommender, Encoder
from models.recommender import Histories, histories_from_lists
from models.settings import EncoderSettings, Positions

NUM_ITEMS, LENGTH = 29, 7


def encoder(num_event_types=0, implementation="auto", block="transformer"):
    torch.manual_seed(0)
    positions: Positions = "relative" if block == "relative" else "absolute"
    block = "transformer" if block == "relative" else block
    settings = EncoderSettings(block=block, dim=6, num_blocks=2, num_heads=3, positions=positions)
    model = Encoder(settings, NUM_ITEMS, num_event_types, LENGTH, implementation)
    for parameter in model.parameters():  # larger than at the start, so that positions tell on each other
        torch.nn.init.normal_(parameter, std=0.5)
    return model.eval()


@pytest.fixture(params=["transformer", "relative", "gru"])
def block(request):
    return request.param


@pytest.fixture
def recommender(block):
    return AttentionRecommender(encoder(block=block))


def random_rows(rows=13, seed=0):
    random = np.random.default_rng(seed)
    return [random.integers(1, NUM_ITEMS + 1, length).tolist() for length in random.integers(0, 12, rows)]


def test_the_future_changes_nothing(block):
    model, items = encoder(block=block), torch.randint(1, NUM_ITEMS + 1, (3, LENGTH))
    changed = items.clone()
    changed[:, 4:] = torch.randint(1, NUM_ITEMS + 1, (3, 3))
    before, after = (model(rows, torch.zeros_like(rows)) for rows in (items, changed))
    assert torch.equal(before[:, :4], after[:, :4])
    assert not torch.allclose(before[:, 4:], after[:, 4:])


def test_padding_changes_nothing(block):
    model, items = encoder(block=block), torch.randint(1, NUM_ITEMS + 1, (3, 4))
    padded = torch.nn.functional.pad(items, (0, 3))
    whole, short = (model(rows, torch.zeros_like(rows)) for rows in (padded, items))
    torch.testing.assert_close(whole[:, :4], short)


def test_last_states_are_those_of_the_whole_pass(block):
    model, items = encoder(3, block=block), torch.randint(1, NUM_ITEMS + 1, (5, LENGTH))
    types, lengths = torch.randint(0, 4, (5, LENGTH)), torch.tensor([1, 7, 4, 3, 6])
    expected = model(items, types)[torch.arange(5), lengths - 1]
    torch.testing.assert_close(model.last_states(items, types, lengths), expected)


def test_fast_attention_gives_the_reference_s_states():
    items = torch.randint(1, NUM_ITEMS + 1, (5, LENGTH))
    states = [encoder(0, kind)(items, torch.zeros_like(items)) for kind in ("sdpa", "reference", "dense")]
    torch.testing.assert_close(states[0], states[1])
    torch.testing.assert_close(states[2], states[1])


def test_item_order_and_event_types_matter(block):
    model = encoder(2, block=block)
    items, types = torch.tensor([[3, 5, 7]]), torch.tensor([[1, 1, 1]])
    lengths = torch.tensor([3])
    vector = model.last_states(items, types, lengths)
    assert not torch.allclose(vector, model.last_states(items[:, [1, 0, 2]], types, lengths))
    assert not torch.allclose(vector, model.last_states(items, torch.tensor([[2, 1, 1]]), lengths))


@pytest.mark.parametrize("batch_tokens", [1, 23, 2**13])
def test_a_batch_equals_single_rows(recommender, batch_tokens):
    histories = histories_from_lists(random_rows())
    together = recommender.encode(histories, batch_tokens)
    alone = [recommender.encode(histories.select(slice(row, row + 1)))[0] for row in range(len(histories))]
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-5)


def test_an_empty_history_is_the_zero_vector(recommender):
    assert not recommender.encode(histories_from_lists([[], [1]]))[0].any()


def test_only_the_window_is_looked_at(recommender):
    long, cut = recommender.encode(histories_from_lists([[*range(1, 15)], [*range(8, 15)]]))
    np.testing.assert_allclose(long, cut, rtol=1e-5)


def test_scores_are_inner_products(recommender):
    histories = histories_from_lists(random_rows())
    expected = recommender.encode(histories) @ recommender.encoder.item_vectors().detach().numpy().T
    scores = recommender.score_items(histories)
    assert np.isneginf(scores[:, 0]).all()
    np.testing.assert_allclose(scores[:, 1:], expected[:, 1:], rtol=1e-5, atol=1e-5)


def test_the_whole_history_is_excluded_not_only_the_window(recommender):
    histories = histories_from_lists([[*range(1, NUM_ITEMS)]])
    items, scores = recommender.recommend(histories, 3)
    assert items.tolist() == [[NUM_ITEMS, 0, 0]]
    assert np.isneginf(scores[0, 1:]).all()
    assert 0 not in recommender.recommend(histories, 3, exclude_seen=False)[0]


def test_recommendations_are_the_best_scores(recommender):
    histories = histories_from_lists(random_rows())
    items, scores = recommender.recommend(histories, 5, exclude_seen=False)
    expected = np.sort(recommender.score_items(histories), axis=1)[:, ::-1][:, :5]
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-5)
    assert items.dtype == np.int32


def test_types_reach_the_recommender(block):
    recommender = AttentionRecommender(encoder(2, block=block))
    rows = histories_from_lists([[1, 2, 3]])
    typed = Histories(rows.item_index, rows.time, np.array([1, 2, 1], np.int16), rows.starts, rows.ends)
    assert not np.allclose(recommender.encode(rows), recommender.encode(typed))
