"""Settings of several outcomes: their event types, and the utility of each."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Utilities = Mapping[str, float | Literal["value"]]
"""Event type -> its worth, or "value": the expected value of its events."""


@dataclass(frozen=True)
class OutcomeSettings:
    """Outcomes that the second stage learns one by one: the `[outcomes]` section."""

    types: list[str]
    """Event types, each with the probability that the user has an event of it on a recommended item (columns `p_TYPE`)."""

    def __post_init__(self) -> None:
        if not self.types or len(set(self.types)) < len(self.types):
            raise ValueError(
                f"outcomes.types: received {self.types}, expected different event types of the log, one at least"
            )

    def check_types(self, weights: Mapping[str, float]) -> None:
        """Raise ValueError for a type that `weights`, those of `events.types`, lack or give no weight above 0."""
        taken = [name for name, weight in weights.items() if weight > 0]
        for name in self.types:
            if weights and name not in taken:
                kind = (
                    f"of weight {weights[name]:g} in events.types"
                    if name in weights
                    else "no type of events.types"
                )
                raise ValueError(
                    f"outcomes.types: received {name!r}, {kind}; expected some of weight above 0: {', '.join(taken)}"
                )


def check_outcomes(
    outcomes: OutcomeSettings | None,
    utility: Utilities | None,
    columns: Collection[str],
    weights: Mapping[str, float],
) -> None:
    """Raise ValueError for outcomes and utilities that make no sense.

    columns: of the log, by our names; weights: of `events.types`, empty without any.
    """
    if outcomes is not None:
        if "event_type" not in columns:
            raise ValueError(
                "outcomes: received a section, but events.columns names no event_type; expected a column for it, or remove "
                "[outcomes]"
            )
        outcomes.check_types(weights)
    if utility is not None:
        check_utility(utility, [] if outcomes is None else outcomes.types, has_values="value" in columns)


def check_utility(utility: Utilities, learned: Sequence[str], *, has_values: bool = True) -> None:
    """Raise ValueError for the utility of an outcome that is not learned, and for one that is no amount.

    has_values: whether the log's events have values.
    """
    for name, worth in utility.items():
        if name not in learned:
            expected = f"some of outcomes.types: {', '.join(learned)}" if learned else "a section [outcomes]"
            raise ValueError(
                f"utility.{name}: received the utility of an outcome that is not learned, expected {expected}"
            )
        if worth == "value" and not has_values:
            raise ValueError(
                f"utility.{name}: received 'value', but events.columns names no value; expected a column for it, or a number"
            )
        if worth != "value" and not 0 <= worth < math.inf:
            raise ValueError(f"utility.{name}: received {worth}, expected 0 or more, or 'value'")
    if not any(utility.values()):
        raise ValueError("utility: received no utility above 0, expected one at least, such as click = 0.1")


def check_order(order: str, utility: Utilities | None, ranker: str, system: str = "auto") -> None:
    """Raise ValueError where an order by expected utility lacks utilities, the second stage (`ranker.use`), or a published model.

    system: `publish.system`.
    """
    if order != "utility":
        return
    if utility is None:
        raise ValueError(
            "score.order: received 'utility' without a section [utility], expected one such as click = 0.1, or 'next'"
        )
    if ranker == "never":
        raise ValueError(
            "score.order: received 'utility' with ranker.use 'never', expected 'auto' or 'always': the second stage learns "
            "the outcomes; or set score.order = 'next'"
        )
    if system not in ("auto", "lookback"):
        raise ValueError(
            f"score.order: received 'utility' with publish.system {system!r}, a baseline, which predicts no outcomes; set "
            "publish.system = 'lookback' or score.order = 'next'"
        )
