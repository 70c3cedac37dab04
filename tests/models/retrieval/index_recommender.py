"""A history encoder in front of an item index, as a recommender."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

from models.histories import Float32, Histories, Int32

if TYPE_CHECKING:
    from models.retrieval.index import ItemIndex


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
