"""Alerts: rules over the realised series, the ledger and the log, each with a threshold in `[monitor]`.

A rule that compares needs earlier nights; those that a single odd night could trip fire on the second night in a row.
"""

import datetime
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from features.printable import printable
from pipeline.monitoring.ledger import DAY, Delivery
from pipeline.sections import DELIVERED, MonitorConfig

if TYPE_CHECKING:  # an up-to-date night reads its alerts without polars and numpy
    import polars as pl

    from models.histories import Int64
    from pipeline.monitoring.population import DayShift

FILE = "monitor.json"
EARLIER = 14
"""Deliveries or days before the newest that show what is usual."""
MIN_EARLIER = 2
MIN_EARLIER_DAYS = 7
PRESENT_DAYS = 7
"""Days before the last in each of which an event type occurred."""


@dataclass(frozen=True)
class Alert:
    """Rule that a night broke."""

    rule: str
    night: str
    """ISO 8601"""
    value: float
    threshold: float
    message: str

    @property
    def line(self) -> str:
        """The alert in one line."""
        return printable(f"alert: {self.rule}: {self.message}")


def load(monitor: Path) -> list[Alert]:
    """Alerts of a monitor artifact."""
    content = json.loads((monitor / FILE).read_text(encoding="utf-8"))
    return [Alert(**alert) for alert in content["alerts"]]


def of_lists(entered: Sequence[Delivery], settings: MonitorConfig) -> Iterator[Alert]:
    """Alerts about the newest lists: cold users, short lists, lists that no longer change."""
    nights = list({delivery.log_time: delivery for delivery in entered}.values())[-EARLIER - 1 :]
    if not nights:
        return
    newest, earlier = nights[-1], nights[:-1]
    shares = {
        "cold_users": (settings.cold_users_rise, [_share(night.cold_users, night) for night in nights]),
        "short_lists": (settings.short_lists_rise, [_share(night.short_lists, night) for night in nights]),
    }
    for rule, (rise, values) in shares.items():
        if len(earlier) < MIN_EARLIER:
            continue
        limit = median(values[:-1]) + rise
        if values[-1] > limit:
            what = "of users have no known history" if rule == "cold_users" else "of lists are short"
            text = (
                f"{values[-1]:.1%} {what}, above {limit:.1%} (median of {len(earlier)} nights + {rise:.0%})"
            )
            yield Alert(rule, newest.night, values[-1], limit, text)
    last, limit = nights[-2:], settings.unchanged_lists
    overlaps = [night.overlap for night in last if night.overlap is not None]
    if len(overlaps) == 2 and min(overlaps) >= limit:
        text = f"lists hardly changed two nights in a row: overlap {overlaps[-1]:.4f}, at least {limit:g}"
        yield Alert("unchanged_lists", newest.night, overlaps[-1], limit, text)


def of_population(shifts: "Sequence[DayShift | None]", now: int, settings: MonitorConfig) -> Iterator[Alert]:
    """Alerts where the last two days differ more from the week before than days usually do; shifts: newest first."""
    from pipeline.monitoring.promise import prediction_interval

    newest, usual = shifts[:2], [shift for shift in shifts[2:] if shift is not None]
    if None in newest or len(usual) < MIN_EARLIER_DAYS:
        return
    rules = {
        "population_drift": ("items", settings.population_drift, "{:.2f} is the stability index of items"),
        "unknown_items": (
            "unknown_items",
            settings.unknown_rise,
            "{:.1%} of events are on items new to the log",
        ),
        "unknown_users": (
            "unknown_users",
            settings.unknown_rise,
            "{:.1%} of users are new to the log",
        ),
    }
    for rule, (name, rise, text) in rules.items():
        earlier = [getattr(shift, name) for shift in usual]
        _, high = prediction_interval(earlier, settings.usual_level)
        limit = max(high, median(earlier) + rise)
        values = [getattr(shift, name) for shift in newest]
        if min(values) > limit:
            above = f"above {limit:.2f} two days in a row by the {len(usual)} days before"
            yield Alert(rule, _iso(now), values[0], limit, f"{text.format(values[0])}, {above}")


def _share(count: int, night: Delivery) -> float:
    return count / max(night.users, 1)


def of_reality(
    nights: "pl.DataFrame", entered: Sequence[Delivery], settings: MonitorConfig
) -> Iterator[Alert]:
    """Alerts where the realised metric lies below the promised band on the last two nights of a window."""
    import polars as pl

    from pipeline.monitoring.promise import band

    arms = {delivery.log_time: delivery.promised_arm for delivery in entered}
    promises = {
        delivery.log_time: delivery.promise
        for delivery in entered
        if delivery.experiment is None or delivery.promised_arm is not None
    }
    own = nights.filter((pl.col("system") == DELIVERED) & pl.col("segment").is_null())
    for days in settings.days:
        window = own.filter(pl.col("window_days") == days).with_columns(pl.col("log_time").dt.timestamp("us"))
        below: list[Alert] = []
        for night in window["log_time"].unique().sort().tail(2):
            promise = promises.get(night, {}).get(f"{days:g}")
            limits = None if promise is None else band(promise, settings.promise_level)
            row = None if promise is None else _value(window, night, promise.metric, arms.get(night))
            if promise is None or limits is None or row is None or row >= limits[0]:
                below.clear()
                continue
            text = f"{promise.metric} within {days:g} days was {row:.4f}, below the promised {limits[0]:.4f} two nights in a row"
            below.append(Alert(f"below_promise_{days:g}d", _iso(night), row, limits[0], text))
        if len(below) == 2:
            yield below[-1]


def _value(window: "pl.DataFrame", night: int, metric: str, arm: str | None) -> float | None:
    import polars as pl

    is_of_arm = pl.col("arm").eq_missing(pl.lit(arm, pl.String))
    rows = window.filter((pl.col("log_time") == night) & (pl.col("metric") == metric) & is_of_arm)
    return None if rows.is_empty() else rows["value"][0]


def of_types(
    names: Sequence[str], time: "Int64", event_type: "Int64", now: int, settings: MonitorConfig
) -> Iterator[Alert]:
    """Alerts about event types without an event in the last day that had some in each of the days before.

    time, event_type [n]: events of the last days; now: microseconds since the epoch.
    """
    import numpy as np

    day = (now - time) // DAY
    for code, name in enumerate(names, 1):
        counts = np.bincount(day[(event_type == code) & (day >= 0)], minlength=PRESENT_DAYS + 1)
        earlier = counts[1 : PRESENT_DAYS + 1]
        usual = float(earlier.mean())
        if not counts[0] and earlier.min() > 0 and usual >= settings.vanished_type_events:
            limit = settings.vanished_type_events
            text = f"no event of type {name!r} in the last day, {usual:.0f} a day in the {PRESENT_DAYS} days before"
            yield Alert("vanished_type", _iso(now), 0.0, limit, text)


def of_growth(
    entered: Sequence[Delivery], now: int, clock: datetime.datetime, settings: MonitorConfig
) -> Iterator[Alert]:
    """Alert where the log is no newer than that of the last lists, delivered hours ago. now: the log's, microseconds."""
    if not entered or entered[-1].log_time < now:
        return
    hours = (clock - datetime.datetime.fromisoformat(entered[-1].delivered_utc)).total_seconds() / 3600
    if hours > settings.idle_hours:
        text = f"no event newer than {_iso(now)} came since the last lists, {hours:.0f} hours ago"
        yield Alert("idle_log", _iso(now), round(hours, 1), settings.idle_hours, text)


def as_json(alerts: Sequence[Alert]) -> list[Mapping[str, object]]:
    """Alerts as JSON objects."""
    return [asdict(alert) for alert in alerts]


def _iso(moment: int) -> str:
    epoch = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    return (epoch + datetime.timedelta(microseconds=moment)).isoformat(timespec="seconds")
