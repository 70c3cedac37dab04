"""Outcomes of delivered lists: what each active user took in the days after, and at which places of the list it stood."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from features import schema
from features.histories.vocabulary import Vocabulary
from models.evaluation.metrics import Float64
from models.histories import Int32, Int64
from pipeline.dataset.dataset import Dataset, rows
from pipeline.monitoring.ledger import Delivery
from pipeline.sections import DELIVERED
from pipeline.serving.assignment import Assignment

KEY = ("log_time", "window_days", "system", "user_id")


def columns(user: pl.DataType) -> dict[str, pl.DataType]:
    """Columns of the outcomes, by the type of the user ids."""
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
    def disliked_after(cls, dataset: Dataset, delivery: Delivery, days: float) -> "Taken":
        """Items disliked within `days`; none where the log has no dislikes."""
        histories, width = dataset.histories, dataset.num_items + 1
        before, after = histories.first_at(delivery.before), histories.first_at(delivery.end(days))
        keys = [np.empty(0, np.int64)]
        for first, last in histories.blocks():
            user, position = rows(histories, before[first:last], after[first:last]).gather()
            is_disliked = histories.is_dislike(position)
            user, position = user[is_disliked], position[is_disliked]
            keys.append(_distinct((user + first) * width + histories.item_index[position]))
        key = np.concatenate(keys)
        return cls(key // width, (key % width).astype(np.int32))

    @classmethod
    def after(
        cls, dataset: Dataset, delivery: Delivery, days: float, types: NDArray[np.bool_] | None
    ) -> "Taken":
        """Items taken within `days`, as `dataset.night_targets`: without dislikes, and without seen items where the lists exclude
        them.

        types: [num_event_types + 1] event types that count; None: all.
        """
        histories, width = dataset.histories, dataset.num_items + 1
        before, after = histories.first_at(delivery.before), histories.first_at(delivery.end(days))
        keys = [np.empty(0, np.int64)]
        for first, last in histories.blocks():
            user, position = rows(histories, before[first:last], after[first:last]).gather()
            if histories.dislikes is not None:
                is_taken = ~histories.is_dislike(position)
                user, position = user[is_taken], position[is_taken]
            if types is not None:
                counts = types[histories.event_type[position]]
                user, position = user[counts], position[counts]
            key = _distinct((user + first) * width + histories.item_index[position])
            if delivery.exclude_seen and len(key):
                active = _distinct(key // width)
                starts = np.asarray(histories.offsets[:-1])[active]
                past, seen = rows(histories, starts, before[active]).gather()
                key = key[~_holds(active[past] * width + histories.item_index[seen], key)]
            keys.append(key)
        key = np.concatenate(keys)
        return cls(key // width, (key % width).astype(np.int32))

    def has(self, user: Int64, item: Int32, num_items: int) -> NDArray[np.bool_]:
        """[n] whether users took items, by bisection."""
        width = num_items + 1
        own, key = self.user * width + self.item, user * width + item
        found: NDArray[np.bool_] = np.append(own, -1)[np.searchsorted(own, key)] == key
        return found


def _distinct(key: Int64) -> Int64:
    """Sorted distinct keys; many times as fast as `np.unique`, which hashes, for millions of large numbers."""
    key = np.sort(key)
    return key[np.concatenate(([True], key[1:] != key[:-1]))[: len(key)]]


def _holds(keys: Int64, key: Int64) -> NDArray[np.bool_]:
    """[n] whether each of the sorted distinct keys [n] is among keys."""
    place = np.searchsorted(key, keys)
    is_held = np.zeros(len(key) + 1, bool)
    is_held[place[np.append(key, -1)[place] == keys]] = True
    return is_held[:-1]


def lists_of(score: Path, delivery: Delivery) -> Iterator[tuple[str, pl.LazyFrame]]:
    """(system, lists) of a score artifact: delivered ones first, then the shadows that are there."""
    yield DELIVERED, pl.scan_parquet(score / "recommendations" / "*.parquet")
    for name in delivery.shadows:
        if any((score / "shadows" / name).glob("*.parquet")):
            yield name, pl.scan_parquet(score / "shadows" / name / "*.parquet")


def are_of_log(dataset: Dataset, lists: pl.LazyFrame) -> bool:
    """Whether the log has ids of the lists' types, and a user and an item of theirs; true for no lists at all."""
    kinds, known = lists.collect_schema(), {}
    for name, ids in (("user_id", dataset.users["user_id"]), ("item_id", dataset.items["item_id"])):
        if kinds[name] != ids.dtype:
            return False
        known[name] = pl.col(name).is_in(ids.implode()).any()
    found = lists.select(pl.len(), **known).collect(engine="streaming").row(0, named=True)
    return found["len"] == 0 or bool(found["user_id"] and found["item_id"])


def judge(dataset: Dataset, lists: pl.LazyFrame, taken: Taken, segment: pl.Series | None) -> pl.DataFrame:
    """Outcome per active user: user_id, segment, list_length, taken, places.

    segment: [num_users], None without segments.
    """
    users = dataset.users["user_id"]
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
    of_active = outcome.lazy().select("user_id", "user")
    own = listed.join(of_active, on="user_id").drop("user_id").collect(engine="streaming")
    item, _ = Vocabulary(dataset.items["item_id"], 1).encode_known(own["item_id"])
    hits = own.filter(pl.Series(taken.has(own["user"].to_numpy(), item, dataset.num_items)))
    lengths = own.group_by("user").agg(pl.len().cast(pl.Int32).alias("list_length"))
    places = hits.group_by("user").agg(pl.col("rank").sort().cast(pl.Int32).alias("places"))
    empty = pl.lit([], dtype=pl.List(pl.Int32))
    return (
        outcome.join(lengths, on="user", how="left", maintain_order="left")
        .join(places, on="user", how="left", maintain_order="left")
        .with_columns(pl.col("list_length").fill_null(0), pl.col("places").fill_null(empty))
        .drop("user")
    )


def disliked_shares(dataset: Dataset, lists: pl.LazyFrame, disliked: Taken) -> Float64:
    """[users with a list] share of each list's items that its user disliked afterwards."""
    lengths = lists.group_by("user_id").len("length").sort("user_id").collect(engine="streaming")
    active = np.unique(disliked.user)
    users = pl.DataFrame({"user_id": dataset.users["user_id"].gather(active), "user": active})
    own = lists.select("user_id", "item_id").join(users.lazy(), on="user_id").collect(engine="streaming")
    item, _ = Vocabulary(dataset.items["item_id"], 1).encode_known(own["item_id"])
    hits = own.filter(pl.Series(disliked.has(own["user"].to_numpy(), item, dataset.num_items)))
    joined = lengths.join(
        hits.group_by("user_id").len("hits"), on="user_id", how="left", maintain_order="left"
    )
    return joined.select(pl.col("hits").fill_null(0) / pl.col("length")).to_series().to_numpy()


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


def last_of_each_night(parts: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """One row per user, night, window and system: of several deliveries of one night the last with a list for the user.

    parts: outcomes in the order of the deliveries, at least one.
    """
    outcomes = pl.concat(parts)
    if outcomes["folder"].n_unique() > 1:
        outcomes = outcomes.sort(pl.col("list_length") > 0, maintain_order=True)
        outcomes = outcomes.unique(subset=KEY, keep="last", maintain_order=True)
    return outcomes.sort("log_time", "window_days", "system", "user_id")
