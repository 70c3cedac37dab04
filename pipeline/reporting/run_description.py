"""Markdown description of a whole run, and its columns in the list of runs."""

from pipeline.evaluation import target_words
from pipeline.evaluation.comparison import group_by_verdict, interval_text
from pipeline.evaluation.metric_names import display_name
from pipeline.evaluation.report import EvaluationReport
from pipeline.sections import MODEL
from pipeline.tracking.record import allowed
from pipeline.tracking.ui import View

AGAINST_EARLIER, AGAINST_BASELINES = "lookback.against_earlier_runs", "lookback.against_baselines"
"""Tags of a whole run with the verdicts of the paired tests, shown in the list of runs."""
CHANGED, BEST_BASELINE = "lookback.changed_settings", "lookback.best_baseline"
"""Tags of a whole run, shown in the list of runs: settings that differ from the run before; the best baseline's metric."""
TARGET_SET = "lookback.target_set"
"""Tag of a whole run that built an evaluation: fingerprint of its test targets."""
MAX_EARLIER = 5
"""Earlier runs that a run is compared with."""


def of_evaluation(report: EvaluationReport, metric: str) -> str:
    """Summary paragraph, then the test targets and cautions, then a table of every system, the best baseline first."""
    own, baselines = report.value(MODEL, metric), report.best_baselines(metric)
    summary = f"**{display_name(metric)} {own.value:.4f}** (95 % interval {_ends(report, MODEL, metric)})."
    if baselines:
        summary += f" Paired test: {_verdicts(report, metric)}."
    about = (
        f"On {target_words.tested(report)}, {report.protocol.replace('_', '-')} split, "
        f"ranked among all {report.num_items:,} items."
    )
    if report.ranker.metrics is not None:
        about += f" {display_name(report.ranker.reason.capitalize())}."
    if report.cautions:
        about += f" **Caution**: {'; '.join(report.cautions)}."
    lines = [
        summary,
        "",
        about,
        "",
        f"| system | {display_name(metric)} | 95 % interval | lookback minus it | 95 % interval | verdict |",
        "| --- | --- | --- | --- | --- | --- |",
        f"| **lookback** | **{own.value:.4f}** | {_ends(report, MODEL, metric)} | | | |",
    ]
    for name in baselines:
        paired = report.paired(name, metric)
        lines.append(
            f"| {display_name(name)} | {report.value(name, metric).value:.4f} | {_ends(report, name, metric)} | "
            f"{paired.difference:+.4f} | {interval_text(paired.low, paired.high, '+.4f')} | {paired.verdict} |"
        )
    return "\n".join(lines)


def _ends(report: EvaluationReport, system: str, metric: str) -> str:
    low, high = report.intervals[system][metric]
    return interval_text(low, high)


def _verdicts(report: EvaluationReport, metric: str) -> str:
    names = report.best_baselines(metric)
    return group_by_verdict({display_name(name): report.paired(name, metric).verdict for name in names})


def row_of(report: EvaluationReport, metric: str) -> tuple[dict[str, float], str]:
    """Columns of the list of runs: metrics by name, and the verdict against the baselines."""
    low, high = report.intervals[MODEL][metric]
    baselines = report.best_baselines(metric)
    numbers = {f"test/{metric}_low": low, f"test/{metric}_high": high}
    if not baselines:
        return numbers, "no baseline was evaluated"
    numbers[f"best_baseline/{metric}"] = report.metrics[baselines[0]][metric]
    verdicts = _verdicts(report, metric)
    is_best = all(report.paired(name, metric).verdict == "better" for name in baselines)
    return (
        numbers,
        f"better than all {len(baselines)}: {verdicts.removeprefix('better than ')}" if is_best else verdicts,
    )


def headline_tag(metric: str) -> str:
    """Tag of a whole run with a metric and its interval, shown in the list of runs."""
    return f"lookback.{allowed(metric)}"


def texts_of(report: EvaluationReport, metric: str) -> dict[str, str]:
    """Columns of the list of runs with four digits: the metric beside its interval, and the best baseline's."""
    baselines = report.best_baselines(metric)
    best = (
        f"{report.value(baselines[0], metric).value:.4f} {display_name(baselines[0])}"
        if baselines
        else "none"
    )
    value = f"{report.value(MODEL, metric).value:.4f} ({_ends(report, MODEL, metric)})"
    return {headline_tag(metric): value, BEST_BASELINE: best}


def view_of(metric: str, target_set: str) -> View:
    """List of the runs on the same test targets, best first, with the columns of row_of and texts_of."""
    return View(
        key=f"best-by-{allowed(metric)}-{target_set[:8]}",
        name=f"Best by {display_name(metric)} on targets {target_set[:8]}",
        run_filter=f"tags.`lookback.stage` = 'run' AND tags.`{TARGET_SET}` = '{target_set}'",
        metrics=[allowed(f"test/{metric}")],
        tags=[headline_tag(metric), CHANGED, BEST_BASELINE, AGAINST_EARLIER, AGAINST_BASELINES],
    )


def metric_of(report: EvaluationReport, preferred: str) -> str:
    """Preferred metric, or NDCG at the shortest list length where it was not measured."""
    return preferred if preferred in report.metric_names else f"ndcg@{report.list_lengths[0]}"
