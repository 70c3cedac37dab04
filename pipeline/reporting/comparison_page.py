"""A comparison of runs as one self-contained HTML page."""

import datetime
from typing import Any

from models.evaluation.comparison import Judgement
from pipeline.evaluation.comparison import by_chance
from pipeline.evaluation.metric_names import display_name
from pipeline.reporting import figures, templates


def verdict(judged: Judgement, metric: str) -> str:
    """Which run is best on a metric, and from which of the others the paired test tells it."""
    best, *others = sorted(judged.systems, key=lambda label: -judged.values(label)[metric])
    said = f"{best} is best on {display_name(metric)} ({judged.values(best)[metric]:.4f})"
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


def page(tree: dict[str, Any], judged: Judgement, metrics: list[str], links: dict[str, str]) -> str:
    """The page of what `compare.as_tree` says; `metrics` are those shown, links: label -> id of the run."""
    return templates.template("compare").render(
        tree=tree,
        labels=judged.systems,
        metrics=metrics,
        verdicts=[verdict(judged, metric) for metric in metrics],
        links=links,
        chart=_chart(judged, metrics),
        made=datetime.datetime.now(datetime.UTC),
    )


def _chart(judged: Judgement, metrics: list[str]) -> dict[str, Any]:
    """The chart of every run with its intervals."""
    values = {label: judged.values(label) for label in judged.systems}
    intervals = {label: judged.intervals(label) for label in judged.systems}
    return figures.systems(values, intervals, metrics[:3]).as_json()
