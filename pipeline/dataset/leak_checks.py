"""Leak checks of held-out targets: no history holds an event at or after its target."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features.histories.jagged import JaggedHistories
from features.histories.leaks import (
    LeakError,
    check_fitted,
    check_leaks,
    leaks_by_construction,
    num_disordered,
)
from features.histories.log_facts import starts_visit
from features.histories.numbering import ItemNumbering
from features.histories.splits import Block, blocks
from models.baselines.base import FittedOn
from models.histories import Histories, Int32, Int64
from pipeline.config import Config
from pipeline.dataset.dataset import Dataset
from pipeline.dataset.targets import RankedTargets


def check_systems(
    fitted: Mapping[str, FittedOn],
    dataset: Dataset,
    *,
    with_validation: bool,
    reading_dislikes: str,
) -> None:
    """Raise LeakError where a history is out of order, the parts overlap, or a system was fitted on other events.

    fitted: system -> its training events; `reading_dislikes`: the only system that is fitted on dislikes too.
    """
    histories, split = dataset.histories, dataset.split
    check_leaks(histories, split)
    for name, on in fitted.items():
        check_fitted(
            name,
            on.num_events,
            on.latest,
            histories,
            split,
            with_validation=with_validation,
            with_dislikes=name == reading_dislikes,
        )


def check_targets(
    targets: RankedTargets,
    dataset: Dataset,
    numbering: ItemNumbering,
    *,
    ties: str,
    session_minutes: float = 0.0,
    part: str = "test",
) -> None:
    """Raise LeakError where `targets.histories`, the input of every system, leaks.

    Checked block by block on those very arrays: they hold the features folder's events on known items (by `numbering`) in
    each user's order of time; every target is an event of its user in the part, with that event's item; every row lies within
    its user's events and ends before the target in order, with ties = `strict` also before the time of the target's visit.
    """
    histories = dataset.histories
    if late := num_disordered(histories):
        raise LeakError(
            f"leak: {late} events stand in a history after one that came later: the features folder is damaged, "
            "build it again with --force"
        )
    _check_held_out(targets, dataset, numbering, part)
    order = np.argsort(targets.user_of_target, kind="stable")
    users = targets.user_of_target[order]
    num_known = 0
    latest = np.asarray(histories.time[targets.position])
    for block in blocks(histories):
        first, last = np.searchsorted(users, (block.users.start, block.users.stop))
        known = numbering.new[block.cut(histories.item_index)]
        _check_events(targets.histories, histories, block, known, num_known)
        _check_rows(targets, block, known > 0, order[first:last], num_known)
        if ties == "strict":
            visits = _times_of_visits(block, histories, session_minutes)
            latest[order[first:last]] = visits[targets.position[order[first:last]] - block.events.start]
        num_known += int(np.count_nonzero(known))
    if num_known != len(targets.histories.item_index):
        raise LeakError(
            f"leak: the histories given to systems hold {len(targets.histories.item_index):,} events, "
            f"expected the {num_known:,} of the features folder on items that the model knows"
        )
    _check_times(targets, latest, ties)


def _check_held_out(targets: RankedTargets, dataset: Dataset, numbering: ItemNumbering, part: str) -> None:
    """Raise LeakError unless every target is an event of an evaluated user in the part."""
    histories, split = dataset.histories, dataset.split
    start, end = split.stretch(histories, part)
    user = targets.user_of_target
    is_held_out = (start[user] <= targets.position) & (targets.position < end[user])
    is_held_out &= split.kept_user[user]
    if not is_held_out.all():
        _refuse(targets, np.flatnonzero(~is_held_out), f"no {part} event of an evaluated user is the target")
    is_other = targets.item != numbering.new[histories.item_index[targets.position]]
    if is_other.any():
        _refuse(targets, np.flatnonzero(is_other), "another item than that of its event is the target")


def _check_events(
    given: Histories, histories: JaggedHistories, block: Block, known: Int32, before: int
) -> None:
    """Raise LeakError unless the systems' flat arrays hold a block's known events from position `before` on.

    known: [events of the block] items in the model's numbering, 0 for unknown ones.
    """
    is_known = known > 0
    here = slice(before, before + int(np.count_nonzero(is_known)))
    pairs: dict[str, tuple[NDArray[Any], NDArray[Any]]] = {
        "items": (given.item_index, known),
        "times": (given.time, block.cut(histories.time)),
        "event types": (given.event_type, block.cut(histories.event_type)),
    }
    for name, (received, expected) in pairs.items():
        if not np.array_equal(received[here], expected[is_known]):
            raise LeakError(
                f"leak: the {name} of the histories given to systems are not those of the features folder, "
                f"among user indices {block.users.start} to {block.users.stop - 1}"
            )


def _check_rows(
    targets: RankedTargets, block: Block, is_known: NDArray[np.bool_], chosen: Int64, before: int
) -> None:
    """Raise LeakError unless the rows of a block's `chosen` targets lie between the user's first event and the target.

    is_known: [events of the block]; before: known events of the users before the block.
    """
    num_before = before + np.concatenate(([0], np.cumsum(is_known)))  # [events + 1]
    earliest = num_before[block.starts[targets.user_of_target[chosen] - block.users.start]]
    latest = num_before[targets.position[chosen] - block.events.start]
    request = targets.request[chosen]
    start, end = targets.histories.starts[request], targets.histories.ends[request]
    if (is_late := (end > latest) & (start < end)).any():
        _refuse(targets, chosen[is_late], "an event at or after the target stands in the history")
    if (is_foreign := (start < earliest) & (start < end)).any():
        _refuse(targets, chosen[is_foreign], "an event of another user stands in the history")


def shares_by_construction(config: Config, dataset: Dataset) -> dict[str, float]:
    """Leaks of leave-one-out from the future of its own test; empty without a common time."""
    if dataset.split.protocol != "leave_one_out" or config.events.timestamp_unit == "position":
        return {}
    with_validation = config.train.refit_validation
    return leaks_by_construction(dataset.histories, dataset.split, with_validation=with_validation)


def _times_of_visits(block: Block, histories: JaggedHistories, session_minutes: float) -> Int64:
    """[events of the block] time of the first event of each event's visit."""
    begins = starts_visit(block, histories, session_minutes)
    return np.asarray(block.cut(histories.time)[begins][np.cumsum(begins) - 1])


def _check_times(targets: RankedTargets, time: Int64, ties: str) -> None:
    """Raise LeakError where a history ends after `time` [targets] or its request, or (ties = `strict`) at either.

    time: of the target, with strict ties of its visit.
    """
    given = np.flatnonzero((targets.histories.lengths > 0)[targets.request])
    request = targets.request[given]
    latest = targets.histories.time[targets.histories.ends[request] - 1]
    limit = np.minimum(time[given], targets.moment[request])
    is_late = latest >= limit if ties == "strict" else latest > limit
    if is_late.any():
        late = "of or after the target's visit" if ties == "strict" else "after the target's time"
        _refuse(targets, given[is_late], f"an event {late} stands in the history")


def _refuse(targets: RankedTargets, wrong: Int64, leak: str) -> None:
    row = int(wrong[0])
    raise LeakError(
        f"leak: {leak}, for {len(wrong):,} of {len(targets):,} targets; the first one is the event at position "
        f"{int(targets.position[row])} of the features folder, of user index {int(targets.user_of_target[row])}"
    )
