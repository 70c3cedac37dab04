"""Arms of an experiment: each user's list by the system of the user's arm, in one pass over all users."""

import dataclasses
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from models.histories import Int64
from models.recommendation.answer import Run
from pipeline.serving import output_table
from pipeline.serving.assignment import Assignment
from pipeline.serving.batch import Scorer
from pipeline.serving.shadows import counting
from pipeline.serving.shards import Batch

ARM = "arm"
"""Column of the recommendations; with the arm's name, count of its users."""


@dataclass(frozen=True)
class Arm:
    """System of an arm."""

    bundle: Path | None
    """Folder of its bundle; None for a counting baseline"""
    settings: Mapping[str, float | int] = field(default_factory=dict)
    """Of a counting baseline"""


@dataclass(frozen=True)
class Arms:
    """Systems of all arms by name, and the assignment of users to them."""

    assignment: Assignment
    systems: Mapping[str, Arm]


@dataclass(frozen=True)
class ArmScorer(Scorer):
    """Scorer of `score.model` whose users are scored by arm; all arms score with the same settings."""

    arms: Arms
    scorers: Mapping[str, Scorer]
    arm: Int64
    """[users] position in `scorers`"""

    @classmethod
    def of(cls, scorer: Scorer, arms: Arms) -> "ArmScorer":
        """Open the arms beside the scorer of `score.model`. Raises LookbackError where a bundle is unusable."""
        own = {part.name: getattr(scorer, part.name) for part in dataclasses.fields(Scorer)}
        scorers = {name: _opened(scorer, name, arm) for name, arm in arms.systems.items()}
        return cls(**own, arms=arms, scorers=scorers, arm=arms.assignment.of(scorer.users.ids))

    @property
    def schema(self) -> pa.Schema:
        """Arrow schema of a shard, with the column `arm`."""
        return super().schema.append(pa.field(ARM, pa.string()))

    def batch(self, users: Int64, run: Run = map) -> Batch:
        """Lists of users in their order, and counts with those of `arm NAME`."""
        parts, counts, rows = [], Counter[str](), np.zeros(len(users), np.int64)
        for code, (name, scorer) in enumerate(self.scorers.items()):
            own = users[self.arm[users] == code]
            if not len(own):
                continue
            lists = scorer.batch(own, run)
            table = lists.table.append_column(ARM, pa.repeat(name, len(lists.table)))
            parts.append(output_table.fitted(table, self.schema))
            rows[self.arm[users] == code] = lists.rows
            counts.update(lists.counts)
            counts[f"{ARM} {name}"] = len(own)
        order = [("user_id", "ascending"), ("rank", "ascending")]
        return Batch(pa.concat_tables(parts).sort_by(order), rows, dict(counts))


def _opened(scorer: Scorer, name: str, arm: Arm) -> Scorer:
    """Scorer of one arm, of the same users; that of `score.model` where the bundle is the same."""
    if arm.bundle is None:
        return counting(scorer, name, arm.settings, scorer.job)
    if arm.bundle == scorer.job.bundle:
        return scorer
    return Scorer.open(replace(scorer.job, bundle=arm.bundle))
