"""Cautions about an evaluation: reasons why its headline may mislead."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from features.histories.log_facts import LogFacts
from pipeline.config import Config
from pipeline.dataset.protocol import Protocol
from pipeline.dataset.targets import RankedTargets
from pipeline.evaluation.evaluated_targets import Evaluation
from pipeline.evaluation.target_words import counted, is_nightly, unit
from pipeline.modelling import second_stage
from pipeline.modelling.ranker_columns import ColumnFigures
from pipeline.modelling.training_facts import TrainingFacts

MIN_REQUESTS, MIN_USERS = 500, 100
"""Requests and users below which intervals are wide."""
MASKED_SHARE = 1 / 3
"""Share of held-out events left out as already seen above which the metrics describe the rest."""
TIED_SHARE = 0.2
"""Share of neighbouring events of one visit above which an order within visits decides."""
USER_SHARE = 0.5
"""Share of requests of a single user above which the metrics describe that user."""
TELLING_SHARE = 0.5
"""Share of the ranker's NDCG@10 lost by shuffling a column, above which the column may know the targets."""


def cautions(
    targets: RankedTargets,
    every: RankedTargets,
    facts: LogFacts,
    training: TrainingFacts,
    *,
    kind: str,
    ties: str,
    masked_by: str,
    columns: ColumnFigures | None = None,
) -> tuple[str, ...]:
    """Reasons why the metrics of `targets` may mislead, each as `fact: consequence`.

    `every`: with cold targets; `kind`: of the targets; `masked_by`: key of the configuration that leaves out seen items;
    `columns`: figures of the ranker's columns in ranker.json.
    """
    masked = _masked(every, masked_by, is_of_nights=is_nightly(kind))
    return (
        *_few(targets, kind),
        *masked,
        *_tied(facts, kind, ties),
        *_narrow(targets, kind),
        *_rising(training),
        *(() if columns is None else _telling(columns)),
    )


def of_evaluation(
    config: Config, evaluation: Evaluation, inputs: Mapping[str, Path], protocol: Protocol
) -> tuple[str, ...]:
    """`cautions` about an evaluation; inputs: artifacts of the stages that it reads."""
    section = "score" if config.evaluate.exclude_seen is None else "evaluate"
    return cautions(
        evaluation.targets,
        evaluation.every_target,
        evaluation.dataset.facts,
        TrainingFacts.load(inputs["train"]),
        kind=protocol.headline,
        ties=protocol.ties,
        masked_by=f"{section}.exclude_seen",
        columns=ColumnFigures.of_file(inputs["rank"] / second_stage.DESCRIPTION),
    )


def facts_of(sentences: Sequence[str]) -> str:
    """Facts of the cautions without their consequences, for one line."""
    return "; ".join(sentence.partition(": ")[0] for sentence in sentences)


def _few(targets: RankedTargets, kind: str) -> Iterator[str]:
    users = len(np.unique(targets.user))
    if targets.num_requests < MIN_REQUESTS or users < MIN_USERS:
        yield (
            f"only {counted(kind, targets.num_requests, users)}: intervals are wide below {MIN_REQUESTS} {unit(kind)} or "
            f"{MIN_USERS} users"
        )


def _masked(every: RankedTargets, key: str, *, is_of_nights: bool) -> Iterator[str]:
    """Caution about held-out events, of nights about items taken, that repeat an item of the history."""
    seen = every.left_out.get("already_seen", 0)
    share = seen / max(seen + len(every), 1)
    if share > MASKED_SHARE:
        yield (
            f"{share:.0%} of the {'items taken' if is_of_nights else 'held-out events'} repeat an item of the history and are "
            f"left out by {key}: {key} = false recommends and counts them"
        )


def _tied(facts: LogFacts, kind: str, ties: str) -> Iterator[str]:
    """Caution about visits of several events, by the setting of ties; histories of nights end before the visit anyway."""
    if facts.tied_share <= TIED_SHARE:
        return
    if ties == "strict":
        consequence = "split.ties is strict, so the visit of a target is not in its history"
    elif is_nightly(kind):
        consequence = (
            "training predicts an event from others of its visit; split.ties = 'strict' leaves them out"
        )
    else:
        consequence = "the next event of a visit is easy to predict; split.ties = 'strict' leaves the visit out of the history"
    yield f"{facts.tied_share:.0%} of a user's neighbouring events belong to one visit: {consequence}"


def _narrow(targets: RankedTargets, kind: str) -> Iterator[str]:
    """Cautions about targets that describe one user, or cold starts alone."""
    most = np.bincount(np.unique(targets.user, return_inverse=True)[1]).max(initial=0)
    if most > USER_SHARE * targets.num_requests:
        yield f"one user has {most / targets.num_requests:.0%} of the {unit(kind)}: the metrics describe that user"
    if not targets.warm.any():
        yield "every target is on an item unseen in training, or without a history: the metrics describe cold starts alone"


def _telling(columns: ColumnFigures) -> Iterator[str]:
    """Cautions about columns without which the ranker loses most of its quality."""
    for label in columns.taken:
        share = columns.importance[label] / max(columns.ndcg, 1e-9)
        if share > TELLING_SHARE:
            yield (
                f"column {label} carries {share:.0%} of the ranker's NDCG@10: its table may know what users took later; look at "
                "what fills it, or name other columns in ranker.columns"
            )


def _rising(training: TrainingFacts) -> Iterator[str]:
    if training.best_epoch == training.epochs > 1:
        yield f"validation still rose at the last epoch, {training.epochs}: a higher train.epochs trains longer"
