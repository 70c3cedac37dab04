"""Settings of the model and its training, as frozen dataclasses that import nothing heavy.

They live apart from the modules that use them so that the command line can check a configuration without importing torch.
`auto` stands for what the chosen block is known for; `EncoderSettings.resolved` says what that is.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

Block = Literal["transformer", "hstu", "ligr", "gru", "lstm", "conv", "pooling"]
Score = Literal["dot", "scaled_dot", "cosine", "general", "additive", "concat"]
Weighting = Literal["softmax", "silu", "gumbel_softmax", "sparsemax", "entmax"]
Positions = Literal["none", "absolute", "relative", "rotary"]
FeedForward = Literal["gelu", "swiglu"]
Direction = Literal["causal", "bidirectional"]
Readout = Literal["last", "mean", "attention", "target"]
Similarity = Literal["dot", "cosine"]
Loss = Literal["softmax", "sampled_softmax", "gbce", "bce", "bpr"]
NegativeSampling = Literal["uniform", "in_batch", "popularity"]
TrainTargets = Literal["all", "last", "random"]
Schedule = Literal["constant", "cosine"]
ItemOptimizer = Literal["auto", "adamw", "rowwise_adagrad"]
RefitFrom = Literal["start", "continue"]
RankerUse = Literal["auto", "always", "never"]
RankerLoss = Literal["listwise", "pointwise"]
Precision = Literal["auto", "fp32", "bf16"]
Compile = Literal["auto", "on", "off"]

ATTENTION_BLOCKS: tuple[Block, ...] = ("transformer", "hstu", "ligr")
"""Blocks whose positions look at each other, with `num_heads` heads; the others read a history in order."""
RECURRENT_BLOCKS: tuple[Block, ...] = ("gru", "lstm")
INNER_PRODUCTS: tuple[Score, ...] = ("dot", "scaled_dot", "cosine", "general")
"""Scores that are inner products of transformed queries and keys: these have fast kernels, and can be turned (rotary)."""
SAMPLED_LOSSES: tuple[Loss, ...] = ("sampled_softmax", "gbce", "bce", "bpr")


def _refuse(condition: bool, key: str, received: object, expected: str) -> None:
    if condition:
        raise ValueError(f"{key}: received {received!r}, expected {expected}")


@dataclass(frozen=True)
class EncoderSettings:
    """Shape of the history encoder: the `[model]` section."""

    block: Block = "transformer"
    """What mixes the positions of a history."""
    dim: int = 64
    """Width of item vectors and states, in components; where something attends a multiple of `num_heads`."""
    num_blocks: int = 2
    """Number of blocks, one after the other; 0: none, the readout sees the embeddings."""
    num_heads: int = 2
    """Attention heads per block; blocks that read in order have none and ignore it."""
    dropout: float = 0.2
    """Share of components set to zero during training, in [0, 1)."""
    score: Score | Literal["auto"] = "auto"
    """How well a query and a key fit. auto: dot in hstu, else scaled_dot."""
    weighting: Weighting | Literal["auto"] = "auto"
    """How scores become weights. auto: silu in hstu, else softmax."""
    positions: Positions | Literal["auto"] = "auto"
    """What attention knows of order. absolute: a learned vector per place in the window; relative: a learned bias per head
    and distance, which tells near from far the same in short and in long histories; rotary: queries and keys are turned by
    their places; none. auto: relative where the blocks attend, none elsewhere."""
    time_bias: bool = False
    """Attention: a learned bias per head and time between two events, in logarithmic buckets."""
    request_time: bool = False
    """Whether the model may see the time of the request: `time_bias` and `calendar` then count from it."""
    window: int = 0
    """Attention, causal: positions that each one sees, itself included, in the blocks and in readout attention; 0: all before
    it."""
    feed_forward: FeedForward | Literal["auto"] = "auto"
    """What follows attention in transformer and ligr (hstu has nothing). auto: swiglu in ligr, gelu in transformer."""
    direction: Direction = "causal"
    """causal: a state knows what came before; bidirectional: the whole history, which must then be closed
    (`train.targets` last or random). For attention blocks, gru and lstm."""
    kernel: int = 5
    """conv: positions that each one sees in a block, itself included."""
    readout: Readout = "last"
    """What a history's states become. last: its last state; mean: the mean of its states; attention: the last state and what
    it finds by attention over all of them; target: for each candidate what that finds by attention (DIN), with the same `score`
    but no biases, weighted by softmax or silu."""
    item_id: bool = True
    """Whether an item has a learned vector of its own; without one it is its content."""
    item_content: bool = False
    """Whether categories, text and embeddings of items go into their vectors; items never seen in training then have one."""
    event_type: bool = True
    """Whether the model sees the type of past events."""
    value: bool = False
    """Whether the model sees the value of past events."""
    calendar: bool = False
    """Whether the model sees hour of the day and day of the week (UTC) of past events."""
    similarity: Similarity = "dot"
    """dot: user and item vectors as they are; cosine: both of length 1, divided by `temperature`."""
    temperature: float = 0.05
    """cosine: what similarities are divided by."""
    learned_temperature: bool = False
    """cosine: whether the temperature is learned, from `temperature` on."""
    gumbel_start: float = 1.0
    """gumbel_softmax: temperature at the first step; falls geometrically to `gumbel_end` over `train.epochs`."""
    gumbel_end: float = 0.2
    """gumbel_softmax: temperature at the end."""
    gumbel_hard: bool = False
    """gumbel_softmax: straight-through, all weight on one position forward and the soft gradient backward."""

    def __post_init__(self) -> None:
        for key, choices in _CHOICES.items():
            value = getattr(self, key)
            _refuse(value not in choices, f"model.{key}", value, " or ".join(map(repr, choices)))
        _refuse(self.dim < 1, "model.dim", self.dim, "at least 1")
        _refuse(self.num_blocks < 0, "model.num_blocks", self.num_blocks, "0 or more")
        _refuse(self.num_heads < 1, "model.num_heads", self.num_heads, "at least 1")
        _refuse(not 0 <= self.dropout < 1, "model.dropout", self.dropout, "a share in [0, 1)")
        _refuse(self.window < 0, "model.window", self.window, "0 or more")
        _refuse(self.kernel < 1, "model.kernel", self.kernel, "at least 1")
        for key in ("temperature", "gumbel_start", "gumbel_end"):
            value = getattr(self, key)
            _refuse(not 0 < value < math.inf, f"model.{key}", value, "a number above 0")
        self._refuse_what_nothing_reads()
        self._refuse_contradictions()

    def _refuse_contradictions(self) -> None:
        settings = self.resolved
        _refuse(
            self.looks and self.dim % self.num_heads != 0,
            "model.dim",
            self.dim,
            f"a multiple of num_heads ({self.num_heads})",
        )
        turnable = settings.score in INNER_PRODUCTS and self.dim // self.num_heads % 2 == 0
        _refuse(
            settings.positions == "rotary" and not turnable,
            "model.positions",
            "rotary",
            f"another with score {settings.score!r}, dim {self.dim} and {self.num_heads} heads: it turns pairs of components "
            f"of queries and keys that meet in an inner product ({', '.join(INNER_PRODUCTS)})",
        )
        _refuse(
            self.direction == "bidirectional" and (self.block in ("conv", "pooling") or not self.num_blocks),
            "model.direction",
            self.direction,
            f"'causal' with {self._blocks}: only {', '.join(ATTENTION_BLOCKS + RECURRENT_BLOCKS)} read from both ends",
        )
        _refuse(
            self.direction == "bidirectional" and self.block in RECURRENT_BLOCKS and self.readout == "last",
            "model.readout",
            "last",
            f"'mean' or 'attention' with block {self.block!r} and direction 'bidirectional': the last state of the pass from the "
            "end has read one event only",
        )
        _refuse(
            self.direction == "bidirectional" and self.window > 0,
            "model.window",
            self.window,
            "0 with direction 'bidirectional': a position then sees all of its row, and a window looks back only",
        )
        _refuse(
            not (self.item_id or self.item_content),
            "model.item_id",
            False,
            "true, or model.item_content: an item must have some vector",
        )
        _refuse(
            self.readout == "target" and settings.weighting not in ("softmax", "silu"),
            "model.weighting",
            settings.weighting,
            "'softmax' or 'silu' with readout 'target': their running sums serve all positions of a history at once",
        )

    def _refuse_what_nothing_reads(self) -> None:
        blocks = self._blocks
        for key in ("score", "weighting"):
            _refuse(
                getattr(self, key) != "auto" and not self.looks,
                f"model.{key}",
                getattr(self, key),
                f"'auto' with {blocks} and readout {self.readout!r}: nothing attends",
            )
        for key in ("time_bias", "window"):
            self._refuse_other(key, not self.attends, f"{blocks}: only {', '.join(ATTENTION_BLOCKS)} attend")
        _refuse(
            self.resolved.positions != "none" and not self.attends,
            "model.positions",
            self.positions,
            f"'auto' or 'none' with {blocks}: it is attention that reads them",
        )
        for key in ("gumbel_start", "gumbel_end", "gumbel_hard"):
            self._refuse_other(
                key,
                self.weighting != "gumbel_softmax",
                f"weighting {self.weighting!r}: gumbel_softmax alone reads it",
            )
        self._refuse_other(
            "kernel", self.block != "conv" or not self.num_blocks, f"{blocks}: conv alone has one"
        )
        self._refuse_other(
            "feed_forward",
            self.block not in ("transformer", "ligr") or not self.num_blocks,
            f"{blocks}: no feed-forward layer there",
        )
        _refuse(
            self.request_time and not self.looks_at_time,
            "model.request_time",
            True,
            "false, or model.time_bias or model.calendar: nothing else in the model looks at time",
        )
        for key in ("temperature", "learned_temperature"):
            self._refuse_other(key, self.similarity != "cosine", "similarity 'dot', which has no temperature")

    def _refuse_other(self, key: str, is_unread: bool, because: str) -> None:
        """Refuse another value than the default where nothing reads it."""
        value, default = getattr(self, key), getattr(type(self), key)
        _refuse(is_unread and value != default, f"model.{key}", value, f"{default!r} with {because}")

    @property
    def _blocks(self) -> str:
        """As messages call them."""
        return f"block {self.block!r}" if self.num_blocks else "num_blocks 0"

    @property
    def attends(self) -> bool:
        """Whether there are blocks and they attend."""
        return self.block in ATTENTION_BLOCKS and self.num_blocks > 0

    @property
    def looks(self) -> bool:
        """Whether anything attends: the blocks, or the readout."""
        return self.attends or self.readout in ("attention", "target")

    @property
    def resolved(self) -> "EncoderSettings":
        """The same settings, `auto` replaced by what it stands for; what nothing reads stays as it is."""
        is_hstu = self.block == "hstu"
        stands_for: dict[str, Any] = {"positions": "relative" if self.attends else "none"}
        if self.looks:
            stands_for["score"] = "dot" if is_hstu else "scaled_dot"
            stands_for["weighting"] = "silu" if is_hstu else "softmax"
        if self.block in ("transformer", "ligr") and self.num_blocks:
            stands_for["feed_forward"] = "swiglu" if self.block == "ligr" else "gelu"
        chosen = {key: value for key, value in stands_for.items() if getattr(self, key) == "auto"}
        return replace(self, **chosen) if chosen else self

    @property
    def looks_at_time(self) -> bool:
        """Whether the times of events matter."""
        return self.time_bias or self.calendar


_CHOICES: dict[str, tuple[str, ...]] = {
    "block": get_args(Block),
    "score": ("auto", *get_args(Score)),
    "weighting": ("auto", *get_args(Weighting)),
    "positions": ("auto", *get_args(Positions)),
    "feed_forward": ("auto", *get_args(FeedForward)),
    "direction": get_args(Direction),
    "readout": get_args(Readout),
    "similarity": get_args(Similarity),
}


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
            _refuse(value not in known, f"train.{key}", value, " or ".join(map(repr, known)))
        counts = ("epochs", "patience", "batch_histories", "accumulate", "negatives", "validation_targets")
        for key in counts:
            _refuse(getattr(self, key) < 1, f"train.{key}", getattr(self, key), "at least 1")
        _refuse(
            not 0 < self.learning_rate < math.inf,
            "train.learning_rate",
            self.learning_rate,
            "a number above 0",
        )
        for key in ("weight_decay", "max_grad_norm", "checkpoint_seconds", "warmup_steps"):
            _refuse(not 0 <= getattr(self, key) < math.inf, f"train.{key}", getattr(self, key), "0 or more")
        for key in ("beta1", "beta2", "ema_decay"):
            _refuse(not 0 <= getattr(self, key) < 1, f"train.{key}", getattr(self, key), "in [0, 1)")
        _refuse(
            not 0 <= self.gbce_calibration <= 1, "train.gbce_calibration", self.gbce_calibration, "in [0, 1]"
        )
        _refuse(
            self.loss == "gbce" and self.negative_sampling != "uniform",
            "train.negative_sampling",
            self.negative_sampling,
            "'uniform' with loss 'gbce': its calibration assumes that every item is drawn alike",
        )
        _refuse(
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
            _refuse(
                self.loss not in losses and value != default,
                f"train.{key}",
                value,
                f"{default!r} with loss {self.loss!r}: {', '.join(losses)} alone read{'s' * (len(losses) == 1)} it",
            )


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
            _refuse(value not in known, f"ranker.{key}", value, " or ".join(map(repr, known)))
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
            _refuse(getattr(self, key) < 1, f"ranker.{key}", getattr(self, key), "at least 1")
        _refuse(self.candidates < 2, "ranker.candidates", self.candidates, "at least 2")
        _refuse(self.dim % self.num_heads > 0, "ranker.dim", self.dim, "a multiple of ranker.num_heads")
        _refuse(not 0 <= self.dropout < 1, "ranker.dropout", self.dropout, "a share in [0, 1)")
        _refuse(
            not 0 < self.train_fraction < 1, "ranker.train_fraction", self.train_fraction, "a share in (0, 1)"
        )
        for key, least in (("learning_rate", 0), ("weight_decay", -1)):
            value = getattr(self, key)
            _refuse(
                not least < value < math.inf,
                f"ranker.{key}",
                value,
                "0 or more" if least else "a number above 0",
            )


def check_together(encoder: EncoderSettings, train: TrainSettings) -> None:
    """Raise ValueError where a model cannot be trained that way."""
    _refuse(
        encoder.direction == "bidirectional" and train.targets == "all",
        "train.targets",
        train.targets,
        "'last' or 'random' with model.direction 'bidirectional': a state that knows what comes later would know its target",
    )
    _refuse(
        encoder.readout == "target" and train.loss == "softmax",
        "train.loss",
        train.loss,
        f"one of {', '.join(SAMPLED_LOSSES)} with model.readout 'target': each candidate looks at the history by itself, "
        "the whole catalogue would at every target",
    )
    _refuse(
        encoder.readout == "target" and encoder.similarity == "cosine",
        "model.similarity",
        "cosine",
        "'dot' with model.readout 'target': what a candidate finds adds to its score as an inner product, of any length",
    )
    _refuse(
        train.item_optimizer == "rowwise_adagrad" and not encoder.item_id,
        "train.item_optimizer",
        train.item_optimizer,
        "'auto' or 'adamw' with model.item_id false: it is for the items' own vectors",
    )
