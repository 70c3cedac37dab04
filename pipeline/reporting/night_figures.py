"""Figures of delivered lists: realised metric by night with its promised band, against shadows, by age of the model."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import polars as pl

from pipeline.artifacts.files import read_json, write_json
from pipeline.evaluation.metric_names import display_name
from pipeline.reporting import templates
from pipeline.reporting.figures import rows_with_intervals, side_by_side
from pipeline.reporting.style import GREY, Chart, error_bars, styled, system_style
from pipeline.sections import DELIVERED

CHARTS, PAGE = "charts.json", "nights.html"
"""Files of a monitor with judged nights: charts, and a page of them."""
_BAND = "rgba(127, 127, 127, 0.22)"

Row = Mapping[str, Any]


def draw(folder: Path, name: str, nights: pl.DataFrame, record: Row) -> None:
    """Write the charts of nights (rows of nights.parquet, and monitor.json), and the page of them, into a monitor's folder."""
    rows = (record[key] for key in ("promised", "differences", "models"))
    charts = [chart.as_json() for chart in of_nights(nights, *rows)]
    if charts:
        write_json(folder / CHARTS, charts)
        page = templates.template("figures").render(name=name, charts=charts)
        (folder / PAGE).write_text(page, encoding="utf-8")


def drawn(folder: Path) -> list[dict[str, Any]]:
    """Charts in a monitor's folder; empty without a judged night."""
    path = folder / CHARTS
    charts: list[dict[str, Any]] = read_json(path) if path.exists() else []
    return charts


def of_nights(
    nights: pl.DataFrame, promised: Sequence[Row], differences: Sequence[Row], models: Sequence[Row]
) -> Iterator[Chart]:
    """Charts of a monitor; none without a judged night.

    nights: rows of nights.parquet; promised, differences, models: of monitor.json.
    """
    whole = pl.col("segment").is_null() & pl.col("arm").is_null()
    ndcg = nights.filter(pl.col("metric").str.starts_with("ndcg@") & whole)
    ndcg = ndcg.drop_nulls("value").sort("window_days", "log_time")
    if ndcg.is_empty():
        return
    yield by_night(ndcg, promised)
    if differences:
        yield against_shadows(differences)
    if aged := by_model_age(ndcg.filter(pl.col("system") == DELIVERED), models):
        yield aged


def by_night(ndcg: pl.DataFrame, promised: Sequence[Row]) -> Chart:
    """Realised NDCG of every system by night, a panel per window, with the band that the evaluation promised."""
    figure, windows = _windows(ndcg)
    for column, (days, own) in enumerate(windows.items(), 1):
        at = {"row": 1, "col": column, "showlegend": column == 1}
        band = pl.DataFrame([row for row in promised if row["window_days"] == days])
        if len(band):
            _band(figure, band.unique("night", keep="last").sort("night"), at)
        shadows = own.filter(pl.col("system") != DELIVERED)["system"].unique().sort()
        for row, system in reversed([*enumerate((DELIVERED, *shadows))]):
            part = own.filter(pl.col("system") == system)
            _line(figure, system_style(row, system), part, _text(part["log_time"]), at, has_bars=not row)
    figure.update_xaxes(type="date", title_text="night of the lists")
    figure.update_layout(legend_traceorder="reversed")
    caption = "Lists of each night against what users took in the days after; 95 % intervals over users for the delivered ones. "
    caption += "Grey: the range for one night that the evaluation promised."
    return Chart("nights", f"Realised {_named(ndcg)} by night", caption, styled(figure, 400))


def against_shadows(differences: Sequence[Row]) -> Chart:
    """Delivered lists minus those of each shadow in NDCG, a panel per window, with 95 % intervals."""
    kept = [row for row in differences if row["metric"].startswith("ndcg@")]
    charted: dict[str, dict[str, tuple[float, float, float]]] = {}
    for row in kept:
        title = f"{display_name(row['metric'])} {_within(row['window_days'])}"
        charted.setdefault(title, {})[row["shadow"]] = (row["difference"], row["low"], row["high"])
    names = list(dict.fromkeys(row["shadow"] for row in kept))
    styles = {name: system_style(row, name)["marker"] for row, name in enumerate(names, 1)}
    figure = rows_with_intervals(charted, styles)
    figure.add_vline(0, line={"color": GREY, "dash": "dash", "width": 1})
    caption = "Delivered lists minus those of each shadow, paired by user and night, with 95 % intervals: right of the dashed "
    caption += "line the delivered ones were better."
    return Chart("shadows", "Delivered against shadows", caption, figure)


def by_model_age(ndcg: pl.DataFrame, models: Sequence[Row]) -> Chart | None:
    """Realised NDCG of the delivered lists by the age of their model, a line per version; None where no age is known."""
    facts = {row["night"]: (row["model_version"], row["age_days"]) for row in models}
    aged = ndcg.with_columns(night=pl.col("log_time").dt.strftime("%Y-%m-%dT%H:%M:%S+00:00"))
    aged = aged.filter(pl.col("night").is_in(list(facts)))
    if aged.is_empty():
        return None
    known = [facts[night] for night in aged["night"]]
    aged = aged.with_columns(
        version=pl.Series([version for version, _ in known], dtype=pl.Int64),
        age_days=pl.Series([age for _, age in known], dtype=pl.Float64),
    ).sort("window_days", "version", "age_days")
    figure, windows = _windows(aged)
    for column, own in enumerate(windows.values(), 1):
        versions = own["version"].unique().sort().to_list()
        for row, version in enumerate(reversed(versions)):
            part = own.filter(pl.col("version").eq_missing(version))
            style = system_style(row, f"version {'unknown' if version is None else version}")
            if row:
                style |= {
                    "name": "earlier versions",
                    "legendgroup": "earlier",
                    "line": {"color": GREY, "width": 1},
                }
                style["marker"] |= {"color": GREY, "symbol": "circle", "size": 5}
            at = {"row": 1, "col": column, "showlegend": column == 1 and row < 2}
            _line(figure, style, part, part["age_days"].to_list(), at, has_bars=not row)
    figure.update_xaxes(title_text="age of the model: days since its newest event", rangemode="tozero")
    caption = "Lists of one night each, by the time since the newest event that their model knew; 95 % intervals over users. "
    caption += "Nights differ for all systems: see them above."
    return Chart("model_age", f"Realised {_named(ndcg)} by age of the model", caption, styled(figure, 360))


def _windows(ndcg: pl.DataFrame) -> tuple[go.Figure, dict[float, pl.DataFrame]]:
    """Panels with the rows of each window."""
    windows = {days: own for (days,), own in ndcg.group_by(["window_days"], maintain_order=True)}
    titles = [f"{_named(own)} {_within(days)}" for days, own in windows.items()]
    figure = side_by_side(titles, len(titles)).update_layout(showlegend=True)
    figure.update_yaxes(rangemode="tozero", hoverformat=".4f")
    return figure, windows


def _named(ndcg: pl.DataFrame) -> str:
    """Metric of the newest night."""
    return display_name(ndcg.sort("log_time")["metric"][-1])


def _within(days: float) -> str:
    return f"within {days:g} day{'' if days == 1 else 's'}"


def _text(moments: pl.Series) -> list[str]:
    return moments.dt.strftime("%Y-%m-%d %H:%M").to_list()


def _band(figure: go.Figure, band: pl.DataFrame, at: Row) -> None:
    nights = [night[:16].replace("T", " ") for night in band["night"]]
    line = {"x": nights, "mode": "lines", "line": {"width": 0, "shape": "hvh"}, "hoverinfo": "skip"}
    figure.add_scatter(**line, y=band["low"].clip(0).to_list(), **{**at, "showlegend": False})
    name = "promised for one night"
    figure.add_scatter(**line, y=band["high"].to_list(), fill="tonexty", fillcolor=_BAND, name=name, **at)


def _line(
    figure: go.Figure, style: dict[str, Any], part: pl.DataFrame, x: Sequence[Any], at: Row, *, has_bars: bool
) -> None:
    bars = {"error_y": error_bars(part["value"], part["low"], part["high"])} if has_bars else {}
    figure.add_scatter(**style, x=x, y=part["value"].to_list(), mode="lines+markers", **bars, **at)
