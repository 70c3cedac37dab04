"""Ranking of held-out targets by several systems, in parts that fit into memory."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from features.histories.numbering import ItemNumbering
from models.baselines.popularity import Popularity
from models.encoder.encoder import AttentionRecommender
from models.evaluation.ranks import ColdStart, Renumbered, SystemRanks, WithoutDislikes, rank_targets
from models.histories import Histories
from models.ranking.two_stage import TwoStage
from models.recommender import Recommender
from pipeline.config import Config
from pipeline.dataset.dataset import Dataset, rows
from pipeline.dataset.protocol import first_at
from pipeline.dataset.targets import RankedTargets

ENDINGS = (".lists.npy", ".parquet")
"""Endings of the files of a system's ranks."""
FitAsOf = Callable[[Histories, int], Recommender]
"""Fits a system on rows of items 1..n."""


@dataclass(frozen=True)
class Part:
    """Training rows of the learned systems, and the targets that every system ranks."""

    training: Histories
    """In the numbering `learned`."""
    learned: ItemNumbering
    """Items of the dataset -> those that learned systems know."""
    targets: RankedTargets
    """In the numbering `common`."""
    common: ItemNumbering
    """Items of the dataset -> those that are ranked."""


def rank_all(
    system: Recommender,
    part: Part,
    config: Config,
    *,
    exclude_seen: bool,
    own: ItemNumbering | None = None,
    with_lists: bool = True,
) -> SystemRanks:
    """Rank the targets by a system; an encoder ranks requests without a history by popularity, as in scoring, and any other
    reads histories without dislikes. Without a target there are lists of the requests alone.

    `own`: items of the dataset -> the system's, by default `part.learned`. Targets on items unknown to every system, by training
    and by content, are ranked only with `evaluate.cold_items`. Without `with_lists` the lists are of no items.
    """
    own = part.learned if own is None else own
    if isinstance(system, AttentionRecommender | TwoStage):
        known = part.learned.inverse().compose(own).new
        counted = part.training.without_dislikes().translate(known)
        system = ColdStart(system, Popularity.fit(counted, system.num_items))
    else:
        system = WithoutDislikes(system)
    numbers = part.common.inverse().compose(own).new
    if not np.array_equal(numbers, np.arange(system.num_items + 1)):
        system = Renumbered(system, numbers)
    return _ranked(system, part.targets, config, exclude_seen=exclude_seen, with_lists=with_lists)


def rank_nightly(
    fit: FitAsOf,
    part: Part,
    dataset: Dataset,
    config: Config,
    *,
    exclude_seen: bool,
    with_lists: bool = True,
) -> SystemRanks:
    """Rank the targets of each night by a system fitted on all events before it, and reading histories, without dislikes.

    `with_lists` as in `rank_all`.
    """
    ranked = []
    starts = np.asarray(dataset.histories.offsets[:-1])
    for moment in np.unique(part.targets.moment).tolist():
        before = rows(dataset.histories, starts, first_at(dataset, moment)).without_dislikes()
        targets = part.targets.of_requests(part.targets.moment == moment)
        system = WithoutDislikes(fit(before.translate(part.common.new), part.common.num_items))
        ranked.append(_ranked(system, targets, config, exclude_seen=exclude_seen, with_lists=with_lists))
    return SystemRanks(
        np.concatenate([ranks.rank for ranks in ranked]),
        np.concatenate([ranks.pessimistic for ranks in ranked]),
        np.concatenate([ranks.lists for ranks in ranked]),
    )


def _ranked(
    system: Recommender, targets: RankedTargets, config: Config, *, exclude_seen: bool, with_lists: bool
) -> SystemRanks:
    length = list_length(config) if with_lists else 0
    if not len(targets):
        lists, _ = system.recommend(targets.histories, length, exclude_seen)
        return SystemRanks(np.zeros(0), np.zeros(0), lists)
    rank = np.full(len(targets), np.inf)
    pessimistic, lists = rank.copy(), np.zeros((targets.num_requests, length), np.int32)
    ranked: NDArray[np.bool_] = (targets.item > 0) | config.evaluate.cold_items
    requests = np.bincount(targets.request[ranked], minlength=targets.num_requests) > 0
    chosen = targets.select(ranked)
    some = rank_targets(
        system,
        chosen.histories,
        chosen.item,
        length,
        exclude_seen=exclude_seen,
        request=chosen.request,
    )
    rank[ranked], pessimistic[ranked], lists[requests] = some.rank, some.pessimistic, some.lists
    return SystemRanks(rank, pessimistic, lists)


def list_length(config: Config) -> int:
    """List length of metrics of lists: the shortest of `evaluate.k`."""
    return min(config.evaluate.k)


def save(ranked: SystemRanks, folder: Path, name: str) -> None:
    """Write NAME.lists.npy, then NAME.parquet with the ranks of the targets."""
    np.save(folder / f"{name}.lists.npy", ranked.lists, allow_pickle=False)
    aside = folder / f"{name}.part"
    pl.DataFrame({"rank": ranked.rank, "pessimistic_rank": ranked.pessimistic}).write_parquet(aside)
    aside.replace(folder / f"{name}.parquet")


def load(folder: Path, name: str) -> SystemRanks:
    """Read a system's ranks and lists."""
    table = pl.read_parquet(folder / f"{name}.parquet")
    return SystemRanks(
        table["rank"].to_numpy(), table["pessimistic_rank"].to_numpy(), np.load(folder / f"{name}.lists.npy")
    )
