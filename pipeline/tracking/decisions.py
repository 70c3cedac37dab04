"""Decisions about registered versions, and intentions: decisions written down before they are carried out."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal

from pipeline.tracking.server import Version

Outcome = Literal["passed", "first", "off", "refused", "waiting", "by hand"]
REFUSED: Outcome = "refused"
WAITING: Outcome = "waiting"
_MAX_REASON = 1000
"""Characters of a reason kept on a version."""


@dataclass(frozen=True)
class Decision:
    """Decision about a version, with its reason and figures."""

    outcome: Outcome
    """passed: against the champion; first: no champion yet; off: no test; refused; waiting (an update); by hand."""
    reason: str
    figures: Mapping[str, float | str] = field(default_factory=dict)
    """Name to figure: differences in the gate's metric, numbers of targets and users, and the opponent."""

    @property
    def moves(self) -> bool:
        """Whether the version becomes champion."""
        return self.outcome not in (REFUSED, WAITING)

    def text(self, before: Version | int | None) -> str:
        """One-sentence decision; `before` is the previous champion."""
        number = before.version if isinstance(before, Version) else before
        stands = f"version {number} stays" if number is not None else "there is none"
        became = "champion" if self.moves else f"not champion ({stands})"
        return f"{became}; {self.outcome}: {self.reason}"


@dataclass(frozen=True)
class Intention:
    """Decision to carry out, in full, so that any later command can finish it."""

    decision: Decision
    before: int | None
    """Version number of the champion that the decision was made against."""
    at: str
    """ISO time of the decision, UTC."""

    @property
    def labels(self) -> dict[str, str]:
        """Name to text of the reason, the time and every figure."""
        figures = dict(self.decision.figures)
        if self.before is not None:
            figures["champion_before"] = self.before
        texts = {"reason": self.decision.reason[:_MAX_REASON], "at": self.at}
        return texts | {
            name: f"{figure:.6g}" if isinstance(figure, float) else str(figure)
            for name, figure in figures.items()
        }

    def to_json(self) -> str:
        """JSON text of all fields."""
        content = asdict(self)
        content["decision"]["reason"] = self.decision.reason[:_MAX_REASON]
        return json.dumps(content, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> "Intention":
        """Read `to_json`. Raises ValueError for another text."""
        try:
            content = json.loads(text)
            return cls(Decision(**content["decision"]), content["before"], content["at"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"no intention: {error}") from None
