"""Settings of an item index, and the measured facts of a built one."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

ApproximateType = Literal["hnsw", "ivf", "ivf_pq", "sq"]
IndexType = Literal["exact", "hnsw", "ivf", "ivf_pq", "sq"]


@dataclass(frozen=True)
class IndexSettings:
    """Search of items: the `[index]` section."""

    type: IndexType | Literal["auto"] = "auto"
    """Item index. exact: every vector; hnsw: neighbour graph; ivf: inverted lists; sq, ivf_pq: compressed lists, the best
    re-scored exactly. auto: exact up to 30,000 items; above, ivf or hnsw where they reach the recall cheaply."""
    target_recall: float = 0.99
    """Minimum recall@100 against exact search, in (0, 1]; a chosen type below it is refused."""
    recall_queries: int = 1000
    """Maximum sample for tuning (half) and recall (half), in user vectors."""
    max_bytes: int = 0
    """Memory limit of the searched vectors, in bytes; above it auto tries sq, then ivf_pq. 0: none."""

    def __post_init__(self) -> None:
        types = ("auto", *get_args(IndexType))
        for name, is_valid, expected in (
            ("type", self.type in types, f"one of {', '.join(types)}"),
            ("target_recall", 0 < self.target_recall <= 1, "more than 0, at most 1"),
            ("recall_queries", self.recall_queries >= 2, "at least 2: half to tune on, half to measure on"),
            ("max_bytes", self.max_bytes >= 0, "0 (no bound) or more"),
        ):
            if not is_valid:
                raise ValueError(f"index.{name}: received {getattr(self, name)!r}, expected {expected}")


@dataclass(frozen=True)
class IndexFacts:
    """What an index is and how well it finds; no clock enters, so the same vectors give the same facts."""

    type: IndexType = "exact"
    """What was built."""
    parameters: dict[str, int] = field(default_factory=dict)
    """num_lists and nprobe (lists looked into), or num_links and ef_search (candidates kept on the way); num_refined: further
    candidates that are scored exactly."""
    target_recall: float = 0.99
    """What it was asked to reach."""
    recall: dict[str, float] = field(default_factory=dict)
    """recall@10 and recall@100 against exact search on vectors that it was not tuned on; empty: not measured."""
    queries: int = 0
    """Vectors that it was measured on."""
    scanned_share: float = 1.0
    """Vectors that a query is compared with, centroids included, per vector in the index."""
    num_bytes: int = 0
    """Of FAISS's index; the exact vectors beside it, where it does not hold them, are not counted."""
    num_built: int = 0
    """Vectors that it was built of; what was added later is neither tuned for nor measured."""

    def flat(self) -> dict[str, Any]:
        """One level of keys, `recall@k` among them."""
        found = asdict(self)
        recall: dict[str, Any] = found.pop("recall")
        return recall | found
