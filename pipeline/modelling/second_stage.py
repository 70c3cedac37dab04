"""The ranker behind the retriever: opened from stage rank for whichever encoder retrieves, and held against retrieval alone."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from models import checkpoint
from models.device import pick_device
from models.histories import Histories, Int32
from models.ranking.features import ItemStatistics
from models.ranking.ranker import SecondStage
from pipeline.artifacts.files import read_json
from pipeline.config import Config
from pipeline.dataset import item_features
from pipeline.dataset.dataset import former_numbers

if TYPE_CHECKING:
    from pipeline.config import Config

RETRIEVAL, TWO_STAGE = "retrieval", "two_stage"
DESCRIPTION = "ranker.json"


def is_timed(config: "Config") -> bool:
    """Whether the log has times, and not only an order."""
    return config.events.timestamp_unit != "position"


def statistics(
    config: "Config", features: Path, training: Histories, mapping: Int32, days: float | None = None
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
    config: "Config", features: Path, rank: Path, training: Histories, mapping: Int32
) -> SecondStage | None:
    """The second stage for the encoder that learned from the given rows; None where stage rank trained no ranker."""
    if not trained(rank):
        return None
    ranker = checkpoint.load_ranker(rank, pick_device())
    return SecondStage(ranker, statistics(config, features, training, mapping), own_numbers(rank, mapping))
