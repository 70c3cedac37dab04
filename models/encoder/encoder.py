"""Encoder from a history to one vector, and the recommender that scores the catalogue.

Letters: b rows, l positions, d components, items = num_items + 1, n targets, m candidates.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.device import moved, to_numpy
from models.encoder.attention import HistoryAttention, Implementation
from models.encoder.attention_bias import full_geometry, last_geometry
from models.encoder.batching import Batch, Window, cut_by_tokens, pad, rounded_up
from models.encoder.blocks import BLOCKS, AttentionBlock, Dropout, last_of
from models.encoder.convolution import ConvBlock, PoolingBlock
from models.encoder.embeddings import EventVectors, ItemContent, ItemEmbedding, normalised
from models.encoder.readout import AttentionReadout, MeanReadout, TargetReadout
from models.encoder.recurrent import GRUBlock, LSTMBlock
from models.histories import Float32, Histories, Int32
from models.settings.encoder import EncoderSettings
from models.shapes import Float, Int
from models.topk import recommend_in_chunks

INITIAL_SCALE = 0.02
"""Standard deviation of fresh embeddings and linear weights."""
BATCH_TOKENS = 2**13, 2**17
"""Padded positions per batch of encoding, on the CPU and on CUDA, where each batch is read back once."""
TARGET_CELLS = 2**24
"""Positions x candidates per chunk of target attention when it scores a catalogue."""

Layer = AttentionBlock | GRUBlock | LSTMBlock | ConvBlock | PoolingBlock | MeanReadout


class Encoder(nn.Module):
    """Sequence encoder `norm(layers(dropout(item + position + event)))`: a state per position, scored against item vectors.

    Rows start in column 0 and are padded with item 0 on the right. In a causal encoder the state at column i depends on columns
    0..i alone; a bidirectional one reads the whole row, which must end before its target.
    `layers` are the blocks and, for readout mean and attention, one more. Input and output item vectors are tied. With similarity
    cosine states have length 1 / temperature and item vectors length 1. `num_event_types` 0: events carry no type.
    Raises ValueError for `content` without `settings.item_content` or the reverse.
    """

    def __init__(
        self,
        settings: EncoderSettings,
        num_items: int,
        num_event_types: int,
        max_length: int,
        implementation: Implementation = "auto",
        content: ItemContent | None = None,
    ) -> None:
        super().__init__()
        if settings.item_content != (content is not None):
            raise ValueError(
                f"model.item_content: received {settings.item_content} and {'some' if content is not None else 'no'} content of "
                "items, expected both or neither: configure it in [items]"
            )
        settings = settings.resolved
        self.settings = settings
        self.num_items = num_items
        self.num_event_types = num_event_types
        self.max_length = max_length
        self.items = ItemEmbedding(settings, num_items, content)
        self.events = EventVectors(settings, num_event_types)
        is_absolute = settings.positions == "absolute"
        self.positions = nn.Embedding(max_length, settings.dim) if is_absolute else None
        self.dropout = Dropout(settings.dropout)
        self.layers = nn.ModuleList(_layers(settings, implementation))
        self.target = TargetReadout(settings, implementation) if settings.readout == "target" else None
        self.norm = nn.LayerNorm(settings.dim)
        if settings.learned_temperature:
            self.log_temperature = nn.Parameter(torch.tensor(math.log(settings.temperature)))
        self.apply(_initialise)
        self.items.forget_untrained()

    def forward(self, window: Window) -> Float[Tensor, "b l d"]:
        """State at every column; l <= max_length."""
        return self.states((window,)).view(*window.item_index.shape, -1)

    def states(self, windows: Sequence[Window]) -> Float[Tensor, "n d"]:
        """States at every column of every window, concatenated by window and row."""
        geometry = [full_geometry(window, self.settings) for window in windows]
        states = torch.cat([self.embed(window).flatten(0, 1) for window in windows])
        cells = len(states)
        if self.training and not torch.compiler.is_compiling():
            states = functional.pad(states, (0, 0, 0, rounded_up(cells) - cells))
        for layer in self.layers:
            states = layer(states, geometry)
        return self.finished(states[:cells])

    def last_states(self, window: Window) -> Float[Tensor, "b d"]:
        """State at the last column of each row, the last layer computing that column alone; lengths >= 1."""
        if not self.layers:
            return self.finished(last_of(self.embed(window), window.lengths)).squeeze(1)
        geometry = (full_geometry(window, self.settings),)
        states = self.embed(window).flatten(0, 1)
        for layer in self.layer_list[:-1]:
            states = layer(states, geometry)
        states = states.view(*window.item_index.shape, -1)
        last = self.layer_list[-1].last(states, window.lengths, last_geometry(window, self.settings))
        return self.finished(last).squeeze(1)

    def embed(self, window: Window) -> Float[Tensor, "b l d"]:
        """Input of the first layer."""
        states = self.items(window.item_index)
        if self.positions is not None and window.position is not None:
            states = states + self.positions(window.position)
        elif self.positions is not None:
            states = states + self.positions.weight[: window.item_index.shape[1]]
        events = self.events(window)
        dropped: Tensor = self.dropout(states if events is None else states + events)
        return dropped

    def item_vectors(self) -> Float[Tensor, "items d"]:
        """Output item vectors, for `states @ item_vectors.T`; row 0 is padding."""
        vectors = self.items.all()
        return normalised(vectors) if self.settings.similarity == "cosine" else vectors

    def vectors_of(self, item_index: Int[Tensor, "*any"]) -> Float[Tensor, "*any d"]:
        """Rows of `item_vectors`."""
        vectors: Tensor = self.items(item_index)
        return normalised(vectors) if self.settings.similarity == "cosine" else vectors

    def candidates(self) -> Int[Tensor, " n"] | None:
        """Candidate items of the loss, seen in training, ascending; None: all of 1..num_items."""
        return self.items.trained

    def target_scores(
        self, states: Float[Tensor, "cells d"], batch: Batch, negatives: Int[Tensor, " m"]
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, "n m"]]:
        """Scores of each target's item and of the shared negatives by readout target, from the states of a batch."""
        assert self.target is not None, "only readout 'target' scores candidate by candidate"
        shared, positive, negative = self.vectors_of(negatives), [], []
        readable, first = batch.readable, 0
        for window in batch.windows:
            cells = window.item_index.numel()
            here = (readable.target_position >= first) & (readable.target_position < first + cells)
            window_states = states[first : first + cells].view(*window.item_index.shape, -1)
            position = readable.target_position[here] - first
            vectors = self.vectors_of(moved(readable.target[here], states.device))
            positive.append(self.target.own_scores(window_states, position, vectors))
            negative.append(self.target.scores(window_states, moved(position, states.device), shared))
            first += cells
        return torch.cat(positive), torch.cat(negative)

    def anneal(self, progress: float) -> None:
        """Set the temperature of Gumbel-softmax, if any, at a share of the training in [0, 1]."""
        settings = self.settings
        temperature = settings.gumbel_start * (settings.gumbel_end / settings.gumbel_start) ** progress
        for module in self.modules():
            if isinstance(module, HistoryAttention) and module.temperature is not None:
                module.temperature.fill_(temperature)

    @property
    def layer_list(self) -> list[Layer]:
        """Blocks and readout, first to last."""
        return cast(list[Layer], list(self.layers))

    @property
    def attention_layers(self) -> list[AttentionBlock]:
        """Attention blocks and readout, first to last."""
        return [layer for layer in self.layer_list if isinstance(layer, AttentionBlock)]

    @property
    def scores_by_vector(self) -> bool:
        """Whether a score is the inner product of a state and an item vector."""
        return self.target is None

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.items.device

    def pad(self, histories: Histories, columns: int | None = None) -> Window:
        """Window on the encoder's device of rows of at most `max_length` events, by default as wide as the longest.

        Raises ValueError for a model trained with `request_time` and histories without.
        """
        if self.settings.request_time and histories.request_time is None:
            raise ValueError(
                "histories: received no request_time, expected the time at which each row's next item is requested: "
                "the model was trained with model.request_time"
            )
        shape = None if columns is None else (len(histories), columns)
        window = pad(histories, shape, with_time=self.settings.uses_time, with_value=self.settings.value)
        return window.to(self.device)

    def finished(self, states: Float[Tensor, "*any d"]) -> Float[Tensor, "*any d"]:
        """Normed states, for cosine of length 1 / temperature."""
        normed: Tensor = self.norm(states)
        if self.settings.similarity == "dot":
            return normed
        if self.settings.learned_temperature:
            return normalised(normed) * (-self.log_temperature).exp()
        return normalised(normed) / self.settings.temperature


def _layers(settings: EncoderSettings, implementation: Implementation) -> list[nn.Module]:
    """Blocks, and the readout where it is a layer."""
    layers: list[nn.Module] = []
    others = {"gru": GRUBlock, "lstm": LSTMBlock, "pooling": PoolingBlock}
    for number in range(settings.num_blocks):
        if settings.attends:
            layers.append(BLOCKS[settings.block](settings, implementation))
        elif settings.block == "conv":
            layers.append(ConvBlock(settings, number))
        else:
            layers.append(others[settings.block](settings))
    if settings.readout == "mean":
        layers.append(MeanReadout())
    elif settings.readout == "attention":
        layers.append(AttentionReadout(settings, implementation))
    return layers


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=INITIAL_SCALE)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


class AttentionRecommender:
    """Recommender that scores items by inner products with a history's last state, or by target attention."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder.eval()
        self.num_items = encoder.num_items
        self.device = encoder.device

    @torch.inference_mode()
    def encode(self, histories: Histories, batch_tokens: int | None = None) -> Float32:
        """[rows, d] last state of each row's `max_length` most recent events; zeros for an empty row.

        `batch_tokens`: maximum padded size of a batch, None: BATCH_TOKENS of the device. Raises ValueError as `Encoder.pad`.
        """
        batch_tokens = batch_tokens or BATCH_TOKENS[self.device.type == "cuda"]
        windows = histories.last(self.encoder.max_length)
        vectors = np.zeros((len(windows), self.encoder.settings.dim), np.float32)
        for rows in cut_by_tokens(windows.lengths, batch_tokens):
            vectors[rows] = self.encode_window(self.encoder.pad(windows.select(rows)))
        return vectors

    @torch.inference_mode()
    def encode_window(self, window: Window) -> Float32:
        """[rows, d] last state of each row, none of them empty."""
        return to_numpy(self.encoder.last_states(window))

    @torch.inference_mode()
    def score_items(self, histories: Histories) -> Float32:
        """[rows, num_items + 1]: `encode(histories) @ item_vectors.T`, or by target attention; column 0 -inf."""
        if not self.encoder.scores_by_vector:
            return self._score_by_target(histories)
        vectors = torch.from_numpy(self.encode(histories)).to(self.device)
        scores = vectors @ self.encoder.item_vectors().T
        scores[:, 0] = -torch.inf
        return to_numpy(scores)

    def recommend(self, histories: Histories, k: int, exclude_seen: bool = True) -> tuple[Int32, Float32]:
        """The k best items and scores of each row, as in `models.recommender.Recommender.recommend`."""
        return recommend_in_chunks(self.score_items, self.num_items, histories, k, exclude_seen)

    def _score_by_target(self, histories: Histories) -> Float32:
        """`score_items`, a few candidates at a time; empty rows score 0."""
        encoder, windows = self.encoder, histories.last(self.encoder.max_length)
        assert encoder.target is not None
        vectors = encoder.item_vectors()
        scores = np.zeros((len(windows), self.num_items + 1), np.float32)
        for rows in cut_by_tokens(windows.lengths, 2**13):
            window = encoder.pad(windows.select(rows))
            states = encoder(window)
            step = max(1, TARGET_CELLS // (window.item_index.numel() * encoder.settings.num_heads))
            for start in range(0, len(vectors), step):
                part = vectors[start : start + step]
                part_scores = encoder.target.last_scores(states, window.lengths, part)
                scores[rows, start : start + step] = part_scores.cpu().numpy()
        scores[:, 0] = -np.inf
        return scores


def with_request_time(histories: Histories, request_time: int) -> Histories:
    """The same rows with one request time, microseconds since the epoch."""
    return replace(histories, request_time=np.full(len(histories), request_time, np.int64))
