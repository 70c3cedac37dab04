"""Ranking of held-out targets by several systems, in parts that fit into memory."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from models.baselines.popularity import Popularity
from models.encoder.encoder import AttentionRecommender
from models.evaluation.ranks import ColdStart, SystemRanks, rank_targets
from models.histories import Histories
from models.ranking.two_stage import TwoStage
from models.recommender import Recommender
from pipeline.config import Config
from pipeline.dataset.targets import RankedTargets


@dataclass(frozen=True)
class Part:
    """Training rows of a baseline and the targets that it ranks, in the training rows' numbering."""

    training: Histories
    targets: RankedTargets
    num_items: int


def rank_all(system: Recommender, part: Part, config: Config, *, exclude_seen: bool) -> SystemRanks:
    """Rank the targets by a system; an encoder ranks targets without a history by popularity, as in scoring.

    Targets on items unknown to every system, by training and by content, are ranked only with `evaluate.cold_items`.
    """
    if isinstance(system, AttentionRecommender | TwoStage):
        system = ColdStart(system, Popularity.fit(part.training, part.num_items))
    targets = part.targets
    ranked = (targets.item > 0) | config.evaluate.cold_items
    length = list_length(config)
    some = rank_targets(
        system,
        targets.histories.select(ranked),
        targets.item[ranked],
        length,
        exclude_seen=exclude_seen,
    )
    rank = np.full(len(targets), np.inf)
    pessimistic, lists = rank.copy(), np.zeros((len(targets), length), np.int32)
    rank[ranked], pessimistic[ranked], lists[ranked] = some.rank, some.pessimistic, some.lists
    return SystemRanks(rank, pessimistic, lists)


def list_length(config: Config) -> int:
    """List length of metrics of lists: the shortest of `evaluate.k`."""
    return min(config.evaluate.k)


def load(folder: Path, name: str) -> SystemRanks:
    """Read a baseline's ranks of the test targets."""
    table = pl.read_parquet(folder / "systems" / f"{name}.parquet")
    return SystemRanks(
        table["rank"].to_numpy(), table["pessimistic_rank"].to_numpy(), table["recommended"].to_numpy()
    )
