"""Figures of a log, a training, an evaluation and its recommendations, drawn with plotly."""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
import polars as pl
from numpy.typing import NDArray
from plotly.subplots import make_subplots

from features.profiling.profile import SESSION_SECONDS, Days, Histogram, Profile
from pipeline.evaluation.metric_names import display_name
from pipeline.evaluation.report import Cut, Intervals, LearningPoint, Values
from pipeline.reporting.style import (
    COLOURS,
    GREY,
    Chart,
    error_bars,
    histogram_bars,
    label,
    styled,
    system_style,
    wilson,
)
from pipeline.sections import MODEL

MAX_VALUES = 12
"""Values of a segment drawn: those with most targets."""
MAX_POINTS = 4000
"""Items drawn as points."""
MAX_K = 200
"""Longest list of the recall curve."""
MAX_BARS = 366
"""Bars of events over time; longer logs are averaged over several days."""
_MAX_TYPES = 6
"""Event types with a colour of their own."""
_ORDERED_SEGMENTS = {
    "history_length": "events in the history",
    "item_popularity": "third of the items trained on",
    "recency": "time since the last event in the history",
}
"""Segments whose values have an order, with the title of their axis."""
_ATTENTION = {
    "position": "position from the end of the history (1: last)",
    "age": "age of the interaction",
    "event_type": "type of the interaction",
}
"""Classes of interactions, as `pipeline.evaluation.diagnostics` names them, with the title of their axis."""
_FAITHFULNESS = {
    "spearman": "rank correlation with leave-one-out",
    "deletion": "deletion area (low is good)",
    "insertion": "insertion area (high is good)",
}
_SPANS = {"1 s": 1, "1 min": 60, "1 h": 3600, "1 day": 86_400, "1 month": 30 * 86_400, "1 year": 365 * 86_400}
"""Ticks of an axis of time spans, in seconds."""

Row = Mapping[str, Any]
Ends = tuple[float | None, float | None, float | None]
"""Value, lower and upper end of its 95 % interval; None where undefined."""


# --- training and evaluation ---


def training(history: pl.DataFrame, best_epoch: int) -> Chart:
    """Training loss and every validation metric per epoch, the best epoch marked."""
    prefix = "validation_"
    titles = {"loss": "training loss (nats)"} | {
        name: f"validation {display_name(name.removeprefix(prefix))}"
        for name in history.columns
        if name.startswith(prefix) and "@" in name
    }
    num_columns = 2 if len(titles) in (2, 4) else 3
    num_rows = -(-len(titles) // num_columns)
    figure = side_by_side(list(titles.values()), num_columns)
    for place, name in enumerate(titles):
        at = {"row": place // num_columns + 1, "col": place % num_columns + 1}
        figure.add_scatter(
            x=history["epoch"].to_list(),
            y=history[name].to_list(),
            mode="lines+markers",
            marker={"color": COLOURS[(0, 5, 2, 3, 1, 4)[place % 6]], "size": 5},
            name=titles[name],
            **at,
        )
        figure.add_vline(best_epoch, line={"color": GREY, "dash": "dot"}, **at)
    figure.update_xaxes(title_text=f"epoch (dotted: {best_epoch})", dtick=-(-len(history) // 8))
    caption = "Training loss, and metrics on the validation part per epoch; dotted: the best epoch."
    return Chart("training", "Training", caption, styled(figure, 260 * num_rows + 40))


def side_by_side(titles: Sequence[str], columns: int, **more: Any) -> go.Figure:
    """Axes side by side, `columns` in a row, each below its title, without a legend."""
    rows = max(1, -(-len(titles) // columns))
    return make_subplots(rows, columns, subplot_titles=titles, **more).update_layout(showlegend=False)


def systems(values: Mapping[str, Values], intervals: Mapping[str, Intervals], names: Sequence[str]) -> Chart:
    """A panel per metric, a row per system, the best on the first metric on top, with 95 % intervals.

    values: system -> metric -> value, the model (or the first of the compared runs) first; intervals: the same of (low, high).
    """
    order = sorted(values, key=lambda system: values[system][names[0]], reverse=True)
    panels = {
        display_name(name): {
            system: (values[system][name], *intervals[system].get(name, (None, None))) for system in order
        }
        for name in names
    }
    styles = {system: system_style(row, system)["marker"] for row, system in enumerate(values)}
    figure = rows_with_intervals(panels, styles, bold=next(iter(values)))
    figure.update_xaxes(rangemode="tozero")
    caption = "The same targets for all, 95 % bootstrap intervals over users. For overlapping ones see the paired test."
    return Chart("metrics", "Against the baselines", caption, figure)


def rows_with_intervals(
    panels: Mapping[str, Mapping[str, Ends]], styles: Mapping[str, Row], bold: str = ""
) -> go.Figure:
    """Panel per measure with a row per name from the top down: value and interval."""
    order = list(next(iter(panels.values())))
    figure = side_by_side(list(panels), len(panels), shared_yaxes=True, horizontal_spacing=0.03)
    for column, measured in enumerate(panels.values(), 1):
        for name, (value, low, high) in measured.items():
            bars, text = error_bars([value], [low], [high]), label(display_name(name))
            trace = {"x": [value], "y": [name], "error_x": bars, "marker": styles[name], "name": text}
            figure.add_scatter(**trace, mode="markers", row=1, col=column)
    labels = [f"<b>{label(name)}</b>" if name == bold else label(display_name(name)) for name in order]
    axis = {"type": "category", "categoryarray": order, "tickvals": order, "ticktext": labels}
    figure.update_yaxes(**axis, range=[len(order) - 0.4, -0.6])
    figure.update_xaxes(nticks=5, hoverformat=".4f")
    return styled(figure, 110 + 36 * len(order))


def recall_at_k(targets: pl.DataFrame) -> Chart:
    """Share of each request's items among the first k, mean over requests, for every k up to MAX_K, a line per system.

    targets: columns system, rank and, of nights, night and user_id, which make a request together.
    """
    ks = np.unique(np.geomspace(1, MAX_K, 40).round().astype(int))
    figure = go.Figure()
    is_nightly = "night" in targets.columns
    for row, name in enumerate(model_first(targets["system"].unique())):
        own = targets.filter(pl.col("system") == name)
        of_request = pl.len().over("night", "user_id") if is_nightly else pl.lit(1)
        own = own.select("rank", weight=1 / of_request).sort("rank")
        total = np.concatenate(([0.0], np.cumsum(own["weight"].to_numpy())))
        share = total[np.searchsorted(own["rank"].to_numpy(), ks, side="right")] / max(total[-1], 1)
        figure.add_scatter(**system_style(row, name), x=ks.tolist(), y=share.tolist(), mode="lines")
    figure.update_xaxes(
        type="log", title_text="k: length of the list", tickvals=[1, 2, 5, 10, 20, 50, 100, 200]
    )
    figure.update_yaxes(title_text="recall@k", rangemode="tozero", tickformat=".0%")
    caption = "Share of held-out items among the first k of the whole catalogue."
    if is_nightly:
        caption = "Share of the items taken after a night among the first k of the whole catalogue, mean over user-nights."
    return Chart("recall", "Recall against the length of the list", caption, styled(figure, 420))


def model_first(names: Iterable[str]) -> list[str]:
    """Systems in the order of their colours."""
    return [MODEL, *sorted(name for name in names if name != MODEL)]


def segment(segments: pl.DataFrame, kind: str, metric: str) -> Chart:
    """Metric of every system over the values of one kind of segment, with 95 % intervals.

    Ordered values are joined by lines; others are a row each, at most the MAX_VALUES with most targets.
    """
    part = segments.filter(pl.col("segment") == kind)
    counts = dict(part.group_by("value", maintain_order=True).agg(pl.col("targets").first()).iter_rows())
    most = sorted(counts, key=lambda value: -counts[value])[:MAX_VALUES]
    kept = [value for value in counts if value in most]
    ordered = kind in _ORDERED_SEGMENTS
    along, across = ("x", "y") if ordered else ("y", "x")
    figure = go.Figure()
    for row, system in enumerate(model_first(part["system"].unique())):
        own = part.filter((pl.col("system") == system) & pl.col("value").is_in(kept))
        bars = error_bars(own[metric], own[f"{metric}_low"], own[f"{metric}_high"])
        figure.add_scatter(
            **system_style(row, system),
            **{along: own["value"].to_list(), across: own[metric].to_list(), f"error_{across}": bars},
            mode="lines+markers" if ordered else "markers",
            orientation="v" if ordered else "h",
        )
    texts = [
        f"{label(value)}<br>{counts[value]:,} targets" if ordered else f"{label(value)} ({counts[value]:,})"
        for value in kept
    ]
    name = display_name(kind.removeprefix("user:"))
    ends, title = [-0.5, len(kept) - 0.5], _ORDERED_SEGMENTS.get(kind, "")
    axis: dict[str, Any] = {
        "categoryarray": kept,
        "tickvals": kept,
        "ticktext": texts,
        "range": ends if ordered else ends[::-1],
    }
    axis |= {"type": "category", "tickson": "boundaries", "title": {"text": title}}
    value_axis = {"rangemode": "tozero", "hoverformat": ".4f", "title": {"text": display_name(metric)}}
    figure.update_layout({f"{along}axis": axis, f"{across}axis": value_axis, "scattermode": "group"})
    caption = f"{display_name(metric)} of each segment of the targets (with their number), and 95 % intervals over users."
    height = 460 if ordered else 160 + 46 * len(kept)
    return Chart(segment_chart(kind), f"By {name}", caption, styled(figure, height))


def segment_chart(kind: str) -> str:
    """Name of the chart of a kind of segment."""
    return f"by_{kind}"


def rolling_cuts(cuts: Sequence[Cut], names: Sequence[str], metric: str) -> Chart:
    """Metric of every system at each cut of a rolling split, by the first day of the test part."""
    figure = go.Figure()
    days = [str(cut.test_from)[:10] for cut in cuts]
    for row, system in enumerate(names):
        values = [cut.metrics.get(system, {}).get(metric) for cut in cuts]
        figure.add_scatter(**system_style(row, system), x=days, y=values)
    figure.update_xaxes(type="category", title_text="first day of the test part")
    figure.update_yaxes(title_text=display_name(metric), rangemode="tozero")
    caption = f"{display_name(metric)} of every system at each cut of the log."
    return Chart("rolling", "At several cuts of the log", caption, styled(figure, 400))


def learning_curve(points: Sequence[LearningPoint], names: Sequence[str]) -> Chart:
    """Metrics of the model against its share of the training data, with 95 % intervals where there are any."""
    ordered = sorted(points, key=lambda point: point.fraction)
    names = [name for name in names if all(name in point.metrics for point in ordered)]
    shares = [f"{100 * point.fraction:.3g} %" for point in ordered]
    figure = side_by_side([display_name(name) for name in names], max(1, len(names)))
    for column, name in enumerate(names, 1):
        at = {"row": 1, "col": column}
        values = [point.metrics[name] for point in ordered]
        ends = [point.intervals.get(name, (None, None)) for point in ordered]
        bars = error_bars(values, *np.array(ends, float).T)
        figure.add_scatter(**system_style(0, MODEL), x=shares, y=values, error_y=bars, **at)
    figure.update_xaxes(type="category", title_text="share of the training data")
    figure.update_yaxes(rangemode="tozero")
    caption = "The model trained on shares of the users, on the same targets, with 95 % intervals over users."
    return Chart("learning_curve", "Learning curve", caption, styled(figure, 320))


# --- calibration, attention, explanations, index ---


def calibration(measured: Row, k: int) -> Chart:
    """Share of hits against predicted probability, of the first recommendation and of the list, with 95 % intervals."""
    parts = {"top_1": "the first recommendation", "list": f"any of the first {k}"}
    titles = [f"{title}: error {measured[part]['error']:.3f}" for part, title in parts.items()]
    figure = side_by_side(titles, 2)
    for column, part in enumerate(parts, 1):
        bins = measured[part]["bins"]
        predicted = [row["mean_predicted"] for row in bins]
        observed = np.array([row["observed"] for row in bins])
        low, high = wilson(observed, np.array([row["targets"] for row in bins]))
        most = 1.05 * max(*predicted, *high, 1e-9)
        at = {"row": 1, "col": column}
        line = {"color": GREY, "dash": "dash", "width": 1}
        figure.add_scatter(x=[0, most], y=[0, most], mode="lines", name="well calibrated", line=line, **at)
        figure.add_scatter(
            x=predicted,
            y=observed.tolist(),
            error_y=error_bars(observed, low, high),
            text=[f"{row['targets']:,} targets" for row in bins],
            mode="lines+markers",
            name=parts[part],
            line={"color": COLOURS[0]},
            **at,
        )
        figure.update_xaxes(range=[0, most], nticks=6, **at)
        figure.update_yaxes(range=[0, most], nticks=6, **at)
    figure.update_xaxes(title_text="predicted probability")
    figure.update_yaxes(title_text="share of hits", col=1)
    caption = "Ten groups of targets by predicted probability, with 95 % intervals. Under the dashed line: overconfident."
    return Chart("calibration", "Calibration", caption, styled(figure, 380))


def attention(rows: Sequence[Row]) -> Chart:
    """Share of attention of each class of interactions beside its share of the history, a panel per kind of class."""
    kinds = [kind for kind in _ATTENTION if any(row["kind"] == kind for row in rows)]
    figure = make_subplots(len(kinds), 1, vertical_spacing=0.36 / max(1, len(kinds)))
    shares = {
        "attention": ("share of attention", {"color": COLOURS[0]}),
        "interactions": ("share of the history", {"color": "#BBBBBB", "pattern": {"shape": "/"}}),
    }
    for place, kind in enumerate(kinds, 1):
        part = [row for row in rows if row["kind"] == kind]
        if kind == "event_type":
            part = sorted(part, key=lambda row: -row["interactions"])[:MAX_VALUES]
        values = [str(row["value"]) for row in part]
        for share, (name, marker) in shares.items():
            lifts = [f"× {row['lift']:.2f}" for row in part] if share == "attention" else None
            trace = {"x": values, "y": [row[share] for row in part], "name": name, "marker": marker}
            trace |= {"text": lifts, "textposition": "outside", "cliponaxis": False}
            figure.add_bar(**trace, showlegend=place == 1, row=place, col=1)
        texts = [label(value).replace("under ", "under<br>") for value in values]
        axis = {"type": "category", "tickvals": values, "ticktext": texts}
        figure.update_xaxes(**axis, title_text=_ATTENTION[kind], row=place, col=1)
    figure.update_yaxes(tickformat=".0%")
    caption = (
        "Attention of the last position to each class of interactions; × 2: twice its share of the history."
    )
    return Chart("attention", "Attention", caption, styled(figure, 80 + 250 * len(kinds)))


def because(methods: Mapping[str, Any]) -> Chart:
    """Faithfulness of explanations, a row per weighting of the interactions, a panel per measure, with 95 % intervals."""
    panels = {}
    for kind, title in _FAITHFULNESS.items():
        key = "mean" if kind == "spearman" else "area"
        panels[title] = {
            name: (parts[kind][key], parts[kind]["low"], parts[kind]["high"])
            for name, parts in methods.items()
        }
    figure = rows_with_intervals(panels, dict.fromkeys(methods, system_style(0, MODEL)["marker"]))
    caption = "Weightings of past interactions against the loss in score without them, with 95 % intervals over targets."
    return Chart("because", "Faithfulness of explanations", caption, figure)


def reasons(weights: NDArray[np.float32], history: Sequence[str], items: Sequence[str], user: str) -> Chart:
    """Past interactions (rows, newest on top) against recommendations (columns): the loss in score without each.

    weights: [recommendations, interactions], the oldest interaction first.
    """
    most = float(np.abs(weights).max(initial=1e-9))
    figure = go.Figure(
        go.Heatmap(
            z=weights.T.tolist(),
            x=[f"{place}. {label(title)}" for place, title in enumerate(items, 1)],
            y=[f"{label(title)} ({len(history) - place})" for place, title in enumerate(history)],
            colorscale=[[0, COLOURS[5]], [0.5, "#FFFFFF"], [1, COLOURS[0]]],
            zmin=-most,
            zmax=most,
            colorbar={"title": {"text": "score"}},
            hovertemplate="%{y}<br>for %{x}<br>%{z:+.3f}<extra></extra>",
        )
    )
    figure.update_xaxes(tickangle=-35)
    caption = f"User {user}: loss in score of each recommendation (column) without each interaction (row; 1: the last); "
    caption += "blue supports it, orange opposes it."
    title = "One user's history and recommendations"
    return Chart("reasons", title, caption, styled(figure, 300 + 22 * len(history)))


def popularity(events: NDArray[np.int64], recommended: NDArray[np.int64], titles: Sequence[str]) -> Chart:
    """Events of each item against its recommendations; many items are sampled evenly by popularity."""
    order = np.argsort(-events, kind="stable")
    chosen = order[np.unique(np.linspace(0, len(order) - 1, min(MAX_POINTS, len(order))).astype(int))]
    figure = go.Figure(
        go.Scattergl(
            x=(events[chosen] + 1).tolist(),
            y=(recommended[chosen] + 1).tolist(),
            text=[label(titles[item]) for item in chosen],
            mode="markers",
            marker={"color": COLOURS[0], "size": 5, "opacity": 0.5},
            name="an item",
            hovertemplate="%{text}<br>%{x} events, %{y} recommendations (each + 1)",
        )
    )
    ends = np.array([events.min(), events.max()]) + 1
    share = (recommended.sum() + len(events)) / (events.sum() + len(events))
    line = {"name": "as often as its share of events", "line": {"color": GREY, "dash": "dash"}}
    figure.add_scatter(x=ends.tolist(), y=(share * ends).tolist(), mode="lines", **line)
    figure.update_xaxes(type="log", dtick="D2", title_text="events on the item, plus 1")
    figure.update_yaxes(type="log", dtick="D2", title_text="lists with the item, plus 1")
    never = float((recommended == 0).mean())
    caption = "Items above the dashed line are recommended more often than their share of the events, those below less often; "
    caption += f"{never:.0%} of the items are in no list."
    return Chart("popularity", "Popularity against recommendations", caption, styled(figure, 420))


def index_trade(recall: Mapping[str, Any], speed: Row) -> Chart | None:
    """Recall of the index against its queries per second, beside exact search; None where either was not measured.

    recall, speed: recall.json and speed.json of stage index.
    """
    measured = {name: value for name, value in recall.items() if name in ("recall@10", "recall@100")}
    if not measured or "queries_per_second" not in speed:
        return None
    points = {str(recall["type"]): (speed["queries_per_second"], measured, recall.get("parameters") or {})}
    if "exact" not in points:
        points["exact"] = (speed["exact_queries_per_second"], dict.fromkeys(measured, 1.0), {})
    figure = go.Figure()
    for (row, kind), name in itertools.product(enumerate(points), measured):
        rate, values, settings = points[kind]
        style = system_style(row, f"{kind}, {name}")
        style["marker"]["symbol"] = "circle" if name == "recall@10" else "circle-open"
        text = ", ".join(f"{key} {value}" for key, value in settings.items()) or kind
        hover = f"{text}<br>%{{x:,.0f}} queries/s, recall %{{y:.4f}}"
        figure.add_scatter(**style, x=[rate], y=[values[name]], mode="markers", hovertemplate=hover)
    figure.update_xaxes(type="log", dtick="D2", title_text="queries per second")
    ends = [min(measured.values()) - 0.05, 1.02]
    figure.update_yaxes(title_text="recall against exact search", tickformat=".0%", range=ends)
    caption = "Recall of the index against exact search, and its speed: up and right is better."
    return Chart("index", "The index", caption, styled(figure, 420))


# --- the log ---


def log(profile: Profile, begins: Mapping[str, int | None]) -> Iterator[Chart]:
    """Events per day, events per user and item, gaps between events; the first and last only where there are times.

    begins: start of each held-out part, microseconds since the epoch, None where undefined.
    """
    times = profile.times
    if times is not None and _fits_calendar(times.days):
        yield events_over_time(times.days, begins)
    parts = (
        ("users", "events of the user", profile.history_length.histogram, COLOURS[0]),
        ("items", "events on the item", profile.popularity.num_events.histogram, COLOURS[2]),
    )
    figure = make_subplots(1, 2)
    for column, (counted, title, histogram, colour) in enumerate(parts, 1):
        at = {"row": 1, "col": column}
        figure.add_bar(**histogram_bars(histogram, "events"), marker={"color": colour}, **at)
        ends = [math.log10(0.7), math.log10(1.3 * max(histogram.counts, default=1))]
        figure.update_xaxes(type="log", dtick="D2", title_text=title, **at)
        figure.update_yaxes(type="log", dtick="D2", range=ends, title_text=counted, **at)
    caption = f"{profile.num_users:,} users, {profile.num_items:,} items, {profile.num_events:,} events; logarithmic axes."
    yield Chart("distributions", "Distribution of events", caption, styled(figure, 340))
    if times is not None and times.gap_seconds is not None and times.gap_seconds.histogram.counts:
        yield gaps(times.gap_seconds.histogram)


def _fits_calendar(days: Days) -> bool:
    """Whether every day is in the years 1 to 9999."""
    first, last = np.array([days.day[0], days.day[-1]], "datetime64[Y]").astype(int) + 1970
    return bool(first > 1 and last < 9999)


def events_over_time(days: Days, begins: Mapping[str, int | None]) -> Chart:
    """Events per day, stacked by the most frequent types, and the starts of the held-out parts."""
    day = np.array(days.day, "datetime64[D]").astype(np.int64)
    begin, end = int(day[0]), int(day[-1]) + days.days_per_period
    width = max(days.days_per_period, -(-(end - begin) // MAX_BARS))
    edges = np.minimum(np.arange(begin, end + width, width), end)
    lengths = np.diff(edges)
    figure = go.Figure()
    for colour, (name, events) in zip(COLOURS[:_MAX_TYPES], _most_frequent(days).items(), strict=False):
        per_day = np.bincount((day - begin) // width, events, len(lengths)) / lengths
        figure.add_bar(
            x=edges[:-1].astype("datetime64[D]").astype(str).tolist(),
            y=per_day.tolist(),
            width=(lengths * 86_400_000.0).tolist(),
            offset=0,
            name=label(name),
            marker={"color": colour, "line": {"width": 0}},
            showlegend=len(days.events_by_type) > 1,
        )
    for (part, moment), side in zip(begins.items(), ("right", "left"), strict=False):
        if moment is not None:
            at = str(np.datetime64(moment, "us"))
            figure.add_vline(at, line={"color": GREY, "dash": "dash", "width": 1})
            text = {"text": part, "showarrow": False, "font": {"color": GREY}}
            figure.add_annotation(x=at, y=1, yref="paper", xanchor=side, yanchor="bottom", **text)
    figure.update_xaxes(range=[str(np.datetime64(moment, "D")) for moment in (begin, end)], type="date")
    figure.update_yaxes(title_text="events per day")
    caption = "Events per day, stacked by type; dashed: starts of the held-out parts."
    return Chart("events", "Events over time", caption, styled(figure, 340, barmode="stack", bargap=0))


def _most_frequent(days: Days) -> dict[str, list[int]]:
    """Events by type, the rarer ones combined where there are more types than colours."""
    named = list(days.events_by_type.items())
    others = np.array(days.events) - sum(np.array(events) for _, events in named)
    if len(named) + bool(others.any()) > _MAX_TYPES:
        named, rest = named[: _MAX_TYPES - 1], named[_MAX_TYPES - 1 :]
        others = others + sum(np.array(events) for _, events in rest)
    frequent = {name or "no type": events for name, events in named}
    return frequent | ({"other types": others.tolist()} if others.any() else {})


def gaps(seconds: Histogram) -> Chart:
    """Time between adjacent events of a user, with the pause that ends a session marked."""
    low, high = min(seconds.edges[0], SESSION_SECONDS / 2), max(seconds.edges[-1], SESSION_SECONDS * 2)
    spans = {name: span for name, span in _SPANS.items() if low <= span <= high}
    figure = go.Figure(go.Bar(**histogram_bars(seconds, "seconds"), marker={"color": COLOURS[4]}))
    figure.add_vline(SESSION_SECONDS, line={"color": GREY, "dash": "dot"})
    figure.update_xaxes(
        type="log",
        range=[math.log10(low), math.log10(high)],
        tickvals=list(spans.values()),
        ticktext=list(spans),
        title_text="time to the user's next event (dotted: 30 minutes, the end of a session)",
    )
    figure.update_yaxes(title_text="pairs of events")
    caption = "Pairs of adjacent events of a user by the time between them."
    return Chart("gaps", "Time between events", caption, styled(figure, 300))
