"""Building an item index: the cheapest type that reaches the recall, and further vectors added to a built one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch  # noqa: F401  # before faiss: on macOS two OpenMP runtimes in the other order crash  # isort: skip
import faiss  # isort: skip
import numpy as np

from models.histories import Float32, Int32
from models.retrieval.index import (
    NUM_LINKS,
    RECALLED,
    SPARE,
    ItemIndex,
    is_exact_fastest,
    on_a_sphere,
    one_thread,
    power_of_two,
)
from models.retrieval.tuning import MOST_REFINED, MOST_SCANNED, RECALL_AT, candidates, tuned
from models.settings.index import ApproximateType, IndexFacts, IndexSettings

# Letters in shapes: q queries, n vectors in the index, m further vectors, d their width.

_UNTYPED: Any = faiss
"""For names that its stubs leave out."""
AUTO = IndexSettings()
"""Exact, or a faster type that finds the same."""
_EF_CONSTRUCTION = 80
"""Candidates kept when a vector is linked into the graph."""
_LIST_POINTS = 64
"""Vectors per centroid that k-means sees, at most."""
_CODE_COMPONENTS = 4
"""Components that a byte of ivf_pq stands for, at least."""
_REBUILD_GROWTH = 1.25
"""Growth since the last training from which lists and codes are trained again."""


def build_index(
    vectors: Float32,
    item_index: Int32,
    settings: IndexSettings = AUTO,
    queries: Float32 | None = None,
    device: str = "cpu",
) -> ItemIndex:
    """Index `vectors` [n, d] of the items `item_index` [n] (ascending, from 1) so that `target_recall` is reached.

    The effort of a search is the least that reaches it on every second of `queries` [q, d]; the recall is measured on the
    others. Nothing depends on a clock. Without queries auto is exact; hnsw is built on one thread, because its graph depends
    on the order. Raises ValueError where the chosen type stays below the recall, or cannot be built of so few vectors.
    """
    vectors = np.ascontiguousarray(vectors, dtype=np.float32)
    exact = ItemIndex(_flat(vectors), item_index.astype(np.int32), vectors, IndexFacts(), device)
    exact = replace(exact, facts=_exact_facts(exact, settings, queries))
    is_auto = settings.type == "auto"
    if settings.type == "exact" or (is_auto and is_exact_fastest(len(vectors))):
        return exact
    if queries is None or len(queries) < 2:
        if is_auto:
            return exact
        raise ValueError(
            f"index.type: received {settings.type!r} and {0 if queries is None else len(queries)} user vectors, expected at "
            "least 2 to tune it on and to measure its recall; set index.type to 'exact'"
        )
    recall = 0.0
    for kind in candidates(settings, *vectors.shape):
        limit = MOST_SCANNED[kind] if is_auto else 1.0
        untuned = _untuned(kind, exact, settings.target_recall)
        index = tuned(untuned, queries, limit)
        recall = index.facts.recall["recall@100"]
        is_cheap = index.facts.scanned_share <= limit or not is_auto  # a type chosen by the user may be slow
        if recall >= settings.target_recall and is_cheap:
            return index.with_facts(num_bytes=_num_bytes(index.index))
    if is_auto:
        return exact
    raise ValueError(
        f"index.type: {settings.type!r} has recall@100 {recall:.4f} on {len(queries) // 2} user vectors, expected at least "
        f"index.target_recall = {settings.target_recall}; set index.type to 'auto' or 'exact', or ask for less"
    )


def extend_index(
    index: ItemIndex, vectors: Float32, item_index: Int32, queries: Float32 | None = None
) -> tuple[ItemIndex, bool]:
    """An index with the vectors [m, d] of further items [m] too, and whether it was built anew.

    Item numbers ascend from above those already indexed. Lists and codes describe the vectors they were trained on, and a
    graph has room for vectors no longer than its longest: with a quarter more items, or a longer vector, all is built, tuned
    and measured anew on `queries`, as by `build_index` (without queries the new index is exact). Else vectors are only added,
    and the facts remain those of the building.
    """
    if len(item_index) and not (item_index[0] > index.num_items and (np.diff(item_index) > 0).all()):
        raise ValueError(
            f"extend_index: received items from {int(item_index.min())}, expected ascending numbers above {index.num_items}; "
            "build the index again to replace vectors"
        )
    together = np.concatenate((index.vectors, np.asarray(vectors, np.float32)))
    items = np.concatenate((index.item_index, item_index.astype(np.int32)))
    facts, longest = index.facts, _longest(index.vectors)
    if not (facts.type == "exact" or _has_room(index, vectors, longest)):
        kind = "exact" if queries is None else facts.type
        settings = IndexSettings(kind, facts.target_recall)
        return build_index(together, items, settings, queries, index.device), True
    grown: Any = faiss.deserialize_index(faiss.serialize_index(index.index))  # a memory map stays as it is
    with one_thread():
        further = together[len(index.item_index) :]
        grown.add(on_a_sphere(further, longest) if facts.type == "hnsw" else further)
    return ItemIndex(grown, items, together, replace(facts, num_bytes=_num_bytes(grown)), index.device), False


def _has_room(index: ItemIndex, vectors: Float32, longest: float) -> bool:
    """Whether further `vectors` [m, d] can be added to an approximate index."""
    if index.facts.type == "hnsw":
        return _longest(vectors) <= longest
    return len(index.item_index) + len(vectors) <= _REBUILD_GROWTH * index.facts.num_built


def _exact_facts(exact: ItemIndex, settings: IndexSettings, queries: Float32 | None) -> IndexFacts:
    """Facts of exact search: recall 1."""
    num_queries = 0 if queries is None else len(queries)
    recall = {f"recall@{k}": 1.0 for k in RECALL_AT}
    parameters = {"num_refined": 0}
    num_built, num_bytes = len(exact.item_index), _num_bytes(exact.index)
    return IndexFacts(
        "exact", parameters, settings.target_recall, recall, num_queries, 1.0, num_bytes, num_built
    )


def _flat(vectors: Float32) -> faiss.Index:
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    return index


def _untuned(kind: ApproximateType, exact: ItemIndex, target_recall: float) -> ItemIndex:
    """An index of type `kind` over the vectors of `exact`; ValueError where exact search would cost less than a fetch."""
    num_vectors = len(exact.vectors)
    refined = min(MOST_REFINED[kind], num_vectors // 16)
    least = 2 * int(power_of_two(RECALLED + SPARE + refined))
    if num_vectors <= least:  # a search would fetch half of them: such are searched exactly
        raise ValueError(
            f"index.type: received {kind!r} for {num_vectors} items, expected more than {least}; use 'exact'"
        )
    facts = IndexFacts(kind, {"num_refined": refined}, target_recall, num_built=num_vectors)
    return ItemIndex(_trained(kind, exact.vectors), exact.item_index, exact.vectors, facts, exact.device)


def _trained(kind: ApproximateType, vectors: Float32) -> Any:
    """A FAISS index of a type over the vectors [n, d]; about 4·√n lists, as FAISS's guidelines have it."""
    num_vectors, dim = vectors.shape
    if kind == "hnsw":
        graph: Any = faiss.IndexHNSWFlat(dim + 1, NUM_LINKS)
        graph.hnsw.efConstruction = _EF_CONSTRUCTION
        with one_thread():
            graph.add(on_a_sphere(vectors, _longest(vectors)))
        return graph
    num_lists = max(1, min(round(4 * num_vectors**0.5), num_vectors // _LIST_POINTS))
    num_codes = next(codes for codes in range(max(1, dim // _CODE_COMPONENTS), 0, -1) if dim % codes == 0)
    codec = {"ivf": "Flat", "sq": "SQ8", "ivf_pq": f"PQ{num_codes}"}[kind]
    index: Any = faiss.index_factory(dim, f"IVF{num_lists},{codec}", faiss.METRIC_INNER_PRODUCT)
    index.cp.max_points_per_centroid = _LIST_POINTS
    if kind == "ivf_pq":
        # an order of codes for a search that is not used here; it takes a minute
        index.do_polysemous_training = False
        index.pq.cp.min_points_per_centroid = 1
    index.train(vectors)
    index.add(vectors)
    return index


def _longest(vectors: Float32) -> float:
    """The largest squared length of vectors [n, d]."""
    return float(np.square(vectors).sum(1, dtype=np.float64).max(initial=0.0))


def _num_bytes(index: faiss.Index) -> int:
    """Bytes that FAISS writes."""
    counts: list[int] = []
    faiss.write_index(index, _UNTYPED.PyCallbackIOWriter(lambda written: counts.append(len(written))))
    return sum(counts)
