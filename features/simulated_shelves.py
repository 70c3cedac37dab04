"""Shelves of the demo log: lists that an older system draws with known propensities, and that change nothing.

In the log's last SHOWN_DAYS days every user with an event on a day is shown some shelves of PLACES items the night before, each
drawn by itself. The older system orders the items that are out and new to the user by the sum of their cosines with the user's
items (Sarwar et al. 2001), then by their events, counted before the first of these days, and explores: P(the next place shows
the item at place r of this order, from 0) is proportional to 1 / (DEPTH + r) among the items not above it. Users with fewer
items left than places are shown none.

Users take what they would have taken without shelves. So the reward of any list is known, shown or not: the number of its items
among the user's events until the day's end.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from features.simulated_exposures import SHOWN_AT, shown_table

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

SHOWN_DAYS = 14
"""Last days of the log on which shelves are shown."""
PLACES = 3
"""Items per shelf."""
DEPTH = 10
"""Places over which the older system's preference for the head of its order halves."""
SHRINKAGE = 10.0
"""Added to the denominator of a cosine, so that two rare items together once are no near neighbours."""
PRIOR = 1e-6
"""Score of an item per event, far below a cosine: popular items stand first among those without neighbours."""
_DAY = 86_400
_CHUNK_CELLS = 2**22
"""Scores at once (16 MiB)."""


@dataclass(frozen=True)
class UserEvents:
    """Events user after user, each user's in order of time."""

    offsets: Ints
    """[users + 1]"""
    item: Ints
    """[events], from 0"""
    time: Floats
    """[events], seconds since the first day"""

    def of(self, starts: Ints, ends: Ints) -> tuple[Ints, Ints]:
        """(row, item) of the events between flat positions [rows]."""
        lengths = ends - starts
        row = np.repeat(np.arange(len(starts)), lengths)
        place = np.arange(len(row)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        return row, self.item[starts[row] + place]


@dataclass(frozen=True)
class Shelves:
    """Shelves in order of time, all of one user and night side by side."""

    user: Ints
    """[n]"""
    time: Floats
    """[n], seconds since the first day"""
    item: Ints
    """[n, PLACES]"""
    propensity: Floats
    """[n, PLACES], probability of the item at its place given the places above"""

    def table(self, times: pl.Series, user_ids: NDArray[np.str_], item_ids: Ints) -> pl.DataFrame:
        """The shelves as rows of an exposure log; times: [n] moments."""
        return shown_table(user_ids[self.user], times, item_ids[self.item], self.propensity)


def draw(events: UserEvents, born: Floats, num_days: int, shelves: int, rng: np.random.Generator) -> Shelves:
    """Shelves of the last days' visits; born: [items], seconds since the first day from which an item is out."""
    first_day = max(num_days - SHOWN_DAYS, 1)
    user = np.repeat(np.arange(len(events.offsets) - 1), np.diff(events.offsets))
    day = np.floor(events.time / _DAY).astype(np.int64)
    is_first = np.append(True, (user[1:] != user[:-1]) | (day[1:] != day[:-1]))
    visit = np.flatnonzero(is_first & (day >= first_day))
    visit = visit[np.argsort(day[visit], kind="stable")]
    starts, time = events.offsets[user[visit]], day[visit] * _DAY + float(SHOWN_AT)
    num_users = len(events.offsets) - 1
    begun = events.offsets[:-1] + np.bincount(user[day < first_day], minlength=num_users)
    earlier = events.of(events.offsets[:-1], begun)
    cosine = _cosines(*earlier, num_users, len(born))
    prior = PRIOR * np.bincount(earlier[1], minlength=len(born))
    parts = []
    step = max(1, _CHUNK_CELLS // len(born))
    for start in range(0, len(visit), step):
        rows = slice(start, start + step)
        met = np.zeros((len(visit[rows]), len(born)), np.float32)
        met[events.of(starts[rows], visit[rows])] = 1
        is_open = (met == 0) & (born <= time[rows, None])
        score = np.where(is_open, met @ cosine + prior, -np.inf)
        order = np.argsort(-score, axis=1, kind="stable")
        available = is_open.sum(axis=1)
        row = np.repeat(np.flatnonzero(available >= PLACES), shelves)
        rank, propensity = draw_ranks(available[row], PLACES, rng)
        parts.append((user[visit[rows]][row], time[rows][row], order[row[:, None], rank], propensity))
    return Shelves(*(np.concatenate(part) for part in zip(*parts, strict=True)))


def draw_ranks(available: Ints, places: int, rng: np.random.Generator) -> tuple[Ints, Floats]:
    """Places of an order of `available` items [n], drawn without replacement for each list, and their probabilities.

    available: as many as `places` at least. Returns ([n, places], [n, places]): from 0, and given the places above.
    """
    share = 1 / (DEPTH + np.arange(available.max(initial=1)))
    total = np.cumsum(share)
    rank, propensity = np.empty((len(available), places), np.int64), np.empty((len(available), places))
    left = total[available - 1]
    for place in range(places):
        waiting = np.arange(len(available))
        while len(waiting):  # an item that stands above is drawn again
            point = rng.random(len(waiting)) * total[available[waiting] - 1]
            drawn = np.searchsorted(total, point, side="right")
            rank[waiting, place] = drawn
            waiting = waiting[(rank[waiting, :place] == drawn[:, None]).any(axis=1)]
        propensity[:, place] = share[rank[:, place]] / left
        left = left - share[rank[:, place]]
    return rank, propensity


def _cosines(user: Ints, item: Ints, num_users: int, num_items: int) -> NDArray[np.float32]:
    """[items, items], shrunk cosines of items as sets of users, 0 on the diagonal; user, item: of each event."""
    held = np.zeros((num_users, num_items), np.float32)
    held[user, item] = 1
    count = held.sum(axis=0)
    cosine = held.T @ held / (np.sqrt(count[:, None] * count) + SHRINKAGE)
    np.fill_diagonal(cosine, 0)
    return np.asarray(cosine, np.float32)
