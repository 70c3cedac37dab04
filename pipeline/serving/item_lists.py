"""Lists of items and scores for single requests, answered in batches of rows."""

from typing import Any

from features.histories.vocabulary import Vocabulary
from models.histories import Histories, Int64
from models.recommendation.baseline_engine import BaselineEngine
from models.recommendation.engine import RecommendationEngine
from models.recommendation.rules import Rules
from models.topk import row_chunks

ItemList = tuple[list[Any], list[float]]
"""Item ids and their scores, best first."""


def item_lists(
    engine: RecommendationEngine | BaselineEngine,
    items: Vocabulary,
    histories: Histories,
    segment: Int64 | None,
    k: int,
    rules: Rules,
) -> list[ItemList]:
    """List of each row, k items at most; arrays hold a batch of rows over the catalogue.

    segment: [rows], rows of the engine's popularity; None: no segment.
    """
    lists: list[ItemList] = []
    for rows in row_chunks(len(histories), len(items)):
        part = None if segment is None else segment[rows]
        answer = engine.answer(histories.select(rows), k, rules, segment=part)
        places, width = items.decode(answer.item_index.ravel()).to_list(), answer.item_index.shape[1]
        lengths = (answer.item_index > 0).sum(1).tolist()
        for row, length in enumerate(lengths):
            start = row * width
            lists.append((places[start : start + length], answer.score[row, :length].tolist()))
    return lists
