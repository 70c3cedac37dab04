"""Event types of a log as codes, and those that are dislikes: by a negative weight, or by a value below a threshold."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import polars as pl
from numpy.typing import NDArray

from features import schema
from features.events import fields

DISLIKE, OF_TYPE = "dislike", " disliked"
"""Type of events below the threshold: its name where they have none, else what follows the name of theirs."""


@dataclass(frozen=True)
class EventTypes:
    """Types of the log, by their codes 1..; events below a threshold have types of their own, after those of the log."""

    names: Sequence[str]
    below: float | None = None
    """Value below which an event is a dislike."""
    low: Mapping[int, int] = field(default_factory=dict)
    """Code of a type (0: none) -> code of its events below the threshold."""
    dislikes: NDArray[np.float32] | None = None
    """[names + 1], size of the negative weight of each code, 0 for those that are no dislikes; None: there are no dislikes."""
    num_events: int = 0
    """Events of the log; counted where there is a threshold."""
    num_below: int = 0
    """Events below the threshold."""

    @classmethod
    def of(
        cls, log: pl.LazyFrame, weights: Mapping[str, float] | None = None, below: float | None = None
    ) -> "EventTypes":
        """Types of a log with the columns of `schema.EVENTS`. weights: of types, the dislikes' negative; below: see the class.

        An event below the threshold is a dislike of weight -1, unless its type is a dislike already. Raises ValueError where the
        types are too many.
        """
        kind = pl.col(schema.EVENT_TYPE).cast(pl.String)
        counts = [pl.len()] if below is None else [pl.len(), _is_below(below).sum().alias("low")]
        table = log.group_by(kind).agg(counts).sort(schema.EVENT_TYPE).collect(engine="streaming")
        names: list[str] = table[schema.EVENT_TYPE].drop_nulls().to_list()
        fields.check_types(names)
        sizes = {name: -weight for name, weight in (weights or {}).items() if weight < 0 and name in names}
        if below is None:
            return cls(names, dislikes=_by_code(names, sizes))
        code, low = {None: 0} | {name: number for number, name in enumerate(names, 1)}, {}
        for own in table.filter(pl.col("low") > 0)[schema.EVENT_TYPE]:
            if own in sizes:
                continue
            name = DISLIKE if own is None else own + OF_TYPE
            if name not in code:
                names.append(name)
                code[name] = len(names)
            sizes.setdefault(name, 1.0)
            low[code[own]] = code[name]
        return cls(
            names, below, low, _by_code(names, sizes), int(table["len"].sum()), int(table["low"].sum())
        )

    def codes(self, events: pl.DataFrame) -> pl.Series:
        """Code of each event, 0 without a type, as Int16. events: event_type and value."""
        kind = events[schema.EVENT_TYPE].cast(pl.Enum(self.names)).to_physical().cast(pl.Int16) + 1
        code = kind.fill_null(0).rename(schema.EVENT_TYPE)
        if self.below is None or not self.low:
            return code
        lowered = code.replace(self.low)
        is_low = events.select(_is_below(self.below)).to_series()
        return lowered.zip_with(is_low, code)


def _is_below(threshold: float) -> pl.Expr:
    return (pl.col(schema.VALUE) < threshold).fill_null(value=False)


def _by_code(names: Sequence[str], sizes: Mapping[str, float]) -> NDArray[np.float32] | None:
    return np.array([0.0, *(sizes.get(name, 0.0) for name in names)], np.float32) if sizes else None
