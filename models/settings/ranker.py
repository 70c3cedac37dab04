"""Second-stage settings: candidates, shape and training of the ranker."""

import math
from dataclasses import dataclass, field
from typing import Literal

from models.settings.encoder import refuse, refuse_other_choices

RankerUse = Literal["auto", "always", "never"]
RankerLoss = Literal["listwise", "pointwise"]


@dataclass(frozen=True)
class RankerSettings:
    """Shape and training of the second stage: the `[ranker]` section."""

    use: RankerUse = "auto"
    """Use of the second stage in scoring. auto: where a paired test on the test targets shows it better than retrieval."""
    candidates: int = 100
    """Candidates per user, in items, retrieved for the ranker."""
    favourites: int = 30
    """Items that a user took most often, always among the candidates where seen items are allowed."""
    popular: int = 30
    """Items most popular in the last days before the request, always among the candidates."""
    columns: str | list[str] = field(default_factory=list)
    """Columns of `[users]` and `[items]`, and further ones of `[events]`, that the ranker reads, by names such as `country` or
    `users.country`; those of events are of the user's last one. auto: those that a paired test on held-out users' validation
    lists finds better, by up to two further trainings."""
    max_length: int = 50
    """Maximum history length of the ranker, in events."""
    item_vectors: bool = True
    """Item vectors and target attention in the ranker; without them it knows items by their features and followers alone."""
    dim: int = 32
    """Embedding dimension of the ranker, in components; a multiple of `num_heads`."""
    num_heads: int = 2
    """Attention heads of the ranker."""
    hidden: int = 64
    """Hidden layer above features and attention, in units; 0: none, so that scores are linear in them. One or two nights to learn
    from teach a hidden layer what those days favoured."""
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
        refuse_other_choices(self, "ranker")
        for key in ("max_length", "dim", "num_heads"):
            refuse(self, f"ranker.{key}", getattr(self, key) < 1, "at least 1")
        for key in ("max_lists", "epochs", "patience", "batch_lists"):
            refuse(self, f"ranker.{key}", getattr(self, key) < 1, "at least 1")
        for key in ("favourites", "popular", "hidden"):
            refuse(self, f"ranker.{key}", getattr(self, key) < 0, "0 or more")
        is_known = self.columns == "auto" or isinstance(self.columns, list)
        refuse(self, "ranker.columns", not is_known, "auto, or a list of columns")
        refuse(self, "ranker.candidates", self.candidates < 2, "at least 2")
        refuse(self, "ranker.dim", self.dim % self.num_heads > 0, "a multiple of ranker.num_heads")
        refuse(self, "ranker.dropout", not 0 <= self.dropout < 1, "a share in [0, 1)")
        refuse(self, "ranker.train_fraction", not 0 < self.train_fraction < 1, "a share in (0, 1)")
        refuse(self, "ranker.learning_rate", not 0 < self.learning_rate < math.inf, "a number above 0")
        refuse(self, "ranker.weight_decay", not -1 < self.weight_decay < math.inf, "0 or more")
