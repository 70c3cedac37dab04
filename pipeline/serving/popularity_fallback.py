"""What a user without a known interaction gets: what was popular of late, among users like him where something is known of them.

A bundle holds it in popularity.parquet: segment (a value of a column of the users' table, null: everybody), item_index,
num_events in the last days of its log.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from features import schema
from features.histories.jagged import JaggedHistories
from models.histories import Float32, Int32, Int64
from pipeline.errors import LookbackError

if TYPE_CHECKING:
    from pipeline.config import Config

FILE = "popularity.parquet"
MOST_SEGMENTS = 20
"""Values of a column of users that makes segments by itself (`score.segment` = "auto")."""
DAYS = 30.0
"""That count where the evaluation did not choose."""
RECENT_WEIGHT, ALWAYS_WEIGHT = 1e-3, 1e-6
"""Of an item's share of all recent events, and of all events, beside its share of the segment's recent ones."""
DAY = 86_400_000_000
"""Microseconds."""


def write(
    bundle: Path, histories: JaggedHistories, mapping: Int32, segment: pl.Series | None, days: float
) -> None:
    """popularity.parquet of a log's last days. segment: [num_users] the value of each user, null where it is not known.

    mapping: [num_items + 1] from the log's items to the bundle's, 0 for those it has not.
    """
    newest = int(histories.time.max(initial=0))
    recent = np.flatnonzero(np.asarray(histories.time) > newest - round(days * DAY))
    item = mapping[histories.item_index[recent]]
    table = pl.DataFrame({"item_index": item[item > 0]}, schema={"item_index": pl.Int32})
    everybody = table.with_columns(segment=pl.lit(None, pl.String))
    parts = [everybody]
    if segment is not None:
        user = np.searchsorted(histories.offsets, recent[item > 0], side="right") - 1
        parts.append(table.with_columns(segment.gather(user).alias("segment")).drop_nulls("segment"))
    counted = pl.concat(parts).group_by("segment", "item_index").len("num_events")
    counted.sort("segment", "item_index").write_parquet(bundle / FILE)


def segments(bundle: Path) -> list[str]:
    """The values that popularity is known by, sorted."""
    if not (bundle / FILE).exists():
        return []
    return (
        pl.read_parquet(bundle / FILE, columns=["segment"])["segment"].drop_nulls().unique().sort().to_list()
    )


def scores(bundle: Path, num_events: Float32) -> Float32:
    """[segments + 1, n + 1]: an item's share of the segment's recent events, then of all recent events, then of all events.

    `num_events` [n + 1] in all of the log; row 0 is for users of no segment. A bundle that does not hold recent events (it is
    older) answers by `num_events`.
    """
    if not (bundle / FILE).exists():
        return num_events[None].copy()
    table = pl.read_parquet(bundle / FILE)
    names = segments(bundle)
    code = {name: row for row, name in enumerate(names, 1)}
    counts = np.zeros((len(names) + 1, len(num_events)))
    row = table["segment"].replace_strict(code, default=0, return_dtype=pl.Int64).to_numpy()
    counts[row, table["item_index"].to_numpy()] = table["num_events"].to_numpy()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    always = num_events / max(float(num_events.sum(dtype=np.float64)), 1.0)
    together: Float32 = (shares + RECENT_WEIGHT * shares[:1] + ALWAYS_WEIGHT * always).astype(np.float32)
    return together


def segment_column(config: "Config", users: Path) -> str | None:
    """The column of a users' table that makes segments: the one that `score.segment` names, or for auto the first with 2 to
    `MOST_SEGMENTS` values.

    Raises LookbackError where the named one is not there.
    """
    wanted = config.score.segment
    if wanted == "none" or not users.exists():
        if wanted in ("none", "auto"):
            return None
        raise LookbackError(
            f"score.segment: received {wanted!r}, but there is no table of users; expected [users], or none"
        )
    found = schema.scan(users, schema.USERS)
    columns = {name: kind for name, kind in found.collect_schema().items() if name != schema.USER_ID}
    if wanted != "auto":
        if wanted not in columns:
            raise LookbackError(
                f"score.segment: received {wanted!r}, expected auto, none, or a column of the users' table: {', '.join(columns)}"
            )
        return wanted
    plain = [name for name, kind in columns.items() if not kind.is_nested()]
    if not plain:
        return None
    numbers = found.select(pl.col(plain).drop_nulls().n_unique()).collect(engine="streaming").row(0)
    return next(
        (name for name, number in zip(plain, numbers, strict=True) if 2 <= number <= MOST_SEGMENTS), None
    )


def segment_of(users: Path, column: str, user_ids: pl.Series) -> pl.Series:
    """[len] each user's value of a column of the users' table as text, null for those who have none."""
    ids = user_ids.rename(schema.USER_ID).cast(pl.String).to_frame().lazy()
    table = schema.scan(users, schema.USERS).select(
        pl.col(schema.USER_ID).cast(pl.String), pl.col(column).cast(pl.String).alias("segment")
    )
    return ids.join(table, on=schema.USER_ID, how="left", maintain_order="left").collect()["segment"]


def codes(names: list[str], segment: pl.Series) -> Int64:
    """[len] the row of `scores` of each value, 0 for others."""
    code = {name: row for row, name in enumerate(names, 1)}
    return (
        segment.replace_strict(code, default=0, return_dtype=pl.Int64).to_numpy()
        if code
        else np.zeros(len(segment), np.int64)
    )
