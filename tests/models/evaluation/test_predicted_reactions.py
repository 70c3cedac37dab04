"""Predicted reactions by pencil."""

import numpy as np
import pytest

from models.evaluation.predicted_reactions import PredictedReactions


def test_an_item_is_compared_with_others_at_its_places() -> None:
    """Place 1 is taken in 10 of 20, place 2 in 5 of 20; item 1 in all its 10 at place 1, item 2 in none of its 10 there."""
    place = np.repeat([0, 0, 1], [10, 10, 20])
    item = np.repeat([1, 2, 3], [10, 10, 20])
    is_taken = np.concatenate([np.ones(10), np.zeros(10), np.ones(5), np.zeros(15)]).astype(bool)
    found = PredictedReactions.fit(place, item, is_taken, num_places=3, num_items=4)
    assert found.by_place.tolist() == [0.5, 0.25, 0]
    assert found.by_item.tolist() == pytest.approx([0, (10 + 5) / (5 + 5), 5 / (5 + 5), 1, 1])
    assert found.of(np.array([[1, 1], [2, 4], [0, 3]])) == pytest.approx(
        np.array([[0.75, 0.375], [0.25, 0.25], [0, 0.25]])
    )
