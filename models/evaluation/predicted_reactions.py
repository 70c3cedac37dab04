"""Rate at which an item is taken at a place, predicted from earlier exposures: the reward model of the direct method."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.evaluation.metrics import Float64

_PRIOR = 5.0
"""Reactions that every item is taken to have had at the rates of its places: the fewer exposures, the closer to the mean."""


@dataclass(frozen=True)
class PredictedReactions:
    """Rate of a place times how much more often than others an item is taken."""

    by_place: Float64
    """[k], mean reactions"""
    by_item: Float64
    """[num_items + 1], ratio to the mean at the same places; 0 for item 0, which is none"""

    @classmethod
    def fit(
        cls,
        place: NDArray[np.integer],
        item: NDArray[np.integer],
        is_taken: NDArray[np.bool_],
        *,
        num_places: int,
        num_items: int,
    ) -> "PredictedReactions":
        """Rates of exposures [e]: place in 0..k-1, item in 0..num_items.

        An item's ratio is (reactions + _PRIOR) / (reactions expected by its places + _PRIOR), the mean of a gamma posterior.
        """
        shown = np.bincount(place, minlength=num_places)
        taken = np.bincount(place, weights=is_taken, minlength=num_places)
        by_place = taken / np.maximum(shown, 1)
        expected = np.bincount(item, weights=by_place[place], minlength=num_items + 1)
        own = np.bincount(item, weights=is_taken, minlength=num_items + 1)
        by_item = (own + _PRIOR) / (expected + _PRIOR)
        by_item[0] = 0
        return cls(by_place, by_item)

    def of(self, item: NDArray[np.integer]) -> Float64:
        """[n, k], predicted rates of lists of items [n, k], at most 1."""
        return np.asarray(np.minimum(self.by_place[: item.shape[1]] * self.by_item[item], 1))
