"""Lists of similar items on the test: whether the item that a user took next is in the list of the one before."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from features.histories.numbering import ItemNumbering
from models.baselines.base import Baseline
from models.baselines.co_visitation import CoVisitation
from models.encoder.encoder import AttentionRecommender
from models.evaluation.comparison import SystemComparison
from models.evaluation.metrics import Float64, hit_rate, ndcg
from models.histories import Int32, Int64
from models.recommendation.answer import Candidates, Run
from models.recommendation.baseline_engine import BaselineEngine
from models.recommendation.engine import RecommendationEngine
from models.recommendation.rules import Traits
from models.recommendation.similar_items import Engine, similar_items
from models.retrieval.build import build_index
from pipeline.config import Config
from pipeline.dataset.dataset import Dataset
from pipeline.dataset.evaluation_targets import targets_of
from pipeline.evaluation.evaluated_model import EvaluatedModel
from pipeline.serving import bundle_baseline
from pipeline.serving.bundle import translation

# Letters in shapes: p pairs, q distinct items, n items of the model, k places.


class Measured(TypedDict):
    """Metrics of lists of similar items, by kind and metric: value and 95 % interval, bootstrapped over users."""

    pairs: int
    users: int
    left_out: dict[str, int]
    metrics: dict[str, dict[str, dict[str, float]]]


@dataclass(frozen=True)
class Pairs:
    """Successive items of a user, the second a target of the test; in an evaluated model's numbering."""

    user: Int64
    """[p]"""
    item: Int32
    """[p], last item before the target"""
    following: Int32
    """[p], the target's item, another one"""
    left_out: dict[str, int]
    """Counts of test targets that make no pair, by the first reason that applies."""

    @classmethod
    def of(cls, config: Config, dataset: Dataset, model: EvaluatedModel) -> "Pairs":
        """Pairs of the test, of at most `evaluate.max_requests` targets.

        Left out are targets without an event before them (`first_event`), on the item before (`same_item`), that the weights may
        have learned from (`learned`), and with an item that the model does not know (`unknown_item`); those that are no target of
        the evaluation either are not counted.
        """
        every = ItemNumbering(np.arange(dataset.num_items + 1, dtype=np.int32))
        targets = targets_of(config, dataset, "test", every, exclude_seen=False, kind="successive")
        histories = targets.histories
        has_event = histories.lengths > 0
        last = histories.item_index[np.maximum(histories.ends - 1, 0)]
        own, _ = translation(model.items, dataset.items["item_id"])
        reasons = {
            "first_event": ~has_event,
            "same_item": last == targets.item,
            "learned": model.could_learn(dataset, targets.user, targets.moment),
            "unknown_item": (own[last] == 0) | (own[targets.item] == 0),
        }
        kept, left_out = np.ones(len(targets), bool), {}
        for name, applies in reasons.items():
            left_out[name] = int((kept & applies).sum())
            kept &= ~applies
        return cls(targets.user[kept], own[last[kept]], own[targets.item[kept]], left_out)

    def metrics(self, lists: Candidates, items: Int32) -> dict[str, Float64]:
        """NDCG@k and hit rate@k of each pair, [p], by lists [q, k] of `items` [q], ascending."""
        found = lists[0][np.searchsorted(items, self.item)] == self.following[:, None]
        rank = np.where(found.any(axis=1), found.argmax(axis=1) + 1.0, np.inf)
        k = found.shape[1]
        return {f"ndcg@{k}": ndcg(rank, k), f"hit_rate@{k}": hit_rate(rank, k)}


def measure(
    config: Config, dataset: Dataset, model: EvaluatedModel, request_time: int, run: Run = map
) -> Measured:
    """Metrics of every kind of lists by a bundle's evaluated weights, among all items that they know.

    Co-visitation counts the training events of the split. request_time: as of the lists, microseconds since the epoch.
    """
    pairs, k = Pairs.of(config, dataset, model), config.similar.k
    measured = Measured(pairs=len(pairs.user), users=0, left_out=pairs.left_out, metrics={})
    if not len(pairs.user):
        return measured
    own, _ = translation(model.items, dataset.items["item_id"])
    training = dataset.training_rows(with_validation=config.train.refit_validation)
    counted = training.without_dislikes().translate(own)
    num_items, items = len(model.items), np.unique(pairs.item)
    follows = CoVisitation.fit(counted, num_items, max_neighbours=num_items).follows

    def values() -> Iterator[tuple[str, dict[str, Float64]]]:
        for kind, lists in similar_items(_engine(model), follows, items, k, time=request_time, run=run):
            yield kind, pairs.metrics(lists, items)

    systems = SystemComparison.of(values(), pairs.user, config.evaluate.resamples, config.seed)
    for kind in systems.systems:
        ends, means = systems.intervals(kind), systems.values(kind)
        measured["metrics"][kind] = {
            name: {"value": means[name], "low": ends[name][0], "high": ends[name][1]}
            for name in systems.names
            if not name.startswith("user_")
        }
    return measured | {"users": systems.num_users}


def _engine(model: EvaluatedModel) -> Engine:
    """Engine of the evaluated weights: exact retrieval, or the baseline."""
    counts = np.zeros(len(model.items) + 1, np.float32)
    recommender = model.recommender
    if isinstance(recommender, Baseline):
        reads_history = bundle_baseline.reads_history(recommender)
        return BaselineEngine(recommender, counts[None], Traits(counts), reads_history)
    assert isinstance(recommender, AttentionRecommender)
    vectors = recommender.encoder.item_vectors().detach().float().cpu().numpy()
    index = build_index(vectors[1:], np.arange(1, len(vectors), dtype=np.int32))
    return RecommendationEngine(recommender, index, counts[None], Traits(counts, vectors=vectors))
