"""The ranker in a bundle: its files, written by publish and opened by what recommends."""

import shutil
from pathlib import Path

import numpy as np
import torch

from models import checkpoint
from models.histories import Int32
from models.ranking.calibration import Calibration
from models.ranking.features import ItemStatistics
from models.ranking.ranker import SecondStage
from pipeline.artifacts.files import read_json
from pipeline.modelling.second_stage import DESCRIPTION

FOLDER, STATISTICS, OWN = "ranker", "statistics", "ranker_items.npy"
"""In a bundle: of the ranker; in the folders of its encoders: what is known of their items, and the ranker's numbers of them."""
HORIZON_DAYS = 90.0
"""Days before the last event within which a bundle knows when items were met, and not only how often."""


def write(folder: Path, rank: Path) -> None:
    """Copy the ranker of an artifact of stage rank, and its calibration, into a folder of a bundle."""
    folder.mkdir()
    for name in (checkpoint.RANKER_WEIGHTS, checkpoint.RANKER_CONFIG, DESCRIPTION):
        shutil.copyfile(rank / name, folder / name)


def write_knowledge(folder: Path, known: ItemStatistics, own: Int32) -> None:
    """Write what a ranker knows of the items of the encoder in the same folder of a bundle."""
    (folder / STATISTICS).mkdir()
    known.save(folder / STATISTICS)
    np.save(folder / OWN, own, allow_pickle=False)


def of_bundle(bundle: Path, which: str, device: str | torch.device = "cpu") -> SecondStage | None:
    """The second stage behind the `deployed` or `evaluated` encoder of a bundle; None where it has none."""
    if not (bundle / FOLDER).exists():
        return None
    ranker = checkpoint.load_ranker(bundle / FOLDER, device)
    return SecondStage(
        ranker, ItemStatistics.load(bundle / which / STATISTICS), np.load(bundle / which / OWN)
    )


def calibration_of(bundle: Path) -> Calibration:
    """What turns the scores of a bundle's ranker into probabilities."""
    points = read_json(bundle / FOLDER / DESCRIPTION)["calibration"]
    return Calibration(np.array(points["score"]), np.array(points["probability"]))
