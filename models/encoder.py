"""From a history to one vector: embeddings, blocks, and the recommender that scores the catalogue by inner product.

Letters: b rows, l positions, d components, items = num_items + 1.
"""

from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.attention import Implementation
from models.batching import cut_by_tokens, pad, rounded_up
from models.blocks import Dropout, TransformerBlock
from models.recommender import Float32, Histories, Int32
from models.recurrent import GRUBlock
from models.settings import EncoderSettings
from models.shapes import Float, Int
from models.topk import recommend_in_chunks

INITIAL_SCALE = 0.02
"""Standard deviation of fresh embeddings and linear weights."""


class Encoder(nn.Module):
    """`norm(blocks(dropout(item + position + event type)))`: a state per position, scored against tied item vectors.

    Rows start in column 0 and are padded with item 0 on the right; the state at column i depends on columns 0..i,
    so neither future nor padding changes it. `num_event_types` 0: events carry no type. Positions are for attention,
    added here or (`settings.positions` = "relative") a bias in its blocks; a `gru` reads in order and has none.
    """

    def __init__(
        self,
        settings: EncoderSettings,
        num_items: int,
        num_event_types: int,
        max_length: int,
        implementation: Implementation = "auto",
    ) -> None:
        super().__init__()
        self.settings = settings
        self.num_items = num_items
        self.num_event_types = num_event_types
        self.max_length = max_length
        self.items = nn.Embedding(num_items + 1, settings.dim)
        placed = settings.attends and settings.positions == "absolute"
        self.positions = nn.Embedding(max_length, settings.dim) if placed else None
        self.event_types = nn.Embedding(num_event_types + 1, settings.dim) if num_event_types else None
        self.dropout = Dropout(settings.dropout)
        self.blocks = nn.ModuleList(_block(settings, implementation) for _ in range(settings.num_blocks))
        self.norm = nn.LayerNorm(settings.dim)
        self.apply(_initialise)
        nn.init.zeros_(self.items.weight[:1].detach())

    def forward(
        self, item_index: Int[Tensor, "b l"], event_type: Int[Tensor, "b l"]
    ) -> Float[Tensor, "b l d"]:
        """The state at every column, from what stands there and before; l <= max_length."""
        rows, positions = shape = len(item_index), item_index.shape[1]
        states = self.embed(item_index, event_type).flatten(0, 1)
        if self.training and not torch.compiler.is_compiling():
            states = functional.pad(states, (0, 0, 0, rounded_up(len(states)) - len(states)))
        for block in self.layers:
            states = block(states, shape)
        normed: Tensor = self.norm(states)[: rows * positions]
        return normed.view(rows, positions, -1)

    def last_states(
        self,
        item_index: Int[Tensor, "b l"],
        event_type: Int[Tensor, "b l"],
        lengths: Int[Tensor, " b"],
        position: Int[Tensor, "b l"] | None = None,
    ) -> Float[Tensor, "b d"]:
        """The state at column `lengths - 1` of each row, the last block computing that column alone; lengths >= 1.

        `position` says where in the window each column stands; default: where it is; without positions: no matter.
        """
        states = self.before_last_block(item_index, event_type, position)
        normed: Tensor = self.norm(self.layers[-1].last(states, lengths, position).squeeze(1))
        return normed

    def before_last_block(
        self,
        item_index: Int[Tensor, "b l"],
        event_type: Int[Tensor, "b l"],
        position: Int[Tensor, "b l"] | None = None,
    ) -> Float[Tensor, "b l d"]:
        """The states that the last block works on."""
        rows, positions = shape = len(item_index), item_index.shape[1]
        states = self.embed(item_index, event_type, position).flatten(0, 1)
        for block in self.layers[:-1]:
            states = block(states, shape, position)
        return states.view(rows, positions, -1)

    def embed(
        self,
        item_index: Int[Tensor, "b l"],
        event_type: Int[Tensor, "b l"],
        position: Int[Tensor, "b l"] | None = None,
    ) -> Float[Tensor, "b l d"]:
        """The states that the first block works on."""
        states: Tensor = self.items(item_index)
        if self.positions is not None and position is not None:
            states = states + self.positions(position)
        elif self.positions is not None:
            states = states + self.positions.weight[: item_index.shape[1]]
        if self.event_types is not None:
            states = states + self.event_types(event_type)
        dropped: Tensor = self.dropout(states)
        return dropped

    @property
    def layers(self) -> list[TransformerBlock | GRUBlock]:
        """The blocks, first to last."""
        return cast(list[TransformerBlock | GRUBlock], list(self.blocks))

    @property
    def attention_layers(self) -> list[TransformerBlock]:
        """The blocks that attend, first to last: all of them, or none."""
        return [block for block in self.layers if isinstance(block, TransformerBlock)]

    @property
    def recurrent_layers(self) -> list[GRUBlock]:
        """The blocks that read in order, first to last: all of them, or none."""
        return [block for block in self.layers if isinstance(block, GRUBlock)]

    def item_vectors(self) -> Float[Tensor, "items d"]:
        """What states are scored against: `states @ item_vectors.T`; row 0 is padding."""
        return self.items.weight


def _block(settings: EncoderSettings, implementation: Implementation) -> TransformerBlock | GRUBlock:
    return TransformerBlock(settings, implementation) if settings.attends else GRUBlock(settings)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=INITIAL_SCALE)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)


class AttentionRecommender:
    """Ranks the catalogue by the inner product of a history's last state and the item vectors."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder.eval()
        self.num_items = encoder.num_items
        self.device = encoder.items.weight.device

    @torch.inference_mode()
    def encode(self, histories: Histories, batch_tokens: int = 2**13) -> Float32:
        """[rows, d]: the last state of each row's `max_length` most recent events; zeros for an empty row.

        `batch_tokens` bounds the padded size of the batches that rows of similar length are put in.
        """
        windows = histories.last(self.encoder.max_length)
        vectors = np.zeros((len(windows), self.encoder.settings.dim), np.float32)
        for rows in cut_by_tokens(windows.lengths, batch_tokens):
            batch = windows.select(rows)
            item_index, event_type = (part.to(self.device) for part in pad(batch))
            lengths = torch.from_numpy(batch.lengths).to(self.device)
            vectors[rows] = self.encoder.last_states(item_index, event_type, lengths).float().cpu().numpy()
        return vectors

    @torch.inference_mode()
    def score_items(self, histories: Histories) -> Float32:
        """[rows, num_items + 1]: `encode(histories) @ item_vectors.T`, column 0 -inf."""
        vectors = torch.from_numpy(self.encode(histories)).to(self.device)
        scores = vectors @ self.encoder.item_vectors().T
        scores[:, 0] = -torch.inf
        found: Float32 = scores.cpu().numpy()
        return found

    def recommend(self, histories: Histories, k: int, exclude_seen: bool = True) -> tuple[Int32, Float32]:
        """The k best items of each row, best first, and their scores: two [rows, k].

        Equal scores: the lower item first. Where fewer than k can be given the rest is item 0 with score -inf.
        """
        return recommend_in_chunks(self.score_items, self.num_items, histories, k, exclude_seen)
