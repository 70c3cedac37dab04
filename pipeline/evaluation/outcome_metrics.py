"""Outcomes at the test: quality of their predictions, and the utility that lists realise."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from models.evaluation.comparison import SystemComparison
from models.evaluation.metrics import Float64
from models.histories import Int32
from models.ranking.calibration_quality import log_loss, quality
from models.ranking.outcomes import OutcomeEvents, OutcomeLabels, Utility
from models.ranking.predictions import Predictions
from models.ranking.training import Retrieved, ndcg_of
from models.settings.outcomes import Utilities
from pipeline.config import Config
from pipeline.dataset.dataset import Dataset
from pipeline.dataset.outcome_events import outcome_events
from pipeline.dataset.protocol import Protocol
from pipeline.dataset.targets import RankedTargets
from pipeline.evaluation.evaluated_targets import Evaluation
from pipeline.evaluation.held_out_candidates import HeldOutCandidates
from pipeline.evaluation.metrics_report import MetricSettings, with_metrics
from pipeline.evaluation.outcome_quality import OutcomeOrders, OutcomeQuality
from pipeline.evaluation.report import EvaluationReport

NEXT, UTILITY = "next", "utility"


@dataclass(frozen=True)
class HeldOutLists:
    """Candidates of requests of the test."""

    retrieved: Retrieved
    labels: OutcomeLabels


def with_outcomes(
    report: EvaluationReport,
    config: Config,
    evaluation: Evaluation,
    candidates: HeldOutCandidates | None,
    settings: MetricSettings,
) -> EvaluationReport:
    """The report with realised `utility@k` of every system's lists, quality of predicted outcomes, and both orders.

    Utility needs [outcomes] and [utility], the others a second stage with heads of outcomes; they are over all lists with a
    history. candidates: those of the second stage in use; None without one.
    """
    dataset, k = evaluation.dataset, settings.list_length
    if config.outcomes is not None and config.utility is not None:
        types = config.outcomes.types
        events = _events(config, dataset, evaluation.targets, types, evaluation.common.new)
        utility = Utility.of(config.utility, types)
        values = (
            (name, {f"utility@{k}": _realised(utility, types, ranks.lists[:, :k], events)})
            for name, ranks in evaluation.ranked.items()
        )
        user = evaluation.targets.user
        report = with_metrics(report, SystemComparison.of(values, user, settings.resamples, settings.seed))
    found = None if candidates is None else candidates.predictions
    if candidates is None or found is None or config.outcomes is None:
        return report
    heads = candidates.stage.ranker.heads
    assert heads is not None
    lists = held_out_lists(config, dataset, candidates, config.outcomes.types)
    predicted = replace(lists, labels=lists.labels.of_types(heads.types))
    qualities = {name: _quality(found, predicted, place) for place, name in enumerate(heads.types)}
    own = None if config.utility is None else orders(found, heads.types, lists, config.utility, settings)
    return replace(report, outcomes=qualities, orders=own)


def held_out_lists(
    config: Config, dataset: Dataset, candidates: HeldOutCandidates, types: Sequence[str]
) -> HeldOutLists:
    """Candidates of the test's requests, and their outcomes."""
    events = _events(config, dataset, candidates.targets, types, candidates.numbering.new)
    retrieved = candidates.retrieved
    return HeldOutLists(retrieved, OutcomeLabels.of(types, retrieved.items, events))


def orders(
    found: Predictions,
    types: Sequence[str],
    lists: HeldOutLists,
    utilities: Utilities,
    settings: MetricSettings,
) -> OutcomeOrders:
    """Both orders of the lists of users who took something, at the shortest list length.

    types: outcomes predicted, which order the lists; the realised utility is that of all outcomes of the lists' labels.
    """
    expected, k = Utility.of(utilities, types), settings.list_length
    retrieved, active = lists.retrieved, lists.retrieved.is_active
    realised = Utility.of(utilities, lists.labels.types)(lists.labels.done, lists.labels.value)
    values = {}
    for name, own in ((NEXT, None), (UTILITY, expected)):
        order = found.order(retrieved.items, own)
        places = np.broadcast_to(-np.arange(order.shape[1], dtype=np.float32), order.shape)
        by_place = np.empty(order.shape, np.float32)
        np.put_along_axis(by_place, order, places, 1)
        by_place[retrieved.items == 0] = -np.inf
        worth = np.take_along_axis(realised, order[:, :k], 1).sum(1).astype(np.float64)
        values[name] = {f"ndcg@{k}": ndcg_of(by_place, retrieved, k)[active], f"utility@{k}": worth[active]}
    user = retrieved.user[active]
    systems = SystemComparison.of(values.items(), user, settings.resamples, settings.seed)
    names, paired = tuple(values[NEXT]), systems.paired(UTILITY, NEXT)
    return OutcomeOrders(
        len(user),
        systems.num_users,
        {name: {metric: systems.values(name)[metric] for metric in names} for name in values},
        {name: {metric: systems.intervals(name)[metric] for metric in names} for name in values},
        {metric: paired[metric] for metric in names},
    )


def _events(
    config: Config, dataset: Dataset, targets: RankedTargets, types: Sequence[str], new: Int32
) -> OutcomeEvents:
    protocol = Protocol.of(config, dataset)
    nightly = protocol.headline == "nightly"
    horizon = protocol.nights(dataset, "test").horizon if nightly else 0
    return outcome_events(dataset, targets, types, new, horizon)


def _realised(utility: Utility, types: Sequence[str], lists: Int32, events: OutcomeEvents) -> Float64:
    """[requests], utility that a list's items brought."""
    labels = OutcomeLabels.of(types, lists, events)
    return np.asarray(utility(labels.done, labels.value).sum(1), np.float64)


def _quality(found: Predictions, lists: HeldOutLists, place: int) -> OutcomeQuality:
    """Quality of the predictions of one outcome."""
    labels, there = lists.labels, lists.retrieved.items > 0
    known = there & np.isfinite(labels.done[..., place])
    done = labels.done[known, place] == 1
    measured = quality(found.probability[known, place], done)
    amount, predicted = labels.value[..., place], found.value[..., place]
    has_value = np.isfinite(amount) & np.isfinite(predicted)
    amount, predicted = amount[has_value], predicted[has_value]
    return OutcomeQuality(
        candidates=len(done),
        positives=int(done.sum()),
        auc=measured.auc,
        log_loss=measured.log_loss,
        base_log_loss=log_loss(np.full(len(done), done.mean(), np.float32), done),
        calibration_error=measured.calibration_error,
        mean_probability=measured.mean_probability,
        values=len(amount),
        value_error=float(np.sqrt(np.square(amount - predicted).mean())) if len(amount) else None,
        base_value_error=float(amount.std()) if len(amount) else None,
    )
