"""Held-out targets of requests: warm ones, cold ones reported separately, and counts of excluded events by reason.

A request is a history at a moment, for which systems recommend. By `successive` and `first` every target is a request of its own,
at its event's time; by `nightly` a request has all that its user takes within the horizon of a night.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from features.histories.jagged import JaggedHistories
from features.histories.numbering import ItemNumbering
from features.histories.splits import blocks
from models.histories import Histories, Int32, Int64
from pipeline.dataset.dataset import Dataset, HeldOut, rows

WARM, NO_HISTORY, UNKNOWN_ITEM = range(3)
"""Codes of `RankedTargets.cold`."""


@dataclass(frozen=True)
class RankedTargets:
    """Held-out targets and their requests in a model's own item numbering; requests are ordered by night, user and position."""

    histories: Histories
    """[requests], history before each, empty for cold users; requested at the night or at the target's time."""
    user: Int64
    """[requests], user index"""
    request: Int64
    """[targets], number of each target's request, ascending"""
    item: Int32
    """[targets], 1..num_items of the model, 0 for an unknown item; distinct within a request"""
    position: Int64
    """[targets], flat position of the (first) event in the features folder"""
    cold: NDArray[np.int8]
    """[targets], WARM, NO_HISTORY (no known item before it) or UNKNOWN_ITEM (unseen in training)"""
    left_out: dict[str, int]
    """Counts of held-out events that are no targets, by reason; of nights also user-nights without any target."""

    @classmethod
    def one_each(
        cls,
        histories: Histories,
        item: Int32,
        user: Int64,
        position: Int64,
        cold: NDArray[np.int8],
        left_out: dict[str, int],
    ) -> "RankedTargets":
        """Targets that are a request each."""
        return cls(histories, user, np.arange(len(item)), item, position, cold, left_out)

    def __len__(self) -> int:
        return len(self.item)

    @property
    def num_requests(self) -> int:
        """Requests: user-nights, or as many as targets."""
        return len(self.user)

    @property
    def moment(self) -> Int64:
        """[requests], time of each, microseconds since the epoch."""
        assert self.histories.request_time is not None
        return self.histories.request_time

    @property
    def user_of_target(self) -> Int64:
        """[targets], user index."""
        return self.user[self.request]

    @property
    def warm(self) -> NDArray[np.bool_]:
        """Targets with a known item and a history: [targets]."""
        return np.asarray(self.cold == WARM)

    @property
    def num_cold(self) -> dict[str, int]:
        """Counts of cold targets, by reason."""
        counts = np.bincount(self.cold, minlength=3)
        return {"no_history": int(counts[NO_HISTORY]), "unknown_item": int(counts[UNKNOWN_ITEM])}

    def select(self, chosen: NDArray[np.bool_] | NDArray[np.integer]) -> "RankedTargets":
        """Targets of a mask or of ascending indices, and their requests; `left_out` stays the same."""
        requests, request = np.unique(self.request[chosen], return_inverse=True)
        return replace(
            self,
            histories=self.histories.select(requests),
            user=self.user[requests],
            request=request.astype(np.int64),
            item=self.item[chosen],
            position=self.position[chosen],
            cold=self.cold[chosen],
        )

    def of_requests(self, chosen: NDArray[np.bool_]) -> "RankedTargets":
        """Requests of a mask [requests], and all their targets."""
        kept = chosen[self.request]
        return replace(
            self,
            histories=self.histories.select(chosen),
            user=self.user[chosen],
            request=(np.cumsum(chosen) - 1)[self.request[kept]].astype(np.int64),
            item=self.item[kept],
            position=self.position[kept],
            cold=self.cold[kept],
        )

    def sample(self, most: int, seed: int) -> "RankedTargets":
        """At most `most` requests, fixed by the seed, and all their targets."""
        if self.num_requests <= most:
            return self
        chosen = np.zeros(self.num_requests, bool)
        chosen[np.random.default_rng(seed).choice(self.num_requests, most, replace=False)] = True
        return self.of_requests(chosen)

    def of_some_users(self, most: int, seed: int) -> "RankedTargets":
        """All requests of random users, fixed by the seed, as many users as have at most `most` requests, at least one.

        The others' requests count in `left_out` as `not_sampled`.
        """
        if self.num_requests <= most:
            return self
        users, own = np.unique(self.user, return_inverse=True)
        order = np.random.default_rng(seed).permutation(len(users))
        num_users = np.searchsorted(np.cumsum(np.bincount(own)[order]), most, side="right")
        some = self.of_requests(np.isin(own, order[: max(1, num_users)]))
        left_out = self.left_out | {"not_sampled": self.num_requests - some.num_requests}
        return replace(some, left_out=left_out)

    def translate(self, mapping: Int32) -> "RankedTargets":
        """Targets and histories renumbered by `mapping` [num_items + 1], 0 for an unknown item."""
        return replace(self, histories=self.histories.translate(mapping), item=mapping[self.item])


def ranked_targets(
    dataset: Dataset,
    part: str,
    numbering: ItemNumbering,
    *,
    ties: str,
    session_minutes: float = 0.0,
    exclude_seen: bool,
    first_only: bool = False,
    trained: NDArray[np.bool_] | None = None,
    types: NDArray[np.bool_] | None = None,
    dislikes: bool = False,
) -> RankedTargets:
    """Targets among the events of the `validation` or `test` part: those that are no dislikes, or with `dislikes` the dislikes.

    Other events count in `left_out` under the first reason that applies: `under_core` (user or training item under the core
    filter; in leave-one-out, whose filter counts the whole log, any item under it), `dislike`, `not_first` (with `first_only`:
    not the user's first event in the part, even if that one is no target), `already_seen` (with `exclude_seen`: item in the
    history, known to the model or not), `other_type` (with `types` [num_event_types + 1]: type not included). `numbering`: items
    of the dataset -> the model's. Items outside `trained` [num_items + 1] are cold even where the model knows them by content.
    """
    histories, split = dataset.histories, dataset.split
    candidates, num_events = dataset.held_out(part, ties, session_minutes), split.num_events(histories)[part]
    if dislikes:
        candidates = candidates.select(histories.is_dislike(candidates.position))
        _, position = rows(histories, *split.stretch(histories, part)).gather()
        num_events = int(np.count_nonzero(histories.is_dislike(position)))
    none, first = np.zeros(len(candidates), bool), split.stretch(histories, part)[0][candidates.user]
    reasons = {"under_core": dataset.under_core()[candidates.item]}
    if histories.dislikes is not None and not dislikes:
        reasons["dislike"] = histories.is_dislike(candidates.position)
    reasons |= {
        "not_first": candidates.position != first if first_only else none,
        "already_seen": _already_seen(histories, candidates) if exclude_seen else none,
    }
    if types is not None:
        reasons["other_type"] = ~types[histories.event_type[candidates.position]]
    left_out = {"under_core": num_events - len(candidates)}
    kept = np.ones(len(candidates), bool)
    for reason, applies in reasons.items():
        left_out[reason] = left_out.get(reason, 0) + int((kept & applies).sum())
        kept &= ~applies
    chosen = candidates.select(kept)
    item, before = numbering.new[chosen.item], chosen.histories.translate(numbering.new)
    cold = np.full(len(chosen), WARM, np.int8)
    cold[before.lengths == 0] = NO_HISTORY
    cold[item == 0 if trained is None else ~trained[chosen.item]] = UNKNOWN_ITEM
    return RankedTargets.one_each(before, item, chosen.user, chosen.position, cold, left_out)


def _already_seen(histories: JaggedHistories, candidates: HeldOut) -> NDArray[np.bool_]:
    """Whether an item occurs in its user's history before the target: [candidates]."""
    seen = np.zeros(len(candidates), bool)
    for block in blocks(histories):
        here = slice(*np.searchsorted(candidates.user, (block.users.start, block.users.stop)))
        item = block.cut(histories.item_index)
        pair = np.repeat(np.arange(len(block.lengths)), block.lengths) * (int(item.max(initial=0)) + 1) + item
        _, first, number = np.unique(pair, return_index=True, return_inverse=True)
        first_on_item = block.events.start + first[number[candidates.position[here] - block.events.start]]
        seen[here] = first_on_item < candidates.histories.ends[here]
    return seen


def counted(targets: RankedTargets, *, cold_users: bool, cold_items: bool) -> NDArray[np.bool_]:
    """Mask [targets] of the targets included in metrics."""
    included: NDArray[np.bool_] = targets.cold == WARM
    if cold_users:
        included = included | (targets.cold == NO_HISTORY)
    if cold_items:
        included = included | (targets.cold == UNKNOWN_ITEM)
    return included


def counts_by_reason(left_out: Mapping[str, int]) -> str:
    """Text of the counts by reason, zeros left out."""
    reasons = (f"{count:,} {reason.replace('_', ' ')}" for reason, count in left_out.items() if count)
    return ", ".join(reasons) or "nothing"
