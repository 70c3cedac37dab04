"""Temporal and leave-one-out splits over jagged histories, the core filter, and the leak check.

A split is two positions per user, since each part is a stretch of an ordered history:
training `[offsets[u], train_end[u])`, validation `[train_end[u], validation_end[u])`, test `[validation_end[u], offsets[u + 1])`.
"""

import datetime
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features.histories import BLOCK_EVENTS, JaggedHistories

PARTS = ("train", "validation", "test")
_BIN_BITS = 16


class LeakError(ValueError):
    """Something of a later part stands in an earlier one."""


@dataclass(frozen=True)
class Split:
    """Which events train, validate and test."""

    protocol: str
    """temporal or leave_one_out"""
    train_end: NDArray[np.int64]
    """[num_users], flat positions"""
    validation_end: NDArray[np.int64]
    """[num_users], flat positions"""
    train_user: NDArray[np.bool_]
    """[num_users], users whose training events train"""
    kept_user: NDArray[np.bool_]
    """[num_users], users who are evaluated"""
    kept_item: NDArray[np.bool_]
    """[num_items + 1], items over the core filter; index 0 is False"""
    validation_from: int | None
    """temporal: microseconds since the epoch at which validation begins"""
    test_from: int | None
    """temporal: microseconds since the epoch at which the test begins"""

    def save(self, folder: Path) -> None:
        """Arrays as .npy, the rest as split.json."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("train_end", "validation_end", "train_user", "kept_user", "kept_item"):
            np.save(folder / f"{name}.npy", getattr(self, name), allow_pickle=False)
        rest = {name: getattr(self, name) for name in ("protocol", "validation_from", "test_from")}
        (folder / "split.json").write_text(json.dumps(rest), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "Split":
        """A saved split."""
        rest: dict[str, Any] = json.loads((folder / "split.json").read_text(encoding="utf-8"))
        names = ("train_end", "validation_end", "train_user", "kept_user", "kept_item")
        return cls(**rest, **{name: np.load(folder / f"{name}.npy") for name in names})

    def num_events(self, histories: JaggedHistories) -> dict[str, int]:
        """Events of each part, those of users and items under the core filter included."""
        edges = (histories.offsets[:-1], self.train_end, self.validation_end, histories.offsets[1:])
        return {
            part: int((end - start).sum())
            for part, start, end in zip(PARTS, edges[:-1], edges[1:], strict=True)
        }


def num_under_core(histories: JaggedHistories, split: Split) -> dict[str, int]:
    """Events of each part that neither train nor are evaluated, as their user or item is under the core filter."""
    edges = (histories.offsets[:-1], split.train_end, split.validation_end, histories.offsets[1:])
    users = (split.train_user, split.kept_user, split.kept_user)
    counts = dict.fromkeys(PARTS, 0)
    for block in _blocks(histories):
        is_kept_item = split.kept_item[block.cut(histories.item_index)]
        for part, start, end, kept in zip(PARTS, edges[:-1], edges[1:], users, strict=True):
            inside = block.is_before(end) & ~block.is_before(start)
            over = is_kept_item & np.repeat(kept[block.users], block.lengths)
            counts[part] += int(np.count_nonzero(inside & ~over))
    return counts


def core(
    histories: JaggedHistories, ends: NDArray[np.int64], num_items: int, min_user: int, min_item: int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Users and items of the largest set of events in which each user has `min_user` and each item `min_item` events.

    Counted are the events `[offsets[u], ends[u])` of every user u. Returns [num_users] and [num_items + 1]; the filters are
    repeated until nothing changes, in one pass over the events each.
    """
    users = np.ones(histories.num_users, bool)
    items = np.ones(num_items + 1, bool)
    while True:
        of_user = np.zeros(histories.num_users, np.int64)
        of_item = np.zeros(num_items + 1, np.int64)
        for block in _blocks(histories):
            item = block.cut(histories.item_index)
            kept = block.is_before(ends) & items[item] & np.repeat(users[block.users], block.lengths)
            of_user[block.users] = block.count(kept)
            of_item += np.bincount(item[kept], minlength=num_items + 1)
        users, items = of_user >= min_user, of_item >= min_item
        items[0] = False
        if not of_user[~users].any() and not of_item[~items].any():
            return users, items


@dataclass(frozen=True)
class _Block:
    """The events of a range of users."""

    users: slice
    events: slice
    starts: NDArray[np.int64]
    """[users], where the users' events begin within the block"""
    lengths: NDArray[np.int64]
    """[users]"""

    def cut(self, flat: NDArray[Any]) -> NDArray[Any]:
        """[events] of a flat array."""
        return np.asarray(flat[self.events])

    def is_before(self, ends: NDArray[np.int64]) -> NDArray[np.bool_]:
        """[events] whether an event stands before its user's flat position in `ends` [num_users]."""
        position = np.arange(self.events.start, self.events.stop)
        return np.asarray(position < np.repeat(ends[self.users], self.lengths))

    def count(self, chosen: NDArray[np.bool_]) -> NDArray[np.int64]:
        """[users] chosen events of each."""
        before = np.concatenate(([0], np.cumsum(chosen)))
        counts: NDArray[np.int64] = before[self.starts + self.lengths] - before[self.starts]
        return counts


def _blocks(histories: JaggedHistories) -> Iterator[_Block]:
    """All users, as many at a time as memory holds."""
    offsets = histories.offsets
    for first, last in histories.blocks():
        edges = offsets[first : last + 1]
        events = slice(int(edges[0]), int(edges[-1]))
        yield _Block(slice(first, last), events, edges[:-1] - edges[0], np.diff(edges))


def _is_earlier(histories: JaggedHistories, moment: int) -> Callable[[_Block], NDArray[np.bool_]]:
    return lambda block: block.cut(histories.time) < moment


def _count(histories: JaggedHistories, choose: Callable[[_Block], NDArray[np.bool_]]) -> NDArray[np.int64]:
    """[num_users] chosen events of each user."""
    counts = [block.count(choose(block)) for block in _blocks(histories)]
    return np.concatenate(counts) if counts else np.zeros(0, np.int64)


def nth_time(histories: JaggedHistories, place: int) -> int:
    """The time that would stand at a place (from 0) if all times were sorted.

    Found by counting: a histogram tells in which stretch of time it lies, then only the times in there are sorted.
    """
    pieces = [histories.time[block.events] for block in _blocks(histories)]
    low, high = min(int(piece.min()) for piece in pieces), max(int(piece.max()) for piece in pieces)
    while True:
        shift = max(0, (high - low).bit_length() - _BIN_BITS)
        counts = np.zeros(1 << _BIN_BITS, np.int64)
        for piece in pieces:
            counts += np.bincount(_between(piece, low, high) - low >> shift, minlength=len(counts))
        ends = np.cumsum(counts)
        found = int(np.searchsorted(ends, place, side="right"))
        place -= int(ends[found] - counts[found])
        low, high = low + (found << shift), min(high, low + (found + 1 << shift) - 1)
        if low == high:
            return low
        if counts[found] <= BLOCK_EVENTS:
            return int(np.sort(np.concatenate([_between(piece, low, high) for piece in pieces]))[place])


def _between(times: NDArray[np.int64], low: int, high: int) -> NDArray[np.int64]:
    chosen: NDArray[np.int64] = times[(times >= low) & (times <= high)]
    return chosen


def temporal(
    histories: JaggedHistories,
    num_items: int,
    *,
    test_fraction: float = 0.1,
    test_from: int | None = None,
    validation_fraction: float = 0.1,
    min_user_events: int = 1,
    min_item_events: int = 1,
) -> Split:
    """The last `test_fraction` of all events by time are the test, the `validation_fraction` before them validation.

    Events at a boundary's own time belong to the later part. `test_from` (microseconds) sets the test's boundary instead.
    The core filter counts training events; a user is evaluated who has `min_user_events` events on kept items.
    Raises ValueError where a part would be empty.
    """
    total = len(histories.time)
    if test_from is None:
        test_from = nth_time(histories, min(total - 1, int(np.ceil(total * (1 - test_fraction)))))
    starts = histories.offsets[:-1]
    validation_end = starts + _count(histories, _is_earlier(histories, test_from))
    before = int((validation_end - starts).sum())
    validation_from = nth_time(histories, max(0, before - max(1, round(total * validation_fraction))))
    train_end = starts + _count(histories, _is_earlier(histories, validation_from))
    train_user, kept_item = core(histories, train_end, num_items, min_user_events, min_item_events)
    kept_item[1:] |= min_item_events == 1
    on_kept = _count(histories, lambda block: kept_item[block.cut(histories.item_index)])
    split = Split(
        "temporal",
        train_end,
        validation_end,
        train_user,
        on_kept >= min_user_events,
        kept_item,
        validation_from,
        test_from,
    )
    _refuse_empty(split, histories)
    return split


def leave_one_out(
    histories: JaggedHistories, num_items: int, *, min_user_events: int = 1, min_item_events: int = 1
) -> Split:
    """Each user's last event is the test, the one before validation; users with fewer than three events only train.

    The core filter counts the whole log, as papers do; "last" is the last event on a kept item.
    Raises ValueError where no user has three events.
    """
    kept_user, kept_item = core(histories, histories.offsets[1:], num_items, min_user_events, min_item_events)
    train_end = histories.offsets[1:].copy()
    validation_end = histories.offsets[1:].copy()
    enough = np.zeros(histories.num_users, bool)
    for block in _blocks(histories):
        kept = kept_item[block.cut(histories.item_index)] & np.repeat(kept_user[block.users], block.lengths)
        positions = block.events.start + np.flatnonzero(kept)
        counts = block.count(kept)
        long = counts >= 3
        last = np.cumsum(counts)[long] - 1
        enough[block.users] = long
        train_end[block.users][long] = positions[last - 1]
        validation_end[block.users][long] = positions[last]
    split = Split(
        "leave_one_out", train_end, validation_end, kept_user, kept_user & enough, kept_item, None, None
    )
    _refuse_empty(split, histories)
    return split


def _refuse_empty(split: Split, histories: JaggedHistories) -> None:
    events = split.num_events(histories)
    for part, num_events in events.items():
        if num_events == 0:
            raise ValueError(
                f"split: the {part} part is empty ({events} with protocol {split.protocol!r} over {len(histories.time)} events); "
                "expected events in every part: check split.test_from and the fractions (temporal), "
                "or that some users have three events (leave_one_out), and history.min_*_events"
            )
    if not split.kept_user.any() or not split.kept_item.any():
        raise ValueError(
            "history.min_user_events, history.min_item_events: no user or no item is left over the core filter; lower them"
        )


def check_leaks(histories: JaggedHistories, split: Split) -> None:
    """Raise LeakError where a later part's event stands in an earlier one.

    Checked: each history is in order of time; the parts of each user follow one another; in the temporal protocol every
    training event is before the validation boundary, and every validation event before the test boundary.
    (Leave-one-out leaks across users' times by construction: that is part of the protocol.)
    """
    starts, stops = histories.offsets[:-1], histories.offsets[1:]
    if _num_disordered(histories):
        raise LeakError(
            "leak: a history is not in the order of time; an event stands before one that came earlier"
        )
    edges = (starts, split.train_end, split.validation_end, stops)
    for earlier, later in itertools.pairwise(edges):
        if (earlier > later).any():
            raise LeakError(
                f"leak: user index {int(np.flatnonzero(earlier > later)[0])}: parts of the split overlap"
            )
    parts = (
        (split.train_end, split.validation_from, "training"),
        (split.validation_end, split.test_from, "validation"),
    )
    for end, boundary, part in parts:
        if boundary is not None:
            _check_boundary(histories, end, boundary, part)


def _check_boundary(histories: JaggedHistories, end: NDArray[np.int64], boundary: int, part: str) -> None:
    """Raise LeakError unless the events before `end` are exactly those before the boundary in time."""
    late = early = 0
    for block in _blocks(histories):
        is_inside = block.is_before(end)
        is_earlier = block.cut(histories.time) < boundary
        late += int(np.count_nonzero(is_inside & ~is_earlier))
        early += int(np.count_nonzero(~is_inside & is_earlier))
    if late:
        raise LeakError(
            f"leak: {late} {part} events at or after the next part's boundary "
            f"{datetime.datetime.fromtimestamp(boundary / 1e6, datetime.UTC).isoformat()}"
        )
    if early:
        raise LeakError(f"leak: {early} events before the {part} part's end are held out after it")


def _num_disordered(histories: JaggedHistories) -> int:
    """Events that are earlier than the same user's event before them."""
    number = 0
    for block in _blocks(histories):
        time = block.cut(histories.time)
        is_earlier = time[1:] < time[:-1]
        is_earlier[block.starts[(block.lengths > 0) & (block.starts > 0)] - 1] = False  # pairs of two users
        number += int(np.count_nonzero(is_earlier))
    return number
