"""Tables of an evaluation in the report, from metrics.json and the files beside it."""

import math
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from models.evaluation.bootstrap import NO_DIFFERENCE, PairedDifference
from pipeline.artifacts.files import read_json
from pipeline.evaluation import target_words
from pipeline.evaluation.report import OFF_POLICY_SHOWN, EvaluationReport, Tuning
from pipeline.reporting import charts, figures
from pipeline.sections import MODEL, EvaluateConfig

ACCURACY = ("ndcg", "hit_rate", "mrr", "user_ndcg")
ACCURACY_OF_NIGHTS = ("ndcg", "hit_rate", "recall", "precision", "map", "mrr")
"""Metrics of ranks in the report's first table, at the shortest list length; NDCG also at the longest."""
LISTS = {
    "coverage": "share of the catalogue in at least one list",
    "gini": "inequality of recommendations over items: 0 all alike, 1 one item alone",
    "novelty": "mean -log2 of an item's share of the training events, in bits",
    "popularity_share": "share of recommended items among the most popular tenth",
    "diversity": "mean content distance between two items of a list",
    "calibration": "divergence of a list's categories from the history's, in nats: 0 is the same mix",
    "serendipity": "share of targets hit but missed by the most popular items",
    "repeats": "share of recommended items already in the history",
    "full_lists": "share of full-length lists",
}
"""Metrics of the lists and their meaning, for the report's second table."""
LEAKS = {
    "training_after_first_target": "training events later than the earliest target",
    "training_after_median_target": "training events later than the median target",
    "targets_before_training_end": "targets earlier than some training event",
    "mean_training_after_target": "training events later than a target, mean over the targets",
}
"""Leaks of leave-one-out, as `features.histories.leaks` names them."""

Row = dict[str, Any]


def of_evaluation(report: EvaluationReport, evaluate: Path) -> Row:
    """Template values of an evaluation, from metrics.json and the files beside it."""
    accuracy = _metrics_shown(report)
    systems = [MODEL, *report.best_baselines(accuracy[0])]
    diagnostics = evaluate / charts.DIAGNOSTICS
    kind = report.targets_of_a_user
    return {
        "report": report,
        "is_nightly": target_words.is_nightly(kind),
        "unit": target_words.unit(kind),
        "tested": target_words.tested(report),
        "left_out": target_words.left_out(kind, report.targets_left_out),
        "disliked": None if report.dislikes is None else target_words.disliked(report.dislikes),
        "exposed": None if report.off_policy_lists is None else target_words.exposed(report.off_policy_lists),
        "off_policy": OFF_POLICY_SHOWN,
        "subsets": target_words.parts(report),
        "kinds": {target_words.KINDS[name]: values for name, values in (report.by_targets or {}).items()},
        "model": MODEL,
        "baselines": systems[1:],
        "headline": accuracy,
        "of_lists": _list_metrics(report),
        "with_p": any(
            paired.p_holm is not None for by in report.differences.values() for paired in by.values()
        ),
        "leak_names": LEAKS,
        "verdicts": _verdicts(report, systems[1:], accuracy[0]),
        "tuned": [_tuned(name, report.tuning[name]) for name in systems if name in report.tuning],
        "segments": _segments(evaluate / "segments.parquet", accuracy[0], systems),
        "diagnostics": read_json(diagnostics) if diagnostics.exists() else {},
    }


def _metrics_shown(report: EvaluationReport) -> list[str]:
    """Metrics of the first table: at the shortest list length, NDCG also at the longest; dislike rate and utility where known."""
    lengths = report.list_lengths
    is_nightly = target_words.is_nightly(report.targets_of_a_user)
    metrics = ACCURACY_OF_NIGHTS if is_nightly else ACCURACY
    names = [f"{metric}@{lengths[0]}" for metric in metrics]
    names.insert(len(names) if is_nightly else 3, f"ndcg@{lengths[-1]}")
    names += [f"{metric}@{lengths[0]}" for metric in ("dislike_rate", "utility")]
    return [name for name in dict.fromkeys(names) if name in report.metric_names]


def _list_metrics(report: EvaluationReport) -> dict[str, str]:
    """Metrics of the second table and their meaning, without those constant by construction."""
    by_metric = {name.partition("@")[0]: name for name in report.metric_names}
    meanings = {by_metric[metric]: text for metric, text in LISTS.items() if metric in by_metric}
    values = {name: {system.get(name) for system in report.metrics.values()} for name in meanings}
    trivial = {"repeats": {0.0}, "full_lists": {1.0}}
    return {
        name: text for name, text in meanings.items() if values[name] != trivial.get(name.partition("@")[0])
    }


def _verdicts(report: EvaluationReport, baselines: list[str], metric: str) -> dict[str, list[str]]:
    """Verdict of the model, in words -> baselines."""
    phrases = {
        "better": "is better than",
        NO_DIFFERENCE: "shows no significant difference from",
        "worse": "is worse than",
    }
    named = {
        words: [name for name in baselines if report.paired(name, metric).verdict == verdict]
        for verdict, words in phrases.items()
    }
    return {words: names for words, names in named.items() if names}


class BaselineTuning(NamedTuple):
    """Tuning of a baseline: settings chosen, number of settings tried, best metrics on validation."""

    name: str
    settings: str
    num_tried: int
    validation: dict[str, float]


def _tuned(name: str, tuning: Tuning) -> BaselineTuning:
    measured = sorted({key for point in tuning.grid for key in point if "@" in key})
    settings = ", ".join(
        f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in tuning.settings.items()
    )
    best = {key: max(point[key] for point in tuning.grid if key in point) for key in measured}
    return BaselineTuning(name, settings, len(tuning.grid), best)


class GateTest(NamedTuple):
    """Gate test against the best baseline."""

    metric: str
    margin: float
    best: str | None
    paired: PairedDifference | None


def of_gate(settings: EvaluateConfig, report: EvaluationReport, published: str) -> GateTest | None:
    """Gate test against the best baseline; None where the gate is off. A published baseline is not compared with itself."""
    metric = settings.gate_metric
    if not settings.gate or metric not in report.metric_names:
        return None
    best = next(iter(report.best_baselines(metric)), None)
    paired = None if best is None or published != MODEL else report.paired(best, metric)
    return GateTest(metric, settings.gate_margin, best, paired)


class Cell(NamedTuple):
    """Metric of a system on one value of a segment."""

    value: float | None
    best: bool


class SegmentRow(NamedTuple):
    """One value of a segment: metric of each system, interval of the model."""

    value: str
    targets: int
    users: int
    cells: list[Cell]
    ends: list[float | None]


class Segment(NamedTuple):
    """One kind of segment: name, chart, and a row per value."""

    name: str
    of: str
    chart: str
    metric: str
    rows: list[SegmentRow]


def _segments(path: Path, metric: str, systems: list[str]) -> list[Segment]:
    """All kinds of segments of an evaluation."""
    if not path.exists():
        return []
    table = pl.read_parquet(path)
    return [
        Segment(
            segment.removeprefix("user:"),
            "of the user" if segment.startswith("user:") else "",
            figures.segment_chart(segment),
            metric,
            [
                _segment_row(part.filter(pl.col("value") == value), metric, systems)
                for value in part["value"].unique(maintain_order=True)
            ],
        )
        for (segment,), part in table.group_by("segment", maintain_order=True)
        if isinstance(segment, str)
    ]


def _segment_row(part: pl.DataFrame, metric: str, systems: list[str]) -> SegmentRow:
    of_system = {row["system"]: row for row in part.to_dicts()}
    values = [of_system.get(name, {}).get(metric) for name in systems]
    measured = [value for value in values if value is not None and not math.isnan(value)]
    first = part.row(0, named=True)
    return SegmentRow(
        first["value"],
        first["targets"],
        first["users"],
        [Cell(value, bool(measured) and value == max(measured)) for value in values],
        [of_system.get(MODEL, {}).get(f"{metric}_{end}") for end in ("low", "high")],
    )
