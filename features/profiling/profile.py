"""Profile of the log: a few numbers and small histograms.

Counting works through blocks of users, so memory does not grow with the log. Counts, shares and histograms are exact;
only the quantiles of gaps come from a histogram of 64 bins per factor of two, and are right within 1 %.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from features.histories.jagged import JaggedHistories

PROFILE, DRIFT = "profile.json", "drift.json"
"""Files of a features artifact: its profile, and the difference from the last artifact's."""
SESSION_SECONDS = 1800
"""A longer pause begins a new session."""
QUANTILES = (0, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1)
TOP_SHARES = (0.01, 0.1, 0.2)
MAX_TYPES = 20
"""Maximum number of types counted by name, the most frequent; all others together."""
MAX_PERIODS = 36_525
"""Maximum number of periods; a log of more days than this century has periods of several days."""
BLOCK_EVENTS = 250_000
"""Events of a block; these fit the processor's cache, twice as fast as 4 M."""

_DAY = 86_400_000_000
_BITS = 6
_ONE = 1023 << _BITS
"""Exponent and first `_BITS` bits of the fraction of a float64 1.0."""
_NUM_FINE = 64 << _BITS


@dataclass(frozen=True)
class Histogram:
    """Counts between edges: `counts[i]` lie in [edges[i], edges[i + 1]); the edges grow by factors of two."""

    edges: list[float]
    counts: list[int]


@dataclass(frozen=True)
class Distribution:
    """Quantiles (`p50` is the median, `p0` and `p100` are the ends) and a histogram."""

    quantiles: dict[str, float]
    histogram: Histogram


@dataclass(frozen=True)
class Popularity:
    """Distribution of events over the items that have any."""

    gini: float
    """0: all items have the same number of events; towards 1: one item has all."""
    top_shares: dict[str, float]
    """Share of events on the most popular 1 %, 10 % and 20 % of items, rounded up to whole items; by `top_1_percent` …"""
    num_items_for_80_percent: int
    """The fewest items that together have 80 % of the events."""
    num_events: Distribution
    """Events per item."""


@dataclass(frozen=True)
class Days:
    """Events per day (UTC) in the order of time, days without events left out."""

    days_per_period: int
    """1, unless the log covers more than MAX_PERIODS days."""
    day: list[str]
    """The period's first day, ISO."""
    events: list[int]
    events_by_type: dict[str, list[int]]
    """Event type, as in `Profile.events_by_type`, to events per period."""


@dataclass(frozen=True)
class Times:
    """Profile of the events' times."""

    first: str
    """ISO, UTC, to the microsecond; so is `last`."""
    last: str
    days: Days
    tied_share: float
    """Share of pairs of adjacent events of one user at the same time; 0 without pairs."""
    gap_seconds: Distribution | None
    """Seconds between adjacent events of one user (histogram: without ties); None if no user has two events."""
    num_sessions: int
    """A session ends where the user pauses for more than SESSION_SECONDS."""
    events_per_session: float
    sessions_per_user: float


@dataclass(frozen=True)
class Profile:
    """Profile of a log."""

    num_events: int
    num_users: int
    """With events."""
    num_items: int
    """In the catalogue."""
    num_items_with_events: int
    density: float
    """Share of all pairs of a user and an item, both with events, that have an event."""
    events_by_type: dict[str, int]
    """Event type ("" for none) to number of events, the most frequent first."""
    num_events_of_other_types: int
    """Events of types beyond the MAX_TYPES most frequent."""
    history_length: Distribution
    """Events per user."""
    popularity: Popularity
    repeat_share: float
    """Share of events on an item that the user had before."""
    immediate_repeat_share: float
    """Share of events on the item of the user's previous event."""
    times: Times | None
    """None if only the order of events is known."""
    rows_in: int = 0
    """Rows of the source files; 0 if unknown."""
    rows_left_out: dict[str, int] = field(default_factory=dict)
    """Reason to number of rows that are no events."""

    def save(self, path: Path) -> None:
        """As JSON."""
        path.write_text(json.dumps(asdict(self), ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "Profile":
        """Load a saved profile. Raises ValueError for any other file."""
        import pydantic

        try:
            return pydantic.TypeAdapter(cls).validate_json(path.read_bytes())
        except pydantic.ValidationError as error:
            raise ValueError(
                f"{path}: is no profile of a log ({error.error_count()} error(s), the first: {error.errors()[0]['msg']}); "
                "build the features again"
            ) from None

    def metrics(self) -> dict[str, float]:
        """The headline numbers by name."""
        lengths = self.history_length.quantiles
        metrics = {
            "num_events": self.num_events,
            "num_users": self.num_users,
            "num_items": self.num_items,
            "num_items_with_events": self.num_items_with_events,
            "density": self.density,
            "history_length_p50": lengths["p50"],
            "history_length_p95": lengths["p95"],
            "popularity_gini": self.popularity.gini,
            **{f"popularity_{name}": share for name, share in self.popularity.top_shares.items()},
            "num_items_for_80_percent": self.popularity.num_items_for_80_percent,
            "repeat_share": self.repeat_share,
            "immediate_repeat_share": self.immediate_repeat_share,
        }
        if (times := self.times) is not None:
            metrics |= {
                "num_days": len(times.days.day),
                "tied_share": times.tied_share,
                "events_per_session": times.events_per_session,
                "sessions_per_user": times.sessions_per_user,
            }
            if times.gap_seconds is not None:
                metrics["gap_seconds_p50"] = times.gap_seconds.quantiles["p50"]
        return {name: float(value) for name, value in metrics.items()}


# --- the profile ---


def profile(
    histories: JaggedHistories,
    event_types: list[str],
    num_items: int,
    *,
    timed: bool,
    block_events: int = BLOCK_EVENTS,
) -> Profile:
    """Profile of the histories.

    event_types: names of the types 1, 2, … of the histories. num_items: size of the catalogue. timed: False where only the
    order of events is known; the profile then has no days, ties and gaps.
    Raises ValueError for a log without events.
    """
    num_events = len(histories.item_index)
    if not num_events:
        raise ValueError("profile: received a log without events, expected at least one")
    lengths = np.diff(histories.offsets)
    lengths = lengths[lengths > 0]
    popularity = histories.item_counts(num_items)
    popularity = popularity[popularity > 0]
    by_type = _count_types(histories, len(event_types), block_events)
    named = [int(kind) for kind in np.argsort(-by_type, kind="stable")[:MAX_TYPES] if by_type[kind]]
    names = ["", *event_types]
    pairs = _Pairs(num_items)
    clock = _Clock(histories, named, len(names)) if timed else None
    for first, last in histories.blocks(block_events):
        pairs.add(histories, first, last)
        if clock is not None:
            clock.add(histories, first, last)
    return Profile(
        num_events=num_events,
        num_users=len(lengths),
        num_items=num_items,
        num_items_with_events=len(popularity),
        density=pairs.num_distinct / (len(lengths) * len(popularity)),
        events_by_type={names[kind]: int(by_type[kind]) for kind in named},
        num_events_of_other_types=num_events - int(by_type[named].sum()),
        history_length=_describe(lengths),
        popularity=_popularity(popularity),
        repeat_share=1 - pairs.num_distinct / num_events,
        immediate_repeat_share=pairs.num_immediate / num_events,
        times=None if clock is None else clock.summary([names[kind] for kind in named], len(lengths)),
    )


def _count_types(histories: JaggedHistories, num_types: int, block_events: int) -> NDArray[np.int64]:
    """[num_types + 1] events of each type; type 0 is none."""
    counts = np.zeros(num_types + 1, np.int64)
    for first, last in histories.blocks(block_events):
        kind = histories.event_type[histories.offsets[first] : histories.offsets[last]]
        counts += np.bincount(kind, minlength=num_types + 1)
    return counts


class _Pairs:
    """Counts pairs of a user and an item."""

    def __init__(self, num_items: int) -> None:
        self._num_items = num_items
        self.num_distinct = 0
        self.num_immediate = 0
        """Events on the item of the previous event."""

    def add(self, histories: JaggedHistories, first: int, last: int) -> None:
        """Count the users [first, last)."""
        edges = histories.offsets[first : last + 1]
        user = np.arange(last - first, dtype=np.int64) * (self._num_items + 1)
        pair = np.repeat(user, np.diff(edges))
        pair += histories.item_index[edges[0] : edges[-1]]
        self.num_immediate += int(np.count_nonzero(pair[1:] == pair[:-1]))
        pair.sort()
        self.num_distinct += int(np.count_nonzero(pair[1:] != pair[:-1])) + min(len(pair), 1)


class _Clock:
    """Counts days, gaps and sessions."""

    def __init__(self, histories: JaggedHistories, named: list[int], num_types: int) -> None:
        offsets = histories.offsets
        begins = offsets[:-1][np.diff(offsets) > 0]
        ends = offsets[1:][np.diff(offsets) > 0]
        self.first, self.last = int(histories.time[begins].min()), int(histories.time[ends - 1].max())
        self._first_day = self.first // _DAY
        num_days = self.last // _DAY - self._first_day + 1
        self._days_per_period = -(-num_days // MAX_PERIODS)
        self._num_periods = -(-num_days // self._days_per_period)
        self._column = np.full(num_types, len(named), np.int64)
        """[num_types] column of a type among those counted by name, the last for all others."""
        self._column[named] = np.arange(len(named))
        self._events = np.zeros((self._num_periods, len(named) + 1), np.int64)
        self._gaps = np.zeros(_NUM_FINE, np.int64)
        self._longest = 0.0
        self._num_pauses = 0

    def _periods(self, time: NDArray[np.int64]) -> NDArray[np.int64]:
        period: NDArray[np.int64] = time // _DAY
        period -= self._first_day
        if self._days_per_period > 1:
            period //= self._days_per_period
        return period

    def add(self, histories: JaggedHistories, first: int, last: int) -> None:
        """Count the users [first, last)."""
        edges = histories.offsets[first : last + 1]
        events = slice(int(edges[0]), int(edges[-1]))
        time = np.asarray(histories.time[events])
        if not len(time):
            return
        self._add_gaps(time, (edges[:-1] - edges[0])[np.diff(edges) > 0][1:])
        period = self._periods(time)
        period *= self._events.shape[1]
        period += self._column[histories.event_type[events]]
        self._events += np.bincount(period, minlength=self._events.size).reshape(self._events.shape)

    def _add_gaps(self, time: NDArray[np.int64], begins: NDArray[np.int64]) -> None:
        """Count gaps; begins: positions at which each user but the first begins."""
        gap = np.diff(time).astype(np.float64)
        gap[begins - 1] = 0  # from one user to another: taken out of the ties below
        self._longest = max(self._longest, float(gap.max(initial=0)))
        self._num_pauses += int(np.count_nonzero(gap > SESSION_SECONDS * 1e6))
        self._gaps += np.bincount(_fine_bin(gap), minlength=_NUM_FINE)
        self._gaps[0] -= len(begins)

    def summary(self, names: list[str], num_users: int) -> Times:
        """Profile of the counted times; names: of the types counted by name."""
        num_pairs, num_events = int(self._gaps.sum()), int(self._events.sum())
        num_sessions = num_users + self._num_pauses
        return Times(
            first=_iso(self.first, "us"),
            last=_iso(self.last, "us"),
            days=self._days(names),
            tied_share=int(self._gaps[0]) / num_pairs if num_pairs else 0.0,
            gap_seconds=self._gap_distribution(num_pairs) if num_pairs else None,
            num_sessions=num_sessions,
            events_per_session=num_events / num_sessions,
            sessions_per_user=num_sessions / num_users,
        )

    def _days(self, names: list[str]) -> Days:
        events = self._events.sum(axis=1)
        (periods,) = events.nonzero()
        return Days(
            self._days_per_period,
            [_iso(self._first_day + period * self._days_per_period, "D") for period in periods.tolist()],
            events[periods].tolist(),
            {name: self._events[periods, column].tolist() for column, name in enumerate(names)},
        )

    def _gap_distribution(self, num_pairs: int) -> Distribution:
        below = np.cumsum(self._gaps)
        places = np.ceil(np.array(QUANTILES) * num_pairs).clip(1)
        values = _middle(np.searchsorted(below, places)).clip(max=self._longest) / 1e6
        values[-1] = self._longest / 1e6
        by_octave = np.add.reduceat(self._gaps[1:], np.arange(0, _NUM_FINE - 1, 1 << _BITS))
        return Distribution(_named(values), _trimmed(by_octave, 1e-6))


def _iso(moment: int, unit: str) -> str:
    return str(np.datetime64(moment, unit))  # type: ignore[call-overload]


def _fine_bin(gap: NDArray[np.float64]) -> NDArray[np.int64]:
    """[n] bin of whole numbers >= 0: 0 for 0, then 2**_BITS bins per factor of two, from the float's own bits."""
    bins: NDArray[np.int64] = gap.view(np.int64) >> (52 - _BITS)
    bins -= _ONE - 1
    return bins.clip(0)


def _middle(bins: NDArray[np.int64]) -> NDArray[np.float64]:
    """[n] mean of the whole numbers in each bin."""
    octave, part = np.divmod(bins - 1, 1 << _BITS)
    width = np.exp2(octave - _BITS)
    middle = np.exp2(octave) + part * width + np.maximum(width - 1, 0) / 2
    return np.where(bins == 0, 0.0, middle)


def _describe(numbers: NDArray[np.int64]) -> Distribution:
    """Quantiles of whole numbers >= 1, and their histogram between powers of two."""
    octave = np.frexp(numbers)[1] - 1
    return Distribution(_named(np.quantile(numbers, QUANTILES)), _trimmed(np.bincount(octave), 1))


def _named(quantiles: NDArray[np.float64]) -> dict[str, float]:
    return {f"p{100 * q:g}": value for q, value in zip(QUANTILES, quantiles.tolist(), strict=True)}


def _trimmed(by_octave: NDArray[np.int64], unit: float) -> Histogram:
    """The histogram between the first and the last octave that has any; octave o begins at 2**o units."""
    (filled,) = by_octave.nonzero()
    if not len(filled):
        return Histogram([], [])
    first, last = int(filled[0]), int(filled[-1])
    edges = [unit * 2.0**octave for octave in range(first, last + 2)]
    return Histogram(edges, by_octave[first : last + 1].tolist())


def _popularity(counts: NDArray[np.int64]) -> Popularity:
    """counts: [items with events]."""
    ascending = np.sort(counts)
    below = np.cumsum(ascending[::-1])
    total, number = int(below[-1]), len(counts)
    ranks = np.arange(1, number + 1)
    gini = 2 * float(ranks @ (ascending / total)) / number - (number + 1) / number
    top = {share: int(np.ceil(share * number)) for share in TOP_SHARES}
    return Popularity(
        gini=max(0.0, gini),
        top_shares={f"top_{100 * share:g}_percent": int(below[n - 1]) / total for share, n in top.items()},
        num_items_for_80_percent=int(np.searchsorted(below, 0.8 * total)) + 1,
        num_events=_describe(counts),
    )
