"""Training settings: loss, negatives, optimiser, schedule, checkpoints."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from models.settings.encoder import EncoderSettings, refuse

Loss = Literal["softmax", "sampled_softmax", "gbce", "bce", "bpr"]
NegativeSampling = Literal["uniform", "in_batch", "popularity"]
TrainTargets = Literal["all", "last", "random"]
Schedule = Literal["constant", "cosine"]
ItemOptimizer = Literal["auto", "adamw", "rowwise_adagrad"]
RefitFrom = Literal["start", "continue"]
Precision = Literal["auto", "fp32", "bf16"]
Compile = Literal["auto", "on", "off"]

SAMPLED_LOSSES: tuple[Loss, ...] = ("sampled_softmax", "gbce", "bce", "bpr")


@dataclass(frozen=True)
class TrainSettings:
    """How the encoder is trained: the `[train]` section."""

    loss: Loss = "softmax"
    """What is minimised: softmax over the whole catalogue; over sampled negatives: sampled_softmax, gbce, bce, bpr."""
    negatives: int = 256
    """Items drawn for each optimiser step, the negatives of all its targets; in_batch: drawn from the step's own targets."""
    negative_sampling: NegativeSampling = "uniform"
    """uniform: every item alike; popularity: as often as it occurs in training; in_batch: the step's own targets."""
    logq_correction: bool = True
    """sampled_softmax: take the logarithm of how often an item is drawn off its score: popular ones are not pushed down."""
    gbce_calibration: float = 0.75
    """gbce: t in [0, 1]; 0 is plain binary cross-entropy, 1 makes predictions calibrated probabilities."""
    targets: TrainTargets = "all"
    """all: every event that has one before it; last: each history's last alone; random: one of each history, another every
    epoch. With the last two a history is closed before its target, as `model.direction` = "bidirectional" needs it."""
    epochs: int = 100
    """Passes over the training histories, at most."""
    patience: int = 10
    """Epochs without a better validation NDCG@10 before training stops."""
    batch_histories: int = 128
    """Histories per optimiser step, on average: batches are cut by a budget of tokens."""
    accumulate: int = 1
    """Parts that an optimiser step is computed in, one after the other: less memory, the same step."""
    learning_rate: float = 0.001
    """AdamW's step size."""
    warmup_steps: int = 0
    """Optimiser steps over which the learning rate rises from 0."""
    schedule: Schedule = "constant"
    """constant, or cosine: the learning rate falls to a hundredth over `epochs`."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay."""
    beta1: float = 0.9
    """AdamW's decay of the first moment."""
    beta2: float = 0.98
    """AdamW's decay of the second moment."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this Euclidean norm; 0 turns it off."""
    ema_decay: float = 0.0
    """Decay per step of the moving average of the weights that is validated and kept, such as 0.999; 0: none."""
    item_optimizer: ItemOptimizer = "auto"
    """Of item vectors. rowwise_adagrad: one number of state per item, and only the items of a step are touched: for catalogues of
    millions, with a sampled loss. auto: that from a million items on where the loss is sampled, else adamw."""
    precision: Precision = "auto"
    """fp32, bf16 autocast, or bf16 where the hardware computes it natively."""
    compile: Compile = "auto"
    """Whether the step goes through torch.compile; auto: on CUDA, where a compiler is there and training is long enough to pay
    for it (on the CPU the step is near its kernels' own time, and compiled is slower)."""
    refit_validation: bool = False
    """Train again on training + validation events, for the steps that validation chose, before testing."""
    refit_from: RefitFrom = "start"
    """start: train again from fresh weights, the steps scaled by the number of targets; continue: go on from the chosen weights
    for an epoch, at the end of every schedule (learning rate, Gumbel temperature) and without warm-up."""
    refit: bool = True
    """Publish trains again on all events before anything is deployed."""
    validation_targets: int = 5_000
    """Validation targets ranked after each epoch, at most (a fixed sample of them where there are more)."""
    checkpoint_seconds: float = 60.0
    """Seconds between checkpoints to resume from (one is also written after each epoch)."""

    def __post_init__(self) -> None:
        choices = {
            "loss": get_args(Loss),
            "negative_sampling": get_args(NegativeSampling),
            "targets": get_args(TrainTargets),
            "schedule": get_args(Schedule),
            "item_optimizer": get_args(ItemOptimizer),
            "refit_from": get_args(RefitFrom),
            "precision": get_args(Precision),
            "compile": get_args(Compile),
        }
        for key, known in choices.items():
            value = getattr(self, key)
            refuse(value not in known, f"train.{key}", value, " or ".join(map(repr, known)))
        counts = ("epochs", "patience", "batch_histories", "accumulate", "negatives", "validation_targets")
        for key in counts:
            refuse(getattr(self, key) < 1, f"train.{key}", getattr(self, key), "at least 1")
        refuse(
            not 0 < self.learning_rate < math.inf,
            "train.learning_rate",
            self.learning_rate,
            "a number above 0",
        )
        for key in ("weight_decay", "max_grad_norm", "checkpoint_seconds", "warmup_steps"):
            refuse(not 0 <= getattr(self, key) < math.inf, f"train.{key}", getattr(self, key), "0 or more")
        for key in ("beta1", "beta2", "ema_decay"):
            refuse(not 0 <= getattr(self, key) < 1, f"train.{key}", getattr(self, key), "in [0, 1)")
        refuse(
            not 0 <= self.gbce_calibration <= 1, "train.gbce_calibration", self.gbce_calibration, "in [0, 1]"
        )
        refuse(
            self.loss == "gbce" and self.negative_sampling != "uniform",
            "train.negative_sampling",
            self.negative_sampling,
            "'uniform' with loss 'gbce': its calibration assumes that every item is drawn alike",
        )
        refuse(
            self.item_optimizer == "rowwise_adagrad" and self.loss not in SAMPLED_LOSSES,
            "train.item_optimizer",
            self.item_optimizer,
            f"'adamw' with loss {self.loss!r}: it touches every item at every step",
        )
        self._refuse_what_nothing_reads()

    def _refuse_what_nothing_reads(self) -> None:
        read_by = {
            "negatives": SAMPLED_LOSSES,
            "negative_sampling": SAMPLED_LOSSES,
            "logq_correction": ("sampled_softmax",),
            "gbce_calibration": ("gbce",),
        }
        for key, losses in read_by.items():
            value, default = getattr(self, key), getattr(type(self), key)
            refuse(
                self.loss not in losses and value != default,
                f"train.{key}",
                value,
                f"{default!r} with loss {self.loss!r}: {', '.join(losses)} alone read{'s' * (len(losses) == 1)} it",
            )


def check_together(encoder: EncoderSettings, train: TrainSettings) -> None:
    """Raise ValueError where a model cannot be trained that way."""
    refuse(
        encoder.direction == "bidirectional" and train.targets == "all",
        "train.targets",
        train.targets,
        "'last' or 'random' with model.direction 'bidirectional': a state that knows what comes later would know its target",
    )
    refuse(
        encoder.readout == "target" and train.loss == "softmax",
        "train.loss",
        train.loss,
        f"one of {', '.join(SAMPLED_LOSSES)} with model.readout 'target': each candidate looks at the history by itself, "
        "the whole catalogue would at every target",
    )
    refuse(
        encoder.readout == "target" and encoder.similarity == "cosine",
        "model.similarity",
        "cosine",
        "'dot' with model.readout 'target': what a candidate finds adds to its score as an inner product, of any length",
    )
    refuse(
        train.item_optimizer == "rowwise_adagrad" and not encoder.item_id,
        "train.item_optimizer",
        train.item_optimizer,
        "'auto' or 'adamw' with model.item_id false: it is for the items' own vectors",
    )
