"""Item index: nearest items by inner product, exact by torch or approximate by FAISS.

Scores are exact inner products computed pair by pair, so a row's result depends on no other row of the call.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Self

import torch  # before faiss: on macOS two OpenMP runtimes in the other order crash  # isort: skip
import faiss  # isort: skip
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from models.histories import Float32, Histories, Int32, Int64
from models.retrieval.exact import best_of, inner_products, nearest
from models.retrieval.files import read_facts, write_facts
from models.retrieval.tuning import RECALL_AT, mean_recall
from models.settings.index import IndexFacts

# Letters in shapes: r rows (queries), n vectors in the index, d their width, f fetched per query.

_UNTYPED: Any = faiss
"""FAISS with the names that its type stubs leave out."""
_INDEX_FILE, _ITEMS_FILE, _VECTORS_FILE = "items.faiss", "items.npy", "item_vectors.npy"
_EXACT_UP_TO = 30_000
"""Number of vectors up to which exact search is fastest (measured, see tests/benchmarks)."""
SPARE = 6
"""Candidates fetched beyond k, so that rounding does not decide the k-th."""
RECALLED = RECALL_AT[-1]
"""Minimum neighbours of a graph search: the list length of the target recall."""
_MOST_EF = 2048
"""Maximum efSearch."""
_FETCH_CELLS = 2**20
"""Candidates held at once."""
NUM_LINKS = 32
"""Links per vector in the graph (HNSW's M)."""


@dataclass(frozen=True)
class ItemIndex:
    """FAISS index over item vectors, with the exact vectors and their item numbers."""

    index: Any
    """FAISS index of n vectors of width d by inner product; position i is item `item_index[i]`."""
    item_index: Int32
    """[n], ascending, from 1."""
    vectors: Float32
    """[n, d], exact, possibly memory-mapped."""
    facts: IndexFacts
    device: str = "cpu"
    """Device of exact search; the vectors are copied to it once."""

    def __post_init__(self) -> None:
        if not self.index.ntotal == len(self.item_index) == len(self.vectors):
            raise ValueError(
                f"ItemIndex: received {self.index.ntotal} indexed vectors, {len(self.item_index)} items and"
                f" {len(self.vectors)} exact vectors, expected equal numbers; build the index again"
            )

    @property
    def num_items(self) -> int:
        """Highest item number; score matrices have one column more."""
        return int(self.item_index[-1]) if len(self.item_index) else 0

    def search(
        self,
        queries: Float32,
        k: int,
        seen: Histories | None = None,
        allowed: NDArray[np.bool_] | None = None,
    ) -> tuple[Int32, Float32]:
        """Items of highest inner product with each of `queries` [r, d], best first, and their scores: two [r, k].

        Row r excludes the items of `seen`'s row r and those that `allowed` [num_items + 1] masks. Missing items: 0 with score
        -inf. Equal scores: the lower item first. An approximate index fetches more by the number of seen items; rows that it
        cannot fill, and masks that leave few items, are searched exactly. Raises ValueError for another width or mask length.
        """
        self._check(queries, k, allowed)
        chosen = None if allowed is None else np.flatnonzero(allowed[self.item_index])
        is_selective = chosen is not None and len(chosen) <= max(_EXACT_UP_TO, len(self.item_index) // 20)
        if self.facts.type == "exact" or is_selective:
            positions, scores = self._exactly(queries, k, seen, chosen)
        else:
            positions, scores = self._approximately(queries, k, seen, chosen)
            if len(rest := np.flatnonzero(np.isneginf(scores[:, -1]))):
                unseen = None if seen is None else seen.select(rest)
                positions[rest], scores[rest] = self._exactly(queries[rest], k, unseen, chosen)
        return self._items(positions), scores

    def score_items(self, queries: Float32) -> Float32:
        """Inner products with every item [r, num_items + 1]; -inf for column 0 and items without a vector."""
        scores = np.full((len(queries), self.num_items + 1), -np.inf, np.float32)
        scores[:, self.item_index] = (_tensor(queries) @ torch.from_numpy(self.vectors).T).numpy()
        return scores

    def scores_of(self, queries: Float32, items: Int32) -> Float32:
        """Scores [r, m] of each row's own items [r, m], the bits of `search`; -inf for item 0 and items without a vector."""
        positions = self._positions[items]
        vectors = _tensor(self.vectors[np.maximum(positions, 0)]) if len(self.vectors) else None
        if vectors is None:
            return np.full(items.shape, -np.inf, np.float32)
        scores = inner_products(_tensor(queries)[:, None], vectors).numpy()
        return np.where(positions >= 0, scores, np.float32(-np.inf))

    def search_exactly(self, queries: Float32, k: int) -> tuple[Int32, Float32]:
        """Search exactly, whatever the type of this index."""
        positions, scores = self._exactly(queries, k)
        return self._items(positions), scores

    def search_approximately(self, queries: Float32, k: int) -> tuple[Int32, Float32]:
        """Search by FAISS alone, with exact scores; rows that it cannot fill end with item 0."""
        positions, scores = self._approximately(queries, k, None, None)
        return self._items(positions), scores

    def recall(self, queries: Float32, k: int) -> float:
        """Mean recall@k of `search` against exact search on `queries` [r, d]."""
        return mean_recall(self.search_exactly(queries, k)[0], self.search(queries, k)[0])

    def efforts(self, limit: float) -> list[int]:
        """Values of nprobe or efSearch in steps of about 50 %, up to about the share `limit` of all work."""
        effort, most = RECALLED + SPARE, max(RECALLED + SPARE, min(self.index.ntotal, _MOST_EF))
        if _has_lists(self.index):
            effort, most = 1, max(1, int(limit * self.index.nlist))
        efforts = []
        while effort < most:
            efforts.append(effort)
            effort = max(effort + 1, effort * 3 // 2)
        return [*efforts, most]

    def with_effort(self, effort: int) -> Self:
        """Set nprobe or efSearch, in place for FAISS's index."""
        if _has_lists(self.index):
            self.index.nprobe, shape = effort, {"num_lists": self.index.nlist, "nprobe": effort}
        else:
            self.index.hnsw.efSearch, shape = effort, {"num_links": NUM_LINKS, "ef_search": effort}
        return self.with_facts(parameters=self.facts.parameters | shape)

    def with_facts(self, **changes: Any) -> Self:
        """Replace some facts."""
        return replace(self, facts=replace(self.facts, **changes))

    def scanned_share(self, queries: Float32) -> float:
        """Mean number of vectors and centroids compared with one of `queries` [r, d], per vector in the index."""
        return _num_scanned(self.index, queries) / len(self.item_index)

    def queries_per_second(self, queries: Float32, k: int, *, exactly: bool = False) -> float:
        """Rows of `queries` [r, d] per second on one thread, by exact search or by `search`."""
        with one_thread():
            started = time.perf_counter()
            _ = self._exactly(queries, k) if exactly else self.search(queries, k)
            return len(queries) / (time.perf_counter() - started)

    def save(self, folder: Path) -> None:
        """Write FAISS's file, the items, the exact vectors if FAISS's file lacks them, and index.json with digests."""
        names = [_INDEX_FILE, _ITEMS_FILE]
        faiss.write_index(self.index, str(folder / _INDEX_FILE))
        np.save(folder / _ITEMS_FILE, self.item_index, allow_pickle=False)
        if _stored(self.index) is None:
            np.save(folder / _VECTORS_FILE, self.vectors, allow_pickle=False)
            names.append(_VECTORS_FILE)
        write_facts(folder, self.facts, names)

    @classmethod
    def load(cls, folder: Path, device: str = "cpu", *, verify: bool = True) -> ItemIndex:
        """Load a saved index, memory-mapped; a folder without index.json holds an exact one (bundles of earlier versions).

        Raises ValueError for files that are missing, damaged (`verify`: by their digests) or of different lengths.
        """
        facts = read_facts(folder, (_INDEX_FILE, _ITEMS_FILE), verify=verify)
        try:
            index = faiss.read_index(str(folder / _INDEX_FILE), faiss.IO_FLAG_MMAP_IFC)
        except RuntimeError as error:
            raise ValueError(
                f"item index: {folder / _INDEX_FILE} is damaged ({error}); run the stage index again with --force"
            ) from None
        vectors = _stored(index)
        if vectors is None:
            vectors = np.load(folder / _VECTORS_FILE, mmap_mode="c")
        return cls(index, np.load(folder / _ITEMS_FILE), vectors, facts, device)

    @cached_property
    def _on_device(self) -> Tensor:
        return torch.from_numpy(self.vectors).to(self.device)

    @cached_property
    def _positions(self) -> Int32:
        return _positions(self.item_index, self.num_items)

    def _check(self, queries: Float32, k: int, allowed: NDArray[np.bool_] | None) -> None:
        if k < 1:
            raise ValueError(f"ItemIndex.search: received k={k}, expected at least 1")
        if queries.shape[1] != self.vectors.shape[1]:
            raise ValueError(
                f"ItemIndex.search: received vectors of {queries.shape[1]} components, expected {self.vectors.shape[1]}: the "
                "index belongs to another model; build it again"
            )
        if allowed is not None and len(allowed) != self.num_items + 1:
            raise ValueError(
                f"ItemIndex.search: received a mask of {len(allowed)} items, expected {self.num_items + 1} (item 0 included)"
            )

    def _exactly(
        self, queries: Float32, k: int, seen: Histories | None = None, chosen: Int64 | None = None
    ) -> tuple[Int64, Float32]:
        """Positions (-1: none) and scores [r, k] of the best among all vectors, or those at positions `chosen`."""
        vectors, position_of = self._on_device, self._positions
        if chosen is not None:
            vectors = vectors[torch.from_numpy(chosen).to(self.device)]
            position_of = _positions(self.item_index[chosen], self.num_items)
        hidden = None if seen is None else partial(_seen_positions, seen, position_of)
        best, scores = nearest(_tensor(queries).to(self.device), vectors, k, hidden)
        positions: Int64 = best.cpu().numpy()
        if chosen is not None and len(chosen):
            positions = np.where(positions >= 0, chosen[positions], -1)
        return positions, scores.cpu().numpy()

    def _approximately(
        self, queries: Float32, k: int, seen: Histories | None, chosen: Int64 | None
    ) -> tuple[Int64, Float32]:
        """Positions (-1: none) and scores [r, k] of FAISS's best, batched by the number of candidates to fetch.

        Effort grows in proportion where more is fetched than it was tuned for.
        """
        positions = np.full((len(queries), k), -1, np.int64)
        scores = np.full((len(queries), k), -np.inf, np.float32)
        num_vectors = len(self.item_index)
        share = 1.0 if chosen is None else len(chosen) / num_vectors
        is_masked = None if chosen is None else np.isin(np.arange(num_vectors), chosen, invert=True)
        spare = SPARE + self.facts.parameters["num_refined"]
        needed = (k + spare + (0 if seen is None else seen.lengths)) / share
        fetch = np.broadcast_to(power_of_two(needed), len(queries))
        for size in np.unique(fetch[2 * fetch < num_vectors]).tolist():
            same = np.flatnonzero(fetch == size)
            for rows in np.array_split(same, -(-len(same) * size // _FETCH_CELLS)):
                part = np.ascontiguousarray(queries[rows], np.float32)
                probed = _probe(self.index, part, size, max(1.0, size / power_of_two(RECALLED + spare)))
                if is_masked is not None:
                    probed[is_masked[probed]] = -1
                if seen is not None:
                    probed[self._is_seen(probed, seen.select(rows))] = -1
                best = best_of(_tensor(part), torch.from_numpy(self.vectors), torch.from_numpy(probed), k)
                positions[rows], scores[rows] = best[0].numpy(), best[1].numpy()
        return positions, scores

    def _is_seen(self, positions: Int64, seen: Histories) -> NDArray[np.bool_]:
        """[r, f], whether the item at a position is in row r; each (row, position) is one number."""
        row, seen_position = _seen_positions(seen, self._positions, np.arange(len(seen)))
        keys = np.arange(len(positions))[:, None] * len(self.item_index) + positions
        return np.isin(keys, row * len(self.item_index) + seen_position) & (positions >= 0)

    def _items(self, positions: Int64) -> Int32:
        items = self.item_index[positions] if len(self.item_index) else positions
        return np.where(positions >= 0, items, 0).astype(np.int32)


def with_squared_norm(vectors: Float32, squared_norm: float) -> Float32:
    """[n, d + 1], vectors with one more component that brings every squared norm to `squared_norm`.

    Their distances from (q, 0) then order them by inner product with q, and a graph needs distances: with links by inner
    product, clusters of short vectors are unreachable (Bachrach et al., Speeding up the Xbox recommender, 2014).
    """
    rest = np.sqrt(np.maximum(squared_norm - np.square(vectors).sum(1, dtype=np.float64), 0))
    return np.concatenate((vectors, rest[:, None].astype(np.float32)), axis=1)


def is_exact_fastest(num_vectors: int) -> bool:
    """Whether exact search is faster than any index."""
    return num_vectors <= _EXACT_UP_TO


def _has_lists(index: Any) -> bool:
    return isinstance(index, faiss.IndexIVF)


def _probe(index: Any, queries: Float32, fetch: int, depth: float) -> Int64:
    """FAISS's best positions [r, fetch] (-1: none left) at `depth` times the tuned nprobe or efSearch.

    Lists are chosen by `nearest`, row by row.
    """
    if not _has_lists(index):
        parameters = _UNTYPED.SearchParametersHNSW(efSearch=int(index.hnsw.efSearch * depth))
        return np.asarray(index.search(with_squared_norm(queries, 0.0), fetch, params=parameters)[1])
    num_probes = min(index.nlist, int(index.nprobe * depth))
    lists, scores = (part.numpy() for part in _nearest_lists(index, queries, num_probes))
    tuned, index.nprobe = index.nprobe, num_probes
    _, positions = index.search_preassigned(queries, fetch, lists, scores)
    index.nprobe = tuned
    return np.asarray(positions)


def _nearest_lists(index: Any, queries: Float32, num_probes: int) -> tuple[Tensor, Tensor]:
    centroids = _stored(faiss.downcast_index(index.quantizer))
    assert centroids is not None
    return nearest(_tensor(queries), torch.from_numpy(centroids), num_probes)


def power_of_two(number: Any) -> Any:
    """Next power of two, elementwise."""
    return 2 ** np.ceil(np.log2(number)).astype(np.int64)


def _num_scanned(index: Any, queries: Float32) -> float:
    """Mean number of vectors and centroids compared with one of `queries`."""
    if _has_lists(index):
        sizes = np.array([index.invlists.list_size(number) for number in range(index.nlist)])
        lists = _nearest_lists(index, queries, index.nprobe)[0].numpy()
        return float(index.nlist + sizes[lists].sum(1).mean())
    counts = _UNTYPED.cvar.hnsw_stats
    before = counts.ndis
    index.search(with_squared_norm(queries, 0.0), RECALLED)
    return float((counts.ndis - before) / len(queries))


def _stored(index: Any) -> Float32 | None:
    """[n, d], the exact vectors if FAISS keeps them in order (no copy), else None."""
    if not isinstance(index, faiss.IndexFlat):
        return None
    if not index.ntotal:
        return np.zeros((0, index.d), np.float32)
    vectors: Float32 = faiss.rev_swig_ptr(index.get_xb(), index.ntotal * index.d)
    return vectors.reshape(index.ntotal, index.d)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Run torch and FAISS on one thread."""
    threads = torch.get_num_threads(), faiss.omp_get_max_threads()
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads[0])
        faiss.omp_set_num_threads(threads[1])


def _tensor(queries: Float32) -> Tensor:
    return torch.from_numpy(np.array(queries, dtype=np.float32))


def _positions(item_index: Int32, num_items: int) -> Int32:
    """[num_items + 2], position of each item, -1: none; the last entry is for all higher items."""
    positions = np.full(num_items + 2, -1, np.int32)
    positions[item_index] = np.arange(len(item_index), dtype=np.int32)
    return positions


def _seen_positions(seen: Histories, position_of: Int32, rows: Int64) -> tuple[Int64, Int64]:
    """(place among `rows`, vector position) of every item of these rows that has a vector: two [pairs]."""
    row, event = seen.select(rows).gather()
    position = position_of[np.minimum(seen.item_index[event], len(position_of) - 1)]
    return row[position >= 0], position[position >= 0].astype(np.int64)
