"""Temporal and leave-one-out splits over jagged histories, the core filter, and the leak check.

A split is two positions per user, since each part is a stretch of an ordered history:
training `[offsets[u], train_end[u])`, validation `[train_end[u], validation_end[u])`, test `[validation_end[u], offsets[u + 1])`.
"""

import datetime
import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features.histories import JaggedHistories

PARTS = ("train", "validation", "test")


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


def core(
    user: NDArray[np.integer],
    item: NDArray[np.integer],
    num_users: int,
    num_items: int,
    min_user: int,
    min_item: int,
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Users and items of the largest set of events in which each user has `min_user` and each item `min_item` events.

    Returns [num_users] and [num_items + 1]; the filters are repeated until nothing changes.
    """
    kept = np.ones(len(user), bool)
    while True:
        users = np.bincount(user[kept], minlength=num_users) >= min_user
        items = np.bincount(item[kept], minlength=num_items + 1) >= min_item
        items[0] = False
        still = kept & users[user] & items[item]
        if still.sum() == kept.sum():
            return users, items
        kept = still


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
    times = np.sort(histories.time)
    total = len(times)
    if test_from is None:
        test_from = int(times[min(total - 1, int(np.ceil(total * (1 - test_fraction))))])
    before = int(np.searchsorted(times, test_from))
    validation_from = int(times[max(0, before - max(1, round(total * validation_fraction)))])
    user = histories.users()
    train_end = histories.offsets[:-1] + np.bincount(
        user[histories.time < validation_from], minlength=histories.num_users
    )
    validation_end = histories.offsets[:-1] + np.bincount(
        user[histories.time < test_from], minlength=histories.num_users
    )
    training = np.asarray(histories.time) < validation_from
    train_user, kept_item = core(
        user[training],
        histories.item_index[training],
        histories.num_users,
        num_items,
        min_user_events,
        min_item_events,
    )
    kept_item[1:] |= min_item_events == 1
    on_kept = np.bincount(user[kept_item[histories.item_index]], minlength=histories.num_users)
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
    user = histories.users()
    kept_user, kept_item = core(
        user, histories.item_index, histories.num_users, num_items, min_user_events, min_item_events
    )
    positions = np.flatnonzero(kept_item[histories.item_index] & kept_user[user])
    counts = np.bincount(user[positions], minlength=histories.num_users)
    ends = np.cumsum(counts)
    enough = counts >= 3
    train_end = histories.offsets[1:].copy()
    validation_end = histories.offsets[1:].copy()
    train_end[enough] = positions[ends[enough] - 2]
    validation_end[enough] = positions[ends[enough] - 1]
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
    user = histories.users()
    if (np.diff(histories.time)[user[1:] == user[:-1]] < 0).any():
        raise LeakError(
            "leak: a history is not in the order of time; an event stands before one that came earlier"
        )
    edges = (starts, split.train_end, split.validation_end, stops)
    for earlier, later in itertools.pairwise(edges):
        if (earlier > later).any():
            raise LeakError(
                f"leak: user index {int(np.flatnonzero(earlier > later)[0])}: parts of the split overlap"
            )
    position = np.arange(len(histories.time))
    parts = (
        (split.train_end, split.validation_from, "training"),
        (split.validation_end, split.test_from, "validation"),
    )
    for end, boundary, part in parts:
        if boundary is None:
            continue
        late = (position < end[user]) & (histories.time >= boundary)
        if late.any():
            raise LeakError(
                f"leak: {int(late.sum())} {part} events at or after the next part's boundary "
                f"{datetime.datetime.fromtimestamp(boundary / 1e6, datetime.UTC).isoformat()}"
            )
        early = (position >= end[user]) & (histories.time < boundary)
        if early.any():
            raise LeakError(
                f"leak: {int(early.sum())} events before the {part} part's end are held out after it"
            )


def tie_share(histories: JaggedHistories) -> float:
    """Share of adjacent events of one user that have the same time."""
    user = histories.users()
    same_user = user[1:] == user[:-1]
    return float((np.diff(histories.time)[same_user] == 0).mean()) if same_user.any() else 0.0
