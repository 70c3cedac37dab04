"""A comparison of runs as one self-contained HTML page."""

import base64
import datetime
import tempfile
from pathlib import Path

from models.evaluation.bootstrap import NO_DIFFERENCE
from models.evaluation.comparison import Judgement
from pipeline.evaluation.comparison import Comparison, as_tree, by_chance, interval_text
from pipeline.evaluation.metric_names import display_name
from pipeline.reporting import figures, style, templates


def verdict(systems: Judgement, metric: str) -> str:
    """Sentence on the best run on a metric, and the paired test of each other run against it."""
    best, *others = sorted(systems.systems, key=lambda label: -systems.values(label)[metric])
    sentence = f"{best} is best on {display_name(metric)} ({systems.values(best)[metric]:.4f})"
    if not others:
        return f"{sentence}."
    parts = []
    for label, differences in systems.compared(best, others).items():
        paired = differences[metric]
        interval = (
            f"95 % interval {interval_text(paired.low, paired.high, '+.4f')}{by_chance(paired, len(others))}"
        )
        if paired.verdict == NO_DIFFERENCE:
            parts.append(f"{NO_DIFFERENCE} from {label} ({paired.difference:+.4f}, {interval})")
        else:
            parts.append(f"{paired.verdict} than {label} by {paired.difference:+.4f} ({interval})")
    return f"{sentence}: {'; '.join(parts)}."


def page(comparison: Comparison, metrics: list[str], links: dict[str, str]) -> str:
    """HTML page of a comparison; metrics: those shown; links: label -> id of the run."""
    return templates.template("compare").render(
        tree=as_tree(comparison),
        labels=comparison.systems.systems,
        metrics=metrics,
        verdicts=[verdict(comparison.systems, metric) for metric in metrics],
        links=links,
        picture=_picture(comparison.systems, metrics),
        made=datetime.datetime.now(datetime.UTC),
    )


def _picture(systems: Judgement, metrics: list[str]) -> str:
    """Data URL of the picture of every run with its intervals."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "runs.svg")
        style.save(figures.systems_side_by_side(systems, tuple(metrics[:3])), path)
        return f"data:image/svg+xml;base64,{base64.b64encode(path.read_bytes()).decode()}"
