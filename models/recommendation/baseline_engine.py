"""Recommendation engine of any recommender that scores the whole catalogue: baselines, a class of one's own.

Letters in shapes: r rows, n items, k places, l interactions.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from models.encoder.encoder import with_request_time
from models.explanation import contributions
from models.histories import Float32, Histories, Int32, Int64
from models.recommendation.answer import (
    Answer,
    Because,
    Candidates,
    Lists,
    PastEvents,
    ReasonMethod,
    Run,
)
from models.recommendation.proofs import MOST_EVENTS, with_proofs
from models.recommendation.rules import Rules, Traits, UInt64
from models.recommender import Recommender
from models.topk import event_chunks, mask_others, mask_seen, row_chunks, top_k

EXPLAINED_ITEMS = 20
"""Past items of each row that reasons are sought among, the latest."""


@dataclass(frozen=True)
class BaselineEngine:
    """Top-k lists for histories, by the recommender's scores and rules."""

    recommender: Recommender
    popularity: Float32
    """[segments + 1, n + 1], scores for rows without a known interaction; row 0: rows of no segment"""
    traits: Traits
    reads_history: bool = True
    """Whether scores depend on the history; else no recommendation has reasons."""

    @property
    def looks_at_request(self) -> bool:
        """Whether the request time is read: a class of one's own may."""
        return True

    def answer(
        self,
        histories: Histories,
        k: int,
        rules: Rules,
        *,
        keys: UInt64 | None = None,
        segment: Int64 | None = None,
        because: ReasonMethod | None = None,
        because_items: int = 3,
        run: Run = map,
        in_blocks: bool = False,
    ) -> Answer:
        """Top-k items of each row, as in `RecommendationEngine.answer`.

        Weights of reasons are exact by every method; lists are bit-identical with and without reasons. `in_blocks` changes
        nothing. Raises ValueError for proven reasons of lists with drawn places.
        """
        del in_blocks
        histories = self._with_request_time(histories)
        warm = np.flatnonzero(histories.lengths > 0)
        chunks = row_chunks(len(warm), self.recommender.num_items)
        answer = Lists(k, rules, self.traits).answer(
            histories,
            self.popularity,
            (warm[rows] for rows in chunks),
            lambda rows: _WarmRows(self, rows, rules),
            keys=keys,
            segment=segment,
            because_items=None if because is None else because_items,
            num_events=MOST_EVENTS if because == "proven" else 0,
            run=run,
        )
        if because != "proven":
            return answer
        answer_of = partial(self.answer, k=k, rules=rules, run=run)
        return with_proofs(answer, histories, rules, segment, answer_of)

    def contributions(
        self, histories: Histories, k: int, rules: Rules, _method: contributions.Method
    ) -> tuple[Int32, Float32]:
        """Top-k items [r, k] of rows that are not empty, and each interaction's contribution [r, k, l]."""
        histories = self._with_request_time(histories)
        warm = _WarmRows(self, histories, rules)
        items = Lists(k, rules, self.traits).filled(warm.retrieve, np.zeros(len(histories), np.uint64)).items
        return items, self.dropped(histories, items)

    def dropped(self, histories: Histories, items: Int32) -> Float32:
        """[r, k, l], drop of the score of each item [r, k] without a past item, at its latest interaction; others are 0.

        Each of a row's latest `EXPLAINED_ITEMS` distinct items is left out with all its interactions, and the row scored again.
        """
        weights = np.zeros((*items.shape, int(histories.lengths.max(initial=0))), np.float32)
        if not self.reads_history or not weights.size:
            return weights
        row, position = latest_of_items(histories, EXPLAINED_ITEMS)
        column = items.astype(np.int64)
        whole = self._scores_of(histories, column)
        shorter = histories.select(row)
        scores = np.zeros((len(row), items.shape[1]), np.float32)
        for part in event_chunks(shorter.lengths):
            left = without_item(shorter.select(part), histories.item_index[position[part]])
            scores[part] = self._scores_of(left, column[row[part]])
        is_finite = (items[row] > 0) & np.isfinite(whole[row]) & np.isfinite(scores)
        difference = np.subtract(whole[row], scores, out=np.zeros_like(scores), where=is_finite)
        weights[row, :, position - histories.starts[row]] = difference
        return weights

    def score_items(self, histories: Histories) -> Float32:
        """[r, n + 1], the recommender's scores of the rows without dislikes."""
        return self.recommender.score_items(histories.without_dislikes())

    def _scores_of(self, histories: Histories, columns: Int64) -> Float32:
        """[r, k] scores of the items `columns` [r, k], in chunks of rows."""
        scores = np.zeros(columns.shape, np.float32)
        for rows in row_chunks(len(histories), self.recommender.num_items):
            values = self.score_items(histories.select(rows))
            scores[rows] = np.take_along_axis(values, columns[rows], 1)
        return scores

    def _with_request_time(self, histories: Histories) -> Histories:
        """Add the time of the newest event of all rows as the request time where there is none."""
        if histories.request_time is not None:
            return histories
        return with_request_time(histories, int(histories.time[histories.gather()[1]].max(initial=0)))


class _WarmRows:
    """Candidates and explanations of rows that are not empty."""

    def __init__(self, engine: BaselineEngine, histories: Histories, rules: Rules) -> None:
        self._engine, self.histories, self._rules = engine, histories, rules

    def retrieve(self, rows: Int64, number: int) -> tuple[Candidates, NDArray[np.bool_]]:
        """The best `number` of the catalogue for some rows, as `Retrieve`."""
        part = self.histories.select(rows)
        items, scores = np.zeros((len(part), number), np.int32), np.zeros((len(part), number), np.float32)
        for chunk in row_chunks(len(part), self._engine.recommender.num_items):
            values = self._engine.score_items(part.select(chunk))
            if (excluded := part.select(chunk).excluded(seen=self._rules.exclude_seen)) is not None:
                mask_seen(values, excluded)
            if self._rules.allowed is not None:
                values[:, ~self._rules.allowed] = -np.inf
            mask_others(values, part.select(chunk).shortlist)
            items[chunk], scores[chunk] = top_k(values, number)
        return (items, scores), items[:, -1] == 0

    def because(self, items: Int32, because_items: int, num_events: int) -> Because:
        """Past items behind each item [r, k], and events: the latest of each strongest item, and the newest."""
        weights = self._engine.dropped(self.histories, items)
        past, weight = contributions.strongest(weights, self.histories, because_items)
        if not num_events:
            return Because(past, weight)
        lengths = self.histories.lengths * self._engine.reads_history
        return Because(past, weight, PastEvents(*contributions.events_to_try(weights, lengths, num_events)))

    def outcomes(self, items: Int32) -> None:
        """None: a baseline predicts no outcomes."""


def latest_of_items(histories: Histories, most: int) -> tuple[Int64, Int64]:
    """(row, position) of the latest interaction with each of a row's `most` latest distinct items, by row and position."""
    row, position = histories.gather()
    order = np.lexsort((position, histories.item_index[position], row))
    item = histories.item_index[position[order]]
    is_last = np.ones(len(order), bool)
    is_last[:-1] = (item[1:] != item[:-1]) | (row[order][1:] != row[order][:-1])
    kept = np.sort(order[is_last])
    row, position = row[kept], position[kept]
    place = np.searchsorted(row, row, side="right") - np.arange(len(row))  # 1: the row's latest
    return row[place <= most], position[place <= most]


def without_item(histories: Histories, item: Int32) -> Histories:
    """Rows without their interactions with `item` [r]."""
    row, position = histories.gather()
    return histories.only(histories.item_index[position] != item[row])
