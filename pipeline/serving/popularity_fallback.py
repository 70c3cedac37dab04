"""Fallback for users without a known interaction: items recently popular, in the user's segment where that is known.

popularity.parquet of a bundle: segment (a value of a column of the users' table, null: all users), item_index,
num_events in the last days of the log.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from features import schema
from features.histories.jagged import JaggedHistories
from models.histories import Float32, Int32, Int64
from pipeline.errors import LookbackError
from pipeline.serving.request import Request

if TYPE_CHECKING:
    from pipeline.config import Config

FILE = "popularity.parquet"
MAX_SEGMENTS = 20
"""Values of a segment column that `score.segment` = "auto" accepts, at most."""
DAYS = 30.0
"""Recent days, where the evaluation did not choose a number."""
RECENT_WEIGHT, ALWAYS_WEIGHT = 1e-3, 1e-6
"""Weights of an item's share of all recent events, and of all events, beside its share of the segment's recent events."""
DAY = 86_400_000_000
"""Microseconds."""


@dataclass(frozen=True)
class Popularity:
    """Popular items by segment of users."""

    segments: list[str]
    """Segments with their own popularity, sorted; rows of `scores` from 1."""
    scores: Float32
    """[segments + 1, n + 1], an item's share of the segment's recent events, then of all recent events, then of all events.

    Row 0 is for users without a segment."""

    @classmethod
    def of(cls, recent: pl.DataFrame, num_events: Float32) -> "Popularity":
        """Popularity of `recent_events`. num_events: [n + 1] events in the whole log."""
        names = recent["segment"].drop_nulls().unique().sort().to_list()
        code = {name: row for row, name in enumerate(names, 1)}
        counts = np.zeros((len(names) + 1, len(num_events)))
        row = recent["segment"].replace_strict(code, default=0, return_dtype=pl.Int64).to_numpy()
        counts[row, recent["item_index"].to_numpy()] = recent["num_events"].to_numpy()
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        always = num_events / max(float(num_events.sum(dtype=np.float64)), 1.0)
        together: Float32 = (shares + RECENT_WEIGHT * shares[:1] + ALWAYS_WEIGHT * always).astype(np.float32)
        return cls(names, together)

    @classmethod
    def of_bundle(cls, bundle: Path, num_events: Float32) -> "Popularity":
        """Popularity of a bundle; `num_events` alone for older bundles, which have no popularity.parquet."""
        if not (bundle / FILE).exists():
            return cls([], num_events[None].copy())
        return cls.of(pl.read_parquet(bundle / FILE), num_events)

    def codes(self, segment: pl.Series) -> Int64:
        """[len] rows of `scores` of segments, 0 for unknown ones."""
        if not self.segments:
            return np.zeros(len(segment), np.int64)
        code = {name: row for row, name in enumerate(self.segments, 1)}
        return segment.replace_strict(code, default=0, return_dtype=pl.Int64).to_numpy()


def recent_events(
    histories: JaggedHistories, mapping: Int32, segment: pl.Series | None, request: Request, days: float
) -> pl.DataFrame:
    """(segment, item_index, num_events) of the last days before a request, without dislikes. segment: [num_users], null where
    unknown.

    mapping: [num_items + 1] from the log's items to the bundle's, 0 for unknown ones.
    """
    time = np.asarray(histories.time)
    recent = np.flatnonzero((time > request.time - round(days * DAY)) & (time < request.before))
    recent = recent[~histories.is_dislike(recent)]
    item = mapping[histories.item_index[recent]]
    table = pl.DataFrame({"item_index": item[item > 0]}, schema={"item_index": pl.Int32})
    parts = [table.with_columns(segment=pl.lit(None, pl.String))]
    if segment is not None:
        user = np.searchsorted(histories.offsets, recent[item > 0], side="right") - 1
        parts.append(table.with_columns(segment.gather(user).alias("segment")).drop_nulls("segment"))
    counted = pl.concat(parts).group_by("segment", "item_index").len("num_events")
    return counted.sort("segment", "item_index")


def counted_until(
    request: Request,
    histories: JaggedHistories,
    mapping: Int32,
    num_items: int,
    segment: pl.Series | None,
    days: float,
) -> tuple[Float32, Popularity]:
    """[num_items + 1] events of each item that a request knows, and the popularity by them; arguments as in `recent_events`."""
    counts = histories.item_counts(len(mapping) - 1, request.ends(histories))
    num_events = np.bincount(mapping, counts, num_items + 1).astype(np.float32)
    num_events[0] = 0
    recent = recent_events(histories, mapping, segment, request, days)
    return num_events, Popularity.of(recent, num_events)


def days_of(tuned: Mapping[str, float]) -> float:
    """Days of recent popularity: by the settings `tuned` for that baseline, which are empty if it was not evaluated."""
    return float(tuned.get("days", DAYS))


def segment_column(config: "Config", users: Path) -> str | None:
    """Segment column of a users' table: named by `score.segment`, or for auto the first with 2 to `MAX_SEGMENTS` values.

    Raises LookbackError where the named column is missing.
    """
    setting = config.score.segment
    if setting == "none" or not users.exists():
        if setting in ("none", "auto"):
            return None
        raise LookbackError(
            f"score.segment: received {setting!r}, but there is no table of users; expected [users], or none"
        )
    table = schema.scan(users, schema.USERS)
    columns = {name: dtype for name, dtype in table.collect_schema().items() if name != schema.USER_ID}
    if setting != "auto":
        if setting not in columns:
            raise LookbackError(
                f"score.segment: received {setting!r}, expected auto, none, or a column of the users' table: {', '.join(columns)}"
            )
        return setting
    plain = [name for name, dtype in columns.items() if not dtype.is_nested()]
    if not plain:
        return None
    counts = table.select(pl.col(plain).drop_nulls().n_unique()).collect(engine="streaming").row(0)
    return next((name for name, count in zip(plain, counts, strict=True) if 2 <= count <= MAX_SEGMENTS), None)


def segment_of(users: Path, column: str, user_ids: pl.Series) -> pl.Series:
    """[len] values of a column of the users' table as text, null for users without one."""
    ids = user_ids.rename(schema.USER_ID).cast(pl.String).to_frame().lazy()
    table = schema.scan(users, schema.USERS).select(
        pl.col(schema.USER_ID).cast(pl.String), pl.col(column).cast(pl.String).alias("segment")
    )
    return ids.join(table, on=schema.USER_ID, how="left", maintain_order="left").collect()["segment"]
