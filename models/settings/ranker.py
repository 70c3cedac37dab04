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
    """auto: in scoring only where it is better than retrieval alone on the test targets, by a paired test; always, never."""
    candidates: int = 100
    """Items retrieved for each user that the ranker puts in order."""
    max_length: int = 50
    """Past interactions that it looks back over, at most."""
    dim: int = 32
    """Width of its vectors, in components; a multiple of `num_heads`."""
    num_heads: int = 2
    """Heads of its multi-head attention."""
    hidden: int = 64
    """Units of the layer above features and attention."""
    dropout: float = 0.1
    """Share of components set to zero during training, in [0, 1)."""
    loss: RankerLoss = "listwise"
    """listwise: softmax over each list's candidates; pointwise: binary cross-entropy of each candidate."""
    request_time: bool = True
    """Whether it may see the time of the request; times are else those before the last interaction."""
    train_fraction: float = 0.8
    """Share of users it learns from, the others are for early stopping and calibration."""
    max_lists: int = 20_000
    """Validation targets that it learns from, at most."""
    epochs: int = 30
    """Passes over its lists, at most."""
    patience: int = 4
    """Epochs without a better NDCG@10 on the other users before it stops."""
    batch_lists: int = 32
    """Lists per optimiser step."""
    learning_rate: float = 0.001
    """AdamW's step size."""
    weight_decay: float = 0.01
    """AdamW's decoupled weight decay."""

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
