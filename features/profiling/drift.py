"""Drift of the log since the previous build, by the population stability index."""

import itertools
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from features.profiling.profile import Profile
from features.schema import ITEM_ID

NUM_BINS = 10
"""Groups of items with equal shares of the previous events, the most popular items first."""
MIN_SHARE = 0.005
"""Lower bound of shares in the index, so that a single event of a new kind is no large drift; a new kind is one from about
9 % of the new events on."""
MODERATE, LARGE = 0.1, 0.25
MIN_EVENTS = 100
"""Minimum number of new events for an index."""
MORE_LEFT_OUT = 0.01
"""Growth of the share of rows that are no events for one reason, above which a warning is given."""
MAX_REMOVED = 0.05
"""Maximum removed events, as a share of the new ones: beyond it the difference of counts does not describe the new events."""


@dataclass(frozen=True)
class Stability:
    """Population stability of one grouped distribution against an earlier one."""

    psi: float
    """Population stability index: sum over groups of (new - before) * ln(new / before), of shares of at least MIN_SHARE."""
    by_chance: float
    """99th percentile of the index under chance alone, for independent events."""
    groups: list[str]
    before: list[float]
    """Share of each group in the previous events."""
    new: list[float]
    """Share of each group in the new events."""

    @property
    def level(self) -> str:
        """stable, moderate (from 0.1) or large (from 0.25); stable where chance alone explains it."""
        if self.psi < MODERATE or self.is_chance:
            return "stable"
        return "moderate" if self.psi < LARGE else "large"

    @property
    def is_chance(self) -> bool:
        """Whether chance alone may explain an index that would be moderate or large."""
        return MODERATE <= self.psi < self.by_chance


@dataclass(frozen=True)
class Drift:
    """Difference between the new events and the previous ones."""

    last_before: str | None
    """Time of the last previous event."""
    num_events_before: int
    num_new_events: int
    num_removed_events: int
    """Lower bound of the previous events that are gone, from items (or types) with fewer events now."""
    num_users_before: int
    num_users: int
    items: Stability | None
    """Stability of items grouped by previous popularity, new items apart; None where counts do not allow it."""
    types: Stability | None
    new_item_share: float | None
    """Share of new events on items without previous events."""
    warnings: list[str]
    """Large drifts, and reasons for which more rows are no events, a sentence each."""
    notes: list[str]
    """Limits of the comparison, a sentence each."""

    def save(self, path: Path) -> None:
        """As JSON."""
        path.write_text(json.dumps(asdict(self), ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "Drift":
        """Load a saved drift. Raises ValueError for any other file."""
        import pydantic

        try:
            return pydantic.TypeAdapter(cls).validate_json(path.read_bytes())
        except pydantic.ValidationError as error:
            raise ValueError(
                f"{path}: is no drift of a log ({error.error_count()} error(s), the first: {error.errors()[0]['msg']}); "
                "build the features again"
            ) from None

    def metrics(self) -> dict[str, float]:
        """The headline numbers by name."""
        metrics = {
            "num_new_events": self.num_new_events,
            "num_removed_events": self.num_removed_events,
            "num_new_users": self.num_users - self.num_users_before,
            "item_psi": None if self.items is None else self.items.psi,
            "type_psi": None if self.types is None else self.types.psi,
            "new_item_share": self.new_item_share,
        }
        return {name: float(value) for name, value in metrics.items() if value is not None}


def compare(before_items: pl.DataFrame, before: Profile, now_items: pl.DataFrame, now: Profile) -> Drift:
    """Compare the events since the previous build with the previous events.

    New events are the difference of counts: per item (tables with item_id and num_events, matched by item_id) and per type.
    Items are grouped by previous popularity into NUM_BINS groups of equal shares of events, and one of items without events
    then. (Index: Siddiqi 2006; under chance: chi-squared with one degree of freedom less than there are groups, times
    1 / before + 1 / new events, after Yurdakul and Naranjo 2020.)
    """
    old, difference = _matched(before_items, now_items)
    old_types, type_difference, type_names = _matched_types(before, now)
    added = int(difference.clip(0).sum())
    removed = max(int(-change.clip(max=0).sum()) for change in (difference, type_difference))
    notes, items, types = [], None, None
    if added < MIN_EVENTS:
        notes.append(f"{added} events are new since last time: too few to measure how they differ")
    elif removed > MAX_REMOVED * added:
        notes.append(
            f"{removed:,} events of last time or more are gone (other settings, excluded users, changed or removed files): "
            "counts do not show how the new ones differ"
        )
    else:
        if removed:
            notes.append(
                f"{removed:,} events of last time or more are gone: what follows is right but for those"
            )
        bins = popularity_bins(old)
        items = _stability(_bin_names(), *(_sums(bins, counts, NUM_BINS + 1) for counts in (old, difference)))
        types = _stability(type_names, old_types, type_difference)
    return Drift(
        last_before=None if before.times is None else before.times.last,
        num_events_before=before.num_events,
        num_new_events=added,
        num_removed_events=removed,
        num_users_before=before.num_users,
        num_users=now.num_users,
        items=items,
        types=types,
        new_item_share=None if items is None else items.new[-1],
        warnings=[*_warnings(items, types, added), *_left_out_more(before, now)],
        notes=notes,
    )


def _warnings(items: Stability | None, types: Stability | None, added: int) -> Iterator[str]:
    says = f"are spread quite differently from those of last time (large from {LARGE})"
    if items is not None and items.level == "large":
        yield (
            f"items: population stability index {items.psi:.2f}: the {added:,} new events, {100 * items.new[-1]:.1f} % of "
            f"them on items without events last time, {says}"
        )
    if types is not None and types.level == "large":
        yield f"event types: population stability index {types.psi:.2f}: the {added:,} new events {says}"


def _left_out_more(before: Profile, now: Profile) -> Iterator[str]:
    """A sentence for each reason for which a share of the rows larger by MORE_LEFT_OUT is no events."""
    if not (before.rows_in and now.rows_in):
        return
    for reason, number in sorted(now.rows_left_out.items()):
        share, share_before = number / now.rows_in, before.rows_left_out.get(reason, 0) / before.rows_in
        if share - share_before > MORE_LEFT_OUT:
            yield f"rows left out ({reason}): {share:.1%} of all rows, last time {share_before:.1%}"


def _matched(before: pl.DataFrame, now: pl.DataFrame) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """[items] previous events of every item of either table, and the change since, in order of item_id."""
    tables = [table.select(pl.col(ITEM_ID).cast(pl.String), "num_events") for table in (before, now)]
    both = tables[0].join(tables[1], on=ITEM_ID, how="full", coalesce=True, suffix="_now").sort(ITEM_ID)
    old, new = (both[name].fill_null(0).to_numpy() for name in ("num_events", "num_events_now"))
    return old, new - old


def _matched_types(before: Profile, now: Profile) -> tuple[NDArray[np.int64], NDArray[np.int64], list[str]]:
    """Previous events of every type, the change since, and names; "other" sums types not counted in both profiles."""
    both = (before, now)
    names = [
        name
        for name in dict.fromkeys([*before.events_by_type, *now.events_by_type])
        if all(name in log.events_by_type or not log.num_events_of_other_types for log in both)
    ]
    counts = np.array([[log.events_by_type.get(name, 0) for name in names] for log in both], np.int64)
    others = np.array([before.num_events, now.num_events]) - counts.sum(axis=1)
    names = [name or "none" for name in names]
    if others.any():
        counts, names = np.column_stack([counts, others]), [*names, "other"]
    old, new = counts
    return old, new - old, names


def popularity_bins(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """[items] popularity group of each item by its events [items]: 0 (most popular) to NUM_BINS - 1, NUM_BINS without events."""
    order = np.argsort(-counts, kind="stable")
    ends = np.cumsum(counts[order])
    middle = (ends - counts[order] / 2) / ends[-1]
    bins = np.empty(len(counts), np.int64)
    bins[order] = np.minimum(middle * NUM_BINS, NUM_BINS - 1)
    return np.where(counts > 0, bins, NUM_BINS)


def _bin_names() -> list[str]:
    """Names of the groups of items."""
    edges = [100 * number // NUM_BINS for number in range(NUM_BINS + 1)]
    ranges = [f"{low}–{high} %" for low, high in itertools.pairwise(edges)]
    return [*ranges, "not seen before"]


def _sums(bins: NDArray[np.int64], counts: NDArray[np.int64], num_bins: int) -> NDArray[np.int64]:
    return np.bincount(bins, counts.clip(0), num_bins).astype(np.int64)


def index_of(before: NDArray[np.float64], new: NDArray[np.float64]) -> float:
    """Population stability index of shares [groups], see `Stability.psi`."""
    a, b = before.clip(MIN_SHARE), new.clip(MIN_SHARE)
    return float((b - a) @ np.log(b / a))


def _stability(groups: list[str], before: NDArray[np.int64], new: NDArray[np.int64]) -> Stability:
    """Stability from counts per group; groups that lost events have no new ones."""
    from scipy.special import chdtri

    totals = int(before.sum()), max(int(new.clip(0).sum()), 1)
    shares = before / totals[0], new.clip(0) / totals[1]
    freedom = max(int(np.count_nonzero((before > 0) | (new > 0))) - 1, 1)
    return Stability(
        psi=index_of(*shares),
        by_chance=float(chdtri(freedom, 0.01)) * (1 / totals[0] + 1 / totals[1]),
        groups=groups,
        before=shares[0].tolist(),
        new=shares[1].tolist(),
    )
