"""Second-stage settings: candidates, shape and training of the ranker."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from models.settings.encoder import refuse

RankerUse = Literal["auto", "always", "never"]
RankerLoss = Literal["listwise", "pointwise"]


@dataclass(frozen=True)
class RankerSettings:
    """Shape and training of the second stage: the `[ranker]` section."""

    use: RankerUse = "auto"
    """Use of the second stage in scoring. auto: where a paired test on the test targets shows it better than retrieval."""
    candidates: int = 100
    """Candidates per user, in items, retrieved for the ranker."""
    max_length: int = 50
    """Maximum history length of the ranker, in events."""
    dim: int = 32
    """Embedding dimension of the ranker, in components; a multiple of `num_heads`."""
    num_heads: int = 2
    """Attention heads of the ranker."""
    hidden: int = 64
    """Hidden layer above features and attention, in units."""
    dropout: float = 0.1
    """Dropout rate of the ranker, in [0, 1)."""
    loss: RankerLoss = "listwise"
    """Ranker loss. listwise: softmax over each list's candidates; pointwise: binary cross-entropy of each."""
    request_time: bool = True
    """Access to the time of the request; without it times end with the last interaction."""
    train_fraction: float = 0.8
    """Training share of users; the others are for early stopping and calibration."""
    max_lists: int = 20_000
    """Maximum training set, in lists, one per validation target."""
    epochs: int = 30
    """Maximum training length of the ranker, in epochs."""
    patience: int = 4
    """Early-stopping patience of the ranker, in epochs, by NDCG@10 on the held-out users."""
    batch_lists: int = 32
    """Batch size of the ranker, in lists per optimiser step."""
    learning_rate: float = 0.001
    """Learning rate of AdamW."""
    weight_decay: float = 0.01
    """Decoupled weight decay of AdamW."""

    def __post_init__(self) -> None:
        for key, known in (("use", get_args(RankerUse)), ("loss", get_args(RankerLoss))):
            value = getattr(self, key)
            refuse(value not in known, f"ranker.{key}", value, " or ".join(map(repr, known)))
        counts = (
            "max_length",
            "dim",
            "num_heads",
            "hidden",
            "max_lists",
            "epochs",
            "patience",
            "batch_lists",
        )
        for key in counts:
            refuse(getattr(self, key) < 1, f"ranker.{key}", getattr(self, key), "at least 1")
        refuse(self.candidates < 2, "ranker.candidates", self.candidates, "at least 2")
        refuse(self.dim % self.num_heads > 0, "ranker.dim", self.dim, "a multiple of ranker.num_heads")
        refuse(not 0 <= self.dropout < 1, "ranker.dropout", self.dropout, "a share in [0, 1)")
        refuse(
            not 0 < self.train_fraction < 1, "ranker.train_fraction", self.train_fraction, "a share in (0, 1)"
        )
        for key, least in (("learning_rate", 0), ("weight_decay", -1)):
            value = getattr(self, key)
            refuse(
                not least < value < math.inf,
                f"ranker.{key}",
                value,
                "0 or more" if least else "a number above 0",
            )
