"""Further columns of a log, such as a device, as codes of their values."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

FILE = "event_columns.parquet"
"""Values of a features folder; the codes are `JaggedHistories.event_columns`."""
MAX_VALUES = 100_000
"""Maximum number of values of a column, the most frequent ones; all others share a code."""
DIGITS = 4
"""Significant digits to which a column of more different numbers is rounded."""
OTHER = "…"
"""Value of the code that all other values share."""


@dataclass(frozen=True)
class EventColumn:
    """Values of a column: code 0 is no value, code 1 the first one."""

    name: str
    values: pl.Series
    """Distinct text, ascending; last `OTHER`, where there are more values"""
    is_rounded: bool = False

    @classmethod
    def of(cls, log: pl.LazyFrame, name: str) -> "EventColumn":
        """Values of a text column of the log, which is streamed."""
        counts = _counted(log, pl.col(name), name)
        is_rounded = len(counts) > MAX_VALUES and not counts[name].cast(pl.Float64, strict=False).has_nulls()
        if is_rounded:
            counts = _counted(log, _rounded(name), name)
        if len(counts) <= MAX_VALUES:
            return cls(name, counts[name].sort(), is_rounded)
        counts = counts.filter(pl.col(name) != OTHER)
        kept = counts.sort("len", name, descending=[True, False])[name].head(MAX_VALUES).sort()
        return cls(name, kept.append(pl.Series([OTHER])), is_rounded)

    def codes(self, events: pl.DataFrame) -> pl.Series:
        """Code of each event as Int32."""
        text = events.select(_rounded(self.name) if self.is_rounded else pl.col(self.name)).to_series()
        code = text.cast(pl.Enum(self.values), strict=False).to_physical().cast(pl.Int32) + 1
        return code.fill_null(len(self.values)).set(text.is_null(), 0)


def of_log(log: pl.LazyFrame, names: Sequence[str]) -> list[EventColumn]:
    """Columns of a log by their names; those that it lacks are left out."""
    present = log.collect_schema()
    return [EventColumn.of(log, name) for name in names if name in present]


def save(columns: Sequence[EventColumn], folder: Path) -> None:
    """Write the values, a row per code from 1; nothing without columns."""
    if columns:
        table = {"column": [each.name for each in columns], "value": [each.values for each in columns]}
        pl.DataFrame(table, schema={"column": pl.String, "value": pl.List(pl.String)}).write_parquet(
            folder / FILE
        )


def load(folder: Path) -> dict[str, pl.Series]:
    """Values of the code 1.. of each column, in the order of the codes' columns; none where the log has none."""
    if not (folder / FILE).exists():
        return {}
    table = pl.read_parquet(folder / FILE)
    return dict(zip(table["column"], table["value"], strict=True))


def _counted(log: pl.LazyFrame, value: pl.Expr, name: str) -> pl.DataFrame:
    counts = log.select(value.alias(name)).drop_nulls().group_by(name).len()
    return counts.collect(engine="streaming")


def _rounded(name: str) -> pl.Expr:
    return pl.col(name).cast(pl.Float64, strict=False).round_sig_figs(DIGITS).cast(pl.String)
