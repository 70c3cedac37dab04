"""Read-out of an experiment: realised metrics by arm, differences from the first arm, sample ratio, and the planned end.

One metric in one window decides, once, on the nights that were planned: looking every night would call more differences than
the level allows, and so would more metrics (Kohavi, Tang & Xu 2020, chapter 17).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import polars as pl

from models.evaluation.comparison import SystemComparison
from models.evaluation.power import POWER
from pipeline.experiment_section import ExperimentConfig
from pipeline.monitoring import past_nights
from pipeline.monitoring.alerts import Alert
from pipeline.monitoring.ledger import Delivery
from pipeline.monitoring.past_nights import night_times, spaced, values_of
from pipeline.monitoring.series import COMPARED, Bootstrap
from pipeline.sections import DELIVERED

DECIDING = "ndcg"
"""Metric whose difference is planned for and judged, in the shortest window."""
RATIO_LEVEL = 0.001
"""Level below which the sample ratio is not what was asked (Fabijan et al. 2019, Kohavi, Tang & Xu 2020, chapter 21)."""
MIN_EXPECTED = 5
"""Users expected in each arm from which the chi-square test holds."""


@dataclass(frozen=True)
class Plan:
    """Planned size of an experiment, from the variance of past nights."""

    nights: int | None
    """None: no number of nights shows the effect"""
    effect: float
    """Difference in the deciding metric that shows with 80 % power"""
    users: int
    nights_before: int
    """Nights before the experiment that the variance is of; 0: of its own first nights, all arms together"""


@dataclass(frozen=True)
class ArmRow:
    """Realised metric of an arm over the experiment's nights, in one window."""

    window_days: float
    metric: str
    arm: str
    users: int
    """Users who took something in the window of any night"""
    value: float
    """Mean over user-nights, 0 for users without a list"""
    low: float
    high: float
    difference: float | None = None
    """Minus the first arm; None for the first"""
    difference_low: float | None = None
    difference_high: float | None = None
    p_holm: float | None = None
    """Bootstrap over users, adjusted for the number of arms (Holm 1979)"""
    verdict: str | None = None
    """Of the deciding metric after the planned end"""


@dataclass(frozen=True)
class Readout:
    """State of an experiment."""

    name: str
    metric: str
    """The deciding one"""
    window_days: float
    nights: int
    """Judged nights, the planned ones at most"""
    versions: Mapping[str, Sequence[int | None]]
    """Arm to the versions that made its lists; a baseline's is null"""
    plan: Plan | None
    """None before two judged nights"""
    sample_ratio_p: float | None
    """Chi-square test that the arms' active users are as asked; None for too few"""
    rows: Sequence[ArmRow]

    @property
    def is_skewed(self) -> bool:
        """Whether the arms have other shares of the active users than asked for."""
        return self.sample_ratio_p is not None and self.sample_ratio_p < RATIO_LEVEL

    @property
    def sentence(self) -> str:
        """Verdict, or the reason why there is none yet."""
        plan = self.plan
        if plan is None:
            return "no verdict yet: its nights are planned after two judged ones"
        difference = f"a difference of {plan.effect:.4f} in {self.metric}"
        if plan.nights is None:
            return (
                f"no verdict: with {plan.users:,} users no number of nights shows {difference}; raise "
                "experiment.smallest_effect, and see lookback power"
            )
        if self.nights < plan.nights:
            shown = f"with which {difference} shows with {POWER:.0%} power"
            return f"no verdict before the planned end: {self.nights} of {plan.nights} nights, {shown}"
        if self.is_skewed:
            return "no verdict: the arms do not have the users asked for"
        verdicts = ", ".join(f"{row.arm}: {row.verdict}" for row in self.rows if row.verdict is not None)
        return f"after the planned {plan.nights} nights in {self.metric}, {verdicts}"

    @property
    def cautions(self) -> list[str]:
        """Arms whose model changed in the middle."""
        return [
            f"{arm} was made by several models: versions {', '.join(map(str, versions))}"
            for arm, versions in self.versions.items()
            if len(versions) > 1
        ]

    def alerts(self, night: str) -> list[Alert]:
        """Alert about the sample ratio; night: of the newest lists, ISO 8601."""
        if not self.is_skewed or self.sample_ratio_p is None:
            return []
        counts = ", ".join(f"{row.arm} {row.users:,}" for row in self.rows if self._decides(row))
        text = (
            f"the arms of {self.name!r} have active users {counts}: by chance with p = {self.sample_ratio_p:.1g}; "
            "find out why before its differences are believed (lists that did not arrive, robots, an arm that changes who "
            "is active)"
        )
        return [Alert("sample_ratio", night, self.sample_ratio_p, RATIO_LEVEL, text)]

    def _decides(self, row: ArmRow) -> bool:
        return row.metric == self.metric and row.window_days == self.window_days

    def as_json(self) -> dict[str, object]:
        """The read-out with its sentence and cautions as a JSON object."""
        return {**asdict(self), "sentence": self.sentence, "cautions": self.cautions}


def of_experiment(entered: Sequence[Delivery], settings: ExperimentConfig) -> list[Delivery]:
    """Deliveries that the experiment of this name made."""
    return [
        delivery
        for delivery in entered
        if delivery.experiment is not None and delivery.experiment.name == settings.name
    ]


def read_out(
    outcomes: pl.DataFrame, entered: Sequence[Delivery], settings: ExperimentConfig, bootstrap: Bootstrap
) -> Readout | None:
    """Read out an experiment from the outcomes of its nights; None before the first judged one.

    All lists are those of the newest length. From the planned end on later nights change nothing.
    """
    runs = {
        delivery.folder: delivery.experiment
        for delivery in of_experiment(entered, settings)
        if delivery.experiment is not None
    }
    own = outcomes.filter(pl.col("folder").is_in(list(runs)) & pl.col("arm").is_not_null())
    if own.is_empty():
        return None
    k, days = int(own.sort("log_time")["k"][-1]), float(own["window_days"].min())  # type: ignore[arg-type]
    own = own.filter(pl.col("k") == k)
    shares = list(runs.values())[-1].shares
    plan = _plan(outcomes, own, settings.smallest_effect, shares, k)
    nights = spaced(night_times(own.filter(pl.col("window_days") == days)), days)
    planned = None if plan is None else plan.nights
    is_over = planned is not None and len(nights) >= planned
    if is_over:
        nights = nights[:planned]
        own = own.filter(pl.col("log_time").dt.timestamp("us") <= nights[-1])
    p_value = sample_ratio(own.filter(pl.col("window_days") == days), shares)
    has_verdict = is_over and (p_value is None or p_value >= RATIO_LEVEL)
    deciding = (f"{DECIDING}@{k}", days) if has_verdict else None
    rows = [
        row
        for window in own["window_days"].unique().sort()
        for row in _rows(own.filter(pl.col("window_days") == window), list(shares), k, deciding, bootstrap)
    ]
    versions: dict[str, list[int | None]] = {
        arm: list(
            dict.fromkeys(
                part.model_version for run in runs.values() for part in run.arms if part.name == arm
            )
        )
        for arm in shares
    }
    return Readout(settings.name, f"{DECIDING}@{k}", days, len(nights), versions, plan, p_value, rows)


def _plan(
    outcomes: pl.DataFrame, own: pl.DataFrame, smallest_effect: float, shares: Mapping[str, float], k: int
) -> Plan | None:
    """Nights that an effect (a share of the metric) needs with every arm, planned on nights that no verdict is about to change.

    The variance is that of the nights before the experiment; without two of them of its first two nights, blind to the arms
    (Gould & Shih 1992).
    """
    earlier = outcomes.filter((pl.col("system") == DELIVERED) & (pl.col("log_time") < own["log_time"].min()))
    past, nights_before = past_nights.of_outcomes(earlier, DECIDING, k), 0
    if past is not None:
        nights_before = past.variance.nights
    else:
        days = float(own["window_days"].min())  # type: ignore[arg-type]
        first = spaced(night_times(own.filter(pl.col("window_days") == days)), days)[: past_nights.MIN_NIGHTS]
        past = past_nights.of_outcomes(
            own.filter(pl.col("log_time").dt.timestamp("us").is_in(first)), DECIDING, k
        )
    if past is None:
        return None
    variance, effect = past.variance, smallest_effect * past.variance.mean
    first_share, *others = shares.values()
    needed = [
        variance.nights_needed(
            effect, variance.users * (first_share + share), share / (first_share + share), len(others)
        )
        for share in others
    ]
    nights = None if None in needed else max(number for number in needed if number is not None)
    return Plan(nights, effect, variance.users, nights_before)


def sample_ratio(outcomes: pl.DataFrame, shares: Mapping[str, float]) -> float | None:
    """Pearson's chi-square test of the arms' numbers of users against the shares asked for: p; None where few are expected."""
    counts = dict(outcomes.group_by("arm").agg(pl.col("user_id").n_unique()).iter_rows())
    observed = np.array([counts.get(arm, 0) for arm in shares])
    expected = np.array(list(shares.values())) / sum(shares.values()) * observed.sum()
    if expected.min() < MIN_EXPECTED:
        return None
    from scipy.stats import chisquare

    return float(chisquare(observed, expected).pvalue)


def _rows(
    outcomes: pl.DataFrame,
    arms: Sequence[str],
    k: int,
    deciding: tuple[str, float] | None,
    bootstrap: Bootstrap,
) -> Iterator[ArmRow]:
    """Metrics of all arms in one window, resampled by whole users; deciding: metric and window with a verdict.

    Each arm is a system whose value is missing for the users of the others, so that one bootstrap over all users has the
    arms' differences.
    """
    outcomes = outcomes.sort("log_time", "user_id")
    names = [f"{name}@{k}" for name in COMPARED]
    values = {name: values_of(outcomes, name) for name in names}
    arm = outcomes["arm"].to_numpy()
    user = outcomes["user_id"].rank("dense").to_numpy().astype(np.int64)
    systems = (
        (own, {name: np.where(arm == own, value, np.nan) for name, value in values.items()}) for own in arms
    )
    compared = SystemComparison.of(systems, user, bootstrap.resamples, bootstrap.seed)
    differences = compared.compared(arms[0])
    days = float(outcomes["window_days"][0])
    for name in names:
        for own in arms:
            low, high = compared.intervals(own)[name]
            number = len(np.unique(user[arm == own]))
            row = ArmRow(days, name, own, number, compared.values(own)[name], low, high)
            if own == arms[0]:
                yield row
                continue
            one = differences[own][name].reversed()
            verdict = one.verdict if deciding == (name, days) else None
            yield replace(
                row,
                difference=one.difference,
                difference_low=one.low,
                difference_high=one.high,
                p_holm=one.p_bootstrap_holm,
                verdict=verdict,
            )
