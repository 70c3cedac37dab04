"""The call that every recommender answers."""

from typing import Protocol

from models.histories import Float32, Histories, Int32


class Recommender(Protocol):
    """Anything that ranks the catalogue for a history: popularity, attention, an index."""

    num_items: int
    """Items are 1..num_items."""

    def score_items(self, histories: Histories) -> Float32:
        """[rows, num_items + 1], higher is better; column 0 and items it cannot recommend are -inf."""
        ...

    def recommend(self, histories: Histories, k: int, exclude_seen: bool = True) -> tuple[Int32, Float32]:
        """The k best items of each row, best first, and their scores: two [rows, k].

        Equal scores: the lower item first. Where fewer than k can be given the rest is item 0 with score -inf.
        """
        ...
