"""Logs cut into steps for rolling measurements: simulated ones, Deskdrop and Ta-Feng by weeks, MovieLens-1M by equal slices."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from features import simulate
from features.simulation_settings import SimulationSettings
from models.histories import Histories, Int64

DAY = 86_400_000_000
"""Microseconds."""
DATA = Path(__file__).resolve().parents[2] / "data" / "raw"
LAST_SHARE = 0.2
"""Share of MovieLens-1M's ratings that its steps cover."""


@dataclass(frozen=True)
class RollingLog:
    """Events by user and time; items are numbered from 1 by their first event, so that those known at a time come first."""

    histories: Histories
    """Whole histories, a row per user"""
    moments: Int64
    """[steps + 1] microseconds: step s is trained up to the s-th and judged on the events up to the next"""
    buys_again: bool
    """Whether items that a user has had count and may be recommended."""

    @classmethod
    def of(cls, events: pl.DataFrame, moments: Int64, *, buys_again: bool = False) -> "RollingLog":
        """events: columns user, item and time (microseconds), in the log's order."""
        events = events.sort("user", "time", maintain_order=True)
        first = events.group_by("item").agg(pl.col("time").min()).sort("time", "item")
        first = first.select("item", number=pl.int_range(1, pl.len() + 1, dtype=pl.Int32))
        number = events.join(first, on="item", how="left", maintain_order="left")["number"].to_numpy()
        ends = np.cumsum(events["user"].rle().struct.field("len").to_numpy(), dtype=np.int64)
        time = events["time"].to_numpy()
        starts = np.concatenate((np.zeros(1, np.int64), ends[:-1]))
        return cls(
            Histories(number, time, np.zeros(len(events), np.int16), starts, ends), moments, buys_again
        )

    def num_items(self, moment: int) -> int:
        """Items with an event up to a time."""
        return int(self.histories.item_index[self.histories.time <= moment].max(initial=0))

    def until(self, moment: int) -> Histories:
        """Rows of all users with their events up to a time."""
        row, _ = self.histories.gather()
        known = np.bincount(row[self.histories.time <= moment], minlength=len(self.histories))
        return replace(self.histories, ends=self.histories.starts + known).compact()

    def taken(self, step: int) -> tuple[Int64, Int64]:
        """(user, item), sorted, of what users with a history take in a step, of the items known at its beginning.

        Items that the user has had are left out unless the log is one of buying again.
        """
        night, end = self.moments[step], self.moments[step + 1]
        user, _ = self.histories.gather()
        moment, item = self.histories.time, self.histories.item_index
        key = user * (int(item.max()) + 1) + item
        chosen = (moment > night) & (moment <= end) & (item <= self.num_items(night))
        chosen &= (self.until(night).lengths > 0)[user]
        had = np.zeros(0, np.int64) if self.buys_again else key[moment <= night]
        return np.divmod(np.setdiff1d(key[chosen], had), int(item.max()) + 1)

    def groups(self, step: int) -> dict[str, NDArray[np.bool_]]:
        """Name to [users]: new since the first step; old and active since; old and without an event since."""
        before, now = (self.until(self.moments[number]).lengths for number in (0, step))
        return {
            "new users": before == 0,
            "old users, active": (before > 0) & (now > before),
            "old users, quiet": (before > 0) & (now == before),
        }


def simulated(settings: SimulationSettings, steps: int) -> RollingLog:
    """The last days of a simulated log."""
    events = simulate.simulate(settings, 0).events
    time = pl.col("timestamp").cast(pl.Datetime("us", "UTC")).dt.timestamp("us")
    return by_time(events.select(user="user_id", item="item_id", time=time), steps, DAY)


def deskdrop(steps: int) -> RollingLog:
    """The last weeks of Deskdrop, each user's first event with an article alone."""
    table = pl.read_csv(DATA / "deskdrop" / "users_interactions.csv", columns=[0, 2, 3])
    table = table.select(user="personId", item="contentId", time=pl.col("timestamp") * 1_000_000)
    first = table.sort("time", maintain_order=True).unique(
        ["user", "item"], keep="first", maintain_order=True
    )
    return by_time(first, steps, 7 * DAY)


def ta_feng(steps: int) -> RollingLog:
    """The last weeks of Ta-Feng, where customers buy again."""
    columns = ["TRANSACTION_DT", "CUSTOMER_ID", "PRODUCT_ID"]
    path = DATA / "ta-feng" / "ta_feng_all_months_merged.csv.gz"
    table = pl.read_csv(path, columns=columns, infer_schema=False)
    time = pl.col("TRANSACTION_DT").str.to_datetime("%m/%d/%Y", time_unit="us").dt.timestamp("us")
    return by_time(
        table.select(user="CUSTOMER_ID", item="PRODUCT_ID", time=time), steps, 7 * DAY, buys_again=True
    )


def ml_1m(steps: int) -> RollingLog:
    """Slices of equal size of the last fifth of MovieLens-1M's ratings."""
    text = (DATA / "ml-1m" / "ratings.dat").read_bytes().replace(b"::", b"\t")
    table = pl.read_csv(
        text, separator="\t", has_header=False, new_columns=["user", "item", "rating", "time"]
    )
    table = table.select("user", "item", time=pl.col("time") * 1_000_000)
    shares = np.linspace(1 - LAST_SHARE, 1, steps + 1)
    places = (shares * (len(table) - 1)).astype(np.int64)
    return RollingLog.of(table, np.sort(table["time"].to_numpy())[places])


def by_time(events: pl.DataFrame, steps: int, length: int, *, buys_again: bool = False) -> RollingLog:
    """The last steps of a log, each of one length in microseconds."""
    last = int(events["time"].max())  # type: ignore[arg-type]
    return RollingLog.of(events, last - length * np.arange(steps, -1, -1), buys_again=buys_again)


def of_some_users(log: RollingLog, number: int) -> RollingLog:
    """The log of some users, drawn at random; all of them where it has no more."""
    if len(log.histories) <= number:
        return log
    rows = np.sort(np.random.default_rng(0).choice(len(log.histories), number, replace=False))
    some = log.histories.select(rows).compact()
    user, _ = some.gather()
    events = pl.DataFrame({"user": user, "item": some.item_index, "time": some.time})
    return RollingLog.of(events, log.moments, buys_again=log.buys_again)
