"""Moment at which recommendations are requested: what encoder, ranker, popularity and availability take as the present."""

from dataclasses import dataclass, replace

import numpy as np

from features.histories.jagged import JaggedHistories
from features.settings import iso_microseconds
from models.histories import Histories, Int64
from pipeline.dataset.dataset import rows
from pipeline.errors import LookbackError


@dataclass(frozen=True)
class Request:
    """Time of a request, and the events that it knows."""

    time: int
    """Microseconds since the epoch; for a log without times the newest position"""
    before: int
    """Histories hold the events earlier than this, microseconds since the epoch"""
    is_set: bool = False
    """Whether the time comes from `score.at`."""

    @classmethod
    def of(cls, at: str | None, now: int, *, timed: bool, timezone: str = "UTC") -> "Request":
        """Request at an ISO time `at`, which knows the events strictly before; else at `now`, the event at `now` included.

        A log without times (`timed` false) is always requested at `now`. timezone: of a time that names none.
        """
        if at is None or not timed:
            return cls(now, now + 1)
        moment = iso_microseconds(at, timezone)
        return cls(moment, moment, is_set=True)

    def ends(self, histories: JaggedHistories) -> Int64:
        """[num_users] flat position after each user's last known event.

        Raises LookbackError where `score.at` precedes every event.
        """
        ends = histories.first_at(self.before)
        if self.is_set and len(histories.time) and (ends == histories.offsets[:-1]).all():
            received, first = (np.datetime64(time, "us") for time in (self.time, int(histories.time.min())))
            raise LookbackError(
                f"score.at: received {received}, but the log begins at {first}; expected a time after its first event"
            )
        return ends

    def known(self, histories: JaggedHistories) -> Histories:
        """Rows of all users, numbered from 0, up to their last known event."""
        known = rows(histories, histories.offsets[:-1], self.ends(histories))
        return replace(known, user=np.arange(histories.num_users))
