"""Metrics among users' own candidates (`score.candidates`): how well each system puts a given shortlist in order."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from features.histories.numbering import ItemNumbering
from features.histories.vocabulary import Vocabulary
from models.baselines.co_visitation import MovingCoVisitation
from models.evaluation.ranks import SystemRanks
from models.histories import Histories
from models.recommender import Recommender
from pipeline.artifacts.files import read_json
from pipeline.config import Config
from pipeline.dataset.dataset import Dataset
from pipeline.dataset.item_features import known_by_content
from pipeline.dataset.protocol import Protocol
from pipeline.dataset.targets import RankedTargets
from pipeline.evaluation import metrics_report, ranking
from pipeline.evaluation.evaluated_targets import Evaluation
from pipeline.evaluation.metrics_report import MetricSettings
from pipeline.evaluation.report import AmongCandidates
from pipeline.modelling.recommenders import fixed_settings, kind_of
from pipeline.sections import MODEL
from pipeline.serving import user_files
from pipeline.serving.user_rules import UserRules

RANKS = ("ndcg", "hit_rate", "mrr")
"""Metrics among candidates, each at every `evaluate.k`."""
GRU = "gru"


def measure(
    config: Config,
    path: Path,
    evaluation: Evaluation,
    baselines: Path,
    rank: Callable[[RankedTargets], SystemRanks],
    protocol: Protocol,
) -> AmongCandidates | None:
    """Metrics of every system among candidates in a file; None where no target is among its user's.

    baselines: artifact of that stage, whose systems are fitted again by the settings chosen there. rank: ranks of targets by the
    model. Raises LookbackError for an unusable file.
    """
    targets, num_outside = among(path, evaluation)
    shortlist = targets.histories.shortlist
    assert shortlist is not None
    if not len(targets):
        return None
    ranked = {MODEL: rank(targets)}
    training, learned = _training(config, evaluation.dataset)
    part = ranking.Part(training, learned, targets, evaluation.common)
    for name, facts in read_json(baselines / "baselines.json")["systems"].items():
        if name != GRU:
            ranked[name] = _ranks(config, evaluation.dataset, name, facts["settings"], part, protocol)
    settings = MetricSettings(tuple(config.evaluate.k), config.evaluate.resamples, config.seed)
    found = metrics_report.of_targets(ranked, targets, np.ones(len(targets), bool), settings)
    assert found is not None
    return AmongCandidates(
        found.targets,
        {name: _chosen(values) for name, values in found.metrics.items()},
        {name: _chosen(values) for name, values in found.intervals.items()},
        len(np.unique(targets.user)),
        float(shortlist.lengths.mean()),
        num_outside,
    )


def among(path: Path, evaluation: Evaluation) -> tuple[RankedTargets, int]:
    """Targets among their user's candidates, with those as shortlists, and the number of targets outside.

    Users without candidates have neither.
    """
    dataset, targets = evaluation.dataset, evaluation.targets
    with TemporaryDirectory() as folder:
        own = Path(folder) / "candidates"
        user_files.write("score.candidates", path, dataset.users["user_id"], own)
        rules = UserRules.open(Path(folder), Vocabulary(dataset.items["item_id"], 1))
        limited = rules.applied(targets.user, targets.histories).shortlist
    assert limited is not None
    limited = limited.translate(evaluation.common.new)
    is_limited = limited.is_limited[targets.request]
    of_target = limited.select(targets.request)
    row, item = of_target.pairs()
    is_among = np.zeros(len(targets), bool)
    is_among[row[item == targets.item[row]]] = True
    with_shortlists = replace(targets, histories=replace(targets.histories, shortlist=limited))
    return with_shortlists.select(is_among & is_limited), int((is_limited & ~is_among).sum())


def _training(config: Config, dataset: Dataset) -> tuple[Histories, ItemNumbering]:
    """Training rows in the numbering of what the baselines know, and that numbering, as in the stage `baselines`."""
    training = dataset.training_rows(with_validation=config.train.refit_validation)
    trained, described = dataset.occurring(training), known_by_content(config, dataset)
    learned = ItemNumbering.of_known(trained if described is None else trained | described)
    return training.translate(learned.new), learned


def _ranks(
    config: Config,
    dataset: Dataset,
    name: str,
    settings: Mapping[str, Any],
    part: ranking.Part,
    protocol: Protocol,
) -> SystemRanks:
    """Ranks by a baseline, fitted by given settings on the training, or at nights anew before each where it moves."""
    kind, own = kind_of(name), {**settings, **fixed_settings(config, name)}

    def fit(before: Histories, num_items: int) -> Recommender:
        return kind.fit(before, num_items, own)

    excluded = protocol.exclude_seen
    if protocol.headline == "nightly" and kind.moves:
        moving = MovingCoVisitation(**settings).fit if name == "co_visitation" else fit
        return ranking.rank_nightly(moving, part, dataset, config, exclude_seen=excluded, with_lists=False)
    system = fit(part.training, part.learned.num_items)
    return ranking.rank_all(system, part, config, exclude_seen=excluded, with_lists=False)


def _chosen(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name.partition("@")[0] in RANKS}
