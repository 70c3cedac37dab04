"""Exposures of the demo log: lists that an older system draws with known propensities, and what users take from them.

P(the next place shows item i) is proportional to exp(POPULARITY * appeal[i] + KNOWN * (i is of one of the user's tastes)) among
the items that are out and not above it: the distribution of Plackett (1975) and Luce (1959). A user looks at place r with
probability LOOKS[r] and takes what it looks at with the probability `Readers.rate`, whatever else the list shows.
"""

from dataclasses import dataclass, fields

import numpy as np
import polars as pl
from numpy.typing import NDArray

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

LOOKS = np.array([1.0, 0.8, 0.6, 0.5, 0.4])
"""Probability that a user looks at each place of a list: position bias."""
POPULARITY = 0.8
"""Weight of an item's appeal in the older system's draws."""
KNOWN = 1.5
"""Preference of the older system for the user's own tastes, in nats."""
SELDOM, OFTEN = 0.05, 0.6
"""Probability of taking an item outside the user's tastes, and what a taste and the user's own style add at most."""
SHOWN_AT, SHOWN_FOR = 3 * 3_600, 3_600
"""Begin and length of the hour of lists, in seconds of the day: at night, so that no other event is taken for a reaction."""
SECONDS_PER_PLACE = 30
EVENTS_PER_LIST = 5
"""Events of the log per list."""
_CHUNK_CELLS = 2**22
"""Worths drawn at once (32 MiB)."""


@dataclass(frozen=True)
class Readers:
    """Traits of items and users that decide what is shown and taken; phase 1 is that after a drift."""

    appeal: Floats
    """[2, items]"""
    born: Floats
    """[items], seconds since the first day"""
    topic: Ints
    """[items]"""
    item_style: Floats
    """[items, d], unit vectors"""
    is_taste: Bools
    """[2, users, topics]"""
    user_style: Floats
    """[users, d], unit vectors"""

    def rate(self, user: Ints, phase: Ints) -> Floats:
        """[rows, items], probability that a user who looks at an item takes it.

        SELDOM + OFTEN * (is a taste) * (1 + cosine of the styles) / 2.
        """
        likeness = (1 + self.user_style[user] @ self.item_style.T) / 2
        return np.asarray(SELDOM + OFTEN * self.is_taste[phase, user][:, self.topic] * likeness)

    def worth(self, user: Ints, phase: Ints, time: Floats) -> Floats:
        """[rows, items], logarithm of the older system's share; -inf for items that are not out."""
        worth = POPULARITY * self.appeal[phase] + KNOWN * self.is_taste[phase, user][:, self.topic]
        return np.where(self.born <= time[:, None], worth, -np.inf)


@dataclass(frozen=True)
class DrawnLists:
    """Lists of n users' mornings, k places each."""

    user: Ints
    """[n]"""
    phase: Ints
    """[n]"""
    time: Floats
    """[n], seconds since the first day"""
    item: Ints
    """[n, k]"""
    propensity: Floats
    """[n, k], probability of the item at its place given the places above"""
    is_taken: Bools
    """[n, k]"""

    def in_order(self) -> "DrawnLists":
        """The lists in order of time."""
        order = np.argsort(self.time, kind="stable")
        return DrawnLists(**{field.name: getattr(self, field.name)[order] for field in fields(self)})


@dataclass(frozen=True)
class Exposures:
    """Lists shown by an older system, and what was taken from them."""

    shown: pl.DataFrame
    """In order of time and rank: user_id, item_id, timestamp, rank, propensity (at its place given the places above), list_id."""
    reactions: pl.DataFrame
    """In order of time: user_id, item_id, timestamp, event_type, value (none)."""
    lists: DrawnLists
    """The same lists; users and items are positions in `user_ids` and `item_ids`."""
    readers: Readers
    """Traits that decide the reactions."""
    user_ids: NDArray[np.str_]
    item_ids: Ints


def draw(readers: Readers, user: Ints, day: Ints, phase: Ints, rng: np.random.Generator) -> DrawnLists:
    """A list for each user [n] on a day [n], and the reactions."""
    time = np.floor(day * 86_400 + SHOWN_AT + SHOWN_FOR * rng.random(len(user)))
    places = len(LOOKS)
    item, propensity = np.empty((len(user), places), np.int64), np.empty((len(user), places))
    rate = np.empty_like(propensity)
    step = max(1, _CHUNK_CELLS // len(readers.born))
    for start in range(0, len(user), step):
        rows = slice(start, start + step)
        worth = readers.worth(user[rows], phase[rows], time[rows])
        keys = worth + rng.gumbel(size=worth.shape)
        item[rows] = np.argsort(-keys, axis=1)[:, :places]
        share = np.exp(worth)
        share = np.take_along_axis(share, item[rows], 1) / share.sum(axis=1, keepdims=True)
        propensity[rows] = share / (1 - np.cumsum(share, axis=1) + share)
        rate[rows] = np.take_along_axis(readers.rate(user[rows], phase[rows]), item[rows], 1)
    return DrawnLists(user, phase, time, item, propensity, rng.random(rate.shape) < LOOKS * rate)


def in_tables(
    lists: DrawnLists, readers: Readers, times: pl.Series, user_ids: NDArray[np.str_], item_ids: Ints
) -> Exposures:
    """The lists, in order of time, as rows of logs; times: [n] moments of the lists."""
    shown = shown_table(user_ids[lists.user], times, item_ids[lists.item], lists.propensity)
    reactions = shown.filter(pl.Series(lists.is_taken.ravel())).select(
        "user_id",
        "item_id",
        pl.col("timestamp") + pl.duration(seconds=SECONDS_PER_PLACE * pl.col("rank")),
        event_type=pl.lit("view"),
        value=pl.lit(None, pl.Float32),
    )
    reactions = reactions.sort("timestamp", maintain_order=True)
    return Exposures(shown, reactions, lists, readers, user_ids, item_ids)


def shown_table(
    user_ids: NDArray[np.str_], times: pl.Series, items: Ints, propensity: Floats
) -> pl.DataFrame:
    """Lists as rows of an exposure log; user_ids, times: [n], items, propensity: [n, k]."""
    number, places = items.shape
    return pl.DataFrame(
        {
            "user_id": np.repeat(user_ids, places),
            "item_id": items.ravel(),
            "timestamp": times.gather(np.repeat(np.arange(number), places)),
            "rank": np.tile(np.arange(1, places + 1), number),
            "propensity": propensity.ravel(),
            "list_id": np.repeat([f"l{place}" for place in range(1, number + 1)], places),
        }
    )
