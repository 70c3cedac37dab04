"""Evaluation report: the typed content of metrics.json."""

import dataclasses
import datetime
import json
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from pydantic import TypeAdapter, ValidationError

from models.evaluation.bootstrap import NO_DIFFERENCE, Difference, PairedDifference
from models.ranking.calibration_quality import CalibrationQuality
from pipeline.artifacts.files import write_json
from pipeline.errors import DamagedArtifact
from pipeline.evaluation.outcome_quality import OutcomeOrders, OutcomeQuality
from pipeline.sections import MODEL

if TYPE_CHECKING:
    from pipeline.dataset.dataset import Dataset
    from pipeline.dataset.protocol import Protocol

FILE = "metrics.json"
_Entry = TypeVar("_Entry")
Values = Mapping[str, float]
"""Metric -> value of one system."""
Intervals = Mapping[str, Sequence[float]]
"""Metric -> [low, high] of one system, 95 % bootstrap over users."""
_KEYS = {"differences": "paired", "cold_targets": "apart", "tuning": "baselines"}
"""Field -> its key in metrics.json, where the two differ."""


class Estimate(NamedTuple):
    """Value of a metric with the ends of its 95 % interval, None where it has none."""

    value: float
    low: float | None
    high: float | None

    def __str__(self) -> str:
        """`0.2100 [0.2000, 0.2200]`."""
        return f"{self.value:.4f}" + ("" if self.low is None else f" [{self.low:.4f}, {self.high:.4f}]")


def _estimate(
    metrics: Mapping[str, Values], intervals: Mapping[str, Intervals], system: str, metric: str
) -> Estimate:
    low, high = intervals[system].get(metric, (None, None))
    return Estimate(metrics[system][metric], low, high)


@dataclass(frozen=True)
class ColdTargets:
    """Targets without a history, or on items without training events."""

    targets: int
    included: bool
    """Whether the report's metrics include them."""
    metrics: Mapping[str, Values]
    """System -> metrics over these targets alone; empty where there are none."""
    metrics_with_them: Mapping[str, Values] | None = None
    """System -> metrics over the report's targets and these."""


@dataclass(frozen=True)
class SubsetMetrics:
    """Metrics of ranks of some targets alone: repeats, or items new to their user."""

    targets: int
    """Items taken: a user-night may have several"""
    metrics: Mapping[str, Values]
    intervals: Mapping[str, Intervals]

    def value(self, system: str, metric: str) -> Estimate:
        """Value and interval of a metric; raises KeyError where it was not measured."""
        return _estimate(self.metrics, self.intervals, system, metric)


@dataclass(frozen=True)
class AmongCandidates(SubsetMetrics):
    """Metrics of ranks among the user's own candidates, of targets that are among them."""

    users: int
    """With such a target"""
    candidates: float
    """Mean number per request"""
    outside: int
    """Items taken by users with candidates that are none of these"""


@dataclass(frozen=True)
class HeldOutDislikes:
    """Held-out dislikes that `dislike_rate@k` averages over."""

    dislikes: int
    users: int
    left_out: Mapping[str, int]
    """Reason -> dislikes of the test that do not count."""


@dataclass(frozen=True)
class Leaks:
    """Leak checks that passed, and shares of events that the protocol leaks by construction."""

    checked: Sequence[str]
    by_construction: Values


@dataclass(frozen=True)
class Tuning:
    """Settings chosen for a baseline, and the grid of settings tried with their validation metrics."""

    settings: Mapping[str, Any]
    grid: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class SecondStageGain:
    """Decision on the second stage, with its metrics and those of retrieval alone where it was trained."""

    used: bool
    setting: str
    """`ranker.use`"""
    reason: str
    metrics: Mapping[str, Values] | None = None
    intervals: Mapping[str, Intervals] | None = None
    paired: Mapping[str, Difference] | None = None
    """Metric -> two stages minus retrieval alone."""


@dataclass(frozen=True)
class NightsTested:
    """Nights of the test at which lists were made."""

    first: str
    """ISO 8601, as `last`"""
    last: str
    number: int
    horizon_days: float
    """Time after each night in which events count"""
    every_days: float

    @classmethod
    def of(cls, protocol: "Protocol", dataset: "Dataset") -> "NightsTested | None":
        """Nights of the test; None where the headline is another kind."""
        if protocol.headline != "nightly":
            return None
        nights = protocol.nights(dataset, "test")
        ends = iso_time(nights.moments[0]), iso_time(nights.moments[-1])
        return cls(*ends, len(nights), protocol.horizon_days, protocol.every_days)


def iso_time(moment: int) -> str:
    """ISO 8601 form of a time in microseconds since the epoch."""
    return datetime.datetime.fromtimestamp(moment / 1e6, datetime.UTC).isoformat()


@dataclass(frozen=True)
class Bounded:
    """A value with the ends of its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class StaleAge:
    """Metric at the night so many days after the first one of the test."""

    days: float
    user_nights: int
    users: int
    model: Bounded
    """The frozen model, histories up to the night"""
    lists: Bounded
    """The frozen lists of the first night, by the same model"""
    popularity: Bounded
    """Popularity counted anew before the night: how hard the night is"""
    lists_minus_model: Difference
    """On the same user-nights"""
    model_change: Difference
    """The model at this night minus at the first"""
    model_change_minus_popularity: Difference
    """That change minus the change of popularity"""


@dataclass(frozen=True)
class Staleness:
    """Metric of a frozen model and of frozen lists by age, the first night (age 0) first."""

    metric: str
    ages: tuple[StaleAge, ...]
    beyond_test: tuple[float, ...] = ()
    """Configured ages, in days, whose horizon ends after the test."""

    @property
    def sentences(self) -> tuple[str, ...]:
        """Advice on training and scoring again: the least age with a loss, or that no loss shows."""
        first, *later = self.ages
        if not later:
            return ("The test holds no later night, so no loss can be measured.",)
        oldest = later[-1].days
        worn = next(
            (age for age in later if age.model_change.high < 0 > age.model_change_minus_popularity.high), None
        )
        old = next((age for age in later if age.lists_minus_model.high < 0), None)
        return (
            f"No loss of a model trained up to {oldest:g} days before shows."
            if worn is None
            else f"Retrain every {worn.days:g} days: after {worn.days:g} days the model has lost "
            f"{_loss(worn.model_change, first.model.value)}.",
            f"No loss of lists up to {oldest:g} days old shows."
            if old is None
            else f"Score again every {old.days:g} days: after {old.days:g} days the lists have lost "
            f"{_loss(old.lists_minus_model, old.model.value)}.",
        )


def _loss(difference: Difference, whole: float) -> str:
    """`12 % (-0.0120, 95 % interval -0.0200 to -0.0040)`."""
    share = f"{-difference.difference / whole:.0%}" if whole else "all"
    return f"{share} ({difference.difference:+.4f}, 95 % interval {difference.low:+.4f} to {difference.high:+.4f})"


@dataclass(frozen=True)
class OffPolicyValue(Bounded):
    """Mean reactions per list that a system would have had, by one estimator."""

    effective_sample: float
    """Kish's size of the weights, in lists."""

    def __str__(self) -> str:
        """`0.6110 [0.5000, 0.7000]`."""
        return str(Estimate(self.value, self.low, self.high))


@dataclass(frozen=True)
class OffPolicyRefused:
    """An estimator without a number."""

    refused: str
    """Reason"""

    def __str__(self) -> str:
        return "refused"


OffPolicyEstimate = OffPolicyValue | OffPolicyRefused
OFF_POLICY_SHOWN = {
    "dm": "predicted reactions",
    "snips_place": "by place",
    "dr_place": "by place, with predictions",
    "snips_cascade": "by the places above",
    "snips_list": "by the whole list",
}
"""Estimators in tables -> their names there; metrics.json has all."""


@dataclass(frozen=True)
class ShownLists:
    """Exposed lists of the test period from which systems are judged."""

    lists: int
    users: int
    places: int
    """First places of a list that count."""
    reactions: float
    """Mean per list of what was shown."""
    clip: float | None
    """Largest weight; None: none is clipped."""
    left_out: Mapping[str, int]
    """Reason -> lists of the test period that do not count."""


@dataclass(frozen=True)
class LearningPoint:
    """Metrics of the model trained on a share of the training users."""

    fraction: float
    users: int
    metrics: Values
    intervals: Intervals


@dataclass(frozen=True)
class Cut:
    """Metrics of every system at one cut of a rolling split."""

    test_from: str | None
    users: int
    targets: int
    metrics: Mapping[str, Values]
    intervals: Mapping[str, Intervals]


@dataclass(frozen=True)
class Rolling:
    """Cuts of a rolling split, earliest first; mean and sample standard deviation of each system's metrics over them."""

    cuts: tuple[Cut, ...]
    mean: Mapping[str, Values]
    spread: Mapping[str, Values]


@dataclass(frozen=True)
class EvaluationReport:
    """Metrics of the model and the baselines on the test targets, with intervals and paired differences."""

    protocol: str
    test_from: str | None
    """Start of the test part, ISO 8601; None for leave-one-out."""
    targets_of_a_user: str
    """`nightly`, `successive` or `first`"""
    ties: str
    users: int
    targets: int
    """Requests: user-nights where the targets are those of nights"""
    targets_left_out: Mapping[str, int]
    """Reason -> test events that are no targets."""
    num_items: int
    exclude_seen: bool
    refit_validation: bool
    resamples: int
    metrics: Mapping[str, Values]
    """System -> metric -> value; metrics undefined for every target are missing."""
    intervals: Mapping[str, Intervals]
    differences: Mapping[str, Mapping[str, PairedDifference]]
    """Baseline -> metric -> model minus baseline."""
    cold_targets: Mapping[str, ColdTargets]
    """`no_history` and `unknown_item`."""
    leaks: Leaks
    tuning: Mapping[str, Tuning]
    """Baseline -> its tuning."""
    not_applicable: Mapping[str, str]
    """Baseline that was not evaluated -> reason."""
    index: Mapping[str, Any]
    """Recall of the index against exact search."""
    ranker: SecondStageGain
    nights: NightsTested | None = None
    """None unless the targets are those of nights."""
    cautions: tuple[str, ...] = ()
    """Reasons why the metrics may mislead, a sentence each."""
    by_targets: Mapping[str, Mapping[str, Values]] | None = None
    """Kind of targets -> system -> metrics, where several kinds are configured."""
    repeats: SubsetMetrics | None = None
    """Targets on items of the user's own history; None without any."""
    new: SubsetMetrics | None = None
    """Targets on items new to the user; None without any."""
    among_candidates: AmongCandidates | None = None
    """None without `score.candidates`, or where no target is among them; without the baseline `gru`."""
    dislikes: HeldOutDislikes | None = None
    """None where no dislike is held out."""
    probability: CalibrationQuality | None = None
    """Quality of the probabilities of delivered items at the nights of the test; None without nights or a ranker in use."""
    outcomes: Mapping[str, OutcomeQuality] | None = None
    """Event type -> quality of its predictions; None without a ranker with heads of outcomes in use."""
    orders: OutcomeOrders | None = None
    """None without outcomes or utilities."""
    stale: Staleness | None = None
    """Metric by age of model and lists; None without `evaluate.stale_days`."""
    off_policy: Mapping[str, Mapping[str, OffPolicyEstimate]] | None = None
    """System -> estimator (`snips_place`) -> mean reactions per list; None without exposures with propensities."""
    off_policy_lists: ShownLists | None = None
    learning_curve: Sequence[LearningPoint] | None = None
    rolling: Rolling | None = None

    @property
    def baselines(self) -> tuple[str, ...]:
        """Systems beside the model."""
        return tuple(name for name in self.metrics if name != MODEL)

    @property
    def systems(self) -> tuple[str, ...]:
        """The model, then the baselines."""
        return (MODEL, *self.baselines)

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Metrics of the model."""
        return tuple(self.metrics[MODEL])

    @property
    def subsets(self) -> dict[str, SubsetMetrics]:
        """Repeats and new items apart; empty without repeats, where the metrics are those of new items."""
        if self.repeats is None:
            return {}
        return {"repeats": self.repeats} | ({} if self.new is None else {"new": self.new})

    @property
    def list_lengths(self) -> tuple[int, ...]:
        """List lengths of the metrics, shortest first."""
        return tuple(sorted({int(name.rpartition("@")[2]) for name in self.metric_names}))

    def value(self, system: str, metric: str) -> Estimate:
        """Value and interval of a metric; raises KeyError where it was not measured."""
        return _estimate(self.metrics, self.intervals, system, metric)

    def paired(self, baseline: str, metric: str) -> PairedDifference:
        """Model minus baseline on the same targets; raises KeyError where it was not measured."""
        return self.differences[baseline][metric]

    def best_baselines(self, metric: str) -> list[str]:
        """Baselines with the metric, highest value first."""
        measured = [name for name in self.baselines if metric in self.metrics[name]]
        return sorted(measured, key=lambda name: -self.metrics[name][metric])

    def with_baselines(self, wanted: Callable[[str], bool]) -> "EvaluationReport":
        """The report without the baselines that are not wanted, as if they had not been evaluated."""
        dropped = {name for name in self.baselines if not wanted(name)}
        return dataclasses.replace(
            self,
            metrics=_without(self.metrics, dropped),
            intervals=_without(self.intervals, dropped),
            differences=_without(self.differences, dropped),
            tuning=_without(self.tuning, dropped),
            off_policy=None if self.off_policy is None else _without(self.off_policy, dropped),
        )

    def save(self, folder: Path) -> None:
        """Write metrics.json into a folder."""
        write_json(folder / FILE, _as_tree(self))

    @classmethod
    def load(cls, path: Path) -> "EvaluationReport":
        """Read metrics.json from an evaluation's folder, or a file; keys that this version does not know are ignored.

        Raises DamagedArtifact where the file is missing, not JSON, or lacks a key.
        """
        file = path / FILE if path.is_dir() else path
        fields = {key: field for field, key in _KEYS.items()}
        try:
            content = json.loads(file.read_text(encoding="utf-8"), object_hook=_present_verdict)
            if isinstance(content, dict):
                content = {fields.get(key, key): value for key, value in content.items()}
            return TypeAdapter(cls).validate_python(content)
        except (OSError, ValueError) as error:
            raise DamagedArtifact(
                f"{file}: is damaged or of another version ({_reason(error)}); "
                "evaluate again with: lookback run evaluate --force --config …"
            ) from None


def _without(by_system: Mapping[str, _Entry], dropped: Set[str]) -> dict[str, _Entry]:
    return {name: entry for name, entry in by_system.items() if name not in dropped}


def _as_tree(content: Any) -> Any:
    """JSON tree of dataclasses, without optional fields that have no value."""
    if dataclasses.is_dataclass(content):
        fields = {field.name: field.default for field in dataclasses.fields(content)}
        values = {name: getattr(content, name) for name in fields}
        content = {
            _KEYS.get(name, name): value
            for name, value in values.items()
            if value is not None or fields[name] is dataclasses.MISSING
        }
    if isinstance(content, Mapping):
        return {key: _as_tree(value) for key, value in content.items()}
    return [_as_tree(value) for value in content] if isinstance(content, list | tuple) else content


def _present_verdict(tree: dict[Any, Any]) -> dict[Any, Any]:
    """A JSON object with the verdict's wording of versions before 0.7 replaced."""
    return tree | {"verdict": NO_DIFFERENCE} if tree.get("verdict") == "can't tell" else tree


def _reason(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
