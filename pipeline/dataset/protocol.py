"""Evaluation protocol of a configuration on its log: settings left at `auto`, resolved."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from models.histories import Int64
from pipeline.config import Config
from pipeline.dataset.dataset import Dataset
from pipeline.errors import LookbackError

Kind = Literal["nightly", "successive", "first"]
DAY = 86_400_000_000
"""Microseconds."""
TIED_SHARE = 0.2
"""Share of neighbouring events of one visit above which ties are strict."""
REPEATED_SHARE = 0.05
"""Share of repeated events above which seen items are recommended."""
MIN_NIGHTS, MIN_USER_NIGHTS = 3, 500
"""Nights and user-nights with a history that the test holds for `auto` to be nightly."""
HORIZON_DAYS, HORIZON_SHARE = 7, 8
"""Longest automatic horizon, and the part of the test period that it takes at most."""


@dataclass(frozen=True)
class Nights:
    """Nights of a part of the split, and the time after each in which events count."""

    moments: Int64
    """[nights], microseconds since the epoch, ascending: histories end before them"""
    horizon: int
    """Microseconds"""

    def __len__(self) -> int:
        return len(self.moments)


@dataclass(frozen=True)
class Protocol:
    """How a configuration evaluates on its log."""

    kinds: tuple[Kind, ...]
    """Kinds of targets, the headline first."""
    ties: Literal["order", "strict"]
    exclude_seen: bool
    horizon: int
    """Microseconds; 0 unless nightly"""
    every: int
    """Microseconds between nights; 0 unless nightly"""

    @property
    def headline(self) -> Kind:
        """Kind of the targets that training, tuning, gate and report follow."""
        return self.kinds[0]

    @property
    def counts_new_items(self) -> bool:
        """Whether targets on items unseen in training count in the metrics, as misses of systems that do not know them."""
        return self.headline == "nightly"

    @property
    def horizon_days(self) -> float:
        """Horizon, in days."""
        return self.horizon / DAY

    @property
    def every_days(self) -> float:
        """Distance of the nights, in days."""
        return self.every / DAY

    @classmethod
    def of(cls, config: Config, dataset: Dataset) -> "Protocol":
        """Resolve the settings `evaluate.targets`, `horizon_days`, `every_days`, `split.ties` and `exclude_seen` on a log.

        Raises LookbackError where nights are configured and the test period holds none, or ages without nights.
        """
        ties = config.split.ties
        resolved_ties: Literal["order", "strict"] = (
            ties if ties != "auto" else "strict" if dataset.facts.tied_share > TIED_SHARE else "order"
        )
        horizon, every = _distances(config, dataset)
        kinds = _kinds(config, dataset, horizon, every)
        if "nightly" not in kinds:
            horizon = every = 0
        if config.evaluate.stale_days and kinds[0] != "nightly":
            raise LookbackError(
                f"evaluate.stale_days: received {config.evaluate.stale_days}, but the targets are {kinds[0]}; expected those of "
                "nights: set evaluate.targets = 'nightly', or evaluate.stale_days = []"
            )
        return cls(kinds, resolved_ties, excludes_seen(config.exclude_seen, dataset), horizon, every)

    def nights(self, dataset: Dataset, part: str) -> Nights:
        """Nights of the `validation` or `test` part: its first moment, then every `every`, while the horizon lies within it.

        A part shorter than the horizon has one night, whose horizon ends with the part.
        """
        moments = _moments(dataset, part, self.horizon, self.every)
        if len(moments):
            return Nights(moments, self.horizon)
        start, end = period(dataset, part)
        return Nights(np.array([start], np.int64), end - start)

    def nights_of_ages(self, dataset: Dataset, days: Sequence[float]) -> Nights:
        """Nights so many days after the first one of the test, of those whose horizon lies within it, the first always."""
        first, end = self.nights(dataset, "test"), period(dataset, "test")[1]
        moments = first.moments[0] + np.array([round(day * DAY) for day in days], np.int64)
        is_within = (moments + first.horizon <= end) | (moments == first.moments[0])
        return Nights(moments[is_within], first.horizon)


def excludes_seen(setting: bool | Literal["auto"], dataset: Dataset) -> bool:
    """Whether lists leave out items of the history; auto: unless more than `REPEATED_SHARE` of the log's events repeat one."""
    return dataset.facts.repeated_share <= REPEATED_SHARE if setting == "auto" else setting


def _kinds(config: Config, dataset: Dataset, horizon: int, every: int) -> tuple[Kind, ...]:
    """Configured kinds of targets, `auto` resolved."""
    configured = config.evaluate.targets
    kinds = configured if isinstance(configured, list) else [configured]
    if "nightly" in kinds:
        _check_nights(dataset, horizon)
    automatic: Kind = "successive"
    if "auto" in kinds and _has_enough(dataset, Nights(_moments(dataset, "test", horizon, every), horizon)):
        automatic = "nightly"
    return tuple(dict.fromkeys(automatic if kind == "auto" else kind for kind in kinds))


def period(dataset: Dataset, part: str) -> tuple[int, int]:
    """Start and end of a part of a temporal split, microseconds since the epoch.

    The test ends with the newest regular event, or with its day where the log knows only dates.
    """
    split = dataset.split
    assert split.validation_from is not None
    assert split.test_from is not None
    if part == "validation":
        return split.validation_from, split.test_from
    newest = dataset.facts.now + dataset.facts.resolution
    end = newest if split.test_until is None else min(newest, split.test_until)
    return split.test_from, max(end, split.test_from)


def _distances(config: Config, dataset: Dataset) -> tuple[int, int]:
    """Horizon and distance of nights, microseconds; zeros without a temporal split."""
    if dataset.split.protocol != "temporal":
        return 0, 0
    settings, (start, end) = config.evaluate, period(dataset, "test")
    eighth = (end - start) // (HORIZON_SHARE * DAY)
    automatic = max(1, min(HORIZON_DAYS, eighth))
    days = automatic if settings.horizon_days == "auto" else settings.horizon_days
    every = days if settings.every_days == "auto" else settings.every_days
    return round(days * DAY), round(every * DAY)


def _moments(dataset: Dataset, part: str, horizon: int, every: int) -> Int64:
    """[nights] moments from which a whole horizon lies within the part."""
    if not every:
        return np.zeros(0, np.int64)
    start, end = period(dataset, part)
    return np.arange(start, end - horizon + 1, every, dtype=np.int64)


def _check_nights(dataset: Dataset, horizon: int) -> None:
    if dataset.split.protocol != "temporal":
        raise LookbackError(
            f"evaluate.targets: received 'nightly' with split.protocol {dataset.split.protocol!r}, expected 'temporal': "
            "nights need a common time; or set evaluate.targets = 'successive'"
        )
    start, end = period(dataset, "test")
    if end - start < horizon:
        raise LookbackError(
            f"evaluate.horizon_days: received {horizon / DAY:g}, but the test lasts {(end - start) / DAY:.2g} days; expected "
            "a horizon within it: lower evaluate.horizon_days, raise split.test_fraction, or set evaluate.targets = 'successive'"
        )


def _has_enough(dataset: Dataset, nights: Nights) -> bool:
    """Whether the nights hold enough user-nights with a history and an event in the horizon."""
    if len(nights) < MIN_NIGHTS:
        return False
    number = 0
    for moment in nights.moments.tolist():
        before = first_at(dataset, moment)
        after = first_at(dataset, moment + nights.horizon)
        active = (after > before) & (before > dataset.histories.offsets[:-1]) & dataset.split.kept_user
        number += int(np.count_nonzero(active))
        if number >= MIN_USER_NIGHTS:
            return True
    return False


def first_at(dataset: Dataset, moment: int) -> Int64:
    """[num_users] flat position of each user's first event at or after a moment."""
    return dataset.histories.first_at(moment)
