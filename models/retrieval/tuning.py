"""Tuning of an approximate index: the least work that reaches the target recall, counted, never timed."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import Any, Protocol, Self, TypeVar

import numpy as np

from models.histories import Float32, Int32
from models.settings.index import ApproximateType, IndexFacts, IndexSettings

RECALL_AT = (10, 100)
"""List lengths at which recall is measured; the target applies to the last."""
MOST_SCANNED = {"ivf": 0.05, "hnsw": 0.02, "sq": 0.25, "ivf_pq": 0.5}
"""Maximum share of the vectors compared with a query under auto: a vector in a list costs several times, one in a graph about
ten times as much as in a matrix product. The quantised types save memory, not time."""
MOST_REFINED = {"hnsw": 0, "ivf": 0, "sq": 256, "ivf_pq": 2048}
"""Maximum candidates beyond k that are rescored exactly, for quantised vectors."""
_LEAST_REFINED = 16
"""Minimum candidates beyond k that are rescored, for quantised vectors."""


class Tunable(Protocol):
    """Approximate index with adjustable search effort."""

    @property
    def facts(self) -> IndexFacts:
        """Type, parameters and recall."""
        ...

    def search_approximately(self, queries: Float32, k: int) -> tuple[Int32, Float32]:
        """Items and scores of approximate search, two [r, k]."""
        ...

    def search_exactly(self, queries: Float32, k: int) -> tuple[Int32, Float32]:
        """Items and scores of exact search, two [r, k]."""
        ...

    def efforts(self, limit: float) -> list[int]:
        """Values of nprobe or efSearch, up to about the share `limit` of all work."""
        ...

    def with_effort(self, effort: int) -> Self:
        """Set nprobe or efSearch."""
        ...

    def with_facts(self, **changes: Any) -> Self:
        """Replace some facts."""
        ...

    def scanned_share(self, queries: Float32) -> float:
        """Vectors compared with a query, per vector in the index."""
        ...


T = TypeVar("T", bound=Tunable)


def candidates(settings: IndexSettings, num_vectors: int, dim: int) -> tuple[ApproximateType, ...]:
    """Approximate types to try, in this order; for auto those whose bytes per vector fit `max_bytes`."""
    if settings.type != "auto":
        assert settings.type != "exact", "exact search is not approximate"
        return (settings.type,)
    most = settings.max_bytes / num_vectors if settings.max_bytes else np.inf
    if 4 * dim <= most:
        return ("ivf", "hnsw")
    return ("sq", "ivf_pq") if dim <= most else ("ivf_pq",)


def tuned(index: T, queries: Float32, limit: float) -> T:
    """Tune the effort of `index` on every second of `queries` [q, d] and measure its recall on the others.

    Tuning aims a quarter of the way from the target to 1 above it, since the other queries differ a little; an unreachable
    target gives the greatest effort. `limit`: maximum share of the vectors compared with a query.
    """
    target, held_out = index.facts.target_recall, queries[1::2]
    best = _least_effort(index, queries[::2], target + (1 - target) / 4, limit)
    return best.with_facts(recall=_recalls(best, held_out), queries=len(held_out))


def mean_recall(exact: Int32, approximate: Int32) -> float:
    """Mean over rows of the share of items in `exact` [r, k] that `approximate` [r, k] has too; item 0 is none."""
    shares = [
        len(np.intersect1d(items[items > 0], row)) / max(1, int((items > 0).sum()))
        for items, row in zip(exact, approximate, strict=True)
    ]
    return float(np.mean(shares))


def _recalls(index: Tunable, queries: Float32) -> dict[str, float]:
    """Recall at each length; rows that the index cannot fill count with their items."""
    exact, _ = index.search_exactly(queries, RECALL_AT[-1])
    return {
        f"recall@{k}": mean_recall(exact[:, :k], index.search_approximately(queries, k)[0]) for k in RECALL_AT
    }


def _least_effort(index: T, queries: Float32, aim: float, limit: float) -> T:
    """Set the least effort, then the fewest refined candidates, at which recall@100 on `queries` reaches `aim`; else the most."""
    k = RECALL_AT[-1]
    exact, _ = index.search_exactly(queries, k)

    def reaches(tried: T) -> bool:
        return mean_recall(exact, tried.search_approximately(queries, k)[0]) >= aim

    efforts: Sequence[int] = index.efforts(limit)
    least = bisect.bisect_left(efforts, True, key=lambda effort: reaches(index.with_effort(effort)))
    best = index.with_effort(efforts[min(least, len(efforts) - 1)])
    fewer = best = best.with_facts(scanned_share=best.scanned_share(queries))
    while (refined := fewer.facts.parameters["num_refined"] // 2) >= _LEAST_REFINED:
        fewer = fewer.with_facts(parameters=fewer.facts.parameters | {"num_refined": refined})
        if not reaches(fewer):
            break
        best = fewer
    return best
