"""Probabilities of delivered items at the nights of the test, against what was taken."""

from pathlib import Path

from models.ranking.calibration import Calibration, Delivered
from models.ranking.calibration_quality import CalibrationQuality, quality
from pipeline.artifacts.files import read_json
from pipeline.config import Config
from pipeline.evaluation import ranking
from pipeline.evaluation.held_out_candidates import HeldOutCandidates
from pipeline.modelling.second_stage import DESCRIPTION


def measure(config: Config, candidates: HeldOutCandidates | None, rank: Path) -> CalibrationQuality | None:
    """Quality of the ranker's probabilities over the first `min(evaluate.k)` places of all lists, those of idle users included.

    None without candidates of nights. rank: artifact of stage rank, with the calibration.
    """
    if candidates is None or candidates.retrieved.night is None:
        return None
    calibration = Calibration.of_dict(read_json(rank / DESCRIPTION)["calibration"])
    delivered = Delivered.of(
        candidates.stage,
        candidates.retrieved,
        ranking.list_length(config),
        calibration.days,
        candidates.score,
    )
    return quality(calibration(delivered.score, delivered.activity), delivered.taken)
