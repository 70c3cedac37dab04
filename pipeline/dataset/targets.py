"""Held-out targets: warm ones, cold ones reported separately, and counts of excluded events by reason."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from features.histories.jagged import JaggedHistories
from features.histories.numbering import ItemNumbering
from features.histories.splits import blocks
from models.histories import Histories, Int32, Int64
from pipeline.config import Config
from pipeline.dataset.dataset import Dataset, HeldOut
from pipeline.dataset.protocol import Protocol
from pipeline.errors import LookbackError

WARM, NO_HISTORY, UNKNOWN_ITEM = range(3)
"""Codes of `RankedTargets.cold`."""


@dataclass(frozen=True)
class RankedTargets:
    """Held-out targets in a model's own item numbering, ordered by user and position."""

    histories: Histories
    """History before each target, empty for cold users."""
    item: Int32
    """[targets], 1..num_items of the model, 0 for an unknown item"""
    user: Int64
    """[targets], user index"""
    position: Int64
    """[targets], flat position of the event in the features folder"""
    cold: NDArray[np.int8]
    """[targets], WARM, NO_HISTORY (no known item before it) or UNKNOWN_ITEM (unseen in training)"""
    left_out: dict[str, int]
    """Counts of held-out events that are no targets, by reason."""

    def __len__(self) -> int:
        return len(self.item)

    @property
    def warm(self) -> NDArray[np.bool_]:
        """Targets with a known item and a history: [targets]."""
        return np.asarray(self.cold == WARM)

    @property
    def num_cold(self) -> dict[str, int]:
        """Counts of cold targets, by reason."""
        counts = np.bincount(self.cold, minlength=3)
        return {"no_history": int(counts[NO_HISTORY]), "unknown_item": int(counts[UNKNOWN_ITEM])}

    def select(self, chosen: NDArray[np.bool_] | NDArray[np.integer] | slice) -> "RankedTargets":
        """Targets of a mask, of indices or of a slice; `left_out` stays the same."""
        return replace(
            self,
            histories=self.histories.select(chosen),
            item=self.item[chosen],
            user=self.user[chosen],
            position=self.position[chosen],
            cold=self.cold[chosen],
        )


def ranked_targets(
    dataset: Dataset,
    part: str,
    numbering: ItemNumbering,
    *,
    ties: str,
    exclude_seen: bool,
    first_only: bool = False,
    trained: NDArray[np.bool_] | None = None,
    types: NDArray[np.bool_] | None = None,
) -> RankedTargets:
    """Targets among the events of the `validation` or `test` part.

    Other events count in `left_out` under the first reason that applies: `under_core` (user or training item under the core
    filter; in leave-one-out, whose filter counts the whole log, any item under it), `not_first` (with `first_only`: not the
    user's first event in the part, even if that one is no target), `already_seen` (with `exclude_seen`: item in the history,
    known to the model or not), `other_type` (with `types` [num_event_types + 1]: type not included).
    `numbering`: items of the dataset -> the model's. Items outside `trained` [num_items + 1] are cold even where the model
    knows them by content.
    """
    histories, split = dataset.histories, dataset.split
    candidates = dataset.held_out(part, ties)
    none, first = np.zeros(len(candidates), bool), split.stretch(histories, part)[0][candidates.user]
    reasons = {
        "under_core": dataset.under_core()[candidates.item],
        "not_first": candidates.position != first if first_only else none,
        "already_seen": _already_seen(histories, candidates) if exclude_seen else none,
    }
    if types is not None:
        reasons["other_type"] = ~types[histories.event_type[candidates.position]]
    left_out = {"under_core": split.num_events(histories)[part] - len(candidates)}
    kept = np.ones(len(candidates), bool)
    for reason, applies in reasons.items():
        left_out[reason] = left_out.get(reason, 0) + int((kept & applies).sum())
        kept &= ~applies
    chosen = candidates.select(kept)
    item, before = numbering.new[chosen.item], chosen.histories.translate(numbering.new)
    cold = np.full(len(chosen), WARM, np.int8)
    cold[before.lengths == 0] = NO_HISTORY
    cold[item == 0 if trained is None else ~trained[chosen.item]] = UNKNOWN_ITEM
    return RankedTargets(before, item, chosen.user, chosen.position, cold, left_out)


def targets_of(
    config: Config,
    dataset: Dataset,
    part: str,
    numbering: ItemNumbering,
    *,
    trained: NDArray[np.bool_] | None = None,
    exclude_seen: bool | None = None,
) -> RankedTargets:
    """Targets of a dataset by the configuration (see `ranked_targets`).

    `evaluate.targets` = first applies to the test alone. `exclude_seen` None: the configuration's value for evaluation.
    Raises LookbackError for a type of `evaluate.target_types` that the log does not have.
    """
    protocol = Protocol.of(config, dataset)
    return ranked_targets(
        dataset,
        part,
        numbering,
        ties=protocol.ties,
        exclude_seen=protocol.exclude_seen if exclude_seen is None else exclude_seen,
        first_only=part == "test" and protocol.headline == "first",
        trained=trained,
        types=_target_types(config, dataset),
    )


def _target_types(config: Config, dataset: Dataset) -> NDArray[np.bool_] | None:
    """Event types that can be targets: [num_event_types + 1]; None for all.

    Raises LookbackError for a type of `evaluate.target_types` that the log does not have.
    """
    included, names = config.evaluate.target_types, dataset.event_types
    if included is None:
        return None
    if unknown := [name for name in included if name not in names]:
        raise LookbackError(
            f"evaluate.target_types: received {', '.join(unknown)}, "
            f"expected types of the log: {', '.join(names) or 'it has none'}"
        )
    return np.array([False, *(name in included for name in names)])


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


def counts_by_reason(left_out: Mapping[str, int]) -> str:
    """Text of the counts by reason, zeros left out."""
    reasons = (f"{count:,} {reason.replace('_', ' ')}" for reason, count in left_out.items() if count)
    return ", ".join(reasons) or "nothing"
