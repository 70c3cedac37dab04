"""What rules that change the order of lists do to the metrics, on the test targets of the model that was judged."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from features.content import Content
from features.histories.numbering import ItemNumbering
from models.evaluation.ranks import SystemRanks
from models.histories import Int32
from models.recommendation.engine import Answering
from models.recommendation.rules import Rules, Traits
from models.retrieval.build import build_index
from pipeline.config import Config
from pipeline.dataset.dataset import Dataset
from pipeline.dataset.item_features import padded_categories
from pipeline.dataset.targets import targets_of
from pipeline.evaluation import metrics_report
from pipeline.evaluation.evaluated_model import Evaluated
from pipeline.evaluation.metrics_report import Judging
from pipeline.serving.batch import keys_of
from pipeline.serving.bundle import translation

PLAIN = "by score"
"""What the lists without any such rule are called."""
SHOWN = ("ndcg", "hit_rate", "diversity", "popularity_share", "novelty", "coverage", "full_lists")


def effects(config: Config, bundle: Path, features: Path, rules: Mapping[str, Rules]) -> dict[str, Any]:
    """Metrics of lists of `score.k` by each of the rules and by score alone, with intervals, and paired differences of the former
    from the latter.

    The evaluated weights of the bundle rank the test targets of the features that they were judged on.
    """
    evaluated = Evaluated.open(bundle, verify=False)
    dataset = Dataset.open(features)
    numbering = ItemNumbering(translation(evaluated.items, dataset.items["item_id"])[0])
    training = dataset.training_rows(with_validation=config.train.refit_validation)
    targets = targets_of(
        config,
        dataset,
        "test",
        numbering,
        trained=dataset.occurring(training),
        exclude_seen=config.score.exclude_seen,
    )
    targets = targets.select(metrics_report.counted(targets, cold_users=False, cold_items=False))
    training = training.translate(numbering.new)
    counts = np.bincount(
        training.item_index[training.gather()[1]], minlength=evaluated.recommender.num_items + 1
    )
    answering = _answering(evaluated, counts.astype(np.float32), dataset.content, numbering)
    plain = Rules(exclude_seen=config.score.exclude_seen)
    keys = keys_of(dataset.users["user_id"].gather(targets.user))
    ranked = {}
    for name, each in {PLAIN: plain, **rules}.items():
        answer = answering.answer(targets.histories, config.score.k, replace(each, allowed=None), keys=keys)
        ranked[name] = _ranks(answer.item_index, targets.item)
    judged_by = Judging((config.score.k,), config.evaluate.resamples, config.seed)
    catalogue = metrics_report.catalogue_of(counts, dataset.content, numbering)
    judged = metrics_report.judge(ranked, targets, catalogue, judged_by)
    of_lists = metrics_report.catalogue_metrics(ranked, targets, len(counts) - 1, judged_by)
    return {
        "targets": len(targets),
        "metrics": {name: _shown(judged.values(name) | of_lists[name][0]) for name in ranked},
        "intervals": {name: _shown(judged.intervals(name) | of_lists[name][1]) for name in ranked},
        "paired": {name: _shown(judged.compared(name, [PLAIN])[PLAIN]) for name in rules},
    }


def _answering(
    evaluated: Evaluated, num_events: Any, content: Content | None, numbering: ItemNumbering
) -> Answering:
    """What makes lists by the evaluated weights."""
    vectors = evaluated.recommender.encoder.item_vectors().detach().float().numpy()
    numbers = np.arange(1, len(vectors), dtype=np.int32)
    ours = numbering.inverse().new.astype(np.int64)
    categories = None if content is None or not content.categories else padded_categories(content, ours)
    traits = Traits(num_events, categories, vectors)
    index = build_index(vectors[1:], numbers)
    return Answering(evaluated.recommender, index, num_events[None].copy(), traits, evaluated.second_stage)


def _ranks(lists: Int32, item: Int32) -> SystemRanks:
    """Each target's place in its list; a miss where it is not in it."""
    found = lists == item[:, None]
    rank = np.where(found.any(axis=1), found.argmax(axis=1) + 1.0, np.inf)
    return SystemRanks(rank, rank, lists)


def _shown(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name.partition("@")[0] in SHOWN}
