"""Candidates of the test's requests, on which the second stage's probabilities are measured."""

from dataclasses import dataclass
from functools import cached_property

from features.histories.numbering import ItemNumbering
from models.histories import Float32, Histories, Int32
from models.ranking.predictions import Predictions, predict
from models.ranking.ranker import SecondStage
from models.ranking.training import Retrieved
from models.ranking.two_stage import TwoStage
from pipeline.config import Config
from pipeline.dataset.dataset import Dataset
from pipeline.dataset.evaluation_targets import targets_of
from pipeline.dataset.protocol import Protocol
from pipeline.dataset.targets import RankedTargets

MAX_LISTS = 20_000
"""Lists measured, a sample of the requests."""


@dataclass(frozen=True)
class HeldOutCandidates:
    """Candidates of the test's requests with a history, at nights those of users who take nothing included."""

    stage: SecondStage
    numbering: ItemNumbering
    """Items of the dataset -> those of the stage"""
    targets: RankedTargets
    retrieved: Retrieved
    """Lists of the targets' requests"""

    @classmethod
    def of(
        cls, config: Config, dataset: Dataset, system: TwoStage, numbering: ItemNumbering
    ) -> "HeldOutCandidates":
        """Candidates of `MAX_LISTS` requests at most; numbering: items of the dataset -> the system's."""
        targets = targets_of(config, dataset, "test", numbering, with_idle=True)
        targets = targets.of_requests(targets.histories.lengths > 0).sample(MAX_LISTS, config.seed)
        items, scores = system.candidates(targets.histories)
        nightly = Protocol.of(config, dataset).headline == "nightly"
        retrieved = Retrieved.of(
            targets.histories,
            items,
            scores,
            targets.item,
            targets.request,
            targets.user,
            targets.moment if nightly else None,
        )
        return cls(system.stage, numbering, targets, retrieved)

    @property
    def inputs(self) -> tuple[Histories, Int32, Float32]:
        """Inputs of the second stage."""
        return self.retrieved.histories, self.retrieved.items, self.retrieved.scores

    @cached_property
    def predictions(self) -> Predictions | None:
        """Predicted outcomes; None without heads."""
        return None if self.stage.ranker.heads is None else predict(self.stage, *self.inputs)

    @cached_property
    def score(self) -> Float32:
        """[r, n], ranker scores of the candidates."""
        found = self.predictions
        return self.stage.score(*self.inputs) if found is None else found.score
