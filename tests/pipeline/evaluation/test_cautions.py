"""Cautions about an evaluation, each at both sides of its bound."""

from dataclasses import replace

import numpy as np
import pytest

from features.histories.log_facts import LogFacts
from models.histories import histories_from_lists
from pipeline.dataset.targets import NO_HISTORY, UNKNOWN_ITEM, WARM, RankedTargets
from pipeline.evaluation.cautions import cautions, facts_of
from pipeline.modelling.ranker_columns import ColumnFigures
from pipeline.modelling.training_facts import TrainingFacts

FACTS = LogFacts(tied_share=0.0, repeated_share=0.0, now=0, resolution=1)
TRAINING = TrainingFacts(best_epoch=3, best_step=30, epochs=5, best={}, resolved={})


def targets_of(users: list[int], cold: int = WARM, seen: int = 0) -> RankedTargets:
    """A request with one target for each entry of `users`."""
    number = len(users)
    return RankedTargets.one_each(
        histories_from_lists([[1]] * number),
        np.ones(number, np.int32),
        np.array(users),
        np.arange(number),
        np.full(number, cold, np.int8),
        {"already_seen": seen},
    )


ENOUGH = targets_of([user for user in range(100) for _ in range(5)])
"""500 requests of 100 users."""


def about(
    targets: RankedTargets = ENOUGH,
    facts: LogFacts = FACTS,
    training: TrainingFacts = TRAINING,
    *,
    kind: str = "successive",
    ties: str = "order",
) -> tuple[str, ...]:
    return cautions(targets, targets, facts, training, kind=kind, ties=ties, masked_by="score.exclude_seen")


def test_a_column_that_tells_nearly_all() -> None:
    said_of = ("column users.last_bought carries 50% of the ranker's NDCG@10",)
    for cost, expected in ((0.1, ()), (0.101, said_of)):
        importance = {"users.last_bought": cost, "users.age": 0.01, "users.left_out": 0.2}
        columns = ColumnFigures("auto", {}, ["users.last_bought", "users.age"], 0.2, importance, None)
        said = cautions(
            *(ENOUGH, ENOUGH, FACTS, TRAINING),
            kind="successive",
            ties="order",
            masked_by="score.exclude_seen",
            columns=columns,
        )
        assert facts_of(said) == "; ".join(expected)


def test_nothing_to_say_at_the_bounds() -> None:
    assert about() == ()


@pytest.mark.parametrize(
    ("users", "counts"),
    [
        ([user for user in range(100) for _ in range(5)][:-1], "499 held-out events of 100 users"),
        ([user for user in range(99) for _ in range(6)], "594 held-out events of 99 users"),
    ],
)
def test_few_requests_or_users(users: list[int], counts: str) -> None:
    assert about(targets_of(users)) == (
        f"only {counts}: intervals are wide below 500 held-out events or 100 users",
    )


def test_user_nights_count_not_the_items_taken() -> None:
    two_each = replace(ENOUGH, user=ENOUGH.user[::2], request=np.arange(500) // 2)
    (caution,) = about(two_each, kind="nightly")
    assert caution.startswith("only 250 user-nights of 100 users: intervals are wide below 500 user-nights")


def test_over_a_third_of_the_events_masked_names_the_key() -> None:
    assert about(replace(ENOUGH, left_out={"already_seen": 250})) == (), "250 of 750 are a third"
    masked = replace(ENOUGH, left_out={"already_seen": 500})
    (caution,) = about(masked)
    assert caution == (
        "50% of the held-out events repeat an item of the history and are left out by score.exclude_seen: "
        "score.exclude_seen = false recommends and counts them"
    )
    assert about(masked, kind="nightly")[0].startswith("50% of the items taken repeat an item of the history")


@pytest.mark.parametrize(
    ("kind", "ties", "consequence"),
    [
        ("successive", "order", "is easy to predict; split.ties = 'strict' leaves the visit out"),
        ("nightly", "order", "training predicts an event from others of its visit"),
        ("successive", "strict", "split.ties is strict, so the visit of a target is not in its history"),
    ],
)
def test_over_a_fifth_of_ties(kind: str, ties: str, consequence: str) -> None:
    assert about(facts=replace(FACTS, tied_share=0.2), kind=kind, ties=ties) == ()
    (caution,) = about(facts=replace(FACTS, tied_share=0.96), kind=kind, ties=ties)
    assert caution.startswith("96% of a user's neighbouring events belong to one visit: ")
    assert consequence in caution


def test_most_requests_of_one_user() -> None:
    half = [0] * 500 + [1 + number % 99 for number in range(500)]
    assert about(targets_of(half)) == ()
    assert about(targets_of([*half, 0])) == (
        "one user has 50% of the held-out events: the metrics describe that user",
    )


@pytest.mark.parametrize("cold", [NO_HISTORY, UNKNOWN_ITEM])
def test_everything_cold(cold: int) -> None:
    every = targets_of(ENOUGH.user.tolist(), cold)
    assert about(every) == (
        "every target is on an item unseen in training, or without a history: the metrics describe cold starts alone",
    )
    every.cold[0] = WARM
    assert about(every) == ()


def test_validation_that_still_rose() -> None:
    assert about(training=replace(TRAINING, best_epoch=5)) == (
        "validation still rose at the last epoch, 5: a higher train.epochs trains longer",
    )
    assert about(training=replace(TRAINING, best_epoch=1, epochs=1)) == (), "one epoch cannot rise"


def test_facts_without_their_consequences() -> None:
    several = about(targets_of([0] * 3), replace(FACTS, tied_share=0.5))
    assert facts_of(several) == (
        "only 3 held-out events of 1 user; 50% of a user's neighbouring events belong to one visit; "
        "one user has 100% of the held-out events"
    )
