"""Item index construction: the cheapest type that reaches the target recall, and insertion of further vectors."""

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
    one_thread,
    power_of_two,
    with_squared_norm,
)
from models.retrieval.tuning import MOST_REFINED, MOST_SCANNED, RECALL_AT, candidates, tuned
from models.settings.index import ApproximateType, IndexFacts, IndexSettings

# Letters in shapes: q queries, n vectors in the index, m further vectors, d their width.

_UNTYPED: Any = faiss
"""FAISS with the names that its type stubs leave out."""
AUTO = IndexSettings()
"""Default settings: exact search, or a faster type of the target recall."""
_EF_CONSTRUCTION = 80
"""Candidates kept when a vector is linked into the graph."""
_LIST_POINTS = 64
"""Maximum training vectors per k-means centroid."""
_CODE_COMPONENTS = 4
"""Minimum vector components per byte of an ivf_pq code."""
_REBUILD_GROWTH = 1.25
"""Maximum growth since lists and codes were trained; beyond it they are retrained."""


def build_index(
    vectors: Float32,
    item_index: Int32,
    settings: IndexSettings = AUTO,
    queries: Float32 | None = None,
    device: str = "cpu",
) -> ItemIndex:
    """Index `vectors` [n, d] of the items `item_index` [n] (ascending, from 1) at `target_recall`.

    Search effort is the least that reaches it on every second of `queries` [q, d]; recall is measured on the rest. Nothing
    depends on a clock. Without queries auto is exact; hnsw is built on one thread, because insertion order shapes its graph.
    Raises ValueError if the chosen type misses the recall or needs more vectors.
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
        if recall >= settings.target_recall and (index.facts.scanned_share <= limit or not is_auto):
            return index.with_facts(num_bytes=_num_bytes(index.index))
    if is_auto:
        return exact
    raise ValueError(
        f"index.type: {settings.type!r} has recall@100 {recall:.4f} on {len(queries) // 2} user vectors, expected at least "
        f"index.target_recall = {settings.target_recall}; lower it, or set index.type to 'auto' or 'exact'"
    )


def extend_index(
    index: ItemIndex, vectors: Float32, item_index: Int32, queries: Float32 | None = None
) -> tuple[ItemIndex, bool]:
    """Add the vectors [m, d] of further items [m], ascending above those indexed; return the index and whether it was rebuilt.

    Lists and codes fit the vectors they were trained on, and a graph holds vectors no longer than its longest: a quarter more
    items, or a longer vector, rebuild, tune and measure the index on `queries`, as `build_index` does (without queries: exact).
    Otherwise vectors are only inserted and the facts stay. Raises ValueError for other item numbers.
    """
    if len(item_index) and not (item_index[0] > index.num_items and (np.diff(item_index) > 0).all()):
        raise ValueError(
            f"extend_index: received items from {int(item_index.min())}, expected ascending numbers above {index.num_items}; "
            "build the index again to replace vectors"
        )
    all_vectors = np.concatenate((index.vectors, np.asarray(vectors, np.float32)))
    items = np.concatenate((index.item_index, item_index.astype(np.int32)))
    facts, squared_norm = index.facts, _max_squared_norm(index.vectors)
    if not (facts.type == "exact" or _has_room(index, vectors, squared_norm)):
        kind = "exact" if queries is None else facts.type
        settings = IndexSettings(kind, facts.target_recall)
        return build_index(all_vectors, items, settings, queries, index.device), True
    grown: Any = faiss.deserialize_index(
        faiss.serialize_index(index.index)
    )  # leaves the memory map unchanged
    with one_thread():
        added = all_vectors[len(index.item_index) :]
        grown.add(with_squared_norm(added, squared_norm) if facts.type == "hnsw" else added)
    return ItemIndex(
        grown, items, all_vectors, replace(facts, num_bytes=_num_bytes(grown)), index.device
    ), False


def _has_room(index: ItemIndex, vectors: Float32, squared_norm: float) -> bool:
    """Whether further `vectors` [m, d] fit into an approximate index without a rebuild."""
    if index.facts.type == "hnsw":
        return _max_squared_norm(vectors) <= squared_norm
    return len(index.item_index) + len(vectors) <= _REBUILD_GROWTH * index.facts.num_built


def _exact_facts(exact: ItemIndex, settings: IndexSettings, queries: Float32 | None) -> IndexFacts:
    recall = {f"recall@{k}": 1.0 for k in RECALL_AT}
    num_queries, num_bytes = 0 if queries is None else len(queries), _num_bytes(exact.index)
    shape = {"num_refined": 0}
    built = len(exact.item_index)
    return IndexFacts("exact", shape, settings.target_recall, recall, num_queries, 1.0, num_bytes, built)


def _flat(vectors: Float32) -> faiss.Index:
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    return index


def _untuned(kind: ApproximateType, exact: ItemIndex, target_recall: float) -> ItemIndex:
    """Build an index of type `kind` over the vectors of `exact`. Raises ValueError for too few vectors."""
    num_vectors = len(exact.vectors)
    refined = min(MOST_REFINED[kind], num_vectors // 16)
    least = 2 * int(power_of_two(RECALLED + SPARE + refined))
    if num_vectors <= least:  # a search would fetch half of them, so exact search costs less
        raise ValueError(
            f"index.type: received {kind!r} for {num_vectors} items, expected more than {least}; use 'exact'"
        )
    facts = IndexFacts(kind, {"num_refined": refined}, target_recall, num_built=num_vectors)
    return ItemIndex(_trained(kind, exact.vectors), exact.item_index, exact.vectors, facts, exact.device)


def _trained(kind: ApproximateType, vectors: Float32) -> Any:
    """Train a FAISS index on vectors [n, d], with about 4·√n lists by FAISS's guidelines."""
    num_vectors, dim = vectors.shape
    if kind == "hnsw":
        graph: Any = faiss.IndexHNSWFlat(dim + 1, NUM_LINKS)
        graph.hnsw.efConstruction = _EF_CONSTRUCTION
        with one_thread():
            graph.add(with_squared_norm(vectors, _max_squared_norm(vectors)))
        return graph
    num_lists = max(1, min(round(4 * num_vectors**0.5), num_vectors // _LIST_POINTS))
    num_codes = next(codes for codes in range(max(1, dim // _CODE_COMPONENTS), 0, -1) if dim % codes == 0)
    codec = {"ivf": "Flat", "sq": "SQ8", "ivf_pq": f"PQ{num_codes}"}[kind]
    index: Any = faiss.index_factory(dim, f"IVF{num_lists},{codec}", faiss.METRIC_INNER_PRODUCT)
    index.cp.max_points_per_centroid = _LIST_POINTS
    if kind == "ivf_pq":
        index.do_polysemous_training = False  # takes a minute, for a search that is not used here
        index.pq.cp.min_points_per_centroid = 1
    index.train(vectors)
    index.add(vectors)
    return index


def _max_squared_norm(vectors: Float32) -> float:
    return float(np.square(vectors).sum(1, dtype=np.float64).max(initial=0.0))


def _num_bytes(index: faiss.Index) -> int:
    """Size of FAISS's file."""
    counts: list[int] = []
    faiss.write_index(index, _UNTYPED.PyCallbackIOWriter(lambda written: counts.append(len(written))))
    return sum(counts)
