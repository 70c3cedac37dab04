"""Second-stage ranker: target attention from each retrieved candidate to the history, plus candidate features.

Letters: r rows, n candidates per row, l interactions of the longest history, f features, d width, u units, h heads, c = d / h,
items = num_items + 1 in the ranker's own numbering, w inputs of a head, t outcomes, v outcomes with a value.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from models.device import moved
from models.histories import Float32, Histories, Int32, Int64
from models.ranking.candidates import AddedCandidates
from models.ranking.columns import ColumnEmbeddings, ColumnTables, column_values
from models.ranking.features import FEATURES, LATEST, ItemStatistics
from models.ranking.outcomes import Calibrator, OutcomeHeads, Utility
from models.settings.ranker import RankerSettings
from models.shapes import Float, Int

GAP_BUCKETS, PLACE_BUCKETS = 32, 12
UNITS = 8
"""Hidden units of the activation unit."""
BATCH_CELLS = 2**19
"""Candidates x interactions per batch."""


@dataclass(frozen=True)
class Lists:
    """Ranker inputs: candidates and their histories."""

    item: Int[Tensor, "r n"]
    """Candidates in the ranker's numbering; 0: padding, or an item unknown to the ranker."""
    there: Tensor
    """[r, n], candidate mask: False is padding"""
    features: Float[Tensor, "r n f"]
    followed: Float[Tensor, "r n latest"]
    past_item: Int[Tensor, "r l"]
    """Latest interactions, the last one in column 0."""
    past_type: Int[Tensor, "r l"]
    past_gap: Int[Tensor, "r l"]
    """Bucket of the time between each interaction and the request."""
    past_there: Tensor
    """[r, l], interaction mask: False is padding"""
    user_values: Int[Tensor, "r su"]
    """Values of columns, as in `ColumnTables`, of users and requests, of candidates and of the latest interactions; 0: none"""
    item_values: Int[Tensor, "r n si"]
    past_values: Int[Tensor, "r l si"]
    affinity: Float[Tensor, "r n se"]
    """As by `EventTables.affinity`"""

    def select(self, rows: Tensor) -> "Lists":
        """Keep the given rows."""
        return Lists(**{name: part[rows] for name, part in vars(self).items()})

    def of_candidates(self, columns: Int[Tensor, "r m"]) -> "Lists":
        """Keep the given candidates of each row."""
        wide = columns.unsqueeze(-1)
        return replace(
            self,
            item=self.item.gather(1, columns),
            there=self.there.gather(1, columns),
            features=self.features.gather(1, wide.expand(-1, -1, self.features.shape[2])),
            followed=self.followed.gather(1, wide.expand(-1, -1, self.followed.shape[2])),
            item_values=self.item_values.gather(1, wide.expand(-1, -1, self.item_values.shape[2])),
            affinity=self.affinity.gather(1, wide.expand(-1, -1, self.affinity.shape[2])),
        )

    def to(self, device: torch.device) -> "Lists":
        """Copy to a device."""
        return Lists(**{name: moved(part, device) for name, part in vars(self).items()})


class Ranker(nn.Module):
    """`score = w . features + MLP([c, a, a * c, m, columns, followed, features])`, initialised to the retriever's order.

    c is the candidate's vector; a the interactions weighted by an activation unit over candidate, interaction and their product
    (softmax over the history); m multi-head attention from candidate to history. An interaction is the sum of item vector, type,
    time before the request and position. Item vectors are those of the first retriever and stay fixed, so the ranker keeps its
    quality behind a retrained one. Without `item_vectors` there are `followed` and features alone: lists that share their days
    otherwise teach which items those days favoured. Without `hidden` the MLP is linear. `columns` are the parts of
    `ColumnEmbeddings`, where the ranker reads any.
    Sources: Zhou et al. 2018 (DIN), 4.3, with a softmax; Vaswani et al. 2017 for m.
    """

    vectors: Tensor
    mean: Tensor
    scale: Tensor

    def __init__(
        self,
        settings: RankerSettings,
        vectors: Tensor,
        num_event_types: int,
        features: tuple[str, ...] = FEATURES,
        columns: ColumnEmbeddings | None = None,
    ) -> None:
        """features: names of the candidates' features, "retrieval_score" among them."""
        super().__init__()
        self.settings = settings
        self.num_event_types = num_event_types
        self.features = features
        self.retrieval_score = features.index("retrieval_score")
        dim = settings.dim
        self.register_buffer("vectors", vectors)
        self.register_buffer("mean", torch.zeros(len(features)))
        self.register_buffer("scale", torch.ones(len(features)))
        if settings.item_vectors:
            self._add_attention(vectors.shape[1], dim, num_event_types)
        self.decay = nn.Parameter(torch.full((LATEST,), 0.8).log() * torch.arange(LATEST))
        self.dropout = nn.Dropout(settings.dropout)
        self.columns = columns
        width = (
            settings.item_vectors * dim * 4 + len(features) + 1 + (0 if columns is None else columns.width)
        )
        if settings.hidden:
            self.hidden = nn.Linear(width, settings.hidden)
        self.last = nn.Linear(settings.hidden or width, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)
        self.linear = nn.Parameter(torch.zeros(len(features)))
        self.heads: OutcomeHeads | None = None

    def add_outcomes(
        self, types: Sequence[str], valued: Sequence[str], calibrations: tuple[Calibrator, ...] = ()
    ) -> None:
        """Add heads of outcomes, the `valued` ones with their value; calibrations: from logit to probability, of each type."""
        width = self.last.in_features + len(self.features)
        self.heads = OutcomeHeads(types, valued, width, calibrations).to(self.linear.device)

    def reading(self, columns: ColumnEmbeddings) -> "Ranker":
        """New untrained ranker of the same shape and outcomes that reads columns too."""
        vectors = self.vectors.cpu()
        ranker = Ranker(self.settings, vectors, self.num_event_types, self.features, columns)
        if self.heads is not None:
            ranker.add_outcomes(self.heads.types, self.heads.valued)
        return ranker.to(self.vectors.device)

    def _add_attention(self, width: int, dim: int, num_event_types: int) -> None:
        """Add what reads item vectors [items, width]."""
        self.project = nn.Linear(width, dim)
        self.types = nn.Embedding(num_event_types + 1, dim)
        self.gaps = nn.Embedding(GAP_BUCKETS, dim)
        self.places = nn.Embedding(PLACE_BUCKETS, dim)
        for table in (self.types, self.gaps, self.places):
            nn.init.normal_(table.weight, std=0.02)
        self.of_past, self.of_candidate = nn.Linear(dim, UNITS), nn.Linear(dim, UNITS, bias=False)
        self.of_product = nn.Parameter(torch.randn(UNITS, dim) / math.sqrt(dim))
        self.activation = nn.Linear(UNITS, 1, bias=False)
        self.queries, self.keys_values = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim)

    def forward(self, lists: Lists, presence: Float[Tensor, "r p l"] | None = None) -> Float[Tensor, "r n"]:
        """Score each candidate, -inf for padding; `presence` weighs interactions from 0 (absent) to 1, and p is n or 1."""
        return self._scores(lists, *self._bottom(lists, presence))

    def with_outcomes(
        self, lists: Lists
    ) -> tuple[Float[Tensor, "r n"], Float[Tensor, "r n t"], Float[Tensor, "r n v"]]:
        """Scores as by `forward`, and the outcomes' logits and values as by `OutcomeHeads.forward`."""
        assert self.heads is not None
        features, joined = self._bottom(lists, None)
        return self._scores(lists, features, joined), *self.heads(torch.cat([joined, features], -1))

    def _bottom(
        self, lists: Lists, presence: Tensor | None
    ) -> tuple[Float[Tensor, "r n f"], Float[Tensor, "r n w"]]:
        """Standardised features, and the hidden layer or its inputs."""
        features = (lists.features - self.mean) / self.scale
        followed = lists.followed
        if presence is not None:
            gate = presence[..., :LATEST]
            followed = followed * functional.pad(gate, (0, LATEST - gate.shape[-1]), value=1.0)
        followed = ((followed * self.decay.exp()).sum(-1, keepdim=True) + 1e-3).log()
        attended = self._attention(lists, presence) if self.settings.item_vectors else ()
        known = () if self.columns is None else self._known(self.columns, lists, features, presence)
        joined = torch.cat([*attended, *known, followed, features], -1)
        if self.settings.hidden:
            joined = self.dropout(functional.gelu(self.hidden(joined)))
        return features, joined

    def _scores(self, lists: Lists, features: Tensor, joined: Tensor) -> Float[Tensor, "r n"]:
        added = self.last(joined).squeeze(-1)
        scores: Tensor = lists.features[..., self.retrieval_score] + features @ self.linear + added
        return scores.masked_fill(~lists.there, -torch.inf)

    @staticmethod
    def _known(
        columns: ColumnEmbeddings, lists: Lists, features: Tensor, presence: Tensor | None
    ) -> tuple[Float[Tensor, "r n d"], ...]:
        """Parts of the columns."""
        weights = lists.past_there.unsqueeze(1).to(features.dtype)
        weights = weights if presence is None else weights * presence
        parts: tuple[Tensor, ...] = columns(
            lists.user_values, lists.item_values, lists.past_values, weights, features, lists.affinity
        )
        return parts

    def _attention(self, lists: Lists, presence: Tensor | None) -> tuple[Float[Tensor, "r n d"], ...]:
        """Candidates' vectors, the history as seen by the activation unit, their product, and the attended history."""
        past = self.project(self.vectors[lists.past_item]) + self.types(lists.past_type)
        places = torch.arange(past.shape[1], device=past.device)
        past = self.dropout(past + self.gaps(lists.past_gap) + self.places(_log_bucket(places)))
        candidate = self.dropout(self.project(self.vectors[lists.item]))
        activated = self._activated(candidate, past, lists.past_there, presence)
        attended = self._attended(candidate, past, lists.past_there, presence)
        return candidate, activated, activated * candidate, attended

    def _activated(
        self, candidate: Tensor, past: Tensor, mask: Tensor, presence: Tensor | None
    ) -> Float[Tensor, "r n d"]:
        rows, number, dim = candidate.shape
        product = (candidate.unsqueeze(2) * self.of_product).view(rows, number * UNITS, dim)
        shift = self.of_past(past).transpose(1, 2).unsqueeze(1) + self.of_candidate(candidate).unsqueeze(-1)
        units = (product @ past.transpose(1, 2)).view(rows, number, UNITS, -1) + shift
        fit = (self.activation.weight @ functional.relu_(units)).squeeze(2)
        return _weights(fit, mask.unsqueeze(1), presence) @ past

    def _attended(
        self, candidate: Tensor, past: Tensor, mask: Tensor, presence: Tensor | None
    ) -> Float[Tensor, "r n d"]:
        heads = self.settings.num_heads
        keys, values = (_heads(part, heads) for part in self.keys_values(past).chunk(2, -1))
        queries = _heads(self.queries(candidate), heads)
        fit = queries @ keys.transpose(-2, -1) / math.sqrt(queries.shape[-1])
        gate = None if presence is None else presence.unsqueeze(1)
        mixed: Tensor = _weights(fit, mask[:, None, None], gate) @ values
        return mixed.transpose(1, 2).flatten(2)


def _heads(states: Float[Tensor, "r n d"], heads: int) -> Float[Tensor, "r h n c"]:
    return states.view(*states.shape[:2], heads, -1).transpose(1, 2)


def _weights(fit: Tensor, mask: Tensor, presence: Tensor | None) -> Tensor:
    """`p_j exp(fit_j) / sum(p exp(fit))` over unmasked columns, p presence; zero without any."""
    weights = fit.masked_fill(~mask, -1e9).softmax(-1) * mask
    if presence is None:
        return weights
    weights = weights * presence
    return weights / weights.sum(-1, keepdim=True).clamp_min(torch.finfo(weights.dtype).tiny)


def _log_bucket(places: Tensor) -> Tensor:
    return (2 * (places + 1.0).log2()).long().clamp_max(PLACE_BUCKETS - 1)


class SecondStage:
    """Ranker, item statistics, the map from the retriever's item numbers to the ranker's, and the columns that it reads."""

    def __init__(
        self,
        ranker: Ranker,
        statistics: ItemStatistics,
        own: Int32,
        columns: ColumnTables | None = None,
        utility: Utility | None = None,
    ) -> None:
        """own: [num_items + 1], the ranker's number of each item, 0 if unknown; utility: of the ranker's outcomes."""
        assert (ranker.columns is None) == (columns is None), "a ranker of columns needs their tables"
        self.ranker, self.statistics, self.own = ranker.eval(), statistics, own
        self.columns, self.utility = columns, utility
        self._added = AddedCandidates(ranker.settings, statistics)

    @property
    def num_items(self) -> int:
        """Number of items: the retriever's, then those that it does not know."""
        return self.statistics.num_items

    def extended(self, content: Float32) -> "SecondStage":
        """Append items without events after the retriever's last, with `content` [more, c]."""
        none = np.zeros(len(content), np.int32)
        columns = None if self.columns is None else self.columns.extended(len(content))
        own = np.concatenate([self.own, none])
        statistics = self.statistics.extended(content)
        return SecondStage(self.ranker, statistics, own, columns=columns, utility=self.utility)

    def counting(self, histories: Histories, days: float | None = None) -> "SecondStage":
        """Recount the item statistics from other interactions, within `days` as in `ItemStatistics.of`."""
        statistics = self.statistics.recounted(histories, days)
        return SecondStage(self.ranker, statistics, self.own, columns=self.columns, utility=self.utility)

    def reading(self, columns: ColumnTables | None) -> "SecondStage":
        """Read columns from other tables, such as those of a later log."""
        return SecondStage(self.ranker, self.statistics, self.own, columns=columns, utility=self.utility)

    def with_utility(self, utility: Utility) -> "SecondStage":
        """The same second stage with a utility of its outcomes."""
        return SecondStage(self.ranker, self.statistics, self.own, columns=self.columns, utility=utility)

    def added(
        self, histories: Histories, *, exclude_seen: bool, allowed: NDArray[np.bool_] | None = None
    ) -> Int32:
        """Candidates [r, m] besides the retrieved ones, as by `AddedCandidates.of`."""
        return self._added.of(self._as_read(histories), exclude_seen=exclude_seen, allowed=allowed)

    def lists(self, histories: Histories, items: Int32, scores: Float32) -> Lists:
        """Ranker inputs for candidates [r, n], best first by the retriever's `scores` [r, n]."""
        histories = self._as_read(histories)
        latest = histories.last(self.ranker.settings.max_length)
        length = max(1, int(latest.lengths.max(initial=0)))
        position = latest.ends[:, None] - 1 - np.arange(length)
        mask = position >= latest.starts[:, None]
        position = np.where(mask, position, 0)
        has_events = len(latest.item_index) > 0
        taken = np.where(mask, latest.item_index[position], 0) if has_events else 0 * position
        past = np.where(mask, self.own[taken], 0)
        kind = np.where(mask, latest.event_type[position], 0) if has_events else past
        return Lists(
            torch.from_numpy(self.own[items]),
            torch.from_numpy(items > 0),
            torch.from_numpy(self.statistics.features(histories, items, scores, self.ranker.features)),
            torch.from_numpy(self.statistics.followed(histories, items)),
            torch.from_numpy(past.astype(np.int32)),
            torch.from_numpy(kind.astype(np.int32)),
            torch.from_numpy(self._gaps(latest, position, mask)),
            torch.from_numpy(mask),
            *map(torch.from_numpy, column_values(self.columns, histories, items, taken)),
        )

    def list_features(self, histories: Histories, names: tuple[str, ...]) -> Float32:
        """[r, f], features that a row's candidates share, standardised as in the ranker."""
        none = np.zeros((len(histories), 1), np.int32), np.zeros((len(histories), 1), np.float32)
        values = self.statistics.features(self._as_read(histories), *none, names)[:, 0]
        columns = [self.ranker.features.index(name) for name in names]
        mean, scale = (part.cpu().numpy()[columns] for part in (self.ranker.mean, self.ranker.scale))
        return np.asarray((values - mean) / scale, np.float32)

    @torch.inference_mode()
    def score(self, histories: Histories, items: Int32, scores: Float32) -> Float32:
        """Ranker scores of candidates [r, n], -inf for item 0."""
        ranked = np.full(items.shape, -np.inf, np.float32)
        for rows, lists in self.batches(histories, items, scores):
            ranked[rows] = self.ranker(lists).float().cpu().numpy()
        return ranked

    def batches(self, histories: Histories, items: Int32, scores: Float32) -> Iterator[tuple[slice, Lists]]:
        """Rows and their ranker inputs, on the ranker's device, in parts that fit into memory."""
        step = max(1, BATCH_CELLS // (items.shape[1] * self.ranker.settings.max_length))
        for start in range(0, len(items), step):
            rows = slice(start, start + step)
            lists = self.lists(histories.select(rows), items[rows], scores[rows])
            yield rows, lists.to(self.ranker.linear.device)

    def _as_read(self, histories: Histories) -> Histories:
        """The histories without a time of the request if the ranker doesn't read it."""
        return histories if self.ranker.settings.request_time else replace(histories, request_time=None)

    def _gaps(self, latest: Histories, position: Int64, mask: NDArray[np.bool_]) -> Int32:
        """Bucket of the time before the request: log2(1 + seconds)."""
        if not self.statistics.timed or not len(latest.item_index):
            return np.zeros(position.shape, np.int32)
        request = latest.request_time
        if request is None:
            request = latest.time[np.maximum(latest.ends - 1, 0)]
        seconds = np.maximum(request[:, None] - latest.time[position], 0) / 1e6
        bucket = np.log2(1 + seconds).astype(np.int32)
        return np.where(mask, np.minimum(bucket, GAP_BUCKETS - 1), 0).astype(np.int32)
