"""Nights of a simulated log through the alert rules, without training: lists by counts, judged by the monitor's own functions.

A model counts the events of items in the two weeks before its training; a list ranks them by that and by how much of the
user's recent history lies on their topics. Every two weeks a model is trained anew, and one trained eight weeks earlier is
evaluated on the weekly nights since then: the promise of the lists to come.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl

from features import simulate
from features.histories import splits
from features.histories.jagged import JaggedHistories
from features.histories.log_facts import LogFacts
from features.simulation_settings import SimulationSettings
from models.evaluation.metrics import Float64
from models.histories import Int64
from pipeline.dataset.dataset import Dataset
from pipeline.monitoring import alerts, outcomes, population, series
from pipeline.monitoring.ledger import DAY, Delivery, Promise
from pipeline.monitoring.outcomes import Taken
from pipeline.monitoring.series import Bootstrap
from pipeline.sections import DELIVERED, MonitorConfig

K = 10
WARM_DAYS, TEST_WEEKS = 28, 8
FIRST_NIGHT = WARM_DAYS + 7 * TEST_WEEKS
"""Days of the log before the first night with alerts."""
RETRAINED_DAYS = 14
HALF_LIFE_DAYS = 10.0
"""Of an event's weight in a user's history."""
RIGHT = ("population_drift", "unknown_items", "below_promise")
"""Rules of which one at least a drift of tastes and popularity breaks."""
START = int(simulate.FIRST_DAY.timestamp()) * 1_000_000


@dataclass(frozen=True)
class Log:
    """A simulated log as the monitor sees it, and the topic of each item."""

    dataset: Dataset
    topic: Int64
    """[num_items + 1]"""
    num_events: Int64
    """[num_items + 1]"""

    @classmethod
    def of(cls, settings: SimulationSettings, seed: int) -> "Log":
        """Simulate a log."""
        made = simulate.simulate(settings, seed)
        users, items = made.events["user_id"].unique().sort(), made.items["item_id"]
        types = sorted(simulate.EVENT_TYPES)
        table = made.events.select(
            user=pl.col("user_id").rank("dense").cast(pl.Int64) - 1,
            item=items.search_sorted(made.events["item_id"]).cast(pl.Int32) + 1,
            time=pl.col("timestamp").dt.timestamp("us"),
            kind=pl.Series(types).search_sorted(made.events["event_type"]).cast(pl.Int16) + 1,
        ).sort("user", "time")
        histories = JaggedHistories(
            np.concatenate(([0], np.cumsum(np.bincount(table["user"].to_numpy())))),
            table["item"].to_numpy(),
            table["time"].to_numpy(),
            table["kind"].to_numpy(),
            np.full(len(table), np.nan, np.float32),
        )
        split = splits.temporal(
            histories,
            len(items),
            test_fraction=0.1,
            validation_fraction=0.1,
            min_user_events=1,
            min_item_events=1,
        )
        dataset = Dataset(Path(), histories, split)
        dataset.__dict__.update(
            users=pl.DataFrame({"user_id": users}),
            items=pl.DataFrame({"item_id": items}),
            event_types=types,
            facts=LogFacts.of(histories),
        )
        topic = made.items["categories"].list.last().rank("dense").to_numpy()
        return cls(dataset, np.concatenate(([0], topic)).astype(np.int64), histories.item_counts(len(items)))

    def end(self, day: int) -> int:
        """Time of the last event of the first `day` days."""
        time = self.dataset.histories.time
        return int(time[time < START + day * DAY].max())

    def popularity(self, day: int) -> Float64:
        """[num_items + 1] logarithm of the events in the two weeks up to a day."""
        histories = self.dataset.histories
        recent = (histories.time < START + day * DAY) & (histories.time >= START + (day - 14) * DAY)
        logarithm: Float64 = np.log(
            0.5 + np.bincount(histories.item_index[recent], minlength=len(self.topic))
        )
        return logarithm

    def lists(self, popularity: Float64, now: int) -> pl.DataFrame:
        """Ten items for each user with a history: user_id, item_id, rank."""
        histories, user = self.dataset.histories, self.dataset.histories.users()
        known = histories.time <= now
        owner, item = user[known], histories.item_index[known]
        weight = 0.5 ** ((now - histories.time[known]) / (HALF_LIFE_DAYS * DAY))
        width = int(self.topic.max()) + 1
        taste = np.bincount(owner * width + self.topic[item], weight, histories.num_users * width)
        score = np.log(0.02 + taste.reshape(-1, width))[:, self.topic] + popularity
        score[owner, item] = -np.inf
        score[:, 0] = -np.inf
        users = np.unique(owner)
        chosen = np.argpartition(-score[users], K, axis=1)[:, :K]
        order = np.argsort(-np.take_along_axis(score[users], chosen, axis=1), axis=1)
        best = np.take_along_axis(chosen, order, axis=1)
        return pl.DataFrame(
            {
                "user_id": self.dataset.users["user_id"].gather(np.repeat(users, K)),
                "item_id": self.dataset.items["item_id"].gather(best.ravel() - 1),
                "rank": np.tile(np.arange(1, K + 1, dtype=np.int32), len(users)),
            }
        )


@dataclass(frozen=True)
class Night:
    """Alerts of a night."""

    day: int
    """Whole days of the log"""
    rules: tuple[str, ...]


def nights(settings: SimulationSettings, seed: int, rules: MonitorConfig) -> Iterator[Night]:
    """Alerts of every night from FIRST_NIGHT to the end of a simulated log."""
    log = Log.of(settings, seed)
    delivered: list[Delivery] = []
    figures: list[pl.DataFrame] = []
    waiting: list[tuple[int, float, Delivery, pl.DataFrame]] = []
    popularity, promise, before = log.popularity(FIRST_NIGHT), dict[str, Promise](), None
    for day in range(FIRST_NIGHT, settings.num_days + 1):
        if (day - FIRST_NIGHT) % RETRAINED_DAYS == 0:
            popularity, promise = log.popularity(day), promised(log, day, rules.days)
        now = log.end(day)
        due = [own for own in waiting if own[0] <= day]
        waiting = [own for own in waiting if own[0] > day]
        figures += [judged(log, delivery, lists, window) for _, window, delivery, lists in due]
        yield Night(day, tuple(alert.rule for alert in present(log, now, delivered, figures, rules)))
        lists = log.lists(popularity, now)
        made = delivery_of(log, day, lists, before, promise)
        delivered.append(made)
        waiting += [(day + round(window), window, made, lists) for window in rules.days]
        before = lists


def promised(log: Log, day: int, windows: Sequence[float]) -> dict[str, Promise]:
    """Promise of a model trained eight weeks before a day, by window, from the weekly nights since."""
    first = day - 7 * TEST_WEEKS
    popularity, values = log.popularity(first), {window: list[float]() for window in windows}
    for night in range(first, day, 7):
        lists = log.lists(popularity, log.end(night))
        made = delivery_of(log, night, lists, None, {})
        for window in windows:
            values[window].append(
                judged(log, made, lists, window).filter(pl.col("metric") == f"ndcg@{K}")["value"][0]
            )
    return {f"{window:g}": Promise(f"ndcg@{K}", tuple(own)) for window, own in values.items()}


def judged(log: Log, delivery: Delivery, lists: pl.DataFrame, window: float) -> pl.DataFrame:
    """Figures of lists in a window after them, as the stage has them."""
    taken = Taken.after(log.dataset, delivery, window, None)
    outcome = outcomes.judge(log.dataset, lists.lazy(), taken, None)
    return series.figures(outcomes.labelled(outcome, delivery, window, DELIVERED), Bootstrap(2, 0))


def present(
    log: Log, now: int, delivered: Sequence[Delivery], figures: Sequence[pl.DataFrame], rules: MonitorConfig
) -> list[alerts.Alert]:
    """Alerts of a night, all rules."""
    dataset = log.dataset
    table = pl.concat(figures[-30:]) if figures else pl.DataFrame(schema=series.COLUMNS)
    shifts = population.of_days(dataset.histories, log.num_events, now)
    morning = datetime.fromtimestamp(now / 1e6, UTC) + timedelta(hours=4)
    time, kind = dataset.histories.time, dataset.histories.event_type.astype(np.int64)
    return [
        *alerts.of_lists(delivered, rules),
        *alerts.of_reality(table, delivered, rules),
        *alerts.of_types(dataset.event_types, time, kind, now, rules),
        *alerts.of_population(shifts, now, rules),
        *alerts.of_growth(delivered, now, morning, rules),
    ]


def delivery_of(
    log: Log, day: int, lists: pl.DataFrame, before: pl.DataFrame | None, promise: dict[str, Promise]
) -> Delivery:
    """Ledger's entry of lists made at the end of a day."""
    now, users = log.end(day), lists["user_id"].n_unique()
    common = 0 if before is None else len(lists.join(before, on=["user_id", "item_id"]))
    both = 0 if before is None else len(lists.unique("user_id").join(before.unique("user_id"), on="user_id"))
    return Delivery(
        folder=f"{day:016x}",
        delivered_utc=(datetime.fromtimestamp(now / 1e6, UTC) + timedelta(hours=4)).isoformat(),
        log_time=now,
        before=now + 1,
        timed=True,
        features=f"{day:016x}",
        model_version=1,
        bundle_digest="d",
        settings_digest="s",
        k=K,
        exclude_seen=True,
        users=users,
        cold_users=0,
        short_lists=0,
        overlap=common / (K * both) if both else None,
        promise=promise,
    )


def settings_of(num_users: int, live_days: int, drift_day: int = 0) -> SimulationSettings:
    """Log with half an event per user and day, and so many nights with alerts; drift_day: among these, from 1."""
    days = FIRST_NIGHT + live_days
    return SimulationSettings(
        num_users=num_users,
        num_items=600,
        num_events=5 * num_users + num_users * days // 2,
        num_days=days,
        drift_day=FIRST_NIGHT + drift_day if drift_day else 0,
    )


def false_alarms(
    num_users: int, seeds: Iterable[int], live_days: int, rules: MonitorConfig
) -> tuple[int, int, Counter[str]]:
    """(nights, nights with an alert, alerts by rule) of logs without a drift, one per seed."""
    made = [night for seed in seeds for night in nights(settings_of(num_users, live_days), seed, rules)]
    return (
        len(made),
        sum(bool(night.rules) for night in made),
        Counter(rule for night in made for rule in night.rules),
    )


def nights_to_alert(
    num_users: int, seed: int, drift_night: int, rules: MonitorConfig
) -> tuple[int, tuple[str, ...]]:
    """(nights up to the first with an alert about what the lists are made for, from 1; its rules) of a fortnight with a drift.

    A drift that no night of the fortnight shows takes 0 nights. drift_night: the first night after the drift.
    """
    settings = settings_of(num_users, 14, drift_day=drift_night - 1)
    for night in nights(settings, seed, rules):
        number = night.day - FIRST_NIGHT - drift_night + 1
        own = tuple(rule for rule in night.rules if rule.startswith(RIGHT))
        if number > 0 and own:
            return number, own
    return 0, ()
