"""Tables of an evaluation in the report, from metrics.json and the files beside it."""

import math
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from models.evaluation.bootstrap import NO_DIFFERENCE, PairedDifference
from pipeline.artifacts.files import read_json
from pipeline.evaluation.report import EvaluationReport, Tuning
from pipeline.reporting import charts, figures
from pipeline.sections import MODEL, EvaluateConfig

ACCURACY = ("ndcg", "hit_rate", "mrr", "user_ndcg")
"""Metrics of the targets' ranks in the report's first table, at the shortest list length; NDCG also at the longest."""
LISTS = {
    "coverage": "share of the catalogue in at least one list",
    "gini": "how unevenly items are recommended: 0 all alike, 1 one alone",
    "novelty": "mean -log2 of an item's share of the training events, in bits",
    "popularity_share": "share of recommended items among the most popular tenth",
    "diversity": "mean distance of two items of a list by their content",
    "calibration": "distance of a list's categories from the history's, in nats: 0 is as varied as the user",
    "serendipity": "share of targets hit that the most popular items would have missed",
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


def of_evaluation(judged: EvaluationReport, evaluate: Path) -> Row:
    """Values for the template, from metrics.json and the files beside it."""
    accuracy = _metrics_shown(judged)
    systems = [MODEL, *judged.best_baselines(accuracy[0])]
    diagnosed = evaluate / charts.DIAGNOSTICS
    return {
        "judged": judged,
        "model": MODEL,
        "baselines": systems[1:],
        "headline": accuracy,
        "of_lists": _list_metrics(judged),
        "with_p": any(
            paired.p_holm is not None
            for metrics in judged.differences.values()
            for paired in metrics.values()
        ),
        "leaks_say": LEAKS,
        "verdicts": _verdicts(judged, systems[1:], accuracy[0]),
        "tuned": [_tuned(name, judged.tuning[name]) for name in systems if name in judged.tuning],
        "segments": _segments(evaluate / "segments.parquet", accuracy[0], systems),
        "diagnosed": read_json(diagnosed) if diagnosed.exists() else {},
    }


def _metrics_shown(judged: EvaluationReport) -> list[str]:
    """The metrics of the first table: at the shortest list length, NDCG also at the longest."""
    lengths = judged.list_lengths
    wanted = [f"{metric}@{lengths[0]}" for metric in ACCURACY]
    wanted.insert(3, f"ndcg@{lengths[-1]}")
    return [name for name in dict.fromkeys(wanted) if name in judged.metric_names]


def _list_metrics(judged: EvaluationReport) -> dict[str, str]:
    """Metrics of the second table and their meaning: the defined ones that are not constant by construction."""
    by_metric = {name.partition("@")[0]: name for name in judged.metric_names}
    meanings = {by_metric[metric]: text for metric, text in LISTS.items() if metric in by_metric}
    values = {name: {system.get(name) for system in judged.metrics.values()} for name in meanings}
    trivial = {"repeats": {0.0}, "full_lists": {1.0}}
    return {
        name: text for name, text in meanings.items() if values[name] != trivial.get(name.partition("@")[0])
    }


def _verdicts(judged: EvaluationReport, baselines: list[str], metric: str) -> dict[str, list[str]]:
    """Baselines that the model is better than, not significantly different from, and worse than."""
    phrases = {
        "better": "is better than",
        NO_DIFFERENCE: "shows no significant difference from",
        "worse": "is worse than",
    }
    named = {
        words: [name for name in baselines if judged.paired(name, metric).verdict == verdict]
        for verdict, words in phrases.items()
    }
    return {words: names for words, names in named.items() if names}


class BaselineTuning(NamedTuple):
    """Tuning of a baseline: the settings chosen, how many were tried, and their best metrics on validation."""

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
    """The gate's test against the best baseline on its metric."""

    metric: str
    margin: float
    best: str | None
    paired: PairedDifference | None


def of_gate(settings: EvaluateConfig, judged: EvaluationReport) -> GateTest | None:
    """The gate's test against the best baseline; None where it is off."""
    metric = settings.gate_metric
    if not settings.gate or metric not in judged.metric_names:
        return None
    best = next(iter(judged.best_baselines(metric)), None)
    paired = None if best is None else judged.paired(best, metric)
    return GateTest(metric, settings.gate_margin, best, paired)


class Cell(NamedTuple):
    """A system's metric on one value of a segment."""

    value: float | None
    best: bool


class SegmentRow(NamedTuple):
    """One value of a segment: the metric of each system, and the model's interval."""

    value: str
    targets: int
    users: int
    cells: list[Cell]
    ends: list[float | None]


class Segment(NamedTuple):
    """One kind of segment: its name, its chart, and a row per value."""

    name: str
    of: str
    chart: str
    metric: str
    rows: list[SegmentRow]


def _segments(path: Path, metric: str, systems: list[str]) -> list[Segment]:
    """Every kind of segment of an evaluation."""
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
