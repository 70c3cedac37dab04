"""Embeddings: vectors of items, and of an event's type, value and time.

Letters: b rows, l positions, d components, items = num_items + 1, f dense features, k categories of an item at most.
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
"""Day of the week, from Monday = 0, on which the epoch began."""


@dataclass(frozen=True)
class ItemContent:
    """Content features of items: dense features and categories."""

    dense: Float32
    """[items, f], such as text and given embeddings; row 0 and unknown ones zero"""
    categories: Int32
    """[items, k], 1..num_categories, 0 where an item has fewer"""
    num_categories: int
    trained: NDArray[np.bool_]
    """[items], those that occur in training: the only ones that have a vector of their own, and that a loss may choose from"""


class ItemEmbedding(nn.Module):
    """`e_i + W dense_i + mean over its categories of c_k`: an item's own vector, and that of its content.

    Items that training does not know have the vector of their content alone. Without content, `e_i`; without ids, the content.
    """

    dense: Tensor
    category_index: Tensor
    trained: Tensor | None
    """[n] items that training knows, ascending; None without content."""

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
        """The vectors of some items."""
        parts = []
        if self.ids is not None:
            parts.append(self.ids(item_index))
        if self.project is not None:
            parts.append(self.project(self.dense[item_index]))
        if self.categories is not None:
            index = self.category_index[item_index]
            there = (index > 0).unsqueeze(-1)
            mean = (self.categories(index) * there).sum(-2) / there.sum(-2).clamp_min(1)
            parts.append(mean)
        total: Tensor = sum(parts[1:], parts[0])
        return total

    def all(self) -> Float[Tensor, "items d"]:
        """The vectors of every item; row 0 is padding."""
        if self.ids is not None and self.project is None and self.categories is None:
            return self.ids.weight
        num_items = len(self.ids.weight) if self.ids is not None else len(self.dense)
        everything: Tensor = self(torch.arange(num_items, device=self.device))
        return everything

    @property
    def content_shape(self) -> tuple[int, int, int, int, int] | None:
        """What `blank_content` makes an empty one of: items, f, k, categories, trained items; None without content."""
        if self.trained is None:
            return None
        num_categories = 0 if self.categories is None else self.categories.num_embeddings - 1
        return (*self.dense.shape, self.category_index.shape[1], num_categories, len(self.trained))

    @property
    def device(self) -> torch.device:
        """Where the vectors are."""
        return next(self.parameters()).device

    @torch.no_grad()
    def forget_untrained(self) -> None:
        """Zero for padding and for items that training does not know."""
        if self.ids is None:
            return
        unknown = torch.zeros(len(self.ids.weight), dtype=torch.bool)
        unknown[0] = True
        if self.trained is not None:
            unknown[:] = True
            unknown[self.trained.cpu()] = False
        self.ids.weight[unknown.to(self.ids.weight.device)] = 0


def blank_content(items: int, dense: int, most: int, num_categories: int, trained: int) -> ItemContent:
    """Content of the given sizes, to be filled from a file."""
    is_trained = np.arange(items) < trained
    return ItemContent(
        np.zeros((items, dense), np.float32), np.zeros((items, most), np.int32), num_categories, is_trained
    )


class EventVectors(nn.Module):
    """Sum of an event's vectors beside its item: type, value, hour of the day and day of the week.

    A value v counts as `sign(v) ln(1 + |v|)` times a learned vector, a missing one as another. Where the model sees the time of
    the request, the hour and day of what comes next are added too. Hours and days are those of UTC.
    """

    def __init__(self, settings: EncoderSettings, num_event_types: int) -> None:
        super().__init__()
        dim = settings.dim
        typed = num_event_types > 0 and settings.event_type
        self.types = nn.Embedding(num_event_types + 1, dim) if typed else None
        self.value = nn.Linear(2, dim, bias=False) if settings.value else None
        self.hours = nn.Embedding(24, dim) if settings.calendar else None
        self.days = nn.Embedding(7, dim) if settings.calendar else None
        asked = settings.calendar and settings.request_time
        self.asked_hours = nn.Embedding(24, dim) if asked else None
        self.asked_days = nn.Embedding(7, dim) if asked else None

    def forward(self, window: Window) -> Float[Tensor, "b l d"] | None:
        """None where events say nothing."""
        parts = []
        if self.types is not None:
            parts.append(self.types(window.event_type))
        if self.value is not None:
            parts.append(self.value(_value_features(window)))
        for hours, days, moment in (
            (self.hours, self.days, window.time),
            (self.asked_hours, self.asked_days, window.asked),
        ):
            if hours is not None and days is not None:
                assert moment is not None, "a model that looks at time needs windows with times"
                parts.append(hours(moment % DAY // HOUR) + days((moment // DAY + THURSDAY) % 7))
        total: Tensor | None = sum(parts[1:], parts[0]) if parts else None
        return total


def _value_features(window: Window) -> Float[Tensor, "b l 2"]:
    """(signed logarithm, whether it is missing) of each value."""
    value = window.value
    if value is None:
        value = torch.full(window.item_index.shape, torch.nan, device=window.item_index.device)
    missing = value.isnan()
    known = value.nan_to_num()
    return torch.stack([known.sign() * known.abs().log1p(), missing.float()], -1)


def normalised(vectors: Float[Tensor, "*any d"]) -> Float[Tensor, "*any d"]:
    """The vectors at length 1; zero stays zero."""
    return functional.normalize(vectors, dim=-1)
