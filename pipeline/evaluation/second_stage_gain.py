"""The second stage against retrieval alone, on the same targets."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from models.evaluation import metrics
from models.evaluation.comparison import SystemComparison
from models.evaluation.ranks import SystemRanks
from models.settings.ranker import RankerUse
from pipeline.artifacts.files import read_json
from pipeline.config import Config
from pipeline.dataset.targets import RankedTargets
from pipeline.evaluation.metrics_report import MetricSettings
from pipeline.evaluation.report import SecondStageGain
from pipeline.modelling.ranker_columns import ColumnFigures
from pipeline.modelling.second_stage import DESCRIPTION, RETRIEVAL, TWO_STAGE


def compare_with_retrieval(
    ranked: Mapping[str, SystemRanks],
    targets: RankedTargets,
    settings: MetricSettings,
    use: RankerUse,
    metric: str,
) -> SecondStageGain:
    """Compare both stages with retrieval alone on the same targets, and decide which of them to use.

    `ranked` has `RETRIEVAL` and `TWO_STAGE`. auto: both stages where the interval of the difference in `metric` lies above 0.
    """
    values = {
        name: metrics.metrics_of_ranks(ranks.rank, settings.ks, targets.request, targets.num_requests)
        for name, ranks in ranked.items()
    }
    systems = SystemComparison.of(values.items(), targets.user, settings.resamples, settings.seed)
    paired = systems.paired(TWO_STAGE, RETRIEVAL)
    gain = paired[metric]
    better = "better" if gain.low > 0 else "not shown to be better"
    interval = f"{metric} {gain.difference:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}]"
    return SecondStageGain(
        use == "always" or gain.low > 0,
        use,
        f"two stages are {better} than retrieval alone: {interval}",
        {name: systems.values(name) for name in systems.systems},
        {name: systems.intervals(name) for name in systems.systems},
        paired,
    )


def decide(
    config: Config, rank: Path, stages: Mapping[str, SystemRanks], targets: RankedTargets
) -> SecondStageGain:
    """Decision on the second stage, by its difference from retrieval alone on the targets; rank: artifact of stage rank."""
    if TWO_STAGE not in stages:
        reason = read_json(rank / DESCRIPTION)["reason"]
        return SecondStageGain(False, config.ranker.use, reason)
    settings = MetricSettings(tuple(config.evaluate.k), config.evaluate.resamples, config.seed)
    metric = f"ndcg@{settings.list_length}"
    gain = compare_with_retrieval(stages, targets, settings, config.ranker.use, metric)
    columns = ColumnFigures.of_file(rank / DESCRIPTION)
    return gain if columns is None else replace(gain, reason=f"{gain.reason}; {columns.sentence}")
