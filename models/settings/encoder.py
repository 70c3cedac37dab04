"""Encoder settings: blocks, attention, positions, readout; `auto` is the chosen block's usual value.

Settings import no torch, so that the command line checks a configuration quickly.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args, get_type_hints

Block = Literal["transformer", "hstu", "ligr", "gru", "lstm", "conv", "pooling"]
Score = Literal["dot", "scaled_dot", "cosine", "general", "additive", "concat"]
Weighting = Literal["softmax", "silu", "gumbel_softmax", "sparsemax", "entmax"]
Positions = Literal["none", "absolute", "relative", "rotary"]
FeedForward = Literal["gelu", "swiglu"]
Direction = Literal["causal", "bidirectional"]
Readout = Literal["last", "mean", "attention", "target"]
Similarity = Literal["dot", "cosine"]
Attention = Literal["auto", "flex", "blocked", "dense"]

ATTENTION_BLOCKS: tuple[Block, ...] = ("transformer", "hstu", "ligr")
"""Blocks with attention heads; the others read a history in order."""
RECURRENT_BLOCKS: tuple[Block, ...] = ("gru", "lstm")
INNER_PRODUCTS: tuple[Score, ...] = ("dot", "scaled_dot", "cosine", "general")
"""Scores that are inner products of transformed queries and keys: these have fast kernels and rotary positions."""


def refuse(settings: object, key: str, condition: bool, expected: str) -> None:
    """Raise ValueError with the received value of `key` ("section.field") where `condition` holds."""
    if condition:
        received = getattr(settings, key.rpartition(".")[2])
        raise ValueError(f"{key}: received {received!r}, expected {expected}")


def refuse_other_choices(settings: object, section: str) -> None:
    """Raise ValueError for a value outside its field's Literal type; unions with other types are not checked."""
    for key, kind in get_type_hints(type(settings)).items():
        choices = _choices(kind)
        is_open = any(isinstance(choice, type) for choice in choices)
        is_other = bool(choices) and not is_open and getattr(settings, key) not in choices
        refuse(settings, f"{section}.{key}", is_other, " or ".join(map(repr, choices)))


def _choices(kind: object) -> list[object]:
    """Values of a Literal type or of a union of such types."""
    return [value for part in get_args(kind) for value in _choices(part) or [part]]


def refuse_unread(settings: object, key: str, condition: bool, reason: str) -> None:
    """Raise ValueError for a value other than the default where `condition` says that nothing reads it."""
    field = key.partition(".")[2]
    default = getattr(type(settings), field)
    refuse(settings, key, condition and getattr(settings, field) != default, f"{default!r} with {reason}")


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
    attention: Attention = "auto"
    """Computation of inner products with softmax or silu weights. dense: all scores at a time; blocked: a few at a time, memory
    linear in the length; flex: softmax in one kernel on CUDA, elsewhere as blocked; auto: dense for short histories or where one
    kernel needs no scores, then flex on CUDA, else blocked."""
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
        refuse_other_choices(self, "model")
        for key in ("dim", "num_heads", "kernel"):
            refuse(self, f"model.{key}", getattr(self, key) < 1, "at least 1")
        for key in ("num_blocks", "window"):
            refuse(self, f"model.{key}", getattr(self, key) < 0, "0 or more")
        refuse(self, "model.dropout", not 0 <= self.dropout < 1, "a share in [0, 1)")
        for key in ("temperature", "gumbel_start", "gumbel_end"):
            refuse(self, f"model.{key}", not 0 < getattr(self, key) < math.inf, "a number above 0")
        self._refuse_unread()
        self._refuse_contradictions()

    def _refuse_contradictions(self) -> None:
        settings, bidirectional = self.resolved, self.direction == "bidirectional"
        is_divided = not self.has_attention or self.dim % self.num_heads == 0
        refuse(self, "model.dim", not is_divided, f"a multiple of num_heads ({self.num_heads})")
        rotates = settings.score in INNER_PRODUCTS and self.dim // self.num_heads % 2 == 0
        refuse(
            self,
            "model.positions",
            settings.positions == "rotary" and not rotates,
            f"another with score {settings.score!r}, dim {self.dim} and {self.num_heads} heads: rotary turns pairs of components "
            f"of queries and keys that meet in an inner product ({', '.join(INNER_PRODUCTS)})",
        )
        refuse(
            self,
            "model.direction",
            bidirectional and (self.block in ("conv", "pooling") or not self.num_blocks),
            f"'causal' with {self._blocks}: only {', '.join(ATTENTION_BLOCKS + RECURRENT_BLOCKS)} read from both ends",
        )
        refuse(
            self,
            "model.readout",
            bidirectional and self.block in RECURRENT_BLOCKS and self.readout == "last",
            f"'mean' or 'attention' with block {self.block!r} and direction 'bidirectional': the last state of the pass from the "
            "end has read one event only",
        )
        refuse(
            self,
            "model.window",
            bidirectional and self.window > 0,
            "0 with direction 'bidirectional': a position then sees all of its row, and a window looks back only",
        )
        has_vector = self.item_id or self.item_content
        refuse(
            self,
            "model.item_id",
            not has_vector,
            "true, or model.item_content: an item must have some vector",
        )
        refuse(
            self,
            "model.attention",
            self.attention == "flex" and settings.weighting == "silu",
            "'auto', 'blocked' or 'dense' with weighting 'silu': flex computes softmax alone",
        )
        refuse(
            self,
            "model.weighting",
            self.readout == "target" and settings.weighting not in ("softmax", "silu"),
            "'softmax' or 'silu' with readout 'target': their running sums serve all positions of a history at once",
        )

    def _refuse_unread(self) -> None:
        blocks = self._blocks
        for key in ("score", "weighting"):
            reason = f"{blocks} and readout {self.readout!r}: nothing attends"
            refuse_unread(self, f"model.{key}", not self.has_attention, reason)
        settings = self.resolved
        has_forms = settings.score in INNER_PRODUCTS and settings.weighting in ("softmax", "silu")
        refuse_unread(
            self,
            "model.attention",
            not (has_forms and (self.attends or self.readout == "attention")),
            f"{blocks}, score {settings.score!r} and weighting {settings.weighting!r}: only inner products with softmax or silu "
            "weights have several forms",
        )
        for key in ("time_bias", "window"):
            reason = f"{blocks}: only {', '.join(ATTENTION_BLOCKS)} attend"
            refuse_unread(self, f"model.{key}", not self.attends, reason)
        refuse(
            self,
            "model.positions",
            self.resolved.positions != "none" and not self.attends,
            f"'auto' or 'none' with {blocks}: only attention reads them",
        )
        for key in ("gumbel_start", "gumbel_end", "gumbel_hard"):
            reason = f"weighting {self.weighting!r}: gumbel_softmax alone reads it"
            refuse_unread(self, f"model.{key}", self.weighting != "gumbel_softmax", reason)
        has_kernel = self.block == "conv" and self.num_blocks > 0
        refuse_unread(self, "model.kernel", not has_kernel, f"{blocks}: conv alone has one")
        feeds = self.block in ("transformer", "ligr") and self.num_blocks > 0
        refuse_unread(self, "model.feed_forward", not feeds, f"{blocks}: no feed-forward layer there")
        refuse(
            self,
            "model.request_time",
            self.request_time and not self.uses_time,
            "false, or model.time_bias or model.calendar: nothing else in the model reads times",
        )
        for key in ("temperature", "learned_temperature"):
            reason = "similarity 'dot', which has no temperature"
            refuse_unread(self, f"model.{key}", self.similarity != "cosine", reason)

    @property
    def _blocks(self) -> str:
        return f"block {self.block!r}" if self.num_blocks else "num_blocks 0"

    @property
    def attends(self) -> bool:
        """Whether the encoder has attention blocks."""
        return self.block in ATTENTION_BLOCKS and self.num_blocks > 0

    @property
    def has_attention(self) -> bool:
        """Whether the blocks or the readout attend."""
        return self.attends or self.readout in ("attention", "target")

    @property
    def resolved(self) -> "EncoderSettings":
        """The same settings with `auto` resolved where something reads the value."""
        is_hstu = self.block == "hstu"
        usual: dict[str, Any] = {"positions": "relative" if self.attends else "none"}
        if self.has_attention:
            usual["score"] = "dot" if is_hstu else "scaled_dot"
            usual["weighting"] = "silu" if is_hstu else "softmax"
        if self.block in ("transformer", "ligr") and self.num_blocks:
            usual["feed_forward"] = "swiglu" if self.block == "ligr" else "gelu"
        chosen = {key: value for key, value in usual.items() if getattr(self, key) == "auto"}
        return replace(self, **chosen) if chosen else self

    @property
    def uses_time(self) -> bool:
        """Whether the model reads event times."""
        return self.time_bias or self.calendar
