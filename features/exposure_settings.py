"""Settings of the exposure log: the `[exposures]` section, and the form in which the reader of events takes it."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from features.settings import Column, EventSettings, TableSettings, check_columns, refuse

EXPOSURE_COLUMNS = ("user_id", "item_id", "timestamp", "rank", "propensity", "list_id")


@dataclass(frozen=True)
class ExposureLog(EventSettings):
    """Exposure log as the reader of events takes it: rows with other columns, judged by the same rules."""

    section: ClassVar[str] = "exposures"
    known_columns: ClassVar[tuple[str, ...]] = EXPOSURE_COLUMNS
    has_further_columns: ClassVar[bool] = False


@dataclass(frozen=True)
class ExposureSettings(TableSettings):
    """Log of what was shown, one row per item: the `[exposures]` section."""

    section: ClassVar[str] = "exposures"

    clicked_suffix: str = ""
    """End of the items of a list that were taken, such as `-1`; it is cut off, as is one with other digits, `-0`. All items of
    the list were shown."""
    columns: Mapping[str, Column] = field(default_factory=dict)
    """Column mapping, as in [events], of `user_id`, `item_id`, `timestamp`. Further `rank`: place in the list from 1 (of lists in
    one field the place there); `propensity`: the probability of the item at its place given the places above, in (0, 1];
    `list_id`: without it what a user was shown at one time is a list."""
    timestamp_unit: str | None = None
    """Unit of timestamps, as `events.timestamp_unit`, which it is by default."""
    timezone: str | None = None
    """Time zone of timestamps that carry none; by default `events.timezone`."""
    window_hours: float = 24.0
    """Longest time from an exposure to its reaction, in hours: the user's first event on the item within it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        given = dict.fromkeys(self.table.filled_by_pattern, 1)
        needed = ("user_id", "item_id", "timestamp")
        check_columns(self.section, {**self.columns, **given}, EXPOSURE_COLUMNS, *needed)
        refuse(
            bool(self.items_separator) and "rank" in self.columns,
            "exposures.columns.rank",
            self.columns.get("rank"),
            "none beside exposures.items_separator: the place in the list is the rank",
        )
        hours = self.window_hours
        refuse(not 0 < hours <= 1e6, "exposures.window_hours", hours, "above 0 and at most 1,000,000")

    @property
    def window(self) -> int:
        """Microseconds in which an event on the item is the reaction."""
        return round(self.window_hours * 3_600_000_000)

    def log(self, events: EventSettings) -> ExposureLog:
        """The exposure log with what holds for the log of events: possible times, type of ids, times where it has none itself.

        Raises ValueError, naming the key, for a unit or time zone that is none, and for events without times.
        """
        refuse(
            (self.timestamp_unit or events.timestamp_unit) == "position",
            "exposures.timestamp_unit",
            "position",
            "one of times: what was shown is joined with the events after it",
        )
        return ExposureLog(
            **{key.name: getattr(self, key.name) for key in dataclasses.fields(TableSettings)},
            timestamp_unit=self.timestamp_unit or events.timestamp_unit,
            timezone=self.timezone or events.timezone,
            id_types="int64" if events.id_types == "auto" else events.id_types,
            max_refused_fraction=events.max_refused_fraction,
            earliest=events.earliest,
            max_days_ahead=events.max_days_ahead,
        )
