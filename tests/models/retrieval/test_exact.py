import numpy as np
import pytest
import torch

from models.retrieval.exact import inner_products, nearest, nearest_by_sorting

ROWS, NUM_VECTORS = 37, 20_011


@pytest.mark.parametrize("width", [1, 2, 3, 7, 64])
def test_inner_products_are_sums_of_pairs_of_sums(width: int):
    """Powers of two and small integers: no rounding, so the sum is the plain one."""
    left = torch.arange(5 * width, dtype=torch.float32).view(5, width)
    right = torch.arange(width, dtype=torch.float32) % 3 - 1
    assert inner_products(left, right).tolist() == (left * right).sum(1).tolist()


def test_the_order_of_a_sum_is_fixed():
    """Component i is paired with i + 2: a large number takes a one with it, unless its opposite is its partner."""
    large = 2.0**24
    assert inner_products(torch.tensor([large, 1.0, -large, 1.0]), torch.ones(4)).item() == 2.0
    assert inner_products(torch.tensor([large, -large, 1.0, 1.0]), torch.ones(4)).item() == 1.0


@pytest.mark.parametrize("width", [3, 64])
def test_the_bits_are_those_of_every_pair_scored_alone_whatever_is_asked_together(width: int):
    """More vectors than a tile; a third of them close together, so that rounding could decide."""
    random = torch.Generator().manual_seed(0)
    vectors = torch.randn(NUM_VECTORS, width, generator=random)
    vectors[::3] = vectors[0] + 1e-6 * torch.randn(vectors[::3].shape, generator=random)
    queries = torch.randn(ROWS, width, generator=random)
    positions, scores = nearest(queries, vectors, 23)
    plain_positions, plain_scores = nearest_by_sorting(queries, vectors, 23)
    assert torch.equal(positions, plain_positions)
    assert torch.equal(scores, plain_scores)
    for rows in (slice(0, 1), slice(3, 20), slice(36, 37)):
        alone = nearest(queries[rows], vectors, 23)
        assert torch.equal(alone[0], positions[rows])
        assert torch.equal(alone[1], scores[rows])


def test_equal_scores_the_lower_position_first():
    assert nearest(torch.zeros(2, 3), torch.ones(500, 3), 4)[0].tolist() == [[0, 1, 2, 3]] * 2


def test_hidden_vectors_are_no_answer():
    vectors = torch.arange(1.0, 21.0)[:, None]

    def hidden(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Row r hides its r best."""
        pairs = [(place, 19 - best) for place, row in enumerate(rows) for best in range(row)]
        place, position = np.array(pairs, np.int64).reshape(-1, 2).T
        return place, position

    positions, scores = nearest(torch.ones(21, 1), vectors, 3, hidden)
    assert positions[5].tolist() == [14, 13, 12]
    assert scores[18].tolist() == [2, 1, -np.inf]
    assert positions[18:].tolist() == [[1, 0, -1], [0, -1, -1], [-1, -1, -1]]


def test_without_vectors_there_is_no_answer():
    positions, scores = nearest(torch.ones(2, 3), torch.ones(0, 3), 4)
    assert positions.tolist() == [[-1] * 4] * 2
    assert torch.isneginf(scores).all()
