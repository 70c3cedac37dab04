"""Encoder settings: blocks, attention, positions, readout.

They live apart from the modules that use them so that the command line can check a configuration without importing torch.
`auto` stands for the chosen block's usual value; `EncoderSettings.resolved` fills it in.
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

ATTENTION_BLOCKS: tuple[Block, ...] = ("transformer", "hstu", "ligr")
"""Blocks whose positions look at each other, with `num_heads` heads; the others read a history in order."""
RECURRENT_BLOCKS: tuple[Block, ...] = ("gru", "lstm")
INNER_PRODUCTS: tuple[Score, ...] = ("dot", "scaled_dot", "cosine", "general")
"""Scores that are inner products of transformed queries and keys: these have fast kernels, and can be turned (rotary)."""


def refuse(condition: bool, key: str, received: object, expected: str) -> None:
    """Raise ValueError where `condition` holds."""
    if condition:
        raise ValueError(f"{key}: received {received!r}, expected {expected}")


@dataclass(frozen=True)
class EncoderSettings:
    """Shape of the history encoder: the `[model]` section."""

    block: Block = "transformer"
    """Sequence encoder block."""
    dim: int = 64
    """Embedding dimension, in components; with attention a multiple of `num_heads`."""
    num_blocks: int = 2
    """Encoder blocks, one after the other; 0: none, the readout sees the embeddings."""
    num_heads: int = 2
    """Attention heads per block; blocks without attention ignore it."""
    dropout: float = 0.2
    """Dropout rate, in [0, 1)."""
    score: Score | Literal["auto"] = "auto"
    """Attention score of a query and a key. auto: dot in hstu, else scaled_dot."""
    weighting: Weighting | Literal["auto"] = "auto"
    """Attention weights from scores. auto: silu in hstu, else softmax."""
    positions: Positions | Literal["auto"] = "auto"
    """Position encoding of attention. absolute: a learned vector per position in the window; relative: a learned bias per head
    and distance; rotary: rotated queries and keys; auto: relative where the blocks attend, else none."""
    time_bias: bool = False
    """Attention bias, learned per head and logarithmic bucket of the time between two events."""
    request_time: bool = False
    """Access to the time of the request: `time_bias` and `calendar` then count from it."""
    window: int = 0
    """Attention window of causal blocks and readout attention, in events, the position itself included; 0: all before it."""
    feed_forward: FeedForward | Literal["auto"] = "auto"
    """Feed-forward layer of transformer and ligr (hstu has none). auto: swiglu in ligr, gelu in transformer."""
    direction: Direction = "causal"
    """Direction of attention blocks, gru and lstm. bidirectional: a state sees the whole history, which must then end before its
    target (`train.targets` last or random)."""
    kernel: int = 5
    """Kernel width of conv, in events, the position itself included."""
    readout: Readout = "last"
    """User state from a history's states. last, mean; attention: the last state plus attention over all; target: attention of
    each candidate over all (DIN), with the same `score`, no biases, and softmax or silu weights."""
    item_id: bool = True
    """Learned vector per item; without it an item is its content."""
    item_content: bool = False
    """Categories, text and embeddings in item vectors; items unseen in training then have one too."""
    event_type: bool = True
    """Types of past events as input."""
    value: bool = False
    """Values of past events as input."""
    calendar: bool = False
    """Hour of the day and day of the week (UTC) of past events as input."""
    similarity: Similarity = "dot"
    """Similarity of user and item vectors. cosine: both of length 1, divided by `temperature`."""
    temperature: float = 0.05
    """Temperature of cosine similarity, its divisor."""
    learned_temperature: bool = False
    """Learning of the cosine temperature, from `temperature` on."""
    gumbel_start: float = 1.0
    """Initial temperature of gumbel_softmax; it falls geometrically to `gumbel_end` over `train.epochs`."""
    gumbel_end: float = 0.2
    """Final temperature of gumbel_softmax."""
    gumbel_hard: bool = False
    """Straight-through gumbel_softmax: all weight on one position forward, the soft gradient backward."""

    def __post_init__(self) -> None:
        for key, choices in _CHOICES.items():
            value = getattr(self, key)
            refuse(value not in choices, f"model.{key}", value, " or ".join(map(repr, choices)))
        refuse(self.dim < 1, "model.dim", self.dim, "at least 1")
        refuse(self.num_blocks < 0, "model.num_blocks", self.num_blocks, "0 or more")
        refuse(self.num_heads < 1, "model.num_heads", self.num_heads, "at least 1")
        refuse(not 0 <= self.dropout < 1, "model.dropout", self.dropout, "a share in [0, 1)")
        refuse(self.window < 0, "model.window", self.window, "0 or more")
        refuse(self.kernel < 1, "model.kernel", self.kernel, "at least 1")
        for key in ("temperature", "gumbel_start", "gumbel_end"):
            value = getattr(self, key)
            refuse(not 0 < value < math.inf, f"model.{key}", value, "a number above 0")
        self._refuse_what_nothing_reads()
        self._refuse_contradictions()

    def _refuse_contradictions(self) -> None:
        settings = self.resolved
        refuse(
            self.looks and self.dim % self.num_heads != 0,
            "model.dim",
            self.dim,
            f"a multiple of num_heads ({self.num_heads})",
        )
        turnable = settings.score in INNER_PRODUCTS and self.dim // self.num_heads % 2 == 0
        refuse(
            settings.positions == "rotary" and not turnable,
            "model.positions",
            "rotary",
            f"another with score {settings.score!r}, dim {self.dim} and {self.num_heads} heads: it turns pairs of components "
            f"of queries and keys that meet in an inner product ({', '.join(INNER_PRODUCTS)})",
        )
        refuse(
            self.direction == "bidirectional" and (self.block in ("conv", "pooling") or not self.num_blocks),
            "model.direction",
            self.direction,
            f"'causal' with {self._blocks}: only {', '.join(ATTENTION_BLOCKS + RECURRENT_BLOCKS)} read from both ends",
        )
        refuse(
            self.direction == "bidirectional" and self.block in RECURRENT_BLOCKS and self.readout == "last",
            "model.readout",
            "last",
            f"'mean' or 'attention' with block {self.block!r} and direction 'bidirectional': the last state of the pass from the "
            "end has read one event only",
        )
        refuse(
            self.direction == "bidirectional" and self.window > 0,
            "model.window",
            self.window,
            "0 with direction 'bidirectional': a position then sees all of its row, and a window looks back only",
        )
        refuse(
            not (self.item_id or self.item_content),
            "model.item_id",
            False,
            "true, or model.item_content: an item must have some vector",
        )
        refuse(
            self.readout == "target" and settings.weighting not in ("softmax", "silu"),
            "model.weighting",
            settings.weighting,
            "'softmax' or 'silu' with readout 'target': their running sums serve all positions of a history at once",
        )

    def _refuse_what_nothing_reads(self) -> None:
        blocks = self._blocks
        for key in ("score", "weighting"):
            refuse(
                getattr(self, key) != "auto" and not self.looks,
                f"model.{key}",
                getattr(self, key),
                f"'auto' with {blocks} and readout {self.readout!r}: nothing attends",
            )
        for key in ("time_bias", "window"):
            self._refuse_other(key, not self.attends, f"{blocks}: only {', '.join(ATTENTION_BLOCKS)} attend")
        refuse(
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
        refuse(
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
        refuse(is_unread and value != default, f"model.{key}", value, f"{default!r} with {because}")

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
