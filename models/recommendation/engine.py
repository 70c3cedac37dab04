"""Recommendation engine: retrieval, ranking, rules and explanations of lists.

Letters in shapes: n items, k places.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from models.encoder.batching import BlockShape, cut_into_blocks
from models.encoder.encoder import AttentionRecommender, with_request_time
from models.explanation import contributions
from models.explanation.second_stage import two_stage_contributions
from models.histories import Float32, Histories, Int32, Int64, Shortlists, histories_from_lists
from models.ranking.candidates import (
    is_none_of,
    joined,
    learned_items,
    learned_part,
    within_shortlists,
)
from models.ranking.predictions import Predictions, predict
from models.ranking.ranker import SecondStage
from models.recommendation.answer import (
    Answer,
    Because,
    Candidates,
    Lists,
    Outcomes,
    PastEvents,
    ReasonMethod,
    Run,
    attribution_of,
)
from models.recommendation.proofs import MOST_EVENTS, with_proofs
from models.recommendation.rules import Rules, Traits, UInt64
from models.recommendation.shortlists import fill_limited
from models.topk import mask_others, mask_seen, row_chunks, top_k

if TYPE_CHECKING:
    from models.retrieval.index import ItemIndex


@dataclass(frozen=True)
class RecommendationEngine:
    """Top-k lists for histories, by retrieval, an optional second stage, and rules."""

    recommender: AttentionRecommender
    index: "ItemIndex"
    popularity: Float32
    """[segments + 1, n + 1], scores for rows without a known interaction; row 0: rows of no segment"""
    traits: Traits
    second_stage: SecondStage | None = None
    """Ranker of the candidates; None: the index's order."""

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
        """Top-k items of each row; rows without interactions get popular items, of their `segment` [rows] if given.

        `keys` [rows]: seeds of random draws (`Rules.exploration`). `because`: method of `contributions`, or "proven" (see
        `with_proofs`), or None; lists are bit-identical either way, because rows are encoded and ranked in the same parts by the
        same calls. Raises ValueError for proven reasons of lists with drawn places. The request time is
        `histories.request_time`, by default the newest event of all rows. Short rows get more candidates, so a list is shorter
        than k only where the rules allow no more items.
        `run`: over parts of the rows. `in_blocks`: vectors and their reasons are computed in blocks of fixed shape, filled with
        copies of their rows, so that without a second stage a row's answer has the same bits whatever the other rows; for many
        rows, since few take as long as a block.
        """
        cold = histories.lengths == 0
        histories = self._with_request_time(histories)
        lists, method = Lists(k, rules, self.traits, self._num_ranked), attribution_of(because)
        answer = lists.answer(
            histories,
            self.popularity,
            self._parts(np.flatnonzero(~cold), histories, lists.places, in_blocks=in_blocks),
            lambda rows: _WarmRows(self, rows, rules, method, lists.places if in_blocks else None),
            keys=keys,
            segment=segment,
            because_items=None if because is None else because_items,
            num_events=MOST_EVENTS if because == "proven" else 0,
            outcomes=self._no_outcomes,
            run=run,
        )
        if because != "proven":
            return answer
        answer_of = partial(self.answer, k=k, rules=rules, run=run, in_blocks=in_blocks)
        return with_proofs(answer, histories, rules, segment, answer_of)

    def _no_outcomes(self, shape: tuple[int, ...]) -> Outcomes | None:
        """Predictions without values for items of a shape; None without heads of outcomes."""
        stage = self.second_stage
        if stage is None or stage.ranker.heads is None:
            return None
        return Outcomes.none(shape, len(stage.ranker.heads.types), has_utility=stage.utility is not None)

    def answers_alike(self, k: int, because: ReasonMethod | None) -> bool:
        """Whether on this processor a row's answer in a block has the same bits at each of the block's places.

        Tried with copies of a row for every shape of block. Linear algebra may round by place where widths of states and heads
        are no multiples of the processor's registers.
        """
        encoder, random = self.recommender.encoder, np.random.default_rng(0)
        most = contributions.most_rows(encoder, k)
        every = np.arange(1, encoder.max_length + 1)
        lengths = {BlockShape.of(length, encoder.max_length, most): length for length in every.tolist()}
        for length in (length for shape, length in lengths.items() if shape.rows > 1):
            row = histories_from_lists([random.integers(1, self.recommender.num_items + 1, length).tolist()])
            items = random.integers(1, self.recommender.num_items + 1, (1, k), dtype=np.int32)
            if not _WarmRows(self, row, Rules(), attribution_of(because), k).are_alike(items):
                return False
        return True

    def _parts(self, warm: Int64, histories: Histories, k: int, *, in_blocks: bool) -> Iterator[Int64]:
        """Split the `warm` rows into parts that are encoded, ranked and explained together."""
        encoder = self.recommender.encoder
        lengths = learned_part(histories, encoder.num_items).lengths[warm]
        read, unread = warm[lengths > 0], warm[lengths == 0]
        if not encoder.scores_by_vector:
            yield from (rows for rows in (read, unread) if len(rows))
            return
        lengths = np.minimum(lengths[lengths > 0], encoder.max_length)
        if in_blocks:
            most = contributions.most_rows(encoder, k)
            yield from (read[part] for part in cut_into_blocks(lengths, encoder.max_length, most))
        else:
            yield from (read[part] for part in contributions.parts(encoder, lengths, k))
        if len(unread):
            yield unread

    def contributions(
        self, histories: Histories, k: int, rules: Rules, method: contributions.Method
    ) -> tuple[Int32, Float32]:
        """Top-k items [rows, k] of rows that are not empty, and each interaction's contribution [rows, k, l]."""
        warm = _WarmRows(self, self._with_request_time(histories), rules, method)
        lists = Lists(k, rules, self.traits, self._num_ranked)
        items = lists.filled(warm.retrieve, np.zeros(len(histories), np.uint64)).items
        return items, warm.contributions(items)

    @property
    def looks_at_request(self) -> bool:
        """Whether a stage reads the request time."""
        stage = self.second_stage
        by_ranker = stage is not None and stage.ranker.settings.request_time
        return self.recommender.encoder.settings.request_time or by_ranker

    def _with_request_time(self, histories: Histories) -> Histories:
        """Add a request time if a stage reads it; by default that of the newest event."""
        if not self.looks_at_request or histories.request_time is not None:
            return histories
        return with_request_time(histories, int(histories.time[histories.gather()[1]].max(initial=0)))

    @property
    def _num_ranked(self) -> int:
        """Number of candidates that the second stage ranks."""
        return 0 if self.second_stage is None else self.second_stage.ranker.settings.candidates


class _WarmRows:
    """Candidates and explanations of rows that are not empty.

    places: of the lists whose rows are a block of fixed shape, to be filled with copies; None: the rows alone. Candidates are
    retrieved for the rows themselves, everything else is computed for the block.
    """

    def __init__(
        self,
        engine: RecommendationEngine,
        histories: Histories,
        rules: Rules,
        because: contributions.Method | None,
        places: int | None = None,
    ) -> None:
        encoder, columns = engine.recommender.encoder, None
        self._num_rows, self._block = len(histories), np.arange(len(histories))
        self._num_learned = engine.recommender.num_items
        learned = learned_part(histories, self._num_learned)
        lengths = learned.lengths
        if places is not None and encoder.scores_by_vector and lengths.all():
            most, longest = (
                contributions.most_rows(encoder, places),
                min(int(lengths.max()), encoder.max_length),
            )
            shape = BlockShape.of(longest, encoder.max_length, most)
            self._block, columns = np.resize(self._block, shape.rows), shape.columns
            histories, learned = histories.select(self._block), learned.select(self._block)
        self.histories, self._learned, self._rules, self._index = histories, learned, rules, engine.index
        self._recommender, self._stage, self._method = engine.recommender, engine.second_stage, because
        self._vectors: Float32 | None = None
        self._explain: contributions.Explain | None = None
        self._first: Candidates | None = None
        self._predicted: Predictions | None = None
        if because is not None and lengths.all():
            self._vectors, self._explain = contributions.encode_to_explain(
                encoder, self._learned, because, columns
            )
        elif columns is not None:
            window = encoder.pad(self._learned.last(encoder.max_length), columns)
            self._vectors = self._recommender.encode_window(window)
        elif encoder.scores_by_vector:
            self._vectors = self._recommender.encode(self._learned)

    def retrieve(self, rows: Int64, number: int) -> tuple[Candidates, NDArray[np.bool_]]:
        """Candidates of some rows, as `Retrieve`: the best `number` of the index, or without vectors of the catalogue.

        With a second stage the first of them and its own candidates come first, ranked. Limited rows have those of their
        shortlist, among which the second stage ranks what the encoder does not know too.
        """
        part = self.histories.select(rows)
        added = np.zeros((len(rows), 0), np.int32) if self._stage is None else self._added(part, number)
        if self._vectors is None:
            retrieved, added_scores = self._scored(self._learned.select(rows), number, added)
        else:
            learned, queries = self._learned.select(rows), self._vectors[rows]
            excluded = learned.excluded(seen=self._rules.exclude_seen)
            if learned.shortlist is None:
                retrieved = self._index.search(queries, number, excluded, self._allowed)
            else:
                retrieved = self._of_shortlists(learned.shortlist, queries, number, excluded)
            added_scores = self._index.scores_of(self._vectors[rows], learned_items(added, self._num_learned))
        is_all = retrieved[0][:, -1] == 0
        if self._stage is None:
            return retrieved, is_all
        if part.shortlist is not None:
            row, item = part.shortlist.pairs()
            unlearned = np.bincount(row[item > self._num_learned], minlength=len(rows))
            is_all &= unlearned <= number
        ranked = self._stage.ranker.settings.candidates
        best = retrieved[0][:, :ranked], retrieved[1][:, :ranked]
        first = joined(*best, added, added_scores, self._num_learned)
        if self._stage.ranker.heads is None:
            score = worth = self._stage.score(part, *first)
        else:
            predicted = predict(self._stage, part, *first)
            self._predicted = predicted if self._first is None else self._predicted
            score = worth = predicted.score
            if (utility := self._stage.utility) is not None and utility.orders:
                worth = predicted.utility(utility)
        if self._first is None:  # of all rows: more are retrieved only for those left short
            self._first = first
        return _ranked(worth, score, ranked, first, retrieved), is_all

    def are_alike(self, items: Int32) -> bool:
        """Whether all copies of a single row have the bits of the first, also in the reasons of its items [1, k]."""
        assert self._vectors is not None
        alike = (self._vectors == self._vectors[0]).all()
        if self._explain is not None and alike:
            weights = self._explain(items[self._block])
            alike = (weights == weights[0]).all()
        return bool(alike)

    def because(self, items: Int32, because_items: int, num_events: int) -> Because:
        """Past items and events behind each item [rows, k]; none for unread rows."""
        weights = self.contributions(items[self._block])
        past, weight = contributions.strongest(weights, self._learned, because_items)
        past, weight = past[: self._num_rows], weight[: self._num_rows]
        if not num_events:
            return Because(past, weight)
        weights, lengths = weights[: self._num_rows], self._learned.lengths[: self._num_rows]
        columns, of_event = contributions.events_to_try(weights, lengths, num_events)
        return Because(past, weight, PastEvents(self._places_of(columns, weights.shape[-1]), of_event))

    def _places_of(self, columns: Int32, num_columns: int) -> Int32:
        """Places in their rows of the last `num_columns` interactions that the encoder knows, given their columns [rows, …]."""
        row, position = self.histories.select(np.arange(self._num_rows)).gather()
        is_learned = self.histories.item_index[position] <= self._num_learned
        row, place = row[is_learned], (position - self.histories.starts[row])[is_learned]
        number = np.bincount(row, minlength=self._num_rows)
        first = np.cumsum(number) - np.minimum(number, num_columns)
        chosen = np.where(columns < 0, len(place), first[:, None, None] + columns)
        return np.append(place, -1)[chosen].astype(np.int32)

    def outcomes(self, items: Int32) -> Outcomes | None:
        """Predicted outcomes of items [rows, k]; missing for those that are not among the ranked candidates."""
        if self._stage is None or self._first is None or self._predicted is None:
            return None
        of_item = (self._first[0][:, None, :] == items[:, :, None]) & (items > 0)[..., None]
        place, is_ranked = of_item.argmax(-1), of_item.any(-1)
        row = np.arange(len(items))[:, None]
        found, utility = self._predicted, self._stage.utility
        worth = None if utility is None else found.utility(utility)[row, place]
        return Outcomes(
            np.where(is_ranked, found.score[row, place], np.nan),
            np.where(is_ranked[..., None], found.probability[row, place], np.nan),
            None if worth is None else np.where(is_ranked, worth, np.nan),
        )

    def contributions(self, items: Int32) -> Float32:
        """[rows, k, l], contribution of each past interaction to the score of each retrieved item [rows, k].

        The interactions are those on items that the encoder knows.
        """
        assert self._method is not None
        if self._explain is None:
            return np.zeros((*items.shape, 0), np.float32)
        if self._stage is not None and self._first is not None:
            encoder, stage = self._recommender.encoder, self._stage
            first = self._first[0][self._block], self._first[1][self._block]
            return two_stage_contributions(
                encoder, stage, self._learned, items, first, self._method, self._explain
            )
        return self._explain(items)

    @property
    def _allowed(self) -> NDArray[np.bool_] | None:
        """[num_learned + 1], mask of the encoder's items that may be recommended."""
        allowed = self._rules.allowed
        return None if allowed is None else allowed[: self._num_learned + 1]

    def _of_shortlists(
        self, shortlist: Shortlists, queries: Float32, number: int, excluded: Histories | None
    ) -> Candidates:
        """The best `number` of the index for free rows; of limited rows all items of the shortlist are scored."""
        items, scores = (
            np.zeros((len(queries), number), np.int32),
            np.zeros((len(queries), number), np.float32),
        )
        if len(free := np.flatnonzero(~shortlist.is_limited)):
            kept_out = None if excluded is None else excluded.select(free)
            items[free], scores[free] = self._index.search(queries[free], number, kept_out, self._allowed)

        def score(row: Int64, item: Int32) -> Float32:
            return self._index.scores_of(queries[row], item[:, None])[:, 0]

        fill_limited((items, scores), shortlist.without(excluded, self._allowed), score)
        return items, scores

    def _added(self, part: Histories, number: int) -> Int32:
        """Candidates [rows, m] of the second stage besides the retrieved ones.

        For limited rows also the first `number` items of the shortlist that the encoder does not know.
        """
        assert self._stage is not None
        rules = self._rules
        added = self._stage.added(part, exclude_seen=rules.exclude_seen, allowed=rules.allowed)
        if part.left_out is not None:
            added = np.where(part.left_out.has(added), np.int32(0), added)
            added = added[:, added.any(axis=0)]  # without columns that no row needs
        if part.shortlist is None:
            return added
        shortlist = part.shortlist.without(part.excluded(seen=rules.exclude_seen), rules.allowed)
        return within_shortlists(added, shortlist, self._num_learned, number)

    def _scored(self, part: Histories, number: int, added: Int32) -> tuple[Candidates, Float32]:
        """Score the whole catalogue in chunks of rows; keep the best, and the scores of the added candidates."""
        items, scores = np.zeros((len(part), number), np.int32), np.zeros((len(part), number), np.float32)
        added_scores = np.zeros(added.shape, np.float32)
        own = learned_items(added, self._num_learned).astype(np.int64)
        for rows in row_chunks(len(part), self._num_learned):
            values = self._recommender.score_items(part.select(rows))
            if (excluded := part.select(rows).excluded(seen=self._rules.exclude_seen)) is not None:
                mask_seen(values, excluded)
            if self._allowed is not None:
                values[:, ~self._allowed] = -np.inf
            mask_others(values, part.select(rows).shortlist)
            items[rows], scores[rows] = top_k(values, number)
            added_scores[rows] = np.take_along_axis(values, own[rows], 1)
        return (items, scores), added_scores


def _ranked(
    worth: Float32, score: Float32, number: int, first: Candidates, retrieved: Candidates
) -> Candidates:
    """Order the `first` candidates by their worth, equal ones by the ranker's score; put the others retrieved behind.

    Those are the retrieved ones after the best `number`, at their retrieval distances.
    """
    order = np.lexsort((first[0], -score, -worth), axis=1)
    best, values = np.take_along_axis(first[0], order, 1), np.take_along_axis(worth, order, 1)
    rest, scores = retrieved[0][:, number:], retrieved[1]
    lowest = np.where(best > 0, values, np.inf).min(1, keepdims=True)
    is_other = (rest > 0) & is_none_of(rest, best)
    with np.errstate(invalid="ignore"):
        behind = np.where(is_other, lowest + scores[:, number:] - scores[:, number - 1 : number], -np.inf)
    items = np.concatenate([best, np.where(is_other, rest, 0)], 1)
    scores = np.concatenate([values, behind], 1, dtype=np.float32)
    filled_first = np.argsort(items == 0, axis=1, kind="stable")
    return np.take_along_axis(items, filled_first, 1), np.take_along_axis(scores, filled_first, 1)
