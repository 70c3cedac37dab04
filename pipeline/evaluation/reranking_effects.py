"""Effects of re-ranking rules on the metrics, on the test targets of the evaluated model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from features.content import Content
from features.histories.numbering import ItemNumbering
from models.baselines.base import Baseline
from models.evaluation.bootstrap import PairedDifference
from models.evaluation.ranks import SystemRanks
from models.histories import Float32, Int32, Int64
from models.recommendation.baseline_engine import BaselineEngine
from models.recommendation.engine import RecommendationEngine
from models.recommendation.rules import Rules, Traits
from models.retrieval.build import build_index
from pipeline.config import Config
from pipeline.dataset.dataset import Dataset
from pipeline.dataset.evaluation_targets import targets_of
from pipeline.dataset.item_features import comparison_vectors, padded_categories
from pipeline.dataset.protocol import excludes_seen
from pipeline.dataset.targets import counted
from pipeline.evaluation import metrics_report
from pipeline.evaluation.evaluated_model import EvaluatedModel
from pipeline.evaluation.metrics_report import MetricSettings
from pipeline.serving.assignment import keys_of
from pipeline.serving.bundle import translation

T = TypeVar("T")

PLAIN = "by score"
"""Name of the lists without re-ranking rules."""
SHOWN = ("ndcg", "hit_rate", "diversity", "popularity_share", "novelty", "coverage", "full_lists")
"""Metrics kept."""


@dataclass(frozen=True)
class RerankingEffects:
    """Metrics of the lists under each of several rules, and by score alone."""

    targets: int
    metrics: Mapping[str, Mapping[str, float]]
    intervals: Mapping[str, Mapping[str, Sequence[float]]]
    paired: Mapping[str, Mapping[str, PairedDifference]]
    """Rules -> metric -> lists under the rules minus lists by score."""


def effects(config: Config, bundle: Path, features: Path, rules: Mapping[str, Rules]) -> RerankingEffects:
    """Compute metrics of lists of `score.k` under each of the rules and by score alone, with intervals and paired differences.

    features: the artifact that the bundle's evaluated weights were evaluated on.
    """
    evaluated = EvaluatedModel.open(bundle, verify=False)
    dataset = Dataset.open(features)
    exclude_seen = excludes_seen(config.score.exclude_seen, dataset)
    numbering = ItemNumbering(translation(evaluated.items, dataset.items["item_id"])[0])
    training = dataset.training_rows(with_validation=config.train.refit_validation)
    targets = targets_of(
        config,
        dataset,
        "test",
        numbering,
        trained=dataset.occurring(training),
        exclude_seen=exclude_seen,
    )
    targets = targets.select(counted(targets, cold_users=False, cold_items=False))
    training = training.translate(numbering.new)
    counts = np.bincount(
        training.item_index[training.gather()[1]], minlength=evaluated.recommender.num_items + 1
    )
    engine = _engine(evaluated, counts.astype(np.float32), dataset.content, numbering)
    keys = keys_of(dataset.users["user_id"].gather(targets.user))
    ranked = {}
    for name, rule in {PLAIN: Rules(exclude_seen=exclude_seen), **rules}.items():
        answer = engine.answer(targets.histories, config.score.k, replace(rule, allowed=None), keys=keys)
        ranked[name] = _ranks(answer.item_index, targets.item, targets.request)
    settings = MetricSettings((config.score.k,), config.evaluate.resamples, config.seed)
    catalogue = metrics_report.catalogue_of(counts, dataset.content, numbering)
    systems = metrics_report.compute_metrics(ranked, targets, catalogue, settings)
    of_lists = metrics_report.catalogue_metrics(ranked, targets, len(counts) - 1, settings)
    return RerankingEffects(
        targets.num_requests,
        {name: _shown(systems.values(name) | of_lists[name][0]) for name in ranked},
        {name: _shown(systems.intervals(name) | of_lists[name][1]) for name in ranked},
        {name: _shown(systems.compared(name, [PLAIN])[PLAIN]) for name in rules},
    )


def _engine(
    evaluated: EvaluatedModel, num_events: Float32, content: Content | None, numbering: ItemNumbering
) -> RecommendationEngine | BaselineEngine:
    """Recommendation engine with the evaluated weights, or the evaluated baseline."""
    items = numbering.inverse().new.astype(np.int64)
    categories = None if content is None or not content.categories else padded_categories(content, items)
    recommender = evaluated.recommender
    if isinstance(recommender, Baseline):
        compared = (
            np.zeros((len(items), 1), np.float32) if content is None else comparison_vectors(content, items)
        )
        return BaselineEngine(recommender, num_events[None].copy(), Traits(num_events, categories, compared))
    vectors = recommender.encoder.item_vectors().detach().float().numpy()
    numbers = np.arange(1, len(vectors), dtype=np.int32)
    return RecommendationEngine(
        recommender,
        build_index(vectors[1:], numbers),
        num_events[None].copy(),
        Traits(num_events, categories, vectors),
        evaluated.second_stage,
    )


def _ranks(lists: Int32, item: Int32, request: Int64) -> SystemRanks:
    """Ranks of the targets in their requests' lists, infinity for a miss."""
    hits = lists[request] == item[:, None]
    rank = np.where(hits.any(axis=1), hits.argmax(axis=1) + 1.0, np.inf)
    return SystemRanks(rank, rank, lists)


def _shown(values: Mapping[str, T]) -> dict[str, T]:
    return {name: value for name, value in values.items() if name.partition("@")[0] in SHOWN}
