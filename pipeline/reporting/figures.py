"""Figures of a training and an evaluation: systems side by side and along segments, calibration, attention, learning curves."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from models.evaluation.comparison import Judgement
from pipeline.artifacts.store import read_json
from pipeline.evaluation.report import Cut, EvaluationReport, LearningPoint
from pipeline.reporting.style import (
    COLOURS,
    GREY,
    WIDTH,
    blank,
    legend_below,
    line_style,
    plain_axes,
    save,
    shown,
    spoken,
)

__all__ = [
    "along_segments",
    "attention",
    "calibration",
    "learning_curve",
    "of_evaluation",
    "rolling_cuts",
    "save",
    "segment_stem",
    "systems_side_by_side",
    "training",
]

DIAGNOSTICS = "diagnostics.json"
"""What `pipeline.diagnostics.build` found, in the folder of an evaluation."""
_SPREAD = 0.7
"""How much of the room of a value its systems take."""
MAX_SEGMENTS = 12
"""Kinds of segments that are drawn."""
MAX_VALUES = 12
"""Values of a segment that are drawn: those with most targets."""
ORDERED_SEGMENTS = {
    "history_length": "events in the history",
    "item_popularity": "third of the items trained on",
    "recency": "time since the last event in the history",
}
"""Kinds of segments whose values have an order, and what they are along."""
ATTENTION = {
    "position": "place of the interaction from the end of the history (1: the last)",
    "age": "age of the interaction",
    "event_type": "type of the interaction",
}
"""Ways to class interactions, as `pipeline.diagnostics` names them."""


def of_evaluation(
    judged: Judgement, segments: pl.DataFrame, report: EvaluationReport, folder: Path
) -> dict[str, Figure]:
    """File name -> figure: systems against each other at the shortest list length, along each kind of segment, and what else
    there is: calibration, attention, faithfulness of explanations, the cuts of a rolling split, the learning curve.

    folder: where diagnostics.json is, if there is one.
    """
    k = min(int(name.rpartition("@")[2]) for name in judged.values(judged.systems[0]))
    found = {"metrics.svg": systems_side_by_side(judged, (f"ndcg@{k}", f"hit_rate@{k}", f"mrr@{k}"))}
    kinds = segments["segment"].unique(maintain_order=True).to_list() if len(segments) else []
    for segment in kinds[:MAX_SEGMENTS]:
        found[f"{segment_stem(segment)}.svg"] = along_segments(segments, segment, f"ndcg@{k}")
    diagnosed = read_json(folder / DIAGNOSTICS) if (folder / DIAGNOSTICS).exists() else {}
    if "calibration" in diagnosed:
        found["calibration.svg"] = calibration(diagnosed["calibration"], k)
    if diagnosed.get("attention", {}).get("rows"):
        found["attention.svg"] = attention(diagnosed["attention"]["rows"])
    if diagnosed.get("because", {}).get("rows"):
        found["because.svg"] = because(diagnosed["because"]["methods"])
    if report.rolling is not None:
        found["rolling.svg"] = rolling_cuts(report.rolling.cuts, judged.systems, f"ndcg@{k}")
    if report.learning_curve:
        found["learning_curve.svg"] = learning_curve(report.learning_curve, (f"ndcg@{k}", f"hit_rate@{k}"))
    return found


def segment_stem(segment: str) -> str:
    """The name of a segment's figure without its ending: `user:age` is in `by_user_age`."""
    return "by_" + re.sub(r"\W+", "_", segment)


def systems_side_by_side(judged: Judgement, names: tuple[str, ...]) -> Figure:
    """A panel per metric, a row per system, the best on the first metric on top, with 95 % intervals."""
    systems = judged.systems
    figure = Figure(figsize=(WIDTH, 0.9 + 0.3 * len(systems)), layout="constrained")
    order = sorted(systems, key=lambda system: judged.values(system)[names[0]])
    for axes, name in zip(figure.subplots(1, len(names), sharey=True, squeeze=False)[0], names, strict=True):
        for place, system in enumerate(order):
            value, ends = judged.values(system)[name], judged.intervals(system)[name]
            _draw_ends(axes, value, place, ends, systems.index(system))
        axes.set_yticks(range(len(order)), [spoken(system) for system in order])
        axes.set_ylim(-0.6, len(order) - 0.4)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.set_xlabel(spoken(name))
        plain_axes(axes, "x")
    for label, system in zip(figure.axes[0].get_yticklabels(), order, strict=True):
        label.set_fontweight("bold" if system == systems[0] else "normal")
    return figure


def along_segments(segments: pl.DataFrame, segment: str, name: str) -> Figure:
    """The metric of every system over the values of one kind of segment, with 95 % intervals.

    Values that have an order are joined by lines from left to right; others are a row each, those with most targets if there
    are more than `MAX_VALUES`.
    """
    part = segments.filter(pl.col("segment") == segment)
    if segment in ORDERED_SEGMENTS:
        return _along(part, name, ORDERED_SEGMENTS[segment])
    return _beside(part, name, segment.removeprefix("user:"))


def _along(part: pl.DataFrame, name: str, title: str) -> Figure:
    """A line per system."""
    figure, axes = blank(4.2)
    values = part["value"].unique(maintain_order=True).to_list()
    systems = part["system"].unique(maintain_order=True).to_list()
    for row, system in enumerate(systems):
        own = part.filter(pl.col("system") == system)
        shift = _SPREAD * ((row + 0.5) / len(systems) - 0.5)
        places = [values.index(value) + shift for value in own["value"]]
        axes.errorbar(places, own[name], yerr=_errors(own, name), label=spoken(system), **line_style(row))
    targets = dict(part.group_by("value").agg(pl.col("targets").first()).iter_rows())
    axes.set_xticks(range(len(values)), [f"{shown(value)}\n{targets[value]:,} targets" for value in values])
    axes.set_xlabel(title)
    return _finish(figure, axes, spoken(name))


def _beside(part: pl.DataFrame, name: str, title: str) -> Figure:
    """A row per value, a dot per system."""
    counts = part.group_by("value", maintain_order=True).agg(pl.col("targets").first())
    kept = counts.top_k(MAX_VALUES, by="targets")["value"].to_list()
    values = [value for value in counts["value"] if value in kept][::-1]
    targets = dict(counts.iter_rows())
    figure, axes = blank(1.4 + 0.42 * len(values))
    systems = part["system"].unique(maintain_order=True).to_list()
    for row, system in enumerate(systems):
        own = part.filter((pl.col("system") == system) & pl.col("value").is_in(kept))
        shift = _SPREAD * (0.5 - (row + 0.5) / len(systems))
        places = [values.index(value) + shift for value in own["value"]]
        style = line_style(row) | {"linestyle": "none"}
        axes.errorbar(own[name], places, xerr=_errors(own, name), label=spoken(system), **style)
    for place in range(1, len(values)):
        axes.axhline(place - 0.5, color="#eee", linewidth=1)
    axes.set_yticks(range(len(values)), [f"{shown(value)} ({targets[value]:,})" for value in values])
    axes.set_ylim(-0.5, len(values) - 0.5)
    axes.set_xlim(left=0)
    plain_axes(axes, "x")
    axes.set_xlabel(f"{spoken(name)} by {shown(spoken(title))} (targets in brackets)")
    legend_below(figure, axes)
    return figure


def calibration(found: Mapping[str, Any], k: int) -> Figure:
    """Reliability diagrams of the first recommendation and of the list: share of hits against predicted probability."""
    figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
    parts = (("top_1", "the first recommendation"), ("list", f"any of the first {k}"))
    for axes, (part, title) in zip(figure.subplots(1, 2), parts, strict=True):
        bins = found[part]["bins"]
        told = np.array([each["mean_predicted"] for each in bins])
        seen = np.array([each["observed"] for each in bins])
        low, high = _wilson(seen, np.array([each["targets"] for each in bins]))
        errors = np.maximum([seen - low, high - seen], 0)
        most = 1.05 * max(float(told.max()), float(high.max()), 1e-9)
        axes.plot([0, most], [0, most], color=GREY, linestyle="--", linewidth=1)
        axes.errorbar(told, seen, yerr=errors, color=COLOURS[0], marker="o", markersize=4, linewidth=1.2)
        axes.set(
            xlim=(0, most), ylim=(0, most), xlabel="predicted probability", ylabel="share that was right"
        )
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(5))
        axes.set_title(f"{title}: error {found[part]['error']:.3f}", fontsize=10)
        plain_axes(axes, "both")
    return figure


def _wilson(
    share: NDArray[np.float64], count: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The 95 % interval of each share of `count` trials (Wilson 1927)."""
    z = 1.96
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * np.sqrt(share * (1 - share) / count + z * z / (4 * count**2))
    return middle - half, middle + half


def because(methods: Mapping[str, Any]) -> Figure:
    """How faithful explanations are, a row per weighting of the interactions, by all that is measured, with 95 % intervals."""
    titles = {
        "spearman": "rank correlation\nwith leaving out",
        "deletion": "area of deletion\n(low is good)",
        "insertion": "area of insertion\n(high is good)",
    }
    figure = Figure(figsize=(WIDTH, 0.9 + 0.3 * len(methods)), layout="constrained")
    for axes, (kind, title) in zip(figure.subplots(1, 3, sharey=True), titles.items(), strict=True):
        for place, told in enumerate(list(methods.values())[::-1]):
            middle = told[kind]["mean" if kind == "spearman" else "area"]
            if middle is not None:
                _draw_ends(axes, middle, place, (told[kind]["low"], told[kind]["high"]), 0)
        axes.set_yticks(range(len(methods)), [spoken(name) for name in list(methods)[::-1]])
        axes.set_xlabel(title)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        plain_axes(axes, "x")
    return figure


def attention(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """The share of attention of each class of interactions beside their share of the history, a panel per way to class them."""
    kinds = {name: title for name, title in ATTENTION.items() if any(row["kind"] == name for row in rows)}
    figure = Figure(figsize=(WIDTH, 2.5 * len(kinds)), layout="constrained")
    for axes, (kind, title) in zip(
        figure.subplots(len(kinds), 1, squeeze=False)[:, 0], kinds.items(), strict=True
    ):
        part = [row for row in rows if row["kind"] == kind]
        part = (
            sorted(part, key=lambda row: -row["interactions"])[:MAX_VALUES] if kind == "event_type" else part
        )
        places = np.arange(len(part))
        shares = {"attention": COLOURS[0], "interactions": "#BBBBBB"}
        for shift, (name, colour) in zip((-0.2, 0.2), shares.items(), strict=True):
            label = "share of attention" if name == "attention" else "share of the history"
            heights = [100 * row[name] for row in part]
            axes.bar(
                places + shift,
                heights,
                0.38,
                color=colour,
                label=label,
                hatch="" if shift < 0 else "//",
                edgecolor="white",
            )
        for place, row in zip(places, part, strict=True):
            top = 100 * max(row["attention"], row["interactions"])
            axes.annotate(
                f"× {row['lift']:.2f}",
                (place, top),
                (0, 2),
                textcoords="offset points",
                ha="center",
                fontsize=8,
            )
        axes.margins(y=0.15)
        axes.set_xticks(places, [shown(row["value"]).replace("under ", "under\n") for row in part])
        axes.set_xlabel(title)
        axes.set_ylabel("%")
        plain_axes(axes, "y")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=2, frameon=False, fontsize=9)
    return figure


def rolling_cuts(cuts: Sequence[Cut], systems: Sequence[str], name: str) -> Figure:
    """The metric of every system at each cut of a rolling split, by the day on which the test part begins."""
    figure, axes = blank(3.8)
    for row, system in enumerate(systems):
        values = [cut.metrics.get(system, {}).get(name) for cut in cuts]
        numbers = [math.nan if value is None else value for value in values]
        axes.plot(range(len(cuts)), numbers, label=spoken(system), **line_style(row))
    axes.set_xticks(range(len(cuts)), [str(cut.test_from)[:10] for cut in cuts])
    axes.set_xlabel("first day of the test part")
    return _finish(figure, axes, spoken(name))


def learning_curve(points: Sequence[LearningPoint], names: Sequence[str]) -> Figure:
    """Metrics of the model against the share of the training data that it saw, with 95 % intervals."""
    ordered = sorted(points, key=lambda point: point.fraction)
    names = [name for name in names if all(name in point.metrics for point in ordered)]
    figure = Figure(figsize=(WIDTH, 2.8), layout="constrained")
    places = np.arange(len(ordered))
    for axes, name in zip(figure.subplots(1, max(1, len(names)), squeeze=False)[0], names, strict=False):
        values = np.array([point.metrics[name] for point in ordered])
        ends = [
            point.intervals.get(name, (value, value)) for point, value in zip(ordered, values, strict=True)
        ]
        low, high = np.array(ends, float).T
        errors = np.maximum(np.nan_to_num([values - low, high - values]), 0)
        axes.errorbar(places, values, yerr=errors, **(line_style(0) | {"linewidth": 1.8}))
        axes.set_xticks(places, [f"{100 * point.fraction:.3g} %" for point in ordered])
        axes.set_xlabel("share of the training data")
        axes.set_ylabel(spoken(name))
        axes.set_ylim(bottom=0)
        plain_axes(axes, "y")
    return figure


def training(history: pl.DataFrame, best_epoch: int) -> Figure:
    """Training loss and every validation metric per epoch, a panel each, the best epoch marked."""
    prefix = "validation_"
    validated = [name for name in history.columns if name.startswith(prefix) and "@" in name][:5]
    labels = {"loss": "training loss (nats)"} | {
        name: f"validation {spoken(name.removeprefix(prefix))}" for name in validated
    }
    num_columns = 2 if len(labels) in {2, 4} else 3
    num_rows = -(-len(labels) // num_columns)
    figure = Figure(figsize=(WIDTH, 2.6 * num_rows), layout="constrained")
    places = list(figure.subplots(num_rows, num_columns, squeeze=False).ravel())
    for row, (axes, (column, label)) in enumerate(zip(places, labels.items(), strict=False)):
        axes.plot(
            history["epoch"],
            history[column],
            color=COLOURS[(0, 5, 2, 3, 1, 4)[row]],
            marker="o",
            markersize=3,
        )
        axes.axvline(best_epoch, color=GREY, linestyle=":")
        axes.set_xlabel(f"epoch (dotted: {best_epoch})")
        axes.set_ylabel(label)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        plain_axes(axes, "both")
    for axes in places[len(labels) :]:
        axes.remove()
    return figure


def _errors(own: pl.DataFrame, name: str) -> NDArray[np.float64]:
    """[2, rows]: how far the ends of the intervals are from the values."""
    value, low, high = (own[column].to_numpy() for column in (name, f"{name}_low", f"{name}_high"))
    found: NDArray[np.float64] = np.maximum(np.nan_to_num(np.stack([value - low, high - value])), 0)
    return found


def _draw_ends(axes: Axes, value: float, place: float, ends: Sequence[float], row: int) -> None:
    """A dot with its interval, lying."""
    errors = np.maximum(np.nan_to_num([[value - ends[0]], [ends[1] - value]]), 0)
    axes.errorbar([value], [place], xerr=errors, **(line_style(row) | {"linestyle": "none", "markersize": 6}))


def _finish(figure: Figure, axes: Axes, label: str) -> Figure:
    axes.set_ylabel(label)
    axes.set_ylim(bottom=0)
    legend_below(figure, axes)
    return figure
