"""Weights of a log's events as targets of the training, by the lists in which their items were shown."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from features.histories.exposures import JaggedExposures
from features.histories.jagged import user_ranges
from models.histories import Float32, Int64
from models.training import exposure_weights
from models.training.exposure_weights import Method, PlaceLooks
from pipeline.dataset.dataset import Dataset
from pipeline.dataset.exposed_lists import FOLDER, is_taken

_BLOCK_ROWS = 4_000_000
"""Exposures and events of users worked on at once."""
_LEARNED_FROM = 5_000_000
"""Exposures at most from which looks at places are learned, those of whole users."""
_FOREVER = int(np.iinfo(np.int64).max)
_KEY = ["user", "item", "time"]


@dataclass(frozen=True)
class EventWeights:
    """Weights of events as targets, 1 on average; events without an exposure have 1."""

    weight: Float32
    """[events of the log]"""
    looks: list[float]
    """Probability that a user looks at each place, relative to the largest."""
    method: Method
    num_reactions: int
    effective_share: float
    """Effective number of the weighted reactions as a share of all."""

    def facts(self) -> dict[str, Any]:
        """All but the weights themselves."""
        return {
            "looks_by_place": [round(look, 4) for look in self.looks],
            "looks_from": self.method,
            "reactions": self.num_reactions,
            "effective_share": round(self.effective_share, 4),
        }

    def sentence(self) -> str:
        """The same in words; of the first five places."""
        looks = ", ".join(f"{look:.2f}" for look in self.looks[:5]) + ", …" * (len(self.looks) > 5)
        places = f"places looked at {looks} (from {self.method})"
        if self.method == "none":
            few = exposure_weights.MIN_REACTIONS
            places = f"all places taken to be looked at alike (fewer than {few} reactions at a known rank)"
        return f"{self.num_reactions:,} reactions to exposures weighted, {places}, effective share {self.effective_share:.2f}"

    @classmethod
    def of(cls, dataset: Dataset, ends: Int64, window: int) -> "EventWeights | None":
        """Weights by exposures whose `window` (microseconds) ends before each user's event at flat position `ends` [num_users].

        In a temporal split it must end before the first of those events, and always by the log's newest regular one. None
        without a reaction to an exposure.
        """
        shown = JaggedExposures.load(dataset.folder / FOLDER)
        until = _moments(dataset, ends) - window
        looks = _place_looks(shown, dataset, until)
        looked, places = np.zeros((2, dataset.num_items + 1)), np.append(looks.by_place, 1.0)
        positions: list[Int64] = []
        for first, last in user_ranges(shown.offsets + dataset.histories.offsets, _BLOCK_ROWS):
            chosen = _before(shown, until, first, last)
            place = _place(shown, chosen)
            place = np.where(place < len(looks.by_place), place, len(looks.by_place) - 1)
            looked += exposure_weights.looks_at_items(
                shown.item_index[chosen], places[place], dataset.num_items
            )
            positions.append(
                _reactions(shown, dataset, chosen[is_taken(shown, chosen, dataset)], first, last)
            )
        reactions = np.concatenate(positions) if positions else np.zeros(0, np.int64)
        if not len(reactions):
            return None
        weight = np.ones(len(dataset.histories.item_index), np.float32)
        item = np.asarray(dataset.histories.item_index)[reactions].astype(np.int64)
        own = exposure_weights.inverse_looks(item, exposure_weights.without_chance(looked))
        weight[reactions] = own
        share = exposure_weights.effective_share(own)
        return cls(weight, looks.by_place.tolist(), looks.method, len(reactions), share)


def _moments(dataset: Dataset, ends: Int64) -> Int64:
    """[num_users] microseconds before which exposures count."""
    histories = dataset.histories
    has_more = ends < np.asarray(histories.offsets[1:])
    until = np.full(histories.num_users, _FOREVER)
    until[has_more] = histories.time[ends[has_more]]
    until = np.minimum(until, dataset.facts.now + 1)
    return np.full_like(until, until.min(initial=_FOREVER)) if dataset.split.protocol == "temporal" else until


def _before(shown: JaggedExposures, until: Int64, first: int, last: int) -> Int64:
    """Flat positions of the exposures of known items to users first..last-1 before the users' moments."""
    start, stop = int(shown.offsets[first]), int(shown.offsets[last])
    bound = np.repeat(until[first:last], np.diff(shown.offsets[first : last + 1]))
    is_before = (np.asarray(shown.time[start:stop]) < bound) & (np.asarray(shown.item_index[start:stop]) > 0)
    return start + np.flatnonzero(is_before)


def _place(shown: JaggedExposures, chosen: Int64) -> Int64:
    """[e] place from 0, -1 where the log has no rank."""
    return np.asarray(shown.rank[chosen], np.int64) - 1


def _place_looks(shown: JaggedExposures, dataset: Dataset, until: Int64) -> PlaceLooks:
    """Looks at each place, learned from the exposures of evenly spaced users."""
    step = -(-max(len(shown.time), 1) // _LEARNED_FROM)
    blocks = []
    for first, last in user_ranges(shown.offsets, _BLOCK_ROWS):
        chosen = _before(shown, until, first, last)
        user = np.searchsorted(shown.offsets, chosen, side="right") - 1
        kept = (user % step == 0) & (_place(shown, chosen) >= 0)
        blocks.append((user[kept], chosen[kept]))
    user = np.concatenate([own for own, _ in blocks]) if blocks else np.zeros(0, np.int64)
    chosen = np.concatenate([own for _, own in blocks]) if blocks else np.zeros(0, np.int64)
    item = np.asarray(shown.item_index[chosen], np.int64)
    return PlaceLooks.fit(user, item, _place(shown, chosen), is_taken(shown, chosen, dataset))


def _reactions(shown: JaggedExposures, dataset: Dataset, chosen: Int64, first: int, last: int) -> Int64:
    """Flat positions of the events that are the reactions to exposures of users first..last-1, each once."""
    histories = dataset.histories
    start, stop = int(histories.offsets[first]), int(histories.offsets[last])
    lengths = np.diff(histories.offsets[first : last + 1])
    events = pl.DataFrame(
        {
            "user": np.repeat(np.arange(first, last, dtype=np.int64), lengths),
            "item": np.asarray(histories.item_index[start:stop]),
            "time": np.asarray(histories.time[start:stop]),
        }
    ).with_row_index("position")
    taken = pl.DataFrame(
        {
            "user": np.searchsorted(shown.offsets, chosen, side="right").astype(np.int64) - 1,
            "item": np.asarray(shown.item_index[chosen]),
            "time": np.asarray(shown.time[chosen]) + np.asarray(shown.reaction_delay[chosen]),
        }
    ).unique()
    found: NDArray[np.int64] = (
        events.unique(_KEY, keep="first", maintain_order=True)
        .join(taken, on=_KEY)["position"]
        .cast(pl.Int64)
        .sort()
        .to_numpy()
    )
    return start + found
