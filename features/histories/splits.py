"""Temporal, rolling and leave-one-out splits over jagged histories, and the core filter.

A split is three positions per user, since each part is a stretch of an ordered history: training `[offsets[u], train_end[u])`,
validation `[train_end[u], validation_end[u])`, test `[validation_end[u], test_end[u])`; the rest, `[test_end[u],
offsets[u + 1])`, is held back: it is in no part, as if the log had ended before it.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features.histories.jagged import BLOCK_EVENTS, JaggedHistories

PARTS = ("train", "validation", "test")
_ARRAYS = ("train_end", "validation_end", "test_end", "train_user", "kept_user", "kept_item")
_BIN_BITS = 16
_DIGITS = 12
"""Shares of a log are rounded to these, so that 0.1 + 0.2 and 0.3 are one place in it."""


@dataclass(frozen=True)
class Split:
    """Assignment of events to training, validation and test."""

    protocol: str
    """temporal or leave_one_out"""
    train_end: NDArray[np.int64]
    """[num_users], flat positions"""
    validation_end: NDArray[np.int64]
    """[num_users], flat positions"""
    test_end: NDArray[np.int64]
    """[num_users], flat positions; later events are held back"""
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
    test_until: int | None = None
    """temporal: microseconds since the epoch at which the test ends; None: with the log"""

    def save(self, folder: Path) -> None:
        """Arrays as .npy, the rest as split.json."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in _ARRAYS:
            np.save(folder / f"{name}.npy", getattr(self, name), allow_pickle=False)
        rest = {
            name: getattr(self, name) for name in ("protocol", "validation_from", "test_from", "test_until")
        }
        (folder / "split.json").write_text(json.dumps(rest), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "Split":
        """A saved split."""
        rest: dict[str, Any] = json.loads((folder / "split.json").read_text(encoding="utf-8"))
        return cls(**rest, **{name: np.load(folder / f"{name}.npy") for name in _ARRAYS})

    def edges(self, histories: JaggedHistories) -> tuple[NDArray[np.int64], ...]:
        """[num_users] each, flat positions at which the PARTS begin, and at which the last one ends."""
        return (histories.offsets[:-1], self.train_end, self.validation_end, self.test_end)

    def stretch(self, histories: JaggedHistories, part: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Begin and end of a part of each user's history, two [num_users]."""
        edges, place = self.edges(histories), PARTS.index(part)
        return edges[place], edges[place + 1]

    def num_events(self, histories: JaggedHistories) -> dict[str, int]:
        """Number of events of each part, before the core filter, and of `held_back` if there are any."""
        events = {}
        for part in PARTS:
            start, end = self.stretch(histories, part)
            events[part] = int((end - start).sum())
        held_back = int((histories.offsets[1:] - self.test_end).sum())
        return events | ({"held_back": held_back} if held_back else {})


def num_under_core(histories: JaggedHistories, split: Split) -> dict[str, int]:
    """Events of each part whose user or item is under the core filter, neither trained on nor evaluated."""
    users = (split.train_user, split.kept_user, split.kept_user)
    counts = split.num_events(histories)
    for block in blocks(histories):
        is_kept_item = split.kept_item[block.cut(histories.item_index)]
        edges = [block.count(is_kept_item, edge) for edge in split.edges(histories)]
        for part, kept, start, end in zip(PARTS, users, edges[:-1], edges[1:], strict=True):
            counts[part] -= int((end - start)[kept[block.users]].sum())
    return {part: counts[part] for part in PARTS}


def core(
    histories: JaggedHistories, ends: NDArray[np.int64], num_items: int, min_user: int, min_item: int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Users and items of the largest set of events in which each user has `min_user` and each item `min_item` events.

    Counts the events `[offsets[u], ends[u])` of every user u. Returns [num_users] and [num_items + 1]; each pass over the
    events applies both filters, until nothing changes.
    """
    users = np.ones(histories.num_users, bool)
    items = np.ones(num_items + 1, bool)
    while True:
        of_user = np.zeros(histories.num_users, np.int64)
        of_item = np.zeros(num_items + 1, np.int64)
        for block in blocks(histories):
            item = block.cut(histories.item_index)
            kept = block.is_before(ends) & items[item] & np.repeat(users[block.users], block.lengths)
            of_user[block.users] = block.count(kept)
            of_item += np.bincount(item[kept], minlength=num_items + 1)
        users, items = of_user >= min_user, of_item >= min_item
        items[0] = False
        if not of_user[~users].any() and not of_item[~items].any():
            return users, items


@dataclass(frozen=True)
class Block:
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

    def count(self, chosen: NDArray[np.bool_], ends: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
        """[users] chosen events of each, before their users' flat positions in `ends` [num_users]; None: all."""
        before = np.concatenate(([0], np.cumsum(chosen)))
        stops = self.starts + self.lengths if ends is None else ends[self.users] - self.events.start
        return np.asarray(before[stops] - before[self.starts])


def blocks(histories: JaggedHistories) -> Iterator[Block]:
    """Blocks of users, in order, over all events."""
    offsets = histories.offsets
    for first, last in histories.blocks():
        edges = offsets[first : last + 1]
        events = slice(int(edges[0]), int(edges[-1]))
        yield Block(slice(first, last), events, edges[:-1] - edges[0], np.diff(edges))


def _is_earlier(histories: JaggedHistories, moment: int) -> Callable[[Block], NDArray[np.bool_]]:
    return lambda block: block.cut(histories.time) < moment


def _count(
    histories: JaggedHistories,
    choose: Callable[[Block], NDArray[np.bool_]],
    ends: NDArray[np.int64] | None = None,
) -> NDArray[np.int64]:
    """[num_users] chosen events of each user, before the flat positions `ends` if given."""
    counts = [block.count(choose(block), ends) for block in blocks(histories)]
    return np.concatenate(counts) if counts else np.zeros(0, np.int64)


def nth_time(histories: JaggedHistories, place: int) -> int:
    """The time at a position (from 0) of all sorted times.

    A histogram narrows it to a range of time, and only the times within are sorted.
    """
    pieces = [histories.time[block.events] for block in blocks(histories) if block.lengths.any()]
    low, high = min(int(piece.min()) for piece in pieces), max(int(piece.max()) for piece in pieces)
    while True:
        shift = max(0, (high - low).bit_length() - _BIN_BITS)
        counts = np.zeros(1 << _BIN_BITS, np.int64)
        for piece in pieces:
            counts += np.bincount(_between(piece, low, high) - low >> shift, minlength=len(counts))
        ends = np.cumsum(counts)
        bin_index = int(np.searchsorted(ends, place, side="right"))
        place -= int(ends[bin_index] - counts[bin_index])
        low, high = low + (bin_index << shift), min(high, low + (bin_index + 1 << shift) - 1)
        if low == high:
            return low
        if counts[bin_index] <= BLOCK_EVENTS:
            return int(np.sort(np.concatenate([_between(piece, low, high) for piece in pieces]))[place])


def _between(times: NDArray[np.int64], low: int, high: int) -> NDArray[np.int64]:
    return np.asarray(times[(times >= low) & (times <= high)])


def cuts(num_cuts: int, test_fraction: float, validation_fraction: float) -> list[float]:
    """The rolling temporal protocol: `held_back` of each cut, the earliest cut first, the last one at the log's end.

    Cut i of n holds `(n - 1 - i) * test_fraction` of the events back, so the tests of the cuts follow one another without a gap
    or an overlap, and each cut trains on all events before its test (an expanding window).
    Raises ValueError if the first cut would have nothing to train on.
    """
    held_back = [round((num_cuts - 1 - cut) * test_fraction, _DIGITS) for cut in range(num_cuts)]
    if num_cuts < 1 or round(held_back[0] + test_fraction + validation_fraction, _DIGITS) >= 1:
        raise ValueError(
            f"split.cuts: received {num_cuts} with test_fraction {test_fraction} and validation_fraction {validation_fraction}, "
            "expected at least 1, and something to train on before the first cut: cuts * test_fraction + validation_fraction "
            "below 1; lower split.cuts or split.test_fraction"
        )
    return held_back


def temporal(
    histories: JaggedHistories,
    num_items: int,
    *,
    test_fraction: float = 0.1,
    test_from: int | None = None,
    validation_fraction: float = 0.1,
    held_back: float = 0.0,
    min_user_events: int = 1,
    min_item_events: int = 1,
) -> Split:
    """The last `test_fraction` of all events by time are the test, the `validation_fraction` before them validation.

    Events at a boundary's own time belong to the later part. `test_from` (microseconds) sets the test's boundary instead.
    `held_back`: share of all events, the last by time, in no part; the test stands directly before it, and neither the core
    filter nor the evaluated users depend on it. Test and validation stay shares of all events.
    The core filter counts training events; users with `min_user_events` events on kept items are evaluated.
    Raises ValueError where a part would be empty.
    """
    total, starts = len(histories.time), histories.offsets[:-1]
    test_until = _boundary(histories, held_back) if held_back else None
    test_end = np.asarray(histories.offsets[1:])
    if test_until is not None:
        test_end = starts + _count(histories, _is_earlier(histories, test_until))
    if test_from is None:
        test_from = _boundary(histories, held_back + test_fraction)
    validation_end = starts + _count(histories, _is_earlier(histories, test_from))
    before = int((validation_end - starts).sum())
    validation_from = nth_time(histories, max(0, before - max(1, round(total * validation_fraction))))
    train_end = starts + _count(histories, _is_earlier(histories, validation_from))
    train_user, kept_item = core(histories, train_end, num_items, min_user_events, min_item_events)
    kept_item[1:] |= min_item_events == 1
    on_kept = _count(histories, lambda block: kept_item[block.cut(histories.item_index)], test_end)
    split = Split(
        "temporal",
        train_end,
        validation_end,
        test_end,
        train_user,
        on_kept >= min_user_events,
        kept_item,
        validation_from,
        test_from,
        test_until,
    )
    _refuse_empty(split, histories)
    return split


def _boundary(histories: JaggedHistories, share: float) -> int:
    """Earliest time of the last `share` of all events; ties at that time are all included."""
    total = len(histories.time)
    place = int(np.ceil(total * (1 - round(share, _DIGITS))))
    return nth_time(histories, max(0, min(total - 1, place)))


def leave_one_out(
    histories: JaggedHistories, num_items: int, *, min_user_events: int = 1, min_item_events: int = 1
) -> Split:
    """Each user's last event is the test, the one before validation; users with fewer than three events only train.

    The core filter counts the whole log, as papers do; "last" is the last event on a kept item that is no dislike.
    Raises ValueError where no user has three events.
    """
    kept_user, kept_item = core(histories, histories.offsets[1:], num_items, min_user_events, min_item_events)
    train_end = histories.offsets[1:].copy()
    validation_end = histories.offsets[1:].copy()
    enough = np.zeros(histories.num_users, bool)
    for block in blocks(histories):
        kept = kept_item[block.cut(histories.item_index)] & np.repeat(kept_user[block.users], block.lengths)
        kept &= ~histories.is_dislike(block.events)
        positions = block.events.start + np.flatnonzero(kept)
        counts = block.count(kept)
        long = counts >= 3
        last = np.cumsum(counts)[long] - 1
        enough[block.users] = long
        train_end[block.users][long] = positions[last - 1]
        validation_end[block.users][long] = positions[last]
    split = Split(
        "leave_one_out",
        train_end,
        validation_end,
        np.asarray(histories.offsets[1:]),
        kept_user,
        kept_user & enough,
        kept_item,
        validation_from=None,
        test_from=None,
    )
    _refuse_empty(split, histories)
    return split


def _refuse_empty(split: Split, histories: JaggedHistories) -> None:
    events = split.num_events(histories)
    counts = ", ".join(f"{part} {count:,}" for part, count in events.items())
    one_time = split.protocol == "temporal" and len(histories.time) > 0 and np.ptp(histories.time) == 0
    for part in PARTS:
        if events[part] < 1:
            raise ValueError(
                f"split: the {part} part is empty ({counts} with protocol {split.protocol!r} over {len(histories.time):,} events"
                f"{', all of one time' if one_time else ''}); "
                "expected events in every part: check split.test_from, split.held_back and the fractions (temporal), "
                "or that some users have three events (leave_one_out), and history.min_*_events"
            )
    if not split.kept_user.any() or not split.kept_item.any():
        raise ValueError(
            "history.min_user_events, history.min_item_events: no user or no item is left over the core filter; lower them"
        )
