"""Figure of what the ranker learned about items shown in vain."""

from collections.abc import Sequence

import plotly.graph_objects as go

from pipeline.reporting.style import Chart, styled, system_style


def by_times_shown(probability: Sequence[float]) -> Chart:
    """Mean probability of the first candidates, had each been shown 0, 1, 2 … times without a reaction."""
    figure, times = go.Figure(), list(range(len(probability)))
    figure.add_scatter(**system_style(0, "second stage"), x=times, y=list(probability))
    figure.update_xaxes(title_text="times shown without a reaction, the last a day before", tickvals=times)
    figure.update_yaxes(title_text="mean probability", rangemode="tozero", tickformat=".1%")
    caption = (
        "The ranker's probability that held-out users take their first candidates, all else being equal "
        "(partial dependence). Measured where users were shown few items, the right end is an extrapolation. A rise is no effect "
        "of showing: what an older system showed often it held for likely."
    )
    return Chart("times-shown", "Shown again", caption, styled(figure, 340))
