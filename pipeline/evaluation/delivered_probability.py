"""Probabilities of delivered items at the nights of the test, against what was taken."""

from pathlib import Path

from features.histories.numbering import ItemNumbering
from models.ranking.calibration import Calibration, Delivered
from models.ranking.calibration_quality import CalibrationQuality, quality
from models.ranking.training import Retrieved
from models.ranking.two_stage import TwoStage
from pipeline.artifacts.files import read_json
from pipeline.config import Config
from pipeline.dataset.dataset import Dataset
from pipeline.dataset.evaluation_targets import targets_of
from pipeline.dataset.protocol import Protocol
from pipeline.evaluation import ranking
from pipeline.modelling.second_stage import DESCRIPTION

MAX_LISTS = 20_000
"""Lists measured, a sample of the user-nights."""


def measure(
    config: Config, dataset: Dataset, both: tuple[TwoStage, ItemNumbering] | None, rank: Path
) -> CalibrationQuality | None:
    """Quality of the ranker's probabilities over the first `min(evaluate.k)` places of all lists, those of idle users included.

    None without nights or a system. `both`: the system, and items of the dataset -> its own; rank: artifact of stage rank, with
    the calibration.
    """
    if both is None or Protocol.of(config, dataset).headline != "nightly":
        return None
    system, numbering = both
    targets = targets_of(config, dataset, "test", numbering, with_idle=True, kind="nightly")
    targets = targets.of_requests(targets.histories.lengths > 0).sample(MAX_LISTS, config.seed)
    items, scores = system.candidates(targets.histories)
    lists = targets.histories, items, scores
    retrieved = Retrieved.of(*lists, targets.item, targets.request, targets.user, targets.moment)
    calibration = Calibration.of_dict(read_json(rank / DESCRIPTION)["calibration"])
    delivered = Delivered.of(system.stage, retrieved, ranking.list_length(config), calibration.days)
    return quality(calibration(delivered.score, delivered.activity), delivered.taken)
