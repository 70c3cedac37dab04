"""Nearest items by inner product, in the answer form of every recommender: exact by torch, or approximate by FAISS.

Whatever finds the candidates, the scores returned are exact inner products, computed pair by pair: a row's answer depends on no
other row of the call.
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
from models.retrieval.exact import best_of, nearest
from models.retrieval.files import read_facts, write_facts
from models.retrieval.tuning import RECALL_AT, share_found
from models.settings.index import IndexFacts

# Letters in shapes: r rows (queries), n vectors in the index, d their width, f fetched per query.

_UNTYPED: Any = faiss
"""For names that its stubs leave out."""
_INDEX_FILE, _ITEMS_FILE, _VECTORS_FILE = "items.faiss", "items.npy", "item_vectors.npy"
_EXACT_UP_TO = 30_000
"""Vectors up to which scoring all of them is faster than any index (measured, see tests/benchmarks)."""
SPARE = 6
"""Candidates fetched beyond k, so that rounding does not decide who is among the k."""
RECALLED = RECALL_AT[-1]
"""Neighbours that a graph is searched for at least: as many as recall is asked for."""
_MOST_EF = 2048
"""Candidates that a search through the graph keeps, at most."""
_FETCH_CELLS = 2**20
"""Candidates held at once."""
NUM_LINKS = 32
"""Neighbours of a vector in the graph (HNSW's M)."""


@dataclass(frozen=True)
class ItemIndex:
    """A FAISS index over item vectors, the vectors themselves, and our own array of the items they stand for."""

    index: Any
    """FAISS's: n vectors of width d, searched by inner product; position i is `item_index[i]`."""
    item_index: Int32
    """[n], ascending, from 1."""
    vectors: Float32
    """[n, d], exact; perhaps a memory map."""
    facts: IndexFacts
    device: str = "cpu"
    """Where exact search runs; the vectors are copied there once."""

    def __post_init__(self) -> None:
        if not self.index.ntotal == len(self.item_index) == len(self.vectors):
            raise ValueError(
                f"ItemIndex: received {self.index.ntotal} vectors and {len(self.item_index)} items,"
                f" {len(self.vectors)} exact vectors, expected as many of each; build the index again"
            )

    @property
    def num_items(self) -> int:
        """The highest item; score matrices have a column more."""
        return int(self.item_index[-1]) if len(self.item_index) else 0

    def search(
        self,
        queries: Float32,
        k: int,
        seen: Histories | None = None,
        allowed: NDArray[np.bool_] | None = None,
    ) -> tuple[Int32, Float32]:
        """The k items of highest inner product with each of `queries` [r, d], best first: items and scores, two [r, k].

        Items of `seen`'s row r, and those that `allowed` [num_items + 1] says no to, are left out of answer r. Fewer than k
        answers: item 0 with score -inf. Equal scores: the lower item first. An approximate index fetches as many more as the row
        has seen; rows that it cannot fill, and masks that leave few items, are searched exactly. Raises ValueError where the
        vectors or the mask are not of this index.
        """
        self._refuse_others(queries, k, allowed)
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
        """Inner products with every item: [r, num_items + 1], -inf for column 0 and items without a vector."""
        scores = np.full((len(queries), self.num_items + 1), -np.inf, np.float32)
        scores[:, self.item_index] = (_tensor(queries) @ torch.from_numpy(self.vectors).T).numpy()
        return scores

    def search_exactly(self, queries: Float32, k: int) -> tuple[Int32, Float32]:
        """`search` by exact inner products, whatever the type of this index."""
        positions, scores = self._exactly(queries, k)
        return self._items(positions), scores

    def search_approximately(self, queries: Float32, k: int) -> tuple[Int32, Float32]:
        """FAISS's candidates with exact scores; rows that it cannot fill end with item 0."""
        positions, scores = self._approximately(queries, k, None, None)
        return self._items(positions), scores

    def recall(self, queries: Float32, k: int) -> float:
        """Share of the exact k best items of `queries` [r, d] that `search` finds."""
        return share_found(self.search_exactly(queries, k)[0], self.search(queries, k)[0])

    def efforts(self, limit: float) -> list[int]:
        """Values of nprobe or efSearch in steps of about a half, from little work to about the share `limit` of all of it."""
        effort, most = RECALLED + SPARE, max(RECALLED + SPARE, min(self.index.ntotal, _MOST_EF))
        if _has_lists(self.index):
            effort, most = 1, max(1, int(limit * self.index.nlist))
        found = []
        while effort < most:
            found.append(effort)
            effort = max(effort + 1, effort * 3 // 2)
        return [*found, most]

    def with_effort(self, effort: int) -> Self:
        """The same index (FAISS's is changed) with nprobe or efSearch as given."""
        if _has_lists(self.index):
            self.index.nprobe, shape = effort, {"num_lists": self.index.nlist, "nprobe": effort}
        else:
            self.index.hnsw.efSearch, shape = effort, {"num_links": NUM_LINKS, "ef_search": effort}
        return self.with_facts(parameters=self.facts.parameters | shape)

    def with_facts(self, **changes: Any) -> Self:
        """The same index with some facts replaced."""
        return replace(self, facts=replace(self.facts, **changes))

    def scanned_share(self, queries: Float32) -> float:
        """Vectors and centroids that one of `queries` [r, d] is compared with on average, counted, per vector in the index."""
        return _num_scanned(self.index, queries) / len(self.item_index)

    def queries_per_second(self, queries: Float32, k: int, *, exactly: bool = False) -> float:
        """Rows of `queries` [r, d] answered a second by one thread, `exactly` or as `search` does."""
        with one_thread():
            started = time.perf_counter()
            if exactly:
                self._exactly(queries, k)
            else:
                self.search(queries, k)
            return len(queries) / (time.perf_counter() - started)

    def save(self, folder: Path) -> None:
        """Write FAISS's own file, the items, the exact vectors where FAISS's file lacks them, and index.json with digests."""
        names = [_INDEX_FILE, _ITEMS_FILE]
        faiss.write_index(self.index, str(folder / _INDEX_FILE))
        np.save(folder / _ITEMS_FILE, self.item_index, allow_pickle=False)
        if _stored(self.index) is None:
            np.save(folder / _VECTORS_FILE, self.vectors, allow_pickle=False)
            names.append(_VECTORS_FILE)
        write_facts(folder, self.facts, names)

    @classmethod
    def load(cls, folder: Path, device: str = "cpu", *, verify: bool = True) -> ItemIndex:
        """Open what `save` wrote, memory-mapped. A folder without index.json holds an exact index (bundles of earlier versions).

        Raises ValueError if a file is missing, damaged (`verify`: not of the digest in index.json), or the parts don't fit.
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
    def _places(self) -> Int32:
        return _places(self.item_index, self.num_items)

    def _refuse_others(self, queries: Float32, k: int, allowed: NDArray[np.bool_] | None) -> None:
        if k < 1:
            raise ValueError(f"ItemIndex.search: received k={k}, expected at least 1")
        if queries.shape[1] != self.vectors.shape[1]:
            raise ValueError(
                f"ItemIndex.search: received vectors of {queries.shape[1]} components, expected {self.vectors.shape[1]}: this "
                "index is of another model; build it again"
            )
        if allowed is not None and len(allowed) != self.num_items + 1:
            raise ValueError(
                f"ItemIndex.search: received a mask of {len(allowed)} items, expected {self.num_items + 1} (item 0 included)"
            )

    def _exactly(
        self, queries: Float32, k: int, seen: Histories | None = None, chosen: Int64 | None = None
    ) -> tuple[Int64, Float32]:
        """Positions (-1: none) and scores [r, k] of the best among all vectors, or those at the positions `chosen`."""
        vectors, places = self._on_device, self._places
        if chosen is not None:
            vectors = vectors[torch.from_numpy(chosen).to(self.device)]
            places = _places(self.item_index[chosen], self.num_items)
        hidden = None if seen is None else partial(_seen_places, seen, places)
        found, scores = nearest(_tensor(queries).to(self.device), vectors, k, hidden)
        positions: Int64 = found.cpu().numpy()
        if chosen is not None and len(chosen):
            positions = np.where(positions >= 0, chosen[positions], -1)
        return positions, scores.cpu().numpy()

    def _approximately(
        self, queries: Float32, k: int, seen: Histories | None, chosen: Int64 | None
    ) -> tuple[Int64, Float32]:
        """Positions (-1: none) and scores [r, k] of the best that FAISS finds; rows with the same number to fetch together.

        Where more is fetched than the effort was tuned for, the effort grows as much.
        """
        positions = np.full((len(queries), k), -1, np.int64)
        scores = np.full((len(queries), k), -np.inf, np.float32)
        num_vectors = len(self.item_index)
        share = 1.0 if chosen is None else len(chosen) / num_vectors
        is_out = None if chosen is None else np.isin(np.arange(num_vectors), chosen, invert=True)
        spare = SPARE + self.facts.parameters["num_refined"]
        wanted = (k + spare + (0 if seen is None else seen.lengths)) / share
        fetch = np.broadcast_to(power_of_two(wanted), len(queries))
        for size in np.unique(fetch[2 * fetch < num_vectors]).tolist():
            same = np.flatnonzero(fetch == size)
            for rows in np.array_split(same, -(-len(same) * size // _FETCH_CELLS)):
                part = np.ascontiguousarray(queries[rows], np.float32)
                found = _probe(self.index, part, size, max(1.0, size / power_of_two(RECALLED + spare)))
                if is_out is not None:
                    found[is_out[found]] = -1
                if seen is not None:
                    found[self._is_seen(found, seen.select(rows))] = -1
                best = best_of(_tensor(part), torch.from_numpy(self.vectors), torch.from_numpy(found), k)
                positions[rows], scores[rows] = best[0].numpy(), best[1].numpy()
        return positions, scores

    def _is_seen(self, found: Int64, seen: Histories) -> NDArray[np.bool_]:
        """[r, f]: whether the vector at `found[r, j]` is of an item in row r; each (row, position) is one number."""
        row, place = _seen_places(seen, self._places, np.arange(len(seen)))
        keys = np.arange(len(found))[:, None] * len(self.item_index) + found
        return np.isin(keys, row * len(self.item_index) + place) & (found >= 0)

    def _items(self, positions: Int64) -> Int32:
        found = self.item_index[positions] if len(self.item_index) else positions
        return np.where(positions >= 0, found, 0).astype(np.int32)


def on_a_sphere(vectors: Float32, longest: float) -> Float32:
    """[n, d + 1]: vectors with a component more that makes every squared length `longest`.

    By distance from (q, 0) they come in the order of their inner products with q, and a graph needs distances: where links
    follow inner products, clusters of short vectors are out of reach (Bachrach et al., Speeding up the Xbox recommender, 2014).
    """
    rest = np.sqrt(np.maximum(longest - np.square(vectors).sum(1, dtype=np.float64), 0))
    return np.concatenate((vectors, rest[:, None].astype(np.float32)), axis=1)


def is_exact_fastest(num_vectors: int) -> bool:
    """Whether scoring all vectors is faster than any index."""
    return num_vectors <= _EXACT_UP_TO


def _has_lists(index: Any) -> bool:
    return isinstance(index, faiss.IndexIVF)


def _probe(index: Any, queries: Float32, fetch: int, depth: float) -> Int64:
    """[r, fetch] positions of the best that FAISS finds (-1: no more) with `depth` times the tuned nprobe or efSearch.

    Lists are chosen by `nearest`, for each row by itself.
    """
    if not _has_lists(index):
        parameters = _UNTYPED.SearchParametersHNSW(efSearch=int(index.hnsw.efSearch * depth))
        found: Int64 = index.search(on_a_sphere(queries, 0.0), fetch, params=parameters)[1]
        return found
    num_probes = min(index.nlist, int(index.nprobe * depth))
    lists, scores = (each.numpy() for each in _nearest_lists(index, queries, num_probes))
    tuned, index.nprobe = index.nprobe, num_probes
    _, found = index.search_preassigned(queries, fetch, lists, scores)
    index.nprobe = tuned
    return found


def _nearest_lists(index: Any, queries: Float32, num_probes: int) -> tuple[Tensor, Tensor]:
    centroids = _stored(faiss.downcast_index(index.quantizer))
    assert centroids is not None
    return nearest(_tensor(queries), torch.from_numpy(centroids), num_probes)


def power_of_two(number: Any) -> Any:
    """The next power of two, elementwise."""
    return 2 ** np.ceil(np.log2(number)).astype(np.int64)


def _num_scanned(index: Any, queries: Float32) -> float:
    """Vectors and centroids that one of `queries` is compared with, on average: counted, not timed."""
    if _has_lists(index):
        sizes = np.array([index.invlists.list_size(number) for number in range(index.nlist)])
        return float(
            index.nlist + sizes[_nearest_lists(index, queries, index.nprobe)[0].numpy()].sum(1).mean()
        )
    counts = _UNTYPED.cvar.hnsw_stats
    before = counts.ndis
    index.search(on_a_sphere(queries, 0.0), RECALLED)
    return float((counts.ndis - before) / len(queries))


def _stored(index: Any) -> Float32 | None:
    """[n, d] the exact vectors where FAISS keeps them in order (no copy), None where it does not."""
    if not isinstance(index, faiss.IndexFlat):
        return None
    if not index.ntotal:
        return np.zeros((0, index.d), np.float32)
    found: Float32 = faiss.rev_swig_ptr(index.get_xb(), index.ntotal * index.d)
    return found.reshape(index.ntotal, index.d)


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


def _places(item_index: Int32, num_items: int) -> Int32:
    """[num_items + 2] from item to position, -1 where there is none; the last entry is for all items beyond."""
    places = np.full(num_items + 2, -1, np.int32)
    places[item_index] = np.arange(len(item_index), dtype=np.int32)
    return places


def _seen_places(seen: Histories, places: Int32, rows: Int64) -> tuple[Int64, Int64]:
    """(place among `rows`, position of the vector) of every item of these rows that has a vector: two [pairs]."""
    row, position = seen.select(rows).gather()
    place = places[np.minimum(seen.item_index[position], len(places) - 1)]
    return row[place >= 0], place[place >= 0].astype(np.int64)
