"""Style of the figures: colours and symbols of the systems, axes, error bars, labels."""

import html
import itertools
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from features.printable import printable
from features.profiling.profile import Histogram
from pipeline.evaluation.metric_names import display_name

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000", "#8C6D31")
"""Okabe and Ito (2008), distinct for colour-blind readers too; brown replaces their yellow, pale on white."""
SYMBOLS = ("circle", "square", "diamond", "triangle-down", "cross", "x", "triangle-up", "star")
DASHES = ("solid", "dash", "dashdot", "dot")
GREY = "#7F7F7F"
MAX_LABEL = 36
"""Characters of a label from the log."""

Values = Iterable[float | None]
_AXIS = {
    "gridcolor": "#DDDDDD",
    "linecolor": "#444444",
    "showline": True,
    "ticks": "outside",
    "zeroline": False,
}
_TEMPLATE = {
    "layout": {
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": "#1B1B1B"},
        "colorway": COLOURS,
        "plot_bgcolor": "#FFFFFF",
        "paper_bgcolor": "#FFFFFF",
        "margin": {"l": 60, "r": 20, "t": 55, "b": 50},
        "xaxis": {**_AXIS, "automargin": True},
        "yaxis": {**_AXIS, "automargin": True},
        "legend": {
            "orientation": "h",
            "yref": "container",
            "y": 0,
            "yanchor": "bottom",
            "traceorder": "normal",
        },
        "hovermode": "closest",
    }
}


@dataclass(frozen=True)
class Chart:
    """Figure with title and caption."""

    name: str
    """Key of the chart in a page."""
    title: str
    caption: str
    figure: go.Figure

    def as_json(self) -> dict[str, Any]:
        """JSON of the chart, with its figure for plotly.js."""
        figure = json.loads(self.figure.to_json())
        return {"name": self.name, "title": self.title, "caption": self.caption, "figure": figure}


def styled(figure: go.Figure, height: int, **layout: Any) -> go.Figure:
    """Apply the common layout; height: pixels."""
    figure.update_layout(template=_TEMPLATE, height=height, **layout)
    figure.update_annotations(font_size=13)
    return figure


def system_style(row: int, name: str) -> dict[str, Any]:
    """Name, marker and line of a system by its row, the same in every figure; the first, the model, is emphasised."""
    first, colour = row == 0, COLOURS[row % len(COLOURS)]
    dash = "solid" if first else DASHES[row % len(DASHES)]
    return {
        "name": label(display_name(name)),
        "marker": {"color": colour, "symbol": SYMBOLS[row % len(SYMBOLS)], "size": 10 if first else 7},
        "line": {"color": colour, "dash": dash, "width": 3 if first else 1.5},
    }


def label(text: str) -> str:
    """Escape a name from the log for plotly: short, printable, no markup."""
    return html.escape(printable(text, MAX_LABEL), quote=False)


def error_bars(value: Values, low: Values, high: Values) -> dict[str, str | float | list[float]]:
    """Error bars of values with intervals; none where an end is undefined."""
    middle, bottom, top = (np.array(list(part), float) for part in (value, low, high))
    above, below = np.maximum(np.nan_to_num([top - middle, middle - bottom]), 0).tolist()
    return {
        "type": "data",
        "symmetric": False,
        "array": above,
        "arrayminus": below,
        "width": 2,
        "thickness": 1.2,
    }


def histogram_bars(histogram: Histogram, unit: str) -> dict[str, Any]:
    """Bars of a histogram, from edge to edge."""
    edges = np.asarray(histogram.edges, float)
    return {
        "x": edges[:-1].tolist(),
        "y": list(histogram.counts),
        "width": np.diff(edges).tolist(),
        "offset": 0,
        "customdata": [f"{math.ceil(low):,} to {high:,.0f}" for low, high in itertools.pairwise(edges)],
        "hovertemplate": f"%{{customdata}} {unit}: %{{y:,}}<extra></extra>",
        "showlegend": False,
    }


def wilson(
    share: NDArray[np.float64], count: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """95 % interval of each share of `count` trials (Wilson 1927)."""
    z = 1.96
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * np.sqrt(share * (1 - share) / count + z * z / (4 * count**2))
    return middle - half, middle + half
