"""Proven reasons of lists (`score.because_method = "proven"`): where they can be had, their counts, and their words."""

from collections import Counter
from collections.abc import Mapping, Sequence

import polars as pl
import pyarrow as pa

from models.recommendation.baseline_engine import BaselineEngine
from models.recommendation.proofs import MOST_EVENTS
from pipeline.errors import LookbackError
from pipeline.sections import ScoreConfig
from pipeline.serving.bundle import Bundle
from pipeline.serving.bundle_baseline import baseline_of
from pipeline.serving.output_table import PROVEN

_SIZES = {**{str(number): number for number in range(1, MOST_EVENTS + 1)}, "none": 0}
"""Events of a proof by its name in counts."""
_COUNT = "proven by {}"


def are_sought(settings: ScoreConfig) -> bool:
    """Whether lists have proven reasons."""
    return settings.because and settings.because_method == "proven"


def check(bundle: Bundle, settings: ScoreConfig) -> None:
    """Raise LookbackError where a published baseline recommends the same whatever the history."""
    engine = bundle.engine
    if are_sought(settings) and isinstance(engine, BaselineEngine) and not engine.reads_history:
        raise LookbackError(
            f"score.because_method: received 'proven', but {baseline_of(bundle.description)} is published, whose scores do not "
            "follow from the history, so that no reason can be proven; set score.because_method = 'balanced', or publish another "
            "system (publish.system)"
        )


def counts(table: pa.Table) -> dict[str, int]:
    """Number of recommendations by the number of events that prove them; none without the column `proven`."""
    if PROVEN not in table.column_names:
        return {}
    rows = pl.DataFrame(table.select([PROVEN, "because"]))
    sizes = rows.select(pl.when(pl.col(PROVEN)).then(pl.col("because").list.len())).to_series()
    number = dict(sizes.fill_null(0).value_counts().iter_rows())
    return {_COUNT.format(size): number.get(events, 0) for size, events in _SIZES.items()}


def shares(total: Mapping[str, int]) -> dict[str, float | None]:
    """Share of the recommendations that 1, 2, 3 events prove, and none; None without recommendations."""
    number = {size: total.get(_COUNT.format(size), 0) for size in _SIZES}
    every = sum(number.values())
    return {size: round(own / every, 6) if every else None for size, own in number.items()}


def named(names: Sequence[str]) -> str:
    """Past events of a proof by their items' names: "A, B and C", several events of one item as "A (2 events)"."""
    times = Counter(names)
    words = [name if number == 1 else f"{name} ({number} events)" for name, number in times.items()]
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
