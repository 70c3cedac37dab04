"""Test targets of one kind with their ranks by every system, and counts of the events that are none."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from features.histories.numbering import ItemNumbering
from models.evaluation.beyond_accuracy import Catalogue
from models.evaluation.ranks import SystemRanks
from pipeline.config import Config
from pipeline.dataset.dataset import Dataset
from pipeline.dataset.protocol import Kind
from pipeline.dataset.targets import NO_HISTORY, RankedTargets
from pipeline.evaluation import target_words
from pipeline.evaluation.report import SecondStageGain


@dataclass(frozen=True)
class Evaluation:
    """Test targets of one kind, and their ranks by the model and the baselines."""

    dataset: Dataset
    common: ItemNumbering
    """Items of the dataset -> the ranked ones."""
    every_target: RankedTargets
    """All targets, cold ones included."""
    every_rank: Mapping[str, SystemRanks]
    targets: RankedTargets
    """Targets that the metrics average over."""
    ranked: Mapping[str, SystemRanks]
    catalogue: Catalogue
    ranker: SecondStageGain


def left_out_of(config: Config, targets: RankedTargets, kind: Kind) -> dict[str, int]:
    """Counts of test events outside the metrics, by reason; of nights `no_history` counts user-nights."""
    settings, cold = config.evaluate, targets.num_cold
    included = {
        "no_history": settings.cold_users,
        "unknown_item": settings.cold_items or target_words.is_nightly(kind),
    }
    if target_words.is_nightly(kind):
        cold["no_history"] = len(np.unique(targets.request[targets.cold == NO_HISTORY]))
    return targets.left_out | {reason: 0 if included[reason] else count for reason, count in cold.items()}
