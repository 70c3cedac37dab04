"""The targets a model is judged on: the held-out events, which of them stand apart, and why the others are none."""

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
from pipeline.errors import LookbackError

ORDINARY, NO_HISTORY, UNKNOWN_ITEM = range(3)
"""Codes of `RankedTargets.apart`."""


@dataclass(frozen=True)
class RankedTargets:
    """Held-out targets in a model's own items, a row each, by user and position."""

    histories: Histories
    """What the model may look at; empty rows are apart."""
    item: Int32
    """[targets], 1..num_items of the model, 0 for an item that it does not know"""
    user: Int64
    """[targets], user index"""
    position: Int64
    """[targets], flat position of the event in the features folder"""
    apart: NDArray[np.int8]
    """[targets], ORDINARY, NO_HISTORY (nothing that the model knows comes before) or UNKNOWN_ITEM: unseen in training"""
    left_out: dict[str, int]
    """Held-out events that are no targets, by reason."""

    def __len__(self) -> int:
        return len(self.item)

    @property
    def ordinary(self) -> NDArray[np.bool_]:
        """[targets], those with a known item and a history."""
        return np.asarray(self.apart == ORDINARY)

    @property
    def num_apart(self) -> dict[str, int]:
        """How many stand apart, by reason."""
        counts = np.bincount(self.apart, minlength=3)
        return {"no_history": int(counts[NO_HISTORY]), "unknown_item": int(counts[UNKNOWN_ITEM])}

    def select(self, chosen: NDArray[np.bool_] | NDArray[np.integer] | slice) -> "RankedTargets":
        """The chosen ones; `left_out` stays what it is, the events that were no targets to begin with."""
        return replace(
            self,
            histories=self.histories.select(chosen),
            item=self.item[chosen],
            user=self.user[chosen],
            position=self.position[chosen],
            apart=self.apart[chosen],
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
    """The events of the `validation` or `test` part that a model is judged on.

    Every other one is counted in `left_out` under the first reason that applies: `under_core` (the user, or an item that was
    there to train on, is under the core filter; in leave-one-out, whose filter counts the whole log, any item under it),
    `not_first` (with `first_only`: not the user's first event in the part, whatever becomes of that one: a user whose first
    event is no target has none), `already_seen` (in the history, known to the model or not, with `exclude_seen`), `other_type`
    (with `types` [num_event_types + 1]: not of those that count).
    `numbering`: items of the dataset -> the model's. Targets on others than the `trained` items [num_items + 1] stand apart
    even where the model knows them, by their content.
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
    item, looked_at = numbering.new[chosen.item], chosen.histories.translate(numbering.new)
    apart = np.full(len(chosen), ORDINARY, np.int8)
    apart[looked_at.lengths == 0] = NO_HISTORY
    apart[item == 0 if trained is None else ~trained[chosen.item]] = UNKNOWN_ITEM
    return RankedTargets(looked_at, item, chosen.user, chosen.position, apart, left_out)


def targets_of(
    config: Config,
    dataset: Dataset,
    part: str,
    numbering: ItemNumbering,
    *,
    trained: NDArray[np.bool_] | None = None,
    exclude_seen: bool | None = None,
) -> RankedTargets:
    """The `ranked_targets` of a dataset by the rules of the configuration.

    `evaluate.targets` = first holds for the test. `exclude_seen` None: as the configuration says of evaluation.
    Raises LookbackError for a type of `evaluate.target_types` that the log does not have.
    """
    return ranked_targets(
        dataset,
        part,
        numbering,
        ties=config.split.ties,
        exclude_seen=config.exclude_seen if exclude_seen is None else exclude_seen,
        first_only=part == "test" and config.evaluate.targets == "first",
        trained=trained,
        types=_target_types(config, dataset),
    )


def _target_types(config: Config, dataset: Dataset) -> NDArray[np.bool_] | None:
    """[num_event_types + 1] whether an event of a type can be a target of validation and test; None: any can.

    Raises LookbackError for a type of `evaluate.target_types` that the log does not have.
    """
    wanted = config.evaluate.target_types
    if wanted is None:
        return None
    names = dataset.event_types
    if strangers := [name for name in wanted if name not in names]:
        raise LookbackError(
            f"evaluate.target_types: received {', '.join(strangers)}, "
            f"expected types of the log: {', '.join(names) or 'it has none'}"
        )
    return np.array([False, *(name in wanted for name in names)])


def _already_seen(histories: JaggedHistories, candidates: HeldOut) -> NDArray[np.bool_]:
    """[candidates]: whether the item stands in the history before it, that is, whether its user's first event on it does."""
    seen = np.zeros(len(candidates), bool)
    for block in blocks(histories):
        here = slice(*np.searchsorted(candidates.user, (block.users.start, block.users.stop)))
        item = block.cut(histories.item_index)
        pair = np.repeat(np.arange(len(block.lengths)), block.lengths) * (int(item.max(initial=0)) + 1) + item
        _, first, number = np.unique(pair, return_index=True, return_inverse=True)
        first_on_item = block.events.start + first[number[candidates.position[here] - block.events.start]]
        seen[here] = first_on_item < candidates.histories.ends[here]
    return seen


def told(left_out: Mapping[str, int]) -> str:
    """What was left out, by reason, as a message says it."""
    reasons = (f"{count:,} {reason.replace('_', ' ')}" for reason, count in left_out.items() if count)
    return ", ".join(reasons) or "nothing"
