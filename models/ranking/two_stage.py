"""Two-stage recommender: candidates of encoder, history and popularity, ordered by the second stage."""

import numpy as np

from models.encoder.encoder import AttentionRecommender
from models.histories import Float32, Histories, Int32
from models.ranking.candidates import joined, learned_part, within_shortlists
from models.ranking.ranker import SecondStage
from models.topk import mask_others, mask_seen, recommend_in_chunks, row_chunks, top_k

Candidates = tuple[Int32, Float32]
"""Items and retrieval scores [rows, n], best first, padded with 0 and -inf."""


class TwoStage:
    """Recommender that ranks the candidates by the ranker, then all other items by the retriever.

    Candidates are the retriever's best and those of `SecondStage.added`. With `exclude_seen` they leave out the history, so that
    items masked later take no candidate's place. Rows with a shortlist have candidates from it alone.

    Items of the second stage beyond the retriever's are those that it does not know. They are recommended as added candidates
    alone, at the row's lowest retrieval score; the retriever reads histories without them.
    """

    def __init__(self, retriever: AttentionRecommender, stage: SecondStage, *, exclude_seen: bool) -> None:
        self.retriever, self.stage, self.exclude_seen = retriever, stage, exclude_seen
        self.num_items = stage.num_items

    def candidates(self, histories: Histories, further: Int32 | None = None) -> Candidates:
        """Candidates of each row, in chunks of rows; further: [rows, m], items to be among them, padded with 0."""
        further = np.zeros((len(histories), 0), np.int32) if further is None else further
        parts = [
            self._candidates(own := histories.select(rows), self._retrieved(own), further[rows])
            for rows in row_chunks(len(histories), self.num_items)
        ]
        items, scores = map(np.concatenate, zip(*parts, strict=True))
        return items, scores

    def score_items(self, histories: Histories) -> Float32:
        """[rows, num_items + 1], retriever scores, with candidates lifted above all others; column 0 is -inf."""
        scores = self._retrieved(histories)
        items, retrieved = self._candidates(histories, scores, np.zeros((len(histories), 0), np.int32))
        ranked = self.stage.score(histories, items, retrieved)
        lowest = np.where(items > 0, ranked, np.inf).min(1, keepdims=True)
        lifted = scores.max(1, keepdims=True) + 1 + ranked - lowest
        row, column = np.nonzero(items > 0)
        scores[row, items[row, column]] = lifted[row, column]
        return scores

    def recommend(self, histories: Histories, k: int, exclude_seen: bool = True) -> tuple[Int32, Float32]:
        """Top-k items of each row and their scores, as in `Recommender`."""
        return recommend_in_chunks(self.score_items, self.num_items, histories, k, exclude_seen)

    def _retrieved(self, histories: Histories) -> Float32:
        """[rows, num_items + 1], retriever scores, -inf for items that it does not know."""
        num_learned = self.retriever.num_items
        scores = self.retriever.score_items(learned_part(histories, num_learned))
        if self.num_items == num_learned:
            return scores
        return np.pad(scores, ((0, 0), (0, self.num_items - num_learned)), constant_values=-np.inf)

    def _candidates(self, histories: Histories, scores: Float32, further: Int32) -> Candidates:
        """Candidates by the retriever's scores [rows, num_items + 1], and further ones [rows, m]."""
        open_items = mask_seen(scores.copy(), histories) if self.exclude_seen else scores
        number = min(self.stage.ranker.settings.candidates, self.retriever.num_items)
        added = self.stage.added(histories, exclude_seen=self.exclude_seen)
        if histories.shortlist is not None:
            open_items = mask_others(open_items.copy(), histories.shortlist)
            shortlist = histories.shortlist.without(histories if self.exclude_seen else None, None)
            added = within_shortlists(added, shortlist, self.retriever.num_items, number)
        added = np.concatenate([added, further], 1)
        added_scores = np.take_along_axis(open_items, added.astype(np.int64), 1)
        return joined(*top_k(open_items, number), added, added_scores, self.retriever.num_items)
