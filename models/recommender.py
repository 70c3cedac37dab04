"""Protocols of every recommender, and of those that are fitted by one call and saved."""

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, Protocol, Self

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


class FittableRecommender(Protocol):
    """Recommender fitted by one call, written and read without pickle: every baseline, and a class of one's own.

    Optional attributes of the class: GRID, settings of `fit` tried on validation, the default first; needs_seen, whether it
    recommends the history's own items; moves, whether it is fitted anew on the events before each night.
    """

    fit: ClassVar[Callable[..., "FittableRecommender"]]
    """fit(histories, num_items, **settings): fitted on rows with items 1..num_items (0: unknown)."""

    def score_items(self, histories: Histories) -> Float32:
        """[rows, num_items + 1] scores, as in `Recommender`; each row's depend on that row and on what was fitted alone."""
        ...

    def save(self, folder: Path) -> None:
        """Write files into an existing, empty folder."""
        ...

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read them: a recommender with the same scores."""
        ...
