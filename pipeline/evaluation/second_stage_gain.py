"""The second stage against retrieval alone, on the same targets."""

from collections.abc import Mapping
from typing import Any

from models.evaluation import metrics
from models.evaluation.comparison import Judgement
from models.evaluation.ranks import SystemRanks
from models.settings.ranker import RankerUse
from pipeline.dataset.targets import RankedTargets
from pipeline.evaluation.metrics_report import Judging
from pipeline.modelling.second_stage import RETRIEVAL, TWO_STAGE


def compared(
    ranked: Mapping[str, SystemRanks], targets: RankedTargets, judging: Judging, use: RankerUse, metric: str
) -> dict[str, Any]:
    """Retrieval alone and both stages on the same targets, their paired difference, and which of them is to be used.

    `ranked` has `RETRIEVAL` and `TWO_STAGE`. auto: both stages where the interval of the difference in `metric` lies above 0.
    """
    values = {name: metrics.metrics_of_ranks(each.rank, judging.ks) for name, each in ranked.items()}
    judged = Judgement.of(values.items(), targets.user, judging.resamples, judging.seed)
    paired = judged.paired(TWO_STAGE, RETRIEVAL)
    found = paired[metric]
    used = use == "always" or found["low"] > 0
    interval = f"{metric} {found['difference']:+.4f} [{found['low']:+.4f}, {found['high']:+.4f}]"
    better = "better" if found["low"] > 0 else "not shown to be better"
    return {
        "used": used,
        "setting": use,
        "reason": f"two stages are {better} than retrieval alone: {interval}",
        "metrics": {name: judged.values(name) for name in judged.systems},
        "intervals": {name: judged.intervals(name) for name in judged.systems},
        "paired": paired,
    }
