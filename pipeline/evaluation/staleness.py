"""Metric of a frozen model with histories up to date, and of frozen lists, by age in days, on the targets of nights."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from models.baselines.popularity import Popularity
from models.evaluation.bootstrap import Difference, interval, paired_difference
from models.evaluation.comparison import SystemComparison
from models.evaluation.metrics import Float64, metrics_of_ranks
from models.evaluation.ranks import SystemRanks
from models.histories import Histories
from models.recommender import Recommender
from pipeline.config import Config
from pipeline.dataset.dataset import Dataset, rows
from pipeline.dataset.evaluation_targets import targets_of
from pipeline.dataset.leak_checks import check_targets
from pipeline.dataset.protocol import DAY, Protocol, first_at
from pipeline.dataset.targets import RankedTargets, counted
from pipeline.evaluation.metrics_report import MetricSettings
from pipeline.evaluation.ranking import Part, rank_nightly
from pipeline.evaluation.report import Bounded, StaleAge, Staleness

MODEL, LISTS, POPULARITY = "model", "lists", "popularity"


def measure(
    config: Config,
    dataset: Dataset,
    part: Part,
    rank: Callable[[RankedTargets], SystemRanks],
    settings: MetricSettings,
) -> Staleness:
    """Measure NDCG at the shortest list by `evaluate.stale_days`.

    rank: ranks of targets (in the numbering `part.common`) by the system that is evaluated. Ages without targets are left out.
    """
    protocol, days = Protocol.of(config, dataset), config.evaluate.stale_days
    nights = protocol.nights_of_ages(dataset, days)
    trained = dataset.occurring(dataset.training_rows(with_validation=config.train.refit_validation))
    every = targets_of(config, dataset, "test", part.common, trained=trained, kind="nightly", nights=nights)
    targets = every.select(counted(every, cold_users=config.evaluate.cold_users, cold_items=True))
    check_targets(targets, dataset, part.common, ties="strict")
    frozen = as_of(targets, dataset, part, int(nights.moments[0]))
    fresh = replace(part, targets=targets)
    ranked = {
        MODEL: rank(targets),
        LISTS: rank(frozen),
        POPULARITY: rank_nightly(_popularity, fresh, dataset, config, exclude_seen=protocol.exclude_seen),
    }
    ages = (targets.moment - nights.moments[0]) / DAY
    values = {name: own.rank for name, own in ranked.items()}
    beyond = tuple(day for day in days if round(day * DAY) + nights.moments[0] not in nights.moments)
    return Staleness(f"ndcg@{settings.list_length}", by_age(values, targets, ages, settings), beyond)


def as_of(targets: RankedTargets, dataset: Dataset, part: Part, moment: int) -> RankedTargets:
    """The targets with histories that end before `moment`, and requests made then."""
    starts = np.asarray(dataset.histories.offsets[:-1])[targets.user]
    frozen = rows(dataset.histories, starts, first_at(dataset, moment)[targets.user])
    frozen = replace(frozen, request_time=np.full(targets.num_requests, moment, np.int64))
    return replace(targets, histories=frozen.translate(part.common.new))


def by_age(
    ranks: dict[str, Float64], targets: RankedTargets, ages: Float64, settings: MetricSettings
) -> tuple[StaleAge, ...]:
    """Metric of each system by age, youngest first.

    ranks: [targets] of `MODEL`, `LISTS`, `POPULARITY`; ages: [requests], in days.
    """
    days, k = np.unique(ages), settings.list_length

    def at_ages(rank: Float64) -> dict[str, Float64]:
        value = metrics_of_ranks(rank, (k,), targets.request, targets.num_requests)[f"ndcg@{k}"]
        return {f"{day:g}": np.where(ages == day, value, np.nan) for day in days}

    systems = SystemComparison.of(
        ((name, at_ages(rank)) for name, rank in ranks.items()),
        targets.user,
        settings.resamples,
        settings.seed,
    )
    columns = range(len(days))  # those over user-nights; means over users follow
    lows, highs = interval(systems.resampled[:, :, : len(days)].reshape(len(systems.resampled), -1))
    ends = np.stack([lows, highs]).reshape(2, len(ranks), len(days))
    row = {name: place for place, name in enumerate(systems.systems)}

    def bounded(name: str, age: int) -> Bounded:
        low, high = ends[:, row[name], age]
        return Bounded(float(systems.means[row[name], age]), float(low), float(high))

    def difference(*terms: tuple[int, str, int]) -> Difference:
        """Sum of signed values, each (sign, system, age)."""
        total = sum(sign * float(systems.means[row[name], age]) for sign, name, age in terms)
        drawn = np.sum([sign * systems.resampled[:, row[name], age] for sign, name, age in terms], axis=0)
        return paired_difference(total, drawn)

    def of(age: int) -> StaleAge:
        is_own = ages == days[age]
        change = ((1, MODEL, age), (-1, MODEL, 0))
        return StaleAge(
            float(days[age]),
            int(is_own.sum()),
            len(np.unique(targets.user[is_own])),
            model=bounded(MODEL, age),
            lists=bounded(LISTS, age),
            popularity=bounded(POPULARITY, age),
            lists_minus_model=difference((1, LISTS, age), (-1, MODEL, age)),
            model_change=difference(*change),
            model_change_minus_popularity=difference(*change, (-1, POPULARITY, age), (1, POPULARITY, 0)),
        )

    return tuple(of(age) for age in columns)


def _popularity(histories: Histories, num_items: int) -> Recommender:
    return Popularity.fit(histories, num_items)
