"""Figure of a metric by age of model and lists."""

import plotly.graph_objects as go

from pipeline.evaluation.metric_names import display_name
from pipeline.evaluation.report import StaleAge, Staleness
from pipeline.reporting.style import Chart, error_bars, styled, system_style

_LINES = {
    "model": "frozen model, histories up to date",
    "lists": "frozen lists of the first night",
    "popularity": "popularity, counted anew",
}


def stale(measured: Staleness) -> Chart:
    """Metric against the age in days, with 95 % intervals."""
    figure, days = go.Figure(), [age.days for age in measured.ages]
    for row, (field, name) in enumerate(_LINES.items()):
        values = [_of(age, field) for age in measured.ages]
        bars = error_bars(*zip(*values, strict=True))
        style = system_style(row, name) | {"name": name}
        figure.add_scatter(**style, x=days, y=[value for value, _, _ in values], error_y=bars)
    figure.update_xaxes(title_text="days after the first night of the test", tickvals=days)
    figure.update_yaxes(title_text=display_name(measured.metric), rangemode="tozero")
    caption = (
        "Each point is another night with users of its own; popularity shows which nights are harder for all."
    )
    return Chart("stale", "Age of model and lists", caption, styled(figure, 360))


def _of(age: StaleAge, field: str) -> tuple[float, float, float]:
    bounded = getattr(age, field)
    return bounded.value, bounded.low, bounded.high
