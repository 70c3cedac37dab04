"""A comparison of runs as one self-contained HTML page."""

import base64
import datetime
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.evaluation.comparison import SystemComparison
from pipeline.reporting import figures, style, templates


def verdict(judged: SystemComparison, metric: str) -> str:
    """Which run is best on a metric, and from which of the others the paired test tells it."""
    best, *others = sorted(judged.systems, key=lambda label: -judged.values(label)[metric])
    said = f"{best} is best on {style.spoken(metric)} ({judged.values(best)[metric]:.4f})"
    if not others:
        return f"{said}."
    found = {label: each[metric] for label, each in judged.compared(best, others).items()}
    told = []
    for label in others:
        each = found[label]
        interval = f"95 % interval {each['low']:+.4f} to {each['high']:+.4f}{by_chance(each, len(others))}"
        if each["verdict"] == "can't tell":
            told.append(f"not told apart from {label} ({each['difference']:+.4f}, {interval})")
        else:
            told.append(f"{each['verdict']} than {label} by {each['difference']:+.4f} ({interval})")
    return f"{said}: {'; '.join(told)}."


def by_chance(found: Mapping[str, Any], comparisons: int) -> str:
    """Why a difference is not told though its own interval leaves 0 out: one of several may do so by chance."""
    if found["verdict"] != "can't tell" or found["low"] <= 0 <= found["high"]:
        return ""
    return f", but p {found['p_bootstrap_holm']:.2g} when corrected for {comparisons} comparisons"


def page(tree: dict[str, Any], judged: SystemComparison, metrics: list[str], links: dict[str, str]) -> str:
    """The page of what `compare.as_tree` says; `metrics` are those shown, links: label -> id of the run."""
    return templates.template("compare").render(
        tree=tree,
        labels=judged.systems,
        metrics=metrics,
        verdicts=[verdict(judged, metric) for metric in metrics],
        links=links,
        picture=_picture(judged, metrics),
        made=datetime.datetime.now(datetime.UTC),
    )


def _picture(judged: SystemComparison, metrics: list[str]) -> str:
    """An address that holds the picture of every run with its intervals."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "runs.svg")
        style.save(figures.systems_side_by_side(judged, tuple(metrics[:3])), path)
        return f"data:image/svg+xml;base64,{base64.b64encode(path.read_bytes()).decode()}"
