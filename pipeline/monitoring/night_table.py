"""Table of the last nights for the report: realised metrics of the delivered lists and shadows, promised bands, alerts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from pipeline.artifacts.files import read_json
from pipeline.monitoring import alerts, series

SHOWN_NIGHTS = 14
"""Newest nights of each window in the table."""


class NightRow(NamedTuple):
    """Realised metrics of one system's lists in one night and window."""

    night: str
    window_days: float
    system: str
    users: int
    """Users with a list who took something in the window"""
    reached: float | None
    """Share of the users active in the window who have a list"""
    hit_rate: float | None
    ndcg: float | None
    low: float | None
    """Ends of the interval of `ndcg`"""
    high: float | None
    promised: tuple[float, float] | None
    """Band of `ndcg` for one night by the evaluation"""


@dataclass(frozen=True)
class NightTable:
    """Newest nights, oldest first, and the present alerts."""

    rows: Sequence[NightRow]
    alerts: Sequence[alerts.Alert]
    differences: Sequence[Mapping[str, Any]]
    """Rows of `series.ShadowDifference`"""
    experiment: Mapping[str, Any] | None
    """Read-out, `experiment.Readout`"""

    @classmethod
    def load(cls, monitor: Path) -> "NightTable":
        """Table of a monitor artifact."""
        record = read_json(monitor / alerts.FILE)
        nights = pl.read_parquet(monitor / series.FILE, schema=series.COLUMNS)
        named = nights.filter(pl.col("segment").is_null() & pl.col("arm").is_null()).with_columns(
            pl.col("metric").str.split("@").list.first().alias("name")
        )
        promised = {
            (row["night"], row["window_days"]): (row["low"], row["high"]) for row in record["promised"]
        }
        rows = [
            _row(facts, own, promised)
            for facts, own in named.sort("window_days", "log_time", "system").group_by(
                ["window_days", "log_time", "system"], maintain_order=True
            )
        ]
        return cls(_newest(rows), alerts.load(monitor), record["differences"], record.get("experiment"))


def _row(
    facts: tuple[Any, ...], own: pl.DataFrame, promised: Mapping[tuple[str, float], tuple[float, float]]
) -> NightRow:
    days, moment, system = facts
    values = {row["name"]: row for row in own.iter_rows(named=True)}
    ndcg, hit_rate, reached = (values.get(name) or {} for name in ("ndcg", "hit_rate", "reached"))
    night = moment.isoformat(timespec="seconds")
    return NightRow(
        night[:16].replace("T", " "),
        days,
        system,
        ndcg.get("users", 0),
        reached.get("value"),
        hit_rate.get("value"),
        ndcg.get("value"),
        ndcg.get("low"),
        ndcg.get("high"),
        promised.get((night, days)),
    )


def _newest(rows: Sequence[NightRow]) -> list[NightRow]:
    """Rows of the newest nights of each window."""
    kept: list[NightRow] = []
    for days in dict.fromkeys(row.window_days for row in rows):
        own = [row for row in rows if row.window_days == days]
        nights = sorted({row.night for row in own})[-SHOWN_NIGHTS:]
        kept += [row for row in own if row.night in nights]
    return kept
