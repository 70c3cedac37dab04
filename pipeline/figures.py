"""Figures of a log and of an evaluation, as SVG that is the same for the same numbers."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl
import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from features.profile import SESSION_SECONDS, Days, Histogram, Profile
from models.judgement import Judgement

_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
"""Okabe and Ito (2008): told apart by colour-blind readers too."""
_MARKERS = "osD^vP"
_GREY = "#7F7F7F"
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
    figure, axes = _blank(2.8)
    day = np.array(days.day, "datetime64[D]").astype(np.int64)  # matplotlib counts days from 1970 too
    begin, end = int(day[0]), int(day[-1]) + days.days_per_period
    width = max(days.days_per_period, -(-(end - begin) // _MAX_BARS))
    edges = np.minimum(np.arange(begin, end + width, width), end)
    below = np.zeros(len(edges) - 1)
    for colour, (name, events) in zip(_COLOURS, _most_frequent(days).items(), strict=False):
        total = below + np.bincount((day - begin) // width, events, len(below)) / np.diff(edges)
        axes.stairs(total, edges, baseline=below, fill=True, color=colour, label=name)
        below = total
    with mpl.rc_context({"date.converter": "concise"}):
        axes.xaxis_date()
    axes.set_xlim(begin, end)
    for (part, moment), side in zip(begins.items(), ("right", "left"), strict=False):
        if moment is not None:
            at = moment / 86_400e6
            axes.axvline(at, color=_GREY, linestyle="--", linewidth=1)
            axes.text(
                at, 1, f" {part} ", color=_GREY, ha=side, va="bottom", transform=axes.get_xaxis_transform()
            )
    axes.set_ylabel("events per day")
    if len(days.events_by_type) > 1:
        axes.legend(frameon=False, loc="upper left")
    return figure


def _most_frequent(days: Days) -> dict[str, list[int]]:
    """Events of as many types as there are colours for, the last being all others where there are more."""
    named = list(days.events_by_type.items())
    others = np.array(days.events) - sum(np.array(events) for _, events in named)
    if len(named) + bool(others.any()) > len(_COLOURS):
        named, rest = named[: len(_COLOURS) - 1], named[len(_COLOURS) - 1 :]
        others = others + sum(np.array(events) for _, events in rest)
    found = {name or "no type": events for name, events in named}
    return found | ({"other types": others.tolist()} if others.any() else {})


def lengths_and_popularity(profile: Profile) -> Figure:
    """How many users have how many events, and how many items; all axes are logarithmic."""
    figure = Figure(figsize=(7.2, 2.8), layout="constrained")
    users, items = figure.subplots(1, 2)
    _draw_histogram(users, profile.history_length.histogram, _COLOURS[0])
    _draw_histogram(items, profile.popularity.num_events.histogram, _COLOURS[2])
    users.set(xlabel="events of the user", ylabel="users")
    items.set(xlabel="events on the item", ylabel="items")
    for axes in (users, items):
        axes.set_yscale("log")
        axes.set_ylim(bottom=0.7)
    return figure


def gaps(seconds: Histogram) -> Figure:
    """Time between adjacent events of a user, and where a session ends."""
    figure, axes = _blank(2.4)
    _draw_histogram(axes, seconds, _COLOURS[4])
    axes.axvline(SESSION_SECONDS, color=_GREY, linestyle=":")
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


def of_evaluation(judged: Judgement, segments: pl.DataFrame, k: int) -> dict[str, Figure]:
    """File name -> figure: systems against each other at list length k, and along each kind of segment."""
    return {
        "metrics.svg": systems_side_by_side(judged, (f"ndcg@{k}", f"hit_rate@{k}", f"mrr@{k}")),
        "by_history_length.svg": along_segments(
            segments, "history_length", f"ndcg@{k}", "events in the history"
        ),
        "by_item_popularity.svg": along_segments(
            segments, "item_popularity", f"ndcg@{k}", "third of the catalogue"
        ),
    }


def systems_side_by_side(judged: Judgement, names: tuple[str, ...]) -> Figure:
    """A group of bars per metric, a bar per system, with 95 % intervals."""
    figure, axes = _blank()
    width = 0.8 / len(judged.systems)
    for row, system in enumerate(judged.systems):
        values, ends = judged.values(system), judged.intervals(system)
        places = [column + (row + 0.5) * width - 0.4 for column in range(len(names))]
        heights = [values[name] for name in names]
        errors = [[max(0.0, value - ends[name][0]) for name, value in zip(names, heights, strict=True)],
                  [max(0.0, ends[name][1] - value) for name, value in zip(names, heights, strict=True)]]  # fmt: skip
        axes.bar(
            places,
            heights,
            0.9 * width,
            yerr=errors,
            label=_spoken(system),
            color=_COLOURS[row % 6],
            ecolor="#333",
        )
    axes.set_xticks(range(len(names)), [_spoken(name) for name in names])
    return _finish(figure, axes, "mean over targets")


def along_segments(segments: pl.DataFrame, segment: str, name: str, title: str) -> Figure:
    """A line per system over the values of one kind of segment, with 95 % intervals."""
    figure, axes = _blank()
    part = segments.filter(pl.col("segment") == segment)
    values = part["value"].unique(maintain_order=True).to_list()
    for row, system in enumerate(part["system"].unique(maintain_order=True)):
        own = part.filter(pl.col("system") == system)
        places = [values.index(value) + 0.06 * row for value in own["value"]]
        below = (own[name] - own[f"{name}_low"]).clip(0)
        above = (own[f"{name}_high"] - own[name]).clip(0)
        axes.errorbar(
            places,
            own[name],
            yerr=[below, above],
            marker=_MARKERS[row % 6],
            label=_spoken(system),
            color=_COLOURS[row % 6],
        )
    counts = part.group_by("value").agg(pl.col("targets").first())
    targets = dict(counts.iter_rows())
    axes.set_xticks(range(len(values)), [f"{value}\n{targets[value]:,} targets" for value in values])
    axes.set_xlabel(title)
    return _finish(figure, axes, _spoken(name))


def save(figure: Figure, path: Path) -> None:
    """Write SVG without a date and with fixed ids: the same figure, the same bytes."""
    with mpl.rc_context({"svg.hashsalt": "lookback", "svg.fonttype": "none"}):
        figure.savefig(path, format="svg", metadata={"Date": None})


def _spoken(name: str) -> str:
    return name.replace("ndcg", "NDCG").replace("mrr", "MRR").replace("_", " ")


def _blank(height: float = 3.6) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7.2, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#ddd")
    axes.set_axisbelow(True)
    return figure, axes


def _finish(figure: Figure, axes: Axes, label: str) -> Figure:
    axes.set_ylabel(label)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    return figure
