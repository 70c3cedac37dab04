"""Lists of the exposure log that lie in the test period and whose propensities are known, and the requests that they answer."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features.histories.exposures import JaggedExposures
from features.histories.jagged import user_ranges
from features.histories.numbering import ItemNumbering
from models.evaluation.metrics import Float64
from models.evaluation.predicted_reactions import PredictedReactions
from models.histories import Int32, Int64
from models.ranking.shown import SHOWN_DAYS
from pipeline.config import Config
from pipeline.dataset.dataset import Dataset, rows
from pipeline.dataset.exposed_items import shown_before
from pipeline.dataset.protocol import period
from pipeline.dataset.targets import RankedTargets

FOLDER = "exposures"
"""Folder of the features' exposures, and of what systems would have shown instead."""
_BLOCK_ROWS = 4_000_000
"""Exposures of users worked on at once."""
_ARRAYS = ("user", "time", "item", "is_shown", "propensity", "is_taken")
"""The arrays of ExposedLists."""


@dataclass(frozen=True)
class ExposedLists:
    """Shown lists, n of them, each with its first k places at most."""

    user: Int64
    """[n], user index, ascending"""
    time: Int64
    """[n], microseconds since the epoch"""
    item: Int32
    """[n, k], item of the dataset; 0: unknown, or an empty place"""
    is_shown: NDArray[np.bool_]
    """[n, k], False in empty places"""
    propensity: Float64
    """[n, k], probability of the item given the places above, in (0, 1]; 0 in empty places"""
    is_taken: NDArray[np.bool_]
    """[n, k], whether the user reacted"""
    left_out: dict[str, int]
    """Counts of lists of the test period that are none of these, by reason."""

    @classmethod
    def of(cls, config: Config, dataset: Dataset) -> "ExposedLists | None":
        """Lists shown in the test period whose window of reactions ends within the log.

        Left out are lists with a place without a propensity (`without_propensity`), with missing, repeated or no ranks among
        their first places (`without_rank`), whose window ends later than the log (`unfinished`), all of random users beyond
        `evaluate.max_requests` lists (`not_sampled`), and those begun at other times (`outside_test`). None without
        propensities, or without a test period: by leave-one-out.
        """
        settings = config.exposures
        has_propensities = settings is not None and "propensity" in settings.columns
        if settings is None or not has_propensities or dataset.split.protocol != "temporal":
            return None
        shown = JaggedExposures.load(dataset.folder / FOLDER)
        start, end = period(dataset, "test")
        last = max(end, dataset.facts.now) - settings.window
        most, parts, outside = min(config.evaluate.k), [cls._none()], 0
        for users in user_ranges(shown.offsets, _BLOCK_ROWS):
            position, others = _begun(shown, users, start, end)
            lists = cls._of_places(shown, position, is_taken(shown, position, dataset), most)
            parts.append(lists.without("unfinished", lists.time > last))
            outside += others
        lists = cls._joined(parts).sample(config.evaluate.max_requests, config.seed)
        return replace(lists, left_out=lists.left_out | {"outside_test": outside})

    @classmethod
    def _none(cls) -> "ExposedLists":
        none, cells = np.zeros(0, np.int64), np.zeros((0, 0))
        return cls(none, none, cells.astype(np.int32), cells > 0, cells, cells > 0, {})

    @classmethod
    def _joined(cls, parts: "list[ExposedLists]") -> "ExposedLists":
        """The lists of all parts, with the places of the widest."""
        k = max(part.item.shape[1] for part in parts)

        def whole(name: str) -> NDArray[Any]:
            arrays = [getattr(part, name) for part in parts]
            if arrays[0].ndim == 2:
                arrays = [np.pad(array, ((0, 0), (0, k - array.shape[1]))) for array in arrays]
            return np.concatenate(arrays)

        reasons = dict.fromkeys(reason for part in parts for reason in part.left_out)
        left_out = {reason: sum(part.left_out.get(reason, 0) for part in parts) for reason in reasons}
        return cls(**{name: whole(name) for name in _ARRAYS}, left_out=left_out)

    @classmethod
    def _of_places(
        cls, shown: JaggedExposures, position: Int64, taken: NDArray[np.bool_], most: int
    ) -> "ExposedLists":
        """The first `most` places of whole lists.

        position, taken: [e], flat position of each exposure, and whether it was taken.
        """
        first, number = np.unique(shown.list_start[position], return_inverse=True)
        rank = np.array(shown.rank[position], np.int64)
        alone = np.bincount(number)[number] == 1
        rank[(rank == 0) & alone] = 1  # one item needs no rank
        has_ranks = np.bincount(number, rank == 0, len(first)) == 0
        longest = np.zeros(len(first), np.int64)
        np.maximum.at(longest, number, rank)
        within = (rank >= 1) & (rank <= most)
        position, taken, number, place = position[within], taken[within], number[within], rank[within] - 1
        k = int(place.max(initial=-1)) + 1
        counts = np.zeros((len(first), k), np.int64)
        np.add.at(counts, (number, place), 1)
        is_shown = counts > 0
        is_whole = (counts <= 1).all(axis=1) & (is_shown.sum(axis=1) == np.minimum(longest, most))
        item, propensity = np.zeros((len(first), k), np.int32), np.zeros((len(first), k))
        is_taken = np.zeros((len(first), k), bool)
        item[number, place] = shown.item_index[position]
        propensity[number, place] = shown.propensity[position]
        is_taken[number, place] = taken
        user = np.searchsorted(shown.offsets, first, side="right") - 1
        lists = cls(
            user, np.asarray(shown.time)[first], item, is_shown, propensity, is_taken, left_out={}
        ).without("without_rank", ~(has_ranks & is_whole))
        return lists.without("without_propensity", np.asarray(np.isnan(lists.propensity).any(axis=1)))

    def without(self, reason: str, dropped: NDArray[np.bool_]) -> "ExposedLists":
        """The lists outside a mask [n], whose others are counted."""
        left_out = self.left_out | {reason: int(dropped.sum())}
        return replace(self, **{name: getattr(self, name)[~dropped] for name in _ARRAYS}, left_out=left_out)

    def sample(self, most: int, seed: int) -> "ExposedLists":
        """All lists of random users, as many as have at most `most` lists together, at least one."""
        users, own = np.unique(self.user, return_inverse=True)
        order = np.random.default_rng(seed).permutation(len(users))
        num_users = np.searchsorted(
            np.cumsum(np.bincount(own, minlength=len(users))[order]), most, side="right"
        )
        return self.without("not_sampled", ~np.isin(own, order[: max(1, num_users)]))

    def __len__(self) -> int:
        return len(self.user)

    @cached_property
    def request(self) -> Int64:
        """[n], the request that each list answers, in order of user and time: lists shown to a user at one time have one."""
        return np.unique(np.stack([self.user, self.time]), axis=1, return_inverse=True)[1].ravel()

    def requests(self, dataset: Dataset, numbering: ItemNumbering) -> RankedTargets:
        """The requests that the lists answer, without targets: histories end before the list, in a numbering's items."""
        histories = dataset.histories
        user, time = np.unique(np.stack([self.user, self.time]), axis=1)
        ends = np.empty(len(user), np.int64)
        users, starts, sizes = np.unique(user, return_index=True, return_counts=True)
        stops = starts + sizes
        for own, start, stop in zip(users.tolist(), starts, stops, strict=True):
            begin, end = histories.offsets[own], histories.offsets[own + 1]
            ends[start:stop] = begin + np.searchsorted(histories.time[begin:end], time[start:stop])
        before = rows(histories, np.asarray(histories.offsets)[user], ends)
        shown = shown_before(dataset, user, time, SHOWN_DAYS)
        before = replace(before, request_time=time, user=user, shown=shown).translate(numbering.new)
        none = np.zeros(0, np.int64)
        return RankedTargets(before, user, none, none.astype(np.int32), none, none.astype(np.int8), {})


def _begun(shown: JaggedExposures, users: tuple[int, int], start: int, end: int) -> tuple[Int64, int]:
    """Flat positions of the exposures in lists begun in [start, end), and the number of lists begun at other times.

    users: range of users [first, last).
    """
    begin, stop = shown.offsets[users[0]], shown.offsets[users[1]]
    first = np.asarray(shown.list_start[begin:stop]) - begin
    begun = np.asarray(shown.time[begin:stop])[first]
    is_within = (begun >= start) & (begun < end)
    others = np.count_nonzero((first == np.arange(len(first))) & ~is_within)
    return begin + np.flatnonzero(is_within), int(others)


def predicted_reactions(dataset: Dataset, num_places: int, window: int) -> PredictedReactions | None:
    """Rates of reaction at places 1..num_places, from exposures whose window ends before the test; None without any.

    window: microseconds. Exposures without a rank do not count.
    """
    shown = JaggedExposures.load(dataset.folder / FOLDER)
    start, _ = period(dataset, "test")
    place = np.asarray(shown.rank) - 1
    is_over = np.asarray(shown.time) + window <= start
    chosen = np.flatnonzero(is_over & (place >= 0) & (place < num_places))
    if not len(chosen):
        return None
    return PredictedReactions.fit(
        place[chosen],
        shown.item_index[chosen],
        is_taken(shown, chosen, dataset),
        num_places=num_places,
        num_items=dataset.num_items,
    )


def is_taken(shown: JaggedExposures, position: Int64, dataset: Dataset) -> NDArray[np.bool_]:
    """[e], whether the exposures at flat positions have a reaction that is no dislike."""
    dislikes = dataset.histories.dislikes
    is_disliked = False if dislikes is None else dislikes[shown.reaction_type[position]] > 0
    return np.asarray((shown.reaction_delay[position] >= 0) & np.logical_not(is_disliked))
