"""Settings of the demo log: the `[simulate]` section."""

from dataclasses import dataclass

from features.settings import refuse


@dataclass(frozen=True)
class SimulationSettings:
    """Size and noise of the demo log, generated before it is read: the `[simulate]` section."""

    num_users: int = 5_000
    """Users, each with at least five events."""
    num_items: int = 2_000
    """Items of the catalogue; a few of a large one occur in no event."""
    num_events: int = 200_000
    """Events, bad rows not counted; at least five per user."""
    num_days: int = 90
    """Length of the log, in days, from 2026-01-01 on."""
    noise_fraction: float = 0.1
    """Share of events unrelated to the user's tastes."""
    bad_row_fraction: float = 0.01
    """Share of rows of `events.csv` that are broken in various ways."""
    drift_day: int = 0
    """Days from the beginning of the log to a sudden change of tastes and popularity with many new items; 0: none."""
    exposures: bool = False
    """Lists shown by an older system with their propensities, and the users' reactions: `exposures.csv` for `[exposures]`."""

    def __post_init__(self) -> None:
        least = {"num_users": 10, "num_items": 50, "num_events": 5 * self.num_users, "num_days": 2}
        for key, number in least.items():
            refuse(getattr(self, key) < number, f"simulate.{key}", getattr(self, key), f"at least {number}")
        for key in ("noise_fraction", "bad_row_fraction"):
            value = getattr(self, key)
            refuse(not 0 <= value < 1, f"simulate.{key}", value, "a share in [0, 1)")
        day = self.drift_day
        refuse(not 0 <= day < self.num_days, "simulate.drift_day", day, "a day of the log, or 0")
