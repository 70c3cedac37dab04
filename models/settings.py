"""Settings of the model and its training, as frozen dataclasses that import nothing heavy.

They live apart from the modules that use them so that the command line can check a configuration without importing torch.
"""

import math
from dataclasses import dataclass
from typing import Literal

Block = Literal["transformer", "hstu", "ligr", "gru", "lstm", "conv", "pooling"]
Loss = Literal["softmax", "sampled_softmax", "gbce", "bce", "bpr"]
ATTENTION_BLOCKS: tuple[Block, ...] = ("transformer",)
"""Blocks whose positions look at each other, with `num_heads` heads; the others read a history in order."""
AVAILABLE_BLOCKS: tuple[Block, ...] = (*ATTENTION_BLOCKS, "gru")
Positions = Literal["absolute", "relative"]
Precision = Literal["auto", "fp32", "bf16"]
Compile = Literal["auto", "on", "off"]


def _refuse(condition: bool, key: str, received: object, expected: str) -> None:
    if condition:
        raise ValueError(f"{key}: received {received!r}, expected {expected}")


@dataclass(frozen=True)
class EncoderSettings:
    """Shape of the history encoder: the `[model]` section."""

    block: Block = "transformer"
    """What mixes the positions of a history; this version has `transformer` and `gru`."""
    dim: int = 64
    """Width of item vectors and states, in components; with attention a multiple of `num_heads`."""
    num_blocks: int = 2
    """Number of blocks, one after the other."""
    num_heads: int = 2
    """Attention heads per block; `gru` has none and ignores it."""
    dropout: float = 0.2
    """Share of components set to zero during training, in [0, 1)."""
    positions: Positions = "absolute"
    """What attention knows of order. absolute: a learned vector per place in the window; relative: a learned bias per head
    and distance, which tells near from far the same in short and in long histories."""
    request_time: bool = False
    """Whether the model may see the time of the request; this version's blocks cannot."""

    def __post_init__(self) -> None:
        _refuse(
            self.block not in AVAILABLE_BLOCKS,
            "model.block",
            self.block,
            f"{' or '.join(map(repr, AVAILABLE_BLOCKS))}: the other blocks are not in this version",
        )
        _refuse(
            self.positions not in ("absolute", "relative"),
            "model.positions",
            self.positions,
            "'absolute' or 'relative'",
        )
        _refuse(
            self.request_time,
            "model.request_time",
            True,
            "false: no block of this version sees the request's time",
        )
        _refuse(self.dim < 1, "model.dim", self.dim, "at least 1")
        _refuse(self.num_blocks < 1, "model.num_blocks", self.num_blocks, "at least 1")
        _refuse(self.num_heads < 1, "model.num_heads", self.num_heads, "at least 1")
        _refuse(
            self.attends and self.dim % max(self.num_heads, 1) != 0,
            "model.dim",
            self.dim,
            f"a multiple of num_heads ({self.num_heads})",
        )
        _refuse(not 0 <= self.dropout < 1, "model.dropout", self.dropout, "a share in [0, 1)")

    @property
    def attends(self) -> bool:
        """Whether the blocks are attention blocks."""
        return self.block in ATTENTION_BLOCKS


@dataclass(frozen=True)
class TrainSettings:
    """How the encoder is trained: the `[train]` section."""

    loss: Loss = "softmax"
    """What is minimised; this version has `softmax`, over the whole catalogue."""
    epochs: int = 100
    """Passes over the training histories, at most."""
    patience: int = 10
    """Epochs without a better validation NDCG@10 before training stops."""
    batch_histories: int = 128
    """Histories per optimiser step, on average: batches are cut by a budget of tokens."""
    learning_rate: float = 0.001
    """AdamW's step size."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay."""
    beta1: float = 0.9
    """AdamW's decay of the first moment."""
    beta2: float = 0.98
    """AdamW's decay of the second moment."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this Euclidean norm; 0 turns it off."""
    precision: Precision = "auto"
    """fp32, bf16 autocast, or bf16 where the hardware computes it natively."""
    compile: Compile = "auto"
    """Whether the step goes through torch.compile; auto: where a compiler is there and training is long enough to pay for it."""
    refit_validation: bool = False
    """Train again on training + validation events, for the steps that validation chose, before testing."""
    refit: bool = True
    """Publish trains again on all events before anything is deployed."""
    validation_targets: int = 5_000
    """Validation targets ranked after each epoch, at most (a fixed sample of them where there are more)."""
    checkpoint_seconds: float = 60.0
    """Seconds between checkpoints to resume from (one is also written after each epoch)."""

    def __post_init__(self) -> None:
        _refuse(
            self.loss != "softmax",
            "train.loss",
            self.loss,
            "'softmax': the other losses are not in this version",
        )
        for key in ("epochs", "patience", "batch_histories", "validation_targets"):
            _refuse(getattr(self, key) < 1, f"train.{key}", getattr(self, key), "at least 1")
        _refuse(
            not 0 < self.learning_rate < math.inf,
            "train.learning_rate",
            self.learning_rate,
            "a number above 0",
        )
        for key in ("weight_decay", "max_grad_norm", "checkpoint_seconds"):
            _refuse(not 0 <= getattr(self, key) < math.inf, f"train.{key}", getattr(self, key), "0 or more")
        for key in ("beta1", "beta2"):
            _refuse(not 0 <= getattr(self, key) < 1, f"train.{key}", getattr(self, key), "in [0, 1)")
