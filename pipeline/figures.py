"""Figures of an evaluation, as SVG that is the same for the same numbers."""

from pathlib import Path

import matplotlib as mpl
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from models.judgement import Judgement

_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
"""Okabe and Ito (2008): told apart by colour-blind readers too."""
_MARKERS = "osD^vP"


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


def _blank() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7.2, 3.6), layout="constrained")
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
