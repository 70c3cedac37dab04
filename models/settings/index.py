"""Settings of an item index, and the measured facts of a built one."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from models.settings.encoder import refuse, refuse_other_choices

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
        refuse_other_choices(self, "index")
        refuse(self, "index.target_recall", not 0 < self.target_recall <= 1, "more than 0, at most 1")
        is_small = self.recall_queries < 2
        refuse(self, "index.recall_queries", is_small, "at least 2: half to tune on, half to measure on")
        refuse(self, "index.max_bytes", self.max_bytes < 0, "0 (no bound) or more")


@dataclass(frozen=True)
class IndexFacts:
    """Parameters and measured recall of an index; the same vectors give the same facts."""

    type: IndexType = "exact"
    """Type that was built."""
    parameters: dict[str, int] = field(default_factory=dict)
    """num_lists and nprobe (lists searched), or num_links and ef_search (candidates kept in the search); num_refined: further
    candidates that are scored exactly."""
    target_recall: float = 0.99
    """Required recall@100."""
    recall: dict[str, float] = field(default_factory=dict)
    """recall@10 and recall@100 against exact search on vectors that it was not tuned on; empty: not measured."""
    queries: int = 0
    """Vectors that recall was measured on."""
    scanned_share: float = 1.0
    """Vectors that a query is compared with, centroids included, per vector in the index."""
    num_bytes: int = 0
    """Size of FAISS's index, without exact vectors that lie beside it."""
    num_built: int = 0
    """Vectors at build time; later ones are neither tuned for nor measured."""

    def flat(self) -> dict[str, Any]:
        """One level of keys, `recall@k` among them."""
        facts = asdict(self)
        recall: dict[str, Any] = facts.pop("recall")
        return recall | facts
