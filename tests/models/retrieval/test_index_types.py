"""HNSW, IVF, IVF-PQ and SQ against exact search, on vectors with planted clusters."""

from pathlib import Path

import numpy as np
import pytest

from models.histories import histories_from_lists
from models.retrieval import index as module
from models.retrieval import tuning
from models.retrieval.build import build_index, extend_index
from models.retrieval.index import ItemIndex
from models.retrieval.tuning import candidates, mean_recall
from models.settings.index import ApproximateType, IndexSettings
from models.topk import recommend_from_scores

NUM_ITEMS, DIM, NUM_CLUSTERS, NUM_QUERIES = 6_007, 16, 30, 120
TYPES = ("hnsw", "ivf", "ivf_pq", "sq")


def clustered(size: int, seed: int) -> np.ndarray:
    """About 200 vectors around each of 30 directions: the 100 nearest are of the query's own."""
    centres = np.random.default_rng(0).normal(size=(NUM_CLUSTERS, DIM))
    random = np.random.default_rng(seed)
    noise = 0.15 * random.normal(size=(size, DIM))
    return (centres[random.integers(0, NUM_CLUSTERS, size)] + noise).astype(np.float32)


VECTORS, QUERIES = clustered(NUM_ITEMS, 1), clustered(NUM_QUERIES, 2)
ITEMS = np.arange(1, NUM_ITEMS + 1, dtype=np.int32)


@pytest.fixture(scope="module", params=TYPES)
def index(request: pytest.FixtureRequest) -> ItemIndex:
    return build_index(VECTORS, ITEMS, IndexSettings(request.param, 0.95), QUERIES)


@pytest.fixture(scope="module")
def exact() -> ItemIndex:
    return build_index(VECTORS, ITEMS)


def test_the_recall_is_reached_on_queries_that_did_not_choose(index: ItemIndex, exact: ItemIndex):
    held_out = QUERIES[1::2]
    recall = mean_recall(exact.search(held_out, 100)[0], index.search(held_out, 100)[0])
    assert index.facts.recall["recall@100"] == recall >= 0.95
    assert index.facts.queries == 60
    assert 0 < index.facts.scanned_share < 1
    assert index.facts.num_built == NUM_ITEMS


def test_scores_are_exact_inner_products(index: ItemIndex, exact: ItemIndex):
    (items, scores), (exact_items, exact_scores) = index.search(QUERIES, 10), exact.search(QUERIES, 10)
    same = (items == exact_items).all(axis=1)
    assert same.mean() > 0.5
    assert (scores[same] == exact_scores[same]).all()
    assert scores == pytest.approx(np.take_along_axis(index.score_items(QUERIES), items, 1), rel=1e-5)


def test_a_row_s_answer_does_not_depend_on_the_others(index: ItemIndex):
    seen = histories_from_lists([list(range(1, 5 * row)) for row in range(NUM_QUERIES)])
    together = index.search(QUERIES, 20, seen)
    for rows in (slice(0, 1), slice(70, 71), slice(30, 90)):
        alone = index.search(QUERIES[rows], 20, seen.select(rows))
        assert (alone[0] == together[0][rows]).all()
        assert (alone[1] == together[1][rows]).all()


def test_seen_and_forbidden_items_are_replaced(index: ItemIndex, exact: ItemIndex):
    best, _ = exact.search(QUERIES, 400)
    seen = histories_from_lists([best[row, : 3 * row].tolist() for row in range(NUM_QUERIES)])
    items, _ = index.search(QUERIES, 10, seen)
    expected, _ = exact.search(QUERIES, 10, seen)
    assert (items > 0).all()
    assert not any(np.isin(items[row], best[row, : 3 * row]).any() for row in range(NUM_QUERIES))
    assert mean_recall(expected, items) > 0.8
    allowed = np.arange(NUM_ITEMS + 1) % 2 == 0
    scores = exact.score_items(QUERIES)
    scores[:, ~allowed] = -np.inf
    assert (index.search(QUERIES, 10, seen, allowed)[0] == recommend_from_scores(scores, seen, 10)[0]).all()


def test_masks_that_leave_much_are_searched_in_the_index(index: ItemIndex, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "_EXACT_UP_TO", 100)
    allowed = np.arange(NUM_ITEMS + 1) % 2 == 0
    found = index.search(QUERIES, 10, allowed=allowed)[0]
    assert (found % 2 == 0).all()
    assert (found > 0).all()
    expected = index.search_exactly(QUERIES, 100)[0]
    best = [[item for item in row if allowed[item]][:10] for row in expected.tolist()]
    assert np.mean([len(set(one) & set(other)) / 10 for one, other in zip(best, found, strict=True)]) > 0.9


def test_save_and_load_change_nothing_and_map_the_files(index: ItemIndex, tmp_path: Path):
    index.save(tmp_path)
    again = ItemIndex.load(tmp_path)
    assert again.facts == index.facts
    for one, other in zip(index.search(QUERIES, 10), again.search(QUERIES, 10), strict=True):
        assert (one == other).all()
    maps = Path("/proc/self/maps")
    if maps.exists():
        assert str(tmp_path / "items.faiss") in maps.read_text()


def test_building_again_gives_the_same_bytes(index: ItemIndex, tmp_path: Path):
    settings = IndexSettings(index.facts.type, 0.95)
    for name, each in (("one", index), ("other", build_index(VECTORS, ITEMS, settings, QUERIES))):
        (tmp_path / name).mkdir()
        each.save(tmp_path / name)
    for path in sorted((tmp_path / "one").iterdir()):
        assert path.read_bytes() == (tmp_path / "other" / path.name).read_bytes(), path.name


def test_few_items_are_added_and_many_are_built_anew(index: ItemIndex, tmp_path: Path):
    index.save(tmp_path)
    mapped = ItemIndex.load(tmp_path)
    few = VECTORS[np.linalg.norm(VECTORS, axis=1).argsort()[-7:]]
    grown, is_rebuilt = extend_index(mapped, few, ITEMS[-1] + 1 + np.arange(7, dtype=np.int32))
    assert not is_rebuilt
    assert grown.facts.num_built == NUM_ITEMS
    found, _ = grown.search(few, 20)
    exact = build_index(grown.vectors, grown.item_index)
    assert (found > NUM_ITEMS).sum() > 7
    assert mean_recall(exact.search(few, 20)[0], found) > 0.9
    many = (1.5 * clustered(3_000, 4)).astype(np.float32)
    further = ITEMS[-1] + 1 + np.arange(3_000, dtype=np.int32)
    grown, is_rebuilt = extend_index(mapped, many, further, QUERIES)
    assert is_rebuilt
    assert grown.facts.type == index.facts.type
    assert grown.recall(QUERIES, 100) > 0.9
    assert grown.facts.num_built == NUM_ITEMS + 3_000
    assert extend_index(mapped, many, further)[0].facts.type == "exact"


def test_auto_is_exact_for_few_items_and_where_the_rest_is_more_work(monkeypatch: pytest.MonkeyPatch):
    assert build_index(VECTORS, ITEMS, queries=QUERIES).facts.type == "exact"
    monkeypatch.setattr(module, "_EXACT_UP_TO", 1_000)
    assert build_index(VECTORS, ITEMS).facts.type == "exact"
    assert build_index(VECTORS, ITEMS, queries=QUERIES[:1]).facts.type == "exact"
    without_structure = np.random.default_rng(0).normal(size=(2_003, DIM)).astype(np.float32)
    built = build_index(without_structure, ITEMS[:2_003], queries=without_structure[:50])
    assert built.facts.type == "exact"
    assert built.facts.recall == {"recall@10": 1.0, "recall@100": 1.0}


def test_auto_takes_the_first_type_that_reaches_the_recall(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "_EXACT_UP_TO", 1_000)
    monkeypatch.setitem(tuning.MOST_SCANNED, "ivf", 0.4)
    built = build_index(VECTORS, ITEMS, IndexSettings(target_recall=0.95), QUERIES)
    assert built.facts.type == "ivf"
    small = IndexSettings(target_recall=0.9, max_bytes=NUM_ITEMS * DIM)
    monkeypatch.setitem(tuning.MOST_SCANNED, "sq", 0.9)
    assert build_index(VECTORS, ITEMS, small, QUERIES).facts.type == "sq"


def test_types_are_tried_by_the_bytes_that_they_take():
    assert candidates(IndexSettings(), 1_000, 64) == ("ivf", "hnsw")
    assert candidates(IndexSettings(max_bytes=256_000), 1_000, 64) == ("ivf", "hnsw")
    assert candidates(IndexSettings(max_bytes=255_999), 1_000, 64) == ("sq", "ivf_pq")
    assert candidates(IndexSettings(max_bytes=63_999), 1_000, 64) == ("ivf_pq",)
    assert candidates(IndexSettings("hnsw", max_bytes=1), 1_000, 64) == ("hnsw",)


def test_a_type_below_the_recall_is_refused_with_what_was_measured():
    noise = np.random.default_rng(0).normal(size=(5_003, 64)).astype(np.float32)
    with pytest.raises(
        ValueError, match=r"'ivf_pq' has recall@100 0\.\d{4} on 20 user vectors, expected at least"
    ):
        build_index(noise, ITEMS[:5_003], IndexSettings("ivf_pq", 1.0), noise[:40] + 1)
    small: tuple[tuple[ApproximateType, int, int], ...] = (
        ("ivf", 100, 256),
        ("hnsw", 256, 256),
        ("sq", 400, 512),
    )
    for kind, size, least in small:
        with pytest.raises(ValueError, match=f"{kind!r} for {size} items, expected more than {least}"):
            build_index(VECTORS[:size], ITEMS[:size], IndexSettings(kind), QUERIES)
    assert build_index(VECTORS[:257], ITEMS[:257], IndexSettings("hnsw"), QUERIES).facts.type == "hnsw"
    every_list = build_index(VECTORS[:513], ITEMS[:513], IndexSettings("sq", 1.0), QUERIES).facts
    assert every_list.type == "sq"
    assert every_list.scanned_share > 1, "all vectors and the centroids: who asks for it gets it"
    with pytest.raises(ValueError, match="'ivf' and 0 user vectors"):
        build_index(VECTORS, ITEMS, IndexSettings("ivf"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"type": "flat"}, "index.type: received 'flat', expected 'exact' or 'hnsw' or 'ivf'"),
        ({"target_recall": 0.0}, "index.target_recall"),
        ({"target_recall": 1.5}, "index.target_recall"),
        ({"recall_queries": 1}, "index.recall_queries: received 1, expected at least 2"),
        ({"max_bytes": -1}, "index.max_bytes"),
    ],
)
def test_nonsense_is_refused(settings: dict[str, object], message: str):
    with pytest.raises(ValueError, match=message):
        IndexSettings(**settings)  # type: ignore[arg-type]
