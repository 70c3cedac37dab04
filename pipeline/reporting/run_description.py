"""What is said of a whole run where experiments are reviewed: its description in Markdown, and its row in the list of runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.artifacts.files import read_json
from pipeline.config import MODEL
from pipeline.evaluation.comparison import _ends, _groups
from pipeline.evaluation.metric_names import display_name
from pipeline.tracking.record import allowed
from pipeline.tracking.ui import View

Row = dict[str, Any]
AGAINST_EARLIER, AGAINST_BASELINES = "lookback.against_earlier_runs", "lookback.against_baselines"
"""Tags of a whole run, shown in the list of runs: the verdicts of the paired tests."""
MAX_EARLIER = 5
"""Earlier runs that a run is held against."""


def of_evaluation(report: Row, metric: str) -> str:
    """The headline in a paragraph, below it what it was measured on and the table of every system, best baseline first."""
    value, ends = report["metrics"][MODEL][metric], report["intervals"][MODEL][metric]
    paired = {name: found[metric] for name, found in report["paired"].items()}
    ordered = sorted(paired, key=lambda name: -float(report["metrics"][name][metric]))
    told = (
        f"**{display_name(metric)} {value:.4f}** (95 % interval {_ends(ends)}). {_verdicts(paired, ordered)}"
    )
    about = (
        f"On {report['targets']:,} held-out events of {report['users']:,} users, {report['protocol'].replace('_', '-')} split, "
        f"ranked among all {report['num_items']:,} items."
    )
    if "metrics" in report.get("ranker", {}):
        about += f" {display_name(report['ranker']['reason'].capitalize())}."
    lines = [
        told.strip(),
        "",
        about,
        "",
        f"| system | {display_name(metric)} | 95 % interval | lookback minus it | 95 % interval | verdict |",
        "| --- | --- | --- | --- | --- | --- |",
        f"| **lookback** | **{value:.4f}** | {_ends(ends)} | | | |",
    ]
    for name in ordered:
        own, each = report["intervals"][name][metric], paired[name]
        lines.append(
            f"| {display_name(name)} | {report['metrics'][name][metric]:.4f} | {_ends(own)} | {each['difference']:+.4f} | "
            f"{_ends((each['low'], each['high']), '+.4f')} | {each['verdict']} |"
        )
    return "\n".join(lines)


def _verdicts(paired: Mapping[str, Row], ordered: Sequence[str]) -> str:
    told = _groups({display_name(name): paired[name]["verdict"] for name in ordered})
    return f"By the paired test it is {told}." if told else ""


def row_of(report: Row, metric: str) -> tuple[dict[str, float], str]:
    """What the list of runs shows of metrics.json: metrics by name, and the verdict against the baselines."""
    low, high = report["intervals"][MODEL][metric]
    paired = {name: found[metric] for name, found in report["paired"].items()}
    ordered = sorted(paired, key=lambda name: -float(report["metrics"][name][metric]))
    numbers = {f"test/{metric}_low": low, f"test/{metric}_high": high}
    if not ordered:
        return numbers, "no baseline was evaluated"
    numbers[f"best_baseline/{metric}"] = float(report["metrics"][ordered[0]][metric])
    told = _groups({display_name(name): paired[name]["verdict"] for name in ordered})
    is_best = all(each["verdict"] == "better" for each in paired.values())
    return (
        numbers,
        f"better than all {len(ordered)}: {told.removeprefix('better than ')}" if is_best else told,
    )


def view_of(metric: str) -> View:
    """The list of runs by which of them is best: the columns of row_of, the best run first."""
    length = metric.rpartition("@")[2]
    metrics = [f"test/{metric}", f"test/{metric}_low", f"test/{metric}_high", f"best_baseline/{metric}"]
    shown = dict.fromkeys([*metrics, f"test/hit_rate@{length}"])
    return View(
        key=f"best-by-{allowed(metric)}",
        name=f"Best by {display_name(metric)}",
        run_filter="tags.`lookback.stage` = 'run'",
        metrics=[allowed(name) for name in shown],
        tags=[AGAINST_EARLIER, AGAINST_BASELINES],
    )


def metric_of(report: Row, wanted: str) -> str:
    """The metric of the headline: the wanted one, or NDCG at the shortest list length where that was not measured."""
    names = report["metrics"][MODEL]
    return wanted if wanted in names else f"ndcg@{min(int(name.rpartition('@')[2]) for name in names)}"


def read_report(evaluate: Path) -> Row:
    """The content of metrics.json."""
    content: Row = read_json(evaluate / "metrics.json")
    return content
