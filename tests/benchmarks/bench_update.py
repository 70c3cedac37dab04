"""Rolling updates on a simulated log with a change of tastes: update, full training and no training, night by night.

    python tests/benchmarks/bench_update.py --users 1000 --events 60000

The encoder alone is judged, on what each user takes in the day after each night, seen items excluded: NDCG@10 with 95 % intervals
over users, paired with the full training. Every night's update goes on from the one before.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import polars as pl

from features import simulate
from features.simulation_settings import SimulationSettings
from models.encoder.encoder import AttentionRecommender, Encoder
from models.evaluation.comparison import SystemComparison
from models.evaluation.metrics import Float64, metrics_of_ranks
from models.evaluation.ranks import rank_targets
from models.histories import Histories, Int64
from models.settings.encoder import EncoderSettings
from models.settings.training import TrainSettings
from models.training.loop import fit
from models.training.replay import with_replay
from models.training.result import Initial
from pipeline.modelling.trainer import UPDATE_HISTORIES, UPDATE_PASSES

DAY = 86_400_000_000
MODEL = EncoderSettings(dim=32, num_blocks=2, num_heads=2)
BATCH = 16
"""Histories of a step: few, so that a log of few users has its steps."""
MAX_LENGTH, NIGHTS, METRIC = 50, 7, "ndcg@10"


@dataclass(frozen=True)
class Log:
    """Events by user and time, items numbered from 1."""

    offsets: Int64
    histories: Histories
    """Whole histories"""
    num_items: int

    @classmethod
    def simulated(cls, settings: SimulationSettings) -> "Log":
        events = simulate.simulate(settings, 0).events.sort("user_id", "timestamp")
        items, user = events["item_id"].rank("dense"), events["user_id"].rank("dense").to_numpy()
        ends = np.cumsum(np.bincount(user.astype(np.int64))[1:])
        offsets = np.concatenate(([0], ends))
        moments = events["timestamp"].cast(pl.Datetime("us", "UTC")).dt.timestamp("us").to_numpy()
        flat, kinds = items.cast(pl.Int32).to_numpy(), np.zeros(len(events), np.int16)
        histories = Histories(flat, moments, kinds, offsets[:-1], offsets[1:])
        return cls(offsets, histories, int(flat.max()))

    def until(self, moment: int) -> Histories:
        """Rows of all users with their events up to a time."""
        row, _ = self.histories.gather()
        known = np.bincount(row[self.histories.time <= moment], minlength=len(self.histories))
        return replace(self.histories, ends=self.histories.starts + known)

    def taken(self, night: int) -> tuple[Int64, Int64]:
        """(user, item) of new items taken in the day after a night, by users with a history."""
        row, position = self.histories.gather()
        moment, item = self.histories.time[position], self.histories.item_index[position]
        key = row * (self.num_items + 1) + item
        is_after = (moment > night) & (moment <= night + DAY)
        has_history = (self.until(night).lengths > 0)[row]
        new = np.setdiff1d(key[is_after & has_history], key[moment <= night])
        return np.divmod(new, self.num_items + 1)


def train(log: Log, histories: Histories, epochs: int, initial: Encoder | None = None) -> Encoder:
    """Train on rows, from scratch or for a few small steps from an encoder."""
    settings = TrainSettings(
        epochs=epochs, batch_histories=BATCH, learning_rate=0.003, precision="fp32", compile="off"
    )
    start = None
    if initial is not None:
        settings = replace(settings, batch_histories=min(UPDATE_HISTORIES, BATCH))
        start = Initial(initial, np.arange(log.num_items + 1, dtype=np.int32))
    return fit(
        histories,
        encoder=MODEL,
        train=settings,
        num_items=log.num_items,
        num_event_types=0,
        max_length=MAX_LENGTH,
        initial=start,
    ).model


def judged(log: Log, encoder: Encoder, night: int) -> tuple[Int64, Float64]:
    """(user, NDCG@10) of each user who takes something in the day after a night."""
    user, item = log.taken(night)
    users, request = np.unique(user, return_inverse=True)
    histories = log.until(night).select(users)
    system = AttentionRecommender(encoder)
    rank = rank_targets(system, histories, item.astype(np.int32), 1, exclude_seen=True, request=request).rank
    return users, np.asarray(metrics_of_ranks(rank, (10,), request, len(users))[METRIC], np.float64)


def systems(log: Log, first: int, epochs: int) -> Iterator[tuple[str, Callable[[int, Encoder], Encoder]]]:
    """Name, and the training of a night from the encoder of the night before."""

    def updated(passes: int, share: float) -> Callable[[int, Encoder], Encoder]:
        def step(night: int, before: Encoder) -> Encoder:
            if night == first:
                return before
            return train(log, with_replay(log.until(night), night - DAY, share, 0)[1], passes, before)

        return step

    yield "none", lambda _, before: before
    yield "full", lambda night, before: before if night == first else train(log, log.until(night), epochs)
    for passes, share in product((UPDATE_PASSES, 2 * UPDATE_PASSES), (0.0, 0.25, 0.5)):
        yield f"update, {passes} passes, replay {share:g}", updated(passes, share)


def main() -> None:
    """Print a row per system: NDCG@10 by night, pooled, its paired difference from the full training, seconds a night."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--users", type=int, default=1000)
    parser.add_argument("--events", type=int, default=60_000)
    parser.add_argument("--days", type=int, default=60)
    parser.add_argument("--epochs", type=int, default=15, help="of a training from scratch")
    parser.add_argument("--no-drift", action="store_true", help="tastes stay as they are")
    asked = parser.parse_args()
    drift = 0 if asked.no_drift else asked.days - NIGHTS // 2 - 1
    log = Log.simulated(
        SimulationSettings(
            num_users=asked.users,
            num_items=500,
            num_events=asked.events,
            num_days=asked.days,
            drift_day=drift,
        )
    )
    last = int(log.histories.time.max())
    nights = [last - (NIGHTS - number) * DAY for number in range(NIGHTS)]
    deployed = train(log, log.until(nights[0]), asked.epochs)
    found: dict[str, list[tuple[Int64, Float64]]] = {}
    seconds: dict[str, float] = {}
    for name, step in systems(log, nights[0], asked.epochs):
        encoder, started = deployed, time.process_time()
        spent, found[name] = 0.0, []
        for night in nights:
            started = time.process_time()
            encoder = step(night, encoder)
            spent += time.process_time() - started
            found[name].append(judged(log, encoder, night))
        seconds[name] = spent / (NIGHTS - 1)
    user = np.concatenate([users for users, _ in found["full"]])
    values = ((name, {METRIC: np.concatenate([own for _, own in each])}) for name, each in found.items())
    compared = SystemComparison.of(values, user, 1000, 0)
    print(
        f"{len(user):,} user-nights of {len(np.unique(user)):,} users; drift after day {drift} of {asked.days}\n"
    )
    print(
        "| system | NDCG@10 by night | pooled | minus full | ratio | CPU seconds a night |\n| --- | --- | --- | --- | --- | --- |"
    )
    for name, each in found.items():
        by_night = " ".join(f"{own.mean():.3f}"[1:] for _, own in each)
        paired, value = compared.paired(name, "full")[METRIC], compared.values(name)[METRIC]
        difference = f"{paired.difference:+.4f} [{paired.low:+.4f}, {paired.high:+.4f}]"
        ratio = value / compared.values("full")[METRIC]
        print(f"| {name} | {by_night} | {value:.4f} | {difference} | {ratio:.3f} | {seconds[name]:.1f} |")


if __name__ == "__main__":
    main()
