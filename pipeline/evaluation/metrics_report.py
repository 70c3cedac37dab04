"""From ranks and lists to numbers: every metric of every system, with intervals, paired differences and what stands apart.

Nothing here reads or writes files; evaluate.py does.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features.content import Content
from features.histories.numbering import ItemNumbering
from models.evaluation import beyond_accuracy, metrics
from models.evaluation.beyond_accuracy import Catalogue
from models.evaluation.comparison import Judgement
from models.evaluation.metrics import Float64
from models.evaluation.ranks import SystemRanks
from models.histories import Int64
from pipeline.dataset.targets import NO_HISTORY, ORDINARY, UNKNOWN_ITEM, RankedTargets

OF_RANKS = ("ndcg", "hit_rate", "recall", "precision", "mrr", "map")
"""Metrics that are means over targets of what follows from a rank: 0 for a miss."""


@dataclass(frozen=True)
class Judging:
    """How targets are turned into numbers."""

    ks: tuple[int, ...]
    """List lengths of metrics of ranks; the shortest is that of metrics of lists."""
    resamples: int
    seed: int

    @property
    def list_length(self) -> int:
        """Items of the lists that novelty, diversity, coverage … look at."""
        return self.ks[0]


def catalogue_of(counts: Int64, content: Content | None, numbering: ItemNumbering) -> Catalogue:
    """What metrics of lists know of the items, in the model's numbering.

    counts: [n + 1] training events of each; `numbering`: items of the content -> the model's.
    """
    from scipy.sparse import csr_array

    if content is None:
        return Catalogue(len(counts) - 1, counts, None, None)
    ours = numbering.inverse().new
    shape = (content.num_items + 1, len(content.categories) + 1)
    ones = np.ones(len(content.category_index), np.float32)
    categories = csr_array((ones, content.category_index, content.category_offsets), shape=shape)[ours][:, 1:]
    dense = np.hstack([content.text[ours], content.embedding[ours]])
    return Catalogue(
        len(counts) - 1,
        counts,
        categories if categories.nnz else None,
        dense if dense.any() else None,
    )


def judge(
    ranked: Mapping[str, SystemRanks], targets: RankedTargets, catalogue: Catalogue, judging: Judging
) -> Judgement:
    """Every metric of a target, of every system, resampled together."""
    weight = metrics.debias_weights(catalogue.counts, targets.item)
    weights = {f"debiased_ndcg@{k}": weight for k in judging.ks}
    values = ((name, values_of(each, targets, catalogue, judging)) for name, each in ranked.items())
    return Judgement.of(values, targets.user, judging.resamples, judging.seed, weights)


def values_of(
    ranked: SystemRanks, targets: RankedTargets, catalogue: Catalogue, judging: Judging
) -> dict[str, Float64]:
    """Metric -> [targets] of one system."""
    worst = metrics.metrics_of_ranks(ranked.pessimistic, judging.ks)
    return (
        metrics.metrics_of_ranks(ranked.rank, judging.ks)
        | {f"debiased_ndcg@{k}": metrics.ndcg(ranked.rank, k) for k in judging.ks}
        | {
            f"pessimistic_{name}": values
            for name, values in worst.items()
            if name.startswith(("ndcg", "hit"))
        }
        | beyond_accuracy.list_metrics(
            ranked.lists, targets.histories, targets.item, catalogue, judging.list_length
        )
    )


def catalogue_metrics(
    ranked: Mapping[str, SystemRanks], targets: RankedTargets, num_items: int, judging: Judging
) -> dict[str, tuple[dict[str, float], dict[str, list[float]]]]:
    """System -> values and intervals of what only all lists together tell: coverage and Gini."""
    users, row = np.unique(targets.user, return_inverse=True)
    return {
        name: beyond_accuracy.catalogue_metrics(
            each.lists, row, len(users), num_items, judging.list_length, judging.resamples, judging.seed
        )
        for name, each in ranked.items()
    }


def counted(targets: RankedTargets, *, cold_users: bool, cold_items: bool) -> NDArray[np.bool_]:
    """[targets] that the metrics are means over."""
    found: NDArray[np.bool_] = targets.apart == ORDINARY
    if cold_users:
        found = found | (targets.apart == NO_HISTORY)
    if cold_items:
        found = found | (targets.apart == UNKNOWN_ITEM)
    return found


def apart(
    ranked: Mapping[str, SystemRanks],
    targets: RankedTargets,
    judged: Judgement,
    judging: Judging,
    *,
    cold_users: bool,
    cold_items: bool,
) -> dict[str, Any]:
    """What is reported beside the headline: targets without a history, and those on items unseen in training.

    The latter are misses but for systems that know such items by their content. The metrics with them are means over the
    targets that the headline's are, and over them.
    """
    no_history, unseen = targets.apart == NO_HISTORY, targets.apart == UNKNOWN_ITEM
    of_unseen = _means(ranked, unseen, judging)
    share = 0.0 if cold_items else float(unseen.sum() / (judged.num_targets + unseen.sum()))
    with_unseen = {
        name: {
            metric: value if not share else (1 - share) * value + share * of_unseen[name][metric]
            for metric, value in judged.values(name).items()
            if metric.partition("@")[0] in OF_RANKS
        }
        for name in judged.systems
    }
    return {
        "no_history": {
            "targets": int(no_history.sum()),
            "included": cold_users,
            "metrics": _means(ranked, no_history, judging),
        },
        "unknown_item": {
            "targets": int(unseen.sum()),
            "included": cold_items,
            "metrics": of_unseen,
            "metrics_with_them": with_unseen,
        },
    }


def _means(
    ranked: Mapping[str, SystemRanks], chosen: NDArray[np.bool_], judging: Judging
) -> dict[str, dict[str, float]]:
    """System -> the mean over the chosen targets of each metric of ranks; nothing where none is chosen."""
    if not chosen.any():
        return {}
    return {
        name: {
            metric: float(values.mean())
            for metric, values in metrics.metrics_of_ranks(each.rank[chosen], judging.ks).items()
        }
        for name, each in ranked.items()
    }


Segment = tuple[str, str, NDArray[np.bool_]]


def judge_segments(
    ranked: Mapping[str, SystemRanks], user: Int64, segments: Iterator[Segment], judging: Judging
) -> Iterator[dict[str, Any]]:
    """A row per segment, value and system: targets, users, NDCG, hit rate and MRR at the shortest list, with intervals.

    All values of one kind of segment are resampled together: each is a measure whose targets are those that belong to it.
    """
    kinds: dict[str, list[tuple[str, NDArray[np.bool_]]]] = {}
    for kind, value, chosen in segments:
        if chosen.any():
            kinds.setdefault(kind, []).append((value, chosen))
    for kind, values in kinds.items():
        judged = Judgement.of(
            ((name, _within(each, values, judging.list_length)) for name, each in ranked.items()),
            user,
            judging.resamples,
            judging.seed,
        )
        for name in judged.systems:
            means, ends = judged.values(name), judged.intervals(name)
            for place, (value, chosen) in enumerate(values):
                yield {
                    "system": name,
                    "segment": kind,
                    "value": value,
                    "targets": int(chosen.sum()),
                    "users": len(np.unique(user[chosen])),
                } | _columns(means, ends, place)


def _within(
    ranked: SystemRanks, values: Sequence[tuple[str, NDArray[np.bool_]]], k: int
) -> dict[str, Float64]:
    """`place metric` -> [targets], NaN outside the segment."""
    measured = {
        f"ndcg@{k}": metrics.ndcg(ranked.rank, k),
        f"hit_rate@{k}": metrics.hit_rate(ranked.rank, k),
        f"mrr@{k}": metrics.mrr(ranked.rank, k),
    }
    return {
        f"{place} {name}": np.where(chosen, each, np.nan)
        for place, (_, chosen) in enumerate(values)
        for name, each in measured.items()
    }


def _columns(means: dict[str, float], ends: dict[str, list[float]], place: int) -> dict[str, float]:
    """`ndcg@10`, `ndcg@10_low`, `ndcg@10_high`, … of one value of a segment."""
    row: dict[str, float] = {}
    for name, value in means.items():
        number, _, metric = name.partition(" ")
        if number == str(place):
            low, high = ends[name]
            row |= {metric: value, f"{metric}_low": low, f"{metric}_high": high}
    return row


def rolling(cuts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean and spread (sample standard deviation) over cut points of every metric that all of them have.

    cuts: the metrics.json of each cut, earliest first.
    """
    systems = [name for name in cuts[-1]["metrics"] if all(name in cut["metrics"] for cut in cuts)]
    means: dict[str, dict[str, float]] = {}
    spreads: dict[str, dict[str, float]] = {}
    for name in systems:
        shared = [
            metric
            for metric in cuts[-1]["metrics"][name]
            if all(metric in cut["metrics"][name] for cut in cuts)
        ]
        values = np.array([[cut["metrics"][name][metric] for metric in shared] for cut in cuts])
        means[name] = dict(zip(shared, values.mean(axis=0).tolist(), strict=True))
        spreads[name] = dict(zip(shared, values.std(axis=0, ddof=1).tolist(), strict=True))
    shown = [
        {key: cut[key] for key in ("test_from", "users", "targets", "metrics", "intervals")} for cut in cuts
    ]
    return {"cuts": shown, "mean": means, "spread": spreads}
