"""Outcomes at the test: quality of their predictions, and the utility that lists realise."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from features.histories.numbering import ItemNumbering
from models.evaluation.comparison import SystemComparison
from models.evaluation.metrics import Float64
from models.evaluation.ranks import SystemRanks
from models.histories import Float32, Int32
from models.ranking.calibration_quality import log_loss, quality
from models.ranking.outcomes import OutcomeEvents, OutcomeLabels, Utility
from models.ranking.predictions import Predictions, predict
from models.ranking.training import Retrieved, ndcg_of
from models.ranking.two_stage import TwoStage
from pipeline.config import Config
from pipeline.dataset.dataset import Dataset
from pipeline.dataset.evaluation_targets import targets_of
from pipeline.dataset.outcome_events import outcome_events
from pipeline.dataset.protocol import Protocol
from pipeline.dataset.targets import RankedTargets
from pipeline.evaluation import ranking
from pipeline.evaluation.metrics_report import MetricSettings, with_metrics
from pipeline.evaluation.report import EvaluationReport, OutcomeOrders, OutcomeQuality

MAX_LISTS = 20_000
"""Lists measured, a sample of the requests."""
NEXT, UTILITY = "next", "utility"


def added(
    report: EvaluationReport,
    config: Config,
    dataset: Dataset,
    ranked: Mapping[str, SystemRanks],
    targets: RankedTargets,
    common: ItemNumbering,
) -> EvaluationReport:
    """The report with realised `utility@k` of every system's lists; the same without [outcomes] or [utility].

    `common`: items of the dataset -> those of the lists.
    """
    if config.outcomes is None or config.utility is None:
        return report
    types = config.outcomes.types
    events = _events(config, dataset, targets, types, common.new)
    utility, k = Utility.of(config.utility, types), ranking.list_length(config)
    values = (
        (name, {f"utility@{k}": _realised(utility, types, ranks.lists[:, :k], events)})
        for name, ranks in ranked.items()
    )
    settings = config.evaluate
    systems = SystemComparison.of(values, targets.user, settings.resamples, config.seed)
    return with_metrics(report, systems)


def measured(
    report: EvaluationReport,
    config: Config,
    dataset: Dataset,
    both: tuple[TwoStage, ItemNumbering] | None,
    settings: MetricSettings,
) -> EvaluationReport:
    """The report with the quality of predicted outcomes, over all lists with a history, and of both orders.

    The same without a second stage with heads of outcomes. `both`: the system, and items of the dataset -> its own.
    """
    if both is None or both[0].stage.ranker.heads is None:
        return report
    system, numbering = both
    types = both[0].stage.ranker.heads.types
    targets = targets_of(config, dataset, "test", numbering, with_idle=True)
    targets = targets.of_requests(targets.histories.lengths > 0).sample(MAX_LISTS, config.seed)
    items, scores = system.candidates(targets.histories)
    retrieved = Retrieved.of(targets.histories, items, scores, targets.item, targets.request, targets.user)
    labels = OutcomeLabels.of(types, items, _events(config, dataset, targets, types, numbering.new))
    found = predict(system.stage, targets.histories, items, scores)
    qualities = {
        name: _quality(found.probability[..., place], found.value[..., place], labels, place, items > 0)
        for place, name in enumerate(types)
    }
    report = replace(report, outcomes=qualities)
    if config.utility is None:
        return report
    utility, k = Utility.of(config.utility, types), ranking.list_length(config)
    return replace(report, orders=_orders(found, retrieved, labels, utility, k, settings))


def _events(
    config: Config, dataset: Dataset, targets: RankedTargets, types: list[str] | tuple[str, ...], new: Int32
) -> OutcomeEvents:
    protocol = Protocol.of(config, dataset)
    nightly = protocol.headline == "nightly"
    horizon = protocol.nights(dataset, "test").horizon if nightly else 0
    return outcome_events(dataset, targets, types, new, horizon)


def _realised(
    utility: Utility, types: list[str] | tuple[str, ...], lists: Int32, events: OutcomeEvents
) -> Float64:
    """[requests], utility that a list's items brought."""
    labels = OutcomeLabels.of(types, lists, events)
    return np.asarray(utility(labels.done, labels.value).sum(1), np.float64)


def _quality(
    probability: Float32, value: Float32, labels: OutcomeLabels, place: int, there: NDArray[np.bool_]
) -> OutcomeQuality:
    """Quality of the predictions [r, n] of one outcome."""
    known = there & np.isfinite(labels.done[..., place])
    done, own = labels.done[known, place] == 1, probability[known]
    measured = quality(own, done)
    base = log_loss(np.full(len(done), done.mean(), np.float32), done)
    worth, predicted = labels.value[..., place], value
    has_value = np.isfinite(worth) & np.isfinite(predicted)
    amounts = worth[has_value].astype(np.float64)
    errors = (
        (float(np.sqrt(np.square(amounts - predicted[has_value]).mean())), float(amounts.std()))
        if len(amounts)
        else (None, None)
    )
    return OutcomeQuality(
        len(done),
        int(done.sum()),
        measured.auc,
        measured.log_loss,
        base,
        measured.calibration_error,
        measured.mean_probability,
        len(amounts),
        *errors,
    )


def _orders(
    found: Predictions,
    retrieved: Retrieved,
    labels: OutcomeLabels,
    utility: Utility,
    k: int,
    settings: MetricSettings,
) -> OutcomeOrders:
    """Both orders of the lists of users who took something."""
    realised, active = utility(labels.done, labels.value), retrieved.is_active
    values = {}
    for name, own in ((NEXT, None), (UTILITY, utility)):
        order = found.order(retrieved.items, own)
        by_place = np.full(order.shape, -np.inf, np.float32)
        places = np.broadcast_to(-np.arange(order.shape[1], dtype=np.float32), order.shape)
        np.put_along_axis(by_place, order, places, 1)
        by_place[retrieved.items == 0] = -np.inf
        worth = np.take_along_axis(realised, order[:, :k], 1).sum(1).astype(np.float64)
        values[name] = {f"ndcg@{k}": ndcg_of(by_place, retrieved, k)[active], f"utility@{k}": worth[active]}
    user = retrieved.user[active]
    systems = SystemComparison.of(values.items(), user, settings.resamples, settings.seed)
    names = tuple(values[NEXT])
    paired = systems.paired(UTILITY, NEXT)
    return OutcomeOrders(
        len(user),
        systems.num_users,
        {name: {metric: systems.values(name)[metric] for metric in names} for name in values},
        {name: {metric: systems.intervals(name)[metric] for metric in names} for name in values},
        {metric: paired[metric] for metric in names},
    )
