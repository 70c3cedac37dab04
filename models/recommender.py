"""Protocol of every recommender."""

from typing import Protocol

from models.histories import Float32, Histories, Int32


class Recommender(Protocol):
    """Ranking of the catalogue for a history: popularity, attention, an index."""

    num_items: int
    """Number of items, which are 1..num_items."""

    def score_items(self, histories: Histories) -> Float32:
        """[rows, num_items + 1] scores, higher is better; column 0 and unrecommendable items are -inf."""
        ...

    def recommend(self, histories: Histories, k: int, exclude_seen: bool = True) -> tuple[Int32, Float32]:
        """The k best items of each row, best first, and their scores: two [rows, k].

        Equal scores: the lower item first. Missing recommendations are item 0 with score -inf.
        """
        ...
