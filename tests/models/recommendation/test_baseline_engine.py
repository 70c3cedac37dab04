"""Lists of recommenders that score the catalogue, with the past items that each recommendation rests on."""

import numpy as np
import pytest

from models.baselines.item_knn import ItemKNN
from models.baselines.own_items import OwnFrequent
from models.baselines.popularity import Popularity
from models.histories import Float32, Histories, histories_from_lists
from models.recommendation.baseline_engine import (
    EXPLAINED_ITEMS,
    BaselineEngine,
    latest_of_items,
    without_item,
)
from models.recommendation.rules import Rules, Traits
from models.recommender import Recommender

NUM_ITEMS = 7
COUNTS = np.array([0, 1, 1, 1, 1, 1, 9, 5], np.float32)
LOG = histories_from_lists([[1, 2, 3, 2], [2, 3, 5], [4, 5], [6, 7, 1]])


class Weights(Popularity):
    """score(j) = sum over the history's distinct items i of 10 i + j."""

    def __init__(self) -> None:
        super().__init__(COUNTS)

    def score_items(self, histories: Histories) -> Float32:
        row, position = histories.gather()
        own = np.zeros((len(histories), NUM_ITEMS + 1), np.float32)
        own[row, histories.item_index[position]] = 1
        numbers = np.arange(NUM_ITEMS + 1, dtype=np.float32)
        scores: Float32 = (own @ (10 * numbers))[:, None] + own.sum(1)[:, None] * numbers
        scores[:, 0] = -np.inf
        return scores


def engine(recommender: Recommender, *, reads_history: bool = True) -> BaselineEngine:
    popular = np.stack([COUNTS, COUNTS[::-1]])
    return BaselineEngine(recommender, popular, Traits(COUNTS), reads_history)


def test_each_item_weighs_what_the_score_loses_without_it():
    answer = engine(Weights()).answer(histories_from_lists([[2, 3, 2]]), 2, Rules(), because="fast")
    assert answer.item_index.tolist() == [[7, 6]]
    assert answer.score.tolist() == [[50 + 14, 50 + 12]]
    assert answer.because is not None
    assert answer.because.item_index.tolist() == [[[3, 2, 0], [3, 2, 0]]]
    assert answer.because.weight.tolist() == [[[30 + 7, 20 + 7, 0], [30 + 6, 20 + 6, 0]]]
    items, weights = engine(Weights()).contributions(histories_from_lists([[2, 3, 2]]), 1, Rules(), "exact")
    assert items.tolist() == [[7]]
    assert weights.tolist() == [[[0, 37, 27]]], "an item's weight stands at its latest interaction"


def test_what_the_history_does_not_change_has_no_reasons():
    answer = engine(Popularity(COUNTS), reads_history=False).answer(LOG, 3, Rules(), because="exact")
    assert answer.item_index.tolist() == [[6, 7, 4], [6, 7, 1], [6, 7, 1], [2, 3, 4]]
    assert answer.because is not None
    assert not answer.because.item_index.any()


@pytest.mark.parametrize(
    "system", [OwnFrequent.fit(LOG, 7), ItemKNN.fit(LOG, 7), Weights()], ids=["own", "knn", "own class"]
)
def test_reasons_change_no_list_and_a_row_is_answered_by_itself(system: Recommender):
    rows = histories_from_lists([[1, 2], [], [5, 5, 4], [3]])
    rules = Rules(exclude_seen=False, allowed=np.arange(NUM_ITEMS + 1) != 3)
    together = engine(system).answer(rows, 4, rules, segment=np.array([0, 1, 0, 1]))
    explained = engine(system).answer(rows, 4, rules, segment=np.array([0, 1, 0, 1]), because="exact")
    assert (explained.item_index == together.item_index).all()
    assert (explained.score == together.score).all()
    assert together.cold.tolist() == [False, True, False, False]
    assert together.item_index[1].tolist() == [1, 2, 4, 5], "the popular ones of its segment"
    assert not (together.item_index == 3).any()
    for row in range(4):
        one = slice(row, row + 1)
        alone = engine(system).answer(rows.select(one), 4, rules, segment=np.array([0, 1, 0, 1])[one])
        assert alone.item_index.tolist() == together.item_index[one].tolist()


def test_a_list_that_the_catalogue_does_not_fill_has_reasons_where_it_has_items():
    answer = engine(Weights()).answer(histories_from_lists([[2, 3, 4, 5, 6]]), 4, Rules(), because="exact")
    assert answer.item_index.tolist() == [[7, 1, 0, 0]]
    assert answer.because is not None
    assert answer.because.item_index.tolist() == [[[6, 5, 4], [6, 5, 4], [0, 0, 0], [0, 0, 0]]]


def test_own_favourites_rest_on_themselves():
    answer = engine(OwnFrequent.fit(LOG, 7)).answer(
        histories_from_lists([[1, 2, 2]]), 2, Rules(exclude_seen=False), because="fast"
    )
    assert answer.item_index.tolist() == [[2, 1]]
    assert answer.because is not None
    assert answer.because.item_index[0, :, 0].tolist() == [2, 1]


def test_the_latest_distinct_items_are_left_out_one_by_one():
    rows = histories_from_lists([[4, 2, 4, 3], [], [1, 1]])
    row, position = latest_of_items(rows, 2)
    assert row.tolist() == [0, 0, 2]
    assert position.tolist() == [2, 3, 5]
    left = without_item(rows, np.array([4, 1, 1], np.int32))
    assert left.item_index.tolist() == [2, 3]
    assert left.lengths.tolist() == [2, 0, 0]
    long = histories_from_lists([[*range(1, 7)] * 9])
    assert len(latest_of_items(long, EXPLAINED_ITEMS)[0]) == 6
