"""Outcomes of delivered lists drawn at random, as the stage monitor keeps them, with the ledger's entries of their nights."""

import datetime
from collections.abc import Mapping

import numpy as np
import polars as pl

from pipeline.monitoring.ledger import DAY, ArmSource, DeliveredExperiment, Delivery
from pipeline.monitoring.outcomes import columns
from pipeline.sections import DELIVERED
from pipeline.serving.assignment import Assignment

FIRST = 20_000 * DAY
"""A midnight."""
K = 10


def experiment(name: str, assignment: Assignment, **changes: object) -> DeliveredExperiment:
    """An experiment of versions 1, 2, …; changes: arm to another version."""
    arms = [
        ArmSource(arm, share, int(str(changes.get(arm, number))), f"d{number}", 1000)
        for number, (arm, share) in enumerate(assignment.shares.items(), 1)
    ]
    return DeliveredExperiment(name, assignment.salt, tuple(arms))


def delivery(night: int, own: DeliveredExperiment | None = None) -> Delivery:
    """A night's delivery, entered in the folder f"{night:016x}"."""
    made = datetime.datetime(2026, 3, 1, 2, tzinfo=datetime.UTC) + datetime.timedelta(days=night)
    time = FIRST + night * DAY
    return Delivery(
        folder=f"{night:016x}",
        delivered_utc=made.isoformat(),
        log_time=time,
        before=time + 1,
        timed=True,
        features="f",
        model_version=1,
        bundle_digest="d1",
        settings_digest="s",
        k=K,
        exclude_seen=True,
        users=1000,
        cold_users=0,
        short_lists=0,
        overlap=0.8,
        experiment=own,
    )


def outcomes(
    random: np.random.Generator,
    num_users: int,
    nights: range,
    assignment: Assignment | None = None,
    *,
    gain: Mapping[str, float] | None = None,
    arms_from: int = 0,
) -> pl.DataFrame:
    """One-day outcomes of users, each with a chance of their own to be active and, if so, to take one listed item.

    One more item outside the list is taken with a chance of one half. gain: added to the chance of a listed item, by arm.
    arms_from: night from which there are arms.
    """
    ids = pl.Series("user_id", range(num_users))
    arm = pl.Series("arm", [None] * num_users, dtype=pl.String)
    if assignment is not None:
        arm = assignment.names_of(ids)
    chance = random.beta(2, 5, num_users)
    more = arm.replace_strict(gain or {}, default=0.0, return_dtype=pl.Float64).to_numpy()
    night, user = np.nonzero(random.random((len(nights), num_users)) < random.beta(2, 3, num_users))
    has_arm = nights.start + night >= arms_from
    is_hit = random.random(len(user)) < chance[user] + more[user] * has_arm
    place = pl.Series("place", random.integers(1, K + 1, len(user)), dtype=pl.Int32)
    taken = 1 + (random.random(len(user)) < 0.5)
    frame = pl.DataFrame(
        {
            "log_time": (FIRST + (nights.start + night) * DAY),
            "window_days": 1.0,
            "system": DELIVERED,
            "arm": arm.gather(user).to_frame().select(pl.when(pl.lit(has_arm)).then("arm"))["arm"],
            "segment": None,
            "user_id": ids.gather(user),
            "folder": pl.Series([f"{each:016x}" for each in nights]).gather(night),
            "k": K,
            "list_length": K,
            "taken": taken,
            "places": pl.DataFrame({"hit": is_hit, "place": place}).select(
                pl.when("hit").then(pl.concat_list("place")).otherwise(pl.lit([], pl.List(pl.Int32)))
            )["place"],
        }
    )
    kinds = columns(pl.Int64())
    return frame.select(pl.col(name).cast(kind) for name, kind in kinds.items())
