"""How the rows of a log are judged: the settings, and the newest time that is possible."""

from dataclasses import dataclass
from functools import cached_property

from features.schema import TIMESTAMP
from features.settings import EventSettings, iso_microseconds


@dataclass(frozen=True)
class EventFormat:
    """Settings of the log, and the newest time that is possible."""

    settings: EventSettings
    latest: int
    """Microseconds since the epoch; events after it have an impossible time."""

    @cached_property
    def earliest(self) -> int:
        """Microseconds since the epoch; events before it have an impossible time."""
        return iso_microseconds(self.settings.earliest, self.settings.timezone)

    @cached_property
    def is_by_place(self) -> bool:
        """Whether the rows carry no time, and their order in the file is all that is known."""
        table = self.settings.table
        return TIMESTAMP not in table.columns and TIMESTAMP not in table.filled_by_pattern

    def describe(self) -> str:
        """The settings in force, for a message."""
        settings = self.settings
        times = f"timestamp_unit {settings.timestamp_unit!r}, timezone {settings.timezone}"
        return f"{settings.table.describe()}, {times}, id_types {settings.id_types}"
