"""How figures look: colours that all readers tell apart, plain axes, and SVG that is the same for the same numbers."""

import warnings
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000", "#8C6D31")
"""Okabe and Ito (2008), told apart by colour-blind readers too; a brown in place of their yellow, which is pale on white."""
MARKERS = "osD^vPX*"
DASHES = ("-", "--", "-.", ":")
GREY = "#7F7F7F"
WIDTH = 7.2
"""Of every figure, in inches."""
MAX_LABEL = 28
"""Characters of a value's name."""


def save(figure: Figure, path: Path) -> None:
    """Write SVG without a date and with fixed ids: the same figure, the same bytes."""
    with mpl.rc_context({"svg.hashsalt": "lookback", "svg.fonttype": "none"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the text is the browser's to draw
        figure.savefig(path, format="svg", metadata={"Date": None})


def shown(text: str) -> str:
    """A name from the log as matplotlib may have it: short, printable, no formula."""
    short = text if len(text) <= MAX_LABEL else f"{text[: MAX_LABEL - 1]}…"
    return "".join(letter if letter.isprintable() else " " for letter in short).replace("$", r"\$")


def plain_axes(axes: Axes, grid: Literal["x", "y", "both"]) -> None:
    """Axes without a frame on the right and on top, grid lines behind what is drawn."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=False)
    axes.grid(axis=grid, color="#ddd")
    axes.set_axisbelow(True)


def blank(height: float = 3.6) -> tuple[Figure, Axes]:
    """A figure of one plot, `height` in inches."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.add_subplot()
    plain_axes(axes, "y")
    return figure, axes


def legend_below(figure: Figure, axes: Axes) -> None:
    """The names of what is drawn, in rows of four under the plot."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=9)


def line_style(row: int) -> dict[str, Any]:
    """How the system at a place is drawn everywhere: the first, the model, stands out."""
    first = row == 0
    return {
        "color": COLOURS[row % len(COLOURS)],
        "marker": MARKERS[row % len(MARKERS)],
        "linestyle": "-" if first else DASHES[row % len(DASHES)],
        "linewidth": 2.2 if first else 1.1,
        "markersize": 6.5 if first else 4.5,
        "zorder": 3 if first else 2,
    }
