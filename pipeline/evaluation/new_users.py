"""Users without a history at a night: evaluated on the popular items that scoring recommends to them then."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from features.histories.numbering import ItemNumbering
from models.baselines import popularity
from models.evaluation.ranks import SystemRanks, rank_targets
from pipeline.config import Config
from pipeline.dataset.dataset import Dataset
from pipeline.dataset.targets import RankedTargets
from pipeline.serving import popularity_fallback
from pipeline.serving.popularity_fallback import Popularity
from pipeline.serving.request import Request


@dataclass(frozen=True)
class NewUsers:
    """Popularity fallback of scoring, as of any night."""

    dataset: Dataset
    segment: pl.Series | None
    """[num_users], null where unknown; None without a segment column"""
    days: float
    """Days of recent popularity."""

    @classmethod
    def of(cls, config: Config, dataset: Dataset, ingest: Path, days: float) -> "NewUsers":
        """Fallback of a configuration; ingest: folder with the users' table, if there is one."""
        users = ingest / "users.parquet"
        column = popularity_fallback.segment_column(config, users)
        ids = dataset.users["user_id"]
        segment = None if column is None else popularity_fallback.segment_of(users, column, ids)
        return cls(dataset, segment, days)

    def ranked(
        self, ranks: SystemRanks, targets: RankedTargets, common: ItemNumbering, own: ItemNumbering
    ) -> SystemRanks:
        """Ranks of a system's targets, with those of requests without an item that it knows by the fallback.

        targets: of nights, in the numbering `common`; `own`: items of the dataset -> the system's, whose order decides between
        equally popular ones.
        """
        known = targets.translate(common.inverse().compose(own).new)
        is_new = known.histories.lengths == 0
        rank, pessimistic, lists = ranks.rank.copy(), ranks.pessimistic.copy(), ranks.lists.copy()
        names = own.inverse().compose(common).new
        for moment in np.unique(known.moment[is_new]).tolist():
            popular = self._at(moment, own)
            code = np.zeros(known.num_requests, np.int64)
            if self.segment is not None:
                code = popular.codes(self.segment.gather(known.user))
            for row in np.unique(code[is_new & (known.moment == moment)]).tolist():
                requests = is_new & (known.moment == moment) & (code == row)
                part = known.of_requests(requests)
                some = rank_targets(
                    popularity.Popularity(popular.scores[row]),
                    part.histories,
                    part.item,
                    lists.shape[1],
                    exclude_seen=False,
                    request=part.request,
                )
                chosen = requests[known.request]
                rank[chosen], pessimistic[chosen] = some.rank, some.pessimistic
                lists[requests] = names[some.lists]
        return SystemRanks(rank, pessimistic, lists)

    def _at(self, moment: int, own: ItemNumbering) -> Popularity:
        """Popularity as of a night."""
        _, popular = popularity_fallback.counted_until(
            Request(moment, moment),
            self.dataset.histories,
            own.new,
            own.num_items,
            self.segment,
            self.days,
        )
        return popular
