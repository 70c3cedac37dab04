"""Learning from what was shown: lists by pencil, the losses of compared candidates, and a log with known tastes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from models.histories import histories_from_lists
from models.ranking.features import ItemStatistics
from models.ranking.ranker import Ranker, SecondStage
from models.ranking.shown_lists import ShownLists
from models.ranking.training import Labels, Retrieved, _loss, fit_ranker, ndcg_of
from models.settings.ranker import RankerLoss, RankerSettings

ITEMS = np.array([[1, 2, 3, 4], [5, 6, 7, 0], [1, 5, 9, 0], [3, 4, 0, 0]], np.int32)
SCORES = np.where(ITEMS > 0, -np.arange(4, dtype=np.float32), -np.inf).astype(np.float32)


def retrieved() -> Retrieved:
    """Requests that took 1, 3 and an unknown item; 6; 5; nothing."""
    target, request = np.array([1, 3, 0, 6, 5], np.int32), np.array([0, 0, 0, 1, 2])
    log = histories_from_lists([[1], [2], [3], [4]])
    lists = Retrieved.of(log, ITEMS, SCORES, target, request, np.arange(4))
    disliked = np.zeros(ITEMS.shape, np.float32)
    disliked[0, 3] = disliked[1, 2] = 2
    return replace(lists, disliked=disliked)


def shown() -> ShownLists:
    """Request 0: 1 taken, 2 ignored twice, 3 ignored but taken otherwise; 1: 6 taken; 2: 5 taken, 9 ignored; 3: 4 ignored."""
    request = np.array([2, 0, 0, 0, 0, 1, 2, 3])
    item = np.array([9, 1, 2, 2, 3, 6, 5, 4], np.int32)
    taken = np.array([0, 1, 0, 0, 0, 1, 1, 0], bool)
    return ShownLists.of(request, item, taken)


def test_exposures_by_request_and_item() -> None:
    found = shown()
    assert found.request.tolist() == [0, 0, 0, 1, 2, 2, 3]
    assert found.item.tolist() == [1, 2, 3, 6, 5, 9, 4]
    assert found.is_taken.tolist() == [True, False, False, True, True, False, False]
    assert found.candidates(5).tolist() == [[1, 2, 3], [6, 0, 0], [5, 9, 0], [4, 0, 0], [0, 0, 0]]


def test_of_many_shown_items_what_was_taken_is_kept_first() -> None:
    request, item = np.repeat([0, 1], [50, 2]), np.concatenate([np.arange(1, 51), [3, 4]])
    whole = ShownLists.of(request, item.astype(np.int32), np.isin(item, (7, 30)))
    some = whole.sample(5, 0)
    assert some.request.tolist() == [0] * 5 + [1] * 2
    assert (np.diff(some.item[:5]) > 0).all()
    assert some.item[some.is_taken].tolist() == [7, 30]
    assert some.item[5:].tolist() == [3, 4]
    assert (whole.sample(5, 1).item[:5] != some.item[:5]).any()


def test_what_was_taken_is_compared_with_what_was_ignored() -> None:
    """Request 0 has two lists, 1 (nothing ignored) and 3 (nothing taken) the retrieved one, 2 that of what was shown."""
    lists, number = shown().learned_from(retrieved())
    assert (len(lists), number) == (5, 2)
    assert lists.user.tolist() == [0, 1, 3, 0, 2]
    assert lists.histories.item_index[lists.histories.starts].tolist() == [1, 2, 4, 1, 3]
    assert lists.compared is not None
    compared = [items[kept].tolist() for items, kept in zip(lists.items, lists.compared, strict=True)]
    assert compared == [[2, 3, 4], [5, 6, 7], [3, 4], [1, 2], [5, 9]]
    relevant = [items[kept].tolist() for items, kept in zip(lists.items, lists.relevant, strict=True)]
    assert relevant == [[3], [6], [], [1], [5]]
    assert lists.num_relevant.tolist() == [2, 1, 0, 1, 1]
    assert lists.disliked is not None
    assert lists.disliked.tolist() == [[0, 0, 0, 2], [0, 0, 2, 0], [0] * 4, [0] * 4, [0] * 4]


@pytest.mark.parametrize("loss", ["listwise", "pointwise"])
def test_the_loss_is_of_compared_candidates(loss: RankerLoss) -> None:
    lists, _ = shown().learned_from(retrieved())
    stage = a_stage(RankerSettings(dim=4, hidden=4, loss=loss))
    lists = lists.select(lists.is_hit)
    inputs, labels = stage.lists(lists.histories, lists.items, lists.scores), Labels.of(lists)
    assert lists.compared is not None
    inputs = replace(inputs, there=torch.from_numpy(lists.compared))
    scores = torch.randn(ITEMS.shape, dtype=torch.float64).masked_fill(~inputs.there, -torch.inf)
    found = _loss(scores, labels.relevant, inputs, loss)
    expected = 0.0
    for row, compared, relevant in zip(scores, lists.compared, lists.relevant, strict=True):
        own = np.flatnonzero(compared)
        for place in own:
            if loss == "pointwise":
                expected += float(functional.softplus(-row[place] if relevant[place] else row[place]))
            elif relevant[place]:
                others = [other for other in own if not relevant[other]]
                among = torch.logsumexp(row[[place, *others]], 0)
                expected += float(among - row[place]) / relevant.sum()
    assert float(found) == pytest.approx(expected / len(lists), rel=1e-5)


def test_ndcg_of_compared_candidates_alone() -> None:
    lists, _ = shown().learned_from(retrieved())
    scores = np.where(lists.items > 0, -lists.items, -np.inf).astype(np.float32)
    by_hand = [1 / np.log2(3) / (1 + 1 / np.log2(3)), 1 / np.log2(3), 0]
    assert ndcg_of(scores, lists) == pytest.approx([*by_hand, 1, 1])


def a_stage(settings: RankerSettings, num_items: int = 10) -> SecondStage:
    torch.manual_seed(0)
    vectors = functional.normalize(torch.randn(num_items + 1, 6), dim=-1)
    ranker = Ranker(settings, vectors, 1, ("retrieval_score", "retrieval_rank", "popularity"))
    statistics = ItemStatistics.of(histories_from_lists([[1], [2]]), num_items)
    return SecondStage(ranker, statistics, np.arange(num_items + 1, dtype=np.int32))


def test_a_ranker_finds_what_users_would_take_behind_what_lists_favoured() -> None:
    """An older system shows items 1 to 5 often and first; users would rather take the others of their own kind."""
    random, num_users, num_items = np.random.default_rng(0), 300, 20
    item = np.arange(1, num_items + 1)
    is_hot, is_odd = item <= 5, item % 2 == 1
    likes_odd = random.random(num_users) < 0.5
    rate = np.where(is_hot, 0.3, np.where(likes_odd[:, None] == is_odd, 0.8, 0.05))
    worth = 2 * is_hot + random.gumbel(size=(num_users, num_items))
    drawn = np.argsort(-worth, axis=1)[:, :6]
    listed = np.take_along_axis(drawn, np.argsort(~is_hot[drawn], axis=1, kind="stable"), 1)
    looks = np.array([1, 0.8, 0.6, 0.4, 0.3, 0.2])
    taken = random.random(listed.shape) < looks * np.take_along_axis(rate, listed, 1)
    request = np.repeat(np.arange(num_users), 6)
    shown_items, is_taken = (listed + 1).ravel().astype(np.int32), taken.ravel()
    after = ShownLists.of(request, shown_items, is_taken)
    log = histories_from_lists([[19, 17, 15] if odd else [20, 18, 16] for odd in likes_odd])
    items = np.array([random.permutation(item) for _ in range(num_users)], np.int32)
    scores = np.tile(-np.arange(num_items) / 10, (num_users, 1)).astype(np.float32)
    lists = Retrieved.of(log, items, scores, shown_items[is_taken], request[is_taken], np.arange(num_users))

    def true_rate(learned: Retrieved) -> float:
        settings = RankerSettings(dim=8, hidden=0, epochs=20, patience=5, learning_rate=0.02, dropout=0.0)
        stage = fit_ranker(a_stage(settings, num_items), learned, 0).stage
        best = np.argsort(-stage.score(log, items, scores), axis=1)[:, :3]
        return float(np.take_along_axis(rate, np.take_along_axis(items, best, 1) - 1, 1).mean())

    assert true_rate(lists) < 0.35
    assert true_rate(after.learned_from(lists)[0]) > 0.5
