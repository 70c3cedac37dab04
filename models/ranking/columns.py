"""Columns of users, items and events in the second stage: tables of values, and their embeddings.

Letters: r rows, n candidates per row, l interactions of the longest history, p = n or 1, d width, f features; su, si values of a
user's and an item's columns, se columns of events. A value is a number from 1 within all columns of its table, of events after
those of users; 0 fills places without a value.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from models.histories import Float32, Histories, Int32, Int64
from models.ranking.event_columns import EventTables
from models.shapes import Float, Int

DIM = 8
"""Embedding dimension of a value."""
SPREAD = 0.1
"""Standard deviation of the embeddings at first."""
UNSEEN_SHARE = 0.05
"""Share of values that training replaces by "rare or unseen" of their column, so that it is learned in every column."""


@dataclass(frozen=True)
class ColumnTables:
    """Values of the columns of all users and items, by a reader's numbers."""

    users: Int32
    """[num_users + 1, su]; the last row is of unknown users"""
    items: Int32
    """[num_items + 2, si]; row 0 is padding, the last one of unknown items"""
    events: EventTables | None = None
    """None: the ranker reads no columns of events"""

    def extended(self, more: int) -> "ColumnTables":
        """Append unknown items after the last one."""
        items = np.concatenate([self.items, np.repeat(self.items[-1:], more, 0)])
        events = None if self.events is None else self.events.extended(more)
        return replace(self, items=items, events=events)

    def save(self, folder: Path) -> None:
        """Write `column_users.npy` and `column_items.npy`, and those of events, into an existing folder."""
        for name, path in _paths(folder).items():
            np.save(path, getattr(self, name), allow_pickle=False)
        if self.events is not None:
            self.events.save(folder)

    @classmethod
    def load(cls, folder: Path) -> "ColumnTables":
        """Load saved tables."""
        tables = {name: np.load(path) for name, path in _paths(folder).items()}
        return cls(**tables, events=EventTables.load(folder))

    def permuted(self, table: str, places: slice, rows: Int64, seed: int) -> "ColumnTables":
        """Shuffle the values at some places of a table, `users` or `items`, among the given rows."""
        shuffled: Int32 = getattr(self, table).copy()
        shuffled[rows, places] = shuffled[np.random.default_rng(seed).permutation(rows), places]
        return replace(self, users=shuffled) if table == "users" else replace(self, items=shuffled)


def _paths(folder: Path) -> dict[str, Path]:
    return {name: folder / f"column_{name}.npy" for name in ("users", "items")}


@dataclass(frozen=True)
class ColumnPlaces:
    """Place of a column in its table."""

    label: str
    table: str
    """users, items or events"""
    places: slice


def column_values(
    tables: ColumnTables | None, histories: Histories, items: Int32, past: NDArray[np.integer]
) -> tuple[Int32, Int32, Int32, Float32]:
    """Values [r, su + se] of the rows' users and requests, [r, n, si] of candidates [r, n], [r, l, si] of past items [r, l], 0:
    padding; and `EventTables.affinity` [r, n, se].
    """
    affinity = np.zeros((*items.shape, 0), np.float32)
    if tables is None:
        none = np.zeros(0, np.int32)
        shapes = (len(items), 0), (*items.shape, 0), (*past.shape, 0)
        first, second, third = (none.reshape(shape) for shape in shapes)
        return first, second, third, affinity
    user = np.full(len(items), -1) if histories.user is None else histories.user
    values = tables.users[user]
    if tables.events is not None:
        own = tables.events.values(histories)
        values, affinity = np.concatenate([values, own], 1), tables.events.affinity(own, items)
    return values, tables.items[items], tables.items[past], affinity


class ColumnEmbeddings(nn.Module):
    """`[u, i, h, u * (i + W features), h * i, a]` from the columns of a row's user and request and of its candidates.

    u is the sum of the embeddings of the values of user and request, i that of the candidate's, h the mean of such sums over
    the latest interactions. The products are the pairs of a factorization machine (Rendle 2010) between user or history and
    candidate; W lets a user's columns weigh the candidate's features. a are the affinities of the candidate with the request's
    values. Value 0 has the embedding 0.
    """

    unseen_user: Tensor
    unseen_item: Tensor

    def __init__(
        self,
        unseen_user: Int[Tensor, " u"],
        unseen_item: Int[Tensor, " i"],
        num_features: int,
        num_of_events: int = 0,
    ) -> None:
        """unseen_user (and of requests), unseen_item: "rare or unseen" of the column of each value, 0 for value 0.

        num_of_events: columns of events.
        """
        super().__init__()
        self.num_of_events = num_of_events
        self.register_buffer("unseen_user", unseen_user)
        self.register_buffer("unseen_item", unseen_item)
        self.of_user, self.of_item = (
            nn.Embedding(len(unseen), DIM, padding_idx=0) for unseen in (unseen_user, unseen_item)
        )
        for table in (self.of_user, self.of_item):
            nn.init.normal_(table.weight, std=SPREAD)
            with torch.no_grad():
                table.weight[0] = 0
        self.of_features = nn.Linear(num_features, DIM, bias=False)

    @property
    def width(self) -> int:
        """Number of components of all parts."""
        return 5 * DIM + self.num_of_events

    def forward(
        self,
        user_values: Int[Tensor, "r su"],
        item_values: Int[Tensor, "r n si"],
        past_values: Int[Tensor, "r l si"],
        weights: Float[Tensor, "r p l"],
        features: Float[Tensor, "r n f"],
        affinity: Float[Tensor, "r n se"],
    ) -> tuple[Float[Tensor, "r n d"], ...]:
        """The five parts [r, n, d], and the affinities; weights: of the latest interactions in h; features: standardised."""
        user = self._sum(self.of_user, self.unseen_user, user_values).unsqueeze(1)
        item = self._sum(self.of_item, self.unseen_item, item_values)
        past = self._sum(self.of_item, self.unseen_item, past_values)
        mean = (weights @ past) / weights.sum(-1, keepdim=True).clamp_min(torch.finfo(past.dtype).tiny)
        user, mean = user.expand_as(item), mean.expand_as(item)
        return user, item, mean, user * (item + self.of_features(features)), mean * item, affinity

    def _sum(self, table: nn.Embedding, unseen: Tensor, values: Tensor) -> Tensor:
        """Sum of the embeddings of values [..., s]; some of them as if unseen while training."""
        if self.training:
            is_hidden = torch.rand(values.shape, device=values.device) < UNSEEN_SHARE
            values = torch.where(is_hidden, unseen[values], values)
        return functional.embedding(values, table.weight, padding_idx=0).sum(-2)
