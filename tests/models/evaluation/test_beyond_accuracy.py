import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

from models.evaluation.beyond_accuracy import (
    Catalogue,
    calibration,
    catalogue_metrics,
    diversity,
    full_lists,
    list_metrics,
    novelty,
    popularity_share,
    repeats,
    serendipity,
)
from models.evaluation.bootstrap import draws
from models.histories import Histories, histories_from_lists

NAN = math.nan


def of(rows: Any) -> np.ndarray:
    return np.array(rows, np.int32)


def categories(*rows: list[int]) -> csr_array:
    """Item 1, 2, … by the categories that it has; row 0 is empty."""
    table = np.zeros((len(rows) + 1, 1 + max(each for row in rows for each in row)), np.int8)
    for item, row in enumerate(rows, start=1):
        table[item, row] = 1
    return csr_array(table)


def random_case(
    rows: int = 23, num_items: int = 31, k: int = 7
) -> tuple[np.ndarray, Histories, np.ndarray, Catalogue]:
    """Lists of different lengths, histories some of which are prefixes of others, and a full catalogue."""
    random = np.random.default_rng(rows)
    lists = random.permuted(np.tile(np.arange(1, num_items + 1), (rows, 1)), axis=1)[:, :k]
    lists[np.arange(k) >= random.integers(0, k + 1, rows)[:, None]] = 0
    flat = random.integers(0, num_items + 1, 200)
    starts = random.choice([0, 50, 90, 150], rows)
    ends = starts + random.integers(0, 40, rows)
    histories = Histories(flat.astype(np.int32), np.arange(200), np.zeros(200, np.int16), starts, ends)
    table = random.random((num_items + 1, 5)) < 0.3
    content = random.normal(size=(num_items + 1, 4)).astype(np.float32)
    table[[0, 3]] = content[[0, 3]] = 0
    counts = random.integers(0, 50, num_items + 1)
    catalogue = Catalogue(num_items, counts, csr_array(table.astype(np.int8)), content)
    return (
        lists.astype(np.int32),
        histories,
        random.integers(0, num_items + 1, rows, dtype=np.int32),
        catalogue,
    )


def test_novelty_by_pencil():
    catalogue = Catalogue(4, np.array([7, 8, 4, 4, 0]))  # what item 0 counts is no event of an item
    got = novelty(of([[1, 2], [1, 0], [4, 4], [0, 0]]), catalogue)
    assert got == pytest.approx(
        [(1 + 2) / 2, 1, 4, NAN], nan_ok=True
    )  # shares 1/2, 1/4, 1/4; none counts as one of 16


def test_popularity_share_by_pencil():
    counts = np.array([0, *range(10, 0, -1), 10])  # items 1 and 11 have ten events each
    catalogue = Catalogue(11, counts)  # ceil(1.1) = 2 items are the head
    assert popularity_share(of([[1, 11, 2, 3], [2, 3, 0, 0], [1, 0, 0, 0]]), catalogue).tolist() == [
        0.5,
        0,
        1,
    ]
    assert Catalogue(10, np.array([0] + [5] * 10)).popular(1).nonzero()[0].tolist() == [
        1
    ]  # the lower item first


def test_serendipity_by_pencil():
    catalogue = Catalogue(4, np.array([0, 9, 8, 1, 1]))
    lists, target = of([[3, 1], [1, 3], [3, 4], [3, 0]]), np.array([3, 1, 2, 0], np.int32)
    # a hit beyond the two most popular; a hit that popularity has too; no hit; unknown target
    assert serendipity(lists, target, np.arange(len(target)), catalogue).tolist() == [1, 0, 0, 0]


def test_full_lists_and_repeats_by_pencil():
    lists = of([[1, 2, 3], [4, 5, 0], [0, 0, 0]])
    assert full_lists(lists).tolist() == [1, 0, 0]
    histories = histories_from_lists([[3, 3, 9, 1], [0, 6], [1]])
    assert repeats(lists, histories, 9) == pytest.approx([2 / 3, 0, NAN], nan_ok=True)


def test_repeats_of_prefixes_of_one_history():
    flat = histories_from_lists([[5, 6, 7, 5]])
    prefixes = Histories(
        flat.item_index, flat.time, flat.event_type, np.zeros(4, np.int64), np.array([2, 0, 3, 1])
    )
    assert repeats(of([[5, 6, 7]] * 4), prefixes, 7) == pytest.approx([2 / 3, 0, 1, 1 / 3])


def test_diversity_by_pencil():
    content = np.array([[0, 0], [2, 0], [0, 3], [5, 0], [0, 0], [-1, 0]], np.float32)
    catalogue = Catalogue(5, np.ones(6, np.int64), None, content)
    lists = of([[1, 2, 3], [1, 3, 0], [1, 4, 0], [1, 5, 4], [0, 0, 0]])
    # cosines 0, 1, 0; the same direction; one vector alone; opposite (4 has none); nothing
    assert diversity(lists, catalogue) == pytest.approx([2 / 3, 0, NAN, 2, NAN], nan_ok=True, abs=1e-6)


def test_diversity_falls_back_to_categories():
    catalogue = Catalogue(4, np.ones(5, np.int64), categories([0, 1], [1], [2], []))
    got = diversity(of([[1, 2], [1, 3], [1, 4]]), catalogue)
    assert got == pytest.approx([1 - 1 / math.sqrt(2), 1, NAN], nan_ok=True)


def test_calibration_by_pencil():
    catalogue = Catalogue(5, np.ones(6, np.int64), categories([0], [1], [0, 1], [2], []))
    histories = histories_from_lists([[1, 1, 2, 3], [1, 2], [1], [5], [1]])
    lists = of([[3, 1], [1, 2], [2, 0], [1, 2], [5, 0]])
    got = calibration(lists, histories, catalogue, smoothing=0.01)
    p, q = np.array([2.5, 1.5]) / 4, np.array([1.5, 0.5]) / 2
    expected = (p * np.log(p / (0.99 * q + 0.01 * p))).sum()
    # as above; as varied as the history; nothing shared: log(1 / .01); no category in the history, in the list
    assert got == pytest.approx([expected, 0, math.log(100), NAN, NAN], nan_ok=True, abs=1e-12)


def test_calibration_equals_scipys_relative_entropy():
    from scipy.stats import entropy

    lists, histories, _, catalogue = random_case()
    shares = (
        catalogue.categories.toarray() / np.maximum(1, catalogue.categories.toarray().sum(axis=1))[:, None]
    )
    got = calibration(lists, histories, catalogue)
    for row, value in enumerate(got):
        past = shares[histories.item_index[histories.starts[row] : histories.ends[row]]].sum(axis=0)
        listed = shares[lists[row]].sum(axis=0)
        if not past.sum() or not listed.sum():
            assert math.isnan(value)
            continue
        p, q = past / past.sum(), listed / listed.sum()
        assert value == pytest.approx(entropy(p, 0.99 * q + 0.01 * p), abs=1e-9)
    assert np.isfinite(got).sum() > 10


@pytest.mark.parametrize("by", ["content", "categories"])
def test_diversity_equals_scikit_learns_cosines(by: str):
    from sklearn.metrics.pairwise import cosine_similarity

    lists, _, _, full = random_case()
    catalogue = full if by == "content" else Catalogue(full.num_items, full.counts, full.categories)
    vectors: Any = full.content if by == "content" else full.categories.toarray()
    got = diversity(lists, catalogue)
    for row, value in zip(lists, got, strict=True):
        own = np.array([vectors[item] for item in row if item and vectors[item].any()])
        if len(own) < 2:
            assert math.isnan(value)
            continue
        apart = 1 - cosine_similarity(own)[np.triu_indices(len(own), 1)]
        assert value == pytest.approx(apart.mean(), abs=1e-5)


def test_all_of_them_for_the_first_places_of_longer_lists():
    lists, histories, target, catalogue = random_case()
    got = list_metrics(lists, histories, target, catalogue, 4)
    cut = lists[:, :4]
    expected = {
        "novelty@4": novelty(cut, catalogue),
        "popularity_share@4": popularity_share(cut, catalogue),
        "serendipity@4": serendipity(cut, target, np.arange(len(target)), catalogue),
        "full_lists@4": full_lists(cut),
        "repeats@4": repeats(cut, histories, catalogue.num_items),
        "diversity@4": diversity(cut, catalogue),
        "calibration@4": calibration(cut, histories, catalogue),
    }
    assert set(got) == set(expected)
    for name, value in expected.items():
        assert got[name] == pytest.approx(value, nan_ok=True), name
    for row in range(len(lists)):
        past = set(histories.item_index[histories.starts[row] : histories.ends[row]].tolist())
        own = [int(item) in past for item in cut[row] if item]
        assert got["repeats@4"][row] == pytest.approx(np.mean(own) if own else NAN, nan_ok=True)


def test_chunks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch):
    from models.topk import row_chunks

    case = random_case()
    whole = list_metrics(*case, 7)
    monkeypatch.setattr(
        "models.evaluation.beyond_accuracy.row_chunks",
        lambda rows, width: row_chunks(rows, width, cells=4 * 32),
    )
    monkeypatch.setattr("models.topk._CHUNK_EVENTS", 30)
    for name, value in list_metrics(*case, 7).items():
        assert value == pytest.approx(whole[name], nan_ok=True), name


def test_what_is_not_known_of_items_leaves_its_metrics_out():
    lists, histories, target, full = random_case()
    names = {
        each.partition("@")[0]
        for each in list_metrics(lists, histories, target, Catalogue(31, full.counts), 2)
    }
    assert names == {"novelty", "popularity_share", "serendipity", "full_lists", "repeats"}
    with pytest.raises(ValueError, match=r"k=8, expected 1\.\.7"):
        list_metrics(lists, histories, target, full, 8)


def test_no_targets():
    lists, histories, target, catalogue = random_case()
    found = list_metrics(lists[:0], histories.select(slice(0)), target[:0], catalogue, 3)
    assert len(found) == 7
    assert all(value.shape == (0,) for value in found.values())


def test_coverage_and_gini_by_pencil():
    lists = of([[1, 2, 9], [1, 0, 9], [1, 3, 9]])
    values, intervals = catalogue_metrics(lists, np.array([0, 0, 1]), 2, 10, 2, 100, 0)
    # of the first two places: items 1, 2, 3 in 3, 1, 1 lists; ascending (2 i - 11) x: 5 * 1 + 7 * 1 + 9 * 3
    assert values == pytest.approx({"coverage@2": 0.3, "gini@2": (5 + 7 + 27) / (10 * 5)})
    assert list(intervals) == ["coverage@2", "gini@2"]


def test_gini_at_its_ends():
    everything = np.arange(1, 9, dtype=np.int32).reshape(4, 2)
    assert catalogue_metrics(everything, np.arange(4), 4, 8, 2, 5, 0)[0] == {"coverage@2": 1.0, "gini@2": 0.0}
    one = catalogue_metrics(of([[5], [5]]), np.arange(2), 2, 8, 1, 5, 0)
    assert one[0] == pytest.approx({"coverage@1": 1 / 8, "gini@1": 7 / 8})
    assert one[1]["gini@1"] == pytest.approx([7 / 8, 7 / 8])
    none = catalogue_metrics(of([[0], [0]]), np.arange(2), 2, 8, 1, 5, 0)
    assert none[0]["coverage@1"] == 0
    assert math.isnan(none[0]["gini@1"])


@settings(max_examples=30)
@given(st.lists(st.lists(st.integers(0, 6), min_size=3, max_size=3), min_size=1, max_size=6))
def test_gini_equals_the_mean_absolute_difference(rows: list[list[int]]):
    shown = np.bincount(np.ravel(rows), minlength=7)[1:].astype(float)
    if shown.sum():
        apart = np.abs(shown[:, None] - shown[None]).mean() / (2 * shown.mean())
        values, _ = catalogue_metrics(of(rows), np.zeros(len(rows), int), 1, 6, 3, 1, 0)
        assert values["gini@3"] == pytest.approx(apart)
        assert values["coverage@3"] == np.count_nonzero(shown) / 6


@pytest.mark.parametrize("dense", [True, False])
def test_the_catalogue_is_resampled_by_the_draws_of_the_bootstrap(
    dense: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("models.evaluation.beyond_accuracy._DENSE_CELLS", 10**9 if dense else 0)
    monkeypatch.setattr("models.evaluation.beyond_accuracy._COUNT_CELLS", 100)
    random = np.random.default_rng(1)
    lists, user = of(random.integers(0, 40, (60, 3)) ** 2 // 39), random.integers(0, 20, 60)
    values, intervals = catalogue_metrics(lists, user, 20, 60, 3, 80, 6)
    shares = []
    for _, times in draws(20, 80, 6):
        for counts in times:
            items = np.unique(lists[counts[user] > 0])
            shares.append(np.count_nonzero(items) / 60)
    expected = values["coverage@3"] + np.quantile(shares, [0.025, 0.975]) - np.mean(shares)
    assert intervals["coverage@3"] == pytest.approx(np.clip(expected, 0, 1))
    assert np.mean(shares) < values["coverage@3"]  # 63 % of the users show fewer items
    low, high = intervals["coverage@3"]
    assert low < values["coverage@3"] < high
