"""The contract that every recommender answers."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from models.baselines.als import ALS
from models.baselines.base import Baseline, FittedOn, State
from models.baselines.co_visitation import CoVisitation
from models.baselines.ease import EASE
from models.baselines.item_knn import ItemKNN
from models.baselines.own_items import OwnFrequent, OwnRecent
from models.baselines.popularity import Popularity, RecentPopularity
from models.baselines.tifu_knn import TIFUKNN
from models.encoder.encoder import AttentionRecommender, Encoder
from models.histories import Histories, histories_from_lists
from models.recommender import Recommender
from models.retrieval.build import build_index
from models.settings.encoder import EncoderSettings
from tests.models.retrieval.index_recommender import IndexRecommender

NUM_ITEMS, MAX_LENGTH = 113, 7


def log() -> Histories:
    random = np.random.default_rng(0)
    return histories_from_lists(
        [random.integers(1, NUM_ITEMS + 1, length).tolist() for length in random.integers(2, 30, 41)]
    )


def attention() -> AttentionRecommender:
    torch.manual_seed(0)
    return AttentionRecommender(Encoder(EncoderSettings(dim=10, num_heads=2), NUM_ITEMS, 0, MAX_LENGTH))


def recurrent() -> AttentionRecommender:
    torch.manual_seed(0)
    settings = EncoderSettings(block="gru", dim=10, num_heads=2)
    return AttentionRecommender(Encoder(settings, NUM_ITEMS, 0, MAX_LENGTH))


def target_attention() -> AttentionRecommender:
    torch.manual_seed(0)
    settings = EncoderSettings(readout="target", dim=10, num_heads=2)
    return AttentionRecommender(Encoder(settings, NUM_ITEMS, 0, MAX_LENGTH))


def indexed() -> IndexRecommender:
    encoder = attention()
    vectors = encoder.encoder.item_vectors().detach().numpy()[1:]
    return IndexRecommender(encoder, build_index(vectors, np.arange(1, NUM_ITEMS + 1, dtype=np.int32)))


def popularity() -> Popularity:
    return Popularity.fit(log(), NUM_ITEMS)


def recent_popularity() -> RecentPopularity:
    flat = log()
    times = np.arange(len(flat.item_index), dtype=np.int64) * 3_600_000_000
    return RecentPopularity.fit(replace(flat, time=times), NUM_ITEMS, days=7)


def co_visitation() -> CoVisitation:
    return CoVisitation.fit(log(), NUM_ITEMS)


def item_knn() -> ItemKNN:
    return ItemKNN.fit(log(), NUM_ITEMS, shrinkage=1.0, max_neighbours=7)


def ease() -> EASE:
    return EASE.fit(log(), NUM_ITEMS, l2=10.0)


def als() -> ALS:
    return ALS.fit(log(), NUM_ITEMS, factors=5, regularization=0.1, alpha=5.0)


def own_frequent() -> OwnFrequent:
    return OwnFrequent.fit(log(), NUM_ITEMS)


def own_recent() -> OwnRecent:
    return OwnRecent.fit(log(), NUM_ITEMS)


def personal_frequency() -> TIFUKNN:
    return TIFUKNN.fit(log(), NUM_ITEMS, neighbours=7)


BASELINES = (
    *(popularity, recent_popularity, co_visitation, item_knn, ease, als),
    *(own_frequent, own_recent, personal_frequency),
)


@pytest.fixture(
    params=[*BASELINES, attention, recurrent, target_attention, indexed], ids=lambda make: make.__name__
)
def recommender(request: pytest.FixtureRequest) -> Recommender:
    make: Callable[[], Recommender] = request.param
    return make()


@pytest.fixture(params=BASELINES, ids=lambda make: make.__name__)
def baseline(request: pytest.FixtureRequest) -> Baseline:
    make: Callable[[], Baseline] = request.param
    return make()


HISTORIES = histories_from_lists(
    [
        [3, 5, 3],
        [],
        [1],
        list(range(1, 40)),
        [7, 7],
        list(range(NUM_ITEMS, 0, -1)),
        list(range(1, NUM_ITEMS - 3)),
    ]
)


def test_scores_cover_the_catalogue_and_padding_is_no_item(recommender: Recommender):
    assert recommender.num_items == NUM_ITEMS
    scores = recommender.score_items(HISTORIES)
    assert scores.shape == (len(HISTORIES), NUM_ITEMS + 1)
    assert scores.dtype == np.float32
    assert np.isneginf(scores[:, 0]).all()
    assert np.isfinite(scores[:, 1:]).all()


@pytest.mark.parametrize("exclude_seen", [True, False])
def test_best_first_equal_ones_by_item_as_the_scores_say(recommender: Recommender, exclude_seen: bool):
    items, best = recommender.recommend(HISTORIES, 10, exclude_seen)
    assert items.dtype == np.int32
    assert best.dtype == np.float32
    scores = recommender.score_items(HISTORIES)
    for row in range(len(HISTORIES)):
        seen = (
            set(HISTORIES.item_index[HISTORIES.starts[row] : HISTORIES.ends[row]].tolist())
            if exclude_seen
            else set()
        )
        rest = [item for item in range(1, NUM_ITEMS + 1) if item not in seen]
        expected = sorted(rest, key=lambda item: -scores[row, item])[:10]
        expected += [0] * (10 - len(expected))
        assert items[row].tolist() == expected
        assert best[row] == pytest.approx(scores[row, expected], rel=1e-5)


def test_nothing_seen_is_recommended_and_the_rest_is_item_zero(recommender: Recommender):
    items, scores = recommender.recommend(HISTORIES, 10)
    assert (items[5] == 0).all()  # has seen everything
    assert (items[6] > 0).sum() == 4  # all but four
    assert (np.isneginf(scores) == (items == 0)).all()
    for row in range(len(HISTORIES)):
        seen = HISTORIES.item_index[HISTORIES.starts[row] : HISTORIES.ends[row]]
        assert not np.isin(items[row], seen).any()


def test_a_list_longer_than_the_catalogue(recommender: Recommender):
    items, scores = recommender.recommend(HISTORIES.select(slice(0, 2)), NUM_ITEMS + 3)
    assert (items > 0).sum(axis=1).tolist() == [NUM_ITEMS - 2, NUM_ITEMS]
    assert np.isneginf(scores[items == 0]).all()


def test_a_batch_equals_its_rows_alone_in_any_order(recommender: Recommender):
    together = recommender.recommend(HISTORIES, 10)
    order = np.array([4, 0, 6, 2, 5, 1, 3])
    shuffled = recommender.recommend(HISTORIES.select(order), 10)
    for row in range(len(HISTORIES)):
        alone = recommender.recommend(HISTORIES.select(slice(row, row + 1)), 10)
        for batch, other, single in zip(together, shuffled, alone, strict=True):
            assert other[order.tolist().index(row)] == pytest.approx(batch[row], rel=1e-5)
            assert single[0] == pytest.approx(batch[row], rel=1e-5)


def test_no_rows(recommender: Recommender):
    items, scores = recommender.recommend(HISTORIES.select(slice(0, 0)), 3)
    assert items.shape == scores.shape == (0, 3)


def test_the_same_call_gives_the_same_answer(recommender: Recommender):
    for first, second in zip(
        recommender.recommend(HISTORIES, 10), recommender.recommend(HISTORIES, 10), strict=True
    ):
        assert (first == second).all()


def test_events_after_a_row_and_of_other_rows_change_nothing(recommender: Recommender):
    """Rows that end in the middle of longer ones, beside others, score as they do alone."""
    whole = log()
    prefixes = replace(whole, ends=whole.starts + whole.lengths // 2)
    later = replace(whole, item_index=whole.item_index % NUM_ITEMS + 1, time=whole.time + 999)
    row, position = prefixes.gather()
    later.item_index[position], later.time[position] = whole.item_index[position], whole.time[position]
    expected = recommender.score_items(prefixes.compact())
    assert recommender.score_items(prefixes) == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert len(row) < len(whole.item_index)
    changed = replace(later, ends=prefixes.ends)
    assert recommender.score_items(changed) == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_saved_and_loaded_it_answers_the_same(baseline: Baseline, tmp_path: Path):
    baseline.save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"recommender.safetensors", "recommender.json"}
    loaded = type(baseline).load(tmp_path)
    assert (loaded.num_items, loaded.fitted_on) == (baseline.num_items, baseline.fitted_on)
    assert (loaded.score_items(HISTORIES) == baseline.score_items(HISTORIES)).all()
    for first, second in zip(loaded.recommend(HISTORIES, 10), baseline.recommend(HISTORIES, 10), strict=True):
        assert (first == second).all()


def test_a_state_holds_arrays_and_numbers_only(baseline: Baseline):
    state = baseline.state()
    assert all(isinstance(array, np.ndarray) and array.dtype != object for array in state.arrays.values())
    assert all(type(number) in (int, float) for number in state.numbers.values())
    again = type(baseline).from_state(state)
    assert (again.score_items(HISTORIES) == baseline.score_items(HISTORIES)).all()


def test_a_baseline_fitted_on_nothing_is_saved_too(baseline: Baseline, tmp_path: Path):
    if isinstance(baseline, RecentPopularity):
        pytest.skip("refuses to be fitted on nothing")
    empty: Baseline = type(baseline).fit(histories_from_lists([]), 3)  # type: ignore[attr-defined]
    empty.save(tmp_path)
    loaded = type(baseline).load(tmp_path)
    assert loaded.fitted_on == FittedOn(0, None)
    assert (loaded.score_items(histories_from_lists([[1], []]))[:, 1:] >= 0).all()


def test_files_of_another_class_or_damaged_ones_are_refused(tmp_path: Path):
    ease().save(tmp_path)
    with pytest.raises(ValueError, match="received a saved EASE, expected ALS"):
        ALS.load(tmp_path)
    (tmp_path / "recommender.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="not a saved EASE: SafetensorError"):
        EASE.load(tmp_path)
    ease().save(tmp_path)
    facts = (tmp_path / "recommender.json").read_text()
    (tmp_path / "recommender.json").write_text(facts.replace('"numbers"', '"figures"'))
    with pytest.raises(ValueError, match="not a saved EASE: KeyError"):
        EASE.load(tmp_path)
    with pytest.raises(KeyError):
        EASE.from_state(State({}, {}, FittedOn(0, None)))
