"""Outcomes learned together and alone: Deskdrop's views, likes, bookmarks and follows, at nights.

python tests/benchmarks/bench_outcomes.py [--config FILE] [--lists N] [--seeds N] [--set key=value]…

--lists: for training, and twice as many for calibration, three times for the test, at most. The default is a try of some minutes;
--lists 4000 is the whole.

The second stage is trained N times on the nights of the validation with the heads of all outcomes, and once more per outcome
with its head alone, without the ranking loss. Each is calibrated on the held-out users, and predicts every candidate of the same
lists at the nights of the test. Prints Markdown tables with 95 % bootstrap intervals over users: the log loss of each head
together, alone, and of the type's base rate, with paired differences; then utility and NDCG of both orders of the lists. The
encoder is trained once, for a few epochs. Artifacts go to a temporary folder; the data is looked for in LOOKBACK_SHARED_DATA.
"""

import argparse
import copy
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from features.histories.numbering import ItemNumbering  # noqa: E402
from models.encoder.encoder import AttentionRecommender  # noqa: E402
from models.evaluation.comparison import SystemComparison  # noqa: E402
from models.evaluation.metrics import Float64  # noqa: E402
from models.histories import Float32  # noqa: E402
from models.ranking import training  # noqa: E402
from models.ranking.calibration_quality import MIN_PROBABILITY, quality  # noqa: E402
from models.ranking.features import ItemStatistics  # noqa: E402
from models.ranking.outcomes import MIN_POSITIVES, OutcomeLabels  # noqa: E402
from models.ranking.predictions import Predictions, calibrate_outcomes, predict  # noqa: E402
from models.ranking.ranker import Lists, Ranker, SecondStage  # noqa: E402
from models.ranking.training import Retrieved, fit_ranker  # noqa: E402
from models.ranking.two_stage import TwoStage  # noqa: E402
from pipeline.config import Config  # noqa: E402
from pipeline.dataset.dataset import Dataset  # noqa: E402
from pipeline.dataset.protocol import Protocol  # noqa: E402
from pipeline.evaluation import held_out_candidates, outcome_metrics  # noqa: E402
from pipeline.evaluation.metrics_report import MetricSettings  # noqa: E402
from pipeline.evaluation.new_items import with_described_items, with_unlearned_items  # noqa: E402
from pipeline.evaluation.outcome_metrics import HeldOutLists  # noqa: E402
from pipeline.evaluation.outcome_quality import OutcomeOrders  # noqa: E402
from pipeline.evaluation.report import Estimate  # noqa: E402
from pipeline.modelling.trainer import Trainer  # noqa: E402
from pipeline.stages import rank  # noqa: E402
from tests.benchmarks.bench_dislikes import features_of  # noqa: E402

SHARED = Path(os.environ.get("LOOKBACK_SHARED_DATA", ROOT.parent / "shared" / "data")) / "deskdrop"
SETTINGS = (
    "tracking.enabled=false",
    "train.epochs=4",
    "train.refit_validation=false",  # the ranker's encoder must not know its nights
    "ranker.candidates=30",
    "ranker.max_length=20",
    "ranker.epochs=8",
    "ranker.batch_lists=64",
    "ranker.learning_rate=0.002",
)
TOGETHER, ALONE, BASE = "together", "alone", "base rate"
RESAMPLES = 1000


class Cached(SecondStage):
    """Second stage whose inputs of some lists are computed once, for any weights."""

    def __init__(self, stage: SecondStage, lists: Retrieved) -> None:
        super().__init__(stage.ranker, stage.statistics, stage.own)
        self.inputs = lists.histories, lists.items, lists.scores
        self.parts = list(stage.batches(*self.inputs))

    def batches(self, *_: Any) -> Iterator[tuple[slice, Lists]]:
        """The parts as computed."""
        return iter(self.parts)

    def of(self, ranker: Ranker) -> "Cached":
        """The same lists by another ranker."""
        self.ranker = ranker.eval()
        return self


def some(lists: Retrieved, most: int) -> Retrieved:
    """At most so many random lists."""
    chosen = np.random.default_rng(0).permutation(len(lists))[:most]
    return lists.select(np.sort(chosen))


@dataclass(frozen=True)
class Trained:
    """Second stage and its lists for training, without heads."""

    stage: SecondStage
    retrieved: Retrieved
    recommender: AttentionRecommender
    numbering: ItemNumbering
    statistics: ItemStatistics
    """Over the whole log"""

    def tested(self, stage: SecondStage) -> SecondStage:
        """A second stage at the nights of the test."""
        return SecondStage(stage.ranker, self.statistics, stage.own)


def prepared(config: Config, dataset: Dataset, folder: Path) -> Trained:
    """Encoder of the training part, and the lists of the validation."""
    fitted = Trainer(config, dataset, folder / "checkpoints").fit_split()
    encoder = fitted.result.model.eval()
    ctx = SimpleNamespace(config=config, dataset=dataset, protocol=Protocol.of(config, dataset))
    lists = rank._prepared(cast("Any", ctx), encoder, fitted.numbering)
    stage, retrieved = lists.stage, lists.retrieved
    recommender, numbering = with_described_items(AttentionRecommender(encoder), dataset, fitted.numbering)
    numbering = with_unlearned_items(numbering, dataset)
    statistics = stage.counting(dataset.all_rows().translate(numbering.new)).statistics
    return Trained(stage, retrieved, recommender, numbering, statistics)


@contextmanager
def without_ranking_loss() -> Iterator[None]:
    """Training of the heads alone."""
    own = training._ranking_loss
    training._ranking_loss = lambda scores, *_: scores.new_zeros(())
    try:
        yield
    finally:
        training._ranking_loss = own


def fitted(
    trained: Trained, types: list[str], seed: int, held: Cached | None, most: int, *, alone: bool
) -> tuple[Ranker, Cached]:
    """Ranker with calibrated heads of some outcomes, from its first weights, and the lists that calibrate it."""
    outcomes = trained.retrieved.outcomes
    assert outcomes is not None
    stage, retrieved = (
        copy.deepcopy(trained.stage),
        replace(trained.retrieved, outcomes=outcomes.of_types(types)),
    )
    stage.ranker.add_outcomes(types, ())
    stage.ranker.settings = replace(stage.ranker.settings, max_lists=most)
    if alone:
        with without_ranking_loss():
            fit = fit_ranker(stage, retrieved, seed)
    else:
        fit = fit_ranker(stage, retrieved, seed)
    held_out = some(retrieved.select(fit.held_out), 2 * most)
    assert held_out.outcomes is not None
    held = Cached(stage, held_out) if held is None else held
    calibrate_outcomes(held.of(stage.ranker), *held.inputs, held_out.outcomes)
    print(
        f"{', '.join(types)}: epoch {fit.best_epoch} of {fit.history[-1].epoch}", file=sys.stderr, flush=True
    )
    return stage.ranker, held


def log_losses(probability: Float32, labels: OutcomeLabels, place: int, there: Any) -> Float64:
    """[requests] mean log loss over a list's candidates."""
    clipped = np.clip(probability.astype(np.float64), MIN_PROBABILITY, 1 - MIN_PROBABILITY)
    done = labels.done[..., place]
    known = there & np.isfinite(done)
    losses = np.where(known, -np.log(np.where(done == 1, clipped, 1 - clipped)), 0.0)
    return np.asarray(losses.sum(1) / np.maximum(known.sum(1), 1))


def row_of(
    name: str,
    joint: list[Float32],
    single: list[Float32],
    labels: OutcomeLabels,
    lists: HeldOutLists,
    seed: int,
) -> str:
    """Row of the table of one outcome. joint, single: its probabilities [requests, candidates] by seed."""
    place = labels.types.index(name)
    there = lists.retrieved.items > 0
    known = there & np.isfinite(labels.done[..., place])
    done = labels.done[known, place] == 1
    base = np.full(there.shape, done.mean(), np.float32)
    parts = {TOGETHER: joint, ALONE: single, BASE: [base]}
    values = {
        system: {"log_loss": np.mean([log_losses(one, labels, place, there) for one in own], 0)}
        for system, own in parts.items()
    }
    compared = SystemComparison.of(values.items(), lists.retrieved.user, RESAMPLES, seed)
    against = [compared.paired(TOGETHER, other)["log_loss"] for other in (ALONE, BASE)]
    cells = [name, f"{done.sum():,}"]
    for own in (joint, single):
        measured = [quality(one[known], done) for one in own]
        cells.append(f"{np.mean([float(part.auc or 0) for part in measured]):.4f}")
    cells += [f"{1000 * compared.values(system)['log_loss']:.3f}" for system in parts]
    cells += [
        f"{1000 * part.difference:+.3f} [{1000 * part.low:+.3f}, {1000 * part.high:+.3f}]" for part in against
    ]
    errors = [quality(one[known], done).calibration_error for one in joint]
    return f"| {' | '.join([*cells, f'{1000 * np.mean(errors):.2f}'])} |"


def show_orders(orders: OutcomeOrders) -> None:
    """Print utility and NDCG of both orders."""
    names = list(orders.paired)
    print(f"\n{orders.requests:,} user-nights with something taken, of {orders.users:,} users\n")
    print(f"| order | {' | '.join(names)} |\n| --- |{' --- |' * len(names)}")
    for order, own in orders.metrics.items():
        print(
            f"| {order} | {' | '.join(str(Estimate(own[name], *orders.intervals[order][name])) for name in names)} |"
        )
    differences = (
        f"{own.difference:+.4f} [{own.low:+.4f}, {own.high:+.4f}]" for own in orders.paired.values()
    )
    print(f"| utility minus next | {' | '.join(differences)} |\n\n{orders.sentence}")


def main() -> None:
    """Train, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default=str(ROOT / "pipeline" / "configs" / "deskdrop-outcomes.toml"))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--lists", type=int, default=300)
    parser.add_argument("--set", action="append", default=[], dest="settings")
    given = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        path = SHARED / "users_interactions.csv"
        settings = [f"data_dir={folder}", f"events.path={path}", *SETTINGS, *given.settings]
        config, dataset = features_of(given.config, settings)
        trained = prepared(config, dataset, Path(folder))
        outcomes = trained.retrieved.outcomes
        assert outcomes is not None
        positives = outcomes.num_positives
        print(
            "positives among the validation's candidates: "
            + ", ".join(f"{name} {n:,}" for name, n in positives.items())
        )
        types = [name for name, number in positives.items() if number >= MIN_POSITIVES]
        both = TwoStage(trained.recommender, trained.tested(trained.stage), exclude_seen=False)
        held_out_candidates.MAX_LISTS = 3 * given.lists
        candidates = held_out_candidates.HeldOutCandidates.of(config, dataset, both, trained.numbering)
        lists = outcome_metrics.held_out_lists(config, dataset, candidates, types)
        test = Cached(both.stage, lists.retrieved)
        joint, single = dict[str, list[Float32]](), dict[str, list[Float32]]()
        found: Predictions | None = None
        for seed in range(given.seeds):
            ranker, held = fitted(trained, types, seed, None, given.lists, alone=False)
            found = predict(test.of(ranker), *test.inputs)
            for place, name in enumerate(types):
                joint.setdefault(name, []).append(found.probability[..., place])
                ranker, _ = fitted(trained, [name], seed, held, given.lists, alone=True)
                single.setdefault(name, []).append(predict(test.of(ranker), *test.inputs).probability[..., 0])
        print(
            f"\n{len(lists.retrieved):,} lists at the nights of the test; log losses and calibration errors in 1/1000\n"
        )
        heads = (
            *("outcome", "positives", "AUC together", "AUC alone", "log loss together", "alone", "base rate"),
            *("together minus alone", "together minus base rate", "calibration error"),
        )
        print(f"| {' | '.join(heads)} |\n|{' --- |' * len(heads)}")
        for name in types:
            print(row_of(name, joint[name], single[name], lists.labels, lists, config.seed))
        assert found is not None
        assert config.utility is not None
        metric_settings = MetricSettings((10,), RESAMPLES, config.seed)
        show_orders(outcome_metrics.orders(found, types, lists, config.utility, metric_settings))
    print(f"\n{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
