"""Ranker of stage rank behind any retrieving encoder."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from features.histories.numbering import ItemNumbering
from models import checkpoint
from models.device import pick_device
from models.histories import Histories
from models.ranking.features import ItemStatistics
from models.ranking.ranker import SecondStage
from pipeline.artifacts.files import read_json
from pipeline.dataset import item_features
from pipeline.dataset.dataset import Dataset
from pipeline.modelling import context_counts, ranker_columns

if TYPE_CHECKING:
    from pipeline.config import Config

RETRIEVAL, TWO_STAGE = "retrieval", "two_stage"
DESCRIPTION = "ranker.json"
BY_TIMES_SHOWN = "by_times_shown"
"""Entry of the description where the ranker reads exposures: mean probability of items shown 0, 1, 2 … times in vain."""


def is_timed(config: "Config") -> bool:
    """Whether the log has times, not only an order."""
    return config.events.timestamp_unit != "position"


def statistics(
    config: "Config",
    dataset: Dataset,
    training: Histories,
    numbering: ItemNumbering,
    days: float | None = None,
) -> ItemStatistics:
    """Item statistics over a retriever's training rows, in its numbering.

    `numbering`: items of the dataset -> the retriever's; `days`: as in `ItemStatistics.of`.
    """
    content = item_features.of_ranker(dataset, numbering)
    return ItemStatistics.of(training, numbering.num_items, content, timed=is_timed(config), days=days)


def trained(rank: Path) -> bool:
    """Whether an artifact of stage rank has a ranker."""
    return bool(read_json(rank / DESCRIPTION)["trained"])


def ranker_numbering(rank: Path, numbering: ItemNumbering) -> ItemNumbering:
    """Numbering from a retriever's items to the ranker's. `numbering`: items of the dataset -> the retriever's."""
    return numbering.inverse().compose(ItemNumbering.load(rank / "items.npy"))


def opened(
    config: "Config",
    dataset: Dataset,
    artifacts: Mapping[str, Path],
    training: Histories,
    numbering: ItemNumbering,
) -> SecondStage | None:
    """Second stage behind the encoder that learned from `training`; None where stage rank trained no ranker.

    artifacts: folders of the stages ingest and rank, by name.
    """
    rank = artifacts["rank"]
    if not trained(rank):
        return None
    ranker = checkpoint.load_ranker(rank, pick_device())
    own = ranker_numbering(rank, numbering).new
    ends = context_counts.training_ends(dataset, with_validation=config.train.refit_validation)
    columns = ranker_columns.tables_of(rank, artifacts["ingest"], dataset, numbering, ends)
    return SecondStage(ranker, statistics(config, dataset, training, numbering), own, columns)
