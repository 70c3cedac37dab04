"""Expected gain of the second stage by length of history, and the users whose lists it is worth most for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.evaluation.metrics import Float64
from models.histories import Int64

ENTRY = "gain_by_history"
"""Entry of ranker.json."""

# Letters in shapes: c classes of history lengths, u users, l lists.


@dataclass(frozen=True)
class HistoryGain:
    """Gain in NDCG@10 over retrieval alone on validation, by class of history lengths."""

    first_length: Int64
    """[c], shortest history of each class, ascending"""
    lists: Int64
    """[c], lists measured"""
    gain: Float64
    """[c], mean over the lists"""

    @classmethod
    def measure(cls, lengths: Int64, gain: Float64, edges: Sequence[int]) -> "HistoryGain":
        """Mean `gain` [l] of lists with histories of `lengths` [l], by class beginning at `edges`, empty ones left out."""
        code = np.searchsorted(edges, lengths, side="right") - 1
        lists = np.bincount(code, minlength=len(edges))
        total = np.bincount(code, weights=gain, minlength=len(edges))
        some = lists > 0
        return cls(np.asarray(edges, np.int64)[some], lists[some], total[some] / lists[some])

    @classmethod
    def of_description(cls, description: Mapping[str, Any]) -> "HistoryGain | None":
        """Gain in ranker.json; None in one of an earlier version."""
        rows = description.get(ENTRY)
        if not rows:
            return None
        columns = ([row[name] for row in rows] for name in ("first_length", "lists", "gain"))
        first_length, lists, gain = map(np.array, columns)
        return cls(first_length, lists, gain.astype(np.float64))

    def as_rows(self) -> list[dict[str, float]]:
        """A row per class: `first_length`, `lists`, `gain`."""
        rows = zip(self.first_length.tolist(), self.lists.tolist(), self.gain.tolist(), strict=True)
        return [{"first_length": first, "lists": lists, "gain": gain} for first, lists, gain in rows]

    def chosen(self, lengths: Int64, keys: NDArray[np.uint64], share: float) -> NDArray[np.bool_]:
        """Mask [u] of a share of the users with a history: those of the highest expected gain.

        lengths: [u] events of each user. keys: [u], by which users of equal gain are ordered. A length outside the classes has
        the gain of the class below it, or else of the first.
        """
        code = np.maximum(np.searchsorted(self.first_length, lengths, side="right") - 1, 0)
        gain = np.where(lengths > 0, self.gain[code], -np.inf)
        number = round(share * int(np.count_nonzero(lengths)))
        mask = np.zeros(len(lengths), bool)
        mask[np.lexsort((keys, -gain))[:number]] = True
        return mask
