"""Facts of a log that settings left at `auto` are resolved by: ties, repeats, and the time of its newest regular event."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from features.histories.jagged import JaggedHistories
from features.histories.splits import Block, blocks

FILE = "log_facts.json"
SECOND, HOUR = 1_000_000, 3_600_000_000
"""Microseconds."""
DAY_HOURS = 24
REGULAR_SHARE = 0.1
"""Least events of the 24 hours up to a regular event, as a share of the median day's."""
LEAST_EVENTS = 2
"""Least number of these events, where the median day has as many: in a small log too, one wrong clock moves nothing."""


@dataclass(frozen=True)
class LogFacts:
    """Ties, repeats and the newest regular event of a log."""

    tied_share: float
    """Share of a user's neighbouring events that belong to one visit, in [0, 1]"""
    repeated_share: float
    """Share of events (each item of a visit once) on an item of an earlier visit of the user, in [0, 1]"""
    now: int
    """Time of the newest event whose preceding 24 hours hold a tenth of the median day's events; microseconds since the epoch"""
    resolution: int
    """Step of the log's times, a day at most, microseconds: 86_400_000_000 where only dates are known"""

    @classmethod
    def of(
        cls, histories: JaggedHistories, *, session_minutes: float = 0.0, timed: bool = True
    ) -> "LogFacts":
        """Measure a log; visits as in `starts_visit`. Without times every event is a visit and `now` is the newest position."""
        neighbours = tied = pairs = distinct = 0
        for block in blocks(histories):
            begins = starts_visit(block, histories, session_minutes if timed else None)
            neighbours += len(begins) - int(np.count_nonzero(block.lengths))
            tied += int(np.count_nonzero(~begins))
            user = np.repeat(np.arange(len(block.lengths)), block.lengths)
            item = block.cut(histories.item_index)
            pairs += _num_pairs(np.cumsum(begins), item)
            distinct += _num_pairs(user, item)
        now = newest_regular(histories) if timed else int(histories.time.max(initial=0))
        step = resolution(histories) if timed else 1
        return cls(tied / max(neighbours, 1), (pairs - distinct) / max(pairs, 1), now, step)

    def save(self, folder: Path) -> None:
        """Write log_facts.json."""
        (folder / FILE).write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "LogFacts":
        """Read log_facts.json."""
        return cls(**json.loads((folder / FILE).read_text(encoding="utf-8")))


def starts_visit(
    block: Block, histories: JaggedHistories, session_minutes: float | None
) -> NDArray[np.bool_]:
    """[events of the block] whether an event begins a visit of its user.

    A visit's neighbouring events are `session_minutes` apart at most (0: of the same time); None: every event is a visit.
    """
    time = np.asarray(block.cut(histories.time))
    begins = np.ones(len(time), bool)
    if session_minutes is not None:
        begins[1:] = np.diff(time) > round(session_minutes * 60_000_000)
    begins[block.starts[block.lengths > 0]] = True
    return begins


def newest_regular(histories: JaggedHistories) -> int:
    """Time of the newest event with a tenth of the median day's events in the 24 hours up to it, itself included.

    At least `LEAST_EVENTS`. The median is over the days with an event, UTC. A few events with a wrong clock do not move it.
    0 without events.
    """
    hours, counts = _hourly(histories)
    if not len(hours):
        return 0
    _, of_day = np.unique(hours // DAY_HOURS, return_inverse=True)
    median = float(np.median(np.bincount(of_day, weights=counts)))
    least = max(REGULAR_SHARE * median, min(LEAST_EVENTS, median))
    before = np.concatenate(([0], np.cumsum(counts)))
    first = np.searchsorted(hours, hours - DAY_HOURS)
    at_most = before[1:] - before[first]
    for place in np.flatnonzero(at_most >= least)[::-1]:
        times = _within(histories, int(hours[first[place]]) * HOUR, (int(hours[place]) + 1) * HOUR)
        number = np.arange(1, len(times) + 1) - np.searchsorted(times, times - DAY_HOURS * HOUR, side="right")
        regular = times[(number >= least) & (times >= int(hours[place]) * HOUR)]
        if len(regular):
            return int(regular[-1])
    return int(
        max(
            piece.max()
            for piece in (histories.time[block.events] for block in blocks(histories))
            if len(piece)
        )
    )


def resolution(histories: JaggedHistories) -> int:
    """Greatest step of which all times are multiples, counted from the first event; at most a day, microseconds."""
    step = DAY_HOURS * HOUR
    for block in blocks(histories):
        if step <= SECOND or not len(histories.time):
            break
        step = int(np.gcd.reduce(np.asarray(block.cut(histories.time)) - histories.time[0], initial=step))
    return step


def _hourly(histories: JaggedHistories) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Hours since the epoch that have events, ascending, and their numbers of events."""
    hours, counts = np.zeros(0, np.int64), np.zeros(0, np.int64)
    for block in blocks(histories):
        own, number = np.unique(np.asarray(block.cut(histories.time)) // HOUR, return_counts=True)
        hours, place = np.unique(np.concatenate((hours, own)), return_inverse=True)
        counts = np.bincount(place, weights=np.concatenate((counts, number))).astype(np.int64)
    return hours, counts


def _within(histories: JaggedHistories, low: int, high: int) -> NDArray[np.int64]:
    """Sorted times in [low, high)."""
    pieces = (np.asarray(block.cut(histories.time)) for block in blocks(histories))
    return np.sort(np.concatenate([piece[(piece >= low) & (piece < high)] for piece in pieces]))


def _num_pairs(group: NDArray[np.int64], item: NDArray[np.int32]) -> int:
    """Number of distinct pairs of a group's number and an item."""
    pair = np.sort(group * (int(item.max(initial=0)) + 1) + item)
    return int(np.count_nonzero(pair[1:] != pair[:-1])) + min(len(pair), 1)
