"""Evaluated weights of a bundle, or its baseline on the training events, for the gate."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from features.histories.vocabulary import Vocabulary
from models import checkpoint
from models.baselines.base import Baseline
from models.encoder.encoder import AttentionRecommender
from models.evaluation.ranks import WithoutDislikes
from models.histories import Histories, Int64
from models.ranking.ranker import SecondStage
from models.ranking.two_stage import TwoStage
from models.recommender import Recommender
from pipeline.dataset.dataset import Dataset
from pipeline.errors import DamagedArtifact
from pipeline.serving import bundle_baseline, bundle_ranker
from pipeline.serving.bundle import COMPARABLE_FORMATS, FULL, read_description, translation, type_translation

NEVER = int(np.iinfo(np.int64).min)
"""Time before all events."""


@dataclass(frozen=True)
class EvaluatedModel:
    """Evaluated weights of a bundle, and the end of their training data; item indices are their own numbering."""

    recommender: AttentionRecommender | Baseline
    items: Vocabulary
    event_types: list[str]
    features: str
    """Fingerprint of the features artifact they were trained and evaluated on."""
    trained_until: int | None
    """Start of the test part (temporal), microseconds since the epoch; every earlier event trained or selected the weights."""
    users: Vocabulary
    """Users of that artifact."""
    users_trained_until: Int64
    """[users] last event that trained or selected the weights, microseconds since the epoch; `NEVER` where there is none"""
    second_stage: SecondStage | None
    """Evaluated ranker behind them, where the bundle has one."""
    counted: Callable[[Histories, int], Baseline] | None = None
    """Counts the baseline on rows of items 1..n; None where the system doesn't count anew at each night."""
    folder: Path = Path()
    """Folder of the bundle"""

    @classmethod
    def open(
        cls, folder: Path, *, verify: bool = True, device: str | torch.device = "cpu"
    ) -> "EvaluatedModel":
        """Open the evaluated weights of a bundle's folder; of an update those of the last training from scratch.

        Raises DamagedArtifact where files are missing or damaged, or the bundle's format lacks the training data's end.
        """
        read_description(folder, COMPARABLE_FORMATS, verify=verify)
        folder = folder / FULL if (folder / FULL).exists() else folder
        description = read_description(folder, COMPARABLE_FORMATS, verify=False)
        known = pl.read_parquet(folder / "items.parquet", columns=["item_id", "evaluated_index"])
        known = known.filter(pl.col("evaluated_index") > 0).sort("evaluated_index")
        recommender: AttentionRecommender | Baseline
        if bundle_baseline.baseline_of(description) is not None:
            recommender = bundle_baseline.load(folder / "evaluated", description)
        else:
            recommender = AttentionRecommender(checkpoint.load_model(folder / "evaluated", device))
        if known["evaluated_index"].to_list() != list(range(1, recommender.num_items + 1)):
            raise DamagedArtifact(
                f"{folder}: the parts don't fit together: {len(known)} items in the evaluated vocabulary, "
                f"{recommender.num_items} in the evaluated model; publish again with --force"
            )
        users = pl.read_parquet(folder / "users.parquet", columns=["user_id", "trained_until"])
        until = users["trained_until"].dt.timestamp("us").fill_null(NEVER)
        return cls(
            recommender,
            Vocabulary(known["item_id"], 1),
            description["event_types"],
            description["features"],
            description["trained_until"],
            Vocabulary(users["user_id"], 0),
            until.to_numpy(),
            bundle_ranker.of_bundle(folder, "evaluated", device),
            partial(bundle_baseline.counted, description)
            if bundle_baseline.is_counted(description)
            else None,
            folder,
        )

    def reading_events(self, dataset: Dataset) -> "EvaluatedModel":
        """The same model, whose ranker reads the columns of another log's events."""
        stage = bundle_ranker.reading_events(self.second_stage, self.folder, dataset)
        return replace(self, second_stage=stage)

    def system(self, *, exclude_seen: bool) -> Recommender:
        """Evaluated system: the baseline, the encoder, or both stages where the bundle has a ranker."""
        if self.second_stage is None or not isinstance(self.recommender, AttentionRecommender):
            is_baseline = isinstance(self.recommender, Baseline)
            return WithoutDislikes(self.recommender) if is_baseline else self.recommender
        return TwoStage(self.recommender, self.second_stage, exclude_seen=exclude_seen)

    def translated(
        self, histories: Histories, item_ids: pl.Series, type_names: Sequence[str], user_ids: pl.Series
    ) -> Histories:
        """Translate rows from another log's numbering (ids at 1.., type names at 1.., users at 0..), without unknown items."""
        items, _ = translation(self.items, item_ids)
        types = type_translation(self.event_types, type_names)
        if histories.user is not None:
            own, _ = self.users.encode_known(user_ids, unknown=-1)
            histories = replace(histories, user=own.astype(np.int64)[histories.user])
        return histories.with_types(types).translate(items)

    def could_learn(self, dataset: Dataset, user: Int64, time: Int64) -> NDArray[np.bool_]:
        """Mask [t] of a log's events of `user` [t] at `time` [t] that the weights may have learned from.

        None of the test where they were trained on that very features artifact.
        """
        if self.features == dataset.folder.name:
            return np.zeros(len(time), bool)
        return ~is_later(time, self.trained_until_of(dataset.users["user_id"])[user], self.trained_until)

    def trained_until_of(self, user_ids: pl.Series) -> Int64:
        """[len] `users_trained_until` of each user, `NEVER` for unknown users."""
        index, _ = self.users.encode_known(user_ids, unknown=-1)
        return np.append(self.users_trained_until, NEVER)[index]


def is_later(time: Int64, user_until: Int64, boundary: int | None) -> NDArray[np.bool_]:
    """Mask [t] of times after the user's last training event and not before the boundary of all users."""
    return (time > user_until) & (time >= (-math.inf if boundary is None else boundary))
