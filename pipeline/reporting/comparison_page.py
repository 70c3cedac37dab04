"""Self-contained HTML page of a comparison of runs."""

import datetime

from models.evaluation.bootstrap import NO_DIFFERENCE
from models.evaluation.comparison import SystemComparison
from models.evaluation.metrics import LOWER_IS_BETTER
from pipeline.evaluation.comparison import Comparison, as_tree, by_chance, interval_text
from pipeline.evaluation.metric_names import display_name
from pipeline.reporting import figures, templates
from pipeline.reporting.style import Chart


def verdict(systems: SystemComparison, metric: str) -> str:
    """Sentence on the best run on a metric, and the paired test of each other run against it."""
    is_lower_better = metric.partition("@")[0] in LOWER_IS_BETTER
    best, *others = sorted(
        systems.systems, key=lambda label: systems.values(label)[metric], reverse=not is_lower_better
    )
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
    """HTML page of a comparison; metrics: names to show; links: label -> run id."""
    return templates.template("compare").render(
        tree=as_tree(comparison),
        about=comparison.about,
        labels=comparison.systems.systems,
        metrics=metrics,
        verdicts=[verdict(comparison.systems, metric) for metric in metrics],
        links=links,
        chart=_chart(comparison.systems, metrics).as_json(),
        made=datetime.datetime.now(datetime.UTC),
    )


def _chart(systems: SystemComparison, metrics: list[str]) -> Chart:
    """Chart of every run with its intervals."""
    values = {label: systems.values(label) for label in systems.systems}
    intervals = {label: systems.intervals(label) for label in systems.systems}
    return figures.systems(values, intervals, metrics[:3])
