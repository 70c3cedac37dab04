"""Cautions about an evaluation: reasons why its headline may mislead."""

from collections.abc import Iterator

import numpy as np

from features.histories.log_facts import LogFacts
from pipeline.dataset.targets import RankedTargets
from pipeline.modelling.training_facts import TrainingFacts

MIN_REQUESTS, MIN_USERS = 500, 100
"""Requests and users below which intervals are wide."""
MASKED_SHARE = 1 / 3
"""Share of held-out events left out as already seen above which the metrics describe the rest."""
TIED_SHARE = 0.2
"""Share of neighbouring events of one visit above which an order within visits decides."""
USER_SHARE = 0.5
"""Share of targets of a single user above which the metrics describe that user."""


def cautions(
    targets: RankedTargets, every: RankedTargets, facts: LogFacts, training: TrainingFacts, *, ties: str
) -> tuple[str, ...]:
    """Reasons why the metrics of `targets` may mislead, one sentence each; `every`: with cold targets."""
    return tuple(_cautions(targets, every, facts, training, ties))


def _cautions(
    targets: RankedTargets, every: RankedTargets, facts: LogFacts, training: TrainingFacts, ties: str
) -> Iterator[str]:
    users, counts = np.unique(targets.user, return_counts=True)
    if targets.num_requests < MIN_REQUESTS or len(users) < MIN_USERS:
        yield (
            f"{targets.num_requests:,} requests of {len(users):,} users: intervals are wide "
            f"below {MIN_REQUESTS} requests or {MIN_USERS} users"
        )
    seen = every.left_out.get("already_seen", 0)
    if seen > MASKED_SHARE * (seen + len(every)):
        yield (
            f"{seen / (seen + len(every)):.0%} of the held-out events repeat an item of the history and are left out: "
            "score.exclude_seen = false recommends and counts them"
        )
    if facts.tied_share > TIED_SHARE and ties == "order":
        yield (
            f"{facts.tied_share:.0%} of a user's neighbouring events belong to one visit: the next line of a basket is easy to "
            "predict; split.ties = 'strict' leaves the visit out of the history"
        )
    if counts.max(initial=0) > USER_SHARE * targets.num_requests:
        yield f"one user has {counts.max() / targets.num_requests:.0%} of the requests"
    if not targets.warm.any():
        yield "every target is on an item unseen in training, or without a history"
    if training.best_epoch == training.epochs > 1:
        yield f"validation still rises at the last epoch, {training.epochs}: a higher train.epochs trains longer"
