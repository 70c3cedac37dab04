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

from models.index_settings import ApproximateType, IndexFacts, IndexSettings
from models.recommender import Float32, Histories, Int32, Int64
from models.retrieval.exact import best_of, nearest
from models.retrieval.files import read_facts, write_facts
from models.retrieval.tuning import MOST_REFINED, MOST_SCANNED, RECALL_AT, candidates, share_found, tuned

# Letters in shapes: r rows (queries), n vectors in the index, d their width, f fetched per query.

_UNTYPED: Any = faiss
"""For names that its stubs leave out."""
_INDEX_FILE, _ITEMS_FILE, _VECTORS_FILE = "items.faiss", "items.npy", "item_vectors.npy"
AUTO = IndexSettings()
"""Exact, or what is faster and finds the same."""
_EXACT_UP_TO = 30_000
"""Vectors up to which scoring all of them is faster than any index (measured, see tests/benchmarks)."""
_SPARE = 6
"""Candidates fetched beyond k, so that rounding does not decide who is among the k."""
_RECALLED = RECALL_AT[-1]
"""Neighbours that a graph is searched for at least: as many as recall is asked for."""
_MOST_EF = 2048
"""Candidates that a search through the graph keeps, at most."""
_FETCH_CELLS = 2**20
"""Candidates held at once."""
_NUM_LINKS, _EF_CONSTRUCTION = 32, 80
"""Neighbours of a vector in the graph (HNSW's M), and candidates kept when it is linked."""
_LIST_POINTS = 64
"""Vectors per centroid that k-means sees, at most."""
_CODE_COMPONENTS = 4
"""Components that a byte of ivf_pq stands for, at least."""
_REBUILD_GROWTH = 1.25
"""Times the vectors they were trained on from which lists and codes are trained again."""


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

    @classmethod
    def build(
        cls,
        vectors: Float32,
        item_index: Int32,
        settings: IndexSettings = AUTO,
        queries: Float32 | None = None,
        device: str = "cpu",
    ) -> ItemIndex:
        """Index `vectors` [n, d] of the items `item_index` [n] (ascending, from 1) so that the asked recall is reached.

        The effort of a search is the least that reaches it on every second of `queries` [q, d]; the recall is measured on the
        others. Nothing depends on a clock. Without queries auto is exact; hnsw is built on one thread, because its graph depends
        on the order. Raises ValueError where an asked type stays below the recall, or cannot be built of so few vectors.
        """
        vectors = np.ascontiguousarray(vectors, dtype=np.float32)
        exact = cls(_flat(vectors), item_index.astype(np.int32), vectors, IndexFacts(), device)
        exact = replace(exact, facts=_exact_facts(exact, settings, queries))
        is_auto = settings.type == "auto"
        if settings.type == "exact" or (is_auto and len(vectors) <= _EXACT_UP_TO):
            return exact
        if queries is None or len(queries) < 2:
            if is_auto:
                return exact
            raise ValueError(
                f"index.type: received {settings.type!r} and {0 if queries is None else len(queries)} user vectors, expected at "
                "least 2 to tune it on and to measure its recall; set index.type to 'exact'"
            )
        reached = 0.0
        for kind in candidates(settings, *vectors.shape):
            limit = MOST_SCANNED[kind] if is_auto else 1.0
            refined = min(MOST_REFINED[kind], len(vectors) // 16)
            least = 2 * int(_power_of_two(_RECALLED + _SPARE + refined))
            if len(vectors) <= least:  # a search would fetch half of them: such are searched exactly
                raise ValueError(
                    f"index.type: received {kind!r} for {len(vectors)} items, expected more than {least}; use 'exact'"
                )
            facts = IndexFacts(kind, {"num_refined": refined}, settings.target_recall, num_built=len(vectors))
            found = tuned(
                cls(_trained(kind, vectors), exact.item_index, vectors, facts, device), queries, limit
            )
            reached = found.facts.recall["recall@100"]
            is_worth_it = found.facts.scanned_share <= limit or not is_auto  # what is asked for may be slow
            if reached >= settings.target_recall and is_worth_it:
                return found.with_facts(num_bytes=_num_bytes(found.index))
        if is_auto:
            return exact
        raise ValueError(
            f"index.type: {settings.type!r} has recall@100 {reached:.4f} on {len(queries) // 2} user vectors, expected at least "
            f"index.target_recall = {settings.target_recall}; set index.type to 'auto' or 'exact', or ask for less"
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
        """What `search` of an exact index answers, whatever the type of this one."""
        positions, scores = self._exactly(queries, k)
        return self._items(positions), scores

    def search_approximately(self, queries: Float32, k: int) -> tuple[Int32, Float32]:
        """What FAISS finds, with exact scores; rows that it cannot fill end with item 0."""
        positions, scores = self._approximately(queries, k, None, None)
        return self._items(positions), scores

    def recall(self, queries: Float32, k: int) -> float:
        """Share of the exact k best items of `queries` [r, d] that `search` finds."""
        return share_found(self.search_exactly(queries, k)[0], self.search(queries, k)[0])

    def efforts(self, limit: float) -> list[int]:
        """Values of nprobe or efSearch in steps of about a half, from little work to about the share `limit` of all of it."""
        effort, most = _RECALLED + _SPARE, max(_RECALLED + _SPARE, min(self.index.ntotal, _MOST_EF))
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
            self.index.hnsw.efSearch, shape = effort, {"num_links": _NUM_LINKS, "ef_search": effort}
        return self.with_facts(parameters=self.facts.parameters | shape)

    def with_facts(self, **changes: Any) -> Self:
        """The same index with some facts replaced."""
        return replace(self, facts=replace(self.facts, **changes))

    def scanned_share(self, queries: Float32) -> float:
        """Vectors and centroids that one of `queries` [r, d] is compared with on average, counted, per vector in the index."""
        return _num_scanned(self.index, queries) / len(self.item_index)

    def queries_per_second(self, queries: Float32, k: int, *, exactly: bool = False) -> float:
        """Rows of `queries` [r, d] answered a second by one thread, `exactly` or as `search` does."""
        with _one_thread():
            started = time.perf_counter()
            if exactly:
                self._exactly(queries, k)
            else:
                self.search(queries, k)
            return len(queries) / (time.perf_counter() - started)

    def add(
        self, vectors: Float32, item_index: Int32, queries: Float32 | None = None
    ) -> tuple[ItemIndex, bool]:
        """An index with the vectors [m, d] of further items [m] too, and whether it had to be built anew.

        Numbers of items ascend and go on after those that are there. Lists and codes describe what they were trained on, and a
        graph has room for vectors no longer than its longest: with a quarter more items, or a longer vector, all is built, tuned
        and measured anew on `queries`, as `build` does (without queries the new index is exact). Else vectors are only added, and
        the facts remain those of the building.
        """
        if len(item_index) and not (item_index[0] > self.num_items and (np.diff(item_index) > 0).all()):
            raise ValueError(
                f"ItemIndex.add: received items from {int(item_index.min())}, expected ascending numbers above {self.num_items}; "
                "build the index again to replace vectors"
            )
        together = np.concatenate((self.vectors, np.asarray(vectors, np.float32)))
        items = np.concatenate((self.item_index, item_index.astype(np.int32)))
        facts, longest = self.facts, _longest(self.vectors)
        if not (facts.type == "exact" or self._takes(vectors, longest)):
            kind = "exact" if queries is None else facts.type
            return self.build(
                together, items, IndexSettings(kind, facts.target_recall), queries, self.device
            ), True
        grown: Any = faiss.deserialize_index(
            faiss.serialize_index(self.index)
        )  # in memory, whatever this one lies in
        with _one_thread():
            further = together[len(self.item_index) :]
            grown.add(_on_a_sphere(further, longest) if facts.type == "hnsw" else further)
        return ItemIndex(
            grown, items, together, replace(facts, num_bytes=_num_bytes(grown)), self.device
        ), False

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
        spare = _SPARE + self.facts.parameters["num_refined"]
        wanted = (k + spare + (0 if seen is None else seen.lengths)) / share
        fetch = np.broadcast_to(_power_of_two(wanted), len(queries))
        for size in np.unique(fetch[2 * fetch < num_vectors]).tolist():
            same = np.flatnonzero(fetch == size)
            for rows in np.array_split(same, -(-len(same) * size // _FETCH_CELLS)):
                part = np.ascontiguousarray(queries[rows], np.float32)
                found = _probe(self.index, part, size, max(1.0, size / _power_of_two(_RECALLED + spare)))
                if is_out is not None:
                    found[is_out[found]] = -1
                if seen is not None:
                    found[self._is_seen(found, seen.select(rows))] = -1
                best = best_of(_tensor(part), torch.from_numpy(self.vectors), torch.from_numpy(found), k)
                positions[rows], scores[rows] = best[0].numpy(), best[1].numpy()
        return positions, scores

    def _takes(self, vectors: Float32, longest: float) -> bool:
        """Whether further `vectors` [m, d] can be added to an approximate index."""
        num_items = len(self.item_index) + len(vectors)
        if self.facts.type == "hnsw":
            return _longest(vectors) <= longest
        return num_items <= _REBUILD_GROWTH * self.facts.num_built

    def _is_seen(self, found: Int64, seen: Histories) -> NDArray[np.bool_]:
        """[r, f]: whether the vector at `found[r, j]` is of an item in row r; each (row, position) is one number."""
        row, place = _seen_places(seen, self._places, np.arange(len(seen)))
        keys = np.arange(len(found))[:, None] * len(self.item_index) + found
        return np.isin(keys, row * len(self.item_index) + place) & (found >= 0)

    def _items(self, positions: Int64) -> Int32:
        found = self.item_index[positions] if len(self.item_index) else positions
        return np.where(positions >= 0, found, 0).astype(np.int32)


def _exact_facts(exact: ItemIndex, settings: IndexSettings, queries: Float32 | None) -> IndexFacts:
    """Exact search finds what exact search finds."""
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


def _trained(kind: ApproximateType, vectors: Float32) -> Any:
    """A FAISS index of a type over the vectors [n, d]; about 4·√n lists, as FAISS's guidelines have it."""
    num_vectors, dim = vectors.shape
    if kind == "hnsw":
        graph: Any = faiss.IndexHNSWFlat(dim + 1, _NUM_LINKS)
        graph.hnsw.efConstruction = _EF_CONSTRUCTION
        with _one_thread():
            graph.add(_on_a_sphere(vectors, _longest(vectors)))
        return graph
    num_lists = max(1, min(round(4 * num_vectors**0.5), num_vectors // _LIST_POINTS))
    num_codes = next(codes for codes in range(max(1, dim // _CODE_COMPONENTS), 0, -1) if dim % codes == 0)
    codec = {"ivf": "Flat", "sq": "SQ8", "ivf_pq": f"PQ{num_codes}"}[kind]
    index: Any = faiss.index_factory(dim, f"IVF{num_lists},{codec}", faiss.METRIC_INNER_PRODUCT)
    index.cp.max_points_per_centroid = _LIST_POINTS
    if kind == "ivf_pq":
        index.do_polysemous_training = (
            False  # an order of codes for a search that is not used here; it takes a minute
        )
        index.pq.cp.min_points_per_centroid = 1
    index.train(vectors)
    index.add(vectors)
    return index


def _longest(vectors: Float32) -> float:
    """The largest squared length of vectors [n, d]."""
    return float(np.square(vectors).sum(1, dtype=np.float64).max(initial=0.0))


def _on_a_sphere(vectors: Float32, longest: float) -> Float32:
    """[n, d + 1]: vectors with a component more that makes every squared length `longest`.

    By distance from (q, 0) they come in the order of their inner products with q, and a graph needs distances: where links
    follow inner products, clusters of short vectors are out of reach (Bachrach et al., Speeding up the Xbox recommender, 2014).
    """
    rest = np.sqrt(np.maximum(longest - np.square(vectors).sum(1, dtype=np.float64), 0))
    return np.concatenate((vectors, rest[:, None].astype(np.float32)), axis=1)


def _has_lists(index: Any) -> bool:
    return isinstance(index, faiss.IndexIVF)


def _probe(index: Any, queries: Float32, fetch: int, depth: float) -> Int64:
    """[r, fetch] positions of the best that FAISS finds (-1: no more) with `depth` times the tuned nprobe or efSearch.

    Lists are chosen by `nearest`, for each row by itself.
    """
    if not _has_lists(index):
        parameters = _UNTYPED.SearchParametersHNSW(efSearch=int(index.hnsw.efSearch * depth))
        found: Int64 = index.search(_on_a_sphere(queries, 0.0), fetch, params=parameters)[1]
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


def _power_of_two(number: Any) -> Any:
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
    index.search(_on_a_sphere(queries, 0.0), _RECALLED)
    return float((counts.ndis - before) / len(queries))


def _stored(index: Any) -> Float32 | None:
    """[n, d] the exact vectors where FAISS keeps them in order (no copy), None where it does not."""
    if not isinstance(index, faiss.IndexFlat):
        return None
    if not index.ntotal:
        return np.zeros((0, index.d), np.float32)
    found: Float32 = faiss.rev_swig_ptr(index.get_xb(), index.ntotal * index.d)
    return found.reshape(index.ntotal, index.d)


def _num_bytes(index: faiss.Index) -> int:
    """Bytes that FAISS writes."""
    counts: list[int] = []
    faiss.write_index(index, _UNTYPED.PyCallbackIOWriter(lambda written: counts.append(len(written))))
    return sum(counts)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
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
