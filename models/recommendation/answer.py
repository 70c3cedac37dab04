"""Answers of every recommendation engine: popular items for cold rows, lists filled by the rules for the others.

Letters in shapes: n items, k places, f candidates.
"""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from models.explanation.contributions import Method
from models.histories import Float32, Histories, Int32, Int64
from models.recommendation.rules import Chosen, Rules, Traits, UInt64, choose
from models.recommendation.shortlists import fill_limited
from models.topk import top_k

_GROWTH = 4
"""Growth of the candidate pool per round, for rows left short."""

Candidates = tuple[Int32, Float32]
"""Items and scores [rows, f], best first, padded with 0 and -inf."""
Retrieve = Callable[[Int64, int], tuple[Candidates, NDArray[np.bool_]]]
"""Function from row numbers and f to f candidates of each or more, and whether there are no others [rows]."""


ReasonMethod = Literal[Method, "proven"]
"""Method of attribution; proven: by "balanced", and then sets of events without which the item is not in the list."""


def attribution_of(because: ReasonMethod | None) -> Method | None:
    """Method of attribution behind a method of reasons."""
    return "balanced" if because == "proven" else because


class PastEvents(NamedTuple):
    """Single past events of each recommendation: the s strongest, then the s newest, in this order."""

    place: Int32
    """[rows, k, 2 s], place of the event in its row, from 0; -1: none"""
    weight: Float32
    """[rows, k, 2 s]"""


@dataclass(frozen=True)
class Because:
    """Past interactions behind each recommendation, strongest first."""

    item_index: Int32
    """[rows, k, because_items], padded with 0"""
    weight: Float32
    """[rows, k, because_items], drop of the score without the interaction, or an estimate"""
    events: PastEvents | None = None
    """Events among which a proof is sought; None where none is"""
    proven: NDArray[np.bool_] | None = None
    """[rows, k], whether the item is not in the list without these interactions, one each; None where no proof was sought"""

    @classmethod
    def none(cls, shape: tuple[int, ...], because_items: int, num_events: int = 0) -> "Because":
        """Empty reasons for items [rows, k]. num_events: s of `events`, 0: without them."""
        whole, single = (*shape, because_items), (*shape, 2 * num_events)
        events = PastEvents(np.full(single, -1, np.int32), np.zeros(single, np.float32))
        return cls(np.zeros(whole, np.int32), np.zeros(whole, np.float32), events if num_events else None)

    def fill(self, rows: Int64, own: "Because") -> None:
        """Write the reasons of some rows."""
        self.item_index[rows], self.weight[rows] = own.item_index, own.weight
        if self.events is not None and own.events is not None:
            self.events.place[rows], self.events.weight[rows] = own.events


@dataclass(frozen=True)
class Outcomes:
    """Predicted outcomes of recommended items; NaN where the second stage did not rank the item. t: outcomes."""

    score: Float32
    """[rows, k], score of the second stage, by which the order is that of the next item"""
    probability: Float32
    """[rows, k, t]"""
    utility: Float32 | None
    """[rows, k], expected utility; None without utilities"""

    @classmethod
    def none(cls, shape: tuple[int, ...], num_outcomes: int, *, has_utility: bool) -> "Outcomes":
        """No predictions for items [rows, k]."""
        missing = np.full(shape, np.nan, np.float32)
        probability = np.full((*shape, num_outcomes), np.nan, np.float32)
        return cls(missing, probability, missing.copy() if has_utility else None)

    def fill(self, rows: Int64, own: "Outcomes") -> None:
        """Write the predictions of some rows."""
        self.score[rows], self.probability[rows] = own.score, own.probability
        if self.utility is not None and own.utility is not None:
            self.utility[rows] = own.utility


@dataclass(frozen=True)
class Answer:
    """Recommendations for rows of histories."""

    item_index: Int32
    """[rows, k], best first, padded with 0; k is the catalogue's size at most"""
    score: Float32
    """[rows, k], padded with -inf"""
    propensity: Float32
    """[rows, k], probability of the item at its place given the places above, 1 where nothing is drawn"""
    cold: NDArray[np.bool_]
    """[rows], whether the history has no known item, so that popular items are recommended"""
    because: Because | None
    outcomes: Outcomes | None = None
    """None without heads of outcomes"""
    ranked: NDArray[np.bool_] | None = None
    """[rows], whether a second stage ranked the list, the others being of retrieval alone; None: one rule for all rows"""

    @classmethod
    def merged(cls, ranked: NDArray[np.bool_], by_both: "Answer", by_retrieval: "Answer") -> "Answer":
        """Answers of the rows of the mask `ranked` [rows], and of the others, in the order of all rows."""
        rows = np.concatenate((np.flatnonzero(ranked), np.flatnonzero(~ranked)))
        order = np.argsort(rows)

        def joined(one: NDArray[Any], other: NDArray[Any]) -> NDArray[Any]:
            return np.concatenate((one, other))[order]

        because, outcomes = by_both.because, by_both.outcomes
        if because is not None and by_retrieval.because is not None:
            other = by_retrieval.because
            proven = None
            if because.proven is not None and other.proven is not None:
                proven = joined(because.proven, other.proven)
            because = Because(
                joined(because.item_index, other.item_index),
                joined(because.weight, other.weight),
                proven=proven,
            )
        if outcomes is not None:
            whole = Outcomes.none(
                (len(order), by_both.item_index.shape[1]),
                outcomes.probability.shape[2],
                has_utility=outcomes.utility is not None,
            )
            whole.fill(np.flatnonzero(ranked), outcomes)
            outcomes = whole
        return cls(
            joined(by_both.item_index, by_retrieval.item_index),
            joined(by_both.score, by_retrieval.score),
            joined(by_both.propensity, by_retrieval.propensity),
            joined(by_both.cold, by_retrieval.cold),
            because,
            outcomes,
            ranked,
        )


Run = Callable[[Callable[[Int64], None], Iterable[Int64]], Iterable[None]]
"""`map`, or that of a pool of threads."""


class WarmRows(Protocol):
    """Candidates and explanations of rows that are not empty."""

    def retrieve(self, rows: Int64, number: int) -> tuple[Candidates, NDArray[np.bool_]]:
        """Candidates of some rows, as `Retrieve`."""
        ...

    def because(self, items: Int32, because_items: int, num_events: int) -> Because:
        """Past items behind each item [rows, k], `because_items` at most, and events: s is `num_events`, 0: none."""
        ...

    def outcomes(self, items: Int32) -> Outcomes | None:
        """Predicted outcomes of each item [rows, k]; None without heads of outcomes."""
        ...


@dataclass(frozen=True)
class Lists:
    """Lists of k places by the rules, or of as many as there are items."""

    k: int
    rules: Rules
    traits: Traits
    num_ranked: int = 0
    """Candidates that a second stage ranks: as many are retrieved at least."""

    @property
    def places(self) -> int:
        """Columns of a list: k, or the number of items where that is less."""
        return min(self.k, self._num_items)

    @property
    def _num_items(self) -> int:
        return len(self.traits.num_events) - 1

    def answer(
        self,
        histories: Histories,
        popularity: Float32,
        parts: Iterable[Int64],
        warm_rows: Callable[[Histories], WarmRows],
        *,
        keys: UInt64 | None,
        segment: Int64 | None,
        because_items: int | None,
        num_events: int = 0,
        outcomes: Callable[[tuple[int, ...]], Outcomes | None] = lambda _: None,
        run: Run = map,
    ) -> Answer:
        """Lists of all rows: empty ones from `popularity` [segments + 1, n + 1], the `parts` of the others by `warm_rows`.

        `keys`, `segment`: [rows], 0 if None. `because_items`: past items behind each recommendation, None without reasons;
        `num_events`: s of the single events beside them, 0: none.
        `outcomes`: predictions still without values, of the shape of the lists. `run`: over the parts, in any order.
        """
        keys = np.zeros(len(histories), np.uint64) if keys is None else keys
        segment = np.zeros(len(histories), np.int64) if segment is None else segment
        cold = histories.lengths == 0
        lists = self._empty(len(histories))
        items = lists.items
        reasons = None if because_items is None else Because.none(items.shape, because_items, num_events)
        predicted = outcomes(items.shape)
        if cold.any():
            popular = self._popular(popularity, segment[cold], histories.select(cold))
            _fill(lists, cold, self.filled(popular, keys[cold]))

        def fill(rows: Int64) -> None:
            warm = warm_rows(histories.select(rows))
            _fill(lists, rows, self.filled(warm.retrieve, keys[rows]))
            if reasons is not None and because_items is not None:
                reasons.fill(rows, warm.because(items[rows], because_items, num_events))
            if predicted is not None and (own := warm.outcomes(items[rows])) is not None:
                predicted.fill(rows, own)

        deque(run(fill, parts), maxlen=0)
        return Answer(*lists, cold, reasons, predicted)

    def filled(self, retrieve: Retrieve, keys: UInt64) -> Chosen:
        """Fill lists [rows, k] by the rules, retrieving more candidates for short rows until none are left."""
        filled = self._empty(len(keys))
        pool, open_rows = max(self.rules.pool(self.places), self.num_ranked), np.arange(len(keys))
        while len(open_rows):
            pool = min(
                pool, max(self._num_items + 1, self.num_ranked)
            )  # the last of more than there are is 0
            (candidates, values), is_all = retrieve(open_rows, pool)
            lists = choose(candidates, values, self.places, self.rules, self.traits, keys[open_rows], is_all)
            _fill(filled, open_rows, lists)
            is_short = (lists.items[:, -1] == 0) & ~is_all
            open_rows, pool = open_rows[is_short], pool * _GROWTH
        return filled

    def _empty(self, num_rows: int) -> Chosen:
        """Lists without items."""
        shape = num_rows, self.places
        return Chosen(
            np.zeros(shape, np.int32), np.full(shape, -np.inf, np.float32), np.ones(shape, np.float32)
        )

    def _popular(self, popularity: Float32, segment: Int64, cold: Histories) -> Retrieve:
        """Retrieve popular items of the segments of empty rows, without those left out of each row, or from its shortlist.

        Items without events are among them, never the padding 0.
        """
        left_out, shortlist = cold.left_out, cold.shortlist
        eligible = None if shortlist is None else shortlist.without(cold.excluded(seen=False), None)
        is_open = np.arange(popularity.shape[1]) > 0
        if self.rules.allowed is not None:
            is_open &= self.rules.allowed
        popularity = np.where(is_open, popularity, np.float32(-np.inf))

        def retrieve(rows: Int64, number: int) -> tuple[Candidates, NDArray[np.bool_]]:
            segments, row = np.unique(segment[rows], return_inverse=True)
            items, scores = top_k(popularity[segments], number)
            items, scores = items[row], scores[row]
            is_all = items[:, -1] == 0
            if left_out is not None:
                is_out = left_out.select(rows).has(items)
                order = np.argsort(is_out, axis=1, kind="stable")
                items, scores = (
                    np.where(is_out, np.int32(0), items),
                    np.where(is_out, np.float32(-np.inf), scores),
                )
                items = np.take_along_axis(items, order, 1)
                scores = np.take_along_axis(scores, order, 1)
            if eligible is not None:
                own, code = eligible.select(rows), segment[rows]
                fill_limited((items, scores), own, lambda row, item: popularity[code[row], item])
                is_all = np.where(own.is_limited, items[:, -1] == 0, is_all)
            return (items, scores), is_all

        return retrieve


def _fill(lists: Chosen, rows: Int64 | NDArray[np.bool_], found: Chosen) -> None:
    """Write the lists of some rows."""
    for whole, part in zip(lists, found, strict=True):
        whole[rows] = part
