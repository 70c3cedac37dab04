"""Training settings: loss, negatives, optimiser, schedule, checkpoints."""

import math
from dataclasses import dataclass
from typing import Literal

from models.settings.encoder import EncoderSettings, refuse, refuse_other_choices, refuse_unread

Loss = Literal["softmax", "sampled_softmax", "gbce", "bce", "bpr"]
NegativeSampling = Literal["uniform", "in_batch", "popularity"]
TrainTargets = Literal["all", "last", "random"]
Predict = Literal["next", "visit", "window"]
Schedule = Literal["constant", "cosine"]
ItemOptimizer = Literal["auto", "adamw", "rowwise_adagrad"]
RefitFrom = Literal["start", "continue"]
Precision = Literal["auto", "fp32", "bf16"]
Compile = Literal["auto", "on", "off"]
ExposureWeighting = Literal["off", "ips"]

SCRATCH = "scratch"
"""`start` of a training from fresh weights."""
SAMPLED_LOSSES: tuple[Loss, ...] = ("sampled_softmax", "gbce", "bce", "bpr")


@dataclass(frozen=True)
class TrainSettings:
    """Training of the encoder: the `[train]` section."""

    loss: Loss = "softmax"
    """Training loss: softmax over the whole catalogue, or a loss over sampled negatives."""
    negatives: int = 256
    """Negatives per optimiser step, in items, shared by its targets."""
    negative_sampling: NegativeSampling = "uniform"
    """Sampling distribution of negatives. popularity: by training frequency; in_batch: the step's own targets."""
    logq_correction: bool = True
    """logQ correction of sampled_softmax: subtract log q(item) from scores, so that popular items are not under-scored."""
    gbce_calibration: float = 0.75
    """Calibration t of gbce, in [0, 1]. 0: plain binary cross-entropy; 1: predictions are calibrated probabilities."""
    targets: TrainTargets = "all"
    """Training targets per history. all: every event but the first; last: the last; random: one, a new one every epoch. With last
    and random the history ends before its target, as `model.direction` = "bidirectional" needs."""
    predict: Predict = "next"
    """Prediction target of a state. next: the next event, or with strict ties every event of the next visit; visit: the set of
    the next visit's items; window: the set of the items of the `evaluate.horizon_days` after a night drawn before
    the next event; with `model.request_time` the night is the request. A set counts as one target."""
    epochs: int = 100
    """Maximum training length, in epochs."""
    patience: int = 10
    """Early-stopping patience, in epochs, by validation NDCG@10."""
    batch_histories: int = 128
    """Batch size, in histories, the average per optimiser step; batches are cut by a budget of tokens."""
    accumulate: int = 1
    """Gradient accumulation: parts that an optimiser step is computed in, with less memory and the same result."""
    exposure_weighting: ExposureWeighting = "off"
    """Weights of targets that are reactions to exposures. ips: by the inverse probability that users looked at the item, which
    items and ranks of [exposures] tell (not its propensities), so that what was shown seldom or far below counts as much as what
    was shown to everybody."""
    learning_rate: float = 0.001
    """Learning rate of AdamW."""
    warmup_steps: int = 0
    """Linear warm-up of the learning rate, in optimiser steps."""
    schedule: Schedule = "constant"
    """Learning-rate schedule. cosine: decay to a hundredth over `epochs`."""
    weight_decay: float = 0.0
    """Decoupled weight decay of AdamW."""
    beta1: float = 0.9
    """Decay of AdamW's first moment."""
    beta2: float = 0.98
    """Decay of AdamW's second moment."""
    max_grad_norm: float = 1.0
    """Maximum gradient norm (Euclidean), for clipping; 0: off."""
    ema_decay: float = 0.0
    """Decay per step of the weights' moving average that is validated and kept, such as 0.999; 0: none."""
    item_optimizer: ItemOptimizer = "auto"
    """Optimiser of item vectors. rowwise_adagrad: one state per item and sparse updates, for millions of items with a sampled
    loss. auto: that from a million items on where the loss is sampled, else adamw."""
    precision: Precision = "auto"
    """Numeric precision: fp32 or bf16 autocast. auto: bf16 where the hardware computes it natively."""
    compile: Compile = "auto"
    """Compilation of the step by torch.compile. auto: on CUDA with a compiler, where training is long enough to pay for it."""
    refit_validation: bool = False
    """Refit on training and validation events before testing, for the steps that validation chose."""
    refit_from: RefitFrom = "start"
    """Starting weights of a refit. start: fresh ones, steps scaled by the number of targets; continue: the chosen ones, for an
    epoch at the end of every schedule and without warm-up."""
    refit: bool = True
    """Refit on all events before publishing."""
    start: str = "scratch"
    """Starting weights. scratch: fresh ones; champion, models:/NAME/VERSION: the deployed weights of a registered version,
    trained on the events since then (`lookback update`)."""
    replay: float = 0.25
    """Share of older targets, drawn by recency, among those that a training from a version learns, against forgetting."""
    full_every_days: float = 7.0
    """Longest time between trainings from scratch, in days. After it `lookback update` makes one; 0: any time."""
    validation_targets: int = 5_000
    """Maximum validation set ranked after each epoch, in targets, a fixed sample."""
    checkpoint_seconds: float = 60.0
    """Interval of checkpoints to resume from, in seconds; one more follows each epoch."""

    def __post_init__(self) -> None:
        refuse_other_choices(self, "train")
        for key in ("epochs", "patience", "batch_histories", "accumulate", "negatives", "validation_targets"):
            refuse(self, f"train.{key}", getattr(self, key) < 1, "at least 1")
        refuse(self, "train.learning_rate", not 0 < self.learning_rate < math.inf, "a number above 0")
        for key in ("weight_decay", "max_grad_norm", "checkpoint_seconds", "warmup_steps", "full_every_days"):
            refuse(self, f"train.{key}", not 0 <= getattr(self, key) < math.inf, "0 or more")
        refuse(
            self,
            "train.start",
            self.start not in (SCRATCH, "champion") and not self.start.startswith("models:/"),
            "scratch, champion, models:/NAME/VERSION, models:/NAME/latest or models:/NAME@ALIAS",
        )
        for key in ("beta1", "beta2", "ema_decay", "replay"):
            refuse(self, f"train.{key}", not 0 <= getattr(self, key) < 1, "in [0, 1)")
        refuse(self, "train.gbce_calibration", not 0 <= self.gbce_calibration <= 1, "in [0, 1]")
        refuse(
            self,
            "train.negative_sampling",
            self.loss == "gbce" and self.negative_sampling != "uniform",
            "'uniform' with loss 'gbce': its calibration assumes equal probabilities of all items",
        )
        refuse(
            self,
            "train.item_optimizer",
            self.item_optimizer == "rowwise_adagrad" and self.loss not in SAMPLED_LOSSES,
            f"'adamw' with loss {self.loss!r}: it touches every item at every step",
        )
        losses_of: dict[str, tuple[Loss, ...]] = {
            "negatives": SAMPLED_LOSSES,
            "negative_sampling": SAMPLED_LOSSES,
            "logq_correction": ("sampled_softmax",),
            "gbce_calibration": ("gbce",),
        }
        for key, losses in losses_of.items():
            reason = f"loss {self.loss!r}: {', '.join(losses)} alone read{'s' * (len(losses) == 1)} it"
            refuse_unread(self, f"train.{key}", self.loss not in losses, reason)


def check_together(encoder: EncoderSettings, train: TrainSettings) -> None:
    """Raise ValueError for a model that cannot be trained that way."""
    refuse(
        train,
        "train.targets",
        encoder.direction == "bidirectional" and train.targets == "all",
        "'last' or 'random' with model.direction 'bidirectional': a state that sees later events would see its own target",
    )
    refuse(
        train,
        "train.predict",
        train.predict != "next" and train.targets != "all",
        f"'next' with train.targets {train.targets!r}: sets of items are learned at every visit; or set train.targets = 'all'",
    )
    refuse(
        train,
        "train.predict",
        train.predict != "next" and encoder.readout == "target",
        "'next' with model.readout 'target': each target attends over the history, which is too slow for sets of items",
    )
    refuse(
        train,
        "train.loss",
        encoder.readout == "target" and train.loss == "softmax",
        f"one of {', '.join(SAMPLED_LOSSES)} with model.readout 'target': each candidate attends over the history, "
        "which is too slow for the whole catalogue at every target",
    )
    refuse(
        encoder,
        "model.similarity",
        encoder.readout == "target" and encoder.similarity == "cosine",
        "'dot' with model.readout 'target': its attention adds an unnormalised inner product to the score",
    )
    refuse(
        train,
        "train.item_optimizer",
        train.item_optimizer == "rowwise_adagrad" and not encoder.item_id,
        "'auto' or 'adamw' with model.item_id false: it optimises the learned vectors of items",
    )
