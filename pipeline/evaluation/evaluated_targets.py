"""Test targets of one kind with their ranks by every system, checks for leaks, and counts of the events that are none."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from features.histories.numbering import ItemNumbering
from models.baselines.base import FittedOn
from models.evaluation.beyond_accuracy import Catalogue
from models.evaluation.ranks import SystemRanks
from pipeline.artifacts.files import read_json
from pipeline.config import Config
from pipeline.dataset.dataset import Dataset
from pipeline.dataset.leak_checks import check_systems
from pipeline.dataset.protocol import Kind
from pipeline.dataset.targets import NO_HISTORY, RankedTargets
from pipeline.evaluation import target_words
from pipeline.evaluation.report import SecondStageGain
from pipeline.modelling.training_facts import TrainingFacts
from pipeline.sections import MODEL

CHECKED = [
    "order of every history",
    "boundaries of the parts",
    "events that each system was fitted on",
    "history of every target",
]
"""Leak checks that every evaluation passes."""


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


def check_fitted_systems(config: Config, dataset: Dataset, train: Path, baselines: Path) -> None:
    """Raise LeakError where a history is out of order, the parts overlap, or a system was fitted on other events.

    train, baselines: artifacts of these stages.
    """
    trained_on = TrainingFacts.load(train).fitted_on
    assert trained_on is not None
    fitted = {MODEL: trained_on} | {
        name: FittedOn(**facts["fitted_on"])
        for name, facts in read_json(baselines / "baselines.json")["systems"].items()
    }
    check_systems(fitted, dataset, with_validation=config.train.refit_validation, reading_dislikes=MODEL)


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
