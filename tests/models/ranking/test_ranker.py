"""The second stage: what it begins as, what it reads and what it does not, what training finds, what each score is based on."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from models import checkpoint
from models.encoder.encoder import AttentionRecommender, Encoder
from models.explanation.second_stage import two_stage_contributions
from models.histories import Float32, Histories, Int32, histories_from_lists
from models.ranking import training
from models.ranking.features import FORMER_FEATURES, ItemStatistics
from models.ranking.ranker import Ranker, SecondStage
from models.ranking.training import Labels, Retrieved, _loss, _sampled, fit_ranker, ndcg_of
from models.ranking.two_stage import TwoStage
from models.settings.ranker import RankerLoss, RankerSettings
from models.topk import top_k
from tests.models.conftest import HOUR, LENGTH, NUM_EVENT_TYPES, NUM_ITEMS

SETTINGS = RankerSettings(
    dim=8,
    hidden=16,
    max_length=5,
    candidates=11,
    favourites=2,
    popular=3,
    batch_lists=16,
    epochs=6,
    patience=6,
)


def a_log(rows: int, seed: int = 0, longest: int = 9) -> Histories:
    random = np.random.default_rng(seed)
    items = [random.integers(1, NUM_ITEMS + 1, random.integers(1, longest)).tolist() for _ in range(rows)]
    times = [(np.sort(random.integers(0, 5000, len(row))) * HOUR // 60).tolist() for row in items]
    log = histories_from_lists(items, times)
    kinds = random.integers(0, NUM_EVENT_TYPES + 1, len(log.item_index)).astype(np.int16)
    return replace(log, event_type=kinds, request_time=np.full(rows, 6000 * HOUR // 60, np.int64))


def a_stage(seed: int = 0, *, loud: bool = True, settings: RankerSettings = SETTINGS) -> SecondStage:
    """A ranker with random weights; `loud`: large ones everywhere, so that everything tells."""
    torch.manual_seed(seed)
    vectors = torch.nn.functional.normalize(torch.randn(NUM_ITEMS + 1, 6), dim=-1)
    vectors[0] = 0
    ranker = Ranker(settings, vectors, NUM_EVENT_TYPES)
    if loud:
        with torch.no_grad():
            for weight in ranker.parameters():
                weight.copy_(torch.randn_like(weight) * 0.5)
    content = np.random.default_rng(seed).normal(size=(NUM_ITEMS + 1, 3)).astype(np.float32)
    content /= np.linalg.norm(content, axis=1, keepdims=True)
    statistics = ItemStatistics.of(a_log(50, 7), NUM_ITEMS, content)
    return SecondStage(ranker, statistics, np.arange(NUM_ITEMS + 1, dtype=np.int32))


def candidates(rows: int, number: int = 11, seed: int = 1) -> tuple[Int32, Float32]:
    random = np.random.default_rng(seed)
    items = np.stack([random.permutation(NUM_ITEMS)[:number] + 1 for _ in range(rows)]).astype(np.int32)
    return items, -np.sort(-random.normal(size=items.shape), axis=1).astype(np.float32)


def test_it_begins_as_the_retrievers_order() -> None:
    stage, (items, scores) = a_stage(loud=False), candidates(13)
    found = stage.score(a_log(13), items, scores)
    assert (np.diff(found, axis=1) <= 0).all()


def test_a_row_is_scored_alike_alone_and_in_company() -> None:
    stage, (items, scores), log = a_stage(), candidates(13), a_log(13)
    together = stage.score(log, items, scores)
    for row in range(13):
        here = slice(row, row + 1)
        assert stage.score(log.select(here), items[here], scores[here])[0] == pytest.approx(
            together[row], abs=1e-4
        )


def test_no_candidate_is_no_score_and_changes_nothing_for_the_others() -> None:
    stage, (items, scores), log = a_stage(), candidates(5), a_log(5)
    padded = np.pad(items, ((0, 0), (0, 3))), np.pad(scores, ((0, 0), (0, 3)), constant_values=-np.inf)
    found = stage.score(log, *padded)
    assert np.isneginf(found[:, 11:]).all()
    assert found[:, :11] == pytest.approx(stage.score(log, items, scores), abs=1e-4)


def test_what_lies_further_back_is_not_looked_at_by_attention() -> None:
    stage, (items, scores) = a_stage(), candidates(1)
    lists = stage.lists(histories_from_lists([[3, 4, 5, 6, 7, 8, 9]]), items, scores)
    assert lists.past_item.tolist() == [[9, 8, 7, 6, 5]], "max_length is 5, the last interaction comes first"


@pytest.mark.parametrize("what", ["item", "type", "gap"])
def test_it_looks_at_items_types_and_times(what: str) -> None:
    stage, (items, scores) = a_stage(), candidates(1)
    log = replace(histories_from_lists([[3, 4]], [[0, 3600 * 1_000_000]]), request_time=np.array([10**10]))
    other = {
        "item": replace(log, item_index=np.array([2, 4], np.int32)),
        "type": replace(log, event_type=np.array([1, 0], np.int16)),
        "gap": replace(log, time=np.array([-(10**12), 3600 * 1_000_000])),
    }[what]
    assert not np.allclose(stage.score(log, items, scores), stage.score(other, items, scores))


def test_an_interaction_that_is_not_present_is_as_if_it_were_not_there() -> None:
    stage, (items, scores), log = a_stage(), candidates(1), histories_from_lists([[3, 4, 5]])
    lists = stage.lists(log, items, scores)
    presence = torch.ones(1, 1, 3)
    presence[0, 0, 1] = 0
    one_less = replace(
        lists,
        past_there=torch.tensor([[True, False, True]]),
        followed=lists.followed.clone().index_fill(2, torch.tensor([1]), 0),
    )
    with torch.no_grad():
        assert stage.ranker(lists, presence).numpy() == pytest.approx(
            stage.ranker(one_less).numpy(), abs=1e-4
        )


def test_an_empty_history_is_scored_by_what_is_known_of_the_candidates() -> None:
    stage, (items, scores) = a_stage(), candidates(2)
    empty = histories_from_lists([[], [3]]).select(slice(0, 2))
    assert np.isfinite(stage.score(empty, items, scores)).all()


def test_it_is_saved_and_loaded(tmp_path: Path) -> None:
    stage, (items, scores), log = a_stage(), candidates(7), a_log(7)
    checkpoint.save_ranker(stage.ranker, tmp_path)
    loaded = SecondStage(checkpoint.load_ranker(tmp_path), stage.statistics, stage.own)
    assert np.array_equal(loaded.score(log, items, scores), stage.score(log, items, scores))
    (tmp_path / "ranker.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"ranker\.safetensors: cannot be read"):
        checkpoint.load_ranker(tmp_path)


def test_a_ranker_of_before_reads_its_own_features_of_retrieved_candidates_alone(tmp_path: Path) -> None:
    torch.manual_seed(0)
    former = Ranker(SETTINGS, torch.randn(NUM_ITEMS + 1, 6), NUM_EVENT_TYPES, FORMER_FEATURES)
    checkpoint.save_ranker(former, tmp_path)
    config = json.loads((tmp_path / "ranker_config.json").read_text())
    assert config.pop("features") == list(FORMER_FEATURES)
    for key in ("favourites", "popular"):
        del config["settings"][key]
    (tmp_path / "ranker_config.json").write_text(json.dumps(config))
    stage = SecondStage(checkpoint.load_ranker(tmp_path), a_stage().statistics, a_stage().own)
    assert stage.ranker.features == FORMER_FEATURES
    assert stage.added(a_log(5), exclude_seen=False).shape == (5, 0)
    (items, scores), log = candidates(5), a_log(5)
    whole = stage.statistics.features(log, items, scores)
    assert np.array_equal(
        stage.lists(log, items, scores).features.numpy(), whole[..., : len(FORMER_FEATURES)]
    )


def test_without_item_vectors_an_item_is_its_features_and_followers() -> None:
    stage, (items, scores), log = (
        a_stage(settings=replace(SETTINGS, item_vectors=False)),
        candidates(5),
        a_log(5),
    )
    other = SecondStage(stage.ranker, stage.statistics, np.zeros_like(stage.own))
    assert np.array_equal(stage.score(log, items, scores), other.score(log, items, scores))
    assert np.isfinite(stage.score(log, items, scores)).all()
    with_vectors = a_stage()
    other = SecondStage(with_vectors.ranker, with_vectors.statistics, np.zeros_like(stage.own))
    assert not np.allclose(with_vectors.score(log, items, scores), other.score(log, items, scores))


def test_several_items_are_relevant_by_pencil() -> None:
    log = a_log(3)
    items = np.array([[4, 2, 7], [4, 2, 0], [1, 2, 3]], np.int32)
    relevant = np.array([[True, False, True], [False, True, False], [False, False, False]])
    retrieved = Retrieved(
        log, items, np.zeros((3, 3), np.float32), relevant, np.array([3, 1, 0]), np.arange(3)
    )
    scores = np.array([[0.5, 0.9, 0.1], [0.1, 0.2, -np.inf], [3, 2, 1]], np.float32)
    ideal = 1 + 1 / np.log2(3) + 1 / np.log2(4)
    expected = [(1 / np.log2(3) + 1 / np.log2(4)) / ideal, 1, 0]
    assert ndcg_of(scores, retrieved) == pytest.approx(expected)
    assert retrieved.is_hit.tolist() == [True, True, False]
    assert retrieved.is_active.tolist() == [True, True, False]
    twelve = replace(retrieved, num_relevant=np.array([12, 1, 0]))
    ten = (1 / np.log2(np.arange(2, 12))).sum()
    assert ndcg_of(scores, twelve)[0] == pytest.approx(expected[0] * ideal / ten), "at most ten fit a list"


def test_relevant_candidates_do_not_compete_with_each_other() -> None:
    scores = torch.tensor([[2.0, 1.0, 0.5, -torch.inf], [0.0, 1.0, 2.0, 3.0]])
    relevant = torch.tensor([[True, True, False, False], [False, True, False, False]])
    stage, (items, values) = a_stage(), candidates(2, 4)
    lists = stage.lists(a_log(2), items, values)
    first = np.mean([np.log(1 + np.exp(0.5 - 2)), np.log(1 + np.exp(0.5 - 1))])
    second = np.log(np.exp(np.arange(4)).sum()) - 1
    assert float(_loss(scores, relevant, lists, "listwise")) == pytest.approx((first + second) / 2)
    single = _loss(scores[1:], relevant[1:], lists, "listwise")
    assert torch.equal(single, torch.nn.functional.cross_entropy(scores[1:], torch.tensor([1])))


def test_a_list_of_relevant_candidates_alone_teaches_nothing() -> None:
    scores = torch.tensor([[2.0, 1.0, -torch.inf], [1.0, 3.0, 2.0]], requires_grad=True)
    relevant = torch.tensor([[True, True, False], [True, True, False]])
    stage, (items, values) = a_stage(), candidates(2, 3)
    loss = _loss(scores, relevant, stage.lists(a_log(2), items, values), "listwise")
    torch.autograd.backward(loss)
    assert scores.grad is not None
    assert scores.grad[0].tolist() == [0, 0, 0]
    assert torch.isfinite(scores.grad).all()
    assert scores.grad[1].abs().min() > 0


def test_a_step_has_every_relevant_candidate() -> None:
    stage, (items, values) = a_stage(), candidates(3, 11)
    lists = stage.lists(a_log(3), items, values)
    relevant = torch.zeros(3, 11, dtype=torch.bool)
    relevant[0, [3, 9]] = relevant[2, [10]] = True
    part, labels = _sampled(lists, Labels(relevant), torch.Generator().manual_seed(0))
    assert labels.disliked is None
    assert labels.relevant.tolist() == [[True] * 2 + [False] * 9, [False] * 11, [True] + [False] * 10]
    assert set(part.item[0, :2].tolist()) == set(items[0, [3, 9]].tolist())


def test_a_step_has_disliked_candidates_after_the_relevant_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "STEP_CANDIDATES", 3)
    stage, (items, values) = a_stage(), candidates(1, 11)
    relevant, disliked = torch.zeros(1, 11, dtype=torch.bool), torch.zeros(1, 11)
    relevant[0, 9], disliked[0, 4] = True, 0.5
    lists = stage.lists(a_log(1), items, values)
    part, labels = _sampled(lists, Labels(relevant, disliked), torch.Generator().manual_seed(0))
    assert part.item[0, :2].tolist() == items[0, [9, 4]].tolist()
    assert labels.relevant.tolist() == [[True, False, False]]
    assert labels.disliked is not None
    assert torch.equal(labels.disliked, torch.tensor([[0, 0.5, 0]]))


def test_candidates_disliked_from_the_request_on_are_negatives() -> None:
    log = replace(a_log(2), request_time=np.array([10, 20]))
    items = np.array([[4, 2, 7], [4, 2, 0]], np.int32)
    retrieved = Retrieved.of(
        log, items, np.zeros((2, 3), np.float32), np.array([2], np.int32), np.array([0]), np.array([8, 9])
    )
    user, item = np.array([8, 8, 8, 9, 9, 9]), np.array([4, 2, 0, 4, 2, 2], np.int32)
    time, weight = np.array([10, 15, 15, 19, 19, 25]), np.array([1, 1, 1, 1, 1, 2], np.float32)
    # user 8: 4 at the request's time, 2 was taken too; user 9: 4 only before the request, 2 also after it
    disliked = retrieved.with_dislikes(user, item, time, weight).disliked
    assert disliked is not None
    assert disliked.tolist() == [[1, 0, 0], [0, 2, 0]]


def test_loss_of_disliked_candidates_by_pencil() -> None:
    scores = torch.tensor([[2.0, 1.0, 2.0, -torch.inf], [0.0, 1.0, 2.0, 3.0]])
    relevant = torch.tensor([[True, True, False, False], [False, True, False, False]])
    disliked = torch.tensor([[0, 0, 3.0, 0], [0, 0, 0, 0]])
    expected = 3 * np.mean([np.log(2), np.log(1 + np.e)]) / 2
    assert float(training._dislike_loss(scores, relevant, disliked)) == pytest.approx(expected)
    assert float(training._dislike_loss(scores[1:], relevant[1:], disliked[1:])) == 0


def test_dislikes_are_features_of_their_own_and_no_takings() -> None:
    log = histories_from_lists([[1, 2, 2, 3]])
    types = np.array([0, 1, 1, 0], np.int16)
    log = replace(log, event_type=types, dislikes=np.array([0, 1], np.float32))
    content = np.array([[0, 0], [1, 0], [0, 1], [1, 0], [1, 0]], np.float32)
    statistics = ItemStatistics.of(log, 4, content, timed=False)
    assert statistics.counts_before(0).tolist() == [[0, 1, 0, 1, 0]]
    items, names = np.array([[1, 2]], np.int32), ("times_seen", "times_disliked", "content_of_disliked")
    found = statistics.features(log, items, np.zeros((1, 2), np.float32), names)
    assert found[0] == pytest.approx(np.array([[np.log(2), 0, 0], [0, np.log(3), 1]]), rel=1e-6)
    follows = statistics.followed(log, np.array([[3]], np.int32))[0, 0]
    assert follows.nonzero()[0].tolist() == [3], (
        "1 came before 3 with nothing but dislikes between; in its own place"
    )


def test_users_who_took_nothing_change_no_weight() -> None:
    settings, some = replace(SETTINGS, epochs=2), planted(100)
    idle = replace(some, relevant=np.zeros_like(some.relevant), num_relevant=np.zeros(100, np.int64))
    twice = np.arange(200) % 100
    both = replace(
        some.select(twice),
        relevant=np.concatenate([some.relevant, idle.relevant]),
        num_relevant=np.concatenate([some.num_relevant, idle.num_relevant]),
    )
    one, other = (fit_ranker(a_stage(loud=False, settings=settings), each, 4) for each in (some, both))
    assert [epoch.ndcg for epoch in one.history] == [epoch.ndcg for epoch in other.history]
    for here, there in zip(one.stage.ranker.parameters(), other.stage.ranker.parameters(), strict=True):
        assert torch.equal(here, there)


def planted(rows: int) -> Retrieved:
    """The target is the candidate that is the last item's neighbour in number; the retriever knows nothing."""
    log = a_log(rows, 3)
    last = log.item_index[log.ends - 1]
    target = (last % NUM_ITEMS + 1).astype(np.int32)
    items, scores = candidates(rows, 11, 5)
    missing = (items != target[:, None]).all(1)
    items[missing, np.random.default_rng(6).integers(0, 11, missing.sum())] = target[missing]
    return Retrieved.of(log, items, scores, target, *2 * (np.arange(rows, dtype=np.int64),))


@pytest.mark.parametrize("loss", [pytest.param("listwise", marks=pytest.mark.slow), "pointwise"])
def test_training_finds_what_the_retriever_does_not_know(loss: RankerLoss) -> None:
    settings = replace(SETTINGS, loss=loss, epochs=25, patience=25, learning_rate=0.01, dropout=0.0)
    stage, retrieved = a_stage(loud=False, settings=settings), planted(600)
    fitted = fit_ranker(stage, retrieved, 0)
    before, after = fitted.history[0].ndcg, fitted.history[fitted.best_epoch].ndcg
    assert after > before + 0.25
    judged = retrieved.select(fitted.held_out)
    scores = stage.score(judged.histories, judged.items, judged.scores)
    assert ndcg_of(scores, judged).mean() == pytest.approx(after), "the best epoch's weights are kept"
    assert len(judged) == 120


def test_the_same_seed_gives_the_same_weights() -> None:
    settings = replace(SETTINGS, epochs=2)
    twice = [fit_ranker(a_stage(loud=False, settings=settings), planted(100), 4) for _ in range(2)]
    for one, other in zip(*(each.stage.ranker.parameters() for each in twice), strict=True):
        assert torch.equal(one, other)


def test_users_are_held_out_whole_and_no_list_with_its_target_is_an_error() -> None:
    retrieved = planted(100)
    retrieved = replace(retrieved, user=np.arange(100, dtype=np.int64) // 4)
    held_out = fit_ranker(a_stage(loud=False), retrieved, 0).held_out
    assert (held_out.reshape(25, 4).all(1) == held_out.reshape(25, 4).any(1)).all()
    assert held_out.sum() == 20
    missed = replace(retrieved, relevant=np.zeros_like(retrieved.relevant))
    with pytest.raises(ValueError, match=r"received 0 lists of 100 with a relevant item among 11 candidates"):
        fit_ranker(a_stage(loud=False), missed, 0)


def test_a_retriever_that_nothing_improves_keeps_its_order() -> None:
    retrieved = planted(200)
    place = retrieved.relevant.argmax(1)
    items, relevant = retrieved.items.copy(), np.zeros_like(retrieved.relevant)
    row = np.arange(len(items))
    items[row, place], items[:, 0] = items[:, 0].copy(), items[row, place]  # always first
    relevant[:, 0] = True
    fitted = fit_ranker(a_stage(loud=False), replace(retrieved, items=items, relevant=relevant), 0)
    assert fitted.best_epoch == 0
    assert fitted.history[0].ndcg == 1


@pytest.mark.parametrize("exclude_seen", [True, False])
def test_two_stages_put_the_candidates_first_and_leave_the_rest(
    random_encoder: Callable[..., Encoder], exclude_seen: bool
) -> None:
    recommender, stage, log = AttentionRecommender(random_encoder(positions="absolute")), a_stage(), a_log(7)
    both = TwoStage(recommender, stage, exclude_seen=exclude_seen)
    one, _ = recommender.recommend(log, NUM_ITEMS, exclude_seen)
    two, _ = both.recommend(log, NUM_ITEMS, exclude_seen)
    items, scores = both.candidates(log)
    ranked = stage.score(log, items, scores)
    for row in range(7):
        expected = items[row][np.argsort(-ranked[row], kind="stable")]
        expected = expected[items[row] > 0]
        assert two[row, : len(expected)].tolist() == expected.tolist()
        rest = one[row][~np.isin(one[row], expected)]
        assert two[row, len(expected) : len(expected) + len(rest)].tolist() == rest.tolist()


def spearman(one: NDArray[np.floating], other: NDArray[np.floating]) -> float:
    from scipy.stats import spearmanr

    return float(spearmanr(one, other).statistic)


def test_leaving_out_by_hand_is_what_exact_says(random_encoder: Callable[..., Encoder]) -> None:
    """For the last of a few interactions nothing keeps a place: the history without it is the shorter history."""
    encoder = random_encoder(positions="absolute")
    recommender, stage, log = AttentionRecommender(encoder), a_stage(), a_log(6, longest=LENGTH)
    log = log.select(log.lengths > 1)
    items, scores = recommender.recommend(log, 11, False)
    best = items[:, :2]
    found = two_stage_contributions(encoder, stage, log, best, (items, scores), "exact")
    shorter = replace(log, ends=log.ends - 1)
    left = recommender.score_items(shorter)
    for row, length in enumerate(log.lengths.tolist()):
        again = np.take_along_axis(left[row], items[row].astype(np.int64), 0)
        order = np.argsort(-again, kind="stable")
        here = slice(row, row + 1)
        _, ordered = top_k(again[None, :], 11)
        # what the latest were followed by keeps its place, too: the second last counts as the second last
        lists = stage.lists(shorter.select(here), items[row][order][None], ordered)
        moved = torch.roll(lists.followed, 1, 2)
        moved[..., 0] = 0
        past = {
            name: torch.nn.functional.pad(getattr(lists, name), (1, 0))[:, : SETTINGS.max_length]
            for name in ("past_item", "past_type", "past_gap", "past_there")
        }
        past["past_values"] = torch.zeros(*past["past_item"].shape, 0, dtype=torch.int32)
        with torch.no_grad():
            without = stage.ranker(replace(lists, followed=moved, **past))[0].numpy()
        whole = stage.score(log.select(here), items[here], scores[here])[0]
        for place in range(2):
            after = without[items[row][order] == best[row, place]][0]
            assert found[row, place, length - 1] == pytest.approx(whole[place] - after, abs=1e-3)


def test_the_only_interaction_is_worth_the_difference_to_no_history(
    random_encoder: Callable[..., Encoder],
) -> None:
    """Without it retrieval scores every candidate 0, so that they stay in their order."""
    recommender, stage, log = AttentionRecommender(random_encoder()), a_stage(), a_log(3, longest=2)
    assert log.lengths.tolist() == [1, 1, 1]
    items, scores = recommender.recommend(log, 11, False)
    found = two_stage_contributions(recommender.encoder, stage, log, items, (items, scores), "exact")
    without = stage.score(replace(log, ends=log.starts), items, np.zeros_like(scores))
    assert found[..., 0] == pytest.approx(stage.score(log, items, scores) - without, abs=1e-3)


def test_slopes_go_with_leaving_out(random_encoder: Callable[..., Encoder]) -> None:
    encoder, stage, log = random_encoder(positions="absolute"), a_stage(), a_log(40, longest=LENGTH)
    log = log.select(log.lengths > 3)
    pool = AttentionRecommender(encoder).recommend(log, 11, False)
    exact, fast = (
        two_stage_contributions(encoder, stage, log, pool[0][:, :1], pool, method)
        for method in ("exact", "balanced")
    )
    found = [spearman(exact[row, 0, :n], fast[row, 0, :n]) for row, n in enumerate(log.lengths.tolist())]
    assert np.mean(found) > 0.5
