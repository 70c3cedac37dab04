"""Metrics of ranked targets: every system with intervals, cold targets, segments, cuts of a rolling split."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from features.content import Content
from features.histories.numbering import ItemNumbering
from models.evaluation import beyond_accuracy, metrics
from models.evaluation.beyond_accuracy import Catalogue
from models.evaluation.comparison import SystemComparison
from models.evaluation.metrics import Float64
from models.evaluation.ranks import SystemRanks
from models.histories import Int64
from pipeline.dataset.targets import NO_HISTORY, UNKNOWN_ITEM, RankedTargets
from pipeline.evaluation.report import ColdTargets, Cut, EvaluationReport, Rolling, SubsetMetrics
from pipeline.sections import MODEL

T = TypeVar("T")

OF_RANKS = ("ndcg", "hit_rate", "recall", "precision", "mrr", "map")
"""Metrics that average a function of the target's rank, 0 for a miss."""


@dataclass(frozen=True)
class MetricSettings:
    """List lengths of the metrics, and resamples of their intervals."""

    ks: tuple[int, ...]
    """List lengths of metrics of ranks; metrics of lists use the first."""
    resamples: int
    seed: int

    @property
    def list_length(self) -> int:
        """List length of novelty, diversity, coverage and other metrics of lists."""
        return self.ks[0]


def defined(values: Mapping[str, T]) -> dict[str, T]:
    """Metrics without NaN, which JSON lacks."""
    return {
        name: value for name, value in values.items() if not np.isnan(np.asarray(value, np.float64)).any()
    }


def with_metrics(report: EvaluationReport, systems: SystemComparison) -> EvaluationReport:
    """The report with further metrics of its systems beside theirs, and the paired differences."""
    others = [name for name in systems.systems if name != MODEL]
    paired = systems.compared(MODEL, others) if others else {}
    return replace(
        report,
        metrics={name: {**own, **defined(systems.values(name))} for name, own in report.metrics.items()},
        intervals={
            name: {**own, **defined(systems.intervals(name))} for name, own in report.intervals.items()
        },
        differences={name: {**own, **paired[name]} for name, own in report.differences.items()},
    )


def catalogue_of(counts: Int64, content: Content | None, numbering: ItemNumbering) -> Catalogue:
    """Catalogue for metrics of lists, in the model's numbering.

    counts: [n + 1] training events; `numbering`: the content's items -> the model's.
    """
    from scipy.sparse import csr_array

    if content is None:
        return Catalogue(len(counts) - 1, counts, None, None)
    items = numbering.inverse().new
    shape = (content.num_items + 1, len(content.categories) + 1)
    ones = np.ones(len(content.category_index), np.float32)
    categories = csr_array((ones, content.category_index, content.category_offsets), shape=shape)[items][
        :, 1:
    ]
    dense = np.hstack([content.text[items], content.embedding[items]])
    return Catalogue(
        len(counts) - 1, counts, categories if categories.nnz else None, dense if dense.any() else None
    )


def compute_metrics(
    ranked: Mapping[str, SystemRanks], targets: RankedTargets, catalogue: Catalogue, settings: MetricSettings
) -> SystemComparison:
    """Compute every metric of every system, resampled together."""
    weight = metrics.debias_weights(catalogue.counts, targets.item)
    of_request = np.bincount(targets.request, weight, targets.num_requests).astype(np.float64)
    weights = {f"debiased_ndcg@{k}": of_request for k in settings.ks}
    values = ((name, values_of(ranks, targets, catalogue, settings)) for name, ranks in ranked.items())
    return SystemComparison.of(values, targets.user, settings.resamples, settings.seed, weights)


def values_of(
    ranked: SystemRanks, targets: RankedTargets, catalogue: Catalogue, settings: MetricSettings
) -> dict[str, Float64]:
    """Metric -> values [requests] of one system.

    `debiased_ndcg`: mean of the relevant items' gains 1 / log2(rank + 1), weighted by `debias_weights`.
    """
    num, request = targets.num_requests, targets.request
    worst = metrics.metrics_of_ranks(ranked.pessimistic, settings.ks, request, num)
    weight = metrics.debias_weights(catalogue.counts, targets.item)
    share = weight / np.bincount(request, weight, num)[request]
    return (
        metrics.metrics_of_ranks(ranked.rank, settings.ks, request, num)
        | {
            f"debiased_ndcg@{k}": np.asarray(
                np.bincount(request, share * metrics.ndcg(ranked.rank, k), num), np.float64
            )
            for k in settings.ks
        }
        | {
            f"pessimistic_{name}": values
            for name, values in worst.items()
            if name.startswith(("ndcg", "hit"))
        }
        | beyond_accuracy.list_metrics(
            ranked.lists, targets.histories, targets.item, catalogue, settings.list_length, targets.request
        )
    )


def catalogue_metrics(
    ranked: Mapping[str, SystemRanks], targets: RankedTargets, num_items: int, settings: MetricSettings
) -> dict[str, tuple[dict[str, float], dict[str, list[float]]]]:
    """System -> values and intervals of coverage and Gini, over all lists together."""
    users, row = np.unique(targets.user, return_inverse=True)
    return {
        name: beyond_accuracy.catalogue_metrics(
            system.lists, row, len(users), num_items, settings.list_length, settings.resamples, settings.seed
        )
        for name, system in ranked.items()
    }


def cold_targets(
    ranked: Mapping[str, SystemRanks],
    targets: RankedTargets,
    systems: SystemComparison,
    settings: MetricSettings,
    *,
    cold_users: bool,
    cold_items: bool,
) -> dict[str, ColdTargets]:
    """Metrics over targets without a history (`no_history`), and on items without training events (`unknown_item`).

    The latter are misses of systems that don't know the item. `systems`: metrics of the report's targets.
    """
    no_history, unknown = targets.cold == NO_HISTORY, targets.cold == UNKNOWN_ITEM
    of_unknown = _means(ranked, targets, unknown, settings)
    share = 0.0 if cold_items else float(unknown.sum() / (systems.num_targets + unknown.sum()))
    with_unknown = {
        name: {
            metric: value if not share else (1 - share) * value + share * of_unknown[name][metric]
            for metric, value in systems.values(name).items()
            if metric.partition("@")[0] in OF_RANKS
        }
        for name in systems.systems
    }
    return {
        "no_history": ColdTargets(
            int(no_history.sum()), cold_users, _means(ranked, targets, no_history, settings)
        ),
        "unknown_item": ColdTargets(int(unknown.sum()), cold_items, of_unknown, with_unknown),
    }


def _means(
    ranked: Mapping[str, SystemRanks],
    targets: RankedTargets,
    chosen: NDArray[np.bool_],
    settings: MetricSettings,
) -> dict[str, dict[str, float]]:
    """System -> mean over requests of each metric of ranks of the chosen targets alone; empty where none is chosen."""
    if not chosen.any():
        return {}
    requests, request = np.unique(targets.request[chosen], return_inverse=True)
    return {
        name: {
            metric: float(values.mean())
            for metric, values in metrics.metrics_of_ranks(
                ranks.rank[chosen], settings.ks, request, len(requests)
            ).items()
        }
        for name, ranks in ranked.items()
    }


def of_targets(
    ranked: Mapping[str, SystemRanks],
    targets: RankedTargets,
    chosen: NDArray[np.bool_],
    settings: MetricSettings,
) -> SubsetMetrics | None:
    """Metrics of ranks of the chosen targets [targets] alone, with intervals; None where none is chosen."""
    if not chosen.any():
        return None
    requests, request = np.unique(targets.request[chosen], return_inverse=True)
    systems = SystemComparison.of(
        (
            (name, metrics.metrics_of_ranks(ranks.rank[chosen], settings.ks, request, len(requests)))
            for name, ranks in ranked.items()
        ),
        targets.user[requests],
        settings.resamples,
        settings.seed,
    )
    return SubsetMetrics(
        int(chosen.sum()),
        {name: systems.values(name) for name in systems.systems},
        {name: systems.intervals(name) for name in systems.systems},
    )


Segment = tuple[str, str, NDArray[np.bool_]]


def segment_metrics(
    ranked: Mapping[str, SystemRanks],
    targets: RankedTargets,
    segments: Iterator[Segment],
    settings: MetricSettings,
) -> Iterator[dict[str, str | float]]:
    """Yield a row per segment, value and system: targets, users, NDCG, hit rate and MRR at the shortest list, with intervals.

    Requests count with their targets in the segment alone; those without any are undefined. Values of one kind of segment are
    resampled together.
    """
    kinds: dict[str, list[tuple[str, NDArray[np.bool_]]]] = {}
    for kind, value, chosen in segments:
        if chosen.any():
            kinds.setdefault(kind, []).append((value, chosen))
    for kind, values in kinds.items():
        systems = SystemComparison.of(
            ((name, _within(ranks, targets, values, settings.list_length)) for name, ranks in ranked.items()),
            targets.user,
            settings.resamples,
            settings.seed,
        )
        for name in systems.systems:
            means, ends = systems.values(name), systems.intervals(name)
            for place, (value, chosen) in enumerate(values):
                row: dict[str, str | float] = {"system": name, "segment": kind, "value": value}
                counts = {
                    "targets": int(chosen.sum()),
                    "users": len(np.unique(targets.user_of_target[chosen])),
                }
                yield {**row, **counts, **_columns(means, ends, place)}


def _within(
    ranked: SystemRanks, targets: RankedTargets, values: Sequence[tuple[str, NDArray[np.bool_]]], k: int
) -> dict[str, Float64]:
    """`place metric` -> [requests], of the targets in the segment alone; NaN without any."""
    within: dict[str, Float64] = {}
    for place, (_, chosen) in enumerate(values):
        request = targets.request[chosen]
        measured = metrics.metrics_of_ranks(ranked.rank[chosen], (k,), request, targets.num_requests)
        within |= {f"{place} {name}@{k}": measured[f"{name}@{k}"] for name in ("ndcg", "hit_rate", "mrr")}
    return within


def _columns(means: dict[str, float], ends: dict[str, list[float]], place: int) -> dict[str, float]:
    """Columns `ndcg@10`, `ndcg@10_low`, `ndcg@10_high`, … of one value of a segment."""
    row: dict[str, float] = {}
    for name, value in means.items():
        number, _, metric = name.partition(" ")
        if number == str(place):
            low, high = ends[name]
            row |= {metric: value, f"{metric}_low": low, f"{metric}_high": high}
    return row


def rolling(reports: Sequence[EvaluationReport]) -> Rolling:
    """Mean and sample standard deviation over the cuts of the metrics in all reports; reports: earliest cut first."""
    *_, last = reports
    mean: dict[str, dict[str, float]] = {}
    spread: dict[str, dict[str, float]] = {}
    for name, own in last.metrics.items():
        if all(name in report.metrics for report in reports):
            shared = [metric for metric in own if all(metric in report.metrics[name] for report in reports)]
            values = np.array([[report.metrics[name][metric] for metric in shared] for report in reports])
            mean[name] = dict(zip(shared, values.mean(axis=0).tolist(), strict=True))
            spread[name] = dict(zip(shared, values.std(axis=0, ddof=1).tolist(), strict=True))
    cuts = tuple(
        Cut(report.test_from, report.users, report.targets, report.metrics, report.intervals)
        for report in reports
    )
    return Rolling(cuts, mean, spread)
