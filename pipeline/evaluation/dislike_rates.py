"""Dislike rate: share of the held-out dislikes that a list would have shown."""

from collections.abc import Mapping
from dataclasses import replace

from models.evaluation import metrics
from models.evaluation.comparison import SystemComparison
from models.evaluation.ranks import SystemRanks
from pipeline.dataset.targets import RankedTargets
from pipeline.evaluation.metrics_report import MetricSettings, with_metrics
from pipeline.evaluation.report import EvaluationReport, HeldOutDislikes

FILE = "dislikes.parquet"
TAG = "lookback.dislikes"
"""Tag of an evaluation's run with the number of dislikes of its rates."""
SUFFIX = "_dislikes"
"""Ending of the folder of ranks of a kind's dislikes, after the kind of targets."""


def compute(
    ranked: Mapping[str, SystemRanks], dislikes: RankedTargets, settings: MetricSettings
) -> SystemComparison:
    """`dislike_rate@k` of every system, resampled together: the mean over dislikes of 1 where the rank is at most k, else 0."""
    values = (
        (name, {f"dislike_rate@{k}": metrics.hit_rate(ranks.rank, k) for k in settings.ks})
        for name, ranks in ranked.items()
    )
    return SystemComparison.of(values, dislikes.user_of_target, settings.resamples, settings.seed)


def with_rates(
    report: EvaluationReport, systems: SystemComparison, left_out: Mapping[str, int]
) -> EvaluationReport:
    """The report with the rates of its systems beside their metrics. left_out: reason -> dislikes outside the rates."""
    held_out = HeldOutDislikes(systems.num_targets, systems.num_users, left_out)
    return replace(with_metrics(report, systems), dislikes=held_out)
