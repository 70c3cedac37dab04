"""What the lists of each system would have earned where the log says what was shown, and how probable it was."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np

from features.histories.numbering import ItemNumbering
from models.evaluation import off_policy
from models.evaluation.off_policy import DIRECT, LoggedLists
from models.evaluation.place_marginals import place_marginals
from models.evaluation.predicted_reactions import PredictedReactions
from models.evaluation.ranks import SystemRanks
from models.histories import Int32
from pipeline.config import Config
from pipeline.dataset.dataset import Dataset
from pipeline.dataset.exposed_lists import FOLDER, ExposedLists, predicted_reactions
from pipeline.dataset.targets import RankedTargets
from pipeline.evaluation import ranking
from pipeline.evaluation.report import (
    EvaluationReport,
    OffPolicyEstimate,
    OffPolicyRefused,
    OffPolicyValue,
    ShownLists,
)

CLIP: Final = None
"""Largest weight: none is clipped, since clipped estimates are biased by an unknown amount."""
NO_PREDICTION: Final = "no exposures with a rank before the test to predict reactions from"


def with_estimates(
    report: EvaluationReport,
    config: Config,
    dataset: Dataset,
    baselines: Path,
    rank: Callable[[RankedTargets, ItemNumbering], Mapping[str, SystemRanks]],
) -> EvaluationReport:
    """The report with estimates of each system's mean reactions per list, where there are exposures to judge by.

    Every system shows its best items, without draws, as many as were shown. baselines: artifact of that stage; rank: lists of
    the model's systems for requests in a numbering of items.
    """
    exposed = ExposedLists.of(config, dataset)
    if exposed is None:
        return report
    assert config.exposures is not None
    places = exposed.item.shape[1]
    about = ShownLists(
        len(exposed),
        len(np.unique(exposed.user)),
        places,
        float(exposed.is_taken.sum() / max(len(exposed), 1)),
        CLIP,
        dict(exposed.left_out),
    )
    if not len(exposed):
        return replace(report, off_policy_lists=about)
    folder = baselines / FOLDER
    common = ItemNumbering.load(folder / "items.npy")
    ranked = {
        **rank(exposed.requests(dataset, common), common),
        **{name: ranking.load(folder, name) for name in report.baselines},
    }
    predicted = predicted_reactions(dataset, places, config.exposures.window)
    found = {
        system: _estimates(
            config, logged_lists(exposed, own.lists[exposed.request, :places], common, predicted), predicted
        )
        for system, own in ranked.items()
    }
    return replace(report, off_policy=found, off_policy_lists=about)


def logged_lists(
    exposed: ExposedLists, lists: Int32, common: ItemNumbering, predicted: PredictedReactions | None
) -> LoggedLists:
    """The exposed lists beside those that a system would have shown [n, k]: probability 1 where they agree, else 0.

    The marginal probability of the log is computed where it counts, at places that agree.
    """
    is_shown = exposed.is_shown
    is_same = (common.new[exposed.item] == lists) & (lists > 0)
    evaluated = np.where(is_shown, is_same, 1).astype(np.float64)
    logging = np.where(is_shown, exposed.propensity, 1)
    marginal = logging.copy()
    row, place = np.nonzero(is_same)
    marginal[row, place] = place_marginals(exposed.propensity, row, place)
    rates = np.zeros((2, *lists.shape))
    if predicted is not None:
        instead = common.inverse().new[lists]
        rates = np.where(is_shown, np.stack([predicted.of(exposed.item), predicted.of(instead)]), 0)
    return LoggedLists(
        reward=exposed.is_taken.astype(np.float64),
        logging=logging,
        evaluated=evaluated,
        logging_marginal=marginal,
        evaluated_marginal=evaluated,
        predicted=rates[0],
        expected=rates[1],
        user=np.unique(exposed.user, return_inverse=True)[1],
    )


def _estimates(
    config: Config, lists: LoggedLists, predicted: PredictedReactions | None
) -> dict[str, OffPolicyEstimate]:
    """Estimates by name; of those that need predictions a refusal where there are none."""
    settings = config.evaluate
    found = off_policy.estimates(
        lists,
        clip=CLIP,
        min_effective_sample=settings.min_effective_sample,
        num_resamples=settings.resamples,
        seed=config.seed,
    )
    by_name: dict[str, OffPolicyEstimate] = {}
    for name, own in found.items():
        if predicted is None and (name == DIRECT or name.startswith("dr_")):
            by_name[name] = OffPolicyRefused(NO_PREDICTION)
        elif isinstance(own, off_policy.Refused):
            by_name[name] = OffPolicyRefused(own.reason)
        else:
            by_name[name] = OffPolicyValue(own.value, own.low, own.high, own.effective_sample)
    return by_name
