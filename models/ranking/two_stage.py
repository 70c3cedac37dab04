"""Two-stage recommender: the encoder's nearest items, ordered by the second stage."""

import numpy as np

from models.encoder.encoder import AttentionRecommender
from models.histories import Float32, Histories, Int32
from models.ranking.ranker import SecondStage
from models.topk import mask_seen, recommend_in_chunks, top_k


class TwoStage:
    """Recommender that ranks the retriever's best candidates by the ranker, then the rest by the retriever.

    With `exclude_seen` candidates leave out the history, so that items masked later take no candidate's place.
    """

    def __init__(self, retriever: AttentionRecommender, stage: SecondStage, *, exclude_seen: bool) -> None:
        self.retriever, self.stage, self.exclude_seen = retriever, stage, exclude_seen
        self.num_items = retriever.num_items

    def score_items(self, histories: Histories) -> Float32:
        """[rows, num_items + 1], retriever scores, with candidates lifted above all others; column 0 is -inf."""
        scores = self.retriever.score_items(histories)
        open_items = mask_seen(scores.copy(), histories) if self.exclude_seen else scores
        items, retrieved = top_k(open_items, min(self.stage.ranker.settings.candidates, self.num_items))
        ranked = self.stage.score(histories, items, retrieved)
        lowest = np.where(items > 0, ranked, np.inf).min(1, keepdims=True)
        lifted = scores.max(1, keepdims=True) + 1 + ranked - lowest
        row, column = np.nonzero(items > 0)
        scores[row, items[row, column]] = lifted[row, column]
        return scores

    def recommend(self, histories: Histories, k: int, exclude_seen: bool = True) -> tuple[Int32, Float32]:
        """Top-k items of each row and their scores, as in `Recommender`."""
        return recommend_in_chunks(self.score_items, self.num_items, histories, k, exclude_seen)
