"""The ranker behind the retriever: opened from stage rank for whichever encoder retrieves, and held against retrieval alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from models import checkpoint
from models.device import pick_device
from models.evaluation import metrics
from models.evaluation.comparison import SystemComparison
from models.evaluation.ranks import SystemRanks
from models.histories import Histories, Int32
from models.ranking.features import ItemStatistics
from models.ranking.ranker import SecondStage
from models.settings.ranker import RankerUse
from pipeline.artifacts.store import read_json
from pipeline.config import Config
from pipeline.dataset import item_features
from pipeline.dataset.targets import RankedTargets
from pipeline.evaluation.metrics_report import Judging
from pipeline.serving.bundle_ranker import DESCRIPTION
from pipeline.stages.train import former_numbers

RETRIEVAL, TWO_STAGE = "retrieval", "two_stage"


def is_timed(config: Config) -> bool:
    """Whether the log has times, and not only an order."""
    return config.events.timestamp_unit != "position"


def statistics(
    config: Config, features: Path, training: Histories, mapping: Int32, days: float | None = None
) -> ItemStatistics:
    """What the rows that a retriever learned from, in its numbering, say about items.

    `mapping` [num_items + 1]: the retriever's number of each item of the features folder; `days`: as in `ItemStatistics.of`.
    """
    content = item_features.of_ranker(features, mapping)
    return ItemStatistics.of(training, int(mapping.max()), content, timed=is_timed(config), days=days)


def trained(rank: Path) -> bool:
    """Whether an artifact of stage rank has a ranker."""
    return bool(read_json(rank / DESCRIPTION)["trained"])


def own_numbers(rank: Path, mapping: Int32) -> Int32:
    """[retriever's num_items + 1] the ranker's number of each item, 0 where it knows none."""
    return former_numbers(np.load(rank / "items.npy"), mapping)


def opened(
    config: Config, features: Path, rank: Path, training: Histories, mapping: Int32
) -> SecondStage | None:
    """The second stage for the encoder that learned from the given rows; None where stage rank trained no ranker."""
    if not trained(rank):
        return None
    ranker = checkpoint.load_ranker(rank, pick_device())
    return SecondStage(ranker, statistics(config, features, training, mapping), own_numbers(rank, mapping))


def compared(
    ranked: Mapping[str, SystemRanks], targets: RankedTargets, judging: Judging, use: RankerUse, metric: str
) -> dict[str, Any]:
    """Retrieval alone and both stages on the same targets, their paired difference, and which of them is to be used.

    `ranked` has `RETRIEVAL` and `TWO_STAGE`. auto: both stages where the interval of the difference in `metric` lies above 0.
    """
    values = {name: metrics.metrics_of_ranks(each.rank, judging.ks) for name, each in ranked.items()}
    judged = SystemComparison.of(values.items(), targets.user, judging.resamples, judging.seed)
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
