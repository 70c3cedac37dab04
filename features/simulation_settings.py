"""Settings of the demo log: the `[simulate]` section."""

from dataclasses import dataclass

from features.settings import refuse

MAX_SHELF_ITEMS = 10_000
"""Largest catalogue with shelves: the older system keeps the cosines of all pairs of items."""


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
    shelves: int = 0
    """Lists of three shown to each visitor of a day of the last two weeks: `exposures.csv` for `[exposures]`. An older system
    draws them with known propensities, and they change no event. 0: none."""

    def __post_init__(self) -> None:
        least = {"num_users": 10, "num_items": 50, "num_events": 5 * self.num_users, "num_days": 2}
        for key, number in least.items():
            refuse(getattr(self, key) < number, f"simulate.{key}", getattr(self, key), f"at least {number}")
        for key in ("noise_fraction", "bad_row_fraction"):
            value = getattr(self, key)
            refuse(not 0 <= value < 1, f"simulate.{key}", value, "a share in [0, 1)")
        day = self.drift_day
        refuse(not 0 <= day < self.num_days, "simulate.drift_day", day, "a day of the log, or 0")
        refuse(not 0 <= self.shelves <= 100, "simulate.shelves", self.shelves, "0 to 100")
        refuse(
            self.shelves > 0 and self.exposures,
            "simulate.shelves",
            self.shelves,
            "0 beside simulate.exposures: both are exposures.csv",
        )
        refuse(
            self.shelves > 0 and self.num_items > MAX_SHELF_ITEMS,
            "simulate.num_items",
            self.num_items,
            f"at most {MAX_SHELF_ITEMS:,} with simulate.shelves",
        )
