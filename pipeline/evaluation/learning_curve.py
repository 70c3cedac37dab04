"""Learning curve: metrics of the model trained on shares of the training users."""

from collections.abc import Sequence

import numpy as np

from features.histories.numbering import ItemNumbering
from models.encoder.encoder import AttentionRecommender
from models.evaluation import metrics
from models.evaluation.comparison import SystemComparison
from models.evaluation.ranks import rank_targets
from pipeline.dataset.targets import RankedTargets
from pipeline.evaluation.metrics_report import MetricSettings, defined
from pipeline.evaluation.report import LearningPoint
from pipeline.modelling.trainer import Trainer
from pipeline.sections import MODEL


def learning_curve(
    trainer: Trainer,
    targets: RankedTargets,
    common: ItemNumbering,
    systems: SystemComparison,
    settings: MetricSettings,
    fractions: Sequence[float],
    *,
    exclude_seen: bool,
) -> list[LearningPoint]:
    """Metrics of models trained on `fractions` of the training users, on the same targets; unknown items are misses.

    `common`: items of the dataset -> those of the targets; `systems`: metrics of the whole model, the last point.
    """
    curve: list[LearningPoint] = []
    train_user = trainer.dataset.split.train_user
    order = np.random.default_rng(settings.seed).permutation(np.flatnonzero(train_user))
    for fraction in sorted({fraction for fraction in fractions if fraction < 1}):
        users = np.zeros(len(train_user), bool)
        users[order[: max(1, round(fraction * len(order)))]] = True
        trained = trainer.fit_split(f"fraction_{fraction:g}", users)
        own = targets.translate(common.inverse().compose(trained.numbering).new)
        ranked = rank_targets(
            AttentionRecommender(trained.result.model),
            own.histories,
            own.item,
            settings.list_length,
            exclude_seen=exclude_seen,
            request=own.request,
        )
        values = metrics.metrics_of_ranks(ranked.rank, settings.ks, own.request, own.num_requests)
        measured = SystemComparison.of([(MODEL, values)], own.user, settings.resamples, settings.seed)
        curve.append(_point(fraction, int(users.sum()), measured))
    return [*curve, _point(1.0, len(order), systems)]


def _point(fraction: float, num_users: int, systems: SystemComparison) -> LearningPoint:
    values, intervals = defined(systems.values(MODEL)), defined(systems.intervals(MODEL))
    return LearningPoint(fraction, num_users, values, intervals)
