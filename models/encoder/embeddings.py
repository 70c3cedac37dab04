"""Embeddings of items, and of an event's type, value and time.

Letters: b rows, l positions, d components, items = num_items + 1, f dense features, k category slots per item.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from models.encoder.batching import Window
from models.histories import Float32, Int32
from models.settings.encoder import EncoderSettings
from models.shapes import Float, Int

HOUR, DAY = 3_600 * 1_000_000, 24 * 3_600 * 1_000_000
"""Microseconds."""
THURSDAY = 3
"""Day of the week of the epoch, from Monday = 0."""


@dataclass(frozen=True)
class ItemContent:
    """Content features of items: dense features and categories."""

    dense: Float32
    """[items, f], such as text and given embeddings; row 0 and unknown items zero."""
    categories: Int32
    """[items, k], 1..num_categories, 0 where an item has fewer."""
    num_categories: int
    trained: NDArray[np.bool_]
    """[items], whether an item occurs in training: only then it has a learned vector and is a candidate of the loss."""


class ItemEmbedding(nn.Module):
    """Item embedding `e_i + W dense_i + mean over its categories of c_k`: a learned vector plus that of the content.

    Items unseen in training have the vector of their content alone. Without content `e_i`; without ids the content alone.
    """

    dense: Tensor
    category_index: Tensor
    trained: Tensor | None
    """[n] items seen in training, ascending; None without content."""

    def __init__(self, settings: EncoderSettings, num_items: int, content: ItemContent | None) -> None:
        super().__init__()
        dim = settings.dim
        self.ids = nn.Embedding(num_items + 1, dim) if settings.item_id else None
        self.project = self.categories = None
        self.register_buffer("trained", None)
        if content is None:
            return
        self.register_buffer("dense", torch.from_numpy(np.asarray(content.dense, np.float32)))
        self.register_buffer("category_index", torch.from_numpy(np.asarray(content.categories, np.int32)))
        self.register_buffer("trained", torch.from_numpy(np.flatnonzero(content.trained).astype(np.int64)))
        if content.dense.shape[1]:
            self.project = nn.Linear(content.dense.shape[1], dim, bias=False)
        if content.num_categories:
            self.categories = nn.Embedding(content.num_categories + 1, dim)

    def forward(self, item_index: Int[Tensor, "*any"]) -> Float[Tensor, "*any d"]:
        """Vectors of the given items."""
        parts = []
        if self.ids is not None:
            parts.append(self.ids(item_index))
        if self.project is not None:
            parts.append(self.project(self.dense[item_index]))
        if self.categories is not None:
            index = self.category_index[item_index]
            real = (index > 0).unsqueeze(-1)
            parts.append((self.categories(index) * real).sum(-2) / real.sum(-2).clamp_min(1))
        total: Tensor = sum(parts[1:], parts[0])
        return total

    def all(self) -> Float[Tensor, "items d"]:
        """Vectors of every item; row 0 is padding."""
        if self.ids is not None and self.project is None and self.categories is None:
            return self.ids.weight
        num_items = len(self.ids.weight) if self.ids is not None else len(self.dense)
        vectors: Tensor = self(torch.arange(num_items, device=self.device))
        return vectors

    @property
    def content_shape(self) -> tuple[int, int, int, int, int] | None:
        """Arguments of `blank_content`: items, f, k, categories, trained items; None without content."""
        if self.trained is None:
            return None
        num_categories = 0 if self.categories is None else self.categories.num_embeddings - 1
        return (*self.dense.shape, self.category_index.shape[1], num_categories, len(self.trained))

    @property
    def device(self) -> torch.device:
        """Device of the vectors."""
        return next(self.parameters()).device

    @torch.no_grad()
    def forget_untrained(self) -> None:
        """Set the learned vectors of padding and of items unseen in training to zero."""
        if self.ids is None:
            return
        self.ids.weight[0] = 0
        if self.trained is not None:
            unseen = torch.ones(len(self.ids.weight), dtype=torch.bool, device=self.device)
            unseen[self.trained] = False
            self.ids.weight[unseen] = 0


def blank_content(
    items: int, num_dense: int, num_slots: int, num_categories: int, num_trained: int
) -> ItemContent:
    """Content of the given sizes, to be filled from a file."""
    dense, categories = np.zeros((items, num_dense), np.float32), np.zeros((items, num_slots), np.int32)
    return ItemContent(dense, categories, num_categories, np.arange(items) < num_trained)


class EventVectors(nn.Module):
    """Sum of an event's embeddings beside its item: type, value, hour of the day and day of the week (UTC).

    A value v counts as `sign(v) ln(1 + |v|)` times a learned vector, a missing one as another vector. With
    `settings.request_time`, hour and day of the next event are added too.
    """

    def __init__(self, settings: EncoderSettings, num_event_types: int) -> None:
        super().__init__()
        dim = settings.dim
        has_types = num_event_types > 0 and settings.event_type
        self.types = nn.Embedding(num_event_types + 1, dim) if has_types else None
        self.value = nn.Linear(2, dim, bias=False) if settings.value else None
        self.hours = nn.Embedding(24, dim) if settings.calendar else None
        self.days = nn.Embedding(7, dim) if settings.calendar else None
        reads_request = settings.calendar and settings.request_time
        self.asked_hours = nn.Embedding(24, dim) if reads_request else None
        self.asked_days = nn.Embedding(7, dim) if reads_request else None

    def forward(self, window: Window) -> Float[Tensor, "b l d"] | None:
        """Sum for every event; None where the model reads none of these."""
        parts = []
        if self.types is not None:
            parts.append(self.types(window.event_type))
        if self.value is not None:
            parts.append(self.value(_value_features(window)))
        request_embeddings = self.asked_hours, self.asked_days, window.request_time
        for hours, days, time in ((self.hours, self.days, window.time), request_embeddings):
            if hours is not None and days is not None:
                assert time is not None, "a model with a calendar needs windows with times"
                parts.append(hours(time % DAY // HOUR) + days((time // DAY + THURSDAY) % 7))
        total: Tensor | None = sum(parts[1:], parts[0]) if parts else None
        return total


def _value_features(window: Window) -> Float[Tensor, "b l 2"]:
    """(signed logarithm, whether missing) of each value."""
    value = window.value
    if value is None:
        value = torch.full(window.item_index.shape, torch.nan, device=window.item_index.device)
    known = value.nan_to_num()
    return torch.stack([known.sign() * known.abs().log1p(), value.isnan().float()], -1)


def normalised(vectors: Float[Tensor, "*any d"]) -> Float[Tensor, "*any d"]:
    """Vectors scaled to length 1; zero stays zero."""
    return functional.normalize(vectors, dim=-1)
