"""Champion gate: paired tests of the evaluated weights decide whether a published version becomes `champion`.

A challenger must beat the best baseline of its own evaluation, or be that baseline, and, where there is a champion, must not be
worse than it by more than a margin, on targets that neither could learn from. Both tests use the lower end of the 95 % bootstrap
interval over users of a paired difference.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from features.histories.numbering import ItemNumbering
from models.device import pick_device
from models.evaluation.bootstrap import Difference
from models.evaluation.comparison import SystemComparison
from models.evaluation.metrics import Float64, metrics_of_ranks
from models.evaluation.ranks import rank_targets
from models.histories import Int32
from pipeline.config import Config
from pipeline.dataset.dataset import Dataset
from pipeline.dataset.evaluation_targets import targets_of
from pipeline.dataset.protocol import Kind, Protocol
from pipeline.dataset.targets import RankedTargets, counted
from pipeline.errors import DamagedArtifact
from pipeline.evaluation import target_words
from pipeline.evaluation.evaluated_model import EvaluatedModel, is_later
from pipeline.evaluation.ranking import FitAsOf, Part, rank_nightly
from pipeline.evaluation.report import EvaluationReport
from pipeline.sections import MODEL, UNPUBLISHED
from pipeline.serving.bundle import DESCRIPTION, read_description, translation
from pipeline.serving.bundle_baseline import baseline_of
from pipeline.tracking.decisions import Decision

CHALLENGER, CHAMPION = "challenger", "champion"
MIN_USERS = 30
"""Users with common targets needed for a difference: an interval over fewer users means nothing."""


@dataclass(frozen=True)
class Champion:
    """Current champion: its version, and the folder of its bundle."""

    version: int
    folder: Path


def decide(
    config: Config, features: Path, evaluate: Path, challenger: Path, champion: Champion | None
) -> Decision:
    """Decide whether a challenger becomes champion.

    features, evaluate: artifacts that the challenger was built from; challenger: folder of its bundle.
    """
    settings = config.evaluate
    figures: dict[str, float | str] = {"metric": settings.gate_metric, "margin": settings.gate_margin}
    report, system = EvaluationReport.load(evaluate), MODEL
    if (challenger / DESCRIPTION).exists():
        system = baseline_of(read_description(challenger, verify=False)) or MODEL
    tests = [against_best_baseline(report, settings.gate_metric, system)]
    if champion is not None:
        tests.append(_against(config, features, challenger, champion))
    for test in tests:
        figures |= test.figures
    failed = [test.message for test in tests if not test.passed]
    reason = "; ".join(failed or [test.message for test in tests])
    return Decision("refused" if failed else "passed" if champion is not None else "first", reason, figures)


@dataclass(frozen=True)
class _Test:
    passed: bool
    message: str
    figures: Mapping[str, float | str] = field(default_factory=dict)


def against_best_baseline(report: EvaluationReport, metric: str, system: str = MODEL) -> _Test:
    """Test that the model beats the baseline with the highest value: its paired interval lies above 0.

    Passes where no baseline was evaluated. A published baseline passes if none that can be published has a higher value, and
    the model is not shown to be better.
    """
    if system != MODEL:
        return _is_best(report, metric, system)
    best = next(iter(report.best_baselines(metric)), None)
    if best is None:
        return _Test(True, "no baseline was evaluated", {"best_baseline": "none"})
    paired = report.paired(best, metric)
    figures: dict[str, float | str] = {
        "best_baseline": best,
        "baseline_difference": paired.difference,
        "baseline_low": paired.low,
        "baseline_high": paired.high,
    }
    better = "better" if paired.low > 0 else "not shown to be better"
    message = f"{better} than {best}, the best baseline: {metric} {_interval(paired)}"
    return _Test(paired.low > 0, message, figures)


def _is_best(report: EvaluationReport, metric: str, system: str) -> _Test:
    """Test that a published baseline is the best system of its evaluation."""
    best = next((name for name in report.best_baselines(metric) if name not in UNPUBLISHED), None)
    figures: dict[str, float | str] = {"system": system, "best_baseline": best or "none"}
    if best is None or report.metrics[system].get(metric) != report.metrics[best][metric]:
        return _Test(False, f"{system} is published, but {best} is the best baseline by {metric}", figures)
    paired = report.paired(system, metric)
    if paired.low > 0:
        return _Test(
            False,
            f"the model is better than {system}, which is published: {metric} {_interval(paired)}",
            figures,
        )
    return _Test(
        True,
        f"{system} is itself the best baseline: {metric} of the model minus its {_interval(paired)}",
        figures,
    )


def _interval(paired: Difference) -> str:
    return f"{paired.difference:+.4f} [{paired.low:+.4f}, {paired.high:+.4f}]"


def _against(config: Config, features: Path, challenger: Path, champion: Champion) -> _Test:
    """Test that the challenger is not worse than the champion by more than the margin."""
    name = f"version {champion.version}, the champion"
    device = pick_device()
    try:
        current = EvaluatedModel.open(champion.folder, device=device)
    except (DamagedArtifact, ValueError, OSError) as error:
        return _Test(False, f"cannot be compared with {name}: {error}")
    own = EvaluatedModel.open(challenger, verify=False, device=device)
    common = common_targets(config, features, own, current)
    figures: dict[str, float | str] = {
        "targets": common.targets.num_requests,
        "users": common.num_users,
        "earlier_targets": common.num_earlier,
        "unknown_to_both": common.num_unknown,
    }
    if common.num_users < MIN_USERS:
        return _Test(
            False,
            f"cannot be compared with {name}: {common.counted} are later than the "
            f"training of both, expected at least {MIN_USERS} users",
            figures,
        )
    models = {CHALLENGER: own, CHAMPION: current}
    ranked = {label: ranks(config, features, model, common.targets) for label, model in models.items()}
    paired, values = _paired(config, ranked, common.targets)
    figures |= {"difference": paired.difference, "low": paired.low, "high": paired.high} | values
    passed = paired.low >= -config.evaluate.gate_margin
    message = (
        f"{'not worse' if passed else 'not shown to be no worse'} than {name}, by more than {config.evaluate.gate_margin:g}: "
        f"{config.evaluate.gate_metric} {_interval(paired)} on {common.counted}"
    )
    return _Test(passed, message, figures)


def _paired(
    config: Config, ranked: Mapping[str, Float64], targets: RankedTargets
) -> tuple[Difference, dict[str, float]]:
    """Challenger minus champion in the gate's metric, and the values of both."""
    settings, metric = config.evaluate, config.evaluate.gate_metric
    length = int(metric.partition("@")[2])
    values = (
        (label, {metric: metrics_of_ranks(rank, (length,), targets.request, targets.num_requests)[metric]})
        for label, rank in ranked.items()
    )
    systems = SystemComparison.of(values, targets.user, settings.resamples, config.seed)
    return systems.paired(CHALLENGER, CHAMPION)[metric], {
        f"{label}_value": systems.values(label)[metric] for label in ranked
    }


@dataclass(frozen=True)
class CommonTargets:
    """Test targets common to two models."""

    targets: RankedTargets
    """In the dataset's numbering; at least one model knows the item and an item of the history."""
    num_earlier: int
    """Excluded: not later than the champion's training data."""
    num_unknown: int
    """Excluded: the item, or the whole history, is unknown to both models."""
    kind: Kind

    @property
    def num_users(self) -> int:
        """Users with a target."""
        return len(np.unique(self.targets.user))

    @property
    def counted(self) -> str:
        """`11,398 user-nights of 9,567 users`, or held-out events."""
        return target_words.counted(self.kind, self.targets.num_requests, self.num_users)


def common_targets(
    config: Config, features: Path, challenger: EvaluatedModel, champion: EvaluatedModel
) -> CommonTargets:
    """Test targets of the challenger that the champion could not learn from either.

    All targets where both were built from the same features; else those later than the user's last event in the champion's
    training data, and not before the champion's own test part began (temporal).
    """
    dataset = Dataset.open(features)
    item_ids = dataset.items["item_id"]
    models, protocol = (challenger, champion), Protocol.of(config, dataset)
    is_known = np.any([translation(model.items, item_ids)[0] > 0 for model in models], axis=0)
    if protocol.headline == "nightly" and any(model.counted is not None for model in models):
        is_known |= ~dataset.under_core()  # counted from the log at each night
    either = ItemNumbering(np.where(is_known, np.arange(len(item_ids) + 1), 0).astype(np.int32))
    targets = targets_of(config, dataset, "test", either)
    later = np.ones(len(targets), bool)
    if challenger.features != champion.features:
        until = champion.trained_until_of(dataset.users["user_id"])
        later = is_later(targets.moment, until[targets.user], champion.trained_until)[targets.request]
    is_counted = counted(targets, cold_users=False, cold_items=protocol.counts_new_items)
    chosen = targets.select(later & is_counted)
    return CommonTargets(chosen, int((~later).sum()), int((later & ~is_counted).sum()), protocol.headline)


def ranks(config: Config, features: Path, model: EvaluatedModel, targets: RankedTargets) -> Float64:
    """Ranks [targets] among the model's items; infinity, a miss, where the item or the whole history is unknown to it."""
    dataset, protocol = Dataset.open(features), Protocol.of(config, Dataset.open(features))
    if model.counted is not None and protocol.headline == "nightly":
        return _ranks_of_nights(config, dataset, model.counted, targets, exclude_seen=protocol.exclude_seen)
    item_ids = dataset.items["item_id"]
    users = dataset.users["user_id"]
    histories = model.translated(targets.histories, item_ids, dataset.event_types, users)
    item: Int32 = translation(model.items, item_ids)[0][targets.item]
    known = (item > 0) & (histories.lengths > 0)[targets.request]
    exclude_seen = protocol.exclude_seen
    rank = np.full(len(targets), np.inf)
    requests, request = np.unique(targets.request[known], return_inverse=True)
    rank[known] = rank_targets(
        model.reading_events(dataset).system(exclude_seen=exclude_seen),
        histories.select(requests),
        item[known],
        1,
        exclude_seen=exclude_seen,
        request=request,
    ).rank
    return rank


def _ranks_of_nights(
    config: Config, dataset: Dataset, counted_on: FitAsOf, targets: RankedTargets, *, exclude_seen: bool
) -> Float64:
    """Ranks [targets] by a baseline counted anew on the events before each night, as in its evaluation."""
    common = ItemNumbering.of_known(~dataset.under_core())
    own = targets.translate(common.new)
    training = dataset.training_rows(with_validation=config.train.refit_validation).translate(common.new)
    part = Part(training, common, own, common)
    ranked = rank_nightly(counted_on, part, dataset, config, exclude_seen=exclude_seen).rank
    return np.where((own.histories.lengths > 0)[own.request], ranked, np.inf)
