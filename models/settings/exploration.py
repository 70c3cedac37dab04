"""Settings of the places of a list that are drawn."""

from dataclasses import dataclass
from typing import Literal

from models.settings.encoder import refuse, refuse_other_choices


@dataclass(frozen=True)
class Exploration:
    """Last places of a list, drawn from the candidates that remain: the table `score.exploration`."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012  (read by pydantic; an annotation would make it a field of type hints)

    share: float = 0.1
    """Share of the k places, in [0, 1]."""
    kind: Literal["uniform", "softmax"] = "uniform"
    """Distribution of a draw: equal for all, or proportional to exp(worth / temperature), worth as in `rules.choose`."""
    temperature: float = 0.1
    """Above 0, in units of relevance (1: the range of the candidates' scores)."""

    def __post_init__(self) -> None:
        refuse_other_choices(self, "score.exploration")
        refuse(self, "score.exploration.share", not 0 <= self.share <= 1, "from 0 to 1")
        refuse(self, "score.exploration.temperature", not self.temperature > 0, "more than 0")

    def num_places(self, k: int) -> int:
        """Number of the k places that are drawn."""
        return int(self.share * k + 0.5)
