"""Outcomes of delivered lists: what each active user took in the days after, and at which places of the list it stood."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from features import schema
from features.histories.vocabulary import Vocabulary
from models.histories import Int32, Int64
from pipeline.dataset.dataset import Dataset, rows
from pipeline.monitoring.ledger import Delivery
from pipeline.sections import DELIVERED
from pipeline.serving.assignment import Assignment

FILE = "outcomes.parquet"
KEY = ("log_time", "window_days", "system", "user_id")


def columns(user: pl.DataType) -> dict[str, pl.DataType]:
    """Columns of outcomes.parquet, by the type of the user ids."""
    return {
        "log_time": schema.TIME,
        "window_days": pl.Float64(),
        "system": pl.String(),
        "arm": pl.String(),
        "segment": pl.String(),
        "user_id": user,
        "folder": pl.String(),
        "k": pl.Int32(),
        "list_length": pl.Int32(),  # 0: the user has no list
        "taken": pl.Int32(),  # distinct items taken within the window
        "places": pl.List(pl.Int32()),  # places of the list whose items were taken, ascending
    }


@dataclass(frozen=True)
class Taken:
    """Distinct items that users took in the window after a delivery, by user and item."""

    user: Int64
    """[pairs] user index, ascending"""
    item: Int32
    """[pairs]"""

    @classmethod
    def after(
        cls, dataset: Dataset, delivery: Delivery, days: float, types: NDArray[np.bool_] | None
    ) -> "Taken":
        """Items taken within `days`, as `dataset.night_targets`: without seen items where the lists exclude them.

        types: [num_event_types + 1] event types that count; None: all.
        """
        histories = dataset.histories
        before = histories.first_at(delivery.before)
        user, position = rows(histories, before, histories.first_at(delivery.end(days))).gather()
        if types is not None:
            counts = types[histories.event_type[position]]
            user, position = user[counts], position[counts]
        width = dataset.num_items + 1
        key = np.unique(user * width + histories.item_index[position])
        if delivery.exclude_seen and len(key):
            active = np.unique(key // width)
            past, seen = rows(histories, np.asarray(histories.offsets[:-1])[active], before[active]).gather()
            key = key[~np.isin(key, active[past] * width + histories.item_index[seen])]
        return cls(key // width, (key % width).astype(np.int32))


def lists_of(score: Path, delivery: Delivery) -> Iterator[tuple[str, pl.LazyFrame]]:
    """(system, lists) of a score artifact: delivered ones first, then the shadows that are there."""
    yield DELIVERED, pl.scan_parquet(score / "recommendations" / "*.parquet")
    for name in delivery.shadows:
        if any((score / "shadows" / name).glob("*.parquet")):
            yield name, pl.scan_parquet(score / "shadows" / name / "*.parquet")


def judge(
    dataset: Dataset, lists: pl.LazyFrame, taken: Taken, segment: pl.Series | None
) -> pl.DataFrame | None:
    """Outcome per active user: user_id, segment, list_length, taken, places; None where lists have ids of another type.

    segment: [num_users], None without segments.
    """
    users, kinds = dataset.users["user_id"], lists.collect_schema()
    if kinds["user_id"] != users.dtype or kinds["item_id"] != dataset.items["item_id"].dtype:
        return None
    active, number = np.unique(taken.user, return_counts=True)
    outcome = pl.DataFrame(
        {
            "user": active,
            "user_id": users.gather(active),
            "segment": pl.Series([None], dtype=pl.String).new_from_index(0, len(active))
            if segment is None
            else segment.gather(active),
            "taken": number.astype(np.int32),
        }
    )
    listed = lists.select("user_id", "item_id", "rank")
    own = listed.join(outcome.lazy().select("user_id", "user"), on="user_id").collect(engine="streaming")
    item, _ = Vocabulary(dataset.items["item_id"], 1).encode_known(own["item_id"])
    width = dataset.num_items + 1
    hit = np.isin(own["user"].to_numpy() * width + item, taken.user * width + taken.item)
    by_user = (
        own.with_columns(pl.Series("hit", hit))
        .group_by("user_id")
        .agg(
            pl.len().cast(pl.Int32).alias("list_length"),
            pl.col("rank").filter(pl.col("hit")).sort().cast(pl.Int32).alias("places"),
        )
    )
    empty = pl.lit([], dtype=pl.List(pl.Int32))
    return (
        outcome.drop("user")
        .join(by_user, on="user_id", how="left", maintain_order="left")
        .with_columns(pl.col("list_length").fill_null(0), pl.col("places").fill_null(empty))
    )


def labelled(outcome: pl.DataFrame, delivery: Delivery, days: float, system: str) -> pl.DataFrame:
    """Outcomes with the columns of `columns`; delivered lists of an experiment with the user's arm, also without a list."""
    facts: Mapping[str, object] = {
        "log_time": delivery.log_time,
        "window_days": float(days),
        "system": system,
        "arm": None,
        "folder": delivery.folder,
        "k": delivery.k,
    }
    kinds = columns(outcome["user_id"].dtype)
    named = outcome.with_columns(pl.lit(value).alias(name) for name, value in facts.items())
    if delivery.experiment is not None and system == DELIVERED:
        assignment = Assignment(delivery.experiment.salt, delivery.experiment.shares)
        named = named.with_columns(assignment.names_of(outcome["user_id"]))
    return named.select(pl.col(name).cast(kind) for name, kind in kinds.items())


def last_of_each_night(outcomes: pl.DataFrame) -> pl.DataFrame:
    """One row per user, night, window and system: of several deliveries of one night the last with a list for the user."""
    ordered = outcomes.with_columns(pl.col("list_length") > 0, order=pl.int_range(pl.len()))
    order = ordered.sort("list_length", "order")["order"]
    kept = outcomes[order].unique(subset=KEY, keep="last", maintain_order=True)
    return kept.sort("log_time", "window_days", "system", "user_id")
