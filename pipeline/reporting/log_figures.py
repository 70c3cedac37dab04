"""Figures of a log: events over time, users and items by their number of events, gaps between events."""

from collections.abc import Mapping

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from features.profiling.profile import SESSION_SECONDS, Days, Histogram, Profile
from pipeline.reporting.style import COLOURS, GREY, WIDTH, blank, shown

_NUM_TYPES = 6
"""Event types told apart."""
_MAX_BARS = 120
_SPANS = {"1 s": 1, "1 min": 60, "1 h": 3600, "1 day": 86_400, "1 month": 30 * 86_400, "1 year": 365 * 86_400}
"""Ticks of an axis of time spans, in seconds."""


def of_log(profile: Profile, begins: Mapping[str, int | None]) -> dict[str, Figure]:
    """File name -> figure: how often users and items occur; where there are times, events per day and the gaps between them.

    begins: microseconds since the epoch at which each held-out part begins, None where it begins at no time.
    """
    found = {"distributions.svg": lengths_and_popularity(profile)}
    times = profile.times
    if times is not None and _fits_calendar(times.days):
        found["events.svg"] = events_over_time(times.days, begins)
    if times is not None and times.gap_seconds is not None and times.gap_seconds.histogram.counts:
        found["gaps.svg"] = gaps(times.gap_seconds.histogram)
    return found


def _fits_calendar(days: Days) -> bool:
    """Whether matplotlib can label the days: it knows the years 1 to 9999."""
    first, last = np.array([days.day[0], days.day[-1]], "datetime64[Y]").astype(int) + 1970
    return bool(first > 1 and last < 9999)


def events_over_time(days: Days, begins: Mapping[str, int | None]) -> Figure:
    """Events per day, the most frequent types on top of each other, and where the held-out parts begin."""
    figure, axes = blank(2.8)
    day = np.array(days.day, "datetime64[D]").astype(np.int64)  # matplotlib counts days from 1970 too
    begin, end = int(day[0]), int(day[-1]) + days.days_per_period
    width = max(days.days_per_period, -(-(end - begin) // _MAX_BARS))
    edges = np.minimum(np.arange(begin, end + width, width), end)
    below = np.zeros(len(edges) - 1)
    for colour, (name, events) in zip(COLOURS[:_NUM_TYPES], _most_frequent(days).items(), strict=False):
        total = below + np.bincount((day - begin) // width, events, len(below)) / np.diff(edges)
        axes.stairs(total, edges, baseline=below, fill=True, color=colour, label=shown(name))
        below = total
    with mpl.rc_context({"date.converter": "concise"}):
        axes.xaxis_date()
    axes.set_xlim(begin, end)
    for (part, moment), side in zip(begins.items(), ("right", "left"), strict=False):
        if moment is not None:
            at = moment / 86_400e6
            axes.axvline(at, color=GREY, linestyle="--", linewidth=1)
            axes.text(
                at, 1, f" {part} ", color=GREY, ha=side, va="bottom", transform=axes.get_xaxis_transform()
            )
    axes.set_ylabel("events per day")
    if len(days.events_by_type) > 1:
        axes.legend(frameon=False, loc="upper left")
    return figure


def _most_frequent(days: Days) -> dict[str, list[int]]:
    """Events of as many types as there are colours for, the last being all others where there are more."""
    named = list(days.events_by_type.items())
    others = np.array(days.events) - sum(np.array(events) for _, events in named)
    if len(named) + bool(others.any()) > _NUM_TYPES:
        named, rest = named[: _NUM_TYPES - 1], named[_NUM_TYPES - 1 :]
        others = others + sum(np.array(events) for _, events in rest)
    found = {name or "no type": events for name, events in named}
    return found | ({"other types": others.tolist()} if others.any() else {})


def lengths_and_popularity(profile: Profile) -> Figure:
    """How many users have how many events, and how many items; all axes are logarithmic."""
    figure = Figure(figsize=(WIDTH, 2.8), layout="constrained")
    users, items = figure.subplots(1, 2)
    _draw_histogram(users, profile.history_length.histogram, COLOURS[0])
    _draw_histogram(items, profile.popularity.num_events.histogram, COLOURS[2])
    users.set(xlabel="events of the user", ylabel="users")
    items.set(xlabel="events on the item", ylabel="items")
    for axes in (users, items):
        axes.set_yscale("log")
        axes.set_ylim(bottom=0.7)
    return figure


def gaps(seconds: Histogram) -> Figure:
    """Time between adjacent events of a user, and where a session ends."""
    figure, axes = blank(2.4)
    _draw_histogram(axes, seconds, COLOURS[4])
    axes.axvline(SESSION_SECONDS, color=GREY, linestyle=":")
    low, high = min(seconds.edges[0], SESSION_SECONDS / 2), max(seconds.edges[-1], SESSION_SECONDS * 2)
    axes.set_xlim(low, high)
    shown = {name: span for name, span in _SPANS.items() if low <= span <= high}
    axes.set_xticks(list(shown.values()), list(shown))
    axes.set_xticks([], minor=True)
    axes.set_xlabel("time to the user's next event (dotted: 30 minutes, the end of a session)")
    axes.set_ylabel("pairs of events")
    return figure


def _draw_histogram(axes: Axes, histogram: Histogram, colour: str) -> None:
    axes.stairs(histogram.counts, histogram.edges, fill=True, color=colour, edgecolor="white")
    axes.set_xscale("log")
    axes.grid(axis="y", color="#ddd")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
