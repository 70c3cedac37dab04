"""Figures of a whole run to look into with the mouse: one page in one file, without any network.

plotly.js is in the page once, compressed; each figure is what `Chart` says, drawn by the browser.
"""

import base64
import gzip
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go
import polars as pl
from numpy.typing import NDArray
from plotly.offline import get_plotlyjs
from plotly.subplots import make_subplots

from features.profiling.profile import Profile
from pipeline.config import MODEL
from pipeline.evaluation.report import EvaluationReport
from pipeline.reporting import templates
from pipeline.reporting.figures import ATTENTION, MAX_VALUES, ORDERED_SEGMENTS
from pipeline.reporting.style import COLOURS, GREY, spoken

SYMBOLS = ("circle", "square", "diamond", "triangle-down", "cross", "x", "triangle-up", "star")
DASHES = ("solid", "dash", "dashdot", "dot")
MAX_POINTS = 4000
"""Items that are drawn one by one."""
MAX_K = 200
"""Longest list whose recall is drawn."""

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Chart:
    """One figure and how to read it."""

    title: str
    says: str
    figure: go.Figure

    def drawn(self) -> "Drawn":
        """The chart as plotly.js takes it."""
        return Drawn(self.title, self.says, self.figure.to_json())


class Drawn(NamedTuple):
    """A chart that was made before, and is kept beside what it is of."""

    title: str
    says: str
    spec: str
    """JSON of plotly.js"""

    def drawn(self) -> "Drawn":
        """Itself."""
        return self


def page(name: str, charts: Sequence[Chart | Drawn]) -> str:
    """The HTML of all charts."""
    library = base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode()
    specs = [each.drawn().spec.replace("<", "\\u003c") for each in charts]
    return templates.template("figures").render(name=name, charts=charts, specs=specs, library=library)


def _style(row: int) -> dict[str, Any]:
    """How the system at a place is drawn everywhere: the first, the model, stands out."""
    first = row == 0
    return {
        "marker": {
            "color": COLOURS[row % len(COLOURS)],
            "symbol": SYMBOLS[row % len(SYMBOLS)],
            "size": 10 if first else 7,
        },
        "line": {
            "color": COLOURS[row % len(COLOURS)],
            "dash": "solid" if first else DASHES[row % len(DASHES)],
            "width": 3 if first else 1.5,
        },
    }


def _model_first(systems: Iterable[str]) -> list[str]:
    """The systems in the order in which they have their colours."""
    return [MODEL, *sorted(each for each in systems if each != MODEL)]


def _laid_out(figure: go.Figure, height: int = 420, **more: Any) -> go.Figure:
    figure.update_layout(
        template="plotly_white",
        height=height,
        margin={"l": 60, "r": 20, "t": 55, "b": 50},
        font={"family": "system-ui, sans-serif", "size": 14},
        legend={"orientation": "h", "yref": "container", "y": 0},
        **more,
    )
    return figure


def training(history: pl.DataFrame, best_epoch: int) -> Chart:
    """Loss and every validation metric per epoch."""
    prefix = "validation_"
    names = ["loss", *(name for name in history.columns if name.startswith(prefix) and "@" in name)]
    figure = make_subplots(
        -(-len(names) // 2), 2, subplot_titles=[spoken(name.replace(prefix, "validation ")) for name in names]
    )
    for place, name in enumerate(names):
        at = {"row": place // 2 + 1, "col": place % 2 + 1}
        trace = go.Scatter(
            x=history["epoch"].to_list(),
            y=history[name].to_list(),
            mode="lines+markers",
            name=name,
            showlegend=False,
            **_style(0),
        )
        figure.add_trace(trace, **at)
        figure.add_vline(best_epoch, line={"color": GREY, "dash": "dot"}, **at)
    figure.update_xaxes(title_text="epoch")
    says = f"Loss (nats) of the training, and metrics on the validation part per epoch; dotted: the best one, {best_epoch}."
    return Chart("How it learned", says, _laid_out(figure, 300 * -(-len(names) // 2)))


def systems(report: EvaluationReport, names: Sequence[str]) -> Chart:
    """Every system's metrics with 95 % intervals, the best on top."""
    order = sorted(report.metrics, key=lambda system: report.metrics[system][names[0]])
    places = {system: row for row, system in enumerate(_model_first(report.metrics))}
    figure = make_subplots(1, len(names), shared_yaxes=True, subplot_titles=[spoken(name) for name in names])
    for column, name in enumerate(names, 1):
        for system in order:
            value = report.metrics[system][name]
            low, high = report.intervals[system].get(name, (value, value))
            error = {"type": "data", "symmetric": False, "array": [high - value], "arrayminus": [value - low]}
            trace = go.Scatter(
                x=[value],
                y=[spoken(system)],
                error_x=error,
                mode="markers",
                name=spoken(system),
                showlegend=False,
                hovertemplate=f"%{{x:.4f}} [{low:.4f}, {high:.4f}]",
                marker=_style(places[system])["marker"],
            )
            figure.add_trace(trace, row=1, col=column)
    figure.update_xaxes(rangemode="tozero")
    says = "Every system on the same held-out events, with 95 % bootstrap intervals over users. Intervals that overlap do not "
    says += "mean that systems cannot be told apart: the paired test of the run's description does."
    return Chart("Against the baselines", says, _laid_out(figure, 120 + 40 * len(order)))


def recall_at_k(targets: pl.DataFrame) -> Chart:
    """The share of targets among the first k, for every k up to MAX_K, a line per system."""
    ks = np.unique(np.geomspace(1, MAX_K, 40).round().astype(int))
    figure = go.Figure()
    for row, name in enumerate(_model_first(targets["system"].unique())):
        ranks = np.sort(targets.filter(pl.col("system") == name)["rank"].to_numpy())
        share = np.searchsorted(ranks, ks, side="right") / max(1, len(ranks))
        figure.add_scatter(
            x=ks.tolist(), y=share.tolist(), mode="lines", name=spoken(name), line=_style(row)["line"]
        )
    figure.update_xaxes(type="log", title_text="k: length of the list")
    figure.update_yaxes(title_text="recall@k", rangemode="tozero", tickformat=".0%")
    says = "How often the held-out item is among the first k of the whole catalogue."
    return Chart("Recall against the length of the list", says, _laid_out(figure))


def segment(segments: pl.DataFrame, kind: str, metric: str) -> Chart:
    """The metric of every system over the values of one kind of segment, with 95 % intervals.

    Values that have an order stand from left to right; others below each other, those with most targets if they are many.
    """
    part = segments.filter(pl.col("segment") == kind)
    counts = dict(part.group_by("value", maintain_order=True).agg(pl.col("targets").first()).iter_rows())
    kept = sorted(counts, key=lambda value: -counts[value])[:MAX_VALUES]
    ordered = kind in ORDERED_SEGMENTS
    along, across = ("x", "y") if ordered else ("y", "x")
    figure = go.Figure()
    for row, system in enumerate(_model_first(part["system"].unique())):
        own = part.filter((pl.col("system") == system) & pl.col("value").is_in(kept))
        value, low, high = (own[name].to_numpy() for name in (metric, f"{metric}_low", f"{metric}_high"))
        ends = {
            "array": np.nan_to_num(high - value).tolist(),
            "arrayminus": np.nan_to_num(value - low).tolist(),
        }
        named = [f"{each}{'<br>' if ordered else ' · '}{counts[each]:,}" for each in own["value"]]
        trace = {
            along: named,
            across: value.tolist(),
            f"error_{across}": {"type": "data", "symmetric": False, "width": 2, "thickness": 1, **ends},
        }
        mode = "lines+markers" if ordered else "markers"
        figure.add_scatter(**trace, mode=mode, name=spoken(system), **_style(row))
    title = ORDERED_SEGMENTS.get(kind, spoken(kind.removeprefix("user:")))
    figure.update_layout({f"{along}axis_title_text": title, f"{across}axis_title_text": spoken(metric)})
    figure.update_layout({f"{across}axis_rangemode": "tozero", "scattermode": "group"})
    if not ordered:
        figure.update_yaxes(autorange="reversed", automargin=True)
    says = f"{spoken(metric)} of each part of the targets (with their number), and 95 % intervals over users."
    height = 460 if ordered else 200 + 46 * len(kept)
    return Chart(f"By {spoken(kind.removeprefix('user:'))}", says, _laid_out(figure, height))


def popularity(events: NDArray[np.int64], recommended: NDArray[np.int64], titles: Sequence[str]) -> Chart:
    """Each item's events against how often it is recommended; of many items an even choice by popularity."""
    order = np.argsort(-events, kind="stable")
    chosen = order[np.unique(np.linspace(0, len(order) - 1, min(MAX_POINTS, len(order))).astype(int))]
    figure = go.Figure(
        go.Scattergl(
            x=(events[chosen] + 1).tolist(),
            y=(recommended[chosen] + 1).tolist(),
            text=[titles[each] for each in chosen],
            mode="markers",
            marker={"color": COLOURS[0], "size": 5, "opacity": 0.5},
            name="an item",
            hovertemplate="%{text}<br>%{x} events, %{y} recommendations (each + 1)",
        )
    )
    ends = np.array([events.min(), events.max()]) + 1
    share = (recommended.sum() + len(events)) / (events.sum() + len(events))
    figure.add_scatter(
        x=ends.tolist(),
        y=(share * ends).tolist(),
        mode="lines",
        line={"color": GREY, "dash": "dash"},
        name="as often as its share of events",
    )
    figure.update_xaxes(type="log", title_text="events on the item, plus 1")
    figure.update_yaxes(type="log", title_text="lists it is in, plus 1")
    never = float((recommended == 0).mean())
    says = "Items above the dashed line are recommended more often than their share of the events, those below less often; "
    says += f"{never:.0%} of the items are in no list."
    return Chart("What is popular and what is recommended", says, _laid_out(figure))


def index_trade(points: Sequence[Row]) -> Chart:
    """Recall of each measured setting of the index against its queries per second."""
    figure = go.Figure()
    measures = [name for name in ("recall@10", "recall@100") if any(name in each for each in points)]
    for row, name in enumerate(measures):
        own = [each for each in points if name in each and each.get("queries_per_second")]
        for kind_row, kind in enumerate(dict.fromkeys(str(each.get("type", "index")) for each in own)):
            part = sorted(
                (each for each in own if str(each.get("type", "index")) == kind),
                key=lambda each: float(each["queries_per_second"]),
            )
            style = _style(kind_row)
            style["line"] |= {"dash": DASHES[row]}
            figure.add_scatter(
                x=[each["queries_per_second"] for each in part],
                y=[each[name] for each in part],
                text=[_settings(each) for each in part],
                mode="lines+markers",
                name=f"{kind}, {name}",
                hovertemplate="%{text}<br>%{x:,.0f} queries/s, recall %{y:.4f}",
                **style,
            )
    figure.update_xaxes(type="log", title_text="queries per second")
    figure.update_yaxes(title_text="recall against exact search", tickformat=".0%")
    says = "What the index finds of what exact search finds, against how fast it answers: up and right is better."
    return Chart("The index", says, _laid_out(figure))


def _settings(point: Row) -> str:
    told = point.get("parameters") or point.get("type", "")
    return (
        ", ".join(f"{name} {value}" for name, value in told.items())
        if isinstance(told, Mapping)
        else str(told)
    )


def index_points(recall: Row, speed: Row) -> list[Row]:
    """The index as it was built, and exact search beside it where it is another: recall.json and speed.json of stage index."""
    found = {name: value for name, value in recall.items() if name.startswith("recall@")}
    if not found or "queries_per_second" not in speed:
        return []
    own = found | {
        "type": recall["type"],
        "parameters": recall.get("parameters") or {},
        "queries_per_second": speed["queries_per_second"],
    }
    if recall["type"] == "exact":
        return [own]
    exact = {"type": "exact", "queries_per_second": speed["exact_queries_per_second"]}
    return [own, exact | dict.fromkeys(found, 1.0)]


def attention(rows: Sequence[Row]) -> Iterable[Chart]:
    """For each way to class interactions, the share of attention of each class beside its share of the history."""
    for kind, title in ATTENTION.items():
        part = [row for row in rows if row["kind"] == kind]
        if not part:
            continue
        names = [str(row["value"]) for row in part]
        figure = go.Figure()
        figure.add_bar(
            x=names,
            y=[row["attention"] for row in part],
            name="share of attention",
            marker={"color": COLOURS[0]},
            text=[f"× {row['lift']:.2f}" for row in part],
        )
        figure.add_bar(
            x=names,
            y=[row["interactions"] for row in part],
            name="share of the history",
            marker={"color": "#BBBBBB", "pattern": {"shape": "/"}},
        )
        figure.update_xaxes(type="category", title_text=title)
        figure.update_yaxes(tickformat=".0%")
        says = "How much of the last position's attention each class of interactions gets, beside its share of the history; "
        says += "× 2 is twice what even attention would give."
        yield Chart(f"Attention by {kind.replace('_', ' ')} of the interaction", says, _laid_out(figure))


def calibration(found: Row, k: int) -> Chart:
    """Share of hits against predicted probability."""
    figure = go.Figure()
    most = 0.0
    for row, (part, name) in enumerate(
        (("top_1", "the first recommendation"), ("list", f"any of the first {k}"))
    ):
        bins = found[part]["bins"]
        told, seen = [each["mean_predicted"] for each in bins], [each["observed"] for each in bins]
        most = max(most, *told, *seen)
        text = [f"{each['targets']:,} targets" for each in bins]
        figure.add_scatter(x=told, y=seen, text=text, mode="lines+markers", name=name, **_style(row))
    figure.add_scatter(
        x=[0, most],
        y=[0, most],
        mode="lines",
        name="as sure as it should be",
        line={"color": GREY, "dash": "dash"},
    )
    figure.update_xaxes(title_text="predicted probability", rangemode="tozero")
    figure.update_yaxes(title_text="share that was right", rangemode="tozero")
    says = "Targets in ten groups by the probability that the scores imply. Under the dashed line the model is too sure."
    return Chart("Is it as sure as it should be?", says, _laid_out(figure))


def reasons(weights: NDArray[np.float32], history: Sequence[str], items: Sequence[str], user: str) -> Chart:
    """Past interactions (rows, newest on top) against recommendations (columns): how much lower each would score without each.

    weights: [recommendations, interactions], the oldest interaction first.
    """
    most = float(np.abs(weights).max(initial=1e-9))
    figure = go.Figure(
        go.Heatmap(
            z=weights.T.tolist(),
            x=[f"{place}. {title[:40]}" for place, title in enumerate(items, 1)],
            y=[f"{title[:40]} ({len(history) - place})" for place, title in enumerate(history)],
            colorscale=[[0, COLOURS[5]], [0.5, "#FFFFFF"], [1, COLOURS[0]]],
            zmin=-most,
            zmax=most,
            colorbar={"title": {"text": "score"}},
            hovertemplate="%{y}<br>for %{x}<br>%{z:+.3f}<extra></extra>",
        )
    )
    figure.update_xaxes(tickangle=-35)
    says = f"User {user}: each recommendation (column) and how much lower it would score had the interaction (row; 1: the last) "
    says += "not happened. Blue carries it, orange speaks against it."
    return Chart("One user's history and recommendations", says, _laid_out(figure, 300 + 22 * len(history)))


def log(profile: Profile) -> Iterable[Chart]:
    """The data's profile: events per day, events of users and on items."""
    times = profile.times
    if times is not None and len(times.days.day) > 1:
        figure = go.Figure()
        for row, (name, counts) in enumerate(list(times.days.events_by_type.items())[:6]):
            figure.add_scatter(
                x=times.days.day,
                y=list(counts),
                stackgroup="one",
                mode="lines",
                name=name or "no type",
                line={"width": 0.5, "color": COLOURS[row % len(COLOURS)]},
            )
        period = times.days.days_per_period
        figure.update_yaxes(title_text="events per day" if period == 1 else f"events per {period} days")
        yield Chart("Events over time", "By type, on top of each other.", _laid_out(figure))
    figure = make_subplots(1, 2, subplot_titles=["users by their events", "items by their events"])
    parts = (profile.history_length.histogram, profile.popularity.num_events.histogram)
    for column, (histogram, colour) in enumerate(zip(parts, (COLOURS[0], COLOURS[2]), strict=True), 1):
        edges = np.asarray(histogram.edges, float)
        if not histogram.counts:
            continue
        figure.add_bar(
            x=np.sqrt(edges[:-1] * edges[1:]).tolist(),
            y=list(histogram.counts),
            width=(edges[1:] - edges[:-1]).tolist(),
            customdata=[f"{math.ceil(low):,} to {high:,.0f}" for low, high in itertools.pairwise(edges)],
            hovertemplate="%{customdata} events: %{y:,}<extra></extra>",
            marker={"color": colour},
            showlegend=False,
            row=1,
            col=column,
        )
    figure.update_xaxes(type="log", title_text="events")
    figure.update_yaxes(type="log", title_text="number")
    says = f"{profile.num_users:,} users, {profile.num_items:,} items, {profile.num_events:,} events; all axes are logarithmic."
    yield Chart("How events are spread", says, _laid_out(figure))
