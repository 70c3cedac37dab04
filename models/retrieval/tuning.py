"""Tuning of an approximate index: the least work that reaches the recall, counted, never timed."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import Any, Protocol, Self, TypeVar

import numpy as np

from models.histories import Float32, Int32
from models.settings.index import ApproximateType, IndexFacts, IndexSettings

RECALL_AT = (10, 100)
"""Lengths of the lists whose recall is measured; the last one's is asked for."""
MOST_SCANNED = {"ivf": 0.05, "hnsw": 0.02, "sq": 0.25, "ivf_pq": 0.5}
"""Share of the vectors compared with a query above which auto prefers exact search: a vector of a list costs several times, one
of a graph some ten times what it costs in a matrix product. The quantised types are for memory, not for speed."""
MOST_REFINED = {"hnsw": 0, "ivf": 0, "sq": 256, "ivf_pq": 2048}
"""Candidates beyond k whose exact scores decide, at most: those found by rounded vectors."""
_LEAST_REFINED = 16
"""And at least, where vectors are rounded."""


class Tunable(Protocol):
    """An approximate index whose effort can be chosen."""

    @property
    def facts(self) -> IndexFacts:
        """Type, parameters and recall."""
        ...

    def search_approximately(self, queries: Float32, k: int) -> tuple[Int32, Float32]:
        """Items and scores of the index alone, two [r, k]."""
        ...

    def search_exactly(self, queries: Float32, k: int) -> tuple[Int32, Float32]:
        """Items and scores of exact search, two [r, k]."""
        ...

    def efforts(self, limit: float) -> list[int]:
        """Nprobe or efSearch from little to about the share `limit` of all work."""
        ...

    def with_effort(self, effort: int) -> Self:
        """Searched with this nprobe or efSearch."""
        ...

    def with_facts(self, **changes: Any) -> Self:
        """Known by other facts."""
        ...

    def scanned_share(self, queries: Float32) -> float:
        """Vectors compared with a query, per vector in the index."""
        ...


T = TypeVar("T", bound=Tunable)


def candidates(settings: IndexSettings, num_vectors: int, dim: int) -> tuple[ApproximateType, ...]:
    """The approximate types to try, in this order; auto: by the bytes of a vector in each."""
    if settings.type != "auto":
        assert settings.type != "exact", "exact search is not approximate"
        return (settings.type,)
    most = settings.max_bytes / num_vectors if settings.max_bytes else np.inf
    if 4 * dim <= most:
        return ("ivf", "hnsw")
    return ("sq", "ivf_pq") if dim <= most else ("ivf_pq",)


def tuned(index: T, queries: Float32, limit: float) -> T:
    """`index` with the effort tuned on every second of `queries` [q, d] and its recall measured on the others.

    A quarter more than the target is aimed at (of what the target leaves to 1), since the others differ a little. Where the
    target is out of reach the result is that of most effort. `limit`: share of the vectors that a query may be compared with.
    """
    target = index.facts.target_recall
    found = _least_effort(index, queries[::2], target + (1 - target) / 4, limit)
    held_out = queries[1::2]
    return found.with_facts(recall=_recalls(found, held_out), queries=len(held_out))


def share_found(exact: Int32, found: Int32) -> float:
    """Mean share of each row's items in `exact` [r, k] that are in the same row of `found`; item 0 is none."""
    shares = [
        len(np.intersect1d(wanted[wanted > 0], got)) / max(1, int((wanted > 0).sum()))
        for wanted, got in zip(exact, found, strict=True)
    ]
    return float(np.mean(shares))


def _recalls(index: Tunable, queries: Float32) -> dict[str, float]:
    """Recall at each length; rows that the index cannot fill count with the items it found."""
    exact, _ = index.search_exactly(queries, RECALL_AT[-1])
    return {
        f"recall@{k}": share_found(exact[:, :k], index.search_approximately(queries, k)[0]) for k in RECALL_AT
    }


def _least_effort(index: T, queries: Float32, aim: float, limit: float) -> T:
    """The least effort, then the fewest refined candidates, with which recall@100 on `queries` reaches `aim`; else the most."""
    k = RECALL_AT[-1]
    exact, _ = index.search_exactly(queries, k)

    def reaches(tried: T) -> bool:
        return share_found(exact, tried.search_approximately(queries, k)[0]) >= aim

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
