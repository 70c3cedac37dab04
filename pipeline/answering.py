"""From rows of histories to lists: candidates are retrieved, ordered and chosen by rules, and reasons found.

Letters in shapes: n items, k places.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models import explain
from models.encoder import AttentionRecommender, as_asked
from models.index import ItemIndex
from models.recommender import Float32, Histories, Int32, Int64
from models.selection import Rules, Traits, UInt64, choose
from models.topk import mask_seen, row_chunks, top_k

AS_SCORED = Rules()
"""Nothing seen is recommended, and the order is that of the scores."""
_GROWTH = 4
"""How many times more candidates are retrieved for rows that they did not fill."""
_BATCH_TOKENS = 2**13
"""Padded size of the batches that histories are encoded in."""

Candidates = tuple[Int32, Float32]
"""Items and scores [rows, f], best first, 0 and -inf where there are fewer."""
Retrieve = Callable[[Int64, int], Candidates]
"""The best f candidates of some rows."""


@dataclass(frozen=True)
class Because:
    """The past interactions that carried each recommendation, strongest first."""

    item_index: Int32
    """[rows, k, because_items], 0 where there are fewer"""
    weight: Float32
    """[rows, k, because_items], what the score loses without them, or an estimate of it"""


@dataclass(frozen=True)
class Answer:
    """Recommendations for rows of histories."""

    item_index: Int32
    """[rows, k], best first, 0 where there are fewer"""
    score: Float32
    """[rows, k], -inf where there are fewer"""
    cold: NDArray[np.bool_]
    """[rows], answered by popularity, for want of a known item in the history"""
    because: Because | None


@dataclass(frozen=True)
class Answering:
    """What makes lists of histories."""

    recommender: AttentionRecommender
    index: ItemIndex
    popularity: Float32
    """[segments + 1, n + 1] what rows without a known interaction are answered by; row 0 for those of no segment"""
    traits: Traits

    def answer(
        self,
        histories: Histories,
        k: int,
        rules: Rules,
        *,
        keys: UInt64 | None = None,
        segment: Int64 | None = None,
        because: explain.Method | None = None,
        because_items: int = 3,
    ) -> Answer:
        """The k best items of each row; rows without interactions get what is popular, in their `segment` [rows] if it is given.

        `keys` [rows]: what draws follow from (`Rules.exploration`). `because` is None, "fast" or "exact". A model that looks at
        the time of the request takes `histories.request_time`, or the time of the rows' newest event. A list is shorter than k
        only where the catalogue has no more that the rules let through: for rows that candidates do not fill, more are retrieved.
        """
        cold = histories.lengths == 0
        histories = self._asked(histories)
        keys = np.zeros(len(histories), np.uint64) if keys is None else keys
        segment = np.zeros(len(histories), np.int64) if segment is None else segment
        items = np.zeros((len(histories), k), np.int32)
        score = np.full((len(histories), k), -np.inf, np.float32)
        for retrieve, chosen in (
            (self._popular(segment[cold], rules), cold),
            (self._nearest(histories.select(~cold), rules), ~cold),
        ):
            if chosen.any():
                items[chosen], score[chosen] = self._filled(retrieve, k, rules, keys[chosen])
        reasons = None
        if because is not None:
            reasons = self._because(histories, items, cold, because, because_items)
        return Answer(items, score, cold, reasons)

    def _asked(self, histories: Histories) -> Histories:
        """The rows with a request time, where the model looks at one and none is said: that of their newest event."""
        if not self.recommender.encoder.settings.request_time or histories.request_time is not None:
            return histories
        return as_asked(histories, int(histories.time[histories.gather()[1]].max(initial=0)))

    def _filled(self, retrieve: Retrieve, k: int, rules: Rules, keys: UInt64) -> Candidates:
        """Lists [rows, k] by the rules, for rows left short from ever more candidates until there are no more."""
        items = np.zeros((len(keys), k), np.int32)
        scores = np.full((len(keys), k), -np.inf, np.float32)
        pool, open_rows = rules.pool(k), np.arange(len(keys))
        while len(open_rows):
            candidates, values = retrieve(open_rows, pool)
            found = choose(candidates, values, k, rules, self.traits, keys[open_rows])
            items[open_rows], scores[open_rows] = found
            is_short = (found[0][:, -1] == 0) & (candidates[:, -1] > 0)
            open_rows, pool = open_rows[is_short], pool * _GROWTH
        return items, scores

    def _nearest(self, warm: Histories, rules: Rules) -> Retrieve:
        """Candidates of rows that are not empty: from the index, or scored one by one where no vector says it all."""
        by_vector = self.recommender.encoder.scores_by_vector
        vectors = self.recommender.encode(warm, _BATCH_TOKENS) if by_vector and len(warm) else None

        def retrieve(rows: Int64, number: int) -> Candidates:
            part = warm.select(rows)
            if vectors is None:
                found = self._scored(part, number, rules)
            else:
                seen = part if rules.exclude_seen else None
                found = self.index.search(vectors[rows], number, seen, rules.allowed)
            return self._ranked(part, *found)

        return retrieve

    def _ranked(self, _warm: Histories, items: Int32, scores: Float32) -> Candidates:
        """The candidates of rows in the order of the second stage; without one, as they were retrieved."""
        return items, scores

    def _scored(self, warm: Histories, number: int, rules: Rules) -> Candidates:
        """The best of the whole catalogue, scored chunk after chunk of rows."""
        items, scores = np.zeros((len(warm), number), np.int32), np.zeros((len(warm), number), np.float32)
        for rows in row_chunks(len(warm), self.recommender.num_items):
            values = self.recommender.score_items(warm.select(rows))
            if rules.exclude_seen:
                mask_seen(values, warm.select(rows))
            if rules.allowed is not None:
                values[:, ~rules.allowed] = -np.inf
            items[rows], scores[rows] = top_k(values, number)
        return items, scores

    def _popular(self, segment: Int64, rules: Rules) -> Retrieve:
        """Candidates of empty rows: what is popular in their segments."""
        popularity = self.popularity
        if rules.allowed is not None:
            popularity = np.where(rules.allowed, popularity, np.float32(-np.inf))

        def retrieve(rows: Int64, number: int) -> Candidates:
            wanted, row = np.unique(segment[rows], return_inverse=True)
            items, scores = top_k(popularity[wanted], number)
            return items[row], scores[row]

        return retrieve

    def _because(
        self,
        histories: Histories,
        items: Int32,
        cold: NDArray[np.bool_],
        method: explain.Method,
        because_items: int,
    ) -> Because:
        """What in the histories carried each item; nothing for what is popular."""
        reasons = Because(
            np.zeros((*items.shape, because_items), np.int32),
            np.zeros((*items.shape, because_items), np.float32),
        )
        warm = histories.select(~cold)
        if len(warm):
            weights = explain.contributions(self.recommender.encoder, warm, items[~cold], method)
            found = explain.strongest(weights, warm, because_items)
            reasons.item_index[~cold], reasons.weight[~cold] = found
        return reasons
