"""The targets a model is judged on: the held-out events, which of them stand apart, and why the others are none."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features.histories.jagged import JaggedHistories
from features.histories.leaks import LeakError, num_disordered
from features.histories.splits import Block, Split, blocks
from models.histories import Histories, Int32, Int64
from pipeline.config import Config
from pipeline.dataset import dataset as rows
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
    histories: JaggedHistories,
    split: Split,
    part: str,
    mapping: Int32,
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
    `mapping` [num_items + 1]: item of the features folder -> the model's, 0 where it knows none. Targets on others than the
    `trained` items [num_items + 1] stand apart even where the model knows them, by their content.
    """
    candidates = rows.held_out(histories, split, part, ties)
    none, first = np.zeros(len(candidates), bool), split.stretch(histories, part)[0][candidates.user]
    reasons = {
        "under_core": under_core(histories, split)[candidates.item],
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
    item, looked_at = mapping[chosen.item], chosen.histories.translate(mapping)
    apart = np.full(len(chosen), ORDINARY, np.int8)
    apart[looked_at.lengths == 0] = NO_HISTORY
    apart[item == 0 if trained is None else ~trained[chosen.item]] = UNKNOWN_ITEM
    return RankedTargets(looked_at, item, chosen.user, chosen.position, apart, left_out)


def targets_of(
    config: Config,
    features: Path,
    histories: JaggedHistories,
    split: Split,
    part: str,
    mapping: Int32,
    *,
    trained: NDArray[np.bool_] | None = None,
    exclude_seen: bool | None = None,
) -> RankedTargets:
    """The `ranked_targets` of a features folder, whose `histories` and `split` are given, by the rules of the configuration.

    `evaluate.targets` = first holds for the test. `exclude_seen` None: as the configuration says of evaluation.
    Raises LookbackError for a type of `evaluate.target_types` that the log does not have.
    """
    return ranked_targets(
        histories,
        split,
        part,
        mapping,
        ties=config.split.ties,
        exclude_seen=config.exclude_seen if exclude_seen is None else exclude_seen,
        first_only=part == "test" and config.evaluate.targets == "first",
        trained=trained,
        types=_target_types(config, features),
    )


def _target_types(config: Config, features: Path) -> NDArray[np.bool_] | None:
    """[num_event_types + 1] whether an event of a type can be a target of validation and test; None: any can.

    Raises LookbackError for a type of `evaluate.target_types` that the log does not have.
    """
    wanted = config.evaluate.target_types
    if wanted is None:
        return None
    names = rows.event_types(features)
    if strangers := [name for name in wanted if name not in names]:
        raise LookbackError(
            f"evaluate.target_types: received {', '.join(strangers)}, "
            f"expected types of the log: {', '.join(names) or 'it has none'}"
        )
    return np.array([False, *(name in wanted for name in names)])


def under_core(histories: JaggedHistories, split: Split) -> NDArray[np.bool_]:
    """[num_items + 1]: items that the core filter took away; of others under it nothing was there to train on."""
    if split.protocol == "leave_one_out":
        return ~split.kept_item
    return ~split.kept_item & (histories.item_counts(len(split.kept_item) - 1, split.train_end) > 0)


def _already_seen(histories: JaggedHistories, candidates: rows.Targets) -> NDArray[np.bool_]:
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


def check_targets(
    targets: RankedTargets,
    histories: JaggedHistories,
    split: Split,
    mapping: Int32,
    *,
    ties: str,
    part: str = "test",
) -> None:
    """Raise LeakError where a row of `targets.histories`, which systems are given, holds what it may not.

    Checked, block by block, on those very arrays: they are the features folder's events that the model knows (`mapping`
    [num_items + 1]), each user's in order of time; every target is an event of its user in the given part and has that event's
    item; every row lies within its user's own events, and ends at the latest with the last one ordered before the target, or
    with ties = `strict` with one of an earlier time.
    """
    if late := num_disordered(histories):
        raise LeakError(
            f"leak: {late} events stand in a history after one that came later: the features folder is damaged, "
            "build it again with --force"
        )
    _check_held_out(targets, histories, split, mapping, part)
    order = np.argsort(targets.user, kind="stable")
    users = targets.user[order]
    num_known = 0
    for block in blocks(histories):
        first, last = np.searchsorted(users, (block.users.start, block.users.stop))
        known = mapping[block.cut(histories.item_index)]
        _check_events(targets.histories, histories, block, known, num_known)
        _check_rows(targets, block, known > 0, order[first:last], num_known)
        num_known += int(np.count_nonzero(known))
    if num_known != len(targets.histories.item_index):
        raise LeakError(
            f"leak: the histories given to systems hold {len(targets.histories.item_index):,} events, "
            f"expected the {num_known:,} of the features folder on items that the model knows"
        )
    _check_times(targets, histories.time[targets.position], ties)


def _check_held_out(
    targets: RankedTargets, histories: JaggedHistories, split: Split, mapping: Int32, part: str
) -> None:
    """Raise LeakError unless every target is the event of an evaluated user in the part."""
    start, end = split.stretch(histories, part)
    is_held_out = (start[targets.user] <= targets.position) & (targets.position < end[targets.user])
    is_held_out &= split.kept_user[targets.user]
    if not is_held_out.all():
        _refuse(targets, np.flatnonzero(~is_held_out), f"no {part} event of an evaluated user is the target")
    is_other = targets.item != mapping[histories.item_index[targets.position]]
    if is_other.any():
        _refuse(targets, np.flatnonzero(is_other), "another item than that of its event is the target")


def _check_events(
    given: Histories, histories: JaggedHistories, block: Block, known: Int32, before: int
) -> None:
    """Raise LeakError unless the flat arrays given to systems hold a block's known events, from position `before` on.

    known: [events of the block] their items in the model's numbering, 0 for those it does not know.
    """
    is_known = known > 0
    here = slice(before, before + int(np.count_nonzero(is_known)))
    pairs: dict[str, tuple[NDArray[Any], NDArray[Any]]] = {
        "items": (given.item_index, known),
        "times": (given.time, block.cut(histories.time)),
        "event types": (given.event_type, block.cut(histories.event_type)),
    }
    for name, (found, expected) in pairs.items():
        if not np.array_equal(found[here], expected[is_known]):
            raise LeakError(
                f"leak: the {name} of the histories given to systems are not those of the features folder, "
                f"among user indices {block.users.start} to {block.users.stop - 1}"
            )


def _check_rows(
    targets: RankedTargets, block: Block, is_known: NDArray[np.bool_], chosen: Int64, before: int
) -> None:
    """Raise LeakError unless the rows of the `chosen` targets, those of a block's users, lie between offset and target.

    is_known: [events of the block]; before: known events of the users before the block.
    """
    num_before = before + np.concatenate(([0], np.cumsum(is_known)))  # [events + 1] known ones before each
    earliest = num_before[block.starts[targets.user[chosen] - block.users.start]]
    latest = num_before[targets.position[chosen] - block.events.start]
    start, end = targets.histories.starts[chosen], targets.histories.ends[chosen]
    if (is_late := (end > latest) & (start < end)).any():
        _refuse(targets, chosen[is_late], "an event at or after the target stands in the history")
    if (is_foreign := (start < earliest) & (start < end)).any():
        _refuse(targets, chosen[is_foreign], "an event of another user stands in the history")


def _check_times(targets: RankedTargets, time: Int64, ties: str) -> None:
    """Raise LeakError where a history's last event is after its target's `time` [targets], or (ties = `strict`) at it."""
    given = np.flatnonzero(targets.histories.lengths > 0)
    latest = targets.histories.time[targets.histories.ends[given] - 1]
    is_late = latest >= time[given] if ties == "strict" else latest > time[given]
    if is_late.any():
        at = "at or after" if ties == "strict" else "after"
        _refuse(targets, given[is_late], f"an event {at} the target's time stands in the history")


def _refuse(targets: RankedTargets, wrong: Int64, what: str) -> None:
    row = int(wrong[0])
    raise LeakError(
        f"leak: {what}, for {len(wrong):,} of {len(targets):,} targets; the first one is the event at position "
        f"{int(targets.position[row])} of the features folder, of user index {int(targets.user[row])}"
    )


def told(left_out: Mapping[str, int]) -> str:
    """What was left out, by reason, as a message says it."""
    reasons = (f"{count:,} {reason.replace('_', ' ')}" for reason, count in left_out.items() if count)
    return ", ".join(reasons) or "nothing"
