"""Nearest items by inner product with exact FAISS search, in the answer form of every recommender."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch  # before faiss: on macOS two OpenMP runtimes in the other order crash  # isort: skip
import faiss  # isort: skip
import numpy as np
from numpy.typing import NDArray

from models.recommender import Float32, Histories, Int32, Int64
from models.topk import recommend_from_scores, row_chunks, top_k

# Letters in shapes: r rows (queries), n vectors in the index, d their width, f fetched per query.

_INDEX_FILE, _ITEMS_FILE = "items.faiss", "items.npy"
_FIRST_FETCH = 4
"""Vectors fetched at first per vector asked for, where seen items may have to be dropped."""


@dataclass(frozen=True)
class ItemIndex:
    """A FAISS index over item vectors and our own array of the items they stand for."""

    index: faiss.Index
    """n vectors of width d, searched by inner product; position i is `item_index[i]`."""
    item_index: Int32
    """[n], ascending, from 1."""

    def __post_init__(self) -> None:
        if self.index.ntotal != len(self.item_index):
            raise ValueError(
                f"ItemIndex: received {self.index.ntotal} vectors and {len(self.item_index)} items,"
                " expected as many of each; build the index again"
            )

    @classmethod
    def build(cls, vectors: Float32, item_index: Int32) -> ItemIndex:
        """Index `vectors` [n, d] of the items `item_index` [n] (ascending, from 1) exactly (`IndexFlatIP`)."""
        index = faiss.IndexFlatIP(vectors.shape[1])
        index.add(np.ascontiguousarray(vectors, dtype=np.float32))
        return cls(index, item_index.astype(np.int32))

    @property
    def num_items(self) -> int:
        """The highest item; score matrices have a column more."""
        return int(self.item_index[-1]) if len(self.item_index) else 0

    def save(self, folder: Path) -> None:
        """Write FAISS's own file and the items' array into `folder`."""
        faiss.write_index(self.index, str(folder / _INDEX_FILE))
        np.save(folder / _ITEMS_FILE, self.item_index)

    @classmethod
    def load(cls, folder: Path) -> ItemIndex:
        """Read what `save` wrote. Raises ValueError if a file is missing or the two don't fit together."""
        for name in (_INDEX_FILE, _ITEMS_FILE):
            if not (folder / name).is_file():
                raise ValueError(
                    f"item index: {folder / name} is missing; run the stage index again with --force"
                )
        return cls(faiss.read_index(str(folder / _INDEX_FILE)), np.load(folder / _ITEMS_FILE))

    def add(self, vectors: Float32, item_index: Int32) -> tuple[ItemIndex, bool]:
        """The index with `vectors` [m, d] of the items `item_index` [m] (ascending, above all others) too.

        And whether it was rebuilt.
        """
        known = self.index.reconstruct_n(0, self.index.ntotal)
        items = np.concatenate([self.item_index, item_index.astype(np.int32)])
        return ItemIndex.build(np.concatenate([known, vectors.astype(np.float32)]), items), True

    def search(
        self,
        queries: Float32,
        k: int,
        seen: Histories | None = None,
        allowed: NDArray[np.bool_] | None = None,
    ) -> tuple[Int32, Float32]:
        """The k items of highest inner product with each of `queries` [r, d], best first: items and scores, two [r, k].

        Items of `seen`'s row r are left out of answer r, and all those that are not `allowed` [num_items + 1].
        Fewer than k answers: item 0 with score -inf. Equal scores:
        the lower item first. More than k are fetched, and four times as many for rows whose k-th answer is no better
        than the last one fetched (too many were seen, or equal scores may lie beyond); near the catalogue's size all
        is scored.
        """
        items = np.zeros((len(queries), k), np.int32)
        scores = np.full((len(queries), k), -np.inf, np.float32)
        fetch = k + 1 if seen is None and allowed is None else k * _FIRST_FETCH
        open_rows = np.arange(len(queries))
        while len(open_rows):
            rest = None if seen is None else seen.select(open_rows)
            if 2 * fetch >= self.index.ntotal:
                items[open_rows], scores[open_rows] = self._search_all(queries[open_rows], k, rest, allowed)
                break
            found, values, last = self._fetch(queries[open_rows], fetch, rest, allowed)
            items[open_rows], scores[open_rows] = _best_of(found, values, k)
            open_rows, fetch = open_rows[scores[open_rows, -1] <= last], fetch * 4
        return items, scores

    def score_items(self, queries: Float32) -> Float32:
        """Inner products with every item: [r, num_items + 1], -inf for column 0 and items without a vector."""
        scores = np.full((len(queries), self.num_items + 1), -np.inf, np.float32)
        vectors = self.index.reconstruct_n(0, self.index.ntotal)
        scores[:, self.item_index] = (torch.from_numpy(queries) @ torch.from_numpy(vectors).T).numpy()
        return scores

    def recall(self, queries: Float32, k: int) -> float:
        """Share of the exact k best items (by torch) of `queries` [r, d] that `search` finds."""
        k = min(k, self.index.ntotal)
        exact, _ = top_k(self.score_items(queries), k)
        found, _ = self.search(queries, k)
        return float(np.mean([len(np.intersect1d(*pair)) / k for pair in zip(exact, found, strict=True)]))

    def _search_all(
        self, queries: Float32, k: int, seen: Histories | None, allowed: NDArray[np.bool_] | None
    ) -> tuple[Int32, Float32]:
        """Every item scored, chunk after chunk of rows."""
        items, scores = np.zeros((len(queries), k), np.int32), np.zeros((len(queries), k), np.float32)
        for rows in row_chunks(len(queries), self.num_items):
            part = self.score_items(queries[rows])
            if allowed is not None:
                part[:, ~allowed[: self.num_items + 1]] = -np.inf
            items[rows], scores[rows] = (
                top_k(part, k) if seen is None else recommend_from_scores(part, seen.select(rows), k)
            )
        return items, scores

    def _fetch(
        self, queries: Float32, fetch: int, seen: Histories | None, allowed: NDArray[np.bool_] | None
    ) -> tuple[Int32, Float32, Float32]:
        """FAISS's best of each query, without what is seen or not allowed (0, -inf): items, scores [r, f]; the last score [r]."""
        scores, positions = self.index.search(np.ascontiguousarray(queries, dtype=np.float32), fetch)
        items = np.where(positions >= 0, self.item_index[positions], 0).astype(np.int32)
        last = scores[:, -1].copy()
        if seen is not None:
            items[_is_seen(items, seen, self.num_items)] = 0
        if allowed is not None:
            items[~allowed[items]] = 0
        scores[items == 0] = -np.inf
        return items, scores, last


def _is_seen(items: Int32, seen: Histories, num_items: int) -> NDArray[np.bool_]:
    """[r, f]: whether `items[r, j]` is in row r of `seen`; each (row, item) is one number."""
    width = num_items + 1
    row, position = seen.gather()
    keys: Int64 = np.arange(len(items), dtype=np.int64)[:, None] * width + items
    return np.isin(keys, row * width + seen.item_index[position])


def _best_of(items: Int32, scores: Float32, k: int) -> tuple[Int32, Float32]:
    """The k best of candidates [r, f]: by score, the lower item of equal ones."""
    order = np.lexsort((items, -scores), axis=1)[:, :k]
    return np.take_along_axis(items, order, axis=1), np.take_along_axis(scores, order, axis=1)


class HistoryEncoder(Protocol):
    """What turns histories into the vectors that an index is searched with."""

    num_items: int

    def encode(self, histories: Histories) -> Float32:
        """[r, d], one vector per history, row order kept."""
        ...


class IndexRecommender:
    """A history encoder in front of an item index: `recommend` searches, `score_items` is exact."""

    def __init__(self, encoder: HistoryEncoder, index: ItemIndex) -> None:
        self.encoder, self.index, self.num_items = encoder, index, encoder.num_items

    def score_items(self, histories: Histories) -> Float32:
        """Inner product of each history's vector with every item's: [r, num_items + 1], -inf where there is none."""
        scores = np.full((len(histories), self.num_items + 1), -np.inf, np.float32)
        scores[:, : self.index.num_items + 1] = self.index.score_items(self.encoder.encode(histories))
        return scores

    def recommend(self, histories: Histories, k: int, exclude_seen: bool = True) -> tuple[Int32, Float32]:
        """The k items that the index finds nearest, as every `Recommender` answers."""
        return self.index.search(self.encoder.encode(histories), k, histories if exclude_seen else None)
